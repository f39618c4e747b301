//! The decision about one query: answer it, refuse it, or ask somebody else.
//!
//! The order is the policy: names of the own network; its addresses; names of networks that packets may reach; names
//! that must never leave the machine; and only then an upstream.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::directory::{AnchorsId, Directory, GroupId, NetworkId, Served};
use super::wire::{
    IN, NameBuf, Owner, Query, Reply, Section, flag, is_plain, is_under, labels, parent, rcode,
    rtype,
};
use super::zone::{Node, Record, Zone};
use super::{LOCAL_TTL, NEGATIVE_TTL, reverse};
use crate::types::IpNet;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct From {
    /// The network whose gateway was asked.
    pub network: NetworkId,
    /// The asker.
    pub address: IpAddr,
    /// Whether the asker is the host itself: what we know nothing of, it asks elsewhere.
    pub host: bool,
}

/// What to do with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The reply is written: data, or that there is none of this type.
    Local,
    /// The reply is written: the name does not exist.
    NoSuchName,
    /// Ask these upstreams.
    Forward {
        /// Which.
        group: GroupId,
        /// Whether they may name private addresses.
        private: bool,
        /// What the signatures are checked with, if they are.
        check: Option<AnchorsId>,
    },
    /// No.
    Refuse(Refusal),
}

/// Why a query is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The network is not served (any more).
    NotServed,
    /// Another class than IN, a zone transfer, a key exchange.
    Unsupported,
    /// An EDNS version that nobody has defined.
    EdnsVersion,
    /// The network has nobody to ask.
    NoForward,
    /// A name of others, without the wish for recursion.
    NotRecursive,
}

/// Longest chain of aliases within a zone.
const ALIASES: usize = 8;

impl Directory {
    /// Decides about a query, and writes the reply into `out` if it is ours to give. `limit` is the largest reply
    /// that the way back can carry.
    pub fn answer(
        &self,
        from: &From,
        query: &Query<'_>,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Answer {
        let Some(own) = self.served(from.network) else {
            return Answer::Refuse(Refusal::NotServed);
        };
        if query.edns.is_some_and(|e| e.version != 0) {
            return Answer::Refuse(Refusal::EdnsVersion);
        }
        let transfer =
            (rtype::TKEY..rtype::ANY).contains(&query.rtype) || query.rtype == rtype::OPT;
        if query.class != IN || transfer {
            return Answer::Refuse(Refusal::Unsupported);
        }
        let page = Page {
            directory: self,
            own,
            query,
            limit,
        };
        let name = query.name.as_bytes();
        if let Some(node) = own.zone.find(name) {
            return page.found(&own.zone, node, out);
        }
        page.reverse(name, out)
            .or_else(|| page.neighbours(name, from, out))
            .or_else(|| page.special(name, out))
            .unwrap_or_else(|| match own.route(name) {
                None => Answer::Refuse(Refusal::NoForward),
                Some(_) if query.flags & flag::RD == 0 => Answer::Refuse(Refusal::NotRecursive),
                Some(group) => Answer::Forward {
                    group,
                    private: !own.zone.rebind_protection || own.named_route(name).is_some(),
                    // RFC 4035 section 3.2.2: who sets CD checks himself.
                    check: (own.checked(name)).filter(|_| query.flags & flag::CD == 0),
                },
            })
    }
}

impl Zone {
    fn find(&self, name: &[u8]) -> Option<&Node> {
        let exact = self.nodes.get(name);
        exact
            .or_else(|| self.plain(name))
            .or_else(|| self.wild(name))
    }

    /// A name without a dot is meant to lie in the domain.
    fn plain(&self, name: &[u8]) -> Option<&Node> {
        let label = is_plain(name).then(|| labels(name).next())??;
        self.nodes
            .get(NameBuf::join(label, self.apex.as_bytes())?.as_bytes())
    }

    /// RFC 4592 section 3.3.1: the wildcard of the closest name that exists, and of no other.
    fn wild(&self, name: &[u8]) -> Option<&Node> {
        if !self.wildcards {
            return None;
        }
        let mut up = parent(name);
        while let Some(encloser) = up {
            let wild = NameBuf::join(b"*", encloser);
            let wild = wild.and_then(|wild| self.nodes.get(wild.as_bytes()));
            if wild.is_some() || self.nodes.contains_key(encloser) {
                return wild;
            }
            up = parent(encloser);
        }
        None
    }
}

/// One query on its way to a reply.
struct Page<'a> {
    directory: &'a Directory,
    own: &'a Served,
    query: &'a Query<'a>,
    limit: usize,
}

impl<'a> Page<'a> {
    fn sees(&self, other: &Served) -> bool {
        std::ptr::eq(self.own, other) || self.own.zone.looks_out && other.zone.seen
    }

    fn flags(&self) -> u16 {
        flag::AA | if self.own.zone.forward { flag::RA } else { 0 }
    }

