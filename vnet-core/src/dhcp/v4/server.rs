use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::bind::commit;
use super::identity::{Directory, Guest};
use super::reply::{Draft, Us, nak};
use super::{Counters, Message, MessageType, Reason, Reply, Scope, Sender, Verdict, code};
use crate::dhcp::Desk;
use crate::dhcp::limit::Refused;
use crate::lease::{LeaseKind, LeaseRecord, LeaseState, Slot, Time};
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
    pub(super) desk: Desk,
    /// Addresses promised to ports that the scope does not have yet.
    pub(super) promised: BTreeMap<Mac, Ipv4Addr>,
    counters: Counters,
}

impl Server {
    /// A server for a scope, with the leases that the store remembers of its network.
    #[must_use]
    pub fn new(scope: Scope, records: impl IntoIterator<Item = LeaseRecord>, now: Time) -> Self {
        let mut server = Self {
            directory: Directory::default(),
            desk: Desk::new(scope.network.clone(), records, now),
            promised: BTreeMap::new(),
            counters: Counters::default(),
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
        self.desk
            .book
            .know_by_mac(|mac| directory.knows_mac(scope, mac));
        self.promised.clear();
        self.lay_out();
    }

    /// What is to be done about a message.
    pub fn handle(&mut self, now: Time, from: &Sender, message: &Message<'_>) -> Verdict {
        self.desk.expire(now);
        *self.counters.received.entry(message.kind).or_insert(0) += 1;
        let verdict = self
            .decide(now, from, message)
            .unwrap_or_else(Verdict::Ignore);
        let reply = match &verdict {
            Verdict::Ignore(reason) => {
                self.count_ignored(*reason);
                if let Some(why) = refused(*reason) {
                    self.desk.refuse(from.mac, why);
                }
                None
            }
            Verdict::Reply(reply) => Some(reply),
            Verdict::Probe { then, .. } | Verdict::Commit { then, .. } => then.as_ref(),
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
        self.desk.expire(now);
        let offered_to_another = match self.desk.book.slot(IpAddr::V4(address)) {
            // The client may answer for it already: a station that is known by its identifier has a MAC all the same.
            Some(Slot::Offered(offer)) => {
                offer.client != crate::lease::Client::Mac(by) && offer.via != Some(by)
            }
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

    /// Its leases.
    #[must_use]
    pub const fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Its leases, to end what is over.
    pub const fn desk_mut(&mut self) -> &mut Desk {
        &mut self.desk
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The scope it serves.
    #[must_use]
    pub const fn scope(&self) -> &Scope {
        &self.scope
    }

    fn decide(
        &mut self,
        now: Time,
        from: &Sender,
        message: &Message<'_>,
    ) -> Result<Verdict, Reason> {
        if from.to.is_some_and(|to| !self.scope.is_for_us(to)) {
            return Err(Reason::NotForUs);
        }
        let relayed = message.giaddr != Ipv4Addr::UNSPECIFIED;
        // Anybody can play relay: only one that the document names speaks for more than one station.
        if let Some(source) = from.mac
            && !self.scope.is_relay(message.giaddr)
            && !self.desk.admits(source, now)
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
        let ours = self.desk.book.slot(IpAddr::V4(address));
        let is_held = matches!(ours, Some(Slot::Held(_)));
        let is_offered = matches!(ours, Some(Slot::Offered(_)));
        // Proven free: a port's own address, one that the client holds, one asked about already; beyond a relay
        // nobody could answer.
        let relayed = message.giaddr != Ipv4Addr::UNSPECIFIED;
        let proven = guest.is_member || is_held || is_offered || relayed;
        // RFC 4039 section 3.1: a client that asks for it gets its address in two messages, or an offer like any other.
        if proven && message.option(code::RAPID_COMMIT).is_some() {
            return Ok(self.grant(now, from, message, guest, (subnet, address)));
        }
        if !is_held {
            let until = now.plus_secs(OFFER_SECONDS);
            let client = guest.client.clone();
            self.desk
                .book
                .offer(IpAddr::V4(address), client, guest.source, until);
        }
        let reply = self.draft(MessageType::Offer, message, from, guest, (subnet, address));
        if proven {
            return Ok(Verdict::Reply(reply));
        }
        Ok(Verdict::Probe {
            address,
            then: Some(reply),
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
        if let Err(other) = self.is_our_client(message) {
            self.withdraw_offers(guest);
            return Err(other);
        }
        let address = if message.ciaddr == Ipv4Addr::UNSPECIFIED {
            message.address(code::REQUESTED_ADDRESS)
        } else {
            Some(message.ciaddr)
        };
        let address = address.ok_or(Reason::Incomplete)?;
        match self.may_have(message, guest, address) {
            Ok(subnet) => {
                self.is_within_share(guest, address)?;
                if self.is_news(message, guest, address) {
                    let until = now.plus_secs(OFFER_SECONDS);
                    let client = guest.client.clone();
                    let ours = &mut self.desk.book;
                    ours.offer(IpAddr::V4(address), client, guest.source, until);
                    return Ok(Verdict::Probe {
                        address,
                        then: None,
                    });
                }
                Ok(self.grant(now, from, message, guest, (subnet, address)))
            }
            // We are the only authority on the link, so a client with a wrong address is told at once, known or not.
            Err(why) => {
                let at = self.subnets_for(message);
                let at = at.first().ok_or(Reason::NoSubnet)?;
                Ok(Verdict::Reply(nak(
                    message,
                    self.us(message, from, *at),
                    why,
                )))
            }
        }
    }

    /// RFC 2131 section 4.3.2: whether a client that comes back (INIT-REBOOT) says it had an address of which we have no
    /// record. A server is silent then; ours asks the link meanwhile, so that it can answer when the client asks again.
    fn is_news(&self, message: &Message<'_>, guest: &Guest, address: Ipv4Addr) -> bool {
        let returns = message.ciaddr == Ipv4Addr::UNSPECIFIED
            && message.giaddr == Ipv4Addr::UNSPECIFIED
            && message.option(code::SERVER_ID).is_none();
        let slot = self.desk.book.slot(IpAddr::V4(address));
        returns && !guest.is_member && slot.is_none()
    }

    /// Whether the message names us as the server it is for, or nobody.
    fn is_our_client(&self, message: &Message<'_>) -> Result<(), Reason> {
        match message.address(code::SERVER_ID) {
            Some(chosen) => {
                // RFC 5107 section 4: the relay stands for us.
                let override_ = message.agent_address(code::agent::SERVER_ID);
                let is_ours = self.scope.is_ours(chosen) || override_ == Some(chosen);
                is_ours.then_some(()).ok_or(Reason::OtherServer)
            }
            None => Ok(()),
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
        self.is_our_client(message)?;
        if !self.is_theirs(address, guest) {
            return Err(Reason::NoLease);
        }
        let record = LeaseRecord {
            state: LeaseState::Declined,
            expires: now.plus_secs(QUARANTINE_SECONDS),
            ..self.record(now, message, guest, address, 0)
        };
        if self.is_fixed_for(address, guest) {
            let mut changes = self.desk.release(now, address.into());
            changes.events.clear();
            changes.tell(LeaseKind::Declined, record);
            return Ok(commit(changes, None));
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
        self.is_our_client(message)?;
        if !self.is_theirs(message.ciaddr, guest) {
            return Err(Reason::NoLease);
        }
        let changes = self.desk.release(now, message.ciaddr.into());
        if changes.records.is_empty() {
            return Err(Reason::NoLease);
        }
        Ok(commit(changes, None))
    }

    /// RFC 2131 section 4.3.5: options for an address that is not ours to lease.
    fn inform(
        &self,
        from: &Sender,
        message: &Message<'_>,
        guest: &Guest,
    ) -> Result<Verdict, Reason> {
        // It must say its address, and some leave that to the packet.
        let address = match message.ciaddr {
            Ipv4Addr::UNSPECIFIED if message.giaddr == Ipv4Addr::UNSPECIFIED => {
                from.ip.unwrap_or(Ipv4Addr::UNSPECIFIED)
            }
            said => said,
        };
        let at = self
            .scope
            .subnet_of(address)
            .or_else(|| self.subnets_for(message).first().copied())
            .ok_or(Reason::NoSubnet)?;
        let name = self.name_for(guest, at, address);
        let draft = Draft {
            kind: MessageType::Ack,
            us: self.us(message, from, at),
            subnet: &self.scope.subnets[at],
            host: self.directory.host(&self.scope, at, guest),
            address,
            lease: None,
            name: name.as_ref(),
            domain: self.scope.domain.as_ref(),
            rapid: false,
        };
        Ok(Verdict::Reply(draft.reply(message, from)))
    }

    pub(super) fn draft(
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
            us: self.us(message, from, subnet),
            subnet: &self.scope.subnets[subnet],
            host: self.directory.host(&self.scope, subnet, guest),
            address,
            lease: Some(self.lease_seconds(message, guest, (subnet, address))),
            name: name.as_ref(),
            domain: self.scope.domain.as_ref(),
            rapid: kind == MessageType::Ack && message.kind == MessageType::Discover,
        };
        draft.reply(message, from)
    }

    /// What the reservation, the range or the subnet says; a client may ask for less.
    pub(super) fn lease_seconds(
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
    pub(super) fn name_for(
        &self,
        guest: &Guest,
        subnet: usize,
        address: Ipv4Addr,
    ) -> Option<PortName> {
        if let Some(member) = guest.mac.and_then(|mac| self.scope.members.get(&mac)) {
            return Some(member.name.clone());
        }
        let host = self.directory.host(&self.scope, subnet, guest);
        if let Some(name) = host.and_then(|h| h.name.clone()) {
            return Some(name);
        }
        let said = guest.said.clone()?;
        let holder = self.desk.book.holder_of(&said);
        let free = holder.is_none_or(|held| held == IpAddr::V4(address));
        (free && !self.directory.is_anothers(&said, guest)).then_some(said)
    }

    /// The address that we answer from: the one that was written to, since whoever wrote (a relay, a client that renews
    /// through a router) has a way to it; else the gateway of the client's subnet. It is also who we are, unless the
    /// relay wants all of the client's messages (RFC 5107).
    fn us(&self, message: &Message<'_>, from: &Sender, subnet: usize) -> Us {
        let written_to = from.to.filter(|to| self.scope.is_ours(*to));
        let ours = written_to.unwrap_or(self.scope.subnets[subnet].gateway);
        let override_ = message.agent_address(code::agent::SERVER_ID);
        Us {
            from: ours,
            id: override_.unwrap_or(ours),
        }
    }

    /// Whether clients behind this source already hold all that they may.
    pub(super) fn is_source_full(&self, guest: &Guest) -> bool {
        self.desk.is_full(guest.source.or(guest.mac))
    }
}

/// The refusals that are a source's own doing.
const fn refused(reason: Reason) -> Option<Refused> {
    match reason {
        Reason::RateLimit => Some(Refused::Rate),
        Reason::SourceLimit => Some(Refused::Pool),
        Reason::ForgedSource | Reason::ForgedRelay => Some(Refused::Forged),
        Reason::Malformed
        | Reason::NotForUs
        | Reason::NotForServers
        | Reason::NoIdentity
        | Reason::NoSubnet
        | Reason::Exhausted
        | Reason::OtherServer
        | Reason::NoLease
        | Reason::Incomplete => None,
    }
}
