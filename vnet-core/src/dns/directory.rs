//! The zones of all networks together with their leases: the one place where names are looked up.
//!
//! A static zone is replaced whole; leases come and go one by one. Who may bear a name is the lease book's decision;
//! here a lease only cannot take or add to a name that the document, a port or a reservation has.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::servers::Target;
use super::wire::{NameBuf, is_under, parent};
use super::zone::{Claim, Record, WireName, Zone};
use crate::model::{HARMFUL, TrustAnchor};
use crate::types::{DomainName, IpNet, NetworkName, PortName};

/// A network in this directory: a small number instead of its name, for the path of every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub(super) u32);

/// A list of upstreams that are asked for one another. Number 0 stands for whomever the host asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub(super) u32);

/// A list of keys that signatures are checked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnchorsId(pub(super) u16);

impl NetworkId {
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl GroupId {
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }

    /// Whomever the host asks about a name.
    pub const HOST: Self = Self(0);
}

/// A name that a lease gives or takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameChange {
    /// The guest's name.
    pub name: PortName,
    /// Its address.
    pub address: IpAddr,
    /// Which.
    pub change: Change,
}

/// Whether a name came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It came.
    Added,
    /// It came, and is of the very guest whose port or reservation has the name: one more address of it.
    AddedByOwner,
    /// It went.
    Removed,
    /// The host hears the guest whose port has the name by an address, whoever gave it that.
    Heard,
    /// Nobody answers for the address any more.
    Silent,
}

/// One network's names as they are served.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) zone: Zone,
    leases: BTreeMap<(IpAddr, PortName), Lent>,
    /// Who is asked for names under a domain, longest first; the root's entry is for all others.
    routes: Vec<(WireName, GroupId)>,
    /// What signatures of others' names are checked with, if they are.
    anchors: Option<AnchorsId>,
}

/// How an address has its name: by a lease, because it is heard, or both. It goes with the last of them.
#[derive(Debug, Clone, Copy, Default)]
struct Lent {
    leased: bool,
    heard: bool,
    by_owner: bool,
    /// Whether the record is there because of it.
    added: bool,
}

/// All networks.
#[derive(Debug, Default)]
pub struct Directory {
    served: Vec<Option<Served>>,
    ids: BTreeMap<NetworkName, NetworkId>,
    by_apex: HashMap<WireName, Vec<NetworkId>>,
    /// By the first address of each subnet; subnets never overlap.
    by_subnet: BTreeMap<IpAddr, (IpNet, NetworkId)>,
    groups: Vec<Vec<Target>>,
    anchors: Vec<Arc<[TrustAnchor]>>,
    host: Option<DomainName>,
    serial: u32,
}

impl Directory {
    /// An empty directory. `host` is the host's own name, which every gateway answers to.
    #[must_use]
    pub fn new(host: Option<DomainName>) -> Self {
        Self {
            groups: vec![Vec::new()],
            host,
            ..Self::default()
        }
    }

    /// Serves a zone, in place of the one its network had; its leases stay.
    pub fn put(&mut self, mut zone: Zone) -> NetworkId {
        if let Some(host) = &self.host {
            zone.add_host(host);
        }
        let network = zone.network.clone();
        let leases = self.take(&network).map(|s| s.leases).unwrap_or_default();
        let id = self.id(&network).unwrap_or_else(|| self.fresh(&network));
        if zone.apex.as_bytes().len() > 1 {
            self.by_apex.entry(zone.apex.clone()).or_default().push(id);
        }
        for subnet in &zone.subnets {
            self.by_subnet.insert(subnet.network(), (*subnet, id));
        }
        let routes = self.routes(&zone);
        let anchors = zone.anchors.as_deref();
        let anchors = anchors.and_then(|list| self.intern_anchors(list));
        let mut served = Served {
            zone,
            leases: BTreeMap::new(),
            routes,
            anchors,
        };
        for ((address, name), lent) in leases {
            served.add(name, address, lent);
        }
        self.served[id.0 as usize] = Some(served);
        self.serial = self.serial.wrapping_add(1);
        id
    }

    /// Stops serving a network; its leases' names are forgotten.
    pub fn remove(&mut self, network: &NetworkName) {
        self.take(network);
        self.serial = self.serial.wrapping_add(1);
    }

    /// The number of a network that is served, or once was.
    #[must_use]
    pub fn id(&self, network: &NetworkName) -> Option<NetworkId> {
        self.ids.get(network).copied()
    }

    /// The networks that are served.
    pub fn networks(&self) -> impl Iterator<Item = (&NetworkName, NetworkId)> {
        let all = self.ids.iter().map(|(name, id)| (name, *id));
        all.filter(|(_, id)| self.served(*id).is_some())
    }

    /// The zone of a network that is served.
    #[must_use]
    pub fn zone(&self, network: &NetworkName) -> Option<&Zone> {
        self.served(self.id(network)?).map(|s| &s.zone)
    }

