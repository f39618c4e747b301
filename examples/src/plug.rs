//! A card plugged into a tap, nothing in between: the guest is then on whatever network the tap is a port of.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use virtio_net_backend::device::Features;
use virtio_net_backend::port::Tap;
use virtio_net_backend::transport::mmio::{Link, Next, Nic};

use crate::lan::wait_readable;

/// How long a bridge may take to see that somebody has plugged in.
const PLUGGED_IN: Duration = Duration::from_secs(5);

/// Attaches to a tap, and waits until it carries frames.
///
/// # Errors
/// When it cannot be opened, or stays down.
pub fn open(name: &str) -> anyhow::Result<Tap> {
    let (tap, _) = Tap::open(name)?;
    // Our guest's driver takes no unfinished frames.
    tap.set_offloads(Features::default())?;
    let state = format!("/sys/class/net/{name}/operstate");
    let deadline = Instant::now() + PLUGGED_IN;
    while std::fs::read_to_string(&state)?.trim() != "up" {
        ensure!(
            Instant::now() < deadline,
            "{name} is down: `ip link set {name} up`"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(tap)
}

/// Carries frames between card and tap until told to stop, or until the tap is gone.
///
/// # Errors
/// When the tap is gone.
pub fn serve(nic: Nic, tap: Tap, stop: &AtomicBool) -> io::Result<()> {
    let mut link = Link::new(nic, tap);
    while !stop.load(Ordering::Acquire) {
        let doorbell = link.nic().doorbell().as_raw_fd();
        let tap = link.port().as_fd().as_raw_fd();
        wait_readable(&[doorbell, tap], Duration::from_millis(20));
        while link.turn()? == Next::Again && !stop.load(Ordering::Acquire) {}
    }
    Ok(())
}
