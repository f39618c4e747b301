//! The IPv6 addresses that are a port's own: what it was given, what a reservation promises its MAC, and what follows
//! from the subnet's mode. They are known before the guest boots, and its guard holds it to them.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use vnet_core::model::{Network, Port, PortKey, RaMode, Subnet6, World};
use vnet_core::types::NetworkName;

/// Addresses that are tried before a range counts as full.
const TRIES: u128 = 65_536;

/// Adds what the port does not have yet. `leased` is what guests that are no ports hold.
pub(super) fn learn(
    world: &World,
    network: &Network,
    leased: &BTreeSet<Ipv6Addr>,
    port: &mut Port,
) {
    for subnet in &network.subnets6 {
        let promised = subnet.dhcp.hosts.iter().find(|h| h.mac == Some(port.mac));
        let made = (subnet.address.prefix_len() == 64).then(|| derived(subnet, port));
        let has_some = port.ipv6.iter().any(|a| subnet.address.contains(a));
        let chosen = match subnet.dhcp.mode {
            RaMode::Slaac | RaMode::Stateless | RaMode::Both => made,
            RaMode::Stateful if promised.is_some() || has_some => None,
            RaMode::Stateful => {
                let taken = taken(world, network, subnet, leased, port);
                free(subnet, port, &taken).or(made)
            }
        };
        for address in promised.map(|h| h.ip).into_iter().chain(chosen) {
            if !port.ipv6.contains(&address) {
                port.ipv6.push(address);
            }
        }
    }
}

/// After a change of a network: its ports lose the addresses of subnets that are gone and those that a subnet's new mode
/// does not make, and get some of new ones.
pub(super) fn learn_again(world: &mut World, name: &NetworkName, leased: &BTreeSet<Ipv6Addr>) {
    let Some(network) = world.networks.get(name).cloned() else {
        return;
    };
    if !network.owns_bridge() {
        return;
    }
    let keys: Vec<PortKey> = world.ports_of(name).map(|p| p.key.clone()).collect();
    for key in keys {
        let Some(mut port) = world.ports.get(&key).cloned() else {
            continue;
        };
        let old = std::mem::take(&mut port.ipv6);
        let stays = |a: &Ipv6Addr| {
            let mut subnets = network.subnets6.iter();
            subnets.any(|s| s.address.contains(a) && lives(s, &port, *a))
        };
        port.ipv6 = old.into_iter().filter(stays).collect();
        learn(world, &network, leased, &mut port);
        world.ports.insert(key, port);
    }
}

/// Whether a port's address in a subnet can still come to its guest. DHCPv6 gives a port what it has; where nobody gives
/// addresses, what was once chosen from the ranges would be a name that leads nowhere.
fn lives(subnet: &Subnet6, port: &Port, address: Ipv6Addr) -> bool {
    let mut hosts = subnet.dhcp.hosts.iter();
    match subnet.dhcp.mode {
        RaMode::Stateful | RaMode::Both => true,
        RaMode::Slaac | RaMode::Stateless => {
            port.asked6.contains(&address)
                || hosts.any(|h| h.mac == Some(port.mac) && h.ip == address)
                || address == derived(subnet, port)
        }
    }
}

/// The address that a guest makes from its MAC.
fn derived(subnet: &Subnet6, port: &Port) -> Ipv6Addr {
    let identifier = port.mac.link_local().to_bits() & u128::from(u64::MAX);
    (subnet.prefix().network().to_bits() | identifier).into()
}

fn taken(
    world: &World,
    network: &Network,
    subnet: &Subnet6,
    leased: &BTreeSet<Ipv6Addr>,
    port: &Port,
) -> BTreeSet<Ipv6Addr> {
    let others = world.ports_of(&network.name).filter(|p| p.key != port.key);
    let others = others.flat_map(|p| p.ipv6.iter().copied());
    let hosts = subnet.dhcp.hosts.iter().map(|h| h.ip);
    let ours = [subnet.gateway(), subnet.prefix().network()];
    others
        .chain(hosts)
        .chain(ours)
        .chain(leased.iter().copied())
        .collect()
}

/// The first free address of a range, from a place that the MAC names: the same port, the same address.
fn free(subnet: &Subnet6, port: &Port, taken: &BTreeSet<Ipv6Addr>) -> Option<Ipv6Addr> {
    let place = port.mac.octets().iter().fold(0u128, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u128::from(*byte))
    });
    subnet.dhcp.ranges.iter().find_map(|(first, last)| {
        let count = (last.to_bits() - first.to_bits()).saturating_add(1);
        let at = |n: u128| Ipv6Addr::from(first.to_bits() + (place + n) % count);
        (0..count.min(TRIES)).map(at).find(|a| !taken.contains(a))
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use vnet_core::config::{Fill, native};
    use vnet_core::model::{Home, PortKind, Qos};
    use vnet_core::types::Mac;

    use super::*;

    fn network(mode: &str) -> Network {
        let document = format!(
            r#"
name = "six"
[[subnet]]
address = "fd00:50::1/64"
[subnet.dhcp]
mode = "{mode}"
host = [{{ mac = "52:54:00:00:00:02", ip = "fd00:50::9" }}]
"#
        );
        let fill = Fill {
            uuid: Uuid::nil(),
            bridge: "br0".parse().unwrap(),
            mac: Mac([2; 6]),
            subnets: Vec::new(),
        };
        let all = native::from_toml(&document).unwrap();
        all[0].settle(&fill).unwrap()
    }

    fn port(name: &str, last: u8, asked: &[Ipv6Addr]) -> Port {
        Port {
            key: PortKey {
                home: Home::Network("six".parse().unwrap()),
                name: name.parse().unwrap(),
            },
            kind: PortKind::External,
            interface: name.parse().unwrap(),
            mac: Mac([0x52, 0x54, 0, 0, 0, last]),
            ipv4: Vec::new(),
            ipv6: asked.to_vec(),
            asked6: asked.to_vec(),
            guard: true,
            isolated: false,
            queues: 1,
            qos: Qos::default(),
        }
    }

    #[test]
    fn where_guests_make_addresses_what_was_leased_is_no_ports_any_more() {
        let asked = "fd00:50::77".parse().unwrap();
        let mut world = World::default();
        for (name, last, asked) in [("a", 1, &[][..]), ("b", 2, &[]), ("c", 3, &[asked])] {
            let port = port(name, last, asked);
            world.ports.insert(port.key.clone(), port);
        }
        let name: NetworkName = "six".parse().unwrap();
        let mut become_ = |mode: &str| {
            world.networks.insert(name.clone(), network(mode));
            learn_again(&mut world, &name, &BTreeSet::new());
            let all = world.ports.values();
            let all: Vec<Vec<Ipv6Addr>> = all.map(|p| p.ipv6.clone()).collect();
            all
        };
        let own =
            |last: u8| -> Ipv6Addr { format!("fd00:50::5054:ff:fe00:{last}").parse().unwrap() };
        let leased = become_("stateful");
        assert_eq!(leased[0].len(), 1);
        let end: Ipv6Addr = "fd00:50::1:0".parse().unwrap();
        assert!(leased[0][0] < end, "{leased:?}");
        let reserved = "fd00:50::9".parse().unwrap();
        assert_eq!(leased[1..], [vec![reserved], vec![asked]]);
        let made = become_("slaac");
        assert_eq!(
            made,
            [vec![own(1)], vec![reserved, own(2)], vec![asked, own(3)]]
        );
        // DHCPv6 gives a port what it has: a guest keeps its address.
        assert_eq!(become_("stateful"), made);
    }
}
