//! What is known of a name, whoever asks in which words.
//!
//! The order is the policy: the asker's own machine; names of the own network; addresses; names of networks that packets
//! may reach; names that must never leave the machine; and only then others.

use super::super::directory::{GroupId, Served};
use super::super::reverse;
use super::super::wire::{NameBuf, flag, is_plain, is_under, labels, parent, rtype};
use super::super::zone::{Node, Record, Zone};
use super::{Ask, Page, Refusal};
use crate::types::IpNet;

/// What is known of a name.
pub(super) enum Known<'a> {
    /// All there is: it is ours, or nobody's.
    Here(Entry<'a>),
    /// Others know.
    Others(Ask),
    /// Others might, and are not asked.
    Refused(Refusal),
}

/// All there is of a name.
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) exists: bool,
    pub(super) data: Data<'a>,
    pub(super) authority: Authority<'a>,
    /// Who knows better, if the host has a link that does.
    pub(super) links: Option<Ask>,
}

/// The records of a name.
#[derive(Clone, Copy)]
pub(super) enum Data<'a> {
    Node(&'a Node),
    Pointer(&'a [u8]),
    Loopback,
    Nothing,
}

/// The zone that a name lies in: its last bytes, and whose it is.
#[derive(Clone, Copy)]
pub(super) struct Authority<'a> {
    pub(super) length: usize,
    pub(super) primary: Primary<'a>,
}

/// Who answers for a zone.
#[derive(Clone, Copy)]
pub(super) enum Primary<'a> {
    /// The gateway of a network.
    Gateway(&'a Zone),
    /// Each machine for itself: such a zone is empty (RFC 6303 section 3).
    Itself,
}

impl<'a> Authority<'a> {
    pub(super) fn apex(&self, name: &'a [u8]) -> &'a [u8] {
        &name[name.len().saturating_sub(self.length)..]
    }

    /// Of a name that a network's zone has: its domain, or that of its addresses; the root for plain names; for one of a foreign domain
    /// the name is a zone by itself.
    fn of(zone: &'a Zone, name: &[u8]) -> Self {
        let length = match zone.head(name) {
            Some(length) => length,
            None if is_plain(name) => 1,
            None => name.len(),
        };
        let primary = Primary::Gateway(zone);
        Self { length, primary }
    }
}

impl<'a> Entry<'a> {
    const fn some(name: &'a [u8], data: Data<'a>, authority: Authority<'a>) -> Self {
        Self {
            name,
            exists: true,
            data,
            authority,
            links: None,
        }
    }

    /// A name of an empty zone; its head is all that exists.
    fn empty(name: &'a [u8], apex: &[u8]) -> Self {
        let authority = Authority {
            length: apex.len(),
            primary: Primary::Itself,
        };
        Self {
            exists: name.len() == apex.len(),
            ..Self::some(name, Data::Nothing, authority)
        }
    }

    /// Where the name leads, if it is an alias.
    pub(super) fn alias(&self) -> Option<&'a Record> {
        match self.data {
            Data::Node(node) => node.records.iter().find(|r| r.rtype == rtype::CNAME),
            Data::Pointer(_) | Data::Loopback | Data::Nothing => None,
        }
    }
}

