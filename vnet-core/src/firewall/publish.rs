//! Address translation: a host's port to a guest, and guests to the outside.
//!
//! Base chains `vnet_dstnat`, `vnet_dstnat_local` and `vnet_srcnat` of table `inet vnet`. A published port answers
//! from outside, on the host's addresses, on 127.0.0.1, and to guests, the publishing one included.

use super::rule::Field::{
    CtStatus, Destination4, Destination6, DestinationKind, DestinationPort, Family, Iif, Oif,
    Source4, Source6, Transport,
};
use super::rule::{Action, At, Chain, Hook, Rule, Value, is, one_of, values, word};
use super::ruleset::Ruleset;
use super::set::{SetName, Table, Translation};
use crate::model::{Forward, Home, Nat, Network, Port, PortKey, Publish, Target, World};

/// The elements that a network adds.
pub(super) fn network(rules: &mut Ruleset, world: &World, network: &Network) {
    if let Forward::Nat(nat) = &network.forward {
        translate(rules, network, nat);
    }
    if publishes(network) {
        let led = network
            .publish
            .iter()
            .filter(|p| lead(rules, world, network, p));
        if led.count() > 0 {
            pair(rules, network);
        }
    }
}

fn translate(rules: &mut Ruleset, network: &Network, nat: &Nat) {
    let translation = Translation {
        addresses: nat.addresses,
        ports: nat.ports,
    };
    rules.add(SetName::Nat(translation), [(&network.bridge.name).into()]);
    if nat.ipv6 {
        rules.add(SetName::Nat6, [(&network.bridge.name).into()]);
    }
}

/// Lead a host's port to its guest, if that guest's address is known.
fn lead(rules: &mut Ruleset, world: &World, network: &Network, publish: &Publish) -> bool {
    let key = || [publish.protocol.into(), publish.host_port.into()];
    let v4 = world.guest_address(&network.name, &publish.target);
    if let Some(address) = v4 {
        rules.map(SetName::PublishAddress4, key(), address.into());
        rules.map(SetName::PublishPort4, key(), publish.guest_port.into());
    }
    let v6 = address6(world, network, &publish.target);
    if let Some(address) = v6 {
        rules.map(SetName::PublishAddress6, key(), address.into());
        rules.map(SetName::PublishPort6, key(), publish.guest_port.into());
    }
    v4.is_some() || v6.is_some()
}

fn address6(world: &World, network: &Network, target: &Target) -> Option<std::net::Ipv6Addr> {
    let Target::Name(name) = target else {
        return None;
    };
    let key = PortKey {
        home: Home::Network(network.name.clone()),
        name: name.clone(),
    };
    world.ports.get(&key)?.ipv6.first().copied()
}

/// Whether a publication leads to this port. Its bridge port then needs hairpin mode: with br_netfilter, what its own
/// guest sends to the published port is turned around inside the bridge.
pub(super) fn leads_to(world: &World, port: &Port) -> bool {
    let Some(network) = port
        .key
        .home
        .network()
        .and_then(|name| world.networks.get(name))
    else {
        return false;
    };
    let to = |target: &Target| match target {
        Target::Name(name) => *name == port.key.name,
        Target::Address(address) => port.ipv4.contains(address),
    };
    publishes(network) && network.publish.iter().any(|p| to(&p.target))
}

/// Nothing enters an isolated network, and a host bridge is not ours to translate for.
const fn publishes(network: &Network) -> bool {
    match network.forward {
        Forward::Nat(_) | Forward::Routed { .. } | Forward::Open => true,
        Forward::Isolated | Forward::Bridge => false,
    }
}

/// A client in the guest's own subnet must see the answer come from whom it asked: from us.
fn pair(rules: &mut Ruleset, network: &Network) {
    rules.add(SetName::Published, [(&network.bridge.name).into()]);
    for a in &network.subnets4 {
        for b in &network.subnets4 {
            rules.add(SetName::Same4, [a.prefix().into(), b.prefix().into()]);
        }
    }
    for a in &network.subnets6 {
        for b in &network.subnets6 {
            rules.add(SetName::Same6, [a.prefix().into(), b.prefix().into()]);
        }
    }
}

