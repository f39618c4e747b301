//! The data plane of one process: its ports, what is between them, and the uplink tap.
//!
//! [`Network::turn`] does [`BUDGET`] worth of work for each port and somewhat more for the tap, then goes on to the
//! next, so a driver that sends without end gets its share and no more, and what comes from the tap is never starved.
//! Work is counted in small frames ([`cost`]): bytes, copies, segments and descriptors, not frames alone. Who did more
//! than its share with one frame is passed over until that is paid, unless nobody else has anything to do.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::middle::{Middle, Uplink};
use super::paths::{Paths, index_of, number_of};
use super::port::Port;
use crate::device::frame::MAX_FRAME;
use crate::device::header::HEADER_LEN;
use crate::device::steer::Flows;
use crate::device::{Credit, Features, Frame, Sent, cost};
use crate::port::FramePort as _;
use crate::switch::{MAX_PORTS, PortIndex, PortSet, Time};
use crate::transport::vhost_user::Session;

/// Work for one port in one turn, in small frames.
pub const BUDGET: usize = 64;
/// Work for the tap in one turn: more than for a port, because reading is the slower half of an exchange.
const UPLINK_BUDGET: usize = 96;

/// The data plane.
pub struct Network {
    ports: Vec<Option<Box<Port>>>,
    middle: Middle,
    uplink: Option<Uplink>,
    /// Ports that are looked at in each turn; the others sleep until a kick. A turn's cost must not grow with them.
    awake: PortSet,
    /// Ports of which some ring was seen to have no kick.
    polled: PortSet,
    /// Ports that were written to since the last flush.
    touched: Vec<u16>,
    buffer: Box<[u8]>,
    /// Where the next turn begins, so that no port is always first.
    first: usize,
}

impl Network {
    /// An empty network.
    #[must_use]
    pub fn new(middle: Middle, uplink: Option<Uplink>) -> Self {
        Self {
            ports: Vec::new(),
            middle,
            uplink,
            awake: PortSet::default(),
            polled: PortSet::default(),
            touched: Vec::new(),
            buffer: vec![0; HEADER_LEN + MAX_FRAME].into_boxed_slice(),
            first: 0,
        }
    }

    /// The port with this number.
    pub fn port(&mut self, number: u16) -> Option<&mut Port> {
        self.ports.get_mut(usize::from(number))?.as_deref_mut()
    }

