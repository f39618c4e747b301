//! What one network's gateway answers for, apart from leases: a function of the `World`.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};

use super::wire::{NameBuf, is_under, parent, rtype};
use super::{LOCAL_TTL, reverse};
use crate::model::{Dns, Dnssec, Forward, GATEWAY, Network, RaMode, TrustAnchor, Upstream, World};
use crate::types::{DomainName, IpNet, Mac, NetworkName};

/// An owned name in lower-case wire form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WireName(Box<[u8]>);

impl Borrow<[u8]> for WireName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl std::convert::From<&NameBuf> for WireName {
    fn from(name: &NameBuf) -> Self {
        Self(name.as_bytes().into())
    }
}

impl WireName {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One record without its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) rtype: u16,
    pub(super) ttl: u32,
    pub(super) data: Box<[u8]>,
}

impl Record {
    pub(super) fn address(address: IpAddr) -> Self {
        let (rtype, data): (u16, Box<[u8]>) = match address {
            IpAddr::V4(v4) => (rtype::A, Box::new(v4.octets())),
            IpAddr::V6(v6) => (rtype::AAAA, Box::new(v6.octets())),
        };
        Self {
            rtype,
            ttl: LOCAL_TTL,
            data,
        }
    }
}

/// Everything a name has. A name that exists only because others lie under it has no records (RFC 4592 section 2.2.2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Node {
    pub(super) records: Vec<Record>,
    pub(super) claim: Claim,
    /// Whether it exists without leases too.
    pub(super) stays: bool,
}

/// Who says which addresses a name has. Records of other types claim nothing: a `TXT` takes no guest's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Claim {
    /// Nobody: whose lease comes with the name.
    #[default]
    Free,
    /// A port or a reservation: the same guest's further addresses belong to it.
    Guest,
    /// The document, by an address or an alias (or the name is the gateway's): nobody else.
    Document,
}

/// Whether an address is the one that a guest makes from its MAC, where guests make their own.
fn is_made(network: &Network, mac: Mac, address: Ipv6Addr) -> bool {
    const IDENTIFIER: u128 = u64::MAX as u128;
    let mut subnets = network.subnets6.iter();
    let here = subnets.any(|s| s.dhcp.mode != RaMode::Stateful && s.address.contains(&address));
    here && address.to_bits() & IDENTIFIER == mac.link_local().to_bits() & IDENTIFIER
}

/// The names of one network that do not depend on leases, and the rules for all other names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    pub(super) network: NetworkName,
    /// The domain; the root if the network has none (then its names are plain).
    pub(super) apex: WireName,
    pub(super) local_only: bool,
    /// Whether guests of other networks may see its names: those that packets may reach.
    pub(super) seen: bool,
    /// Whether its guests may see names of other networks.
    pub(super) looks_out: bool,
    pub(super) subnets: Vec<IpNet>,
    gateways: Vec<IpAddr>,
    pub(super) forward: bool,
    pub(super) upstreams: Vec<Upstream>,
    /// Whether upstreams outside the named domains may not name private addresses.
    pub(super) rebind_protection: bool,
    /// Whether names of private addresses that are none of ours may be asked of others.
    pub(super) private_reverse: bool,
    /// Where signatures of others' names are checked: what to begin with beside the built-in keys.
    pub(super) anchors: Option<Vec<TrustAnchor>>,
    pub(super) nodes: HashMap<WireName, Node>,
    pub(super) addresses: HashMap<IpAddr, WireName>,
    pub(super) wildcards: bool,
}

/// In order, so that networks that trust the same keys share what was checked.
fn anchors(dns: &Dns) -> Option<Vec<TrustAnchor>> {
    let mut anchors = match dns.dnssec {
        Dnssec::Off => return None,
        Dnssec::Validate => dns.trust_anchors.clone(),
    };
    anchors.sort();
    anchors.dedup();
    Some(anchors)
}

impl Zone {
    /// The zone of a network; `None` if there is no such network or its gateway answers no DNS.
    #[must_use]
    pub fn of(world: &World, name: &NetworkName) -> Option<Self> {
        let network = world.networks.get(name)?;
        if !network.dns.enabled || !network.owns_bridge() {
            return None;
        }
        let mut zone = Self::empty(network)?;
        zone.add_documented(network);
        zone.add_records(network);
        // Before the guests: it is also who the zone's SOA names.
        for label in GATEWAY {
            let gateways = zone.gateways.clone();
            zone.give(&label.parse().ok()?, &gateways, Claim::Document);
        }
        zone.add_guests(world, network);
        zone.add_ancestors();
        Some(zone)
    }

