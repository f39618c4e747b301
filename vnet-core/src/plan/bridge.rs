use super::{BridgeOptions, HostState, Knob, Link, LinkKind, Mark, PortFlags, Route, Sysctl};
use crate::model::Network;
use crate::types::IpNet;

/// The kernel's own default.
const DEFAULT_MTU: u32 = 1500;
/// With spanning tree, the shortest wait the kernel allows (2 s): nobody's guest should stay dead for the default 15 s.
const STP_FORWARD_DELAY: u32 = 200;

/// Adds what a started network asks for, apart from its ports.
pub(super) fn add(state: &mut HostState, network: &Network) {
    let name = &network.bridge.name;
    if !network.owns_bridge() {
        add_hosts(state, name);
        return;
    }
    state.links.insert(name.clone(), link(network));
    for (knob, value) in knobs(network) {
        state
            .sysctls
            .insert(Sysctl::Interface(name.clone(), knob), value.to_owned());
    }
    let v4 = network.subnets4.iter().map(|s| IpNet::V4(s.address));
    let v6 = network.subnets6.iter().map(|s| IpNet::V6(s.address));
    state
        .addresses
        .extend(v4.chain(v6).map(|a| (name.clone(), a)));
    state.routes.extend(network.routes.iter().map(|r| Route {
        to: IpNet::V4(r.to),
        via: r.via.into(),
        dev: name.clone(),
        metric: r.metric,
    }));
    if network.forward.needs_forwarding() {
        let families = [
            (network.subnets4.is_empty(), Sysctl::Ip4Forwarding),
            (network.subnets6.is_empty(), Sysctl::Ip6Forwarding),
        ];
        for (_, key) in families.into_iter().filter(|(empty, _)| !empty) {
            state.sysctls.insert(key, "1".to_owned());
        }
    }
}

/// A bridge of the host that something of ours depends on: it must be there, and nothing of it is changed.
pub(super) fn add_hosts(state: &mut HostState, name: &crate::types::IfName) {
    state
        .links
        .entry(name.clone())
        .or_insert_with(|| Link::foreign(LinkKind::Bridge(BridgeOptions::default())));
}

fn link(network: &Network) -> Link {
    let bridge = &network.bridge;
    Link {
        mark: Some(Mark::Network(network.uuid)),
        kind: LinkKind::Bridge(BridgeOptions {
            stp: bridge.stp,
            forward_delay: if bridge.stp { STP_FORWARD_DELAY } else { 0 },
        }),
        mac: Some(bridge.mac),
        mtu: Some(bridge.mtu.map_or(DEFAULT_MTU, |m| m.get().into())),
        up: true,
        master: None,
        flags: PortFlags::default(),
    }
}

/// A network without IPv6 has none on its bridge either, so that guests cannot reach the host by link-local addresses.
fn knobs(network: &Network) -> impl Iterator<Item = (Knob, &'static str)> {
    let v6 = !network.subnets6.is_empty();
    let published = !network.publish.is_empty();
    let text = |on: bool| if on { "1" } else { "0" };
    [
        v6.then_some((Knob::AcceptRa, "0")),
        Some((Knob::RouteLocalnet, text(published))),
        Some((Knob::DisableIpv6, text(!v6))),
    ]
    .into_iter()
    .flatten()
}
