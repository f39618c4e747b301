//! The decision about one query: answer it, refuse it, or ask somebody else; and the reply, if it is ours to give.
//!
//! What is known of a name is `known`'s to say; here an alias is followed from name to name, and what was found is
//! written.

mod known;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::directory::{AnchorsId, Directory, GroupId, NetworkId, Served};
use super::wire::{IN, NameBuf, Owner, Query, Reply, Section, flag, rcode, rtype};
use super::zone::{Record, Zone};
use super::{LOCAL_TTL, NEGATIVE_TTL};
use known::{Authority, Data, Entry, Known, Primary};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The reply is written: data, or that there is none of this type.
    Local,
    /// The reply is written: the name does not exist.
    NoSuchName,
    /// Ask others.
    Forward(Ask),
    /// No.
    Refuse(Refusal),
}

/// Whom to ask, and about what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Whom.
    pub group: GroupId,
    /// Whether they may name private addresses.
    pub private: bool,
    /// What the signatures are checked with, if they are.
    pub check: Option<AnchorsId>,
    /// The name to ask about, if aliases of ours led to it: they are the reply so far, and what others say goes after
    /// them.
    pub alias: Option<Box<[u8]>>,
    /// Only if a link of the host has resolvers for just such names: else what is written is the whole reply.
    pub only_links: bool,
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

/// Longest chain of aliases.
const ALIASES: usize = 16;

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
        out.clear();
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
            from,
        };
        match page.known(query.name.as_bytes()) {
            Known::Refused(refusal) => Answer::Refuse(refusal),
            Known::Others(ask) => Answer::Forward(ask),
            Known::Here(entry) => page.write(entry, Reply::new(out, query, limit)),
        }
    }
}

/// One query on its way to a reply.
struct Page<'a> {
    directory: &'a Directory,
    own: &'a Served,
    query: &'a Query<'a>,
    from: &'a From,
}

impl<'a> Page<'a> {
    fn flags(&self) -> u16 {
        flag::AA | if self.own.zone.forward { flag::RA } else { 0 }
    }

    /// Data, an alias and what it leads to, or that there is nothing.
    fn write(&self, mut entry: Entry<'a>, mut reply: Reply<'_>) -> Answer {
        let mut passed: Vec<&[u8]> = Vec::new();
        loop {
            let some = self.records(&entry, &mut reply);
            let Some(cname) = entry.alias().filter(|_| !some) else {
                return self.last(&entry, some, reply);
            };
            let owner = self.owner(entry.name);
            reply.record(Section::Answer, owner, rtype::CNAME, cname.ttl, &cname.data);
            passed.push(entry.name);
            if passed.contains(&&*cname.data) {
                reply.finish(self.flags(), rcode::NO_ERROR);
                return Answer::Local;
            }
            // What is not followed to its end is not told to have nothing.
            if passed.len() > ALIASES {
                reply.finish(self.flags(), rcode::SERV_FAIL);
                return Answer::Local;
            }
            match self.known(&cname.data) {
                Known::Here(next) => entry = next,
                // RFC 1034 section 4.3.2: what is known is told, and the rest is asked of those who know.
                Known::Others(ask) => {
                    reply.finish(self.flags(), rcode::NO_ERROR);
                    let alias = Some(cname.data.clone());
                    return Answer::Forward(Ask { alias, ..ask });
                }
                Known::Refused(_) => {
                    reply.finish(self.flags(), rcode::NO_ERROR);
                    return Answer::Local;
                }
            }
        }
    }

    /// Ends a reply with what there is of the last name: RFC 6604 section 3 has its code.
    fn last(&self, entry: &Entry<'a>, some: bool, mut reply: Reply<'_>) -> Answer {
        if !some {
            let authority = &entry.authority;
            self.soa(Section::Authority, authority, entry.name, &mut reply);
        }
        let code = match entry.exists {
            true => rcode::NO_ERROR,
            false => rcode::NX_DOMAIN,
        };
        reply.finish(self.flags(), code);
        match (&entry.links, entry.exists) {
            (Some(ask), _) => {
                let aliased = entry.name != self.query.name.as_bytes();
                let alias = aliased.then(|| entry.name.into());
                Answer::Forward(Ask {
                    alias,
                    ..ask.clone()
                })
            }
            (None, true) => Answer::Local,
            (None, false) => Answer::NoSuchName,
        }
    }

