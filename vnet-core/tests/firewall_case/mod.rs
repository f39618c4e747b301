//! A world from one TOML text: networks as our documents write them, and ports. Shared by the golden cases here and
//! the tests of package `tests` that give the same worlds to a kernel.

#![allow(dead_code, reason = "each test that includes this uses its part")]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vnet_core::config::{Fill, native};
use vnet_core::model::{Home, Port, PortKey, PortKind, Qos, World};

/// The cases of one folder: name and path, in order.
pub(crate) fn cases(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).expect("the folder of cases");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut all: Vec<_> = paths
        .filter(|path| path.join("world.toml").exists())
        .map(|path| {
            (
                path.file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned(),
                path,
            )
        })
        .collect();
    all.sort();
    all
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ports {
    #[serde(default)]
    port: Vec<PortDoc>,
    #[serde(default)]
    stopped: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortDoc {
    /// `default/web`, `bridge:br0/web`
    key: String,
    interface: String,
    mac: String,
    #[serde(default)]
    ipv4: Vec<Ipv4Addr>,
    #[serde(default)]
    ipv6: Vec<Ipv6Addr>,
    #[serde(default = "yes")]
    guard: bool,
    #[serde(default)]
    isolated: bool,
    #[serde(default = "external")]
    kind: String,
}

const fn yes() -> bool {
    true
}

fn external() -> String {
    "external".to_owned()
}

/// The world: `[[network]]` as in our documents, `[[port]]`, and `stopped = [NAME]`.
pub(crate) fn world(text: &str) -> World {
    let mut table: toml::Table = text.parse().expect("TOML");
    let ours: toml::Table = ["port", "stopped"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), table.remove(key)?)))
        .collect();
    let ports: Ports = ours.try_into().expect("ports");
    let mut world = World::default();
    if table.contains_key("network") {
        let networks = native::from_toml(&table.to_string()).expect("networks");
        for (i, doc) in (1..).zip(networks) {
            let fill = Fill {
                uuid: uuid(i),
                bridge: format!("virbr{i}").parse().expect("a name"),
                mac: vnet_core::types::Mac([0x52, 0x54, 0, 0xb, 0, i]),
                subnets: Vec::new(),
            };
            let network = doc
                .settle(&fill)
                .unwrap_or_else(|p| panic!("{}: {p}", doc.name));
            world.admits_network(&network).expect("a network that fits");
            if !ports.stopped.contains(&doc.name) {
                world.active.insert(network.name.clone());
            }
            world.networks.insert(network.name.clone(), network);
        }
    }
    for doc in ports.port {
        let port = port(doc);
        world.admits_port(&port).expect("a port that fits");
        world.ports.insert(port.key.clone(), port);
    }
    world
}

fn uuid(i: u8) -> uuid::Uuid {
    uuid::Uuid::from_u128(i.into())
}

fn port(doc: PortDoc) -> Port {
    let kind = match doc.kind.as_str() {
        "tap" => PortKind::Tap { owner: None },
        "vhost-user" => PortKind::VhostUser { owner: None },
        _ => PortKind::External,
    };
    Port {
        key: doc.key.parse().expect("a key"),
        kind,
        queues: 1,
        qos: Qos::default(),
        interface: doc.interface.parse().expect("an interface"),
        mac: doc.mac.parse().expect("a MAC"),
        ipv4: doc.ipv4,
        ipv6: doc.ipv6,
        asked6: Vec::new(),
        guard: doc.guard,
        isolated: doc.isolated,
    }
}

/// A world with `networks` NAT networks of a /24 each, and `ports` guarded ports spread over them.
pub(crate) fn many(networks: u32, ports: u32) -> World {
    let text: Vec<_> = (0..networks)
        .map(|n| {
            format!(
                "[[network]]\nname = \"n{n}\"\nbridge.name = \"vb{n}\"\n[[network.subnet]]\naddress = \"10.{}.{}.1/24\"\n",
                n >> 8,
                n & 255
            )
        })
        .collect();
    let docs = native::from_toml(&text.concat()).expect("networks");
    let mut world = World::default();
    for (n, doc) in (0u16..).zip(docs) {
        let [high, low] = n.to_be_bytes();
        let fill = Fill {
            uuid: uuid::Uuid::from_u128(n.into()),
            bridge: "unused0".parse().expect("a name"),
            mac: vnet_core::types::Mac::virtual_machine([0xbb, high, low]),
            subnets: Vec::new(),
        };
        let network = doc.settle(&fill).expect("a network");
        world.active.insert(network.name.clone());
        world.networks.insert(network.name.clone(), network);
    }
    for p in 0..ports {
        let port = nth_port(networks, p);
        world.ports.insert(port.key.clone(), port);
    }
    world
}

/// The `p`th port of [`many`]: up to 250 a network.
pub(crate) fn nth_port(networks: u32, p: u32) -> Port {
    let (n, host) = (p % networks, p / networks + 2);
    assert!(host < 255, "a /24 is full");
    let [_, a, b, c] = p.to_be_bytes();
    Port {
        key: PortKey {
            home: Home::Network(format!("n{n}").parse().expect("a name")),
            name: format!("p{p}").parse().expect("a name"),
        },
        kind: PortKind::Tap { owner: None },
        queues: 1,
        qos: Qos::default(),
        interface: format!("vt{p}").parse().expect("a name"),
        mac: vnet_core::types::Mac::virtual_machine([a, b, c]),
        ipv4: vec![Ipv4Addr::from(0x0a00_0000 + n * 256 + host)],
        ipv6: Vec::new(),
        asked6: Vec::new(),
        guard: true,
        isolated: false,
    }
}
