use std::net::Ipv6Addr;

use super::directory::Directory;
use super::message::{Ia, put};
use super::reply::Draft;
use super::{Counters, Message, MessageType, Reason, Reply, Scope, Sender, Verdict, code};
use crate::dhcp::limit::Refused;
use crate::dhcp::{Changes, Desk};
use crate::lease::{Client, LeaseRecord, Time};
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
    pub(super) directory: Directory,
    pub(super) desk: Desk,
    counters: Counters,
}

/// Everything that follows from who the client is and where it is.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub(super) duid: Vec<u8>,
    pub(super) mac: Option<Mac>,
    /// The frame's source, which addresses count against; nobody's, if a relay speaks that the document names.
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
            directory: Directory::default(),
            desk: Desk::new(scope.network.clone(), records, now),
            scope: Scope::silent(scope.network.clone()),
            counters: Counters::default(),
        };
        server.configure(scope);
        server
    }

    /// A new scope in place of the old one. Leases stay; a client whose address is no longer its own learns of it
    /// when it renews.
    pub fn configure(&mut self, scope: Scope) {
        self.scope = scope;
        self.directory = Directory::of(&self.scope);
        self.desk
            .book
            .lay_out(self.scope.pools(), self.scope.excluded());
    }

    /// What is to be done about a message.
    pub fn handle(&mut self, now: Time, from: &Sender, message: &Message<'_>) -> Verdict {
        self.desk.expire(now);
        *self.counters.received.entry(message.kind).or_insert(0) += 1;
        let verdict = self
            .decide(now, from, message)
            .unwrap_or_else(Verdict::Ignore);
        match &verdict {
            Verdict::Ignore(reason) => {
                self.count_ignored(*reason);
                if let Some(why) = refused(*reason) {
                    self.desk.refuse(from.mac, why);
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

    /// Its leases.
    #[must_use]
    pub const fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Its leases, to end what is over.
    pub const fn desk_mut(&mut self) -> &mut Desk {
        &mut self.desk
    }

    /// Forgets everything about a MAC, because its port is gone.
    pub fn forget(&mut self, now: Time, mac: Mac) -> Changes {
        self.desk.forget(now, mac)
    }

    /// What was counted.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The ports that it knows.
    pub fn members(&self) -> impl Iterator<Item = Mac> {
        self.scope.members.keys().copied()
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
        let reply = |draft: &Draft| Verdict::Reply(self.reply(&talk, MessageType::Reply, draft));
        // Only a client's own unicast is one: a relay sends by unicast as it likes.
        let unicast = !from.to.is_multicast() && message.relays.is_empty();
        Ok(match message.kind {
            MessageType::Solicit => self.solicit(now, &talk),
            MessageType::Request
            | MessageType::Renew
            | MessageType::Release
            | MessageType::Decline
                if unicast =>
            {
                Verdict::Reply(self.use_multicast(&talk))
            }
            MessageType::Request | MessageType::Renew | MessageType::Rebind => {
                self.grant_all(now, &talk)
            }
            MessageType::Confirm => reply(&self.confirm(&talk)?),
            MessageType::Release | MessageType::Decline => self.take_all(now, &talk),
            MessageType::InformationRequest => {
                let mut draft = Draft::default();
                let seconds = REFRESH_SECONDS.to_be_bytes();
                put(&mut draft.body, code::REFRESH, &seconds);
                reply(&draft)
            }
            MessageType::Advertise | MessageType::Reply | MessageType::Reconfigure => {
                return Err(Reason::NotForServers);
            }
        })
    }

    /// RFC 8415 section 16: what a message of its kind must and must not have.
    fn admit(&mut self, now: Time, from: &Sender, message: &Message<'_>) -> Result<(), Reason> {
        if !self.scope.is_for_us(from.to) {
            return Err(Reason::NotForUs);
        }
        let relayed = !message.relays.is_empty();
        if let Some(source) = from.mac
            && !self.is_trusted(from, message)
            && !self.desk.admits(source, now)
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
        match group_only && !from.to.is_multicast() && !relayed {
            true => Err(Reason::Unicast),
            false => Ok(()),
        }
    }

    /// Whether a relay speaks that the document names: anybody can play relay, and only these speak for more than one
    /// station. They are known by the link that they name, or by the address that they write from.
    fn is_trusted(&self, from: &Sender, message: &Message<'_>) -> bool {
        message.relays.first().is_some_and(|relay| {
            let named = |address| self.scope.relays.contains(&address);
            named(relay.link) || named(from.address)
        })
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
        let direct = from.mac.filter(|_| !relayed);
        Ok(Guest {
            duid,
            mac: direct.or_else(|| message.told_mac()),
            via: from.mac.filter(|_| !self.is_trusted(from, message)),
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
        self.desk.is_full(guest.via)
    }

    /// Counts an address that was refused because the source has all that it may.
    fn count_full(&mut self, guest: &Guest, refused: bool) {
        if refused && self.is_source_full(guest) {
            self.desk.refuse(guest.via, Refused::Pool);
        }
    }

    /// RFC 8415 section 18.3.1. Who asks for two messages instead of four, and cannot be given anything, is told so by
    /// an Advertise like anybody: a Reply would end its search for servers.
    fn solicit(&mut self, now: Time, talk: &Talk<'_>) -> Verdict {
        let ias = talk.message.ias();
        let gets_one = |ia: &Ia| {
            let client = talk.guest.client(ia);
            let chosen = self.choose(talk.guest, &client, &ia.addresses, &[]);
            chosen.is_some()
        };
        if talk.message.has(code::RAPID_COMMIT) && ias.iter().any(gets_one) {
            return self.grant_all(now, talk);
        }
        let mut draft = Draft::default();
        for ia in ias {
            let client = talk.guest.client(&ia);
            let chosen = self.choose(talk.guest, &client, &ia.addresses, &draft.given);
            if let Some((_, address)) = chosen
                && !self.holds(address, talk.guest, &client)
            {
                let until = now.plus_secs(OFFER_SECONDS);
                self.desk
                    .book
                    .offer(address.into(), client, talk.guest.via, until);
            }
            self.count_full(talk.guest, chosen.is_none());
            self.put_ia(&mut draft, talk.guest, &ia, chosen, &[]);
        }
        put(&mut draft.body, code::PREFERENCE, &[255]);
        Verdict::Reply(self.reply(talk, MessageType::Advertise, &draft))
    }

    /// RFC 8415 sections 18.3.2, 18.3.4, 18.3.5: every association gets its address, for a full lease. We are the only
    /// authority on the link, so one that we do not know is granted rather than sent away.
    fn grant_all(&mut self, now: Time, talk: &Talk<'_>) -> Verdict {
        let (mut draft, mut changes) = (Draft::default(), Changes::default());
        let kind = talk.message.kind;
        if kind == MessageType::Solicit {
            put(&mut draft.body, code::RAPID_COMMIT, &[]);
        }
        // Who renews has what it names, and must learn that it may not keep it; who requests only wishes.
        let renews = matches!(kind, MessageType::Renew | MessageType::Rebind);
        for ia in talk.message.ias() {
            if kind == MessageType::Request && self.is_elsewhere(talk, &ia) {
                draft.put_ia_status(&ia, code::NOT_ON_LINK, "not for this link");
                continue;
            }
            let client = talk.guest.client(&ia);
            let chosen = self.choose(talk.guest, &client, &ia.addresses, &draft.given);
            if let Some(place) = chosen {
                self.grant(now, talk.guest, client, place, &mut changes);
            }
            self.count_full(talk.guest, chosen.is_none());
            let had = ia.addresses.as_slice();
            let had = if renews { had } else { &[] };
            self.put_ia(&mut draft, talk.guest, &ia, chosen, had);
        }
        let then = self.reply(talk, MessageType::Reply, &draft);
        committed(changes, then)
    }

    /// RFC 8415 section 18.3.3: whether the client is still where its addresses are from.
    fn confirm(&self, talk: &Talk<'_>) -> Result<Draft, Reason> {
        let ias = talk.message.ias();
        if ias.iter().all(|ia| ia.addresses.is_empty()) {
            return Err(Reason::Incomplete);
        }
        if ias.iter().any(|ia| self.is_elsewhere(talk, ia)) {
            return Ok(Draft::status(code::NOT_ON_LINK, "not for this link"));
        }
        let mut draft = Draft::status(code::SUCCESS, "still on link");
        let addresses = ias.iter().flat_map(|ia| &ia.addresses);
        draft.at = addresses.filter_map(|a| self.scope.subnet_of(*a)).collect();
        Ok(draft)
    }

    /// RFC 8415 sections 18.3.7 and 18.3.8.
    fn take_all(&mut self, now: Time, talk: &Talk<'_>) -> Verdict {
        let mut changes = Changes::default();
        let mut draft = Draft::status(code::SUCCESS, "thank you");
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
                    changes.extend(self.desk.release(now, (*address).into()));
                }
            }
            if !known {
                draft.put_ia_status(&ia, code::NO_BINDING, "no such lease");
            }
        }
        let then = self.reply(talk, MessageType::Reply, &draft);
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
}

/// A message, where it came from and what follows from that.
pub(super) struct Talk<'a> {
    pub(super) from: &'a Sender,
    pub(super) message: &'a Message<'a>,
    pub(super) guest: &'a Guest,
}

/// The refusals that are a source's own doing.
const fn refused(reason: Reason) -> Option<Refused> {
    match reason {
        Reason::RateLimit => Some(Refused::Rate),
        Reason::ForgedRelay => Some(Refused::Forged),
        Reason::Malformed
        | Reason::NotForUs
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
