//! The data plane of one process: its ports, what is between them, and the uplink tap.
//!
//! [`Network::turn`] does [`BUDGET`] worth of work for each port and somewhat more for the tap, then goes on to the
//! next, so a driver that sends without end gets its share and no more, and what comes from the tap is never starved.
//! Work is counted in small frames ([`cost`]): bytes, copies, segments and descriptors, not frames alone. Who did more
//! than its share with one frame is passed over until that is paid, unless nobody else has anything to do.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::port::Port;
use crate::device::frame::MAX_FRAME;
use crate::device::header::HEADER_LEN;
use crate::device::steer::Flows;
use crate::device::{Credit, Features, Frame, Sent, cost};
use crate::port::{FramePort, Tap};
use crate::switch::{Egress, MAX_PORTS, PortIndex, Switch, Time};

/// Work for one port in one turn, in small frames.
pub const BUDGET: usize = 64;
/// Work for the tap in one turn: more than for a port, because reading is the slower half of an exchange.
const UPLINK_BUDGET: usize = 96;

/// What is between the ports.
pub enum Middle {
    /// One port and the tap, nothing in between.
    Wire,
    /// A learning switch.
    Switch(Box<Switch>),
}

/// The tap that leads to the kernel.
pub struct Uplink {
    /// The tap.
    pub tap: Tap,
    /// Its number on the switch.
    pub index: Option<PortIndex>,
    /// It may have frames for us.
    pub readable: bool,
    /// Frames written to it.
    pub sent: u64,
    /// Frames read from it.
    pub received: u64,
    /// What its turns may still do.
    credit: i64,
}

impl Uplink {
    /// A tap, under its number on the switch.
    #[must_use]
    pub fn new(tap: Tap, index: Option<PortIndex>) -> Self {
        Self {
            tap,
            index,
            readable: true,
            sent: 0,
            received: 0,
            credit: 0,
        }
    }
}

