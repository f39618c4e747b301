use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::identity::{Directory, Guest};

use super::reply::{Draft, nak};
use super::{Counters, Message, MessageType, Reason, Reply, Scope, Sender, Verdict, code};
use crate::dhcp::Share;
use crate::dhcp::limit::{MOST_PER_SOURCE, Rates, Refused};
use crate::lease::{Book, Change, LeaseEvent, LeaseKind, LeaseRecord, LeaseState, Slot, Time};
use crate::types::{Mac, PortName};

/// How long an offered address is kept for its client.
const OFFER_SECONDS: u64 = 60;
/// How long nobody gets an address that was found in use.
const QUARANTINE_SECONDS: u64 = 600;
/// The shortest lease that a client may ask for.
const SHORTEST_LEASE: u32 = 60;

/// DHCPv4 of one network.
#[derive(Debug, Clone)]
pub struct Server {
    pub(super) scope: Scope,
    pub(super) directory: Directory,
    pub(super) book: Book,
    /// Addresses promised to ports that the scope does not have yet.
    pub(super) promised: BTreeMap<Mac, Ipv4Addr>,
    rates: Rates,
    counters: Counters,
    /// What ended by itself since somebody last asked.
    ended: Vec<LeaseEvent>,
}

impl Server {
    /// A server for a scope, with the leases that the store remembers of its network.
    #[must_use]
    pub fn new(scope: Scope, records: impl IntoIterator<Item = LeaseRecord>, now: Time) -> Self {
        let mut server = Self {
            directory: Directory::default(),
            book: Book::load(records, now),
            promised: BTreeMap::new(),
            rates: Rates::default(),
            counters: Counters::default(),
            ended: Vec::new(),
            scope: Scope::silent(scope.network.clone()),
        };
        server.configure(scope);
        server
    }

    /// A new scope in place of the old one. Leases stay; a client whose address is no longer its own learns of it
    /// when it renews.
    pub fn configure(&mut self, scope: Scope) {
        self.scope = scope;
        self.directory = Directory::of(&self.scope);
        // A reservation made of a lease is for the client that holds it, by whatever it was known until now.
        let (directory, scope) = (&self.directory, &self.scope);
        self.book.know_by_mac(|mac| directory.knows_mac(scope, mac));
        self.promised.clear();
        self.lay_out();
    }

    /// What is to be done about a message.
    pub fn handle(&mut self, now: Time, from: &Sender, message: &Message<'_>) -> Verdict {
        self.expire(now);
        *self.counters.received.entry(message.kind).or_insert(0) += 1;
        let verdict = self
            .decide(now, from, message)
            .unwrap_or_else(Verdict::Ignore);
        let reply = match &verdict {
            Verdict::Ignore(reason) => {
                self.count_ignored(*reason);
                if let Some(why) = refused(*reason) {
                    self.rates.refuse(from.mac, why);
                }
                None
            }
            Verdict::Reply(reply) | Verdict::Probe { then: reply, .. } => Some(reply),
            Verdict::Commit { then, .. } => then.as_ref(),
        };
        if let Some(reply) = reply {
            *self.counters.sent.entry(reply.kind).or_insert(0) += 1;
        }
        verdict
    }

    /// Counts a message that never became one.
    pub fn count_ignored(&mut self, reason: Reason) {
        *self.counters.ignored.entry(reason).or_insert(0) += 1;
    }

    /// Somebody answers for an address that was just offered: it is taken out of use.
    pub fn conflict(&mut self, now: Time, address: Ipv4Addr, by: Mac) -> Verdict {
        self.expire(now);
        let offered_to_another = match self.book.slot(IpAddr::V4(address)) {
            Some(Slot::Offered(offer)) => offer.client != crate::lease::Client::Mac(by),
            Some(Slot::Held(_) | Slot::Lapsed(_) | Slot::Quarantined(_)) | None => false,
        };
        if !offered_to_another {
            return Verdict::Ignore(Reason::NoLease);
        }
        self.counters.conflicts += 1;
        let record = LeaseRecord {
            network: self.scope.network.clone(),
            address: IpAddr::V4(address),
            state: LeaseState::Declined,
            client: crate::lease::Client::Mac(by),
            mac: Some(by),
            client_id: None,
            via: None,
            hostname: None,
            granted: now,
            expires: now.plus_secs(QUARANTINE_SECONDS),
        };
        self.quarantine(record)
    }

