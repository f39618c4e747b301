use std::net::Ipv6Addr;

use super::bind::Changes;
use super::message::{Ia, put, put_address, put_status, wrap};
use super::{Counters, Message, MessageType, Reason, Reply, Scope, Sender, Verdict, code, frame};
use crate::dhcp::Share;
use crate::dhcp::limit::{MOST_PER_SOURCE, Rates, Refused};
use crate::lease::{Book, Change, Client, LeaseEvent, LeaseKind, LeaseRecord, Time};
use crate::types::{Mac, PortName};

/// How long an offered address is kept for its client.
const OFFER_SECONDS: u64 = 60;
/// After how long a client that only has options asks again (RFC 8415 section 21.23): an hour, so that a changed
/// resolver is not missed for a day.
const REFRESH_SECONDS: u32 = 3600;

/// DHCPv6 of one network.
#[derive(Debug, Clone)]
pub struct Server {
    pub(super) scope: Scope,
    pub(super) book: Book,
    rates: Rates,
    counters: Counters,
    /// What ended by itself since somebody last asked.
    ended: Vec<LeaseEvent>,
}

/// Everything that follows from who the client is and where it is.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub(super) duid: Vec<u8>,
    pub(super) mac: Option<Mac>,
    /// The frame's source, which addresses count against: nobody's, if a relay speaks.
    pub(super) via: Option<Mac>,
    /// The flags and the name that it sent.
    pub(super) said: Option<(u8, PortName)>,
    /// The subnets of its link.
    pub(super) link: Vec<usize>,
}

impl Guest {
    fn client(&self, ia: &Ia) -> Client {
        Client::Ia {
            duid: self.duid.clone(),
            iaid: ia.id,
        }
    }
}

impl Server {
    /// A server for a scope, with the IPv6 leases that the store remembers of its network.
    #[must_use]
    pub fn new(scope: Scope, records: impl IntoIterator<Item = LeaseRecord>, now: Time) -> Self {
        let mut server = Self {
            book: Book::load(records, now),
            scope: Scope::silent(scope.network.clone()),
            rates: Rates::default(),
            counters: Counters::default(),
            ended: Vec::new(),
        };
        server.configure(scope);
        server
    }

    /// A new scope in place of the old one. Leases stay; a client whose address is no longer its own learns of it
    /// when it renews.
    pub fn configure(&mut self, scope: Scope) {
        self.scope = scope;
        self.book.lay_out(self.scope.pools(), self.scope.excluded());
    }

    /// What is to be done about a message.
    pub fn handle(&mut self, now: Time, from: &Sender, message: &Message<'_>) -> Verdict {
        self.expire(now);
        *self.counters.received.entry(message.kind).or_insert(0) += 1;
        let verdict = self
            .decide(now, from, message)
            .unwrap_or_else(Verdict::Ignore);
        match &verdict {
            Verdict::Ignore(reason) => {
                self.count_ignored(*reason);
                if let Some(why) = refused(*reason) {
                    self.rates.refuse(from.mac, why);
                }
            }
            Verdict::Reply(reply) | Verdict::Commit { then: reply, .. } => {
                *self.counters.sent.entry(reply.kind).or_insert(0) += 1;
            }
        }
        verdict
    }

