//! A host with networks and guests, all of them namespaces, and questions whether one reaches another.
//!
//! The plain setup: bridges, addresses and veths by `ip`, the ruleset by [`Nft`], so that the firewall is tried alone.
//! The other: netd does all of it, from the same documents.

#![allow(dead_code, reason = "each test that includes this uses its part")]

mod echo;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tests::{Netd, Ns, wait_for};
use vnet_core::firewall::{Ruleset, compile, needs_hairpin};
use vnet_core::host::nft::Nft;
use vnet_core::model::{Port, PortKey, World};

#[allow(unused_imports, reason = "each test that includes this uses its part")]
pub(crate) use echo::{Answer, Echo, PORT};

/// A namespace that has addresses and answers.
pub(crate) struct Node {
    pub(crate) ns: Ns,
    pub(crate) echo: Echo,
}

impl Node {
    /// Starts answering TCP, UDP and pings on these addresses.
    pub(crate) fn answering(ns: Ns, addresses: &[IpAddr]) -> anyhow::Result<Self> {
        let echo = Echo::start(&ns, addresses)?;
        Ok(Self { ns, echo })
    }
}

/// How a question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Tcp,
    Udp,
    Ping,
}

impl By {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Ping];
}

/// Asks `to` from a namespace: TCP and UDP at `port`.
pub(crate) fn ask(
    from: &Ns,
    by: By,
    to: IpAddr,
    port: u16,
    patience: Duration,
) -> anyhow::Result<Answer> {
    let to = SocketAddr::new(to, port);
    match by {
        By::Tcp => from.enter(|| echo::tcp(to, patience)),
        By::Udp => from.enter(|| echo::udp(to, patience)),
        By::Ping => {
            let seconds = format!("{:.1}", patience.as_secs_f32());
            let target = to.ip().to_string();
            let ran = from.run(&["ping", "-n", "-c", "1", "-W", &seconds, &target])?;
            Ok(if ran.success() {
                Answer::From(None)
            } else {
                Answer::Silence
            })
        }
    }
}

/// A host with the networks of a world.
pub(crate) struct Lab<'h> {
    pub(crate) host: &'h Ns,
    pub(crate) world: World,
    netd: Option<&'h Netd<'h>>,
}

impl<'h> Lab<'h> {
    /// The host's part of a world: bridges, addresses, sysctls and the ruleset. Guests are plugged in one by one.
    pub(crate) fn plain(host: &'h Ns, world: World) -> anyhow::Result<Self> {
        let mut lines = vec![
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0".to_owned(),
        ];
        for network in world.running().filter(|n| n.owns_bridge()) {
            let bridge = &network.bridge.name;
            lines.push(format!(
                "ip link add {bridge} address {} type bridge",
                network.bridge.mac
            ));
            for subnet in &network.subnets4 {
                lines.push(format!("ip addr add {} dev {bridge}", subnet.address));
            }
            for subnet in &network.subnets6 {
                lines.push(format!("ip addr add {} dev {bridge} nodad", subnet.address));
            }
            lines.push(format!("ip link set {bridge} up"));
            if !network.publish.is_empty() {
                lines.push(format!(
                    "sysctl -qw net.ipv4.conf.{bridge}.route_localnet=1"
                ));
            }
            for route in &network.routes {
                lines.push(format!("ip route add {} via {}", route.to, route.via));
            }
        }
        host.sh(&format!("set -e\n{}", lines.join("\n")))?;
        let lab = Self {
            host,
            world,
            netd: None,
        };
        lab.load(&compile(&lab.world))?;
        Ok(lab)
    }

    /// The same by netd: `documents` are the world's networks. Their publications come when their guests are there.
    pub(crate) fn daemon(
        netd: &'h Netd<'h>,
        documents: &str,
        world: World,
    ) -> anyhow::Result<Self> {
        netd.ns()
            .sh("sysctl -qw net.ipv6.conf.default.accept_dad=0")?;
        let published = |line: &&str| line.starts_with("publish");
        let documents: Vec<_> = documents.lines().filter(|line| !published(line)).collect();
        netd.apply(&documents.join("\n"))?;
        let host = netd.ns();
        Ok(Self {
            host,
            world,
            netd: Some(netd),
        })
    }

