//! What goes back: associations, options and names, wrapped for the relays that the message passed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use super::message::{Ia, put, put_address, put_status, wrap};
use super::server::{Guest, Server, Talk};
use super::{Message, MessageType, Reply, code, frame};
use crate::model::Booting;
use crate::types::PortName;

/// What HTTP boot of UEFI is known by.
const HTTP_CLIENT: &[u8] = b"HTTPClient";

/// What a reply says of addresses.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// Options, as they go over the wire.
    pub(super) body: Vec<u8>,
    /// What it gives, and the subnets of that.
    pub(super) given: Vec<Ipv6Addr>,
    pub(super) at: Vec<usize>,
}

impl Draft {
    /// A reply of one sentence.
    pub(super) fn status(status: u16, words: &str) -> Self {
        let mut draft = Self::default();
        put_status(&mut draft.body, status, words);
        draft
    }

    /// How it stands with an association that gets nothing.
    pub(super) fn put_ia_status(&mut self, ia: &Ia, status: u16, words: &str) {
        let mut data = ia.id.to_be_bytes().to_vec();
        data.extend_from_slice(&[0; 8]);
        put_status(&mut data, status, words);
        put(&mut self.body, code::IA_NA, &data);
    }
}

impl Server {
    /// An association as it now is; what the client had and may not keep lasts no longer.
    pub(super) fn put_ia(
        &self,
        draft: &mut Draft,
        guest: &Guest,
        ia: &Ia,
        chosen: Option<(usize, Ipv6Addr)>,
        had: &[Ipv6Addr],
    ) {
        let seconds = chosen.map_or(0, |(at, _)| self.lease_time(at, guest).secs());
        // RFC 8415 section 21.4: half, and four fifths, of the preferred lifetime.
        let part = |fifths: u64| match seconds {
            u32::MAX => u32::MAX,
            _ => u32::try_from(u64::from(seconds) * fifths / 10).unwrap_or(u32::MAX),
        };
        let mut data = ia.id.to_be_bytes().to_vec();
        data.extend_from_slice(&part(5).to_be_bytes());
        data.extend_from_slice(&part(8).to_be_bytes());
        if let Some((at, address)) = chosen {
            draft.given.push(address);
            draft.at.push(at);
            put_address(&mut data, address, seconds, seconds);
        }
        let lost = |old: &&Ipv6Addr| chosen.is_none_or(|(_, address)| address != **old);
        for old in had.iter().filter(lost) {
            put_address(&mut data, *old, 0, 0);
        }
        if chosen.is_none() {
            put_status(&mut data, code::NO_ADDRESSES, "no address is free");
        }
        put(&mut draft.body, code::IA_NA, &data);
    }

    /// A whole message: who we both are, the draft, and the options that were asked for, of the subnets that the
    /// addresses are of. Without addresses they are the link's.
    pub(super) fn reply(&self, talk: &Talk<'_>, kind: MessageType, draft: &Draft) -> Reply {
        let (message, guest) = (talk.message, talk.guest);
        let subnets = match draft.at.is_empty() {
            true => &guest.link,
            false => &draft.at,
        };
        let mut bytes = self.head(talk, kind);
        bytes.extend_from_slice(&draft.body);
        put_others(message, &mut bytes);
        for (code, data) in self.options(subnets, guest, message) {
            // Nothing in it: it was switched off.
            if message.wants(code) && !data.is_empty() {
                put(&mut bytes, code, &data);
            }
        }
        if let Some((flags, said)) = &guest.said {
            let kept = self.name_for(guest, subnets);
            put(&mut bytes, code::FQDN, &self.fqdn(*flags, said, kept));
        }
        self.addressed(talk, kind, bytes)
    }

    /// RFC 8415 section 18.4: we never told a client that it may write to us alone. Nothing but who we both are and
    /// this goes with it.
    pub(super) fn use_multicast(&self, talk: &Talk<'_>) -> Reply {
        let mut bytes = self.head(talk, MessageType::Reply);
        put_status(&mut bytes, code::USE_MULTICAST, "ask the group ff02::1:2");
        self.addressed(talk, MessageType::Reply, bytes)
    }

    fn head(&self, talk: &Talk<'_>, kind: MessageType) -> Vec<u8> {
        let [a, b, c] = talk.message.xid;
        let mut bytes = vec![kind.code(), a, b, c];
        if !talk.guest.duid.is_empty() {
            put(&mut bytes, code::CLIENT_ID, &talk.guest.duid);
        }
        put(&mut bytes, code::SERVER_ID, &self.scope.duid);
        bytes
    }

