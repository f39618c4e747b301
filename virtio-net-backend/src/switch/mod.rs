//! A learning Ethernet switch as a plain value: bytes and time go in, a decision comes out. It owns no file, no thread
//! and no clock; who calls it moves the bytes. One switch serves the ports of one network; one of them, the uplink,
//! hangs it on the kernel's bridge.
//!
//! ```text
//! frame ──► sane? ──► sender's rate ──► guard ──► learn ──► look up ──► isolation ──► receiver's rate ──► To(port)
//!             │            │              │         │          └─ group or unknown ──► all who may ──► Flood(ports)
//!             └────────────┴──────────────┴─────────┴─────────────────────────────────────────────► Drop(reason)
//! ```
//!
//! * [`fdb`] which MAC is where · [`guard`] what a port may send · [`rate`] how much
//! * [`offload`] finishes checksums and cuts segments for a receiver that cannot (the caller's step after the decision)
//!
//! A guest's memory can change while it is read. Copy a frame's first [`HEAD`] bytes out, decide on the copy by
//! [`Switch::ingress_head`], and deliver the copy: then what was checked is what arrives.

mod fdb;
mod guard;
pub mod offload;
mod ports;
mod rate;
mod reason;
mod vlan;
mod wire;

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "numbers of a test's own making"
)]
mod bench;
#[cfg(test)]
mod guard_tests;
#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "numbers of a test's own making"
)]
mod offload_tests;
#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "numbers of a test's own making"
)]
mod tests;

pub use fdb::{AGEING, Entry};
pub use guard::Guard;
pub use ports::{MAX_PORTS, PortIndex, PortSet};
pub use rate::{Limit, Rate};
pub use reason::{Counters, Reason};

use fdb::{Fdb, Learnt};
use guard::Owned;
use rate::Limiter;
use std::time::Duration;

/// Bytes of a frame that always suffice for a decision; a frame whose headers are longer does not pass a guard.
pub const HEAD: usize = 256;

/// A point of monotonic time, in nanoseconds since whenever the caller likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// So many nanoseconds after the start.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since `earlier`; zero if that is later.
    const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// To one port: the address is there, or nobody else may have the frame.
    To(PortIndex),
    /// To each of these, which are two at least.
    Flood(PortSet),
    /// Nowhere.
    Drop(Reason),
}

impl Egress {
    /// Whether the frame goes to that port, alone or among others.
    #[must_use]
    pub fn reaches(self, port: PortIndex) -> bool {
        match self {
            Self::To(to) => to == port,
            Self::Flood(ports) => ports.contains(port),
            Self::Drop(_) => false,
        }
    }
}

/// What one port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Checks what the port sends.
    pub guard: Option<Guard>,
    /// Never reaches, nor is reached by, another isolated port.
    pub isolated: bool,
    /// How many addresses may be learnt behind it.
    pub addresses: u32,
    /// How much the port may send.
    pub send: Limit,
    /// How much it may be sent.
    pub receive: Limit,
}

impl Default for Port {
    fn default() -> Self {
        Self {
            guard: None,
            isolated: false,
            addresses: 256,
            send: Limit::default(),
            receive: Limit::default(),
        }
    }
}

impl Port {
    /// The way to everything else: as many addresses as the table holds.
    #[must_use]
    pub fn uplink() -> Self {
        Self {
            addresses: u32::MAX,
            ..Self::default()
        }
    }
}

/// The switch of one network.
pub struct Switch {
    slots: Vec<Option<Slot>>,
    fdb: Fdb,
    attached: PortSet,
    isolated: PortSet,
    owned: Owned,
    /// Ports whose every address is known beforehand: an unknown address cannot be there.
    settled: PortSet,
}

struct Slot {
    guard: Option<Guard>,
    isolated: bool,
    addresses: u32,
    send: Limiter,
    receive: Limiter,
    counters: Counters,
}

impl Switch {
    /// A switch that learns at most `addresses` addresses. `seed` keys its hash table: a number that guests do not know.
    #[must_use]
    pub fn new(addresses: usize, seed: u64) -> Self {
        let none = PortSet::default();
        Self {
            slots: Vec::new(),
            fdb: Fdb::new(addresses, seed),
            attached: none,
            isolated: none,
            settled: none,
            owned: Owned::default(),
        }
    }

