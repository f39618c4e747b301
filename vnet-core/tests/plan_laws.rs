//! Laws of the plan on random worlds and a host that others meddle with.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use uuid::Uuid;
use vnet_core::config::{Fill, native};
use vnet_core::model::{Home, Owner, Port, PortKey, PortKind, Qos, World};
use vnet_core::plan::fake::FakeHost;
use vnet_core::plan::{
    self, BridgeOptions, HostState, Knob, Link, LinkKind, Plan, PortFlags, Step, Sysctl,
};
use vnet_core::types::{IfName, Mac};

/// A fake host answers at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a fake host has nothing to wait for"),
    }
}

fn name(text: impl AsRef<str>) -> IfName {
    text.as_ref().parse().expect("an interface name")
}

fn knob(link: impl AsRef<str>, knob: Knob) -> Sysctl {
    Sysctl::Interface(name(link), knob)
}

/// What the host has before us: a bridge, a NIC that obeys advertisements, two veth ends.
fn bare(forwarding: bool) -> FakeHost {
    let mut state = HostState {
        firewall: Some(vnet_core::firewall::Ruleset::default()),
        ..HostState::default()
    };
    let full = |kind| Link {
        mac: Some(Mac([2, 0, 0, 0, 0, 9])),
        mtu: Some(1500),
        up: true,
        ..Link::foreign(kind)
    };
    let bridge = LinkKind::Bridge(BridgeOptions::default());
    state.links.insert(name("br0"), full(bridge));
    for nic in ["eth0", "veth0", "veth1"] {
        state.links.insert(name(nic), full(LinkKind::Other));
    }
    for (nic, obeys) in [("eth0", "1"), ("veth0", "0"), ("veth1", "1"), ("br0", "0")] {
        state
            .sysctls
            .insert(knob(nic, Knob::AcceptRa), obeys.to_owned());
        state
            .sysctls
            .insert(knob(nic, Knob::Autoconf), "1".to_owned());
    }
    let value = if forwarding { "1" } else { "0" };
    for key in [Sysctl::Ip4Forwarding, Sysctl::Ip6Forwarding] {
        state.sysctls.insert(key, value.to_owned());
    }
    FakeHost::new(state)
}

const MODES: [&str; 5] = ["nat", "routed", "isolated", "open", "bridge"];

#[derive(Debug, Clone)]
struct Net {
    mode: usize,
    v6: bool,
    mtu: Option<u16>,
    stp: bool,
    route: bool,
    published: bool,
    wide: bool,
    bridge: Option<u8>,
    active: bool,
}

impl Net {
    fn document(&self, number: usize) -> String {
        let mode = MODES[self.mode];
        let mut text = format!("name = \"net{number}\"\n[bridge]\n");
        if mode == "bridge" {
            return text + "name = \"br0\"\n[forward]\nmode = \"bridge\"\n";
        }
        if let Some(other) = self.bridge {
            text += &format!("name = \"vb{number}-{other}\"\n");
        }
        if let Some(mtu) = self.mtu {
            text += &format!("mtu = {mtu}\n");
        }
        let bits = if self.wide { 16 } else { 24 };
        text += &format!("stp = {}\n[forward]\nmode = \"{mode}\"\n", self.stp);
        text += &format!("[[subnet]]\naddress = \"10.{number}.0.1/{bits}\"\n");
        if self.v6 {
            text += &format!("[[subnet]]\naddress = \"fd0{number}::1/64\"\n");
        }
        if self.route {
            text +=
                &format!("[[route]]\nto = \"10.10{number}.0.0/16\"\nvia = \"10.{number}.0.9\"\n");
        }
        if self.published && mode != "isolated" {
            text +=
                &format!("[[publish]]\nguest = \"10.{number}.0.9\"\nports = \"808{number}:80\"\n");
        }
        text
    }
}

fn nets() -> impl Strategy<Value = Vec<Net>> {
    let net = (
        (0..MODES.len(), any::<bool>(), any::<bool>(), any::<bool>()),
        prop::option::of(1280_u16..9000),
        (
            any::<bool>(),
            any::<bool>(),
            prop::option::of(0_u8..3),
            prop::bool::weighted(0.8),
        ),
    );
    let net = net.prop_map(
        |((mode, v6, stp, route), mtu, (published, wide, bridge, active))| Net {
            mode,
            v6,
            mtu,
            stp,
            route,
            published,
            wide,
            bridge,
            active,
        },
    );
    prop::collection::vec(net, 0..4)
}

fn ports() -> impl Strategy<Value = Vec<(usize, u8, bool, bool)>> {
    prop::collection::vec((0_usize..5, 0_u8..5, any::<bool>(), any::<bool>()), 0..5)
}