    /// Counts a message that never became one.
    pub fn count_ignored(&mut self, reason: Reason) {
        *self.counters.ignored.entry(reason).or_insert(0) += 1;
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

    /// What is to leave the disk because too much had lapsed since.
    pub fn take_forgotten(&mut self) -> Vec<Change> {
        let network = self.scope.network.clone();
        let forgotten = self.book.take_forgotten().into_iter();
        forgotten
            .map(|address| Change::Delete(network.clone(), address))
            .collect()
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

    /// The ports that it knows.
    pub fn members(&self) -> impl Iterator<Item = Mac> {
        self.scope.members.keys().copied()
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
        self.admit(now, from, message)?;
        let guest = self.guest(from, message)?;
        let talk = Talk {
            from,
            message,
            guest: &guest,
        };
        let reply = |server: &Self, body: Vec<u8>| {
            Ok(Verdict::Reply(server.reply(
                &talk,
                MessageType::Reply,
                &body,
            )))
        };
        // Only a client's own unicast is one: a relay sends by unicast as it likes.
        let unicast = from.unicast && message.relays.is_empty();
        match message.kind {
            MessageType::Solicit => Ok(self.solicit(now, &talk)),
            MessageType::Request if unicast => reply(self, use_multicast()),
            MessageType::Request => Ok(self.grant_all(now, &talk)),
            MessageType::Renew if unicast => reply(self, use_multicast()),
            MessageType::Renew | MessageType::Rebind => Ok(self.grant_all(now, &talk)),
            MessageType::Confirm => {
                let body = self.confirm(&talk)?;
                reply(self, body)
            }
            MessageType::Release | MessageType::Decline if unicast => reply(self, use_multicast()),
            MessageType::Release | MessageType::Decline => Ok(self.take_all(now, &talk)),
            MessageType::InformationRequest => {
                let mut body = Vec::new();
                put(&mut body, code::REFRESH, &REFRESH_SECONDS.to_be_bytes());
                reply(self, body)
            }
            MessageType::Advertise | MessageType::Reply | MessageType::Reconfigure => {
                Err(Reason::NotForServers)
            }
        }
    }

    /// RFC 8415 section 16: what a message of its kind must and must not have.
    fn admit(&mut self, now: Time, from: &Sender, message: &Message<'_>) -> Result<(), Reason> {
        let relayed = !message.relays.is_empty();
        if let Some(source) = from.mac
            && !relayed
            && !self.rates.admits(source, now)
        {
            return Err(Reason::RateLimit);
        }
        let guarded = from.mac.and_then(|mac| self.scope.members.get(&mac));
        if relayed && guarded.is_some_and(|m| m.guard) {
            return Err(Reason::ForgedRelay);
        }
        let server = message.option(code::SERVER_ID);
        let is_ours = server == Some(self.scope.duid.as_slice());
        let group_only = match message.kind {
            MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => {
                if server.is_some() {
                    return Err(Reason::OtherServer);
                }
                true
            }
            MessageType::InformationRequest => {
                if server.is_some() && !is_ours {
                    return Err(Reason::OtherServer);
                }
                if message.has(code::IA_NA) || message.has(code::IA_TA) || message.has(code::IA_PD)
                {
                    return Err(Reason::Incomplete);
                }
                true
            }
            MessageType::Request
            | MessageType::Renew
            | MessageType::Release
            | MessageType::Decline => {
                if !is_ours {
                    return Err(Reason::OtherServer);
                }
                false
            }
            MessageType::Advertise | MessageType::Reply | MessageType::Reconfigure => false,
        };
        match group_only && from.unicast && !relayed {
            true => Err(Reason::Unicast),
            false => Ok(()),
        }
    }

    fn guest(&self, from: &Sender, message: &Message<'_>) -> Result<Guest, Reason> {
        let relayed = !message.relays.is_empty();
        let anonymous = message.kind == MessageType::InformationRequest;
        let duid = match (message.duid(), anonymous) {
            (Some(duid), _) => duid.to_vec(),
            (None, true) => Vec::new(),
            (None, false) => return Err(Reason::Incomplete),
        };
        let link = self.link_of(message);
        if link.is_empty() {
            return Err(Reason::NoSubnet);
        }
        let via = from.mac.filter(|_| !relayed);
        Ok(Guest {
            duid,
            mac: via.or_else(|| message.told_mac()),
            via,
            said: message.name(),
            link,
        })
    }

    /// RFC 8415 section 13.1: the link that the relay next to the client names, or ours.
    fn link_of(&self, message: &Message<'_>) -> Vec<usize> {
        let mut named = message.relays.iter().rev().map(|r| r.link);
        match named.find(|link| !link.is_unspecified()) {
            Some(link) => self.scope.subnet_of(link).into_iter().collect(),
            None => (0..self.scope.subnets.len()).collect(),
        }
    }

    /// Whether clients behind this source already hold all that they may.
    pub(super) fn is_source_full(&self, guest: &Guest) -> bool {
        let source = guest.via;
        source.is_some_and(|mac| self.book.count_via(mac) >= MOST_PER_SOURCE)
    }

    /// Counts an address that was refused because the source has all that it may.
    fn count_full(&mut self, guest: &Guest, refused: bool) {
        if refused && self.is_source_full(guest) {
            self.rates.refuse(guest.via, Refused::Pool);
        }
    }

    /// RFC 8415 section 18.3.1.
    fn solicit(&mut self, now: Time, talk: &Talk<'_>) -> Verdict {
        if talk.message.has(code::RAPID_COMMIT) {
            return self.grant_all(now, talk);
        }
        let (mut body, mut given) = (Vec::new(), Vec::new());
        for ia in talk.message.ias() {
            let client = talk.guest.client(&ia);
            let chosen = self.choose(talk.guest, &client, &ia.addresses, &given);
            if let Some((_, address)) = chosen {
                given.push(address);
                if !self.holds(address, talk.guest, &client) {
                    let until = now.plus_secs(OFFER_SECONDS);
                    self.book
                        .offer(address.into(), client, talk.guest.via, until);
                }
            }
            self.count_full(talk.guest, chosen.is_none());
            self.put_ia(&mut body, &ia, chosen, &[]);
        }
        put(&mut body, code::PREFERENCE, &[255]);
        Verdict::Reply(self.reply(talk, MessageType::Advertise, &body))
    }

    /// RFC 8415 sections 18.3.2, 18.3.4, 18.3.5: every association gets its address, for a full lease. We are the only
    /// authority on the link, so one that we do not know is granted rather than sent away.
    fn grant_all(&mut self, now: Time, talk: &Talk<'_>) -> Verdict {
        let (mut body, mut given) = (Vec::new(), Vec::new());
        let mut changes = Changes::default();
        if talk.message.kind == MessageType::Solicit {
            put(&mut body, code::RAPID_COMMIT, &[]);
        }
        for ia in talk.message.ias() {
            if talk.message.kind == MessageType::Request && self.is_elsewhere(talk, &ia) {
                put_ia_status(&mut body, &ia, code::NOT_ON_LINK, "not for this link");
                continue;
            }
            let client = talk.guest.client(&ia);
            let chosen = self.choose(talk.guest, &client, &ia.addresses, &given);
            if let Some((at, address)) = chosen {
                given.push(address);
                self.grant(now, talk.guest, client, (at, address), &mut changes);
            }
            self.count_full(talk.guest, chosen.is_none());
            self.put_ia(&mut body, &ia, chosen, &ia.addresses);
        }
        let then = self.reply(talk, MessageType::Reply, &body);
        committed(changes, then)
    }

    /// RFC 8415 section 18.3.3: whether the client is still where its addresses are from.
    fn confirm(&self, talk: &Talk<'_>) -> Result<Vec<u8>, Reason> {
        let ias = talk.message.ias();
        if ias.iter().all(|ia| ia.addresses.is_empty()) {
            return Err(Reason::Incomplete);
        }
        let mut body = Vec::new();
        match ias.iter().any(|ia| self.is_elsewhere(talk, ia)) {
            true => put_status(&mut body, code::NOT_ON_LINK, "not for this link"),
            false => put_status(&mut body, code::SUCCESS, "still on link"),
        }
        Ok(body)
    }

    /// RFC 8415 sections 18.3.7 and 18.3.8.
    fn take_all(&mut self, now: Time, talk: &Talk<'_>) -> Verdict {
        let mut changes = Changes::default();
        let mut body = Vec::new();
        put_status(&mut body, code::SUCCESS, "thank you");
        for ia in talk.message.ias() {
            let client = talk.guest.client(&ia);
            let mut known = false;
            for address in &ia.addresses {
                if !self.holds(*address, talk.guest, &client) {
                    continue;
                }
                known = true;
                if talk.message.kind == MessageType::Decline {
                    self.decline(now, talk.guest, client.clone(), *address, &mut changes);
                } else {
                    self.give_back(now, *address, &mut changes);
                }
            }
            if !known {
                put_ia_status(&mut body, &ia, code::NO_BINDING, "no such lease");
            }
        }
        let then = self.reply(talk, MessageType::Reply, &body);
        committed(changes, then)
    }

    /// Whether an association has an address that is of none of the client's subnets.
    fn is_elsewhere(&self, talk: &Talk<'_>, ia: &Ia) -> bool {
        let here = |address: &Ipv6Addr| {
            let at = self.scope.subnet_of(*address);
            at.is_some_and(|at| talk.guest.link.contains(&at))
        };
        !ia.addresses.iter().all(here)
    }

    /// An association as it now is; what the client had and may not keep lasts no longer.
    fn put_ia(
        &self,
        out: &mut Vec<u8>,
        ia: &Ia,
        chosen: Option<(usize, Ipv6Addr)>,
        had: &[Ipv6Addr],
    ) {
        let seconds = chosen.map_or(0, |(at, _)| self.scope.subnets[at].lease_time.secs());
        // RFC 8415 section 21.4: half, and four fifths, of the preferred lifetime.
        let part = |fifths: u64| match seconds {
            u32::MAX => u32::MAX,
            _ => u32::try_from(u64::from(seconds) * fifths / 10).unwrap_or(u32::MAX),
        };
        let mut data = ia.id.to_be_bytes().to_vec();
        data.extend_from_slice(&part(5).to_be_bytes());
        data.extend_from_slice(&part(8).to_be_bytes());
        if let Some((_, address)) = chosen {
            put_address(&mut data, address, seconds, seconds);
        }
        let lost = |old: &&Ipv6Addr| chosen.is_none_or(|(_, address)| address != **old);
        for old in had.iter().filter(lost) {
            put_address(&mut data, *old, 0, 0);
        }
        if chosen.is_none() {
            put_status(&mut data, code::NO_ADDRESSES, "no address is free");
        }
        put(out, code::IA_NA, &data);
    }

    /// A whole message around a body: who we both are, and the options that were asked for.
    fn reply(&self, talk: &Talk<'_>, kind: MessageType, body: &[u8]) -> Reply {
        let (message, guest) = (talk.message, talk.guest);
        let [a, b, c] = message.xid;
        let mut bytes = vec![kind.code(), a, b, c];
        if !guest.duid.is_empty() {
            put(&mut bytes, code::CLIENT_ID, &guest.duid);
        }
        put(&mut bytes, code::SERVER_ID, &self.scope.duid);
        bytes.extend_from_slice(body);
        for iaid in message.others(code::IA_TA) {
            let mut data = iaid.to_vec();
            put_status(&mut data, code::NO_ADDRESSES, "no temporary addresses");
            put(&mut bytes, code::IA_TA, &data);
        }
        for iaid in message.others(code::IA_PD) {
            let mut data = iaid.to_vec();
            data.extend_from_slice(&[0; 8]);
            put_status(&mut data, code::NO_PREFIX, "no prefixes");
            put(&mut bytes, code::IA_PD, &data);
        }
        let subnet = guest.link.first().map(|at| &self.scope.subnets[*at]);
        for (code, data) in subnet.into_iter().flat_map(|s| &s.options) {
            if message.wants(*code) {
                put(&mut bytes, *code, data);
            }
        }
        if let Some((flags, said)) = &guest.said {
            let kept = guest.link.first().and_then(|at| self.name_for(guest, *at));
            put(&mut bytes, code::FQDN, &self.fqdn(*flags, said, kept));
        }
        let port = match message.relays.is_empty() {
            true => frame::CLIENT_PORT,
            false => frame::SERVER_PORT,
        };
        Reply {
            kind,
            to: talk.from.address,
            port,
            from: subnet.map_or(Ipv6Addr::UNSPECIFIED, |s| s.gateway),
            bytes: wrap(message, bytes),
        }
    }

    /// RFC 4704 section 4.1: we keep the name (S), whatever the client wished (O says that it wished otherwise), or
    /// nobody does (N): it is somebody else's.
    fn fqdn(&self, flags: u8, said: &PortName, kept: Option<PortName>) -> Vec<u8> {
        let mut out = vec![match (&kept, flags & 1) {
            (Some(_), 1) => 1,
            (Some(_), _) => 3,
            (None, _) => 4,
        }];
        let name = kept.as_ref().unwrap_or(said);
        out.push(u8::try_from(name.as_str().len()).unwrap_or(0));
        out.extend_from_slice(name.as_str().as_bytes());
        match &self.scope.domain {
            Some(domain) => out.extend_from_slice(&crate::dhcp::ra::wire_name(domain)),
            None => out.push(0),
        }
        out
    }
}

/// A message, where it came from and what follows from that.
struct Talk<'a> {
    from: &'a Sender,
    message: &'a Message<'a>,
    guest: &'a Guest,
}

/// The refusals that are a source's own doing.
const fn refused(reason: Reason) -> Option<Refused> {
    match reason {
        Reason::RateLimit => Some(Refused::Rate),
        Reason::ForgedRelay => Some(Refused::Forged),
        Reason::Malformed
        | Reason::NotForServers
        | Reason::Unicast
        | Reason::NoSubnet
        | Reason::OtherServer
        | Reason::Incomplete => None,
    }
}

fn committed(changes: Changes, then: Reply) -> Verdict {
    if changes.records.is_empty() && changes.events.is_empty() {
        return Verdict::Reply(then);
    }
    Verdict::Commit {
        records: changes.records,
        events: changes.events,
        then,
    }
}

fn put_ia_status(out: &mut Vec<u8>, ia: &Ia, status: u16, words: &str) {
    let mut data = ia.id.to_be_bytes().to_vec();
    data.extend_from_slice(&[0; 8]);
    put_status(&mut data, status, words);
    put(out, code::IA_NA, &data);
}

/// RFC 8415 section 18.4: we never told a client that it may.
fn use_multicast() -> Vec<u8> {
    let mut body = Vec::new();
    put_status(&mut body, code::USE_MULTICAST, "ask the group ff02::1:2");
    body
}
