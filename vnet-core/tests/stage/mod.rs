//! What traces of address services play on: one network as a document says it, its ports, and a clock.
#![allow(dead_code, reason = "each player needs its part of it")]

use std::fmt::Write as _;

use uuid::Uuid;
use vnet_core::config::{Fill, native};
use vnet_core::lease::Time;
use vnet_core::model::{Home, Port, PortKey, PortKind, Qos, World};
use vnet_core::types::{Mac, NetworkName};

/// When every trace begins.
pub(crate) const BEGIN: u64 = 1_000_000;

/// Writes a trace again: each line that asks as it is, and behind it what `act` says. A document, from `toml` to `end`,
/// comes with the line that begins it.
pub(crate) fn play(text: &str, mut act: impl FnMut(&str, &str) -> Vec<String>) -> String {
    let (mut out, mut lines) = (String::new(), text.lines());
    while let Some(line) = lines.next() {
        if line.starts_with('<') {
            continue;
        }
        let _ = writeln!(out, "{line}");
        let mut document = String::new();
        if line == "toml" {
            let all: Vec<&str> = lines.by_ref().take_while(|l| *l != "end").collect();
            document = all.join("\n");
            let _ = writeln!(out, "{document}\nend");
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        for say in act(line, &document) {
            let _ = writeln!(out, "< {say}");
        }
    }
    out
}

#[derive(Default)]
pub(crate) struct Stage {
    pub(crate) world: World,
    /// Seconds since the beginning.
    pub(crate) now: u64,
}

impl Stage {
    pub(crate) fn time(&self) -> Time {
        Time::from_secs(BEGIN + self.now)
    }

    /// The network of the document in place of the one before.
    pub(crate) fn network(&mut self, document: &str, bridge: Mac) {
        let fill = Fill {
            uuid: Uuid::nil(),
            bridge: "br0".parse().unwrap(),
            mac: bridge,
            subnets: Vec::new(),
        };
        let network = native::from_toml(document).unwrap()[0]
            .settle(&fill)
            .unwrap();
        self.world.networks.clear();
        self.world.networks.insert(network.name.clone(), network);
    }

    pub(crate) fn name(&self) -> &NetworkName {
        self.world.networks.keys().next().unwrap()
    }

    /// `port NAME MAC ADDRESS [guard]`.
    pub(crate) fn port(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let key = PortKey {
            home: Home::Network(self.name().clone()),
            name: words[1].parse().unwrap(),
        };
        let port = Port {
            key: key.clone(),
            kind: PortKind::External,
            interface: words[1].parse().unwrap(),
            mac: words[2].parse().unwrap(),
            ipv4: words[3].parse().into_iter().collect(),
            ipv6: words[3].parse().into_iter().collect(),
            asked6: Vec::new(),
            guard: words.contains(&"guard"),
            isolated: false,
            queues: 1,
            qos: Qos::default(),
        };
        assert_eq!(port.ipv4.len() + port.ipv6.len(), 1, "`{line}`");
        self.world.ports.insert(key, port);
    }
}