    /// A lease's name comes or goes. Of a network that is not served: nothing.
    pub fn change(&mut self, network: &NetworkName, change: &NameChange) {
        let Some(id) = self.id(network) else { return };
        let Some(Some(served)) = self.served.get_mut(id.0 as usize) else {
            return;
        };
        let lent = |leased, heard, by_owner| Lent {
            leased,
            heard,
            by_owner,
            added: false,
        };
        let (name, address) = (change.name.clone(), change.address);
        match change.change {
            Change::Added => served.add(name, address, lent(true, false, false)),
            Change::AddedByOwner => served.add(name, address, lent(true, false, true)),
            Change::Heard => served.add(name, address, lent(false, true, true)),
            Change::Removed => served.end(name, address, |lent| lent.leased = false),
            Change::Silent => served.end(name, address, |lent| lent.heard = false),
        }
        self.serial = self.serial.wrapping_add(1);
    }

    /// Forgets all names that leases of a network gave, and gives these: what was missed is made good.
    pub fn relearn(&mut self, network: &NetworkName, names: &[NameChange]) {
        let served = self.id(network).and_then(|id| self.served(id));
        let gone = served.map(|s| s.leases.keys().cloned().collect());
        let gone: Vec<(IpAddr, PortName)> = gone.unwrap_or_default();
        for (address, name) in gone {
            let change = Change::Removed;
            let change = NameChange {
                name,
                address,
                change,
            };
            self.change(network, &change);
        }
        for change in names {
            self.change(network, change);
        }
    }

    /// The upstreams of a group.
    #[must_use]
    pub fn group(&self, id: GroupId) -> &[Target] {
        self.groups.get(id.0 as usize).map_or(&[], Vec::as_slice)
    }

    /// The keys of a list.
    #[must_use]
    pub fn anchors(&self, id: AnchorsId) -> Arc<[TrustAnchor]> {
        let list = self.anchors.get(usize::from(id.0));
        list.map_or_else(|| Arc::from([]), Arc::clone)
    }

    /// Every address we answer at: none of them may ever be an upstream.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        let live = self.served.iter().flatten();
        live.flat_map(|s| s.zone.gateways().iter().copied())
    }

    pub(super) fn serial(&self) -> u32 {
        self.serial
    }

    pub(super) fn served(&self, id: NetworkId) -> Option<&Served> {
        self.served.get(id.0 as usize)?.as_ref()
    }

    /// The networks whose domain is the closest one around a name.
    pub(super) fn around(&self, name: &[u8]) -> impl Iterator<Item = &Served> {
        let mut at = Some(name);
        let mut found: &[NetworkId] = &[];
        while let Some(zone) = at {
            if let Some(ids) = self.by_apex.get(zone) {
                found = ids;
                break;
            }
            at = parent(zone);
        }
        found.iter().filter_map(|id| self.served(*id))
    }

    /// The network whose subnet an address, or a part of the reverse tree, lies in.
    pub(super) fn holding(&self, part: &IpNet) -> Option<(&Served, IpNet)> {
        let (_, (subnet, id)) = self.by_subnet.range(..=part.network()).next_back()?;
        // A part of the tree is the subnet's if it is not wider than the subnet's own zone.
        let inside = subnet.contains(&part.network())
            && super::reverse::zone_labels(part) >= super::reverse::zone_labels(subnet);
        inside.then_some((self.served(*id)?, *subnet))
    }

    /// The networks whose subnets lie in a part of the reverse tree.
    pub(super) fn within(&self, part: &IpNet) -> impl Iterator<Item = &Served> {
        let subnets = self.by_subnet.range(part.network()..=part.broadcast());
        subnets.filter_map(|(_, (_, id))| self.served(*id))
    }

    fn fresh(&mut self, network: &NetworkName) -> NetworkId {
        let id = NetworkId(u32::try_from(self.served.len()).unwrap_or(u32::MAX));
        self.served.push(None);
        self.ids.insert(network.clone(), id);
        id
    }

    fn take(&mut self, network: &NetworkName) -> Option<Served> {
        let id = self.id(network)?;
        let served = self.served.get_mut(id.0 as usize)?.take()?;
        if let Some(ids) = self.by_apex.get_mut(&served.zone.apex) {
            ids.retain(|other| *other != id);
        }
        self.by_apex.retain(|_, ids| !ids.is_empty());
        self.by_subnet.retain(|_, (_, other)| *other != id);
        Some(served)
    }

    fn routes(&mut self, zone: &Zone) -> Vec<(WireName, GroupId)> {
        let mut lists: BTreeMap<WireName, Vec<Target>> = BTreeMap::new();
        for upstream in &zone.upstreams {
            let domain = upstream.domain.as_ref();
            let name = domain.and_then(|d| NameBuf::from_text(d.as_str()));
            let name = name.unwrap_or_else(NameBuf::root);
            lists
                .entry((&name).into())
                .or_default()
                .push(upstream.server.clone().into());
        }
        let mut routes: Vec<_> = lists
            .into_iter()
            .map(|(name, list)| (name, self.intern(list)))
            .collect();
        routes.sort_by_key(|(name, _)| std::cmp::Reverse(name.as_bytes().len()));
        routes
    }

    /// Networks with the same upstreams share them, and the cache behind them.
    pub(super) fn intern(&mut self, list: Vec<Target>) -> GroupId {
        let known = self.groups.iter().skip(1).position(|g| *g == list);
        let index = known.map_or(self.groups.len(), |i| i + 1);
        if known.is_none() {
            self.groups.push(list);
        }
        GroupId(u32::try_from(index).unwrap_or(u32::MAX))
    }

    fn intern_anchors(&mut self, list: &[TrustAnchor]) -> Option<AnchorsId> {
        let known = self.anchors.iter().position(|l| **l == *list);
        let index = known.unwrap_or(self.anchors.len());
        if known.is_none() {
            self.anchors.push(list.into());
        }
        u16::try_from(index).ok().map(AnchorsId)
    }
}