    /// What a client of these subnets is told: what its reservations say, what it boots, and what the subnets say, the
    /// first first.
    fn options<'s>(
        &'s self,
        subnets: &[usize],
        guest: &Guest,
        message: &Message<'_>,
    ) -> BTreeMap<u16, Cow<'s, [u8]>> {
        let own = subnets.iter().filter_map(|at| self.host(*at, guest));
        let own = own.flat_map(|host| &host.options);
        let own = own.map(|option| (option.code, option.data.as_slice()));
        let all = subnets
            .iter()
            .flat_map(|at| &self.scope.subnets[*at].options);
        let all = all.map(|(code, data)| (*code, data.as_slice()));
        let file = self.boot_file(subnets, message);
        let file = file.map(|file| (code::BOOT_FILE, file.as_bytes()));
        let mut options = BTreeMap::new();
        for (code, data) in own.chain(file).chain(all) {
            options.entry(code).or_insert(Cow::Borrowed(data));
        }
        // UEFI takes an offer for HTTP boot only from a server that says the word back.
        if let Some((enterprise, class)) = message.vendor_class()
            && class.starts_with(HTTP_CLIENT)
            && options.contains_key(&code::BOOT_FILE)
        {
            let len = u16::try_from(HTTP_CLIENT.len()).unwrap_or(0).to_be_bytes();
            let data = [&enterprise[..], &len, HTTP_CLIENT].concat();
            options
                .entry(code::VENDOR_CLASS)
                .or_insert(Cow::Owned(data));
        }
        options
    }

    /// RFC 5970 section 3.1: where a machine without a system finds what it boots.
    fn boot_file(&self, subnets: &[usize], message: &Message<'_>) -> Option<&str> {
        let user_class = message.user_classes();
        let machine = Booting {
            arch: message.arch(),
            vendor_class: message.vendor_class().map_or(&[], |(_, class)| class),
            user_class: &user_class,
        };
        let mut boots = subnets
            .iter()
            .filter_map(|at| self.scope.subnets[*at].boot.as_ref());
        boots
            .find_map(|boot| boot.choose(&machine))
            .map(|(file, _)| file)
    }

    /// The reply on its way: to where the message came from, from the address that it was written to if that is one of
    /// ours alone, else from ours on the sender's link.
    fn addressed(&self, talk: &Talk<'_>, kind: MessageType, bytes: Vec<u8>) -> Reply {
        let (from, relayed) = (talk.from, !talk.message.relays.is_empty());
        let gateway = || {
            let near = self.scope.subnet_of(from.address);
            let near = near.map(|at| self.scope.subnets[at].gateway);
            near.or_else(|| self.scope.gateways.first().copied())
        };
        let ours = match (from.to.is_multicast(), from.address.is_unicast_link_local()) {
            (false, _) => Some(from.to),
            (true, true) => None,
            (true, false) => gateway(),
        };
        Reply {
            kind,
            to: from.address,
            port: match relayed {
                true => frame::SERVER_PORT,
                false => frame::CLIENT_PORT,
            },
            from: ours,
            bytes: wrap(talk.message, bytes),
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

/// What we have not: temporary addresses and prefixes. Who says that it has some is told that we know nothing of them
/// (RFC 8415 sections 18.3.4, 18.3.5, 18.3.7 and 18.3.8).
fn put_others(message: &Message<'_>, out: &mut Vec<u8>) {
    let (no_address, no_prefix) = match message.kind {
        MessageType::Renew | MessageType::Rebind | MessageType::Release | MessageType::Decline => {
            (code::NO_BINDING, code::NO_BINDING)
        }
        MessageType::Solicit
        | MessageType::Advertise
        | MessageType::Request
        | MessageType::Confirm
        | MessageType::Reply
        | MessageType::Reconfigure
        | MessageType::InformationRequest => (code::NO_ADDRESSES, code::NO_PREFIX),
    };
    for iaid in message.others(code::IA_TA) {
        let mut data = iaid.to_vec();
        put_status(&mut data, no_address, "no temporary addresses");
        put(out, code::IA_TA, &data);
    }
    for iaid in message.others(code::IA_PD) {
        let mut data = iaid.to_vec();
        data.extend_from_slice(&[0; 8]);
        put_status(&mut data, no_prefix, "no prefixes");
        put(out, code::IA_PD, &data);
    }
}
