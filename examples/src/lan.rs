//! A network in one value: a switch with a guest's card at one port and the host's own services at another.

use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_net_backend::device::{Frame, Sent, header::HEADER_LEN};
use virtio_net_backend::switch::{Egress, Port, PortIndex, Switch, Time};
use virtio_net_backend::transport::mmio::Nic;

/// Frames taken from a card before others have their turn.
pub(crate) const BATCH: usize = 256;

/// What sits at the host's port: it gets frames and writes its answers, each a frame, behind one another.
pub trait Host {
    /// Takes one frame; pushes what it answers.
    fn receive(&mut self, now: Duration, frame: &[u8], answers: &mut Vec<Vec<u8>>);
}

/// The network.
pub struct Lan<H> {
    switch: Switch,
    guest: PortIndex,
    host: PortIndex,
    nic: Nic,
    services: H,
    start: Instant,
    frame: Vec<u8>,
    answers: Vec<Vec<u8>>,
}

impl<H: Host> Lan<H> {
    /// A network of that card, at a port of that kind, and the host.
    #[must_use]
    pub fn new(nic: Nic, guest: Port, services: H) -> Option<Self> {
        // A switch that serves strangers is given a random seed; this one has a single guest.
        let mut switch = Switch::new(64, 0);
        let guest = switch.attach(Time::default(), guest)?;
        let host = switch.attach(Time::default(), Port::uplink())?;
        let (frame, answers) = (Vec::new(), Vec::new());
        Some(Self {
            switch,
            guest,
            host,
            nic,
            services,
            start: Instant::now(),
            frame,
            answers,
        })
    }

    /// Serves the network until it is told to stop; gives back the services, and the switch to read its counters.
    pub fn serve(mut self, stop: &AtomicBool) -> (H, Switch) {
        while !stop.load(Ordering::Acquire) {
            wait_readable([self.nic.doorbell().as_raw_fd()], Duration::from_millis(20));
            // Empty when the wait ended by time: then there is nothing to reset.
            let _ = self.nic.doorbell().read();
            while self.turn() {}
        }
        (self.services, self.switch)
    }

    /// Takes what the guest sent and brings back what the host answers. False when all is done and the doorbell will
    /// ring for more.
    fn turn(&mut self) -> bool {
        let elapsed = self.start.elapsed();
        let now = Time::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX));
        let mut path = self.nic.path();
        let taken = path.take(BATCH, |frame| {
            let egress = self
                .switch
                .ingress_head(now, self.guest, frame.head(), frame.len());
            if reaches(egress, self.host) {
                frame.copy_to(&mut self.frame);
                self.services
                    .receive(elapsed, &self.frame[HEADER_LEN..], &mut self.answers);
            }
            Sent::Done
        });
        for answer in self.answers.drain(..) {
            if reaches(self.switch.ingress(now, self.host, &answer), self.guest) {
                self.frame.clear();
                self.frame.resize(HEADER_LEN, 0);
                self.frame.extend_from_slice(&answer);
                // A guest without buffers loses the frame, as on any wire.
                let _ = Frame::new(&self.frame).map(|frame| path.give(&frame));
            }
        }
        taken > 0 || path.arm()
    }
}

/// Whether a decision sends the frame to that port.
#[must_use]
pub fn reaches(egress: Egress, port: PortIndex) -> bool {
    match egress {
        Egress::To(to) => to == port,
        Egress::Flood(ports) => ports.contains(port),
        Egress::Drop(_) => false,
    }
}

/// Waits until there is something to read from one of them, or for so long.
#[allow(unsafe_code, reason = "poll")]
pub(crate) fn wait_readable<const N: usize>(fds: [i32; N], patience: Duration) {
    let mut polls = fds.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    });
    let count = libc::nfds_t::try_from(N).unwrap_or_default();
    let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: valid pollfds, and their count.
    unsafe { libc::poll(polls.as_mut_ptr(), count, patience) };
}