    /// Adds a port; `None` if there are [`MAX_PORTS`].
    pub fn attach(&mut self, now: Time, port: Port) -> Option<PortIndex> {
        let free = self
            .slots
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.slots.len());
        let index = PortIndex::new(free)?;
        if free == self.slots.len() {
            self.slots.push(None);
        }
        self.install(now, index, port);
        self.settle_owners();
        Some(index)
    }

    /// Changes a port in place, keeping its counters, and the level of each bucket whose rate stays. With another guard,
    /// what was learnt behind it is forgotten. False if there is no such port.
    pub fn configure(&mut self, now: Time, index: PortIndex, port: Port) -> bool {
        let Some(slot) = self.slots.get_mut(index.index()).and_then(Option::as_mut) else {
            return false;
        };
        slot.send.limit_to(port.send, now);
        slot.receive.limit_to(port.receive, now);
        slot.addresses = port.addresses;
        slot.isolated = port.isolated;
        self.isolated.set(index, port.isolated);
        if slot.guard != port.guard {
            self.fdb.forget(index);
            self.guard(index, port.guard);
            self.settle_owners();
        }
        true
    }

    /// Removes a port and all that was learnt behind it, and says what it had counted.
    pub fn detach(&mut self, index: PortIndex) -> Option<Counters> {
        let slot = self.slots.get_mut(index.index())?.take()?;
        self.attached.remove(index);
        self.isolated.remove(index);
        self.settled.remove(index);
        self.fdb.forget(index);
        self.settle_owners();
        Some(slot.counters)
    }

    /// Decides where a frame goes that port `from` has sent.
    #[inline]
    pub fn ingress(&mut self, now: Time, from: PortIndex, frame: &[u8]) -> Egress {
        self.ingress_head(now, from, frame, frame.len())
    }

    /// The same, given only the beginning of a frame of `length` bytes; [`HEAD`] bytes are always enough.
    #[inline]
    pub fn ingress_head(
        &mut self,
        now: Time,
        from: PortIndex,
        head: &[u8],
        length: usize,
    ) -> Egress {
        let slot = self.slots.get_mut(from.index());
        let Some(slot) = slot.and_then(Option::as_mut) else {
            return Egress::Drop(Reason::NoPort);
        };
        let bytes = length as u64;
        slot.counters.sent(bytes);
        let course = match slot.admit(now, &self.owned, head, bytes) {
            Ok(addresses) => self.course(now, from, addresses, bytes),
            Err(reason) => Course::Drop(reason),
        };
        match course {
            Course::To(port) => Egress::To(port),
            Course::Flood(unknown) => self.flood(now, from, unknown, bytes),
            Course::Drop(reason) => self.drop(from, reason),
        }
    }

    /// How long port `from` should be left alone so that its next frame is not dropped for its rate. A caller that reads
    /// a queue waits instead of losing frames.
    #[must_use]
    pub fn send_wait(&self, now: Time, from: PortIndex) -> Duration {
        self.slot(from)
            .map(|slot| slot.send.wait(now))
            .unwrap_or_default()
    }

    /// Whether port `from` has a rate to keep to.
    #[must_use]
    pub fn limits(&self, from: PortIndex) -> bool {
        self.slot(from).is_some_and(|slot| slot.send.is_some())
    }

    /// Remembers a silent address for so long from now on, and not for [`AGEING`].
    pub fn set_ageing(&mut self, ageing: Duration) {
        self.fdb.set_ageing(ageing);
    }

    /// Forgets addresses that have been silent for too long. Silent addresses are never used, called or not; a call
    /// every few seconds keeps the table small.
    pub fn age(&mut self, now: Time) {
        self.fdb.age(now);
    }

    /// What a port has counted.
    #[must_use]
    pub fn counters(&self, index: PortIndex) -> Option<&Counters> {
        self.slot(index).map(|slot| &slot.counters)
    }

    /// All ports.
    #[must_use]
    pub fn ports(&self) -> PortSet {
        self.attached
    }

    /// The forwarding table, in no particular order.
    pub fn entries(&self, now: Time) -> impl Iterator<Item = Entry> + '_ {
        self.fdb.entries(now)
    }

    fn slot(&self, index: PortIndex) -> Option<&Slot> {
        self.slots.get(index.index())?.as_ref()
    }

    #[inline]
    fn slot_mut(&mut self, index: PortIndex) -> Option<&mut Slot> {
        self.slots.get_mut(index.index())?.as_mut()
    }

    fn install(&mut self, now: Time, index: PortIndex, port: Port) {
        let Port {
            guard,
            isolated,
            addresses,
            send,
            receive,
        } = port;
        self.attached.insert(index);
        self.isolated.set(index, isolated);
        let (send, receive) = (Limiter::new(send, now), Limiter::new(receive, now));
        self.slots[index.index()] = Some(Slot {
            guard: None,
            isolated,
            addresses,
            send,
            receive,
            counters: Counters::default(),
        });
        self.guard(index, guard);
    }

    /// Puts a guard before a port, and its addresses into the table for good.
    fn guard(&mut self, index: PortIndex, guard: Option<Guard>) {
        let pinned = |guard: &Guard| {
            let missed = guard
                .macs()
                .iter()
                .filter(|mac| !self.fdb.pin(**mac, index));
            missed.count() == 0
        };
        self.settled.set(index, guard.as_ref().is_some_and(pinned));
        if let Some(slot) = self.slot_mut(index) {
            slot.guard = guard;
        }
    }

    /// Who owns what, now that the ports are others. A MAC that two guarded ports share goes to the one that is left.
    fn settle_owners(&mut self) {
        for (slot, index) in self.slots.iter().zip((0..).map_while(PortIndex::new)) {
            let guard = slot.as_ref().and_then(|slot| slot.guard.as_ref());
            for mac in guard.map(Guard::macs).unwrap_or_default() {
                self.fdb.pin(*mac, index);
            }
        }
        let slots = self.slots.iter().flatten();
        self.owned = Owned::by(slots.filter_map(|slot| slot.guard.as_ref()));
    }

    /// Learns where the source is and finds the destination.
    #[inline]
    fn course(
        &mut self,
        now: Time,
        from: PortIndex,
        (source, destination): (u64, u64),
        bytes: u64,
    ) -> Course {
        let Some(sender) = self.slot_mut(from) else {
            return Course::Drop(Reason::NoPort);
        };
        let (isolated, owner, share) = (sender.isolated, sender.guard.is_some(), sender.addresses);
        match self.fdb.learn(source, from, owner, share, now) {
            Learnt::Known | Learnt::New | Learnt::Moved => {}
            Learnt::Full => self.count_unlearned(from),
            Learnt::Pinned => return Course::Drop(Reason::MacPinned),
        }
        if destination & GROUP != 0 {
            return Course::Flood(Unknown(false));
        }
        let Some(to) = self.fdb.lookup(destination, now) else {
            return Course::Flood(Unknown(true));
        };
        let Some(receiver) = self.slot_mut(to) else {
            return Course::Drop(Reason::NoReceiver);
        };
        if to == from {
            return Course::Drop(Reason::SamePort);
        }
        if isolated && receiver.isolated {
            return Course::Drop(Reason::Isolated);
        }
        if receiver.accept(now, bytes) {
            Course::To(to)
        } else {
            Course::Drop(Reason::RateOut)
        }
    }

    /// To all who may have it and whose rate allows it.
    fn flood(&mut self, now: Time, from: PortIndex, unknown: Unknown, bytes: u64) -> Egress {
        let apart = self.isolated.contains(from).then_some(&self.isolated);
        let settled = unknown.0.then_some(&self.settled);
        let may_have = self.attached.except([apart, settled], self.slots.len());
        let mut nobody = true;
        let mut ready = may_have
            .filter(|port| *port != from)
            .inspect(|_| nobody = false)
            .filter(|port| {
                let receiver = self.slots.get_mut(port.index()).and_then(Option::as_mut);
                receiver.is_some_and(|receiver| receiver.accept(now, bytes))
            });
        // A network of two ports floods much, and never to more than one.
        match (ready.next(), ready.next()) {
            (Some(only), None) => Egress::To(only),
            (Some(first), Some(second)) => {
                Egress::Flood([first, second].into_iter().chain(ready).collect())
            }
            (None, _) => {
                drop(ready);
                if nobody {
                    self.drop(from, Reason::NoReceiver)
                } else {
                    Egress::Drop(Reason::RateOut)
                }
            }
        }
    }

    /// Counts at the sender what was not counted at the receiver.
    #[cold]
    fn drop(&mut self, from: PortIndex, reason: Reason) -> Egress {
        if let Some(slot) = self.slot_mut(from).filter(|_| reason != Reason::RateOut) {
            slot.counters.drop(reason);
        }
        Egress::Drop(reason)
    }

    #[cold]
    fn count_unlearned(&mut self, from: PortIndex) {
        if let Some(slot) = self.slot_mut(from) {
            slot.counters.unlearned += 1;
        }
    }
}

