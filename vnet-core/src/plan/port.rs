use super::{HostState, Knob, Link, LinkKind, Mark, PortFlags, Sysctl, TapOptions, bridge};
use crate::firewall;
use crate::model::{Home, Owner, Port, PortKind, World};
use crate::types::{IfName, Mac};

/// Adds what a port asks for.
///
/// The tap of a port lives as long as the port does: while its network is stopped it is off the bridge and down, so
/// that the guest that holds it open is put back by a start. (Down, because a tap that is up and on no bridge would
/// hand the guest's packets to the host itself.)
pub(super) fn add(state: &mut HostState, world: &World, port: &Port) {
    let live = port
        .key
        .home
        .network()
        .is_none_or(|n| world.active.contains(n));
    if let Home::Bridge(name) = &port.key.home {
        bridge::add_hosts(state, name);
    }
    let master = world.bridge_of(port).filter(|_| live);
    match &port.kind {
        PortKind::Tap { owner } | PortKind::TapFd { owner } => {
            let mark = Mark::Port(port.key.clone());
            let mut link = tap(mark, port.queues > 1, *owner, master);
            link.mac = Some(host_end(port.mac));
            link.flags = flags(world, port, live);
            add_tap(state, &port.interface, link);
        }
        PortKind::External => {
            if let Some(master) = master {
                let link = lent(port, master, flags(world, port, true));
                state.links.insert(port.interface.clone(), link);
            }
        }
        PortKind::VhostUser { owner: _ } => {
            if let Some(master) = master {
                add_uplink(state, port, master);
            }
        }
    }
}

fn tap(mark: Mark, multi_queue: bool, owner: Option<Owner>, master: Option<&IfName>) -> Link {
    let options = TapOptions {
        multi_queue,
        owner: owner.map(|o| o.uid).filter(|uid| *uid != 0),
    };
    Link {
        mark: Some(mark),
        up: master.is_some(),
        master: master.cloned(),
        ..Link::foreign(LinkKind::Tap(options))
    }
}

/// The MAC of the host's end of a tap: not the guest's, and high, since a bridge of the host that has no MAC of its
/// own takes the lowest of its ports', and must not change it for a guest.
fn host_end(guest: Mac) -> Mac {
    let mut octets = guest.octets();
    octets[0] = if octets[0] == 0xfe { 0xfa } else { 0xfe };
    Mac(octets)
}

/// The host has no business of its own on a tap: without IPv6 it sends the guest no solicitations either.
fn add_tap(state: &mut HostState, name: &IfName, link: Link) {
    let key = Sysctl::Interface(name.clone(), Knob::DisableIpv6);
    state.sysctls.insert(key, "1".to_owned());
    state.links.insert(name.clone(), link);
}

/// A port that a publication leads to is in hairpin mode; the firewall sees to it that nothing else is reflected.
fn flags(world: &World, port: &Port, live: bool) -> PortFlags {
    PortFlags {
        isolated: live && port.isolated,
        hairpin: live && firewall::needs_hairpin(world, port),
    }
}

fn lent(port: &Port, master: &IfName, flags: PortFlags) -> Link {
    Link {
        mark: Some(Mark::Lent(port.key.clone())),
        up: true,
        master: Some(master.clone()),
        flags,
        ..Link::foreign(LinkKind::Other)
    }
}

/// One tap for all vhost-user ports of a home; isolated as soon as one of them is, for the bridge cannot tell them apart.
/// So the others reach no isolated tap either; they reach each other, and everybody else.
fn add_uplink(state: &mut HostState, port: &Port, master: &IfName) {
    let home = &port.key.home;
    let name = home.uplink();
    let others = state.links.get(&name).is_some_and(|l| l.flags.isolated);
    let mut link = tap(Mark::Uplink(home.clone()), false, None, Some(master));
    let [a, b, c, d] = home.number().to_be_bytes();
    link.mac = Some(Mac([0xfe, 0x54, a, b, c, d]));
    link.flags.isolated = others || port.isolated;
    add_tap(state, &name, link);
}
