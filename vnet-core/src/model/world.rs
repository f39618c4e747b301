use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::{Home, Network, Port, PortKey, Target};
use crate::types::{IfName, NetworkName, PortName};

/// The whole truth: what should exist. Kernel state, firewall, leases' scopes and names are functions of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct World {
    /// Every defined network.
    pub networks: BTreeMap<NetworkName, Network>,
    /// Those of them that are started.
    pub active: BTreeSet<NetworkName>,
    /// Every port, of started and stopped networks alike.
    pub ports: BTreeMap<PortKey, Port>,
    /// The host's own name, which no guest takes.
    pub host: Option<PortName>,
}

/// Two things that cannot both be: what was asked for, and what stands in its way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Clash {
    /// The bridge of one network is another's.
    #[error(
        "bridge `{bridge}` already belongs to network `{other}`: choose another name, or leave it out"
    )]
    Bridge {
        /// The bridge.
        bridge: IfName,
        /// Whose it is.
        other: NetworkName,
    },
    /// Two networks' subnets overlap.
    #[error("subnet {subnet} overlaps {theirs} of network `{other}`: choose a subnet outside it")]
    Subnet {
        /// The subnet asked for.
        subnet: String,
        /// The one in its way.
        theirs: String,
        /// Whose that is.
        other: NetworkName,
    },
    /// Two publications of one port of the host.
    #[error(
        "port {port} of the host is already published by network `{other}`: choose another host port"
    )]
    Published {
        /// `8080/tcp`
        port: String,
        /// By whom.
        other: NetworkName,
    },
    /// A port's interface, MAC or address is another port's.
    #[error("{what} is already used by port `{other}`")]
    Port {
        /// `MAC 52:54:..`, `address 10.0.0.9`, `interface tap0`
        what: String,
        /// By which port.
        other: PortKey,
    },
    /// A port whose network is not defined.
    #[error("network `{0}` does not exist: `vnet network list` shows those that do")]
    NoNetwork(NetworkName),
    /// A publication that leads to a guest we do not know.
    #[error(
        "`{0}` is not a guest of network `{1}`: attach a port or reserve an address by that name first"
    )]
    NoGuest(Target, NetworkName),
}

impl World {
    /// The started networks.
    pub fn running(&self) -> impl Iterator<Item = &Network> {
        self.active
            .iter()
            .filter_map(|name| self.networks.get(name))
    }

    /// The ports of one network.
    pub fn ports_of<'a>(&'a self, network: &'a NetworkName) -> impl Iterator<Item = &'a Port> {
        // Keys are sorted by home, and `0` is the least name: no other network's port is looked at.
        let first = "0".parse().ok().map(|name| PortKey {
            home: Home::Network(network.clone()),
            name,
        });
        first
            .into_iter()
            .flat_map(|first| self.ports.range(first..))
            .map(|(_, port)| port)
            .take_while(move |p| p.key.home.network() == Some(network))
    }

