//! What a guarded port is held to, worked out of the world once. The kernel's guard ([`super::guard`]) turns it into
//! elements; the switch that serves vhost-user ports takes it as it is, over its control socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::model::{Network, Port, RaMode, World};
use crate::types::{Ipv6Net, Mac};

/// `fe80::/10`.
const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// What one port may use, and what of it is its alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Hold {
    /// Its MAC addresses.
    pub macs: Vec<Mac>,
    /// Its IP addresses. (The link-local ones of its MACs are its own, named or not.)
    pub addresses: Vec<IpAddr>,
    /// Any IPv4 address that is not another's, too: nobody knows them beforehand.
    pub free4: bool,
    /// The same for IPv6.
    pub free6: Free6,
    /// What of them is the gateway's: who speaks for the default router has every guest's traffic.
    pub bars6: Vec<Ipv6Addr>,
    /// Other ports may claim its IPv4 addresses all the same: what an address means here, others say.
    pub yields4: bool,
    /// Other ports may claim its IPv6 addresses all the same.
    pub yields6: bool,
}

/// Which IPv6 addresses a port may use that it was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Free6 {
    /// None.
    #[default]
    None,
    /// Link-local ones and those of these prefixes that are not another's (SLAAC: RFC 7217, RFC 8981).
    Within(Vec<Ipv6Net>),
    /// Any that is not another's.
    Any,
}

impl Hold {
    /// What follows for a port of this world, were it guarded.
    #[must_use]
    pub fn of(world: &World, port: &Port) -> Self {
        let network = port.key.home.network();
        let network = network.and_then(|name| world.networks.get(name));
        // On a bridge of the host nobody says what an address means.
        let network = network.filter(|network| network.owns_bridge());
        let known = network.is_some_and(|n| !n.subnets4.is_empty() || !n.subnets6.is_empty());
        // Link-local addresses are a guest's own choice, wherever there is IPv6.
        let roams = network.is_some_and(|n| !n.subnets6.is_empty());
        let free6 = match roams {
            true => {
                let made = world.running().flat_map(own_prefixes);
                Free6::Within(made.chain([LINK_LOCAL]).collect())
            }
            false if !known && port.ipv6.is_empty() => Free6::Any,
            false => Free6::None,
        };
        let v4 = port.ipv4.iter().copied().map(IpAddr::V4);
        let v6 = addresses6(port, network).into_iter().map(IpAddr::V6);
        Self {
            macs: vec![port.mac],
            addresses: v4.chain(v6).collect(),
            free4: !known && port.ipv4.is_empty(),
            free6,
            bars6: network.into_iter().flat_map(gateways6).collect(),
            yields4: network.is_none(),
            // Without a subnet only link-local addresses are in use, between ports that are all held to theirs.
            yields6: network.is_none_or(|network| network.subnets6.is_empty()),
        }
    }

    pub(super) fn ipv4(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
    }

    pub(super) fn ipv6(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        self.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(*address),
        })
    }
}

/// The addresses by which guests know the gateway of a network with IPv6.
pub(super) fn gateways6(network: &Network) -> impl Iterator<Item = Ipv6Addr> + '_ {
    let serves = network.owns_bridge() && !network.subnets6.is_empty();
    let gateways = network.subnets6.iter().map(crate::model::Subnet6::gateway);
    let all = gateways.chain([network.bridge.mac.link_local()]);
    all.filter(move |_| serves)
}

/// The prefixes in which guests of a network make addresses of their own.
pub(super) fn own_prefixes(network: &Network) -> impl Iterator<Item = Ipv6Net> + '_ {
    let makes = |mode| match mode {
        RaMode::Slaac | RaMode::Stateless | RaMode::Both => true,
        RaMode::Stateful => false,
    };
    let subnets = network.subnets6.iter();
    subnets
        .filter(move |subnet| makes(subnet.dhcp.mode))
        .map(|subnet| subnet.prefix())
}

/// The addresses that are the port's for sure: those it was given, and those that follow from its MAC.
fn addresses6(port: &Port, network: Option<&Network>) -> Vec<Ipv6Addr> {
    let link_local = port.mac.link_local();
    let identifier = link_local.to_bits() & u128::from(u64::MAX);
    let prefixes = network.into_iter().flat_map(own_prefixes);
    let made = prefixes
        .filter(|prefix| prefix.prefix_len() == 64)
        .map(|prefix| Ipv6Addr::from_bits(prefix.addr().to_bits() | identifier));
    let given = port.ipv6.iter().copied();
    given.chain([link_local]).chain(made).collect()
}