    /// All ports with their numbers.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &Port)> {
        let numbered = (0u16..).zip(&self.ports);
        numbered.filter_map(|(number, port)| Some((number, port.as_deref()?)))
    }

    /// Adds a port under a number that is free (on a switch: the one the switch gave).
    pub fn insert(&mut self, number: u16, port: Port) {
        let at = usize::from(number);
        if self.ports.len() <= at {
            self.ports.resize_with((at + 1).min(MAX_PORTS), || None);
        }
        if let Some(slot) = self.ports.get_mut(at) {
            *slot = Some(Box::new(port));
        }
    }

    /// Takes a port out.
    pub fn remove(&mut self, number: u16) -> Option<Box<Port>> {
        self.sleep(number);
        self.ports.get_mut(usize::from(number))?.take()
    }

    fn sleep(&mut self, number: u16) {
        if let Some(index) = index_of(number) {
            self.awake.remove(index);
            self.polled.remove(index);
        }
    }

    /// What is between the ports.
    pub fn middle(&mut self) -> &mut Middle {
        &mut self.middle
    }

    /// The uplink.
    pub fn uplink(&mut self) -> Option<&mut Uplink> {
        self.uplink.as_mut()
    }

    /// What ports must not offer, because the tap cannot take or give it.
    #[must_use]
    pub fn withheld(&self) -> Features {
        let uplink = self.uplink.as_ref();
        uplink
            .map(|uplink| uplink.tap.withheld())
            .unwrap_or_default()
    }

    /// Lets the kernel hand over only frames that are of use: on a wire those that the driver takes, on a switch all
    /// (it finishes them for the ports that need it).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_uplink_offloads(&self) -> io::Result<()> {
        let Some(uplink) = &self.uplink else {
            return Ok(());
        };
        let every = Features::GUEST_CSUM
            .with(Features::GUEST_TSO4)
            .with(Features::GUEST_TSO6)
            .with(Features::GUEST_ECN)
            .with(Features::GUEST_USO4)
            .with(Features::GUEST_USO6);
        let features = match &self.middle {
            Middle::Switch(_) => every,
            Middle::Wire => {
                let session = self.ports().find_map(|(_, port)| port.session.as_ref());
                session
                    .map(|session| session.device_ref().accepted())
                    .unwrap_or_default()
            }
        };
        uplink.tap.set_offloads(features)
    }

    /// Moves frames once around; how many.
    pub fn turn(&mut self, now: Time) -> usize {
        let mut moved = 0;
        self.flush_uplink();
        let before = self.sent_up();
        let (awake, first) = (self.awake, self.first);
        let from_first = awake.iter().skip_while(|index| index.index() < first);
        let before_it = awake.iter().take_while(|index| index.index() < first);
        for index in from_first.chain(before_it) {
            moved += self.transmit(index, now);
        }
        self.first = self.first.wrapping_add(1) % self.ports.len().max(1);
        let sent_up = self.sent_up() - before;
        moved += self.receive_uplink(now, sent_up);
        if moved == 0 && self.forgive() {
            return 1;
        }
        moved
    }

    /// Nobody has anything to do but who is in debt: there is no one to be fair to. True if there was a debt.
    fn forgive(&mut self) -> bool {
        let mut any = false;
        let mut settle = |credit: &mut i64| {
            any |= *credit < 0;
            *credit = (*credit).max(0);
        };
        for index in self.awake.iter() {
            if let Some(Some(port)) = self.ports.get_mut(index.index()) {
                settle(&mut port.credit);
            }
        }
        if let Some(uplink) = &mut self.uplink {
            settle(&mut uplink.credit);
        }
        any
    }

    fn flush_uplink(&mut self) {
        if let Some(uplink) = &mut self.uplink {
            uplink.flush();
        }
    }

    fn sent_up(&self) -> u64 {
        self.uplink.as_ref().map_or(0, |uplink| uplink.sent)
    }

    /// Asks all awake ports' drivers for kicks; true when there is something to do already, so that nobody sleeps.
    ///
    /// A port that waits for its rate stays awake and counts as having nothing to do: [`Network::rate_wait`] says
    /// when it has. So does one that is polled.
    pub fn arm(&mut self, now: Time) -> bool {
        let uplink_waits = self.uplink.as_ref().is_some_and(|uplink| uplink.readable);
        let mut more = uplink_waits && self.can_read_uplink();
        more |= self.uplink.as_ref().is_some_and(Uplink::has_waiting);
        let on_wire = matches!(self.middle, Middle::Wire);
        let mut looked_at = self.awake;
        if on_wire && uplink_waits {
            looked_at.extend(index_of(0));
        }
        for index in looked_at.iter() {
            let Some(Some(port)) = self.ports.get_mut(index.index()) else {
                self.awake.remove(index);
                continue;
            };
            let held = match &self.middle {
                Middle::Switch(switch) => !switch.send_wait(now, index).is_zero(),
                Middle::Wire => false,
            };
            let busy = arm_port(port, held, on_wire && uplink_waits);
            // Nothing wakes a ring without kicks: its port is looked at in each turn, and after each short sleep.
            let polled = self.polled.contains(index) && port.is_polled();
            if busy || held || polled {
                self.awake.insert(index);
            } else {
                self.awake.remove(index);
            }
            more |= busy;
        }
        more
    }

    /// A port has something to do: look at its queues without kicks until it is quiet.
    pub fn wake(&mut self, number: u16) {
        let Some(index) = index_of(number).filter(|index| !self.awake.contains(*index)) else {
            return;
        };
        let Some(port) = self.ports.get_mut(index.index()).and_then(Option::as_mut) else {
            return;
        };
        self.awake.insert(index);
        for_each_queue(port, |session, queue| {
            if let Some(ring) = session.device().ring(queue) {
                ring.disarm();
            }
        });
    }

    /// How long until a port that waits for its rate may send again.
    #[must_use]
    pub fn rate_wait(&self, now: Time) -> Option<Duration> {
        let Middle::Switch(switch) = &self.middle else {
            return None;
        };
        let waits = self.awake.iter().map(|index| switch.send_wait(now, index));
        waits.filter(|wait| !wait.is_zero()).min()
    }

    /// Whether some ring has no kicks and must be looked at again and again.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.polled.iter().any(|index| {
            let port = self.ports.get(index.index()).and_then(Option::as_ref);
            port.is_some_and(|port| port.is_polled())
        })
    }

    /// A port's frontend may have given it rings without kicks.
    pub fn note_polled(&mut self, number: u16) {
        let polled = self.port(number).is_some_and(|port| port.is_polled());
        if let Some(index) = index_of(number).filter(|_| polled) {
            self.polled.insert(index);
            self.wake(number);
        }
    }

    /// Sends a frame of the process's own as if port `number` had sent it (announcements).
    pub fn originate(&mut self, number: u16, linear: &[u8], now: Time) {
        if let Some(frame) = Frame::new(linear) {
            let mut paths = Paths {
                ports: &mut self.ports,
                middle: &mut self.middle,
                uplink: &mut self.uplink,
                touched: &mut self.touched,
                awake: &mut self.awake,
                credit: &Credit::new(0),
                now,
            };
            paths.forward(number, &frame);
            self.flush_uplink();
            self.flush();
        }
    }

    /// Ends a port's session.
    pub fn close(&mut self, number: u16) -> Vec<OwnedFd> {
        self.sleep(number);
        self.port(number).map(Port::close).unwrap_or_default()
    }

    fn transmit(&mut self, index: PortIndex, now: Time) -> usize {
        let at = index.index();
        let Some(mut port) = self.ports.get_mut(at).and_then(Option::take) else {
            return 0;
        };
        let number = number_of(index);
        let drained = port.drain(BUDGET);
        let credit = earn(port.credit, BUDGET);
        let mut paths = Paths {
            ports: &mut self.ports,
            middle: &mut self.middle,
            uplink: &mut self.uplink,
            touched: &mut self.touched,
            awake: &mut self.awake,
            credit: &credit,
            now,
        };
        let mut moved = drained;
        if paths.may_send(number) {
            moved += transmit_port(&mut port, number, &mut paths);
        }
        // Whatever the rate: a guest waits for the answer to a command.
        moved += serve_control(&mut port);
        port.credit = credit.left();
        port.flush();
        self.ports[at] = Some(port);
        self.flush();
        moved
    }

    /// Reads the tap. An attempt that finds nothing costs a system call, so without an event it is made only when
    /// frames were moved to the tap that may be answered at once.
    fn receive_uplink(&mut self, now: Time, sent_up: u64) -> usize {
        let due = self
            .uplink
            .as_ref()
            .is_some_and(|uplink| uplink.readable || sent_up >= 8);
        if !due {
            return 0;
        }
        let mut count = 0;
        let before = self.uplink.as_ref().map_or(0, |uplink| uplink.credit);
        let credit = earn(before, UPLINK_BUDGET);
        while credit.left() > 0 && self.can_read_uplink() {
            let Some(uplink) = &mut self.uplink else {
                break;
            };
            let Ok(Some(len)) = uplink.tap.receive(&mut self.buffer) else {
                uplink.readable = false;
                break;
            };
            uplink.received += 1;
            uplink.readable = true;
            count += 1;
            credit.spend(cost(len, 0));
            let from = uplink.index;
            self.receive_frame(from, len, &credit, now);
        }
        if let Some(uplink) = &mut self.uplink {
            uplink.credit = credit.left();
        }
        self.flush();
        count
    }

    /// On a wire, frames stay in the tap's own queue until the driver has buffers, or are lost with the link.
    fn can_read_uplink(&mut self) -> bool {
        match &self.middle {
            Middle::Switch(_) => true,
            Middle::Wire => self
                .port(0)
                .is_some_and(|port| !port.link_up || port.has_buffers()),
        }
    }

    fn receive_frame(&mut self, from: Option<PortIndex>, len: usize, credit: &Credit, now: Time) {
        let linear = &mut self.buffer[..len.min(HEADER_LEN + MAX_FRAME)];
        if let Some(buffers) = linear.get_mut(10..HEADER_LEN) {
            buffers.copy_from_slice(&1u16.to_le_bytes());
        }
        let Some(frame) = Frame::new(linear) else {
            return;
        };
        let mut paths = Paths {
            ports: &mut self.ports,
            middle: &mut self.middle,
            uplink: &mut None,
            touched: &mut self.touched,
            awake: &mut self.awake,
            credit,
            now,
        };
        match from {
            Some(index) => paths.forward(number_of(index), &frame),
            None => paths.deliver(0, &frame),
        };
    }

    fn flush(&mut self) {
        for number in self.touched.drain(..) {
            if let Some(port) = self
                .ports
                .get_mut(usize::from(number))
                .and_then(Option::as_deref_mut)
            {
                port.flush();
            }
        }
    }
}

