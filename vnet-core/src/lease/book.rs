//! Who holds what in one network and one family: every address that was ever touched, found by address, by client
//! and by what is due next. It does what it is told; who *may* have what is the server's decision.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Client, LeaseRecord, LeaseState, Pool, Time};
use crate::types::{Mac, PortName};

/// Lapsed leases that are remembered, in one network and one family: a guest that comes and goes as client after client
/// costs neither memory nor disk without end. The oldest go first.
pub const MOST_LAPSED: usize = 4096;

/// What the book knows about an address that is not blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// Offered, and kept for that client until then. In memory only.
    Offered(Offer),
    /// A client's.
    Held(LeaseRecord),
    /// Free, and remembered for the client that had it.
    Lapsed(LeaseRecord),
    /// Nobody's until the record expires.
    Quarantined(LeaseRecord),
}

/// An address kept for a client that was told about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// For whom.
    pub client: Client,
    /// The Ethernet source of its messages.
    pub via: Option<Mac>,
    /// Until when.
    pub until: Time,
    /// Who had the address before.
    pub previous: Option<LeaseRecord>,
}

/// How many addresses are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Held by a client.
    pub held: u64,
    /// Offered to one.
    pub offered: u64,
    /// Free and remembered.
    pub lapsed: u64,
    /// In quarantine.
    pub quarantined: u64,
}

/// The book.
#[derive(Debug, Clone, Default)]
pub struct Book {
    slots: BTreeMap<IpAddr, Slot>,
    by_client: BTreeMap<Client, Vec<IpAddr>>,
    due: BTreeSet<(Time, IpAddr)>,
    via: BTreeMap<Mac, u32>,
    names: BTreeMap<PortName, IpAddr>,
    pools: Vec<Pool>,
    excluded: BTreeSet<IpAddr>,
    tally: Tally,
    /// Free and remembered, by when they became so.
    lapsed: BTreeSet<(Time, IpAddr)>,
    /// What was remembered too long since somebody last asked.
    forgotten: Vec<IpAddr>,
}

impl Book {
    /// A book with what the store remembers. No pool yet: [`Book::lay_out`] gives it some.
    #[must_use]
    pub fn load(records: impl IntoIterator<Item = LeaseRecord>, now: Time) -> Self {
        let mut book = Self::default();
        for record in records {
            let slot = match record.state {
                LeaseState::Held if record.is_held(now) => Slot::Held(record),
                LeaseState::Declined if record.expires > now => Slot::Quarantined(record),
                LeaseState::Held | LeaseState::Released | LeaseState::Declined => {
                    Slot::Lapsed(record)
                }
            };
            book.set(slot_address(&slot), Some(slot));
        }
        book
    }

    /// New pools (one a subnet, in order) and what of them is nobody's to choose: our own and reserved addresses.
    pub fn lay_out(&mut self, pools: Vec<Pool>, excluded: BTreeSet<IpAddr>) {
        self.pools = pools;
        self.excluded = excluded;
        for pool in &mut self.pools {
            for address in &self.excluded {
                pool.mark(*address, true);
            }
            for (address, slot) in &self.slots {
                pool.mark(*address, true);
                if let Slot::Lapsed(record) = slot
                    && !self.excluded.contains(address)
                {
                    pool.lapse(record.expires, *address);
                }
            }
        }
    }

    /// What is known about an address; `None` is blank.
    #[must_use]
    pub fn slot(&self, address: IpAddr) -> Option<&Slot> {
        self.slots.get(&address)
    }

    /// The addresses that a client holds, was offered or had.
    #[must_use]
    pub fn addresses_of(&self, client: &Client) -> &[IpAddr] {
        self.by_client.get(client).map_or(&[], Vec::as_slice)
    }

