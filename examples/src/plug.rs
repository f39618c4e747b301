//! A card plugged into a tap, nothing in between: the guest is then on whatever network the tap is a port of.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use virtio_net_backend::device::{Features, Frame, Received};
use virtio_net_backend::port::{FramePort as _, Tap};
use virtio_net_backend::transport::mmio::Nic;

use crate::lan::{BATCH, wait_readable};

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

/// Carries frames between card and tap until told to stop.
pub fn serve(nic: &Nic, mut tap: Tap, stop: &AtomicBool) {
    let mut buffer = vec![0; 64 * 1024];
    while !stop.load(Ordering::Acquire) {
        let fds = [nic.doorbell().as_raw_fd(), tap.as_fd().as_raw_fd()];
        wait_readable(fds, Duration::from_millis(20));
        // Empty when it was not what ended the wait: then there is nothing to reset.
        let _ = nic.doorbell().read();
        while turn(nic, &mut tap, &mut buffer) {}
    }
}

/// A batch each way. False when all is done, and either side will call for more.
fn turn(nic: &Nic, tap: &mut Tap, buffer: &mut [u8]) -> bool {
    let mut path = nic.path();
    let mut moved = path.take(BATCH, |frame| tap.send(frame));
    while let Ok(Some(length)) = tap.receive(buffer) {
        moved += 1;
        let given = Frame::new(&buffer[..length]).map(|frame| path.give(&frame));
        // A guest without buffers loses the frame, as on any wire.
        if given == Some(Received::NoBuffers) {
            break;
        }
    }
    moved > 0 || path.arm()
}
