//! What is free: bridges, subnets, MACs, interface names. Chosen here, and only here.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use vnet_core::config::Fill;
use vnet_core::config::native::NetworkDoc;
use vnet_core::host::Taken;
use vnet_core::lease::Time;
use vnet_core::model::{Home, Network, PortKey, World};
use vnet_core::types::{IfName, IpNet, Ipv4Net, Mac};

use super::Refusal;

/// Random bytes from the kernel.
pub(super) fn random<const N: usize>() -> Result<[u8; N], Refusal> {
    use std::io::Read;
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|e| Refusal::Failed(format!("the kernel gives no random bytes: {e}")))?;
    Ok(bytes)
}

/// This moment.
pub(super) fn now() -> Time {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A MAC of the virtual machines' prefix that no port and no bridge of the world has.
pub(super) fn free_mac(world: &World) -> Result<Mac, Refusal> {
    loop {
        let mac = Mac::virtual_machine(random()?);
        let bridges = world.networks.values().any(|n| n.bridge.mac == mac);
        if !bridges && !world.ports.values().any(|p| p.mac == mac) {
            return Ok(mac);
        }
    }
}

/// What a document leaves open, chosen so that nothing of the world or the host is in its way.
pub(super) fn fill(doc: &NetworkDoc, world: &World, taken: &Taken) -> Result<Fill, Refusal> {
    let old = world
        .networks
        .values()
        .find(|n| n.name.as_str() == doc.name);
    if let Some(old) = old {
        let kept = old.subnets4.iter().map(|s| s.address);
        let fresh = free_subnets(world, taken);
        let subnets = kept.chain(fresh).take(doc.open_subnets()).collect();
        return Ok(Fill {
            uuid: old.uuid,
            bridge: old.bridge.name.clone(),
            mac: old.bridge.mac,
            subnets,
        });
    }
    let uuid = uuid::Builder::from_random_bytes(random()?).into_uuid();
    let subnets = free_subnets(world, taken)
        .take(doc.open_subnets())
        .collect();
    Ok(Fill {
        uuid,
        bridge: free_bridge(world, taken)?,
        mac: free_mac(world)?,
        subnets,
    })
}

fn free_bridge(world: &World, taken: &Taken) -> Result<IfName, Refusal> {
    let used: BTreeSet<&IfName> = world.networks.values().map(|n| &n.bridge.name).collect();
    let names = (0..100_000).filter_map(|i| format!("virbr{i}").parse::<IfName>().ok());
    names
        .into_iter()
        .find(|name| !used.contains(name) && !taken.has_interface(name))
        .ok_or_else(|| {
            Refusal::Conflict("every bridge name from virbr0 on is taken: give one".to_owned())
        })
}

/// 192.168.122.0/24 first, as everybody knows it, then its neighbours, then a corner of 10.0.0.0/8.
fn candidates() -> impl Iterator<Item = Ipv4Net> {
    let near = (122..=254).map(|third| Ipv4Addr::new(192, 168, third, 1));
    let far = (64..=254u8)
        .flat_map(|second| (0..=255u8).map(move |third| Ipv4Addr::new(10, second, third, 1)));
    near.chain(far)
        .filter_map(|gateway| Ipv4Net::new(gateway, 24).ok())
}

fn free_subnets<'a>(world: &'a World, taken: &'a Taken) -> impl Iterator<Item = Ipv4Net> + 'a {
    let ours: Vec<Ipv4Net> = world
        .networks
        .values()
        .flat_map(|n| n.subnets4.iter().map(vnet_core::model::Subnet4::prefix))
        .collect();
    candidates().filter(move |net| {
        let free_here = ours.iter().all(|other| !overlap(*net, *other));
        free_here && taken.overlap(&IpNet::V4(*net)).is_none()
    })
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Refuses a network one of whose subnets the host already uses.
pub(super) fn fits_the_host(
    network: &Network,
    old: Option<&Network>,
    taken: &Taken,
) -> Result<(), Refusal> {
    let had = |net: &IpNet| old.is_some_and(|old| prefixes(old).any(|theirs| theirs == *net));
    for subnet in prefixes(network).filter(|net| !had(net)) {
        if let Some(what) = taken.overlap(&subnet) {
            return Err(Refusal::Conflict(format!(
                "subnet {subnet} overlaps {what}: choose another, or write address = \"auto\" for the next free one"
            )));
        }
    }
    Ok(())
}

fn prefixes(network: &Network) -> impl Iterator<Item = IpNet> {
    let v4 = network.subnets4.iter().map(|s| IpNet::V4(s.prefix()));
    v4.chain(network.subnets6.iter().map(|s| IpNet::V6(s.prefix())))
}

/// A name for a port's tap: readable if it fits, and nobody else's.
pub(super) fn free_interface(
    key: &PortKey,
    world: &World,
    exists: impl Fn(&IfName) -> bool,
) -> Result<IfName, Refusal> {
    let used = |name: &IfName| exists(name) || world.ports.values().any(|p| p.interface == *name);
    let short: String = key.name.as_str().chars().take(7).collect();
    let hash = fnv(&key.to_string());
    let plain = format!("vt-{}", key.name);
    let tries = std::iter::once(plain)
        .chain((0..64u32).map(|i| format!("vt-{short}-{:04x}", (hash ^ i) & 0xffff)));
    let mut names = tries.filter_map(|name| name.parse::<IfName>().ok());
    names.find(|name| !used(name)).ok_or_else(|| {
        let home = match &key.home {
            Home::Network(name) => name.to_string(),
            Home::Bridge(name) => name.to_string(),
        };
        Refusal::Conflict(format!(
            "no interface name is free for `{}` on {home}: give one with --interface",
            key.name
        ))
    })
}

/// FNV-1a: names that stay the same from run to run.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(addresses: &[(&str, &str)], routes: &[&str]) -> Taken {
        Taken {
            interfaces: addresses
                .iter()
                .map(|(link, _)| (*link).to_owned())
                .collect(),
            addresses: addresses
                .iter()
                .map(|(l, a)| ((*l).to_owned(), a.parse().unwrap()))
                .collect(),
            routes: routes
                .iter()
                .map(|r| (String::new(), r.parse().unwrap()))
                .collect(),
        }
    }

    fn first(taken: &Taken) -> String {
        free_subnets(&World::default(), taken)
            .next()
            .unwrap()
            .to_string()
    }

    #[test]
    fn the_familiar_subnet_unless_anything_overlaps_it() {
        assert_eq!(first(&taken(&[], &[])), "192.168.122.1/24");
        assert_eq!(
            first(&taken(&[("eth0", "192.168.122.77/24")], &[])),
            "192.168.123.1/24"
        );
        assert_eq!(
            first(&taken(&[("eth0", "192.168.122.200/28")], &[])),
            "192.168.123.1/24"
        );
        assert_eq!(
            first(&taken(&[], &["192.168.120.0/22"])),
            "192.168.124.1/24"
        );
        assert_eq!(
            first(&taken(&[("wg0", "192.168.0.5/16")], &[])),
            "10.64.0.1/24"
        );
    }

    #[test]
    fn bridges_skip_what_exists() {
        let taken = taken(&[("virbr0", "10.0.0.1/24"), ("virbr1", "10.0.1.1/24")], &[]);
        assert_eq!(
            free_bridge(&World::default(), &taken).unwrap().as_str(),
            "virbr2"
        );
    }

    #[test]
    fn interface_names_fit_and_differ() {
        let key = |text: &str| text.parse::<PortKey>().unwrap();
        let world = World::default();
        let name = |k: &str| {
            free_interface(&key(k), &world, |_| false)
                .unwrap()
                .to_string()
        };
        assert_eq!(name("default/web"), "vt-web");
        let long = name("default/a-very-long-guest-name");
        assert!(long.len() <= 15 && long.starts_with("vt-a-very-"), "{long}");
        assert_ne!(long, name("other/a-very-long-guest-name"));
        let taken =
            free_interface(&key("default/web"), &world, |n| n.as_str() == "vt-web").unwrap();
        assert_ne!(taken.as_str(), "vt-web");
    }
}
