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

/// After a change of a network: its ports lose the addresses of subnets that are gone, and get some of new ones.
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
        let stays = |a: &Ipv6Addr| network.subnets6.iter().any(|s| s.address.contains(a));
        port.ipv6.retain(stays);
        learn(world, &network, leased, &mut port);
        world.ports.insert(key, port);
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
