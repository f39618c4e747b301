//! Who holds how much of what is scarce: nobody takes all of it, nor do all guests of one network together.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};

use super::directory::{Directory, NetworkId};
use super::zone::WireName;

/// Who holds something.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    network: NetworkId,
    who: Who,
}

/// Not an address alone: where guests make their own, each has 2^64 of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    /// Whose name the address bears.
    Named(WireName),
    /// An address without a name.
    V4(Ipv4Addr),
    /// All addresses of a /64 that bear no name (yet) are one.
    V6(u128),
}

impl Holder {
    /// Whom an address speaks for that asks a network's gateway.
    pub(crate) fn of(directory: &Directory, network: NetworkId, address: IpAddr) -> Self {
        let served = directory.served(network);
        let name = served.and_then(|s| s.zone.addresses.get(&address));
        let who = match (name, address) {
            (Some(name), _) => Who::Named(name.clone()),
            (None, IpAddr::V4(v4)) => Who::V4(v4),
            (None, IpAddr::V6(v6)) => Who::V6(v6.to_bits() >> 64),
        };
        Self { network, who }
    }
}

/// One piece that is held; it is given back by [`Shares::give_back`].
#[derive(Debug)]
#[must_use]
pub(crate) struct Share(Holder);

/// A number of pieces, and who holds them.
#[derive(Debug)]
pub(crate) struct Shares {
    most: usize,
    per_holder: usize,
    held: usize,
    holders: HashMap<Holder, usize>,
    networks: HashMap<NetworkId, usize>,
}

impl Shares {
    /// So many pieces, and so many at most for one holder.
    pub(crate) fn new(most: usize, per_holder: usize) -> Self {
        Self {
            most,
            per_holder,
            held: 0,
            holders: HashMap::new(),
            networks: HashMap::new(),
        }
    }

    /// Takes a piece, if there is one for this holder: a quarter is out of each network's reach, and the last eighth is
    /// for those who hold nothing.
    pub(crate) fn take(&mut self, holder: &Holder) -> Option<Share> {
        let own = self.of(holder);
        let all = self.networks.get(&holder.network).copied().unwrap_or(0);
        let most = if own > 0 {
            self.most / 8 * 7
        } else {
            self.most
        };
        if self.held >= most || own >= self.per_holder || all >= self.most / 4 * 3 {
            return None;
        }
        self.held += 1;
        *self.holders.entry(holder.clone()).or_default() += 1;
        *self.networks.entry(holder.network).or_default() += 1;
        Some(Share(holder.clone()))
    }

    /// How much somebody holds.
    pub(crate) fn of(&self, holder: &Holder) -> usize {
        self.holders.get(holder).copied().unwrap_or(0)
    }

    pub(crate) fn give_back(&mut self, Share(holder): Share) {
        self.held = self.held.saturating_sub(1);
        less(&mut self.networks, holder.network);
        less(&mut self.holders, holder);
    }
}

fn less<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() = count.get().saturating_sub(1);
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(network: u32, last: u8) -> Holder {
        let address = IpAddr::from([10, 0, 0, last]);
        Holder::of(&Directory::default(), NetworkId(network), address)
    }

    #[test]
    fn something_is_left_for_others() {
        let mut shares = Shares::new(16, 8);
        let mut held: Vec<Share> = (0..20).map_while(|_| shares.take(&holder(1, 1))).collect();
        assert_eq!(held.len(), 8, "one holder");
        held.extend((0..20).map_while(|_| shares.take(&holder(1, 2))));
        assert_eq!(held.len(), 12, "one network");
        assert!(shares.take(&holder(1, 3)).is_none());
        held.extend((0..20).map_while(|_| shares.take(&holder(2, 1))));
        assert_eq!(held.len(), 14, "all but the last eighth");
        held.extend(shares.take(&holder(2, 2)));
        held.extend(shares.take(&holder(3, 1)));
        assert_eq!(held.len(), 16);
        assert!(shares.take(&holder(4, 1)).is_none(), "all");
        for share in held {
            shares.give_back(share);
        }
        assert_eq!((shares.held, shares.holders.len()), (0, 0));
        assert!(shares.networks.is_empty());
    }
}