    /// The network it is of.
    #[must_use]
    pub const fn network(&self) -> &NetworkName {
        &self.network
    }

    /// Where it is served.
    #[must_use]
    pub fn gateways(&self) -> &[IpAddr] {
        &self.gateways
    }

    /// The domains it can be asked about: its own, and that of each subnet's addresses which lies on whole labels (one
    /// that does not would claim its neighbours' addresses). None for a network whose names are plain.
    #[must_use]
    pub fn domains(&self) -> Vec<String> {
        if self.apex.as_bytes().len() <= 1 {
            return Vec::new();
        }
        let own = std::iter::once(super::wire::text(self.apex.as_bytes()));
        own.chain(self.subnets.iter().filter_map(super::reverse::zone_of))
            .collect()
    }

    /// A name of the model in wire form; a plain one lies in the domain.
    pub(super) fn absolute(&self, name: &DomainName) -> Option<NameBuf> {
        let bare = NameBuf::from_text(name.as_str())?;
        if name.as_str().contains('.') {
            return Some(bare);
        }
        NameBuf::join(name.as_str().as_bytes(), self.apex.as_bytes())
    }

    /// The gateway answers to the host's own name too.
    pub(super) fn add_host(&mut self, host: &DomainName) {
        let gateways = self.gateways.clone();
        self.give(host, &gateways, Claim::Document);
    }

    /// Whether this name has this address.
    pub(super) fn has(&self, name: &[u8], address: IpAddr) -> bool {
        let node = self.nodes.get(name);
        node.is_some_and(|n| n.records.contains(&Record::address(address)))
    }

    fn empty(network: &Network) -> Option<Self> {
        let (seen, looks_out) = match &network.forward {
            Forward::Routed { .. } | Forward::Open => (true, true),
            Forward::Nat(_) => (false, true),
            Forward::Isolated | Forward::Bridge => (false, false),
        };
        let apex = match &network.domain {
            Some(domain) => NameBuf::from_text(domain.as_str())?,
            None => NameBuf::root(),
        };
        let v4 = network.subnets4.iter().map(|s| IpNet::V4(s.address));
        let v6 = network.subnets6.iter().map(|s| IpNet::V6(s.address));
        let own: Vec<IpNet> = v4.chain(v6).collect();
        let dns = &network.dns;
        Some(Self {
            network: network.name.clone(),
            apex: (&apex).into(),
            local_only: network.local_only,
            seen,
            looks_out,
            gateways: own.iter().map(IpNet::addr).collect(),
            subnets: own.iter().map(IpNet::trunc).collect(),
            // An isolated network never learns the host's resolvers; it may name its own.
            forward: dns.forward && (looks_out || !dns.upstreams.is_empty()),
            upstreams: dns.upstreams.clone(),
            rebind_protection: dns.rebind_protection,
            private_reverse: dns.private_reverse,
            anchors: anchors(dns),
            nodes: HashMap::new(),
            addresses: HashMap::new(),
            wildcards: false,
        })
    }

    fn add_documented(&mut self, network: &Network) {
        for host in &network.dns.hosts {
            for (i, name) in host.names.iter().enumerate() {
                if let Some(full) = self.absolute(name) {
                    self.document(&full, Record::address(host.ip));
                }
                if i == 0 {
                    self.point_back(host.ip, name);
                }
            }
        }
    }

    fn add_records(&mut self, network: &Network) {
        for record in &network.dns.records {
            let bare = NameBuf::from_text(record.name.name.as_str());
            let owner = match record.name.is_relative() {
                true => bare.and_then(|name| name.before(self.apex.as_bytes())),
                false => bare,
            };
            let owner = match record.name.wildcard {
                true => owner.and_then(|name| NameBuf::join(b"*", name.as_bytes())),
                false => owner,
            };
            let data = record.data.wire(network.domain.as_ref());
            if let (Some(owner), Some(data)) = (owner, data) {
                self.wildcards |= record.name.wildcard;
                self.document(
                    &owner,
                    Record {
                        rtype: record.data.code(),
                        ttl: record.ttl.unwrap_or(LOCAL_TTL),
                        data: data.into(),
                    },
                );
            }
        }
    }