    /// Publishes what the world publishes, where netd has not been told yet.
    pub(crate) fn publish(&self) -> anyhow::Result<()> {
        let Some(netd) = self.netd else { return Ok(()) };
        for network in self.world.running() {
            for publish in &network.publish {
                let (guest, ports) = (publish.target.to_string(), publish.to_string());
                netd.vnet(&["publish", network.name.as_str(), &guest, &ports])?;
            }
        }
        Ok(())
    }

    /// Puts a ruleset in place of whatever is there.
    pub(crate) fn load(&self, desired: &Ruleset) -> anyhow::Result<()> {
        self.host.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut nft = Nft::new();
                let now = nft.observe().await?.unwrap_or_default();
                nft.apply(&now.change_to(desired)).await?;
                anyhow::Ok(())
            })
        })?
    }

    /// A namespace on a port of the world, with the port's addresses and the gateways of its network.
    pub(crate) fn plug(&self, key: &str) -> anyhow::Result<Node> {
        let key: PortKey = key.parse()?;
        let port = self
            .world
            .ports
            .get(&key)
            .ok_or_else(|| anyhow::anyhow!("no port {key}"))?;
        let bridge = self
            .world
            .bridge_of(port)
            .ok_or_else(|| anyhow::anyhow!("no bridge for {key}"))?;
        let network = key
            .home
            .network()
            .and_then(|name| self.world.networks.get(name));
        let ns = Ns::new(key.name.as_str())?;
        let (end, mac) = (&port.interface, port.mac);
        let mut guest = vec![
            "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_ra=0".to_owned(),
            format!("ip link set eth0 address {mac}"),
            "ip link set eth0 up".to_owned(),
        ];
        for address in &port.ipv4 {
            let subnet = network.and_then(|n| n.subnet4_of(*address));
            let length = subnet.map_or(24, |s| s.address.prefix_len());
            guest.push(format!("ip addr add {address}/{length} dev eth0"));
            if let Some(subnet) = subnet {
                guest.push(format!("ip route replace default via {}", subnet.gateway()));
            }
        }
        for address in &port.ipv6 {
            guest.push(format!("ip addr add {address}/64 dev eth0 nodad"));
        }
        if let Some(subnet) = network
            .and_then(|n| n.subnets6.first())
            .filter(|_| !port.ipv6.is_empty())
        {
            guest.push(format!(
                "ip -6 route replace default via {}",
                subnet.gateway()
            ));
        }
        self.host.ip(&format!(
            "link add {end} type veth peer name eth0 netns {}",
            ns.name()
        ))?;
        match self.netd {
            None => {
                let hairpin = if needs_hairpin(&self.world, port) {
                    "on"
                } else {
                    "off"
                };
                self.host.sh(&format!(
                    "set -e\nip link set {end} master {bridge} up\nbridge link set dev {end} hairpin {hairpin}"
                ))?;
            }
            Some(netd) => attach(netd, port)?,
        }
        ns.sh(&format!("set -e\n{}", guest.join("\n")))?;
        let v4 = port.ipv4.iter().copied().map(IpAddr::V4);
        let addresses: Vec<_> = v4
            .chain(port.ipv6.iter().copied().map(IpAddr::V6))
            .collect();
        Node::answering(ns, &addresses)
    }

    /// A namespace beyond the host's interface `end`: `mine` and `theirs` are the two ends' addresses with prefix.
    pub(crate) fn outside(
        &self,
        label: &str,
        end: &str,
        links: &[(&str, &str)],
    ) -> anyhow::Result<Node> {
        let ns = Ns::new(label)?;
        self.host.ip(&format!(
            "link add {end} type veth peer name eth0 netns {}",
            ns.name()
        ))?;
        let mut addresses = Vec::new();
        let (mut here, mut there) = (
            vec![format!("ip link set {end} up")],
            vec!["ip link set eth0 up".to_owned()],
        );
        there.push(
            "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.eth0.accept_dad=0".to_owned(),
        );
        for (mine, theirs) in links {
            here.push(format!("ip addr add {mine} dev {end} nodad"));
            there.push(format!("ip addr add {theirs} dev eth0 nodad"));
            addresses.push(
                theirs
                    .split('/')
                    .next()
                    .unwrap_or_default()
                    .parse::<IpAddr>()?,
            );
        }
        self.host.sh(&format!("set -e\n{}", here.join("\n")))?;
        ns.sh(&format!("set -e\n{}", there.join("\n")))?;
        Node::answering(ns, &addresses)
    }
}