    /// When [`Server::expire`] has something to do next.
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

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What an Ethernet source has of it.
    #[must_use]
    pub fn share(&self, source: Mac) -> Share {
        Share {
            addresses: self.book.count_via(source),
            ..self.rates.refused(source)
        }
    }

    /// The scope it serves.
    #[must_use]
    pub const fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Every lease, lapsed ones too.
    #[must_use]
    pub const fn book(&self) -> &Book {
        &self.book
    }

    fn decide(
        &mut self,
        now: Time,
        from: &Sender,
        message: &Message<'_>,
    ) -> Result<Verdict, Reason> {
        let relayed = message.giaddr != Ipv4Addr::UNSPECIFIED;
        if let Some(source) = from.mac
            && !relayed
            && !self.rates.admits(source, now)
        {
            return Err(Reason::RateLimit);
        }
        let mut guest = Guest::of(&self.scope, &self.directory, from, message)?;
        // A client that renews does so without its relay: it is of the circuit that its address is kept for.
        if !relayed && self.is_theirs(message.ciaddr, &guest) {
            guest.circuit = self.directory.circuit_of(&self.scope, message.ciaddr);
        }
        match message.kind {
            MessageType::Discover => self.discover(now, from, message, &guest),
            MessageType::Request => self.request(now, from, message, &guest),
            MessageType::Decline => self.decline(now, message, &guest),
            MessageType::Release => self.released(now, message, &guest),
            MessageType::Inform => self.inform(from, message, &guest),
            MessageType::Offer | MessageType::Ack | MessageType::Nak => Err(Reason::NotForServers),
        }
    }

    /// RFC 2131 section 4.3.1.
    fn discover(
        &mut self,
        now: Time,
        from: &Sender,
        message: &Message<'_>,
        guest: &Guest,
    ) -> Result<Verdict, Reason> {
        let wanted = message.address(code::REQUESTED_ADDRESS);
        let (subnet, address) = self.choose(message, guest, wanted)?;
        // RFC 4039: a client that asks for it gets its address in two messages.
        if message.option(code::RAPID_COMMIT).is_some() {
            return Ok(self.grant(now, from, message, guest, (subnet, address)));
        }
        let ours = self.book.slot(IpAddr::V4(address));
        let is_held = matches!(ours, Some(Slot::Held(_)));
        let is_offered = matches!(ours, Some(Slot::Offered(_)));
        if !is_held {
            let via = source_of(from, message);
            let until = now.plus_secs(OFFER_SECONDS);
            self.book
                .offer(IpAddr::V4(address), guest.client.clone(), via, until);
        }
        let reply = self.draft(MessageType::Offer, message, from, guest, (subnet, address));
        // Proven free: a port's own address, one that the client holds, one asked about already; beyond a relay
        // nobody could answer.
        let proven = guest.is_member || is_held || is_offered;
        if proven || message.giaddr != Ipv4Addr::UNSPECIFIED {
            return Ok(Verdict::Reply(reply));
        }
        Ok(Verdict::Probe {
            address,
            then: reply,
        })
    }

