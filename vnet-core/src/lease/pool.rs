//! The addresses that may be handed out to anybody: which were never touched, and which were and are free again.
//!
//! One bit an address, in chunks that exist only where a bit is set, so that a /8 or an IPv6 range costs nothing
//! until it is used. Addresses are numbered through all ranges; what an address *is* stays with the book.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Time;

/// Addresses in one chunk of the bitmap.
const CHUNK: u64 = 4096;
/// More than this of a range is never used: 2^40 addresses are enough for one network.
const MOST: u64 = 1 << 40;

/// One pool: the ranges of one subnet.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    /// First address, count, and the number of the first address.
    ranges: Vec<(IpAddr, u64, u64)>,
    total: u64,
    chunks: BTreeMap<u64, Chunk>,
    taken: u64,
    lapsed: BTreeSet<(Time, IpAddr)>,
}

#[derive(Debug, Clone)]
struct Chunk {
    taken: u64,
    words: [u64; 64],
}

impl Pool {
    /// A pool of inclusive ranges of one family, all free.
    #[must_use]
    pub fn new(ranges: &[(IpAddr, IpAddr)]) -> Self {
        let mut pool = Self::default();
        for (first, last) in ranges {
            let count = number(*last)
                .saturating_sub(number(*first))
                .saturating_add(1);
            let room = u128::from(MOST - pool.total);
            let count = u64::try_from(count.min(room)).unwrap_or(0);
            pool.ranges.push((*first, count, pool.total));
            pool.total += count;
        }
        pool
    }

    /// How many addresses there are.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// How many of them are neither blank nor lapsed.
    #[must_use]
    pub fn busy(&self) -> u64 {
        self.taken.saturating_sub(self.lapsed.len() as u64)
    }

    /// Whether the address is of this pool.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.index(address).is_some()
    }

    /// Marks an address as touched, or as blank again.
    pub(super) fn mark(&mut self, address: IpAddr, taken: bool) {
        let Some(index) = self.index(address) else {
            return;
        };
        let key = index / CHUNK;
        let chunk = self.chunks.entry(key).or_insert(Chunk {
            taken: 0,
            words: [0; 64],
        });
        let (word, bit) = place(index);
        let was = chunk.words[word] & bit != 0;
        match (was, taken) {
            (false, true) => {
                chunk.words[word] |= bit;
                chunk.taken += 1;
                self.taken += 1;
            }
            (true, false) => {
                chunk.words[word] &= !bit;
                chunk.taken -= 1;
                self.taken -= 1;
            }
            (true, true) | (false, false) => {}
        }
        if chunk.taken == 0 {
            self.chunks.remove(&key);
        }
    }

    pub(super) fn lapse(&mut self, since: Time, address: IpAddr) {
        if self.contains(address) {
            self.lapsed.insert((since, address));
        }
    }

    pub(super) fn unlapse(&mut self, since: Time, address: IpAddr) {
        self.lapsed.remove(&(since, address));
    }

    /// A blank address, the first after a place that `hash` names; without one, what lapsed longest ago.
    #[must_use]
    pub fn choose(&self, hash: u64) -> Option<IpAddr> {
        let start = hash.checked_rem(self.total)?;
        let blank = self
            .blank_between(start, self.total)
            .or_else(|| self.blank_between(0, start));
        match blank {
            Some(index) => self.address(index),
            None => self.lapsed.first().map(|(_, address)| *address),
        }
    }

    /// The first blank number from `from` to before `to`; looks at each full chunk once.
    fn blank_between(&self, from: u64, to: u64) -> Option<u64> {
        let mut at = from;
        while at < to {
            let Some(chunk) = self.chunks.get(&(at / CHUNK)) else {
                return Some(at);
            };
            let end = (at / CHUNK + 1) * CHUNK;
            if chunk.taken < CHUNK
                && let Some(found) = chunk.blank_from(at % CHUNK)
            {
                let index = end - CHUNK + found;
                return (index < to).then_some(index);
            }
            at = end;
        }
        None
    }

    fn index(&self, address: IpAddr) -> Option<u64> {
        self.ranges.iter().find_map(|(first, count, base)| {
            if first.is_ipv4() != address.is_ipv4() {
                return None;
            }
            let offset = number(address).checked_sub(number(*first))?;
            let offset = u64::try_from(offset).ok()?;
            (offset < *count).then_some(base + offset)
        })
    }

    fn address(&self, index: u64) -> Option<IpAddr> {
        let (first, _, base) = self
            .ranges
            .iter()
            .find(|(_, count, base)| (*base..base + count).contains(&index))?;
        nth(*first, index - base)
    }
}

