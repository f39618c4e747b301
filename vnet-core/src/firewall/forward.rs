//! Where packets of a network may go, and what its guests may reach on the host.
//!
//! Base chains `vnet_forward`, `vnet_input` and `vnet_raw` of table `inet vnet`. Each forward mode is one arm of
//! [`network`]; the chains never change.

use super::rule::Field::{
    CtDirection, CtState, CtStatus, Destination4, Destination6, DestinationPort, Family, Icmp,
    Icmp6, Iif, Oif, Source4, Source6, Transport,
};
use super::rule::{Action, At, Chain, Hook, Rule, Value, is, not, one_of, udp_to, values, word};
use super::ruleset::Ruleset;
use super::set::{SetName, Table};
use crate::model::{Forward, HostAccess, Network};

/// Where every refusal of table `inet` ends: a client should not have to wait for a time-out.
const REFUSE: Action = Action::Jump("vnet_refuse");

/// The elements that a network adds.
pub(super) fn network(rules: &mut Ruleset, network: &Network) {
    match &network.forward {
        Forward::Nat(_) => filtered(rules, network),
        Forward::Routed { .. } => {
            filtered(rules, network);
            rules.add(SetName::Routed, [(&network.bridge.name).into()]);
        }
        Forward::Isolated => {
            filtered(rules, network);
            rules.add(SetName::Isolated, [(&network.bridge.name).into()]);
        }
        // No packet rule of ours; the gateway is known only so that nobody's publication takes its DNS away.
        Forward::Open => gateways(rules, network),
        Forward::Bridge => {}
    }
}

fn filtered(rules: &mut Ruleset, network: &Network) {
    let bridge = || (&network.bridge.name).into();
    rules.add(SetName::Bridges, [bridge()]);
    rules.add(SetName::Own, [bridge(), bridge()]);
    gateways(rules, network);
    // What the host routes through a guest comes back through it.
    for to in network.routes.iter().map(|route| route.to) {
        rules.add(SetName::Source4, [bridge(), to.into()]);
    }
    for subnet in &network.subnets4 {
        rules.add(SetName::Source4, [bridge(), subnet.prefix().into()]);
    }
    for subnet in &network.subnets6 {
        rules.add(SetName::Source6, [bridge(), subnet.prefix().into()]);
    }
    if let Some(egress) = network.forward.egress() {
        rules.add(SetName::Bound, [bridge()]);
        rules.add(SetName::Egress, [bridge(), egress.into()]);
    }
    match network.host_access {
        HostAccess::All => {}
        HostAccess::Services => rules.add(SetName::Limited, [bridge()]),
        HostAccess::None => {
            rules.add(SetName::Limited, [bridge()]);
            rules.add(SetName::Closed, [bridge()]);
        }
    }
}

fn gateways(rules: &mut Ruleset, network: &Network) {
    let bridge = || (&network.bridge.name).into();
    for subnet in &network.subnets4 {
        rules.add(SetName::Gateway4, [bridge(), subnet.gateway().into()]);
    }
    for subnet in &network.subnets6 {
        rules.add(SetName::Gateway6, [bridge(), subnet.gateway().into()]);
        let link_local = network.bridge.mac.link_local();
        rules.add(SetName::Gateway6, [bridge(), link_local.into()]);
    }
}

/// The chains, the same in every ruleset.
pub(super) fn chains() -> Vec<Chain> {
    let chain = |name, hook, rules| Chain {
        table: Table::Inet,
        name,
        hook,
        rules,
    };
    let filter = |at, priority| {
        Some(Hook {
            nat: false,
            at,
            priority,
        })
    };
    vec![
        chain("vnet_refuse", None, refuse()),
        chain("vnet_raw", filter(At::Prerouting, -300), raw()),
        chain("vnet_input", filter(At::Input, 0), input()),
        chain("vnet_forward", filter(At::Forward, 0), forward()),
    ]
}

fn refuse() -> Vec<Rule> {
    vec![
        // ICMP errors are rate-limited: of two refused connections one would wait for its time-out.
        Rule::new([word(Transport, "tcp")], Action::Reset),
        Rule::new([], Action::Prohibit),
    ]
}

