//! The bytes: a solicitation taken in, an advertisement and its options written out.

use std::net::Ipv6Addr;

use super::scope::Item;
use super::{Removed, Scope};
use crate::dhcp::ip6::{Envelope, ICMP, Packet, seal};
use crate::lease::Time;
use crate::model::Preference;
use crate::types::{DomainName, Ipv6Net, Mac};

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const SOURCE_LINK_LAYER: u8 = 1;
const PREFIX: u8 = 3;
const ON_LINK: u8 = 0x80;
const OWN: u8 = 0x40;
const MTU: u8 = 5;
const ROUTE: u8 = 24;
const RESOLVERS: u8 = 25;
const SEARCH: u8 = 31;
const PORTAL: u8 = 37;
const PREF64: u8 = 38;
/// What an advertisement may be without its header, the link-layer address and fragments (RFC 8200 section 5).
const ROOM: usize = 1280 - 40 - 8;
/// Ethernet's own MTU.
const ETHERNET_MTU: u32 = 1500;
/// RFC 8910 section 2: there is no captive portal.
const UNRESTRICTED: &str = "urn:ietf:params:capport:unrestricted";

/// A router solicitation that is what RFC 4861 section 6.1.1 says it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicitation {
    /// The frame's source.
    pub mac: Mac,
    /// Who asks; unspecified while it has no address.
    pub address: Ipv6Addr,
}

impl Solicitation {
    /// Takes a frame apart; `checked` says that the kernel vouches for the checksum.
    #[must_use]
    pub fn parse(frame: &[u8], checked: bool) -> Option<Self> {
        let packet = Packet::parse(frame, ICMP, checked)?;
        let (head, options) = packet.bytes.split_at_checked(8)?;
        if packet.envelope.hops != 255 || head[..2] != [SOLICITATION, 0] {
            return None;
        }
        let nameless = packet.envelope.from.is_unspecified();
        let mut rest = options;
        while let [kind, len, ..] = rest {
            let len = usize::from(*len) * 8;
            if len == 0 || (nameless && *kind == SOURCE_LINK_LAYER) {
                return None;
            }
            rest = rest.get(len..)?;
        }
        rest.is_empty().then_some(Self {
            mac: packet.envelope.from_mac,
            address: packet.envelope.from,
        })
    }
}

/// An advertisement but for what depends on the link it leaves by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Body(Vec<u8>);

impl Body {
    pub(super) fn frame(&self, envelope: &Envelope) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.extend_from_slice(&[SOURCE_LINK_LAYER, 1]);
        bytes.extend_from_slice(&envelope.from_mac.0);
        seal(envelope, ICMP, bytes, 2)
    }
}

/// What a scope says, and what is taken back.
pub(super) fn body(scope: &Scope, removed: &Removed, now: Time) -> Body {
    let lifetime = u32::from(scope.ra.lifetime());
    let router = if scope.is_router {
        scope.ra.router()
    } else {
        0
    };
    // RFC 4191 section 2.2: who is no default router has no preference.
    let preference = match scope.ra.preference {
        Preference::High if router > 0 => 0b01,
        Preference::Low if router > 0 => 0b11,
        Preference::High | Preference::Medium | Preference::Low => 0b00,
    };
    let flags = u8::from(scope.managed) << 7 | u8::from(scope.other) << 6 | preference << 3;
    let mut out = head(flags, router);
    if let Some(bytes) = scope.mtu {
        mtu(&mut out, bytes.into());
    }
    for (net, own) in &scope.prefixes {
        let flags = if *own { ON_LINK | OWN } else { ON_LINK };
        prefix(
            &mut out,
            *net,
            flags,
            scope.ra.valid_lifetime,
            scope.ra.preferred_lifetime,
        );
    }
    for net in &scope.routes {
        route(&mut out, *net, lifetime);
    }
    resolvers(&mut out, &scope.resolvers, lifetime);
    search(&mut out, &scope.domains, lifetime);
    if let Some(net) = scope.pref64 {
        pref64(&mut out, net, lifetime);
    }
    if let Some(uri) = &scope.portal {
        portal(&mut out, uri);
    }
    taken_back(&mut out, removed, now);
    Body(out)
}

/// The last word of a network: no router, no resolver, and addresses to be used no more.
pub(super) fn farewell(removed: &Removed, now: Time) -> Body {
    let mut out = head(0, 0);
    taken_back(&mut out, removed, now);
    Body(out)
}

/// What is no more, each by the lifetime that ends it. What does not fit had its turn: guests forget it by themselves.
fn taken_back(out: &mut Vec<u8>, removed: &Removed, now: Time) {
    for (item, until) in removed.iter() {
        let mut option = Vec::new();
        match item {
            // RFC 4862 section 5.5.4: existing addresses stay for what is under way, nothing new begins with them.
            Item::Prefix(net) => {
                let flags = match net.prefix_len() {
                    64 => ON_LINK | OWN,
                    _ => ON_LINK,
                };
                prefix(&mut option, *net, flags, left(until, now), 0);
            }
            Item::Own(net) if removed.contains(&Item::Prefix(*net)) => {}
            Item::Own(net) => prefix(&mut option, *net, OWN, left(until, now), 0),
            Item::Route(net) => route(&mut option, *net, 0),
            Item::Resolver(address) => resolvers(&mut option, &[*address], 0),
            Item::Domain(domain) => search(&mut option, std::slice::from_ref(domain), 0),
            Item::Pref64(net) => pref64(&mut option, *net, 0),
            Item::Portal => portal(&mut option, UNRESTRICTED),
            Item::Mtu => mtu(&mut option, ETHERNET_MTU),
        }
        if out.len() + option.len() <= ROOM {
            out.extend_from_slice(&option);
        }
    }
}