    fn add_guests(&mut self, world: &World, network: &Network) {
        let mut given: BTreeMap<DomainName, Vec<IpAddr>> = BTreeMap::new();
        for port in world.ports_of(&network.name) {
            let v4 = port.ipv4.iter().map(|a| IpAddr::V4(*a));
            // What guests may make from their MAC is named when it is heard: most make something else.
            let given_to = |a: &&Ipv6Addr| !is_made(network, port.mac, **a);
            let v6 = port.ipv6.iter().filter(given_to).map(|a| IpAddr::V6(*a));
            let addresses = given.entry(port.key.name.clone().into()).or_default();
            addresses.extend(v4.chain(v6));
        }
        let dhcp4 = network.subnets4.iter().filter_map(|s| s.dhcp.as_ref());
        for host in dhcp4.flat_map(|dhcp| &dhcp.hosts) {
            if let (Some(name), Some(ip)) = (&host.name, host.ip) {
                given
                    .entry(name.clone().into())
                    .or_default()
                    .push(ip.into());
            }
        }
        for host in network.subnets6.iter().flat_map(|s| &s.dhcp.hosts) {
            if let Some(name) = &host.name {
                given
                    .entry(name.clone().into())
                    .or_default()
                    .push(host.ip.into());
            }
        }
        for (name, addresses) in given.iter().filter(|(_, addresses)| !addresses.is_empty()) {
            self.give(name, addresses, Claim::Guest);
        }
    }

    /// Gives a name its addresses, unless something before it (the document, then guests) already says which it has.
    fn give(&mut self, name: &DomainName, addresses: &[IpAddr], claim: Claim) {
        let Some(full) = self.absolute(name) else {
            return;
        };
        let node = self.nodes.entry((&full).into()).or_default();
        node.stays = true;
        match node.claim {
            Claim::Free => node.claim = claim,
            Claim::Guest | Claim::Document => return,
        }
        for address in addresses {
            self.add(&full, Record::address(*address));
            self.point_back(*address, name);
        }
    }

    fn add(&mut self, name: &NameBuf, record: Record) {
        let node = self.nodes.entry(name.into()).or_default();
        node.stays = true;
        if !node.records.contains(&record) {
            node.records.push(record);
        }
    }

    /// Adds what the document says of a name.
    fn document(&mut self, name: &NameBuf, record: Record) {
        let claims = matches!(record.rtype, rtype::A | rtype::AAAA | rtype::CNAME);
        self.add(name, record);
        if let Some(node) = self.nodes.get_mut(name.as_bytes()).filter(|_| claims) {
            node.claim = Claim::Document;
        }
    }

    fn point_back(&mut self, address: IpAddr, name: &DomainName) {
        if let Some(name) = self.absolute(name) {
            self.addresses
                .entry(address)
                .or_insert_with(|| (&name).into());
        }
    }

    /// Names between a record and the domain exist too, empty (RFC 4592 section 2.2.2): asking for them is no error.
    fn add_ancestors(&mut self) {
        let apex = self.apex.as_bytes().to_vec();
        if apex.len() > 1 {
            self.nodes
                .entry(WireName(apex.clone().into()))
                .or_default()
                .stays = true;
        }
        let names: Vec<Vec<u8>> = self.nodes.keys().map(|n| n.as_bytes().to_vec()).collect();
        for name in &names {
            let Some(zone) = self.head(name) else {
                continue;
            };
            let mut up = parent(name);
            while let Some(ancestor) = up.filter(|a| a.len() > zone) {
                let node = self.nodes.entry(WireName(ancestor.into())).or_default();
                node.stays = true;
                up = parent(ancestor);
            }
        }
    }

    /// The length of the zone of ours that a name lies in: the domain, or that of a subnet's addresses.
    pub(super) fn head(&self, name: &[u8]) -> Option<usize> {
        let apex = self.apex.as_bytes();
        if apex.len() > 1 && is_under(name, apex) {
            return Some(apex.len());
        }
        let (part, _) = reverse::closest(name)?;
        let mut subnets = self.subnets.iter();
        let subnet = subnets.find(|s| s.contains(&part.network()))?;
        Some(reverse::suffix(name, reverse::zone_labels(subnet) + 2).len())
    }
}