    /// Whether nobody but this client has a right to the address now.
    #[must_use]
    pub fn is_free_for(&self, address: IpAddr, client: &Client) -> bool {
        match self.slots.get(&address) {
            None | Some(Slot::Lapsed(_)) => true,
            Some(Slot::Held(record)) => record.client == *client,
            Some(Slot::Offered(offer)) => offer.client == *client,
            Some(Slot::Quarantined(_)) => false,
        }
    }

    /// Whether an address is ours or reserved: nobody's to choose.
    #[must_use]
    pub fn is_excluded(&self, address: IpAddr) -> bool {
        self.excluded.contains(&address)
    }

    /// Every address that is not blank.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.slots.keys().copied()
    }

    /// The addresses whose slot is like this.
    #[must_use]
    pub fn addresses_where(&self, like: impl Fn(&Slot) -> bool) -> Vec<IpAddr> {
        let found = self.slots.iter().filter(|(_, slot)| like(slot));
        found.map(|(address, _)| *address).collect()
    }

    /// How many addresses came to clients behind one Ethernet source: what it holds, was offered and declined.
    #[must_use]
    pub fn count_via(&self, source: Mac) -> u32 {
        self.via.get(&source).copied().unwrap_or(0)
    }

    /// Who holds a lease under this name.
    #[must_use]
    pub fn holder_of(&self, name: &PortName) -> Option<IpAddr> {
        self.names.get(name).copied()
    }

    /// The pools, in the order of the subnets.
    #[must_use]
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// How many addresses are in which state.
    #[must_use]
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    /// Every record: held, lapsed and quarantined.
    pub fn records(&self) -> impl Iterator<Item = &LeaseRecord> {
        self.slots.values().filter_map(Slot::record)
    }

    /// Keeps an address for a client that is about to be told.
    pub fn offer(&mut self, address: IpAddr, client: Client, via: Option<Mac>, until: Time) {
        let previous = match self.slots.remove(&address) {
            Some(slot) => {
                self.unindex(address, &slot);
                match slot {
                    Slot::Offered(offer) => offer.previous,
                    Slot::Held(record) | Slot::Lapsed(record) | Slot::Quarantined(record) => {
                        Some(record)
                    }
                }
            }
            None => None,
        };
        self.set(
            address,
            Some(Slot::Offered(Offer {
                client,
                via,
                until,
                previous,
            })),
        );
    }

    /// Takes an offer back: the client chose otherwise.
    pub fn withdraw(&mut self, address: IpAddr) {
        if let Some(Slot::Offered(offer)) = self.slots.get(&address) {
            let previous = offer.previous.clone().map(Slot::Lapsed);
            self.set(address, previous);
        }
    }

    /// Writes a lease in, whatever the address was before.
    pub fn grant(&mut self, record: LeaseRecord) {
        self.set(record.address, Some(Slot::Held(record)));
    }

    /// Ends a lease before its time and remembers its client. The record as it now stands, if there was a lease.
    pub fn release(&mut self, address: IpAddr, now: Time) -> Option<LeaseRecord> {
        let Some(Slot::Held(record)) = self.slots.get(&address) else {
            return None;
        };
        let mut record = record.clone();
        record.state = LeaseState::Released;
        record.expires = now;
        self.set(address, Some(Slot::Lapsed(record.clone())));
        Some(record)
    }

    /// Takes an address out of use until the record expires.
    pub fn quarantine(&mut self, record: LeaseRecord) {
        self.set(record.address, Some(Slot::Quarantined(record)));
    }

    /// Who has a hardware address of its own by right is known by it from now on, also for what it held before.
    pub fn know_by_mac(&mut self, is_known: impl Fn(Mac) -> bool) {
        let other = |slot: &Slot| {
            let record = slot.record()?;
            let mac = record.mac.filter(|mac| is_known(*mac))?;
            (record.client != Client::Mac(mac) && matches!(slot, Slot::Held(_) | Slot::Lapsed(_)))
                .then_some(mac)
        };
        let found = self.slots.iter();
        let found: Vec<_> = found.filter_map(|(a, s)| Some((*a, other(s)?))).collect();
        for (address, mac) in found {
            let mut slot = self.slots.get(&address).cloned();
            if let Some(Slot::Held(record) | Slot::Lapsed(record)) = &mut slot {
                record.client = Client::Mac(mac);
            }
            self.set(address, slot);
        }
    }

    /// Makes an address blank. The record that was there.
    pub fn forget(&mut self, address: IpAddr) -> Option<LeaseRecord> {
        let record = self.slots.get(&address)?.record().cloned();
        self.set(address, None);
        record
    }

    /// The addresses whose record is to leave the disk because too many had lapsed since. What has a record again has
    /// been written over there.
    pub fn take_forgotten(&mut self) -> Vec<IpAddr> {
        let mut forgotten = std::mem::take(&mut self.forgotten);
        forgotten.retain(|a| self.slots.get(a).and_then(Slot::record).is_none());
        forgotten
    }

    /// When something is due next.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Lets go of what is over. The leases that ended (offers and quarantines end silently).
    pub fn tick(&mut self, now: Time) -> Vec<LeaseRecord> {
        let mut ended = Vec::new();
        while let Some(&(at, address)) = self.due.first() {
            if at > now {
                break;
            }
            match self.slots.get(&address) {
                Some(Slot::Offered(_)) => self.withdraw(address),
                Some(Slot::Held(record)) => {
                    let record = record.clone();
                    ended.push(record.clone());
                    self.set(address, Some(Slot::Lapsed(record)));
                }
                Some(Slot::Quarantined(record)) => {
                    let record = record.clone();
                    self.set(address, Some(Slot::Lapsed(record)));
                }
                Some(Slot::Lapsed(_)) | None => {
                    self.due.remove(&(at, address));
                }
            }
        }
        ended
    }

    /// The only place where a slot changes, so that the indexes cannot disagree with it.
    fn set(&mut self, address: IpAddr, slot: Option<Slot>) {
        if let Some(old) = self.slots.remove(&address) {
            self.unindex(address, &old);
        }
        let taken = slot.is_some() || self.excluded.contains(&address);
        for pool in &mut self.pools {
            pool.mark(address, taken);
        }
        if let Some(slot) = slot {
            self.index(address, &slot);
            self.slots.insert(address, slot);
        }
        while self.lapsed.len() > MOST_LAPSED
            && let Some(&(_, oldest)) = self.lapsed.first()
        {
            self.forgotten.push(oldest);
            self.set(oldest, None);
        }
    }

    fn index(&mut self, address: IpAddr, slot: &Slot) {
        *self.count(slot) += 1;
        if let Some(client) = slot.client() {
            match self.by_client.get_mut(client) {
                Some(addresses) => addresses.push(address),
                None => drop(self.by_client.insert(client.clone(), vec![address])),
            }
        }
        if let Some(due) = slot.due() {
            self.due.insert((due, address));
        }
        if let Some(via) = slot.via() {
            *self.via.entry(via).or_insert(0) += 1;
        }
        match slot {
            Slot::Held(record) => {
                if let Some(name) = &record.hostname {
                    self.names.entry(name.clone()).or_insert(address);
                }
            }
            Slot::Lapsed(record) => {
                self.lapsed.insert((record.expires, address));
                if !self.excluded.contains(&address) {
                    for pool in &mut self.pools {
                        pool.lapse(record.expires, address);
                    }
                }
            }
            Slot::Offered(_) | Slot::Quarantined(_) => {}
        }
    }

    fn unindex(&mut self, address: IpAddr, slot: &Slot) {
        *self.count(slot) -= 1;
        if let Some(client) = slot.client()
            && let Some(addresses) = self.by_client.get_mut(client)
        {
            addresses.retain(|a| *a != address);
            if addresses.is_empty() {
                self.by_client.remove(client);
            }
        }
        if let Some(due) = slot.due() {
            self.due.remove(&(due, address));
        }
        if let Some(via) = slot.via()
            && let Some(count) = self.via.get_mut(&via)
        {
            *count -= 1;
            if *count == 0 {
                self.via.remove(&via);
            }
        }
        match slot {
            Slot::Held(record) => {
                if let Some(name) = &record.hostname
                    && self.names.get(name) == Some(&address)
                {
                    self.names.remove(name);
                }
            }
            Slot::Lapsed(record) => {
                self.lapsed.remove(&(record.expires, address));
                for pool in &mut self.pools {
                    pool.unlapse(record.expires, address);
                }
            }
            Slot::Offered(_) | Slot::Quarantined(_) => {}
        }
    }

    const fn count(&mut self, slot: &Slot) -> &mut u64 {
        match slot {
            Slot::Offered(_) => &mut self.tally.offered,
            Slot::Held(_) => &mut self.tally.held,
            Slot::Lapsed(_) => &mut self.tally.lapsed,
            Slot::Quarantined(_) => &mut self.tally.quarantined,
        }
    }
}

