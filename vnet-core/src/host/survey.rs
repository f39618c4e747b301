//! What the host already has that is not ours: is `virbr0` free, is 192.168.122.0/24?
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are not ours, and grow"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};

use super::observe::{Seen, address_of, ip};
use super::worker::{Failure, Worker};
use crate::plan::Link;
use crate::types::{IfName, IpNet};

/// A route this wide is a way out, not a place: the default route, and the halves, quarters and so on by which VPNs
/// replace it.
const WAY_OUT: u8 = 8;

/// The table of the host's own addresses.
const RT_TABLE_LOCAL: u8 = 255;

/// What is taken: everything of the host that is not on a bridge of ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Taken {
    /// Names of interfaces, alternative names included, that we did not make.
    pub interfaces: BTreeSet<String>,
    /// Addresses with their prefixes, by interface.
    pub addresses: BTreeSet<(String, IpNet)>,
    /// Destinations of routes, by interface (empty for one that leads nowhere).
    pub routes: BTreeSet<(String, IpNet)>,
}

/// What of the host a subnet overlaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overlap {
    /// An address of an interface.
    Address(String, IpNet),
    /// A route by an interface.
    Route(String, IpNet),
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(dev, net) => write!(f, "address {net} of interface `{dev}`"),
            Self::Route(dev, net) if dev.is_empty() => write!(f, "a route to {net}"),
            Self::Route(dev, net) => write!(f, "a route to {net} by interface `{dev}`"),
        }
    }
}

impl Taken {
    /// Whether somebody has an interface of that name.
    #[must_use]
    pub fn has_interface(&self, name: &IfName) -> bool {
        self.interfaces.contains(name.as_str())
    }

    /// The first thing of the host that shares an address with a subnet.
    #[must_use]
    pub fn overlap(&self, subnet: &IpNet) -> Option<Overlap> {
        let shares = |net: &IpNet| subnet.contains(&net.trunc()) || net.contains(&subnet.trunc());
        let address = self.addresses.iter().find(|(_, net)| shares(net));
        if let Some((dev, net)) = address {
            return Some(Overlap::Address(dev.clone(), *net));
        }
        let route = self.routes.iter().find(|(_, net)| shares(net));
        route.map(|(dev, net)| Overlap::Route(dev.clone(), *net))
    }
}

impl Worker {
    /// Looks at every link, address and route of the host.
    pub(super) fn survey(&mut self) -> Result<Taken, Failure> {
        let mut taken = Taken::default();
        let mut names = BTreeMap::new();
        let mut ours = BTreeSet::new();
        for message in self.all_links()? {
            let made = Seen::parse(&message).is_some_and(|seen| Link::is_made(&seen.link));
            if made {
                ours.insert(message.header.index);
                continue;
            }
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => {
                        taken.interfaces.insert(name.clone());
                        names.insert(message.header.index, name);
                    }
                    LinkAttribute::PropList(list) => taken.interfaces.extend(alternatives(list)),
                    _ => {}
                }
            }
        }
        for message in self.addresses_of(0)? {
            let index = message.header.index;
            if let (false, Some(net)) = (ours.contains(&index), address_of(&message)) {
                let dev = names.get(&index).cloned().unwrap_or_default();
                taken.addresses.insert((dev, net));
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            for message in self.routes(filter)? {
                if let Some((index, net)) = destination(&message)
                    && !index.is_some_and(|i| ours.contains(&i))
                {
                    let dev = index.and_then(|i| names.get(&i).cloned());
                    taken.routes.insert((dev.unwrap_or_default(), net));
                }
            }
        }
        Ok(taken)
    }
}

fn alternatives(list: Vec<rtnetlink::packet_route::link::Prop>) -> impl Iterator<Item = String> {
    list.into_iter().filter_map(|property| match property {
        rtnetlink::packet_route::link::Prop::AltIfName(name) => Some(name),
        _ => None,
    })
}

/// Where a route leads, if that is a place: not out, not to ourselves, not to a group, not along one cable.
fn destination(message: &RouteMessage) -> Option<(Option<u32>, IpNet)> {
    let place = match message.header.kind {
        RouteType::Unicast
        | RouteType::BlackHole
        | RouteType::Unreachable
        | RouteType::Prohibit => message.header.table != RT_TABLE_LOCAL,
        _ => false,
    };
    if !place || message.header.destination_prefix_length < WAY_OUT {
        return None;
    }
    let (mut to, mut index) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Oif(number) => index = Some(*number),
            _ => {}
        }
    }
    let net = IpNet::new(to?, message.header.destination_prefix_length).ok()?;
    let cable = match net {
        IpNet::V4(net) => net.addr().is_link_local() && message.header.scope == RouteScope::Link,
        IpNet::V6(net) => net.addr().is_unicast_link_local() || net.addr().is_multicast(),
    };
    (!cable).then_some((index, net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_overlap_counts() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let taken = Taken {
            addresses: [("eth0".to_owned(), net("192.168.122.77/25"))].into(),
            routes: [("tun0".to_owned(), net("10.0.0.0/8"))].into(),
            ..Taken::default()
        };
        for (subnet, why) in [
            (
                "192.168.122.1/24",
                "address 192.168.122.77/25 of interface `eth0`",
            ),
            (
                "192.168.0.1/16",
                "address 192.168.122.77/25 of interface `eth0`",
            ),
            (
                "192.168.122.65/26",
                "address 192.168.122.77/25 of interface `eth0`",
            ),
            ("10.50.0.1/24", "a route to 10.0.0.0/8 by interface `tun0`"),
        ] {
            assert_eq!(taken.overlap(&net(subnet)).unwrap().to_string(), why);
        }
        for free in ["192.168.122.129/25", "172.16.0.1/12", "fd00::1/64"] {
            assert_eq!(taken.overlap(&net(free)), None, "{free}");
        }
    }
}
