use super::{HostState, bridge, port};
use crate::firewall;
use crate::model::{Home, Port, PortKind, World};

/// What the whole host should look like: all started networks, and every port.
#[must_use]
pub fn desired(world: &World) -> HostState {
    let mut state = HostState::default();
    for network in world.running() {
        bridge::add(&mut state, network);
    }
    for port in world.ports.values() {
        port::add(&mut state, world, port);
    }
    state.firewall = Some(firewall::compile(world));
    state
}

/// What a port adds to the state of its world, if that is all: whatever a port may change besides, [`desired`] knows.
///
/// It is the law that a world without the port, and this, are the world with it.
#[must_use]
pub fn addition(world: &World, port: &Port) -> Option<HostState> {
    let own_link = match port.kind {
        PortKind::Tap { .. } | PortKind::TapFd { .. } | PortKind::External => true,
        PortKind::VhostUser { .. } => false,
    };
    let network = match &port.key.home {
        Home::Network(name) => world.networks.get(name)?,
        Home::Bridge(_) => return None,
    };
    let running = network.owns_bridge() && world.active.contains(&network.name);
    if !own_link || !running || !network.publish.is_empty() {
        return None;
    }
    let mut state = HostState::default();
    port::add(&mut state, world, port);
    state.firewall = Some(firewall::compile_port(world, port));
    Some(state)
}