impl Slot {
    /// The record, where there is one (an offer's is the one before it).
    #[must_use]
    pub const fn record(&self) -> Option<&LeaseRecord> {
        match self {
            Self::Offered(offer) => offer.previous.as_ref(),
            Self::Held(record) | Self::Lapsed(record) | Self::Quarantined(record) => Some(record),
        }
    }

    /// Who would find the address as its own.
    const fn client(&self) -> Option<&Client> {
        match self {
            Self::Offered(offer) => Some(&offer.client),
            Self::Held(record) | Self::Lapsed(record) => Some(&record.client),
            Self::Quarantined(_) => None,
        }
    }

    fn due(&self) -> Option<Time> {
        match self {
            Self::Offered(offer) => Some(offer.until),
            Self::Held(record) | Self::Quarantined(record) => {
                (record.expires != Time::NEVER).then_some(record.expires)
            }
            Self::Lapsed(_) => None,
        }
    }

    /// Which Ethernet source it counts against.
    fn via(&self) -> Option<Mac> {
        match self {
            Self::Offered(offer) => offer.via,
            Self::Held(record) | Self::Quarantined(record) => record.via.or(record.mac),
            Self::Lapsed(_) => None,
        }
    }
}

fn slot_address(slot: &Slot) -> IpAddr {
    slot.record()
        .map_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), |r| r.address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn client(n: u8) -> Client {
        Client::Mac(Mac([2, 0, 0, 0, 0, n]))
    }

    fn record(address: u8, by: u8, expires: u64) -> LeaseRecord {
        LeaseRecord {
            network: "lab".parse().unwrap(),
            address: ip(address),
            state: LeaseState::Held,
            client: client(by),
            mac: Some(Mac([2, 0, 0, 0, 0, by])),
            client_id: None,
            via: None,
            hostname: Some(format!("h{by}").parse().unwrap()),
            granted: Time(0),
            expires: Time(expires),
        }
    }

    fn book() -> Book {
        let mut book = Book::default();
        let excluded = [ip(1), ip(5)].into();
        book.lay_out(vec![Pool::new(&[(ip(1), ip(20))])], excluded);
        book
    }

    #[test]
    fn a_lease_lapses_and_its_client_is_remembered() {
        let mut book = book();
        book.offer(ip(7), client(1), None, Time(10));
        assert!(!book.is_free_for(ip(7), &client(2)));
        book.grant(record(7, 1, 100));
        assert_eq!(book.next_due(), Some(Time(100)));
        assert_eq!(book.tick(Time(99)), []);
        assert_eq!(book.tick(Time(100)), [record(7, 1, 100)]);
        assert_eq!(book.addresses_of(&client(1)), [ip(7)]);
        assert!(book.is_free_for(ip(7), &client(2)) && book.next_due().is_none());
    }

    #[test]
    fn an_offer_gives_back_what_was_there() {
        let mut book = book();
        book.grant(record(7, 1, 100));
        book.tick(Time(100));
        book.offer(ip(7), client(2), None, Time(200));
        assert!(book.addresses_of(&client(1)).is_empty());
        book.tick(Time(200));
        assert_eq!(book.addresses_of(&client(1)), [ip(7)]);
        assert!(book.addresses_of(&client(2)).is_empty());
    }

    #[test]
    fn what_lapsed_is_not_remembered_for_ever() {
        let wide = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a01_0000 + n));
        let last = u32::try_from(MOST_LAPSED).unwrap() + 9;
        let mut book = Book::default();
        book.lay_out(vec![Pool::new(&[(wide(0), wide(last))])], BTreeSet::new());
        for n in 0..=last {
            book.grant(LeaseRecord {
                address: wide(n),
                ..record(7, 1, u64::from(n) + 10)
            });
        }
        assert_eq!(book.tick(Time(u64::MAX - 1)).len(), MOST_LAPSED + 10);
        assert_eq!(book.tally().lapsed, MOST_LAPSED as u64);
        // One of them is somebody's again before anybody asked: its record stays on disk.
        book.grant(LeaseRecord {
            address: wide(3),
            ..record(7, 2, 99_999)
        });
        let expected: Vec<_> = (0..10).filter(|n| *n != 3).map(wide).collect();
        assert_eq!(book.take_forgotten(), expected);
        assert!(book.take_forgotten().is_empty() && book.slot(wide(0)).is_none());
        assert!(matches!(book.slot(wide(10)), Some(Slot::Lapsed(_))));
    }

    proptest! {
        /// Whatever is done, the indexes agree with the slots.
        #[test]
        fn the_indexes_agree(steps in prop::collection::vec((0u8..6, 1u8..22, 0u8..5, 0u64..50), 0..120)) {
            let mut book = book();
            let mut now = 0;
            for (what, address, by, time) in steps {
                match what {
                    0 => book.offer(ip(address), client(by), Some(Mac([4; 6])), Time(now + time)),
                    1 => book.grant(record(address, by, now + time)),
                    2 => drop(book.release(ip(address), Time(now))),
                    3 => book.quarantine(record(address, by, now + time)),
                    4 => drop(book.forget(ip(address))),
                    _ => { now += time; drop(book.tick(Time(now))); }
                }
                let slots = book.slots.clone();
                let tally = book.tally();
                prop_assert_eq!(slots.len() as u64, tally.held + tally.offered + tally.lapsed + tally.quarantined);
                let lapsed = slots.values().filter(|s| matches!(s, Slot::Lapsed(_)));
                prop_assert_eq!(book.lapsed.len(), lapsed.count());
                prop_assert_eq!(book.due.len(), slots.values().filter(|s| s.due().is_some()).count());
                for (address, slot) in &slots {
                    if let Some(due) = slot.due() { prop_assert!(book.due.contains(&(due, *address))); }
                    if let Some(client) = slot.client() { prop_assert!(book.addresses_of(client).contains(address)); }
                }
                let by_client: usize = book.by_client.values().map(Vec::len).sum();
                prop_assert_eq!(by_client, slots.values().filter(|s| s.client().is_some()).count());
                let vias = book.via.values().sum::<u32>() as usize;
                prop_assert_eq!(vias, slots.values().filter(|s| s.via().is_some()).count());
                if let Some(chosen) = book.pools()[0].choose(now) {
                    prop_assert!(matches!(slots.get(&chosen), None | Some(Slot::Lapsed(_))));
                    prop_assert!(!book.excluded.contains(&chosen));
                } else {
                    let free = (1..=20).map(ip).filter(|a| !book.excluded.contains(a) && matches!(slots.get(a), None | Some(Slot::Lapsed(_))));
                    prop_assert_eq!(free.count(), 0);
                }
            }
        }
    }
}
