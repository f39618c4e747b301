//! What a decision does to the book: a lease written in, others given up, an address put out of use.

use std::net::{IpAddr, Ipv4Addr};

use super::identity::Guest;
use super::{Message, MessageType, Sender, Server, Verdict};
use crate::lease::{Change, LeaseEvent, LeaseKind, LeaseRecord, LeaseState, Slot, Time};

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
        if let Some(Slot::Held(old)) = self.book.slot(record.address)
            && old.client == record.client
        {
            record.granted = old.granted;
            // A renewal may come through a router, and the address is not that one's.
            if message.ciaddr == address {
                record.via = old.via;
            }
            // A client that says no name this time keeps the one it has.
            if guest.said.is_none() {
                record.hostname = record.hostname.take().or_else(|| old.hostname.clone());
            }
            before = Some(old.clone());
        }
        let (mut records, mut events) = self.give_up_others(now, message, guest, address);
        let same_name = before.as_ref().map(|old| &old.hostname) == Some(&record.hostname);
        let kind = match same_name {
            true => LeaseKind::Renewed,
            false => LeaseKind::Granted,
        };
        // With another name it is another lease to all who go by names, DNS first of them.
        events.extend(before.filter(|_| !same_name).map(|lease| LeaseEvent {
            kind: LeaseKind::Released,
            lease,
        }));
        self.book.grant(record.clone());
        let reply = self.draft(MessageType::Ack, message, from, guest, (subnet, address));
        records.push(Change::Put(record.clone()));
        events.push(LeaseEvent {
            kind,
            lease: record,
        });
        Verdict::Commit {
            records,
            events,
            then: Some(reply),
        }
    }

    /// A client has one address of a link: what else it held or was offered there is free again.
    pub(super) fn give_up_others(
        &mut self,
        now: Time,
        message: &Message<'_>,
        guest: &Guest,
        keep: Ipv4Addr,
    ) -> (Vec<Change>, Vec<LeaseEvent>) {
        let (mut changes, mut events) = (Vec::new(), Vec::new());
        let link = self.subnets_for(message);
        let others: Vec<IpAddr> = self.book.addresses_of(&guest.client).to_vec();
        for other in others.into_iter().filter(|a| *a != IpAddr::V4(keep)) {
            let IpAddr::V4(v4) = other else { continue };
            if self.scope.subnet_of(v4).is_some_and(|s| !link.contains(&s)) {
                continue;
            }
            self.book.withdraw(other);
            // Beneath an offer lies what another client had: that one is still remembered by it.
            let beneath = self.book.slot(other).and_then(Slot::record);
            if beneath.is_none_or(|record| record.client != guest.client) {
                continue;
            }
            let was_held = matches!(self.book.slot(other), Some(Slot::Held(_)));
            let Some(mut lease) = self.book.forget(other) else {
                continue;
            };
            changes.push(Change::Delete(lease.network.clone(), other));
            if was_held {
                lease.state = LeaseState::Released;
                lease.expires = now;
                events.push(LeaseEvent {
                    kind: LeaseKind::Released,
                    lease,
                });
            }
        }
        (changes, events)
    }

    pub(super) fn withdraw_offers(&mut self, guest: &Guest) {
        for address in self.book.addresses_of(&guest.client).to_vec() {
            self.book.withdraw(address);
        }
    }

    pub(super) fn quarantine(&mut self, record: LeaseRecord) -> Verdict {
        self.book.quarantine(record.clone());
        Verdict::Commit {
            records: vec![Change::Put(record.clone())],
            events: vec![LeaseEvent {
                kind: LeaseKind::Declined,
                lease: record,
            }],
            then: None,
        }
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
