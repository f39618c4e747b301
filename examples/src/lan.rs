//! A network in one value: a switch with a guest's card at one port and the host's own services at another.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_net_backend::device::{Frame, Sent, header::HEADER_LEN};
use virtio_net_backend::port::FramePort;
use virtio_net_backend::switch::{Port, PortIndex, Switch, Time};
use virtio_net_backend::transport::mmio::{Link, Next, Nic};

/// What sits at the host's port: it gets frames and writes its answers, each a frame, behind one another.
pub trait Host {
    /// Takes one frame; pushes what it answers.
    fn receive(&mut self, now: Duration, frame: &[u8], answers: &mut Vec<Vec<u8>>);
}

/// The network: a card, plugged into a wire that leads to the switch.
pub struct Lan<H>(Link<Wire<H>>);

/// What is behind the card. A frame that the guest sends is decided on at once, and what it is answered with waits here.
struct Wire<H> {
    switch: Switch,
    guest: PortIndex,
    host: PortIndex,
    services: H,
    start: Instant,
    frame: Vec<u8>,
    answers: Vec<Vec<u8>>,
    waiting: VecDeque<Vec<u8>>,
}

impl<H: Host> Lan<H> {
    /// A network of that card, at a port of that kind, and the host.
    #[must_use]
    pub fn new(nic: Nic, guest: Port, services: H) -> Option<Self> {
        // A switch that serves strangers is given a random seed; this one has a single guest.
        let mut switch = Switch::new(64, 0);
        let guest = switch.attach(Time::default(), guest)?;
        let host = switch.attach(Time::default(), Port::uplink())?;
        let wire = Wire {
            switch,
            guest,
            host,
            services,
            start: Instant::now(),
            frame: Vec::new(),
            answers: Vec::new(),
            waiting: VecDeque::new(),
        };
        Some(Self(Link::new(nic, wire)))
    }

    /// Serves the network until it is told to stop; gives back the services, and the switch to read its counters.
    pub fn serve(self, stop: &AtomicBool) -> (H, Switch) {
        let mut link = self.0;
        while !stop.load(Ordering::Acquire) {
            let doorbell = link.nic().doorbell().as_raw_fd();
            wait_readable(&[doorbell], Duration::from_millis(20));
            while link.turn().is_ok_and(|next| next == Next::Again) {}
        }
        let wire = link.into_port();
        (wire.services, wire.switch)
    }
}

impl<H: Host> Wire<H> {
    fn now(&self) -> Time {
        let elapsed = self.start.elapsed();
        Time::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl<H: Host> FramePort for Wire<H> {
    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        let (now, head) = (self.now(), frame.head());
        let egress = self.switch.ingress_head(now, self.guest, head, frame.len());
        if egress.reaches(self.host) {
            frame.copy_to(&mut self.frame);
            let frame = &self.frame[HEADER_LEN..];
            let elapsed = self.start.elapsed();
            self.services.receive(elapsed, frame, &mut self.answers);
            self.waiting.extend(self.answers.drain(..));
        }
        Sent::Done
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        while let Some(answer) = self.waiting.pop_front() {
            let length = HEADER_LEN + answer.len();
            let egress = self.switch.ingress(self.now(), self.host, &answer);
            if egress.reaches(self.guest) && length <= into.len() {
                into[..HEADER_LEN].fill(0);
                into[HEADER_LEN..length].copy_from_slice(&answer);
                return Ok(Some(length));
            }
        }
        Ok(None)
    }

    fn refused(&self) -> u64 {
        0
    }
}

/// Waits until there is something to read (an error, too) from one of them, or for so long. From which there is.
#[allow(unsafe_code, reason = "poll")]
pub fn wait_readable<'f, F: AsRawFd + 'f>(
    fds: impl IntoIterator<Item = &'f F>,
    patience: Duration,
) -> Vec<bool> {
    let poll = |fd: &F| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls: Vec<libc::pollfd> = fds.into_iter().map(poll).collect();
    let count = libc::nfds_t::try_from(polls.len()).unwrap_or_default();
    let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: valid pollfds, and their count.
    unsafe { libc::poll(polls.as_mut_ptr(), count, patience) };
    polls.iter().map(|poll| poll.revents != 0).collect()
}
