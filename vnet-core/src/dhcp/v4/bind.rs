//! What a decision does to the book: a lease written in, others given up, an address put out of use.

use std::net::{IpAddr, Ipv4Addr};

use super::identity::Guest;
use super::{Message, MessageType, Reply, Sender, Server, Verdict};
use crate::dhcp::Changes;
use crate::lease::{Change, LeaseKind, LeaseRecord, LeaseState, Slot, Time};

/// What changes, and the reply that waits until it is on disk.
pub(super) fn commit(changes: Changes, then: Option<Reply>) -> Verdict {
    Verdict::Commit {
        records: changes.records,
        events: changes.events,
        then,
    }
}

impl Server {
    /// Writes the lease into the book; the reply waits for the disk.
    pub(super) fn grant(
        &mut self,
        now: Time,
        from: &Sender,
        message: &Message<'_>,
        guest: &Guest,
        (subnet, address): (usize, Ipv4Addr),
    ) -> Verdict {
        let seconds = self.lease_seconds(message, guest, (subnet, address));
        let mut record = self.record(now, message, guest, address, seconds);
        record.hostname = self.name_for(guest, subnet, address);
        let mut before = None;
        if let Some(Slot::Held(old)) = self.desk.book.slot(record.address)
            && old.client == record.client
        {
            record.granted = old.granted;
            // A renewal may come through a router, and the address is not that one's.
            if message.ciaddr == address {
                record.via = old.via;
            }
            // A client that says no name this time keeps the one it has.
            if guest.said.is_none() {
                let kept = || {
                    let name = old.hostname.as_ref();
                    name.filter(|name| !self.directory.is_anothers(name, guest))
                };
                record.hostname = record.hostname.take().or_else(|| kept().cloned());
            }
            before = Some(old.clone());
        }
        let mut changes = Changes::default();
        self.give_up_others(now, message, guest, address, &mut changes);
        let same_name = before.as_ref().map(|old| &old.hostname) == Some(&record.hostname);
        let kind = match same_name {
            true => LeaseKind::Renewed,
            false => LeaseKind::Granted,
        };
        // With another name it is another lease to all who go by names, DNS first of them.
        if let Some(old) = before.filter(|_| !same_name) {
            changes.tell(LeaseKind::Released, old);
        }
        self.desk.book.grant(record.clone());
        let reply = self.draft(MessageType::Ack, message, from, guest, (subnet, address));
        changes.records.push(Change::Put(record.clone()));
        changes.tell(kind, record);
        commit(changes, Some(reply))
    }

    /// A client has one address of a link: what else it held or was offered there is free again.
    pub(super) fn give_up_others(
        &mut self,
        now: Time,
        message: &Message<'_>,
        guest: &Guest,
        keep: Ipv4Addr,
        changes: &mut Changes,
    ) {
        let link = self.subnets_for(message);
        let is_here = |address: &IpAddr| match address {
            IpAddr::V4(v4) => self.scope.subnet_of(*v4).is_none_or(|s| link.contains(&s)),
            IpAddr::V6(_) => false,
        };
        let others = self.desk.book.addresses_of(&guest.client).iter();
        let others = others.filter(|a| **a != IpAddr::V4(keep) && is_here(a));
        let others: Vec<IpAddr> = others.copied().collect();
        let is_own = |record: &LeaseRecord| record.client == guest.client;
        self.desk.give_up(now, others, is_own, changes);
    }

    pub(super) fn withdraw_offers(&mut self, guest: &Guest) {
        for address in self.desk.book.addresses_of(&guest.client).to_vec() {
            self.desk.book.withdraw(address);
        }
    }

    pub(super) fn quarantine(&mut self, record: LeaseRecord) -> Verdict {
        let mut changes = Changes::default();
        self.desk.quarantine(record, &mut changes);
        commit(changes, None)
    }

    pub(super) fn record(
        &self,
        now: Time,
        message: &Message<'_>,
        guest: &Guest,
        address: Ipv4Addr,
        seconds: u32,
    ) -> LeaseRecord {
        LeaseRecord {
            network: self.scope.network.clone(),
            address: IpAddr::V4(address),
            state: LeaseState::Held,
            client: guest.client.clone(),
            mac: message.mac(),
            client_id: guest.client_id.clone(),
            via: guest.source.filter(|via| Some(*via) != guest.mac),
            hostname: None,
            granted: now,
            expires: if seconds == u32::MAX {
                Time::NEVER
            } else {
                now.plus_secs(u64::from(seconds))
            },
        }
    }
}