impl Zone {
    /// RFC 4592 section 3.3.1: the wildcard of the closest name that exists, and of no other. What lies under a longer
    /// name, of so many bytes, is somebody else's.
    fn wild(&self, name: &[u8], cut: usize) -> Option<&Node> {
        let mut up = parent(name);
        while let Some(encloser) = up.filter(|e| e.len() >= cut) {
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

/// Names that nobody else is to be asked about: RFC 6761 sections 6.2 and 6.4, 6762 section 22.1, 7686, 8375, 9462 and
/// 9476; and whether somebody can have them on a network of his own.
const SPECIAL: [(&[u8], bool); 7] = [
    (b"\x04test\0", true),
    (b"\x05local\0", true),
    (b"\x04home\x04arpa\0", true),
    (b"\x03alt\0", true),
    (b"\x07invalid\0", false),
    (b"\x05onion\0", false),
    (b"\x08resolver\x04arpa\0", false),
];

impl<'a> Page<'a> {
    pub(super) fn known(&self, name: &'a [u8]) -> Known<'a> {
        self.localhost(name)
            .or_else(|| self.own(name))
            .or_else(|| self.reverse(name))
            .or_else(|| self.neighbours(name))
            .or_else(|| self.special(name))
            .map_or_else(|| self.others(name), Known::Here)
    }

    fn sees(&self, other: &Served) -> bool {
        std::ptr::eq(self.own, other) || self.own.zone.looks_out && other.zone.seen
    }

    /// RFC 6761 section 6.3.
    fn localhost(&self, name: &'a [u8]) -> Option<Entry<'a>> {
        const LOCALHOST: &[u8] = b"\x09localhost\0";
        is_under(name, LOCALHOST).then(|| Entry {
            exists: true,
            data: Data::Loopback,
            ..Entry::empty(name, LOCALHOST)
        })
    }

    /// Whether the question is about a top-level domain itself, as those ask who check signatures.
    fn about_top_level(&self, name: &[u8]) -> bool {
        let apex = self.own.zone.apex.as_bytes();
        let checks = self.query.dnssec_ok() || self.query.flags & flag::CD != 0;
        let asked = match self.query.rtype {
            rtype::DS | rtype::DNSKEY => true,
            rtype::NS | rtype::SOA => checks,
            _ => false,
        };
        asked && is_plain(name) && name != apex
    }

    fn own(&self, name: &'a [u8]) -> Option<Entry<'a>> {
        let zone = &self.own.zone;
        if self.about_top_level(name) {
            return None;
        }
        let node = match self.exact(zone, name) {
            Some(node) => node,
            None => self.plain(name)?,
        };
        // What the document says of an address's name hides no guest's.
        if matches!(self.query.rtype, rtype::PTR | rtype::ANY)
            && node.records.iter().all(|r| r.rtype != rtype::PTR)
            && reverse::address_of(name).is_some_and(|a| zone.addresses.contains_key(&a))
        {
            return None;
        }
        let authority = Authority::of(zone, name);
        Some(Entry::some(name, Data::Node(node), authority))
    }

    /// What a zone has of a whole name, by itself or by a wildcard. A name that is only between others belongs to who
    /// has the closest domain around it.
    fn exact(&self, zone: &'a Zone, name: &[u8]) -> Option<&'a Node> {
        match zone.nodes.get(name) {
            Some(node) if !node.records.is_empty() => Some(node),
            Some(node) => (self.cut(name) <= zone.apex.as_bytes().len()).then_some(node),
            None if zone.wildcards => zone.wild(name, self.cut(name)),
            None => None,
        }
    }

    /// A name without a dot is meant to lie in the domain.
    fn plain(&self, name: &[u8]) -> Option<&'a Node> {
        let zone = &self.own.zone;
        let label = is_plain(name).then(|| labels(name).next())??;
        let full = NameBuf::join(label, zone.apex.as_bytes())?;
        self.exact(zone, full.as_bytes())
    }

    /// The length of the closest domain around a name with resolvers or a network of its own: that is more than a
    /// wildcard above it.
    fn cut(&self, name: &[u8]) -> usize {
        let network = self.directory.around(name).next();
        let network = network.map_or(0, |n| n.zone.apex.as_bytes().len());
        network.max(self.own.named_route(name).unwrap_or(0))
    }

    /// Addresses of our networks, and such as mean something only where they are: never asked elsewhere.
    fn reverse(&self, name: &'a [u8]) -> Option<Entry<'a>> {
        let (part, offset) = reverse::closest(name)?;
        let whole = part.prefix_len() == part.max_prefix_len();
        let address = (whole && offset == 0).then(|| part.addr());
        let holding = self.directory.holding(&part);
        let pointer = |served: &'a Served| {
            let to = served.zone.addresses.get(&address?)?;
            Some(Data::Pointer(to.as_bytes()))
        };
        let Some((served, subnet)) = holding else {
            let Some(data) = pointer(self.own) else {
                return self.empty_reverse(name, &part, offset);
            };
            let authority = Authority::of(&self.own.zone, name);
            return Some(Entry::some(name, data, authority));
        };
        // Who may not see a network is not told whose addresses these are.
        let seen = Some(served).filter(|served| self.sees(served));
        let data = pointer(self.own).or_else(|| pointer(seen?));
        let authority = Authority {
            length: reverse::suffix(name, reverse::zone_labels(&subnet) + 2).len(),
            primary: Primary::Gateway(&seen.unwrap_or(self.own).zone),
        };
        Some(Entry {
            exists: data.is_some() || offset == 0 && !whole,
            ..Entry::some(name, data.unwrap_or(Data::Nothing), authority)
        })
    }

    /// Zones that every resolver has, empty (RFC 6303 section 4).
    fn empty_reverse(&self, name: &'a [u8], part: &IpNet, offset: usize) -> Option<Entry<'a>> {
        let (zone, kind) = reverse::empty_zone(part)?;
        let apex = reverse::suffix(name, reverse::zone_labels(&zone) + 2);
        let private = kind == reverse::Empty::Private;
        let named = self.own.named_route(name).is_some();
        let asked = named || private && self.own.zone.private_reverse;
        if asked || self.asks_the_parent(name, apex) {
            return None;
        }
        let mut entry = Entry::empty(name, apex);
        let loopback = zone.network().is_loopback();
        if loopback && offset == 0 && part.prefix_len() == part.max_prefix_len() {
            entry.data = Data::Pointer(b"\x09localhost\0");
            entry.exists = true;
        }
        // A name on the way to one of ours exists (RFC 8020).
        let mut within = self.directory.within(part);
        entry.exists |= offset == 0 && within.any(|served| self.sees(served));
        entry.links = private.then(|| self.links(name)).flatten();
        Some(entry)
    }

    /// Whether a zone is signed is its parent's to say (RFC 4035 section 3.1.4.1).
    fn asks_the_parent(&self, name: &[u8], apex: &[u8]) -> bool {
        self.query.rtype == rtype::DS && name == apex && self.own.route(name).is_some()
    }

    /// Names in the domain of some network, ours or another.
    fn neighbours(&self, name: &'a [u8]) -> Option<Entry<'a>> {
        let delegated = self.own.named_route(name).unwrap_or(0);
        let keeps = |served: &Served| {
            let (zone, own) = (&served.zone, std::ptr::eq(self.own, served));
            let apex = zone.apex.as_bytes();
            let inside = apex.len() > 1 && is_under(name, apex);
            inside && (zone.local_only || own && self.from.host) && delegated <= apex.len()
        };
        let around = || self.directory.around(name);
        let seen = || around().filter(|other| self.sees(other));
        for other in seen() {
            if let Some(node) = self.exact(&other.zone, name) {
                let authority = Authority::of(&other.zone, name);
                return Some(Entry::some(name, Data::Node(node), authority));
            }
        }
        // The closest that may be told of.
        let all = seen().chain([self.own]).chain(around());
        let keeper = all.into_iter().find(|served| keeps(served))?;
        let authority = match self.sees(keeper) {
            true => Authority::of(&keeper.zone, name),
            false => self.root(),
        };
        Some(Entry {
            exists: false,
            ..Entry::some(name, Data::Nothing, authority)
        })
    }

    /// The root as we answer for it: what a plain name is, and who is hidden.
    const fn root(&self) -> Authority<'a> {
        Authority {
            length: 1,
            primary: Primary::Gateway(&self.own.zone),
        }
    }

    /// Names that are nobody's to ask about, and plain names.
    fn special(&self, name: &'a [u8]) -> Option<Entry<'a>> {
        let found = SPECIAL.iter().find(|(zone, _)| is_under(name, zone));
        let named = self.own.named_route(name).is_some();
        if let Some((zone, can_be_had)) = found {
            let shared = |other: &Served| self.sees(other) && !other.zone.local_only;
            let had = *can_be_had && (named || self.directory.around(name).any(shared));
            if had || self.asks_the_parent(name, zone) {
                return None;
            }
            let links = can_be_had.then(|| self.links(name)).flatten();
            return Some(Entry {
                links,
                ..Entry::empty(name, zone)
            });
        }
        let leak = is_plain(name) && !self.about_top_level(name) && !named;
        leak.then(|| Entry {
            exists: false,
            ..Entry::some(name, Data::Nothing, self.root())
        })
    }

    /// The host's resolvers, if they are asked about such a name, for those of them that a link has for it alone.
    fn links(&self, name: &[u8]) -> Option<Ask> {
        match self.others(name) {
            Known::Others(ask) if ask.group == GroupId::HOST => Some(Ask {
                only_links: true,
                ..ask
            }),
            Known::Others(_) | Known::Refused(_) | Known::Here(_) => None,
        }
    }

    fn others(&self, name: &[u8]) -> Known<'a> {
        let own = self.own;
        match own.route(name) {
            None => Known::Refused(Refusal::NoForward),
            Some(_) if self.query.flags & flag::RD == 0 => Known::Refused(Refusal::NotRecursive),
            Some(group) => Known::Others(Ask {
                group,
                private: !own.zone.rebind_protection || own.named_route(name).is_some(),
                // RFC 4035 section 3.2.2: who sets CD checks himself.
                check: (own.checked(name)).filter(|_| self.query.flags & flag::CD == 0),
                alias: None,
                only_links: false,
            }),
        }
    }
}