    /// Writes the records that answer the type; whether there are any.
    fn records(&self, entry: &Entry<'a>, reply: &mut Reply<'_>) -> bool {
        let (owner, wanted) = (self.owner(entry.name), self.query.rtype);
        let mut some = false;
        let mut put = |rtype: u16, ttl: u32, data: &[u8]| {
            reply.record(Section::Answer, owner, rtype, ttl, data);
            some = true;
        };
        match entry.data {
            Data::Node(node) => {
                for record in node.records.iter().filter(|r| r.rtype == wanted) {
                    put(record.rtype, record.ttl, &record.data);
                }
                // RFC 8482 section 4.2: one small record stands for all, unless the name is an alias.
                if wanted == rtype::ANY {
                    match node.records.iter().find(|r| r.rtype == rtype::CNAME) {
                        Some(cname) => put(cname.rtype, cname.ttl, &cname.data),
                        None if node.records.is_empty() => {}
                        None => put(rtype::HINFO, LOCAL_TTL, b"\x07RFC8482\0"),
                    }
                }
            }
            Data::Pointer(to) => {
                if matches!(wanted, rtype::PTR | rtype::ANY) {
                    put(rtype::PTR, LOCAL_TTL, to);
                }
            }
            Data::Loopback => {
                let both = [
                    IpAddr::from(Ipv4Addr::LOCALHOST),
                    Ipv6Addr::LOCALHOST.into(),
                ];
                for record in both.map(Record::address) {
                    if wanted == record.rtype || wanted == rtype::ANY {
                        put(record.rtype, record.ttl, &record.data);
                    }
                }
            }
            Data::Nothing => {}
        }
        some || self.of_the_zone(entry, reply)
    }

    /// What the head of a zone has of itself.
    fn of_the_zone(&self, entry: &Entry<'a>, reply: &mut Reply<'_>) -> bool {
        let authority = &entry.authority;
        if authority.length != entry.name.len() {
            return false;
        }
        match self.query.rtype {
            rtype::SOA => self.soa(Section::Answer, authority, entry.name, reply),
            rtype::NS => {
                let ns = self.nameserver(authority, entry.name);
                let owner = self.owner(entry.name);
                reply.record(Section::Answer, owner, rtype::NS, LOCAL_TTL, ns.as_bytes());
            }
            rtype::ANY => {
                let (owner, data) = (self.owner(entry.name), b"\x07RFC8482\0");
                reply.record(Section::Answer, owner, rtype::HINFO, LOCAL_TTL, data);
            }
            _ => return false,
        }
        true
    }

    /// The SOA of a zone: in a negative answer it says how long that holds (RFC 2308 section 3).
    fn soa(
        &self,
        section: Section,
        authority: &Authority<'a>,
        name: &'a [u8],
        reply: &mut Reply<'_>,
    ) {
        let mut data = Vec::with_capacity(64);
        data.extend_from_slice(self.nameserver(authority, name).as_bytes());
        match authority.primary {
            Primary::Gateway(zone) => {
                let mailbox = NameBuf::join(b"hostmaster", zone.apex.as_bytes());
                data.extend_from_slice(mailbox.unwrap_or_else(NameBuf::root).as_bytes());
            }
            // RFC 6303 section 3.
            Primary::Itself => data.extend_from_slice(b"\x06nobody\x07invalid\0"),
        }
        for number in [self.directory.serial(), 3600, 600, 86400, NEGATIVE_TTL] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        let owner = self.owner(authority.apex(name));
        reply.record(section, owner, rtype::SOA, NEGATIVE_TTL, &data);
    }

    fn nameserver(&self, authority: &Authority<'a>, name: &'a [u8]) -> NameBuf {
        let of = |zone: &Zone| NameBuf::join(b"gateway", zone.apex.as_bytes());
        let server = match authority.primary {
            Primary::Gateway(zone) => of(zone),
            Primary::Itself => NameBuf::root().before(authority.apex(name)),
        };
        server.unwrap_or_else(NameBuf::root)
    }

    /// A name as the owner of a record: two bytes, if it is the end of what was asked.
    fn owner<'n>(&self, name: &'n [u8]) -> Owner<'n> {
        let asked = self.query.name.as_bytes();
        match asked.strip_suffix(name) {
            Some(front)
                if name.len() > 1 && std::ptr::eq(asked[front.len()..].as_ptr(), name.as_ptr()) =>
            {
                Owner::Tail(front.len())
            }
            _ => Owner::Name(name),
        }
    }
}