    /// The ports that should be in the kernel: of started networks, and of plain bridges.
    pub fn live_ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.values().filter(|p| match &p.key.home {
            Home::Network(name) => self.active.contains(name),
            Home::Bridge(_) => true,
        })
    }

    /// The bridge a port belongs on.
    #[must_use]
    pub fn bridge_of<'a>(&'a self, port: &'a Port) -> Option<&'a IfName> {
        match &port.key.home {
            Home::Network(name) => self.networks.get(name).map(|n| &n.bridge.name),
            Home::Bridge(bridge) => Some(bridge),
        }
    }

    /// The address that a guest of a network is known to have for sure: a port's or a reservation's.
    #[must_use]
    pub fn guest_address(&self, network: &NetworkName, target: &Target) -> Option<Ipv4Addr> {
        match target {
            Target::Address(address) => Some(*address),
            Target::Name(name) => self.port_address(network, name).or_else(|| {
                let network = self.networks.get(network)?;
                let hosts = network.subnets4.iter().filter_map(|s| s.dhcp.as_ref());
                let mut hosts = hosts.flat_map(|d| &d.hosts);
                hosts
                    .find(|h| h.name.as_ref() == Some(name))
                    .and_then(|h| h.ip)
            }),
        }
    }

    fn port_address(&self, network: &NetworkName, name: &PortName) -> Option<Ipv4Addr> {
        let key = PortKey {
            home: Home::Network(network.clone()),
            name: name.clone(),
        };
        self.ports.get(&key).and_then(|p| p.ipv4.first()).copied()
    }

    /// Whether a network (new, or in place of the one with its name) fits beside all others.
    ///
    /// # Errors
    /// What stands in its way.
    pub fn admits_network(&self, new: &Network) -> Result<(), Clash> {
        for (name, old) in self.networks.iter().filter(|(name, _)| **name != new.name) {
            let other = || name.clone();
            if old.bridge.name == new.bridge.name && (old.owns_bridge() || new.owns_bridge()) {
                return Err(Clash::Bridge {
                    bridge: new.bridge.name.clone(),
                    other: other(),
                });
            }
            if let Some((subnet, theirs)) = overlap(new, old) {
                return Err(Clash::Subnet {
                    subnet,
                    theirs,
                    other: other(),
                });
            }
            for publish in &new.publish {
                let same = |p: &&super::Publish| {
                    (p.protocol, p.host_port) == (publish.protocol, publish.host_port)
                };
                if old.publish.iter().any(|p| same(&p)) {
                    let port = format!("{}/{}", publish.host_port, publish.protocol);
                    return Err(Clash::Published {
                        port,
                        other: other(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Whether every publication of a network leads to a guest that the world knows.
    ///
    /// # Errors
    /// The first that does not.
    pub fn publishes_known_guests(&self, network: &NetworkName) -> Result<(), Clash> {
        let Some(net) = self.networks.get(network) else {
            return Err(Clash::NoNetwork(network.clone()));
        };
        for publish in &net.publish {
            if self.guest_address(network, &publish.target).is_none() {
                return Err(Clash::NoGuest(publish.target.clone(), network.clone()));
            }
        }
        Ok(())
    }

    /// Whether a port (new, or in place of the one with its key) fits beside all others.
    ///
    /// # Errors
    /// What stands in its way.
    pub fn admits_port(&self, new: &Port) -> Result<(), Clash> {
        if let Home::Network(name) = &new.key.home
            && !self.networks.contains_key(name)
        {
            return Err(Clash::NoNetwork(name.clone()));
        }
        for (key, old) in self.ports.iter().filter(|(key, _)| **key != new.key) {
            let clash = |what: String| {
                Err(Clash::Port {
                    what,
                    other: key.clone(),
                })
            };
            if old.interface == new.interface {
                return clash(format!("interface `{}`", new.interface));
            }
            if key.home != new.key.home {
                continue;
            }
            if old.mac == new.mac {
                return clash(format!("MAC {}", new.mac));
            }
            if let Some(address) = new.ipv4.iter().find(|a| old.ipv4.contains(a)) {
                return clash(format!("address {address}"));
            }
            if let Some(address) = new.ipv6.iter().find(|a| old.ipv6.contains(a)) {
                return clash(format!("address {address}"));
            }
        }
        Ok(())
    }
}

/// The first pair of subnets of two networks that share an address.
fn overlap(new: &Network, old: &Network) -> Option<(String, String)> {
    let shared4 = |a: &super::Subnet4, b: &super::Subnet4| {
        let (a, b) = (a.prefix(), b.prefix());
        a.contains(&b) || b.contains(&a)
    };
    let shared6 = |a: &super::Subnet6, b: &super::Subnet6| {
        let (a, b) = (a.prefix(), b.prefix());
        a.contains(&b) || b.contains(&a)
    };
    for a in &new.subnets4 {
        if let Some(b) = old.subnets4.iter().find(|b| shared4(a, b)) {
            return Some((a.prefix().to_string(), b.prefix().to_string()));
        }
    }
    for a in &new.subnets6 {
        if let Some(b) = old.subnets6.iter().find(|b| shared6(a, b)) {
            return Some((a.prefix().to_string(), b.prefix().to_string()));
        }
    }
    None
}
