//! The whole of `tiny_vmm`, for the program, its test and its bench.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context as _;
use virtio_net_backend::device::{Features, Settings};
use virtio_net_backend::switch::{Guard, Port};
use vnet_core::types::Mac;

use crate::gateway::Gateway;
use crate::lan::Lan;
use crate::plug;
use crate::vmm::{Machine, Mailbox, PATIENCE, Task};

/// The network that the guest finds itself in.
pub const NETWORK: &str = r#"
name = "tiny"
[forward]
mode = "nat"
[[subnet]]
address = "10.0.2.1/24"
[subnet.dhcp]
ranges = ["10.0.2.2-10.0.2.200"]
"#;

/// The guest's card.
pub const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// What was asked for.
    pub task: Task,
    /// What the guest says.
    pub guest: Mailbox,
    /// Frames of the flood that reached the gateway.
    pub frames: u64,
    /// Seconds from the first to the last of those.
    pub seconds: f64,
}

/// Runs the guest to its end.
///
/// # Errors
/// When there is no KVM, or the guest did not do what it was asked to.
pub fn run(task: Task) -> anyhow::Result<Outcome> {
    let machine = Machine::new(&settings(), task)?;
    // The guest may be anybody in the subnet, but nobody else, and no server.
    let guard = Guard::new([GUEST]).allow(Ipv4Addr::new(10, 0, 2, 0).into(), 24);
    let port = Port {
        guard: Some(guard),
        ..Port::default()
    };
    let lan = Lan::new(machine.nic(), port, Gateway::new(NETWORK)?)
        .context("a switch has room for two")?;

    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let network = thread::Builder::new()
        .name("network".to_owned())
        .spawn(move || lan.serve(&stopping))?;
    let guest = machine.run(PATIENCE);
    stop.store(true, Ordering::Release);
    let Ok((gateway, _)) = network.join() else {
        anyhow::bail!("the network thread panicked")
    };
    let (first, last) = gateway.discarded_between;
    Ok(Outcome {
        task,
        guest: guest?,
        frames: gateway.discarded,
        seconds: (last - first).as_secs_f64(),
    })
}

/// Runs the guest, [`GUEST`], on a tap: a port of netd, say. It is netd then that gives it its lease.
///
/// # Errors
/// As for [`run`], and when the tap cannot be opened.
pub fn run_on_tap(pings: u32, tap: &str) -> anyhow::Result<Outcome> {
    let task = Task { pings, flood: 0 };
    let machine = Machine::new(&settings(), task)?;
    let tap = plug::open(tap).with_context(|| format!("tap {tap}"))?;
    let nic = machine.nic();
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let network = thread::Builder::new()
        .name("network".to_owned())
        .spawn(move || plug::serve(nic, tap, &stopping))?;
    let guest = machine.run(PATIENCE);
    stop.store(true, Ordering::Release);
    let Ok(served) = network.join() else {
        anyhow::bail!("the network thread panicked")
    };
    served?;
    Ok(Outcome {
        task,
        guest: guest?,
        frames: 0,
        seconds: 0.0,
    })
}

fn settings() -> Settings {
    Settings {
        mac: GUEST.octets(),
        mtu: None,
        queue_pairs: 1,
        own_control_queue: true,
        withheld: Features::default(),
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = Ipv4Addr::from_bits;
        let guest = &self.guest;
        write!(
            f,
            "the guest leased {} (mask {}, router {}, server {})",
            ip(guest.address),
            ip(guest.mask),
            ip(guest.router),
            ip(guest.server)
        )?;
        write!(
            f,
            " for {} s; {} of {} pings answered",
            guest.lease, guest.answered, self.task.pings
        )?;
        if self.task.flood > 0 {
            let rate = self.rate() / 1e6;
            write!(
                f,
                "; {} of {} frames came through, {rate:.2} million a second",
                self.frames, self.task.flood
            )?;
        }
        Ok(())
    }
}

impl Outcome {
    /// Frames of the flood a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let frames = self.frames as f64;
        if self.seconds > 0.0 {
            frames / self.seconds
        } else {
            0.0
        }
    }
}
