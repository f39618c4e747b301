//! Port numbers and sets of them. A set is a plain bit field: the flood mask of a broadcast is three ANDs.

use std::fmt;

/// How many ports one switch can hold.
pub const MAX_PORTS: usize = 1024;

const WORDS: usize = MAX_PORTS / 64;

/// The number of a port of one switch. Numbers of detached ports are given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortIndex(u16);

impl PortIndex {
    /// Port number `index`, if a switch can have that many.
    #[must_use]
    pub fn new(index: usize) -> Option<Self> {
        u16::try_from(index)
            .ok()
            .filter(|_| index < MAX_PORTS)
            .map(Self)
    }

    /// The number, for use as an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(super) const fn bits(self) -> u16 {
        self.0
    }

    /// The inverse of [`Self::bits`]; anything above the last port becomes the last port.
    pub(super) const fn from_bits(bits: u16) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "MAX_PORTS fits u16")]
        const LAST: u16 = (MAX_PORTS - 1) as u16;
        Self(if bits > LAST { LAST } else { bits })
    }
}

impl fmt::Display for PortIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of ports.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct PortSet {
    words: [u64; WORDS],
}

impl PortSet {
    /// Adds a port.
    pub fn insert(&mut self, port: PortIndex) {
        self.words[port.index() / 64] |= 1 << (port.index() % 64);
    }

    /// Takes a port out.
    pub fn remove(&mut self, port: PortIndex) {
        self.words[port.index() / 64] &= !(1 << (port.index() % 64));
    }

    /// Adds or takes out.
    pub(super) fn set(&mut self, port: PortIndex, present: bool) {
        if present {
            self.insert(port)
        } else {
            self.remove(port)
        }
    }

    /// Whether the port is in the set.
    #[must_use]
    pub fn contains(&self, port: PortIndex) -> bool {
        self.words[port.index() / 64] & (1 << (port.index() % 64)) != 0
    }

    /// Whether there is no port at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// How many ports there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// The ports, with numbers below `end`, that are in none of the `others`, in ascending order. No set is made for it: of
    /// a small switch this is a word or two.
    pub(super) fn except<'a>(
        &'a self,
        others: [Option<&'a Self>; 2],
        end: usize,
    ) -> impl Iterator<Item = PortIndex> + 'a {
        let words = self.words.iter().take(end.div_ceil(64)).enumerate();
        words.flat_map(move |(at, word)| {
            let others = others.iter().flatten();
            let left = others.fold(*word, |left, other| left & !other.words[at]);
            ports_of(at, left)
        })
    }

    /// The ports, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PortIndex> + '_ {
        let words = self.words.iter().enumerate();
        words.flat_map(|(at, word)| ports_of(at, *word))
    }
}

/// The ports of the word at that place.
fn ports_of(at: usize, word: u64) -> impl Iterator<Item = PortIndex> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let bit = rest.trailing_zeros() as usize;
        rest &= rest.wrapping_sub(1);
        (bit < 64).then(|| PortIndex::new(at * 64 + bit)).flatten()
    })
}

impl Extend<PortIndex> for PortSet {
    fn extend<I: IntoIterator<Item = PortIndex>>(&mut self, ports: I) {
        ports.into_iter().for_each(|port| self.insert(port));
    }
}

impl FromIterator<PortIndex> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortIndex>>(ports: I) -> Self {
        let mut set = Self::default();
        set.extend(ports);
        set
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(PortIndex::bits))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_number_past_the_last_port_is_no_port() {
        assert_eq!(PortIndex::new(MAX_PORTS), None);
        assert_eq!(
            PortIndex::new(MAX_PORTS - 1).map(PortIndex::index),
            Some(MAX_PORTS - 1)
        );
    }

    proptest! {
        #[test]
        fn a_set_is_a_set(a in proptest::collection::btree_set(0..MAX_PORTS, 0..40), b in proptest::collection::btree_set(0..MAX_PORTS, 0..40)) {
            let set = |ports: &BTreeSet<usize>| ports.iter().filter_map(|p| PortIndex::new(*p)).collect::<PortSet>();
            let list = |ports: PortSet| ports.iter().map(PortIndex::index).collect::<Vec<_>>();
            prop_assert_eq!(list(set(&a)), a.iter().copied().collect::<Vec<_>>());
            let (all, others) = (set(&a), set(&b));
            let except = |end| all.except([None, Some(&others)], end).collect();
            prop_assert_eq!(list(except(MAX_PORTS)), a.difference(&b).copied().collect::<Vec<_>>());
            let end = a.last().map_or(0, |last| last + 1);
            prop_assert_eq!(except(end), except(MAX_PORTS));
            prop_assert_eq!(set(&a).len(), a.len());
            prop_assert_eq!(set(&a).is_empty(), a.is_empty());
        }
    }
}