fn worlds() -> impl Strategy<Value = World> {
    (nets(), ports()).prop_map(|(nets, ports)| {
        let mut world = World::default();
        for (number, net) in nets.iter().enumerate() {
            let low = u8::try_from(number).expect("a few");
            let fill = Fill {
                uuid: Uuid::from_u128(number as u128),
                bridge: name(format!("virbr{number}")),
                mac: Mac([0x52, 0x54, 0, 0, 0, low]),
                subnets: Vec::new(),
            };
            let docs = native::from_toml(&net.document(number)).expect("a document");
            let network = docs[0].settle(&fill).expect("a valid network");
            if net.active {
                world.active.insert(network.name.clone());
            }
            world.networks.insert(network.name.clone(), network);
        }
        for (number, (home, kind, isolated, wide)) in ports.into_iter().enumerate() {
            let port = port(number, home, kind, isolated, wide);
            if world.admits_port(&port).is_ok() {
                world.ports.insert(port.key.clone(), port);
            }
        }
        world
    })
}

fn port(number: usize, home: usize, kind: u8, isolated: bool, wide: bool) -> Port {
    let home = match home {
        0..3 => Home::Network(format!("net{home}").parse().expect("a name")),
        _ => Home::Bridge(name("br0")),
    };
    let owner = Some(Owner { uid: 1000 });
    let (kind, interface) = match kind {
        0 | 1 => (PortKind::Tap { owner }, format!("tap{number}")),
        2 => (PortKind::TapFd { owner: None }, format!("tap{number}")),
        3 => (PortKind::External, format!("veth{}", number % 3)),
        _ => (PortKind::VhostUser { owner: None }, format!("ring{number}")),
    };
    Port {
        key: PortKey {
            home,
            name: format!("p{number}").parse().expect("a name"),
        },
        kind,
        interface: name(interface),
        mac: Mac([0x52, 0x54, 0, 1, 0, u8::try_from(number).expect("a few")]),
        ipv4: Vec::new(),
        ipv6: Vec::new(),
        asked6: Vec::new(),
        guard: true,
        isolated,
        queues: if wide { 4 } else { 1 },
        qos: Qos::default(),
    }
}

/// What others do to the host while we are not looking; the number picks the victim.
fn meddle(host: &mut FakeHost, deeds: &[(u8, usize)]) {
    for (deed, victim) in deeds {
        let state = &mut host.state;
        let links: Vec<IfName> = state.links.keys().cloned().collect();
        let made: Vec<IfName> = state
            .links
            .iter()
            .filter(|(_, l)| l.is_made())
            .map(|(n, _)| n.clone())
            .collect();
        let pick =
            |names: &[IfName]| (!names.is_empty()).then(|| names[victim % names.len()].clone());
        match deed {
            0 => {
                // The kernel drops the routes that nothing leads to any more.
                if let Some((dev, _)) = state.addresses.pop_first() {
                    state.routes.retain(|route| route.dev != dev);
                }
            }
            1 => state.routes.clear(),
            2 => state.firewall = Some(vnet_core::firewall::Ruleset::default()),
            3 => {
                if let Some(down) = pick(&made) {
                    state.routes.retain(|route| route.dev != down);
                    let link = state
                        .links
                        .get_mut(&down)
                        .expect("it was picked from these");
                    (link.up, link.mtu) = (false, Some(1300));
                }
            }
            4 => {
                if let Some(link) = pick(&links).and_then(|n| state.links.get_mut(&n))
                    && link.mark.is_some()
                {
                    (link.master, link.flags) = (None, PortFlags::default());
                }
            }
            5 => {
                if let Some(gone) = pick(&made) {
                    let step = Step::Delete(plan::NewLink {
                        link: state.links[&gone].clone(),
                        name: gone,
                        sysctls: Default::default(),
                        ports: BTreeSet::new(),
                    });
                    now(plan::Host::apply(host, &step)).expect("there to be deleted");
                }
            }
            6 => {
                let bridge = made.iter().find(|n| state.links[*n].is_bridge()).cloned();
                if let Some(eth0) = state.links.get_mut("eth0").filter(|_| bridge.is_some()) {
                    eth0.master = bridge;
                }
            }
            7 => {
                state.links.remove("veth1");
                state
                    .sysctls
                    .retain(|k, _| k.interface() != Some(&name("veth1")));
            }
            _ => {
                let keys: Vec<Sysctl> = state
                    .sysctls
                    .keys()
                    .filter(|k| **k != knob("eth0", Knob::AcceptRa))
                    .cloned()
                    .collect();
                let value = &mut state.sysctls;
                value.insert(keys[victim % keys.len()].clone(), "0".to_owned());
            }
        }
    }
}