    /// RFC 2131 section 4.3.2: which of the four states the client is in follows from what it sends.
    fn request(
        &mut self,
        now: Time,
        from: &Sender,
        message: &Message<'_>,
        guest: &Guest,
    ) -> Result<Verdict, Reason> {
        let selecting = message.address(code::SERVER_ID);
        if let Some(chosen) = selecting
            && !self.scope.subnets.iter().any(|s| s.gateway == chosen)
        {
            self.withdraw_offers(guest);
            return Err(Reason::OtherServer);
        }
        let address = if message.ciaddr == Ipv4Addr::UNSPECIFIED {
            message.address(code::REQUESTED_ADDRESS)
        } else {
            Some(message.ciaddr)
        };
        let address = address.ok_or(Reason::Incomplete)?;
        match self.may_have(message, guest, address) {
            Ok(subnet) => Ok(self.grant(now, from, message, guest, (subnet, address))),
            // We are the only authority on the link, so a client with a wrong address is told at once, known or not.
            Err(why) => Ok(Verdict::Reply(nak(message, self.server_id(message)?, why))),
        }
    }

    /// RFC 2131 section 4.3.3: what the client found in use is nobody's for a while. An address that is the client's
    /// own by reservation stays: there is no other for it.
    fn decline(
        &mut self,
        now: Time,
        message: &Message<'_>,
        guest: &Guest,
    ) -> Result<Verdict, Reason> {
        let address = message
            .address(code::REQUESTED_ADDRESS)
            .ok_or(Reason::Incomplete)?;
        if !self.is_theirs(address, guest) {
            return Err(Reason::NoLease);
        }
        let record = LeaseRecord {
            state: LeaseState::Declined,
            expires: now.plus_secs(QUARANTINE_SECONDS),
            ..self.record(now, message, guest, address, 0)
        };
        if self.is_fixed_for(address, guest) {
            let event = LeaseEvent {
                kind: LeaseKind::Declined,
                lease: record,
            };
            let mut records = Vec::new();
            if let Some(record) = self.book.release(IpAddr::V4(address), now) {
                records.push(Change::Put(record));
            }
            return Ok(Verdict::Commit {
                records,
                events: vec![event],
                then: None,
            });
        }
        Ok(self.quarantine(record))
    }

    /// RFC 2131 section 4.3.4.
    fn released(
        &mut self,
        now: Time,
        message: &Message<'_>,
        guest: &Guest,
    ) -> Result<Verdict, Reason> {
        if !self.is_theirs(message.ciaddr, guest) {
            return Err(Reason::NoLease);
        }
        let address = IpAddr::V4(message.ciaddr);
        let lease = self.book.release(address, now).ok_or(Reason::NoLease)?;
        Ok(Verdict::Commit {
            records: vec![Change::Put(lease.clone())],
            events: vec![LeaseEvent {
                kind: LeaseKind::Released,
                lease,
            }],
            then: None,
        })
    }

    /// RFC 2131 section 4.3.5: options for an address that is not ours to lease.
    fn inform(
        &self,
        from: &Sender,
        message: &Message<'_>,
        guest: &Guest,
    ) -> Result<Verdict, Reason> {
        let at = self
            .scope
            .subnet_of(message.ciaddr)
            .or_else(|| self.subnets_for(message).first().copied())
            .ok_or(Reason::NoSubnet)?;
        let name = self.name_for(guest, at, message.ciaddr);
        let draft = Draft {
            kind: MessageType::Ack,
            subnet: &self.scope.subnets[at],
            host: self.directory.host(&self.scope, at, guest),
            yiaddr: Ipv4Addr::UNSPECIFIED,
            lease: None,
            name: name.as_ref(),
            domain: self.scope.domain.as_ref(),
            rapid: false,
        };
        Ok(Verdict::Reply(draft.reply(message, from)))
    }