/// `route_localnet`, which publishing to 127.0.0.1 needs, would open the host's loopback services to guests.
fn raw() -> Vec<Rule> {
    let loopback = || vec![Value::Prefix("127.0.0.0", 8)];
    let drop = |set, field| Rule::new([is(&[Iif], set), values(field, loopback())], Action::Drop);
    vec![
        drop(SetName::Bridges, Destination4),
        drop(SetName::Bridges, Source4),
        drop(SetName::Published, Destination4),
        drop(SetName::Published, Source4),
    ]
}

fn input() -> Vec<Rule> {
    let accept = |tests: Vec<_>| Rule::new(tests, Action::Accept);
    let own4 = || is(&[Iif, Destination4], SetName::Gateway4);
    let own6 = || is(&[Iif, Destination6], SetName::Gateway6);
    let dns = || {
        [
            one_of(Transport, &["tcp", "udp"]),
            values(DestinationPort, vec![Value::Number(53)]),
        ]
    };
    let [udp, dhcp4] = udp_to(&[67]);
    // A renewal, and a file by TFTP where the network serves any.
    let [_, own_services] = udp_to(&[67, 69]);
    let [_, dhcp6] = udp_to(&[547]);
    let neighbours = [
        "mld-listener-query",
        "mld-listener-report",
        "mld2-listener-report",
        "nd-router-solicit",
        "nd-neighbor-solicit",
        "nd-neighbor-advert",
    ];
    vec![
        accept(vec![not(&[Iif], SetName::Limited)]),
        accept(vec![one_of(CtState, &["established", "related"])]),
        accept(vec![
            word(Destination4, "255.255.255.255"),
            udp.clone(),
            dhcp4.clone(),
        ]),
        accept(vec![own4(), udp.clone(), own_services]),
        accept(vec![
            word(Destination6, "ff02::1:2"),
            udp.clone(),
            dhcp6.clone(),
        ]),
        accept(vec![own6(), udp, dhcp6]),
        accept(vec![one_of(Icmp6, &neighbours)]),
        Rule::new([is(&[Iif], SetName::Closed)], REFUSE),
        accept([own4()].into_iter().chain(dns()).collect()),
        accept([own6()].into_iter().chain(dns()).collect()),
        accept(vec![own4(), word(Icmp, "echo-request")]),
        accept(vec![own6(), word(Icmp6, "echo-request")]),
        Rule::new([], REFUSE),
    ]
}

fn forward() -> Vec<Rule> {
    let from_ours = || is(&[Iif], SetName::Bridges);
    let source = |family, field, set| [from_ours(), word(Family, family), not(&[Iif, field], set)];
    let outward = word(CtDirection, "original");
    let is_bound = |end| is(&[end], SetName::Bound);
    vec![
        Rule::new(
            [not(&[Iif], SetName::Bridges), not(&[Oif], SetName::Bridges)],
            Action::Accept,
        ),
        // With br_netfilter, frames that a bridge switches pass here too.
        Rule::new([is(&[Iif, Oif], SetName::Own)], Action::Accept),
        // Before any reply is let through: nothing in either direction.
        Rule::new([is(&[Iif], SetName::Isolated)], REFUSE),
        Rule::new([is(&[Oif], SetName::Isolated)], REFUSE),
        // Before established too: a route that changes must not carry a connection past its restriction.
        Rule::new(
            [outward, is_bound(Iif), not(&[Iif, Oif], SetName::Egress)],
            REFUSE,
        ),
        Rule::new(
            [one_of(CtState, &["established", "related"])],
            Action::Accept,
        ),
        Rule::new([word(CtState, "invalid")], Action::Drop),
        Rule::new(source("ipv4", Source4, SetName::Source4), REFUSE),
        Rule::new(source("ipv6", Source6, SetName::Source6), REFUSE),
        Rule::new(
            [word(CtStatus, "dnat"), is(&[Oif], SetName::Published)],
            Action::Accept,
        ),
        Rule::new([is_bound(Oif), not(&[Oif, Iif], SetName::Egress)], REFUSE),
        Rule::new([is(&[Oif], SetName::Routed)], Action::Accept),
        Rule::new([is(&[Oif], SetName::Bridges)], REFUSE),
    ]
}
