use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::code;
use crate::dhcp::reserved::withheld;
use crate::dhcp::{Reserved, reserved6};
use crate::lease::Pool;
use crate::model::{
    Boot, DhcpOption, DhcpRange4, Forward, HostAccess, Network, Reservation4, Subnet4, World,
};
use crate::types::{DomainName, Ipv4Net, LeaseTime, Mac, NetworkName, PortName};

/// All that DHCPv4 of one network follows from: a function of the world, replaced whole when the world changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The network.
    pub network: NetworkName,
    /// Its subnets that serve DHCP, in order; the first with room is what a guest gets.
    pub subnets: Vec<Subnet>,
    /// The network's ports, by the guest's MAC.
    pub members: BTreeMap<Mac, Member>,
    /// Names that IPv6 reservations have, and those that are no guest's to choose.
    pub reserved: Vec<Reserved>,
    /// The domain of the guests' names.
    pub domain: Option<DomainName>,
    /// Our addresses on the bridge, with their prefixes: of subnets without DHCP too, since a relay writes to any.
    pub addresses: Vec<Ipv4Net>,
}

/// DHCP of one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// The subnet, host bits cleared.
    pub prefix: Ipv4Net,
    /// Our address there, which is also our server identifier.
    pub gateway: Ipv4Addr,
    /// What anybody may get.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Those of them that have terms of their own.
    pub special: Vec<DhcpRange4>,
    /// What belongs to somebody.
    pub hosts: Vec<Reservation4>,
    /// How long a lease lasts.
    pub lease_time: LeaseTime,
    /// What clients are told when they ask for it.
    pub options: BTreeMap<u8, Vec<u8>>,
    /// Which of them also when they do not.
    pub always: Vec<u8>,
    /// What machines without a system load.
    pub boot: Option<Boot>,
    /// Relays that the document names.
    pub relays: Vec<Ipv4Addr>,
}

/// One port of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, which is its guest's name.
    pub name: PortName,
    /// The addresses that are its own.
    pub addresses: Vec<Ipv4Addr>,
    /// Whether it is held to its MAC: then its frames' source proves who sent them.
    pub guard: bool,
}

impl Scope {
    /// The scope of a network, started or not; `None` where there is no DHCPv4 of ours.
    #[must_use]
    pub fn of(world: &World, name: &NetworkName) -> Option<Self> {
        let network = world.networks.get(name)?;
        if !network.owns_bridge() || !network.has_dhcp4() {
            return None;
        }
        let subnets = network.subnets4.iter().filter_map(|s| subnet(network, s));
        let members = world.ports_of(name).map(|port| {
            let member = Member {
                name: port.key.name.clone(),
                addresses: port.ipv4.clone(),
                guard: port.guard,
            };
            (port.mac, member)
        });
        Some(Self {
            network: name.clone(),
            subnets: subnets.collect(),
            members: members.collect(),
            reserved: reserved6(network).chain(withheld(world, network)).collect(),
            domain: network.domain.clone(),
            addresses: network.subnets4.iter().map(|s| s.address).collect(),
        })
    }

    /// A scope that serves nothing: what a network without DHCP has.
    #[must_use]
    pub const fn silent(network: NetworkName) -> Self {
        Self {
            network,
            subnets: Vec::new(),
            members: BTreeMap::new(),
            reserved: Vec::new(),
            domain: None,
            addresses: Vec::new(),
        }
    }

