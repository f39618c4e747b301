//! The bytes: a solicitation taken in, an advertisement and its options written out.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use super::{LIFETIME, PREFERRED, Scope, VALID};
use crate::dhcp::ip6::{Envelope, ICMP, Packet, seal};
use crate::lease::Time;
use crate::types::{DomainName, Ipv6Net, Mac};

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const SOURCE_LINK_LAYER: u8 = 1;
const PREFIX: u8 = 3;
const MTU: u8 = 5;
const ROUTE: u8 = 24;
const RESOLVERS: u8 = 25;
const SEARCH: u8 = 31;
const PREF64: u8 = 38;

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

/// What a scope says, with the prefixes that are on their way out.
pub(super) fn body(scope: &Scope, removed: &BTreeMap<Ipv6Net, Time>, now: Time) -> Body {
    let flags = u8::from(scope.managed) << 7 | u8::from(scope.other) << 6;
    let mut out = head(flags, if scope.is_router { LIFETIME } else { 0 });
    if let Some(mtu) = scope.mtu {
        out.extend_from_slice(&[MTU, 1, 0, 0]);
        out.extend_from_slice(&u32::from(mtu).to_be_bytes());
    }
    for (net, autonomous) in &scope.prefixes {
        prefix(&mut out, *net, *autonomous, VALID, PREFERRED);
    }
    deprecated(&mut out, removed, now);
    for net in &scope.routes {
        route(&mut out, *net, LIFETIME);
    }
    resolvers(&mut out, &scope.resolvers, LIFETIME);
    if let Some(domain) = &scope.domain {
        search(&mut out, domain, LIFETIME);
    }
    if let Some(net) = scope.pref64 {
        pref64(&mut out, net);
    }
    Body(out)
}

/// The last word of a network: no router, no resolver, and addresses to be used no more.
pub(super) fn farewell(scope: &Scope, removed: &BTreeMap<Ipv6Net, Time>, now: Time) -> Body {
    let mut out = head(0, 0);
    deprecated(&mut out, removed, now);
    for net in &scope.routes {
        route(&mut out, *net, 0);
    }
    resolvers(&mut out, &scope.resolvers, 0);
    if let Some(domain) = &scope.domain {
        search(&mut out, domain, 0);
    }
    Body(out)
}

/// RFC 4861 section 4.2: hop limit 64, the flags, and for how long we are a router.
fn head(flags: u8, lifetime: u32) -> Vec<u8> {
    let mut out = vec![ADVERTISEMENT, 0, 0, 0, 64, flags];
    out.extend_from_slice(&short(lifetime).to_be_bytes());
    out.extend_from_slice(&[0; 8]);
    out
}

/// RFC 4861 section 4.6.2: on the link, and perhaps for guests to make addresses from.
fn prefix(out: &mut Vec<u8>, net: Ipv6Net, autonomous: bool, valid: u32, preferred: u32) {
    out.extend_from_slice(&[PREFIX, 4, net.prefix_len()]);
    out.push(0x80 | u8::from(autonomous) << 6);
    out.extend_from_slice(&valid.to_be_bytes());
    out.extend_from_slice(&preferred.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&net.network().octets());
}

/// RFC 4862 section 5.5.4: existing addresses stay for what is under way, nothing new begins with them.
fn deprecated(out: &mut Vec<u8>, removed: &BTreeMap<Ipv6Net, Time>, now: Time) {
    for (net, until) in removed {
        let left = until.0.saturating_sub(now.0) / 1000;
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        prefix(out, *net, net.prefix_len() == 64, left, 0);
    }
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
fn search(out: &mut Vec<u8>, domain: &DomainName, lifetime: u32) {
    let mut names = wire_name(domain);
    names.resize(names.len().next_multiple_of(8), 0);
    let len = u8::try_from(1 + names.len() / 8).unwrap_or(u8::MAX);
    out.extend_from_slice(&[SEARCH, len, 0, 0]);
    out.extend_from_slice(&lifetime.to_be_bytes());
    out.extend_from_slice(&names);
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
fn pref64(out: &mut Vec<u8>, net: Ipv6Net) {
    let Some(code) = PREF64_LENGTHS.iter().position(|l| *l == net.prefix_len()) else {
        return;
    };
    let lifetime = short(LIFETIME / 8) << 3 | u16::try_from(code).unwrap_or(0);
    out.extend_from_slice(&[PREF64, 2]);
    out.extend_from_slice(&lifetime.to_be_bytes());
    out.extend_from_slice(&net.network().octets()[..12]);
}

/// The lengths a translation prefix can have (RFC 6052 section 2.2), by their code.
const PREF64_LENGTHS: [u8; 6] = [96, 64, 56, 48, 40, 32];

fn short(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