fn left(until: Time, now: Time) -> u32 {
    let left = until.0.saturating_sub(now.0) / 1000;
    u32::try_from(left).unwrap_or(u32::MAX)
}

/// RFC 4861 section 4.2: hop limit 64, the flags, and for how long we are a router.
fn head(flags: u8, lifetime: u16) -> Vec<u8> {
    let mut out = vec![ADVERTISEMENT, 0, 0, 0, 64, flags];
    out.extend_from_slice(&lifetime.to_be_bytes());
    out.extend_from_slice(&[0; 8]);
    out
}

/// RFC 4861 section 4.6.4.
fn mtu(out: &mut Vec<u8>, bytes: u32) {
    out.extend_from_slice(&[MTU, 1, 0, 0]);
    out.extend_from_slice(&bytes.to_be_bytes());
}

/// RFC 4861 section 4.6.2: on the link, for guests to make addresses from, or both.
fn prefix(out: &mut Vec<u8>, net: Ipv6Net, flags: u8, valid: u32, preferred: u32) {
    out.extend_from_slice(&[PREFIX, 4, net.prefix_len(), flags]);
    out.extend_from_slice(&valid.to_be_bytes());
    out.extend_from_slice(&preferred.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&net.network().octets());
}

/// RFC 4191 section 2.3, medium preference.
fn route(out: &mut Vec<u8>, net: Ipv6Net, lifetime: u32) {
    let len = match net.prefix_len() {
        0 => 1,
        1..=64 => 2,
        _ => 3,
    };
    out.extend_from_slice(&[ROUTE, len, net.prefix_len(), 0]);
    out.extend_from_slice(&lifetime.to_be_bytes());
    let octets = net.network().octets();
    out.extend_from_slice(&octets[..usize::from(len - 1) * 8]);
}

/// RFC 8106 section 5.1.
fn resolvers(out: &mut Vec<u8>, resolvers: &[Ipv6Addr], lifetime: u32) {
    for some in resolvers.chunks(100) {
        let len = u8::try_from(1 + 2 * some.len()).unwrap_or(u8::MAX);
        out.extend_from_slice(&[RESOLVERS, len, 0, 0]);
        out.extend_from_slice(&lifetime.to_be_bytes());
        out.extend(some.iter().flat_map(Ipv6Addr::octets));
    }
}

/// RFC 8106 section 5.2: names in DNS form, filled up to eight bytes.
fn search(out: &mut Vec<u8>, domains: &[DomainName], lifetime: u32) {
    // As many as one option holds.
    for some in domains.chunks(7) {
        let mut names: Vec<u8> = some.iter().flat_map(wire_name).collect();
        names.resize(names.len().next_multiple_of(8), 0);
        let len = u8::try_from(1 + names.len() / 8).unwrap_or(u8::MAX);
        out.extend_from_slice(&[SEARCH, len, 0, 0]);
        out.extend_from_slice(&lifetime.to_be_bytes());
        out.extend_from_slice(&names);
    }
}

/// RFC 8910 section 2.3: a URI, filled up to eight bytes.
fn portal(out: &mut Vec<u8>, uri: &str) {
    let mut data = uri.as_bytes().to_vec();
    data.resize((2 + data.len()).next_multiple_of(8) - 2, 0);
    let Ok(len) = u8::try_from((2 + data.len()) / 8) else {
        return;
    };
    out.extend_from_slice(&[PORTAL, len]);
    out.extend_from_slice(&data);
}

/// A name in DNS form: labels with their lengths, and the root.
pub(in crate::dhcp) fn wire_name(name: &DomainName) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.as_str().len() + 2);
    for label in name.as_str().trim_end_matches('.').split('.') {
        out.push(u8::try_from(label.len()).unwrap_or(0));
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

/// RFC 8781 section 4: thirteen bits of lifetime in units of eight seconds, three that say the prefix' length.
fn pref64(out: &mut Vec<u8>, net: Ipv6Net, lifetime: u32) {
    let Some(code) = PREF64_LENGTHS.iter().position(|l| *l == net.prefix_len()) else {
        return;
    };
    let lifetime = short(lifetime / 8) << 3 | u16::try_from(code).unwrap_or(0);
    out.extend_from_slice(&[PREF64, 2]);
    out.extend_from_slice(&lifetime.to_be_bytes());
    out.extend_from_slice(&net.network().octets()[..12]);
}

/// The lengths a translation prefix can have (RFC 6052 section 2.2), by their code.
const PREF64_LENGTHS: [u8; 6] = [96, 64, 56, 48, 40, 32];

fn short(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
