//! The forwarding table: which MAC address is behind which port. Open addressing with linear probing, 16 bytes an entry,
//! four addresses a cache line, never more than half full. The hash is keyed and a chain is bounded, so a guest that
//! chooses its addresses with care gains nothing but its own addresses not learnt.
//!
//! Entries are *learnt* (they age, and move) or *pinned* (a guarded port's own addresses: they do neither). Shared over
//! all VLANs, as in a kernel bridge without VLAN filtering.

use super::{PortIndex, Time, ports::MAX_PORTS};
use std::time::Duration;
use vnet_core::types::Mac;

/// How long an address is remembered after its last frame, unless another time is set (IEEE 802.1Q 8.8.3).
pub const AGEING: Duration = Duration::from_secs(300);

/// Longest chain that is searched. At half load a chain beyond this has a chance of one in millions.
const MAX_CHAIN: usize = 64;

/// Two addresses a port, were every port guarded.
const MAX_PINNED: usize = 2 * MAX_PORTS;

/// Searching for room costs a walk over the table, so it is not done more often than this.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What [`Fdb::learn`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learnt {
    Known,
    New,
    Moved,
    /// No room in the table, or the port has its share.
    Full,
    /// The address is pinned to another port.
    Pinned,
}

/// An entry, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The address.
    pub mac: Mac,
    /// Where it is.
    pub port: PortIndex,
    /// How long it has been silent; `None` for a guarded port's own address.
    pub idle: Option<Duration>,
}

#[derive(Clone, Copy)]
struct Slot {
    /// MAC in the upper 48 bits, port in the lower 16. Zero is a free slot: no source address is zero.
    key: u64,
    seen: Time,
}

const FREE: Slot = Slot {
    key: 0,
    seen: Time::from_nanos(0),
};
const PINNED: Time = Time::from_nanos(u64::MAX);

impl Slot {
    fn mac(self) -> u64 {
        self.key >> 16
    }

    fn port(self) -> PortIndex {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is the port")]
        PortIndex::from_bits(self.key as u16)
    }

    /// Whether it is pinned, or has sent within that many nanoseconds.
    fn is_live(self, now: Time, ageing: u64) -> bool {
        self.seen == PINNED || now.since(self.seen) < ageing
    }
}

pub(super) struct Fdb {
    slots: Box<[Slot]>,
    seed: u64,
    /// Nanoseconds.
    ageing: u64,
    /// Learnt entries: in all, and by port.
    learnt: usize,
    pinned: usize,
    by_port: Box<[u32; MAX_PORTS]>,
    limit: usize,
    swept: Time,
}

impl Fdb {
    /// A table for `limit` learnt addresses. `seed` keys the hash: any number that guests do not know.
    pub(super) fn new(limit: usize, seed: u64) -> Self {
        let size = ((limit + MAX_PINNED) * 2).next_power_of_two();
        Self {
            slots: vec![FREE; size].into(),
            seed,
            ageing: nanos(AGEING),
            learnt: 0,
            pinned: 0,
            by_port: Box::new([0; MAX_PORTS]),
            limit,
            swept: FREE.seen,
        }
    }

    /// Remembers addresses for so long from now on.
    pub(super) fn set_ageing(&mut self, ageing: Duration) {
        self.ageing = nanos(ageing);
    }

    /// Where `mac` is, if that is known.
    #[inline]
    pub(super) fn lookup(&self, mac: u64, now: Time) -> Option<PortIndex> {
        let slot = self.slots[self.find(mac).ok()?];
        slot.is_live(now, self.ageing).then(|| slot.port())
    }

    /// Notes that `mac` has sent from `port`. `owner` says that the port's guard vouches for the address: only then may a
    /// pinned address change its port. `share` is how many addresses the port may have.
    #[inline]
    pub(super) fn learn(
        &mut self,
        mac: u64,
        port: PortIndex,
        owner: bool,
        share: u32,
        now: Time,
    ) -> Learnt {
        match self.find(mac) {
            Ok(at) if self.slots[at].port() == port => {
                if self.slots[at].seen != PINNED {
                    self.slots[at].seen = now;
                }
                Learnt::Known
            }
            Ok(at) => self.relocate(at, mac, port, owner, share, now),
            Err(_) => self.insert(mac, port, share, now),
        }
    }

