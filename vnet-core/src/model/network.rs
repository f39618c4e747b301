use std::net::Ipv4Addr;

use uuid::Uuid;

use super::{Bridge, Dns, Forward, HostAccess, Publish, Ra, Subnet4, Subnet6};
use crate::types::{DomainName, IpNet, Ipv4Net, NetworkName};

/// One network, complete: every name is chosen, every default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: NetworkName,
    /// Its identity, which survives a change of everything else.
    pub uuid: Uuid,
    /// The bridge it lives on.
    pub bridge: Bridge,
    /// How packets leave and enter.
    pub forward: Forward,
    /// What guests may reach on the host itself.
    pub host_access: HostAccess,
    /// The DNS domain of its guests.
    pub domain: Option<DomainName>,
    /// Whether names of the domain are never asked upstream.
    pub local_only: bool,
    /// IPv4 subnets; the first is what a guest gets unless it asks otherwise.
    pub subnets4: Vec<Subnet4>,
    /// IPv6 subnets.
    pub subnets6: Vec<Subnet6>,
    /// Router advertisements of the IPv6 subnets.
    pub ra: Ra,
    /// DNS.
    pub dns: Dns,
    /// Routes of the host through a guest of this network.
    pub routes: Vec<Route4>,
    /// Ports of the host that lead to guests.
    pub publish: Vec<Publish>,
    /// Whether new ports are isolated from each other.
    pub isolate_ports: bool,
    /// Whether it starts with the daemon.
    pub autostart: bool,
}

/// A route of the host through a guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route4 {
    /// Where to.
    pub to: Ipv4Net,
    /// Through which guest (in one of the network's subnets).
    pub via: Ipv4Addr,
    /// The metric.
    pub metric: u32,
}

impl Network {
    /// The subnet that an address belongs to.
    #[must_use]
    pub fn subnet4_of(&self, address: Ipv4Addr) -> Option<&Subnet4> {
        self.subnets4.iter().find(|s| s.address.contains(&address))
    }

    /// The subnets of both families, host bits cleared.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.subnets4.iter().map(|s| IpNet::V4(s.prefix()));
        v4.chain(self.subnets6.iter().map(|s| IpNet::V6(s.prefix())))
    }

    /// Whether DHCPv4 is served.
    #[must_use]
    pub fn has_dhcp4(&self) -> bool {
        self.subnets4.iter().any(|s| s.dhcp.is_some())
    }

    /// Whether we own the bridge (every mode but `bridge`).
    #[must_use]
    pub const fn owns_bridge(&self) -> bool {
        !matches!(self.forward, Forward::Bridge)
    }
}