impl Served {
    /// What the signatures of a name that others own are checked with. Not checked is what the document sends to
    /// resolvers of its own (inner names are rarely signed) unless it also gives a key for it, and a domain of ours
    /// that others may know more of.
    pub(super) fn checked(&self, name: &[u8]) -> Option<AnchorsId> {
        let id = self.anchors?;
        let apex = self.zone.apex.as_bytes();
        let inner = self.named_route(name).is_some() || apex.len() > 1 && is_under(name, apex);
        let covers = |anchor: &TrustAnchor| {
            let zone = anchor.zone.as_ref();
            let zone = zone.and_then(|zone| NameBuf::from_text(zone.as_str()));
            zone.is_some_and(|zone| is_under(name, zone.as_bytes()))
        };
        let anchors = self.zone.anchors.as_deref().unwrap_or_default();
        (!inner || anchors.iter().any(covers)).then_some(id)
    }

    /// Whom to ask about a name we do not know: `None` is nobody.
    pub(super) fn route(&self, name: &[u8]) -> Option<GroupId> {
        let named = self
            .routes
            .iter()
            .find(|(d, _)| is_under(name, d.as_bytes()));
        match named {
            Some((_, group)) => self.zone.forward.then_some(*group),
            None => (self.zone.forward && self.zone.looks_out).then_some(GroupId::HOST),
        }
    }

    /// The length of the closest domain around a name that has upstreams of its own, if one has.
    pub(super) fn named_route(&self, name: &[u8]) -> Option<usize> {
        let named = self.routes.iter().filter(|(d, _)| d.as_bytes().len() > 1);
        let lengths = named.filter(|(d, _)| is_under(name, d.as_bytes()));
        lengths.map(|(d, _)| d.as_bytes().len()).max()
    }

    fn in_domain(&self, name: &PortName) -> Option<NameBuf> {
        NameBuf::join(name.as_str().as_bytes(), self.zone.apex.as_bytes())
    }

    fn add(&mut self, name: PortName, address: IpAddr, by: Lent) {
        let Some(full) = self.in_domain(&name) else {
            return;
        };
        let key = WireName::from(&full);
        let record = Record::address(address);
        let known = self.zone.nodes.get(full.as_bytes());
        let may = match known.map_or(Claim::Free, |n| n.claim) {
            Claim::Free => !HARMFUL.contains(&name.as_str()),
            Claim::Guest => by.by_owner,
            Claim::Document => false,
        };
        let added = may && known.is_none_or(|n| !n.records.contains(&record));
        if added {
            let node = self.zone.nodes.entry(key.clone()).or_default();
            node.records.push(record);
        }
        // Who may not have a name is not called by it either.
        if self.zone.has(full.as_bytes(), address) {
            self.zone.addresses.entry(address).or_insert(key);
        }
        let lent = self.leases.entry((address, name)).or_default();
        lent.leased |= by.leased;
        lent.heard |= by.heard;
        lent.by_owner |= by.by_owner;
        lent.added |= added;
    }

    /// One of the two by which an address has a name is over.
    fn end(&mut self, name: PortName, address: IpAddr, over: impl FnOnce(&mut Lent)) {
        let key = (address, name);
        let Some(lent) = self.leases.get_mut(&key) else {
            return;
        };
        over(lent);
        if lent.leased || lent.heard {
            return;
        }
        let lent = *lent;
        self.leases.remove(&key);
        self.remove(&key.1, address, lent);
    }

    fn remove(&mut self, name: &PortName, address: IpAddr, lent: Lent) {
        let Some(full) = self.in_domain(name) else {
            return;
        };
        let key = full.as_bytes();
        if lent.added
            && let Some(node) = self.zone.nodes.get_mut(key)
        {
            let record = Record::address(address);
            node.records.retain(|r| *r != record);
            if node.records.is_empty() && !node.stays {
                self.zone.nodes.remove(key);
            }
        }
        let pointer = self.zone.addresses.get(&address);
        let points_here = pointer.is_some_and(|n| n.as_bytes() == key);
        if points_here && !self.zone.has(key, address) {
            self.zone.addresses.remove(&address);
            let of_it = self.leases.keys().filter(|(a, _)| *a == address);
            let mut names = of_it.filter_map(|(_, name)| self.in_domain(name));
            let heir = names.find(|name| self.zone.has(name.as_bytes(), address));
            if let Some(heir) = heir {
                self.zone.addresses.insert(address, (&heir).into());
            }
        }
    }
}