impl Chunk {
    fn blank_from(&self, from: u64) -> Option<u64> {
        let (first, bit) = place(from);
        for (at, word) in self.words.iter().enumerate().skip(first) {
            // In the first word, what lies before the place does not count.
            let word = if at == first { word | (bit - 1) } else { *word };
            if word != u64::MAX {
                return Some(at as u64 * 64 + u64::from(word.trailing_ones()));
            }
        }
        None
    }
}

/// Word and bit of a number within its chunk.
const fn place(index: u64) -> (usize, u64) {
    let within = index % CHUNK;
    ((within / 64) as usize, 1 << (within % 64))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn nth(first: IpAddr, offset: u64) -> Option<IpAddr> {
    match first {
        IpAddr::V4(a) => {
            let number = u64::from(u32::from(a)) + offset;
            let number = u32::try_from(number).ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(number)))
        }
        IpAddr::V6(a) => {
            let number = u128::from(a).checked_add(u128::from(offset))?;
            Some(IpAddr::V6(Ipv6Addr::from(number)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ip(last: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + last))
    }

    #[test]
    fn every_address_comes_once_then_the_longest_lapsed() {
        let mut pool = Pool::new(&[(ip(2), ip(70)), (ip(5000), ip(9200))]);
        let mut seen = BTreeSet::new();
        for n in 0..pool.total() {
            let address = pool.choose(n.wrapping_mul(0x9e37_79b9)).unwrap();
            assert!(seen.insert(address) && pool.contains(address));
            pool.mark(address, true);
        }
        assert_eq!(seen.len() as u64, pool.total());
        assert_eq!(pool.choose(1), None);
        pool.lapse(Time(9), ip(10));
        pool.lapse(Time(8), ip(6000));
        assert_eq!(pool.choose(1), Some(ip(6000)));
        pool.mark(ip(70), false);
        assert_eq!(pool.choose(1), Some(ip(70)));
        assert_eq!(pool.busy(), pool.total() - 3);
    }

    #[test]
    fn an_empty_pool_has_nothing() {
        assert_eq!(Pool::new(&[]).choose(7), None);
    }

    #[test]
    fn a_huge_range_costs_nothing() {
        let range = (
            "fd00::".parse().unwrap(),
            "fd00::ffff:ffff:ffff:ffff".parse().unwrap(),
        );
        let mut pool = Pool::new(&[range]);
        let address = pool.choose(u64::MAX - 3).unwrap();
        pool.mark(address, true);
        assert_ne!(pool.choose(u64::MAX - 3).unwrap(), address);
        assert_eq!(pool.chunks.len(), 1);
    }

    proptest! {
        #[test]
        fn the_bitmap_says_what_a_set_says(marks in prop::collection::vec((0u32..300, any::<bool>()), 0..400), hash: u64) {
            let mut pool = Pool::new(&[(ip(0), ip(99)), (ip(150), ip(290))]);
            let mut taken = BTreeSet::new();
            for (at, on) in marks {
                pool.mark(ip(at), on);
                if on && pool.contains(ip(at)) { taken.insert(ip(at)); } else { taken.remove(&ip(at)); }
            }
            prop_assert_eq!(pool.busy(), taken.len() as u64);
            match pool.choose(hash) {
                Some(address) => prop_assert!(!taken.contains(&address)),
                None => prop_assert_eq!(taken.len() as u64, pool.total()),
            }
        }
    }
}
