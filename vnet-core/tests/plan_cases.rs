//! Golden cases of the plan: a world becomes a host, and a host that is otherwise gets there by these steps.
//!
//! `cases/plan/NAME/`: `world.toml` (networks) and perhaps `ports.toml`, `before.toml` (the networks before; none if
//! absent); out come `state.txt` and `plan.txt`. `UPDATE=1` rewrites those. The packet rules have cases of their own.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use uuid::Uuid;
use vnet_core::config::{Fill, native};
use vnet_core::model::{Port, World};
use vnet_core::plan::{self, HostState};
use vnet_core::types::{IfName, Mac};

#[derive(Deserialize, Default)]
struct Ports {
    port: Vec<Port>,
}

fn world(folder: &Path, networks: &str) -> World {
    let mut world = World::default();
    let Ok(text) = fs::read_to_string(folder.join(networks)) else {
        return world;
    };
    let docs = native::from_toml(&text).expect("a document");
    for (number, doc) in (1_u8..).zip(docs) {
        let fill = Fill {
            uuid: Uuid::from_u128(number.into()),
            bridge: format!("virbr{number}").parse().expect("a name"),
            mac: Mac([0x52, 0x54, 0, 0, 0, number]),
            subnets: Vec::new(),
        };
        let network = doc.settle(&fill).expect("a valid network");
        world.active.insert(network.name.clone());
        world.networks.insert(network.name.clone(), network);
    }
    let ports = fs::read_to_string(folder.join("ports.toml")).unwrap_or_default();
    let ports: Ports = if ports.is_empty() {
        Ports::default()
    } else {
        toml::from_str(&ports).expect("ports")
    };
    world
        .ports
        .extend(ports.port.into_iter().map(|p| (p.key.clone(), p)));
    world
}

/// A host on which the world before was reached, with the interfaces that cases lean on.
fn host(before: &World) -> HostState {
    use plan::{BridgeOptions, Knob, Link, LinkKind, Sysctl};
    let name = |text: &str| -> IfName { text.parse().expect("a name") };
    let mut state = HostState::default();
    let bridge = Link::foreign(LinkKind::Bridge(BridgeOptions::default()));
    state.links.insert(name("br0"), bridge);
    for nic in ["eth0", "veth0"] {
        let link = Link::foreign(LinkKind::Other);
        state.links.insert(name(nic), link);
        for knob in [Knob::AcceptRa, Knob::Autoconf] {
            let key = Sysctl::Interface(name(nic), knob);
            state.sysctls.insert(key, "1".to_owned());
        }
    }
    for key in [Sysctl::Ip4Forwarding, Sysctl::Ip6Forwarding] {
        state.sysctls.insert(key, "0".to_owned());
    }
    let reached = plan::desired(before);
    for (name, link) in reached.links {
        state.links.entry(name).or_insert(link);
    }
    state.addresses.extend(reached.addresses);
    state.routes.extend(reached.routes);
    state.sysctls.extend(reached.sysctls);
    state
}

fn compare(path: PathBuf, is: &str, wrong: &mut Vec<String>) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, is).expect("a golden file can be written");
        return;
    }
    let should = fs::read_to_string(&path).unwrap_or_default();
    if is != should {
        wrong.push(format!(
            "{}:\n{is}--- instead of ---\n{should}",
            path.display()
        ));
    }
}

#[test]
fn cases() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/plan");
    let mut wrong = Vec::new();
    let mut count = 0;
    for folder in fs::read_dir(root).expect("cases") {
        let folder = folder.expect("a folder").path();
        let world_now = world(&folder, "world.toml");
        let mut desired = plan::desired(&world_now);
        desired.firewall = None;
        let plan = match plan::diff(&host(&world(&folder, "before.toml")), &desired) {
            Ok(plan) => plan.to_string(),
            Err(conflict) => format!("conflict: {conflict}\n"),
        };
        compare(folder.join("state.txt"), &desired.to_string(), &mut wrong);
        compare(folder.join("plan.txt"), &plan, &mut wrong);
        count += 1;
    }
    assert!(count >= 8, "only {count} cases were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