    /// Gives `mac` to a guarded port for good, unless too many are pinned already. A learnt entry for it is replaced;
    /// another guarded port's stays, until that port goes or this one sends.
    pub(super) fn pin(&mut self, mac: u64, port: PortIndex) -> bool {
        let at = match self.find(mac) {
            Ok(at) if self.slots[at].seen == PINNED => return true,
            _ if self.pinned == MAX_PINNED || mac == 0 => return false,
            Ok(at) => {
                self.uncount(self.slots[at].port());
                at
            }
            Err(Some(at)) => at,
            Err(None) => return false,
        };
        self.pinned += 1;
        self.slots[at] = Slot {
            key: key(mac, port),
            seen: PINNED,
        };
        true
    }

    /// Drops everything behind `port`.
    pub(super) fn forget(&mut self, port: PortIndex) {
        self.retain(|slot| slot.port() != port);
    }

    /// Drops what has been silent for too long.
    pub(super) fn age(&mut self, now: Time) {
        self.swept = now;
        let ageing = self.ageing;
        self.retain(|slot| slot.is_live(now, ageing));
    }

    pub(super) fn entries(&self, now: Time) -> impl Iterator<Item = Entry> + '_ {
        self.slots
            .iter()
            .filter(move |slot| slot.key != 0 && slot.is_live(now, self.ageing))
            .map(move |slot| {
                let [_, _, mac @ ..] = slot.mac().to_be_bytes();
                let mac = Mac(mac);
                let idle =
                    (slot.seen != PINNED).then(|| Duration::from_nanos(now.since(slot.seen)));
                Entry {
                    mac,
                    port: slot.port(),
                    idle,
                }
            })
    }

    fn relocate(
        &mut self,
        at: usize,
        mac: u64,
        port: PortIndex,
        owner: bool,
        share: u32,
        now: Time,
    ) -> Learnt {
        if self.slots[at].seen == PINNED {
            if owner {
                self.slots[at].key = key(mac, port);
            }
            return if owner { Learnt::Moved } else { Learnt::Pinned };
        }
        if !self.has_share(port, share, now) {
            return Learnt::Full;
        }
        // Making room may have moved or removed the entry.
        let Ok(at) = self.find(mac) else {
            return self.insert(mac, port, share, now);
        };
        self.uncount(self.slots[at].port());
        self.count(port);
        self.slots[at] = Slot {
            key: key(mac, port),
            seen: now,
        };
        Learnt::Moved
    }

    #[cold]
    fn insert(&mut self, mac: u64, port: PortIndex, share: u32, now: Time) -> Learnt {
        if !self.has_share(port, share, now) || !self.has_room(now) {
            return Learnt::Full;
        }
        let Err(Some(at)) = self.find(mac) else {
            return Learnt::Full;
        };
        self.slots[at] = Slot {
            key: key(mac, port),
            seen: now,
        };
        self.count(port);
        Learnt::New
    }

    fn has_share(&mut self, port: PortIndex, share: u32, now: Time) -> bool {
        if self.by_port[port.index()] >= share {
            self.sweep(now);
        }
        self.by_port[port.index()] < share
    }

    fn has_room(&mut self, now: Time) -> bool {
        if self.learnt >= self.limit {
            self.sweep(now);
        }
        self.learnt < self.limit
    }

    fn sweep(&mut self, now: Time) {
        if Duration::from_nanos(now.since(self.swept)) >= SWEEP_EVERY {
            self.age(now);
        }
    }

    fn count(&mut self, port: PortIndex) {
        self.by_port[port.index()] += 1;
        self.learnt += 1;
    }

    fn uncount(&mut self, port: PortIndex) {
        self.by_port[port.index()] -= 1;
        self.learnt -= 1;
    }

    /// The slot of `mac`, or the free one where it would go, if its chain has one.
    #[inline]
    fn find(&self, mac: u64) -> Result<usize, Option<usize>> {
        let mask = self.slots.len() - 1;
        let home = self.home(mac);
        for step in 0..MAX_CHAIN {
            let at = (home + step) & mask;
            let slot = self.slots[at];
            if slot.mac() == mac && slot.key != 0 {
                return Ok(at);
            }
            if slot.key == 0 {
                return Err(Some(at));
            }
        }
        Err(None)
    }

    #[inline]
    fn home(&self, mac: u64) -> usize {
        let mixed = (mac ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed =
            (mixed ^ (mixed >> 32) ^ self.seed.rotate_left(32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        (mixed >> 32) as usize & (self.slots.len() - 1)
    }

    fn retain(&mut self, keep: impl Fn(Slot) -> bool) {
        let mut at = 0;
        while at < self.slots.len() {
            let slot = self.slots[at];
            if slot.key == 0 || keep(slot) {
                at += 1;
                continue;
            }
            if slot.seen == PINNED {
                self.pinned -= 1;
            } else {
                self.uncount(slot.port());
            }
            // Something later may now be here: look at this place again.
            self.remove(at);
        }
    }

    /// Frees a slot and moves the entries behind it up, so that no chain has a hole and no tombstones pile up. It ends
    /// at a free slot; half of them are.
    fn remove(&mut self, mut hole: usize) {
        let mask = self.slots.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let slot = self.slots[at];
            if slot.key == 0 {
                break;
            }
            let from_home = at.wrapping_sub(self.home(slot.mac())) & mask;
            if from_home >= at.wrapping_sub(hole) & mask {
                self.slots[hole] = slot;
                hole = at;
            }
        }
        self.slots[hole] = FREE;
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn key(mac: u64, port: PortIndex) -> u64 {
    mac << 16 | u64::from(port.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(index: usize) -> PortIndex {
        PortIndex::new(index).unwrap()
    }

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn a_full_table_finds_every_entry_and_makes_room_only_by_ageing() {
        let mut fdb = Fdb::new(4096, 7);
        for mac in 1..=4096 {
            assert_eq!(fdb.learn(mac, port(1), false, u32::MAX, at(0)), Learnt::New);
        }
        assert_eq!(
            fdb.learn(5000, port(1), false, u32::MAX, at(10)),
            Learnt::Full
        );
        assert!((1..=4096).all(|mac| fdb.lookup(mac, at(10)) == Some(port(1))));
        assert_eq!(
            fdb.learn(5000, port(1), false, u32::MAX, at(300)),
            Learnt::New
        );
        assert_eq!(fdb.entries(at(300)).count(), 1);
    }

    #[test]
    fn removal_never_breaks_a_chain() {
        // A small table under churn, many seeds: what was not removed stays findable.
        for seed in 0..50 {
            let mut fdb = Fdb::new(2000, seed);
            for mac in 1..=2000u64 {
                fdb.learn(mac, port((mac % 3) as usize), false, u32::MAX, at(0));
            }
            fdb.forget(port(1));
            for mac in 1..=2000u64 {
                let expected = (mac % 3 != 1).then(|| port((mac % 3) as usize));
                assert_eq!(fdb.lookup(mac, at(0)), expected, "seed {seed} mac {mac}");
            }
            assert_eq!(fdb.entries(at(0)).count(), fdb.learnt);
        }
    }

    #[test]
    fn addresses_in_a_row_do_not_pile_up() {
        for seed in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            let mut fdb = Fdb::new(8192, seed);
            for mac in 0..8192 {
                assert_eq!(
                    fdb.learn(0x5254_0000_0000 + mac, port(0), false, u32::MAX, at(0)),
                    Learnt::New
                );
            }
        }
    }
}
