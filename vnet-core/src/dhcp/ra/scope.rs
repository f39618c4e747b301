use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use crate::model::{Forward, HostAccess, Network, Ra, RaMode, Subnet6, World};
use crate::types::{DomainName, Ipv6Net, NetworkName};

/// All that a network's advertisements say: a function of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The network.
    pub network: NetworkName,
    /// Whether guests have a way out by us.
    pub is_router: bool,
    /// Whether DHCPv6 has addresses (`M`).
    pub managed: bool,
    /// Whether DHCPv6 has anything at all (`O`).
    pub other: bool,
    /// The prefixes on the link, and whether guests make their own addresses from them.
    pub prefixes: Vec<(Ipv6Net, bool)>,
    /// Resolvers.
    pub resolvers: Vec<Ipv6Addr>,
    /// The search domains.
    pub domains: Vec<DomainName>,
    /// The link's MTU, where it is not Ethernet's.
    pub mtu: Option<u16>,
    /// What more than the default route leads through us.
    pub routes: Vec<Ipv6Net>,
    /// By which prefix IPv4 is reached through a translator.
    pub pref64: Option<Ipv6Net>,
    /// Where guests are told what they must do first.
    pub portal: Option<String>,
    /// How often, and how we are a router.
    pub ra: Ra,
}

/// Something that guests remember until it is taken back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Item {
    /// A prefix on the link.
    Prefix(Ipv6Net),
    /// That addresses are made from it.
    Own(Ipv6Net),
    Route(Ipv6Net),
    Resolver(Ipv6Addr),
    Domain(DomainName),
    Pref64(Ipv6Net),
    Portal,
    Mtu,
}

impl Scope {
    /// The scope of a network; `None` where it has no IPv6 or the bridge is not ours.
    #[must_use]
    pub fn of(world: &World, name: &NetworkName) -> Option<Self> {
        let network = world.networks.get(name)?;
        if !network.owns_bridge() || network.subnets6.is_empty() {
            return None;
        }
        let any = |modes: &[RaMode]| {
            let mut subnets = network.subnets6.iter();
            subnets.any(|s| modes.contains(&s.dhcp.mode))
        };
        let dhcp = || network.subnets6.iter().map(|s| &s.dhcp);
        Some(Self {
            network: name.clone(),
            is_router: !matches!(network.forward, Forward::Isolated),
            managed: any(&[RaMode::Stateful, RaMode::Both]),
            other: any(&[RaMode::Stateless, RaMode::Stateful, RaMode::Both]),
            prefixes: prefixes(network),
            resolvers: told(network, "dns-server", |s| serving(network, s)),
            domains: told(network, "domain-search", |_| network.domain.clone()),
            mtu: network.bridge.mtu.map(crate::types::Mtu::get),
            routes: dhcp().flat_map(|d| d.routes.clone()).collect(),
            pref64: dhcp().find_map(|d| d.pref64),
            portal: told(network, "captive-portal", |_| None).into_iter().next(),
            ra: network.ra,
        })
    }

    /// What guests will remember of this.
    pub(super) fn items(&self) -> BTreeSet<Item> {
        let prefixes = self.prefixes.iter().map(|(net, _)| Item::Prefix(*net));
        let own = self.prefixes.iter().filter(|(_, own)| *own);
        let own = own.map(|(net, _)| Item::Own(*net));
        let routes = self.routes.iter().copied().map(Item::Route);
        let resolvers = self.resolvers.iter().copied().map(Item::Resolver);
        let domains = self.domains.iter().cloned().map(Item::Domain);
        let pref64 = self.pref64.map(Item::Pref64);
        let portal = self.portal.as_ref().map(|_| Item::Portal);
        let mtu = self.mtu.map(|_| Item::Mtu);
        let all = prefixes.chain(own).chain(routes).chain(resolvers);
        let all = all.chain(domains).chain(pref64);
        all.chain(portal).chain(mtu).collect()
    }
}

fn prefixes(network: &Network) -> Vec<(Ipv6Net, bool)> {
    let autonomous = |mode| match mode {
        RaMode::Slaac | RaMode::Stateless | RaMode::Both => true,
        RaMode::Stateful => false,
    };
    let subnets = network.subnets6.iter();
    subnets
        .map(|s| (s.prefix(), autonomous(s.dhcp.mode)))
        .collect()
}

/// What the subnets' options say, as DHCPv6 does, or what follows from a subnet that says nothing; each thing once.
fn told<T: std::str::FromStr + PartialEq>(
    network: &Network,
    option: &str,
    default: impl Fn(&Subnet6) -> Option<T>,
) -> Vec<T> {
    let mut all = Vec::new();
    for subnet in &network.subnets6 {
        let mut said = subnet.dhcp.options.iter().map(|o| o.spell());
        let values: Vec<T> = match said.find(|(name, _)| name == option) {
            Some((_, texts)) => texts.iter().filter_map(|t| t.parse().ok()).collect(),
            None => default(subnet).into_iter().collect(),
        };
        for value in values {
            if !all.contains(&value) {
                all.push(value);
            }
        }
    }
    all
}

/// The subnet's gateway, if it answers DNS.
fn serving(network: &Network, subnet: &Subnet6) -> Option<Ipv6Addr> {
    let serves = network.dns.enabled && network.host_access != HostAccess::None;
    serves.then(|| subnet.gateway())
}

/// Where guests find their resolver unless the document says otherwise: the gateways, if they answer DNS.
pub(in crate::dhcp) fn resolvers(network: &Network) -> Vec<Ipv6Addr> {
    let subnets = network.subnets6.iter();
    subnets.filter_map(|s| serving(network, s)).collect()
}