/// The data plane.
pub struct Network {
    ports: Vec<Option<Box<Port>>>,
    middle: Middle,
    uplink: Option<Uplink>,
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
        self.ports.get_mut(usize::from(number))?.take()
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
        let count = self.ports.len();
        for offset in 0..count {
            moved += self.transmit((self.first + offset) % count, now);
        }
        self.first = self.first.wrapping_add(1) % count.max(1);
        moved += self.receive_uplink(now, moved);
        if moved == 0 && self.forgive() {
            return 1;
        }
        moved
    }

    /// Nobody has anything to do but who is in debt: there is no one to be fair to. True if there was a debt.
    fn forgive(&mut self) -> bool {
        let ports = self.ports.iter_mut().flatten();
        let ports = ports.filter(|port| port.awake).map(|port| &mut port.credit);
        let uplink = self.uplink.iter_mut().map(|uplink| &mut uplink.credit);
        let mut any = false;
        for credit in ports.chain(uplink).filter(|credit| **credit < 0) {
            *credit = 0;
            any = true;
        }
        any
    }

    /// Asks all awake ports' drivers for kicks; true when there is something to do already, so that nobody sleeps.
    ///
    /// A port that waits for its rate stays awake and counts as having nothing to do: [`Network::rate_wait`] says
    /// when it has.
    pub fn arm(&mut self, now: Time) -> bool {
        let uplink_waits = self.uplink.as_ref().is_some_and(|uplink| uplink.readable);
        let mut more = uplink_waits && self.can_read_uplink();
        let on_wire = matches!(self.middle, Middle::Wire);
        for (number, port) in self.ports.iter_mut().enumerate() {
            let Some(port) = port
                .as_deref_mut()
                .filter(|port| port.awake || (on_wire && uplink_waits))
            else {
                continue;
            };
            let held = match (&self.middle, PortIndex::new(number)) {
                (Middle::Switch(switch), Some(index)) => !switch.send_wait(now, index).is_zero(),
                (Middle::Switch(_) | Middle::Wire, _) => false,
            };
            let busy = arm_port(port, held, on_wire && uplink_waits);
            port.awake = busy || held;
            more |= busy;
        }
        more
    }

    /// A port has something to do: look at its queues without kicks until it is quiet.
    pub fn wake(&mut self, number: u16) {
        let Some(port) = self.port(number) else {
            return;
        };
        if std::mem::replace(&mut port.awake, true) {
            return;
        }
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
        let awake = self.ports().filter(|(_, port)| port.awake);
        let waits = awake.filter_map(|(number, _)| {
            PortIndex::new(usize::from(number)).map(|i| switch.send_wait(now, i))
        });
        waits.filter(|wait| !wait.is_zero()).min()
    }

    /// Whether some ring has no kicks and must be looked at again and again.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.ports().any(|(_, port)| {
            port.session
                .as_ref()
                .is_some_and(|session| session.is_polled())
        })
    }

    /// Sends a frame of the process's own as if port `number` had sent it (announcements).
    pub fn originate(&mut self, number: u16, linear: &[u8], now: Time) {
        if let Some(frame) = Frame::new(linear) {
            let mut paths = Paths {
                ports: &mut self.ports,
                middle: &mut self.middle,
                uplink: &mut self.uplink,
                touched: &mut self.touched,
                credit: &Credit::new(0),
                now,
            };
            paths.forward(number, &frame);
            self.flush();
        }
    }

    /// Ends a port's session.
    pub fn close(&mut self, number: u16) -> Vec<OwnedFd> {
        self.port(number).map(Port::close).unwrap_or_default()
    }

    fn transmit(&mut self, at: usize, now: Time) -> usize {
        let Some(slot) = self.ports.get_mut(at) else {
            return 0;
        };
        if !slot.as_ref().is_some_and(|port| port.awake) {
            return 0;
        }
        let Some(mut port) = slot.take() else {
            return 0;
        };
        let number = u16::try_from(at).unwrap_or(u16::MAX);
        let drained = port.drain(BUDGET);
        let credit = earn(port.credit, BUDGET);
        let mut paths = Paths {
            ports: &mut self.ports,
            middle: &mut self.middle,
            uplink: &mut self.uplink,
            touched: &mut self.touched,
            credit: &credit,
            now,
        };
        let sent = if paths.may_send(number) {
            transmit_port(&mut port, number, &mut paths)
        } else {
            0
        };
        port.credit = credit.left();
        port.flush();
        self.ports[at] = Some(port);
        self.flush();
        drained + sent
    }

    /// Reads the tap. An attempt that finds nothing costs a system call, so without an event it is made only when
    /// frames were moved to the tap that may be answered at once.
    fn receive_uplink(&mut self, now: Time, moved: usize) -> usize {
        let due = self
            .uplink
            .as_ref()
            .is_some_and(|uplink| uplink.readable || moved >= 8);
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

    fn receive_frame(
        &mut self,
        from: Option<PortIndex>,
        len: usize,
        credit: &Credit,
        now: Time,
    ) {
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

/// Where a frame can go: all that a port's own turn does not hold.
struct Paths<'a> {
    ports: &'a mut [Option<Box<Port>>],
    middle: &'a mut Middle,
    uplink: &'a mut Option<Uplink>,
    touched: &'a mut Vec<u16>,
    /// What the sender's turn may still do; copies beyond the first and software's work for a receiver are taken from it.
    credit: &'a Credit,
    now: Time,
}

/// What a turn may do: its budget, less what an earlier one did beyond its own.
fn earn(left: i64, budget: usize) -> Credit {
    let credit = Credit::new(budget);
    Credit::from_left((left.saturating_add(credit.left())).min(credit.left()))
}

impl Paths<'_> {
    /// Whether a port has a rate to keep to, so that each of its frames must ask.
    fn is_limited(&self, number: u16) -> bool {
        match &*self.middle {
            Middle::Wire => false,
            Middle::Switch(switch) => {
                PortIndex::new(usize::from(number)).is_some_and(|index| switch.limits(index))
            }
        }
    }

    fn may_send(&self, number: u16) -> bool {
        match &*self.middle {
            Middle::Wire => true,
            Middle::Switch(switch) => PortIndex::new(usize::from(number))
                .is_some_and(|index| switch.send_wait(self.now, index).is_zero()),
        }
    }

    #[inline]
    fn forward(&mut self, from: u16, frame: &Frame<'_>) -> Sent {
        let switch = match &mut *self.middle {
            Middle::Wire => return self.send_uplink(frame),
            Middle::Switch(switch) => switch,
        };
        let Some(index) = PortIndex::new(usize::from(from)) else {
            return Sent::Done;
        };
        match switch.ingress_head(self.now, index, frame.head(), frame.len()) {
            Egress::To(to) => self.send(to, frame),
            Egress::Flood(ports) => match ports.only() {
                Some(to) => self.send(to, frame),
                None => {
                    let copies = ports.len() - 1;
                    self.credit.spend(copies * cost(frame.len(), 0));
                    ports.iter().for_each(|to| self.send(to, frame));
                }
            },
            Egress::Drop(_) => {}
        }
        Sent::Done
    }

    #[inline]
    fn send(&mut self, to: PortIndex, frame: &Frame<'_>) {
        if self
            .uplink
            .as_ref()
            .is_some_and(|uplink| uplink.index == Some(to))
        {
            // A full tap drops, as a bridge port does: one slow way must not stop the others.
            self.send_uplink(frame);
        } else {
            self.deliver(number_of(to), frame);
        }
    }

    fn send_uplink(&mut self, frame: &Frame<'_>) -> Sent {
        let Some(uplink) = self.uplink else {
            return Sent::Done;
        };
        let sent = uplink.tap.send(frame);
        uplink.sent += u64::from(sent == Sent::Done);
        sent
    }

    #[inline]
    fn deliver(&mut self, to: u16, frame: &Frame<'_>) -> Sent {
        if let Some(port) = self
            .ports
            .get_mut(usize::from(to))
            .and_then(Option::as_deref_mut)
        {
            port.deliver(frame, self.credit);
            if self.touched.last() != Some(&to) {
                self.touched.push(to);
            }
        }
        Sent::Done
    }
}

fn number_of(index: PortIndex) -> u16 {
    u16::try_from(index.index()).unwrap_or(u16::MAX)
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

/// Arms the queues of a port; true when one has something to do. Transmit queues of a port that is `held` for its rate
/// are left alone; receive buffers are of interest while frames wait for them, here or (`wanted`) in the tap.
fn arm_port(port: &mut Port, held: bool, wanted: bool) -> bool {
    let waited_for = if wanted || port.has_backlog() {
        port.awaited()
    } else {
        0
    };
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

fn for_each_queue(
    port: &mut Port,
    mut action: impl FnMut(&mut crate::transport::vhost_user::Session, u16),
) {
    if let Some(session) = &mut port.session {
        for queue in 0..session.queues() {
            action(session, queue);
        }
    }
}