/// The chains: the same in every ruleset, but for the translations.
pub(super) fn chains(translations: &[Translation]) -> Vec<Chain> {
    let chain = |name, at, priority, rules| Chain {
        table: Table::Inet,
        name,
        hook: Some(Hook {
            nat: true,
            at,
            priority,
        }),
        rules,
    };
    vec![
        chain("vnet_dstnat", At::Prerouting, -100, inward(true)),
        chain("vnet_dstnat_local", At::Output, -100, inward(false)),
        chain("vnet_srcnat", At::Postrouting, 100, outward(translations)),
    ]
}

fn inward(from_guests: bool) -> Vec<Rule> {
    let services = || {
        let ports = [53, 67, 547].map(Value::Number).to_vec();
        [
            one_of(Transport, &["tcp", "udp"]),
            values(DestinationPort, ports),
        ]
    };
    let keep = |field, set| {
        let [transport, port] = services();
        Rule::new([is(&[Iif, field], set), transport, port], Action::Accept)
    };
    let lead = |family, v6, address, port| {
        let tests = [word(Family, family), word(DestinationKind, "local")];
        Rule::new(tests, Action::Dnat { v6, address, port })
    };
    let mut rules = Vec::new();
    if from_guests {
        // Who publishes port 53 publishes it to the outside, and does not take the gateway's DNS from all guests.
        rules.push(keep(Destination4, SetName::Gateway4));
        rules.push(keep(Destination6, SetName::Gateway6));
    }
    rules.push(lead(
        "ipv4",
        false,
        SetName::PublishAddress4,
        SetName::PublishPort4,
    ));
    rules.push(lead(
        "ipv6",
        true,
        SetName::PublishAddress6,
        SetName::PublishPort6,
    ));
    rules
}

fn outward(translations: &[Translation]) -> Vec<Rule> {
    let plain = Action::Masquerade { ports: None };
    let dnat = || word(CtStatus, "dnat");
    let loopback = values(Source4, vec![Value::Prefix("127.0.0.0", 8)]);
    let broadcast = values(
        Destination4,
        vec![
            Value::Prefix("224.0.0.0", 24),
            Value::Word("255.255.255.255"),
        ],
    );
    let multicast = values(Destination6, vec![Value::Prefix("ff00::", 8)]);
    let mut rules = vec![
        Rule::new([dnat(), is(&[Oif], SetName::Published), loopback], plain),
        Rule::new(
            [dnat(), is(&[Source4, Destination4], SetName::Same4)],
            plain,
        ),
        Rule::new(
            [dnat(), is(&[Source6, Destination6], SetName::Same6)],
            plain,
        ),
        Rule::new([is(&[Iif, Oif], SetName::Own)], Action::Accept),
        Rule::new([broadcast], Action::Accept),
        Rule::new([multicast], Action::Accept),
    ];
    for translation in translations {
        rules.extend(translated(*translation));
    }
    rules.push(Rule::new(
        [word(Family, "ipv6"), is(&[Iif], SetName::Nat6)],
        plain,
    ));
    rules
}

fn translated(translation: Translation) -> [Rule; 3] {
    let Translation { addresses, ports } = translation;
    let action = |ports| match addresses {
        Some(addresses) => Action::Snat { addresses, ports },
        None => Action::Masquerade { ports },
    };
    let family = |family| word(Family, family);
    let bridge = || is(&[Iif], SetName::Nat(translation));
    let with_ports = || one_of(Transport, &["tcp", "udp"]);
    let masquerade = Action::Masquerade { ports: Some(ports) };
    let v6 = [
        family("ipv6"),
        is(&[Iif], SetName::Nat6),
        bridge(),
        with_ports(),
    ];
    [
        Rule::new(
            [family("ipv4"), bridge(), with_ports()],
            action(Some(ports)),
        ),
        Rule::new([family("ipv4"), bridge()], action(None)),
        Rule::new(v6, masquerade),
    ]
}