/// What a turn may do: its budget, less what an earlier one did beyond its own.
fn earn(left: i64, budget: usize) -> Credit {
    let credit = Credit::new(budget);
    Credit::from_left((left.saturating_add(credit.left())).min(credit.left()))
}

fn transmit_port(port: &mut Port, number: u16, paths: &mut Paths<'_>) -> usize {
    let Some(session) = &mut port.session else {
        return 0;
    };
    let mut frames = 0;
    let mut broken = Vec::new();
    let pairs = session.queues() / 2;
    let limited = paths.is_limited(number);
    let credit = paths.credit;
    let link_up = port.link_up;
    // One budget for all pairs: each is the first in its turn.
    port.first_pair = (port.first_pair + 1) % pairs.max(1);
    for offset in 0..pairs {
        let pair = (port.first_pair + offset) % pairs;
        let queue = 2 * pair + 1;
        // A queue that runs but is disabled is emptied without effect (vhost-user, «Ring states»).
        let enabled = session.is_enabled(queue);
        let steered = session.queues() > 2;
        let Some(tx) = session.device().tx(pair) else {
            continue;
        };
        let mut flows = Flows::default();
        let mut lost = 0;
        let turn = tx.turn_within(credit, |frame| {
            if !enabled || !link_up {
                lost += 1;
                return Sent::Done;
            }
            // Over its rate within the turn: the frame waits in its ring, where the driver sees that it does.
            if limited && !paths.may_send(number) {
                return Sent::Busy;
            }
            if steered {
                flows.note(frame.head());
            }
            paths.forward(number, frame)
        });
        if link_up {
            port.counters.tx_disabled += lost;
        } else {
            port.counters.tx_link_down += lost;
        }
        // What the driver gets back has left, so that a successor need not know of it.
        paths.flush_uplink();
        let interrupt = tx.ring().publish();
        match turn {
            Ok(turn) => {
                port.counters.tx_frames += turn.frames as u64;
                port.counters.tx_malformed += turn.malformed as u64;
                frames += turn.frames + turn.malformed;
            }
            Err(fault) => broken.push((queue, fault)),
        }
        if steered {
            session.device().sent_by(&flows, pair);
        }
        if interrupt {
            session.interrupt(queue);
        }
    }
    for (queue, fault) in broken {
        port.fail(queue, fault);
    }
    frames
}