/// `vnet port attach` of what the world says about a port.
fn attach(netd: &Netd<'_>, port: &Port) -> anyhow::Result<()> {
    let home = port.key.home.to_string();
    let (mac, guard) = (port.mac.to_string(), if port.guard { "on" } else { "off" });
    let v4 = port.ipv4.iter().map(ToString::to_string);
    let addresses: Vec<_> = v4
        .chain(port.ipv6.iter().map(ToString::to_string))
        .collect();
    let (interface, name) = (port.interface.as_str(), port.key.name.as_str());
    let mut argv = vec![
        "port",
        "attach",
        &home,
        name,
        "--kind",
        "external",
        "--interface",
        interface,
    ];
    argv.extend(["--mac", &mac, "--guard", guard]);
    argv.extend(
        addresses
            .iter()
            .flat_map(|address| ["--ip", address.as_str()]),
    );
    netd.vnet(&argv).map(drop)
}

/// Waits until one reaches the other by ping: neighbours known, links up. Before a negative answer means anything.
pub(crate) fn settle(from: &Ns, to: IpAddr) -> anyhow::Result<()> {
    wait_for(
        &format!("a ping to {to}"),
        Duration::from_secs(20),
        || match ask(from, By::Ping, to, 0, Duration::from_secs(1)) {
            Ok(Answer::From(_)) => Ok(()),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        },
    )
}

/// Waits until a guest has both its gateways as neighbours. (Where pings are refused this is all there is.)
pub(crate) fn linked(ns: &Ns) -> anyhow::Result<()> {
    let routes = ns.sh("ip route show default; ip -6 route show default")?;
    let gateways = routes
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2));
    for gateway in gateways {
        let target: IpAddr = gateway.parse()?;
        wait_for(
            &format!("neighbour {gateway}"),
            Duration::from_secs(20),
            || {
                let asked = ask(ns, By::Udp, target, 9, Duration::from_millis(50))
                    .map_err(|e| e.to_string())?;
                let entry = ns
                    .ip(&format!("neigh show {gateway}"))
                    .map_err(|e| e.to_string())?;
                match entry.contains("lladdr") {
                    true => Ok(()),
                    false => Err(format!("{entry}, {asked:?}")),
                }
            },
        )?;
    }
    Ok(())
}

/// `VNET_BREAK=CHAIN:N`: takes the Nth rule of a chain away. Whoever wants to see a test fail.
pub(crate) fn break_a_rule(host: &Ns) -> anyhow::Result<()> {
    let Ok(which) = std::env::var("VNET_BREAK") else {
        return Ok(());
    };
    let (chain, n) = which.split_once(':').unwrap_or((&which, "1"));
    host.sh(&format!(
        "for family in inet bridge; do
           handle=$(nft -a list chain $family vnet {chain} 2>/dev/null | grep -v '^\\s*chain' | grep -v 'type.*hook' | sed -n 's/.*# handle //p' | sed -n {n}p)
           [ -z \"$handle\" ] || {{ nft delete rule $family vnet {chain} handle $handle; exit 0; }}
         done; echo no such rule >&2; exit 1"
    ))?;
    Ok(())
}