    /// Whether an address is one of ours on the bridge.
    pub(super) fn is_ours(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|net| net.addr() == address)
    }

    /// Whether a message to this address is one to us: the packet socket also shows what guests send through us to
    /// servers elsewhere.
    pub(super) fn is_for_us(&self, to: Ipv4Addr) -> bool {
        let ours = |net: &Ipv4Net| net.addr() == to || net.broadcast() == to;
        to.is_broadcast() || self.addresses.iter().any(ours)
    }

    /// Whether the document names this relay.
    pub(super) fn is_relay(&self, giaddr: Ipv4Addr) -> bool {
        self.subnets.iter().any(|s| s.relays.contains(&giaddr))
    }

    /// The subnet that an address belongs to, by its place in the list.
    #[must_use]
    pub fn subnet_of(&self, address: Ipv4Addr) -> Option<usize> {
        self.subnets
            .iter()
            .position(|s| s.prefix.contains(&address))
    }

    /// Fresh pools, one a subnet.
    pub(super) fn pools(&self) -> Vec<Pool> {
        self.subnets.iter().map(|s| Pool::new(&s.ranges)).collect()
    }
}

impl Subnet {
    /// Whether a guest may have the address at all.
    pub(super) fn is_guest_address(&self, address: Ipv4Addr) -> bool {
        let net = self.prefix;
        let edge =
            net.prefix_len() < 31 && (address == net.network() || address == net.broadcast());
        net.contains(&address) && !edge && address != self.gateway
    }

    /// The terms of the range that an address is of, if it has its own.
    pub(super) fn special_of(&self, address: Ipv4Addr) -> Option<&DhcpRange4> {
        self.special.iter().find(|s| s.range.contains(address))
    }
}

fn subnet(network: &Network, subnet: &Subnet4) -> Option<Subnet> {
    let dhcp = subnet.dhcp.as_ref()?;
    let range = |r: &DhcpRange4| (IpAddr::V4(r.range.start()), IpAddr::V4(r.range.end()));
    let is_special = |r: &&DhcpRange4| r.lease_time.is_some() || !r.options.is_empty();
    let here = |options: &[DhcpOption]| {
        let here = options.iter().map(|o| o.clone().here(subnet.gateway()));
        here.collect::<Vec<_>>()
    };
    let mut special: Vec<_> = dhcp.ranges.iter().filter(is_special).cloned().collect();
    for range in &mut special {
        range.options = here(&range.options);
    }
    let mut hosts = dhcp.hosts.clone();
    for host in &mut hosts {
        host.options = here(&host.options);
    }
    let mut options = defaults(network, subnet);
    options.extend(by_code(&here(&dhcp.options)));
    Some(Subnet {
        prefix: subnet.prefix(),
        gateway: subnet.gateway(),
        ranges: dhcp.ranges.iter().map(range).collect(),
        special,
        hosts,
        lease_time: dhcp.lease_time,
        options,
        always: dhcp.always.clone(),
        boot: dhcp.boot.clone(),
        relays: dhcp.relays.clone(),
    })
}

/// What follows from the network itself, unless the document says otherwise.
fn defaults(network: &Network, subnet: &Subnet4) -> BTreeMap<u8, Vec<u8>> {
    let gateway = subnet.gateway().octets().to_vec();
    let net = subnet.address;
    let mut options = BTreeMap::from([
        (code::SUBNET_MASK, net.netmask().octets().to_vec()),
        (code::BROADCAST, net.broadcast().octets().to_vec()),
    ]);
    // A router that forwards nothing would take the guest's way out through another network away.
    if !matches!(network.forward, Forward::Isolated) {
        options.insert(code::ROUTER, gateway.clone());
    }
    if network.dns.enabled && network.host_access != HostAccess::None {
        options.insert(code::DNS, gateway);
    }
    if let Some(domain) = &network.domain {
        options.insert(code::DOMAIN, domain.as_str().as_bytes().to_vec());
    }
    if let Some(mtu) = network.bridge.mtu {
        options.insert(code::MTU, mtu.get().to_be_bytes().to_vec());
    }
    options
}

/// Options of a document, those with the same code joined.
fn by_code(options: &[DhcpOption]) -> BTreeMap<u8, Vec<u8>> {
    let mut map = BTreeMap::<u8, Vec<u8>>::new();
    for option in options {
        map.entry(option.code)
            .or_default()
            .extend_from_slice(&option.data);
    }
    map
}