/// [`Egress`] before its set of ports is made: small enough for a register.
enum Course {
    To(PortIndex),
    Flood(Unknown),
    Drop(Reason),
}

/// Whether a frame is flooded because nobody knows the address, rather than because it is for a group.
struct Unknown(bool);

/// The bit of a 48-bit address that makes it a group address.
const GROUP: u64 = 1 << 40;

impl Slot {
    /// Whether the port may send this at all: its source and destination address, or why not.
    #[inline]
    fn admit(
        &mut self,
        now: Time,
        owned: &Owned,
        head: &[u8],
        bytes: u64,
    ) -> Result<(u64, u64), Reason> {
        let Some(header) = head.first_chunk::<{ wire::ETH_HEADER }>() else {
            return Err(Reason::Runt);
        };
        let (destination, source) = addresses(header);
        if source & GROUP != 0 || source == 0 {
            return Err(Reason::BadSource);
        }
        if destination & !0xf == 0x0180_c200_0000 {
            return Err(Reason::Reserved);
        }
        if !self.send.take(now, bytes) {
            return Err(Reason::RateIn);
        }
        match &self.guard {
            Some(guard) => guard.check(head, owned)?,
            None => owned.check(head)?,
        }
        Ok((source, destination))
    }

    /// Counts a frame to this port, or its drop if the port is over its rate.
    #[inline]
    fn accept(&mut self, now: Time, bytes: u64) -> bool {
        let ok = self.receive.take(now, bytes);
        if ok {
            self.counters.received(bytes)
        } else {
            self.counters.drop(Reason::RateOut)
        }
        ok
    }
}

/// Destination and source, each in two overlapping loads.
#[inline]
fn addresses(header: &[u8; wire::ETH_HEADER]) -> (u64, u64) {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *header;
    (
        u64::from_be_bytes([0, 0, d0, d1, d2, d3, d4, d5]),
        u64::from_be_bytes([0, 0, s0, s1, s2, s3, s4, s5]),
    )
}