fn settle(host: &FakeHost, world: &World) -> Plan {
    plan::settle(&host.state, &plan::desired(world)).0
}

/// A host that has reached a world, and was then meddled with.
fn reached(world: &World, forwarding: bool, deeds: &[(u8, usize)]) -> FakeHost {
    let mut host = bare(forwarding);
    let plan = settle(&host, world);
    now(plan::execute(plan, &mut host)).expect("a plan on a bare host runs");
    meddle(&mut host, deeds);
    host
}

fn deeds() -> impl Strategy<Value = Vec<(u8, usize)>> {
    prop::collection::vec((0_u8..9, any::<usize>()), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// After a plan ran, there is nothing more to do.
    #[test]
    fn a_second_plan_is_empty(a in worlds(), b in worlds(), forwarding: bool, deeds in deeds()) {
        let mut host = reached(&a, forwarding, &deeds);
        let plan = settle(&host, &b);
        let text = plan.to_string();
        if let Err(failed) = now(plan::execute(plan, &mut host)) {
            panic!("{failed}\nof\n{text}");
        }
        let again = settle(&host, &b);
        prop_assert!(again.is_empty(), "{text}and then\n{again}");
    }

    /// A port that is added to a running world changes what it says it changes, and the way there is the same.
    #[test]
    fn an_addition_is_the_whole_difference(world in worlds(), forwarding: bool) {
        for port in world.ports.values() {
            let mut before = world.clone();
            before.ports.remove(&port.key);
            let Some(addition) = plan::addition(&world, port) else { continue };
            let host = reached(&before, forwarding, &[]);
            let mut desired = plan::desired(&before);
            // Where something is in the way of another port, the whole has no plan, and the addition goes on.
            let settled = plan::diff(&host.state, &desired);
            if !settled.is_ok_and(|plan| plan.is_empty()) {
                continue;
            }
            desired.absorb(addition.clone());
            let whole = plan::desired(&world);
            prop_assert_eq!(&desired, &whole);
            let short = plan::diff_addition(&host.state, &desired, &addition);
            let long = plan::diff(&host.state, &whole);
            prop_assert_eq!(short, long);
        }
    }

    /// Whichever step fails, the host is as it was.
    #[test]
    fn a_failure_at_any_step_changes_nothing(a in worlds(), b in worlds(), deeds in deeds()) {
        let before = reached(&a, false, &deeds);
        let plan = settle(&before, &b);
        for step in 0..plan.len() {
            let mut host = before.clone();
            host.fail_at(step);
            let failed = now(plan::execute(plan.clone(), &mut host)).expect_err("told to fail");
            prop_assert!(failed.left.is_empty(), "{failed}");
            let (is, should) = (&host.state, &before.state);
            prop_assert!(is == should, "step {step} of\n{plan}\nleft\n{is}instead of\n{should}");
        }
    }

    /// What bears no mark is not touched, but for being lent to a port that names it, and for uplinks' advertisements.
    #[test]
    fn a_plan_never_names_what_is_not_ours(a in worlds(), b in worlds(), deeds in deeds()) {
        let host = reached(&a, false, &deeds);
        let desired = plan::desired(&b);
        for step in settle(&host, &b).steps() {
            let Some(link) = step.link() else { continue };
            let marked = |state: &HostState| state.links.get(link).is_some_and(|l| l.mark.is_some());
            let made = |state: &HostState| state.links.get(link).is_some_and(Link::is_made);
            match step {
                Step::Set { key: Sysctl::Interface(_, Knob::AcceptRa), to, .. } if to == "2" => {}
                Step::Change { .. } => prop_assert!(marked(&host.state) || marked(&desired), "{step}"),
                Step::Create(_) | Step::Delete(_) | Step::Set { .. } | Step::Firewall { .. }
                | Step::AddAddress(..) | Step::RemoveAddress(..) | Step::AddRoute(_)
                | Step::RemoveRoute(_) => prop_assert!(made(&host.state) || made(&desired), "{step}"),
            }
        }
    }

    /// Teardown gives the host its own values back.
    #[test]
    fn what_the_host_had_it_gets_back(a in worlds(), forwarding: bool) {
        let before = bare(forwarding);
        let mut host = before.clone();
        let mut remembered = plan::Remembered::default();
        for world in [a, World::default()] {
            let mut desired = plan::desired(&world);
            remembered.complete(&mut desired, &host.state);
            let (plan, _) = plan::settle(&host.state, &desired);
            let done = now(plan::execute(plan, &mut host)).expect("runs");
            remembered.learn(&done);
        }
        prop_assert!(remembered.0.is_empty(), "{remembered:?}");
        prop_assert_eq!(host.state, before.state);
    }
}
