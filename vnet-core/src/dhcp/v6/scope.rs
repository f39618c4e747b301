use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use super::{SERVERS, SITE_SERVERS, code};
use crate::dhcp::ra::{resolvers, wire_name};
use crate::dhcp::reserved::withheld;
use crate::dhcp::{Reserved, reserved4};
use crate::lease::Pool;
use crate::model::{Boot, Network, RaMode, Reservation6, Subnet6, World};
use crate::types::{DomainName, Ipv6Net, LeaseTime, Mac, NetworkName, PortName};

/// All that DHCPv6 of one network follows from: a function of the world, replaced whole when the world changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The network.
    pub network: NetworkName,
    /// Our identifier, which outlives every change of the network (RFC 6355).
    pub duid: Vec<u8>,
    /// Our addresses on the link, but the link-local one.
    pub gateways: Vec<Ipv6Addr>,
    /// Relays that speak for more than one station's share.
    pub relays: Vec<Ipv6Addr>,
    /// Its subnets that serve DHCPv6, in order.
    pub subnets: Vec<Subnet>,
    /// The network's ports, by the guest's MAC.
    pub members: BTreeMap<Mac, Member>,
    /// Names that IPv4 reservations have, and those that are no guest's to choose.
    pub reserved: Vec<Reserved>,
    /// Whether guests make addresses of their own somewhere on the link: then a guard holds them to no list.
    pub roaming: bool,
    /// The domain of the guests' names.
    pub domain: Option<DomainName>,
}

/// DHCPv6 of one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// The subnet, host bits cleared.
    pub prefix: Ipv6Net,
    /// Our address there.
    pub gateway: Ipv6Addr,
    /// Who makes the addresses.
    pub mode: RaMode,
    /// What anybody may get.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// What belongs to somebody.
    pub hosts: Vec<Reservation6>,
    /// How long a lease lasts.
    pub lease_time: LeaseTime,
    /// What machines without a system load.
    pub boot: Option<Boot>,
    /// What clients are told when they ask for it.
    pub options: BTreeMap<u16, Vec<u8>>,
}

/// One port of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, which is its guest's name.
    pub name: PortName,
    /// The addresses that are its own.
    pub addresses: Vec<Ipv6Addr>,
    /// Whether it is held to its MAC and addresses.
    pub guard: bool,
}

impl Scope {
    /// The scope of a network; `None` where guests have no use for DHCPv6.
    #[must_use]
    pub fn of(world: &World, name: &NetworkName) -> Option<Self> {
        let network = world.networks.get(name)?;
        let serves = |subnet: &&Subnet6| subnet.dhcp.mode != RaMode::Slaac;
        let subnets: Vec<Subnet> = network
            .subnets6
            .iter()
            .filter(serves)
            .map(|s| subnet(network, s))
            .collect();
        if !network.owns_bridge() || subnets.is_empty() {
            return None;
        }
        let members = world.ports_of(name).map(|port| {
            let member = Member {
                name: port.key.name.clone(),
                addresses: port.ipv6.clone(),
                guard: port.guard,
            };
            (port.mac, member)
        });
        let mut duid = vec![0, 4];
        duid.extend_from_slice(network.uuid.as_bytes());
        Some(Self {
            network: name.clone(),
            duid,
            gateways: network.subnets6.iter().map(Subnet6::gateway).collect(),
            relays: network
                .subnets6
                .iter()
                .flat_map(|s| s.dhcp.relays.clone())
                .collect(),
            subnets,
            members: members.collect(),
            reserved: reserved4(network).chain(withheld(world, network)).collect(),
            roaming: network
                .subnets6
                .iter()
                .any(|s| s.dhcp.mode != RaMode::Stateful),
            domain: network.domain.clone(),
        })
    }

    /// A scope that serves nothing.
    #[must_use]
    pub const fn silent(network: NetworkName) -> Self {
        Self {
            network,
            duid: Vec::new(),
            gateways: Vec::new(),
            relays: Vec::new(),
            subnets: Vec::new(),
            members: BTreeMap::new(),
            reserved: Vec::new(),
            roaming: false,
            domain: None,
        }
    }

    /// The subnet that an address belongs to, by its place in the list.
    #[must_use]
    pub fn subnet_of(&self, address: Ipv6Addr) -> Option<usize> {
        self.subnets
            .iter()
            .position(|s| s.prefix.contains(&address))
    }

    /// Whether a message to this address is one to us: the packet socket also shows what guests send through us to
    /// servers elsewhere. What is link-local came to us by its frame.
    pub(super) fn is_for_us(&self, to: Ipv6Addr) -> bool {
        [SERVERS, SITE_SERVERS].contains(&to)
            || to.is_unicast_link_local()
            || self.gateways.contains(&to)
    }

    pub(super) fn pools(&self) -> Vec<Pool> {
        self.subnets.iter().map(|s| Pool::new(&s.ranges)).collect()
    }

    /// What is nobody's to choose: our own, the ports' and the reserved addresses.
    pub(super) fn excluded(&self) -> BTreeSet<IpAddr> {
        let mut excluded = BTreeSet::new();
        for subnet in &self.subnets {
            // RFC 4291 section 2.6.1: the lowest address is every router's.
            excluded.extend([subnet.gateway, subnet.prefix.network()]);
            excluded.extend(subnet.hosts.iter().map(|h| h.ip));
        }
        for member in self.members.values() {
            excluded.extend(&member.addresses);
        }
        excluded.into_iter().map(IpAddr::V6).collect()
    }
}

impl Subnet {
    /// Whether addresses come from us here, rather than only options.
    pub(super) const fn has_addresses(&self) -> bool {
        match self.mode {
            RaMode::Stateful | RaMode::Both => true,
            RaMode::Slaac | RaMode::Stateless => false,
        }
    }

    /// Whether a guest may have the address at all.
    pub(super) fn is_guest_address(&self, address: Ipv6Addr) -> bool {
        self.prefix.contains(&address)
            && address != self.gateway
            && address != self.prefix.network()
    }
}

fn subnet(network: &Network, subnet: &Subnet6) -> Subnet {
    let dhcp = &subnet.dhcp;
    let mut options = BTreeMap::new();
    let resolvers = resolvers(network);
    if !resolvers.is_empty() {
        let octets = resolvers.iter().flat_map(Ipv6Addr::octets);
        options.insert(code::DNS, octets.collect());
    }
    if let Some(domain) = &network.domain {
        options.insert(code::SEARCH, wire_name(domain));
    }
    options.extend(dhcp.options.iter().map(|o| (o.code, o.data.clone())));
    let range = |(a, b): &(Ipv6Addr, Ipv6Addr)| (IpAddr::V6(*a), IpAddr::V6(*b));
    Subnet {
        prefix: subnet.prefix(),
        gateway: subnet.gateway(),
        mode: dhcp.mode,
        ranges: dhcp.ranges.iter().map(range).collect(),
        hosts: dhcp.hosts.clone(),
        lease_time: dhcp.lease_time,
        boot: dhcp.boot.clone(),
        options,
    }
}
