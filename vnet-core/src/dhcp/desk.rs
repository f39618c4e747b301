//! What a server of either family keeps beside its scope: the book of its leases, what its senders had of it, and what
//! ended by itself.

use std::net::IpAddr;

use super::Share;
use super::limit::{MOST_PER_SOURCE, Rates, Refused};
use crate::lease::{Book, Change, LeaseEvent, LeaseKind, LeaseRecord, LeaseState, Slot, Time};
use crate::types::{IpNet, Mac, NetworkName};

/// What is to be written, and what happened.
#[derive(Debug, Default)]
pub struct Changes {
    /// For the disk.
    pub records: Vec<Change>,
    /// For those who follow leases, once it is there.
    pub events: Vec<LeaseEvent>,
}

impl Changes {
    pub(in crate::dhcp) fn extend(&mut self, more: Self) {
        self.records.extend(more.records);
        self.events.extend(more.events);
    }

    pub(in crate::dhcp) fn tell(&mut self, kind: LeaseKind, lease: LeaseRecord) {
        self.events.push(LeaseEvent { kind, lease });
    }
}

/// The leases of one family in one network.
#[derive(Debug, Clone)]
pub struct Desk {
    network: NetworkName,
    pub(in crate::dhcp) book: Book,
    rates: Rates,
    /// What ended by itself since somebody last asked.
    ended: Vec<LeaseEvent>,
}

impl Desk {
    /// With the leases that the store remembers of its network.
    pub(in crate::dhcp) fn new(
        network: NetworkName,
        records: impl IntoIterator<Item = LeaseRecord>,
        now: Time,
    ) -> Self {
        Self {
            network,
            book: Book::load(records, now),
            rates: Rates::default(),
            ended: Vec::new(),
        }
    }

    /// Every lease, lapsed ones too.
    #[must_use]
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// What an Ethernet source has of it.
    #[must_use]
    pub fn share(&self, source: Mac) -> Share {
        Share {
            addresses: self.book.count_via(source),
            ..self.rates.refused(source)
        }
    }

    /// When [`Desk::expire`] has something to do next.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        self.book.next_due()
    }

    /// Ends what is over.
    pub fn expire(&mut self, now: Time) {
        let ended = self.book.tick(now).into_iter().map(|lease| LeaseEvent {
            kind: LeaseKind::Expired,
            lease,
        });
        self.ended.extend(ended);
    }

    /// What ended by itself. It was on disk already: a lease's end is written with it.
    pub fn take_ended(&mut self) -> Vec<LeaseEvent> {
        std::mem::take(&mut self.ended)
    }

    /// What is to leave the disk because too much had lapsed since.
    pub fn take_forgotten(&mut self) -> Vec<Change> {
        let forgotten = self.book.take_forgotten().into_iter();
        forgotten
            .map(|address| Change::Delete(self.network.clone(), address))
            .collect()
    }

    /// Ends a lease, as its client or an operator wants it. Nothing changes if there is none.
    pub fn release(&mut self, now: Time, address: IpAddr) -> Changes {
        self.expire(now);
        let mut changes = Changes::default();
        if let Some(lease) = self.book.release(address, now) {
            changes.records.push(Change::Put(lease.clone()));
            changes.tell(LeaseKind::Released, lease);
        }
        changes
    }

    /// Forgets every address outside these subnets, and ends its lease: nobody can use it there any more.
    pub fn keep_within(&mut self, now: Time, subnets: &[IpNet]) -> Changes {
        self.expire(now);
        let is_outside = |address: &IpAddr| !subnets.iter().any(|s| s.contains(address));
        let outside: Vec<IpAddr> = self.book.addresses().filter(is_outside).collect();
        let mut changes = Changes::default();
        for address in outside {
            self.drop(now, address, &mut changes);
        }
        changes
    }

    /// Forgets everything about a MAC, because its port is gone.
    pub(in crate::dhcp) fn forget(&mut self, now: Time, mac: Mac) -> Changes {
        self.expire(now);
        let of_mac = |slot: &Slot| slot.record().is_some_and(|r| r.mac == Some(mac));
        let mut changes = Changes::default();
        for address in self.book.addresses_where(of_mac) {
            self.drop(now, address, &mut changes);
        }
        changes
    }

    /// A client has one address of a link: what else of these it held or was offered is free again.
    pub(in crate::dhcp) fn give_up(
        &mut self,
        now: Time,
        others: impl IntoIterator<Item = IpAddr>,
        is_own: impl Fn(&LeaseRecord) -> bool,
        changes: &mut Changes,
    ) {
        for other in others {
            // Beneath an offer lies what another client had: that one is still remembered by it.
            self.book.withdraw(other);
            let beneath = self.book.slot(other).and_then(Slot::record);
            if beneath.is_some_and(&is_own) {
                self.drop(now, other, changes);
            }
        }
    }

    fn drop(&mut self, now: Time, address: IpAddr, changes: &mut Changes) {
        self.book.withdraw(address);
        let was_held = matches!(self.book.slot(address), Some(Slot::Held(_)));
        let Some(mut lease) = self.book.forget(address) else {
            return;
        };
        let gone = Change::Delete(self.network.clone(), address);
        changes.records.push(gone);
        if was_held {
            lease.state = LeaseState::Released;
            lease.expires = now;
            changes.tell(LeaseKind::Released, lease);
        }
    }

    /// Takes an address out of use until the record expires.
    pub(in crate::dhcp) fn quarantine(&mut self, record: LeaseRecord, changes: &mut Changes) {
        self.book.quarantine(record.clone());
        changes.records.push(Change::Put(record.clone()));
        changes.tell(LeaseKind::Declined, record);
    }

    /// Whether a message of this source is within its share of the server's time.
    pub(in crate::dhcp) fn admits(&mut self, source: Mac, now: Time) -> bool {
        self.rates.admits(source, now)
    }

    /// Counts what a source was refused.
    pub(in crate::dhcp) fn refuse(&mut self, source: Option<Mac>, what: Refused) {
        self.rates.refuse(source, what);
    }

    /// Whether clients behind this source already hold all that they may.
    pub(in crate::dhcp) fn is_full(&self, source: Option<Mac>) -> bool {
        source.is_some_and(|mac| self.book.count_via(mac) >= MOST_PER_SOURCE)
    }
}