    fn reply<'o>(&'o self, out: &'o mut Vec<u8>) -> Reply<'o> {
        Reply::new(out, self.query, self.limit)
    }

    /// Data, an alias and what it leads to, or NODATA.
    fn found<'z>(&self, zone: &'z Zone, mut node: &'z Node, out: &mut Vec<u8>) -> Answer {
        let mut reply = self.reply(out);
        let mut alias: Option<&[u8]> = None;
        let mut some = false;
        for _ in 0..ALIASES {
            let owner = alias.map_or(Owner::Question, Owner::Name);
            for record in matching(node, self.query.rtype) {
                reply.record(
                    Section::Answer,
                    owner,
                    record.rtype,
                    record.ttl,
                    &record.data,
                );
                some = true;
            }
            let Some(cname) = node.records.iter().find(|r| r.rtype == rtype::CNAME) else {
                break;
            };
            if self.query.rtype == rtype::CNAME || self.query.rtype == rtype::ANY {
                break;
            }
            reply.record(Section::Answer, owner, rtype::CNAME, cname.ttl, &cname.data);
            some = true;
            match zone.find(&cname.data) {
                Some(target) => (node, alias) = (target, Some(&*cname.data)),
                None => break,
            }
        }
        if !some {
            self.apex_or_nothing(zone, &mut reply);
        }
        reply.finish(self.flags(), rcode::NO_ERROR);
        Answer::Local
    }

    /// The name exists without records of this type: the domain's own SOA and NS, RFC 8482's answer to ANY, or NODATA.
    fn apex_or_nothing(&self, zone: &Zone, reply: &mut Reply<'_>) {
        let name = self.query.name.as_bytes();
        let apex = zone.apex.as_bytes();
        match self.query.rtype {
            rtype::ANY => {
                let minimal = b"\x07RFC8482\0";
                reply.record(
                    Section::Answer,
                    Owner::Question,
                    rtype::HINFO,
                    LOCAL_TTL,
                    minimal,
                );
            }
            rtype::SOA if name == apex => {
                let soa = self.soa(zone);
                reply.record(
                    Section::Answer,
                    Owner::Question,
                    rtype::SOA,
                    NEGATIVE_TTL,
                    &soa,
                );
            }
            rtype::NS if name == apex => {
                if let Some(ns) = NameBuf::join(b"gateway", apex) {
                    reply.record(
                        Section::Answer,
                        Owner::Question,
                        rtype::NS,
                        LOCAL_TTL,
                        ns.as_bytes(),
                    );
                }
            }
            _ => self.authority(zone, reply),
        }
    }

    /// The SOA of a negative answer (RFC 2308 section 3). A plain name outside any domain has none.
    fn authority(&self, zone: &Zone, reply: &mut Reply<'_>) {
        let (name, apex) = (self.query.name.as_bytes(), zone.apex.as_bytes());
        if apex.len() > 1 && is_under(name, apex) {
            let owner = Owner::Tail(name.len() - apex.len());
            reply.record(
                Section::Authority,
                owner,
                rtype::SOA,
                NEGATIVE_TTL,
                &self.soa(zone),
            );
        }
    }

    fn soa(&self, zone: &Zone) -> Vec<u8> {
        let mut data = Vec::with_capacity(64);
        for label in [b"gateway".as_slice(), b"hostmaster"] {
            let name = NameBuf::join(label, zone.apex.as_bytes()).unwrap_or_else(NameBuf::root);
            data.extend_from_slice(name.as_bytes());
        }
        for number in [self.directory.serial(), 3600, 600, 86400, NEGATIVE_TTL] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        data
    }

    /// Addresses of our networks: what is in a subnet of ours is never asked elsewhere.
    fn reverse(&self, name: &[u8], out: &mut Vec<u8>) -> Option<Answer> {
        let part = reverse::network_of(name)?;
        let address = (part.prefix_len() == part.max_prefix_len()).then(|| part.addr());
        if let Some(owner) = address.and_then(|a| self.own.zone.addresses.get(&a)) {
            return Some(self.pointer(owner.as_bytes(), out));
        }
        let Some((served, subnet)) = self.directory.holding(&part) else {
            return self.unroutable(&part, out);
        };
        let visible = self.sees(served);
        let owner = address.filter(|_| visible);
        let owner = owner.and_then(|a| served.zone.addresses.get(&a));
        if let Some(owner) = owner {
            return Some(self.pointer(owner.as_bytes(), out));
        }
        let mut reply = self.reply(out);
        let kept = reverse::zone_labels(&subnet) + 2;
        let dropped = labels(name).count().saturating_sub(kept);
        let offset = labels(name).take(dropped).map(|l| l.len() + 1).sum();
        let soa = self.soa(&served.zone);
        if self.query.rtype == rtype::SOA && offset == 0 {
            reply.record(
                Section::Answer,
                Owner::Question,
                rtype::SOA,
                NEGATIVE_TTL,
                &soa,
            );
        } else {
            reply.record(
                Section::Authority,
                Owner::Tail(offset),
                rtype::SOA,
                NEGATIVE_TTL,
                &soa,
            );
        }
        let code = if address.is_some() {
            rcode::NX_DOMAIN
        } else {
            rcode::NO_ERROR
        };
        reply.finish(self.flags(), code);
        Some(if address.is_some() {
            Answer::NoSuchName
        } else {
            Answer::Local
        })
    }

    fn pointer(&self, owner: &[u8], out: &mut Vec<u8>) -> Answer {
        let mut reply = self.reply(out);
        if self.query.rtype == rtype::PTR || self.query.rtype == rtype::ANY {
            reply.record(
                Section::Answer,
                Owner::Question,
                rtype::PTR,
                LOCAL_TTL,
                owner,
            );
        }
        reply.finish(self.flags(), rcode::NO_ERROR);
        Answer::Local
    }

    /// RFC 6303 sections 4.2 and 4.3: addresses that mean something else on every machine.
    fn unroutable(&self, part: &IpNet, out: &mut Vec<u8>) -> Option<Answer> {
        if part.prefix_len() < 8 {
            return None;
        }
        let empty = match part.network() {
            IpAddr::V4(v4) => {
                v4.is_loopback()
                    || v4.octets()[0] == 0
                    || v4.is_broadcast()
                    || v4.is_link_local() && part.prefix_len() >= 16
            }
            IpAddr::V6(v6) => {
                let whole = part.prefix_len() == 128;
                whole && (v6.is_loopback() || v6.is_unspecified())
                    || v6.is_unicast_link_local() && part.prefix_len() >= 12
            }
        };
        if !empty {
            return None;
        }
        if part.network().is_loopback() && part.prefix_len() == part.max_prefix_len() {
            return Some(self.pointer(b"\x09localhost\0", out));
        }
        Some(self.no_such_name(None, out))
    }

    /// Names in the domain of some network, ours or another.
    fn neighbours(&self, name: &[u8], from: &From, out: &mut Vec<u8>) -> Option<Answer> {
        let delegated = self.own.named_route(name).unwrap_or(0);
        let keeps = |served: &Served| {
            let (zone, own) = (&served.zone, std::ptr::eq(self.own, served));
            let apex = zone.apex.as_bytes();
            let inside = apex.len() > 1 && is_under(name, apex);
            inside && (zone.local_only || own && from.host) && delegated <= apex.len()
        };
        let mut keeper = Some(self.own).filter(|own| keeps(own));
        for other in self.directory.around(name) {
            if self.sees(other)
                && let Some(node) = other.zone.find(name)
            {
                return Some(self.found(&other.zone, node, out));
            }
            keeper = keeper.or_else(|| Some(other).filter(|other| keeps(other)));
        }
        keeper.map(|served| self.no_such_name(Some(&served.zone), out))
    }

    /// Names that are nobody's to ask about (RFC 6761, 7686, 9462), and plain names.
    fn special(&self, name: &[u8], out: &mut Vec<u8>) -> Option<Answer> {
        let local = |zone: &[u8]| is_under(name, zone);
        if local(b"\x09localhost\0") {
            return Some(self.localhost(out));
        }
        if local(b"\x07invalid\0") || local(b"\x05onion\0") || local(b"\x08resolver\x04arpa\0") {
            return Some(self.no_such_name(None, out));
        }
        let about_the_root_zone = matches!(
            self.query.rtype,
            rtype::NS | rtype::SOA | rtype::DS | rtype::DNSKEY
        );
        let leak = is_plain(name) && !about_the_root_zone && self.own.named_route(name).is_none();
        leak.then(|| self.no_such_name(None, out))
    }

    fn localhost(&self, out: &mut Vec<u8>) -> Answer {
        let mut reply = self.reply(out);
        for address in [
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ] {
            let record = Record::address(address);
            if record.rtype == self.query.rtype {
                reply.record(
                    Section::Answer,
                    Owner::Question,
                    record.rtype,
                    record.ttl,
                    &record.data,
                );
            }
        }
        reply.finish(self.flags(), rcode::NO_ERROR);
        Answer::Local
    }

    fn no_such_name(&self, zone: Option<&Zone>, out: &mut Vec<u8>) -> Answer {
        let mut reply = self.reply(out);
        if let Some(zone) = zone {
            self.authority(zone, &mut reply);
        }
        reply.finish(self.flags(), rcode::NX_DOMAIN);
        Answer::NoSuchName
    }
}

/// The records that answer a type. ANY gets none of them: RFC 8482 section 4.2 answers with a single small record.
fn matching(node: &Node, rtype: u16) -> impl Iterator<Item = &Record> {
    node.records.iter().filter(move |r| r.rtype == rtype)
}
