use super::{HostState, bridge, port};
use crate::firewall;
use crate::model::World;

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