    /// Writes the lease into the book; the reply waits for the disk.
    fn grant(
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
        record.via = source_of(from, message).filter(|via| Some(*via) != record.mac);
        let mut before = None;
        if let Some(Slot::Held(old)) = self.book.slot(record.address)
            && old.client == record.client
        {
            record.granted = old.granted;
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
    fn give_up_others(
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

    fn withdraw_offers(&mut self, guest: &Guest) {
        for address in self.book.addresses_of(&guest.client).to_vec() {
            self.book.withdraw(address);
        }
    }

    fn quarantine(&mut self, record: LeaseRecord) -> Verdict {
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

    fn record(
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
            via: guest.via,
            hostname: None,
            granted: now,
            expires: if seconds == u32::MAX {
                Time::NEVER
            } else {
                now.plus_secs(u64::from(seconds))
            },
        }
    }

    fn draft(
        &self,
        kind: MessageType,
        message: &Message<'_>,
        from: &Sender,
        guest: &Guest,
        (subnet, address): (usize, Ipv4Addr),
    ) -> Reply {
        let name = self.name_for(guest, subnet, address);
        let draft = Draft {
            kind,
            subnet: &self.scope.subnets[subnet],
            host: self.directory.host(&self.scope, subnet, guest),
            yiaddr: address,
            lease: Some(self.lease_seconds(message, guest, (subnet, address))),
            name: name.as_ref(),
            domain: self.scope.domain.as_ref(),
            rapid: kind == MessageType::Ack && message.kind == MessageType::Discover,
        };
        draft.reply(message, from)
    }

    /// What the reservation, the range or the subnet says; a client may ask for less.
    fn lease_seconds(
        &self,
        message: &Message<'_>,
        guest: &Guest,
        (subnet, address): (usize, Ipv4Addr),
    ) -> u32 {
        let own = self.directory.host(&self.scope, subnet, guest);
        let subnet = &self.scope.subnets[subnet];
        let special = || subnet.special_of(address)?.lease_time;
        let most = own
            .and_then(|h| h.lease_time)
            .or_else(special)
            .unwrap_or(subnet.lease_time)
            .secs();
        match message.u32(code::LEASE_TIME) {
            Some(asked) => asked.max(SHORTEST_LEASE).min(most),
            None => most,
        }
    }

    /// A port's name, a reservation's, or what the client says, unless that is somebody else's.
    fn name_for(&self, guest: &Guest, subnet: usize, address: Ipv4Addr) -> Option<PortName> {
        if let Some(member) = guest.mac.and_then(|mac| self.scope.members.get(&mac)) {
            return Some(member.name.clone());
        }
        let host = self.directory.host(&self.scope, subnet, guest);
        if let Some(name) = host.and_then(|h| h.name.clone()) {
            return Some(name);
        }
        let said = guest.said.clone()?;
        let holder = self.book.holder_of(&said);
        let free = holder.is_none_or(|held| held == IpAddr::V4(address));
        (free && !self.directory.is_anothers(&said, guest)).then_some(said)
    }

    /// By which of our addresses we refuse.
    fn server_id(&self, message: &Message<'_>) -> Result<Ipv4Addr, Reason> {
        let at = self.subnets_for(message);
        let at = at.first().ok_or(Reason::NoSubnet)?;
        Ok(self.scope.subnets[*at].gateway)
    }

    /// Whether clients behind this source already hold all that they may.
    pub(super) fn is_source_full(&self, guest: &Guest) -> bool {
        let source = guest.via.or(guest.mac);
        source.is_some_and(|mac| self.book.count_via(mac) >= MOST_PER_SOURCE)
    }
}

/// The refusals that are a source's own doing.
const fn refused(reason: Reason) -> Option<Refused> {
    match reason {
        Reason::RateLimit => Some(Refused::Rate),
        Reason::SourceLimit => Some(Refused::Pool),
        Reason::ForgedSource | Reason::ForgedRelay => Some(Refused::Forged),
        Reason::Malformed
        | Reason::NotForServers
        | Reason::NoIdentity
        | Reason::NoSubnet
        | Reason::Exhausted
        | Reason::OtherServer
        | Reason::NoLease
        | Reason::Incomplete => None,
    }
}

/// The Ethernet source that an address counts against: nobody's, if a relay speaks.
fn source_of(from: &Sender, message: &Message<'_>) -> Option<Mac> {
    let relayed = message.giaddr != Ipv4Addr::UNSPECIFIED;
    from.mac.filter(|_| !relayed)
}