fn serve_control(port: &mut Port) -> usize {
    match port.session.as_mut().map(Session::serve_control) {
        Some(Ok(commands)) => commands,
        Some(Err((queue, fault))) => {
            port.fail(queue, fault);
            0
        }
        None => 0,
    }
}

/// Arms the queues of a port; true when one has something to do. Transmit queues of a port that is `held` for its rate
/// are left alone; receive buffers are of interest while frames wait for them, here or (`wanted`) in the tap.
fn arm_port(port: &mut Port, held: bool, wanted: bool) -> bool {
    let waited_for = port.awaited(wanted);
    let mut busy = false;
    let mut failed = Vec::new();
    for_each_queue(port, |session, queue| {
        let of_interest = if queue % 2 == 0 {
            waited_for >> (queue / 2) & 1 == 1
        } else {
            !held
        };
        let Some(ring) = session.device().ring(queue).filter(|_| of_interest) else {
            return;
        };
        match ring.arm() {
            Ok(more) => busy |= more,
            Err(fault) => failed.push((queue, fault)),
        }
    });
    for (queue, fault) in failed {
        port.fail(queue, fault);
    }
    busy
}

fn for_each_queue(port: &mut Port, mut action: impl FnMut(&mut Session, u16)) {
    if let Some(session) = &mut port.session {
        for queue in 0..session.queues() {
            action(session, queue);
        }
    }
}
