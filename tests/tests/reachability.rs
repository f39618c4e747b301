//! Who reaches whom: real TCP, UDP and ICMP between namespaces, both families, both directions, and with the bridges'
//! frames passing the packet rules (br_netfilter) or not.
//!
//! `VNET_BREAK=vnet_forward:3` takes the third rule of that chain away after loading: to see these tests fail.
#![allow(clippy::too_many_lines, reason = "a matrix reads best as one table")]

#[path = "../../vnet-core/tests/firewall_case/mod.rs"]
mod firewall_case;
mod lab;

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use firewall_case::world;
use lab::{Answer, By, Echo, Lab, Node, PORT, ask, settle};
use tests::{Netd, Ns, tool};

/// Long enough for a busy machine, when an answer is due.
const DUE: Duration = Duration::from_secs(5);
/// How long nothing has to come before it counts as silence.
const SILENCE: Duration = Duration::from_millis(400);

const WORLD: &str = r#"
[[network]]
name = "nat"
bridge.name = "vb-nat"
publish = [{ guest = "a", ports = "8080:7777/tcp" }, { guest = "a", ports = "8080:7777/udp" }, { guest = "a", ports = "53:7777/udp" }]
subnet = [{ address = "10.1.0.1/24" }, { address = "fd01::1/64", dhcp.mode = "stateful" }]
[[network]]
name = "nat2"
bridge.name = "vb-nat2"
forward = { mode = "nat", ipv6 = true }
subnet = [{ address = "10.4.0.1/24" }, { address = "fd04::1/64", dhcp.mode = "stateful" }]
[[network]]
name = "routed"
bridge.name = "vb-rt"
forward.mode = "routed"
subnet = [{ address = "10.2.0.1/24" }, { address = "fd02::1/64", dhcp.mode = "stateful" }]
[[network]]
name = "isolated"
bridge.name = "vb-iso"
forward.mode = "isolated"
subnet = [{ address = "10.3.0.1/24" }, { address = "fd03::1/64", dhcp.mode = "stateful" }]
[[network]]
name = "isolated2"
bridge.name = "vb-iso2"
forward.mode = "isolated"
subnet = [{ address = "10.6.0.1/24" }, { address = "fd06::1/64", dhcp.mode = "stateful" }]
[[network]]
name = "open"
bridge.name = "vb-open"
forward.mode = "open"
subnet = [{ address = "10.5.0.1/24" }, { address = "fd05::1/64", dhcp.mode = "stateful" }]
"#;

/// The guests: name, network, the digit of its subnets, its host number.
const GUESTS: [(&str, &str, u8, u8); 8] = [
    ("a", "nat", 1, 10),
    ("b", "nat", 1, 11),
    ("c", "nat2", 4, 10),
    ("r", "routed", 2, 10),
    ("i", "isolated", 3, 10),
    ("j", "isolated", 3, 11),
    ("k", "isolated2", 6, 10),
    ("o", "open", 5, 10),
];

/// `own`: reached, and seen with its own address. `nat`: reached, and seen with another. `yes`: reached. `ping`: by
/// ping only. `no`: not at all, and TCP is refused at once. The last three columns are the host: the own gateway, its
/// address outside, the gateway of network `open`.
const MATRIX4: &str = "
from  a    b    c    r    i    j    k    o    out  gw   up   gw2
a     -    own  no   nat  no   no   no   nat  nat  own  own  own
c     no   no   -    nat  no   no   no   nat  nat  own  own  own
r     no   no   no   -    no   no   no   own  own  own  own  own
i     no   no   no   no   -    own  no   no   no   ping no   no
k     no   no   no   no   no   no   -    no   no   ping no   no
o     no   no   no   own  no   no   no   -    own  own  own  own
out   no   no   no   own  no   no   no   own  -    -    own  own
host  yes  yes  yes  yes  yes  yes  yes  yes  yes  -    yes  yes
";

/// IPv6 of network `nat` is routed with nothing let in; of `nat2` it is translated.
const MATRIX6: &str = "
from  a    b    c    r    i    j    k    o    out  gw   up   gw2
a     -    own  no   own  no   no   no   own  own  own  own  own
c     no   no   -    nat  no   no   no   nat  nat  own  own  own
r     no   no   no   -    no   no   no   own  own  own  own  own
i     no   no   no   no   -    own  no   no   no   ping no   no
k     no   no   no   no   no   no   -    no   no   ping no   no
o     no   no   no   own  no   no   no   -    own  own  own  own
out   no   no   no   own  no   no   no   own  -    -    own  own
host  yes  yes  yes  yes  yes  yes  yes  yes  yes  -    yes  yes
";

fn guests_toml() -> String {
    let port = |(name, network, net, host): (&str, &str, u8, u8)| {
        format!(
            "[[port]]\nkey = \"{network}/{name}\"\ninterface = \"p-{name}\"\nmac = \"52:54:00:00:{net:02x}:{host:02x}\"\n\
             ipv4 = [\"10.{net}.0.{host}\"]\nipv6 = [\"fd0{net}::{host}\"]\n"
        )
    };
    GUESTS.map(port).concat()
}

/// Everyone, settled.
struct Field<'h> {
    lab: Lab<'h>,
    nodes: BTreeMap<&'static str, Node>,
    _host_echo: Vec<Echo>,
}

impl<'h> Field<'h> {
    /// By the plain setup.
    fn new(host: &'h Ns, br_netfilter: bool) -> anyhow::Result<Self> {
        let lab = Lab::plain(host, world(&(WORLD.to_owned() + &guests_toml())))?;
        Self::fill(lab, br_netfilter)
    }

    /// By netd.
    fn daemon(netd: &'h Netd<'h>, br_netfilter: bool) -> anyhow::Result<Self> {
        let lab = Lab::daemon(netd, WORLD, world(&(WORLD.to_owned() + &guests_toml())))?;
        Self::fill(lab, br_netfilter)
    }

    fn fill(lab: Lab<'h>, br_netfilter: bool) -> anyhow::Result<Self> {
        let onoff = u8::from(br_netfilter);
        lab.host.sh(&format!(
            "sysctl -qw net.bridge.bridge-nf-call-iptables={onoff} net.bridge.bridge-nf-call-ip6tables={onoff}"
        ))?;
        let mut nodes = BTreeMap::new();
        for (name, network, ..) in GUESTS {
            nodes.insert(name, lab.plug(&format!("{network}/{name}"))?);
        }
        lab.publish()?;
        let links = [
            ("203.0.113.1/24", "203.0.113.2/24"),
            ("2001:db8:1::1/64", "2001:db8:1::2/64"),
        ];
        let out = lab.outside("out", "eth0", &links)?;
        out.ns.sh(
            "ip route add 10.0.0.0/8 via 203.0.113.1 && ip -6 route add fd00::/8 via 2001:db8:1::1",
        )?;
        nodes.insert("out", out);
        let mut here: Vec<IpAddr> = vec!["203.0.113.1".parse()?, "2001:db8:1::1".parse()?];
        for net in 1..=6 {
            here.push(format!("10.{net}.0.1").parse()?);
            here.push(format!("fd0{net}::1").parse()?);
        }
        let _host_echo = vec![Echo::start(lab.host, &here)?];
        let field = Self {
            lab,
            nodes,
            _host_echo,
        };
        for (name, ..) in GUESTS {
            for v6 in [false, true] {
                settle(field.ns(name)?, field.address(name, "gw", v6)?)?;
            }
        }
        settle(field.ns("out")?, "203.0.113.1".parse()?)?;
        settle(field.ns("out")?, "2001:db8:1::1".parse()?)?;
        lab::break_a_rule(field.lab.host)?;
        Ok(field)
    }

    fn ns(&self, name: &str) -> anyhow::Result<&Ns> {
        match self.nodes.get(name) {
            Some(node) => Ok(&node.ns),
            None if name == "host" => Ok(self.lab.host),
            None => anyhow::bail!("no node {name}"),
        }
    }

    /// The address by which `from` asks `to`.
    fn address(&self, from: &str, to: &str, v6: bool) -> anyhow::Result<IpAddr> {
        let guest = |name: &str| GUESTS.iter().find(|g| g.0 == name);
        let text = match (to, v6) {
            ("out", false) => "203.0.113.2".to_owned(),
            ("out", true) => "2001:db8:1::2".to_owned(),
            ("up" | "host", false) => "203.0.113.1".to_owned(),
            ("up" | "host", true) => "2001:db8:1::1".to_owned(),
            ("gw2", false) => "10.5.0.1".to_owned(),
            ("gw2", true) => "fd05::1".to_owned(),
            ("gw", _) => {
                let net = guest(from).map_or(1, |g| g.2);
                if v6 {
                    format!("fd0{net}::1")
                } else {
                    format!("10.{net}.0.1")
                }
            }
            (name, _) => {
                let (_, _, net, host) =
                    guest(name).ok_or_else(|| anyhow::anyhow!("no guest {name}"))?;
                if v6 {
                    format!("fd0{net}::{host}")
                } else {
                    format!("10.{net}.0.{host}")
                }
            }
        };
        Ok(text.parse()?)
    }

    /// What is wrong with one cell of a matrix.
    fn cell(&self, from: &str, to: &str, expected: &str, v6: bool) -> anyhow::Result<Vec<String>> {
        let (ns, target) = (self.ns(from)?, self.address(from, to, v6)?);
        let own = self.address("a", from, v6)?;
        let mut wrong = Vec::new();
        for by in By::ALL {
            let due = match expected {
                "no" => false,
                "ping" => by == By::Ping,
                _ => true,
            };
            let patience = if due || by == By::Tcp { DUE } else { SILENCE };
            let answer = ask(ns, by, target, PORT, patience)?;
            let right = match (&answer, due) {
                (Answer::From(Some(seen)), true) => match expected {
                    "own" => *seen == own,
                    "nat" => *seen != own,
                    _ => true,
                },
                (Answer::From(None), true) => by == By::Ping,
                (Answer::From(_), false) | (Answer::Refused | Answer::Silence, true) => false,
                (Answer::Refused, false) => true,
                (Answer::Silence, false) => by != By::Tcp,
            };
            if !right {
                wrong.push(format!(
                    "{from} to {to} ({target}) by {by:?}: {answer:?}, should be `{expected}`"
                ));
            }
        }
        // Not even one way: what was not answered was not delivered either.
        let delivered = self
            .nodes
            .get(to)
            .map(|node| node.echo.seen())
            .unwrap_or_default();
        if expected == "no" && delivered.iter().any(|peer| peer.ip() == own) {
            wrong.push(format!("{from} to {to}: something was delivered"));
        }
        Ok(wrong)
    }

    /// What is wrong with a matrix: every cell, those of one column at the same time.
    fn check(&self, matrix: &str, v6: bool) -> anyhow::Result<()> {
        let mut lines = matrix
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::split_whitespace);
        let head: Vec<_> = lines.next().into_iter().flatten().skip(1).collect();
        let mut wrong = Vec::new();
        let mut cells = 0;
        for mut line in lines {
            let from = line.next().unwrap_or_default();
            let row: Vec<_> = head
                .iter()
                .copied()
                .zip(line)
                .filter(|(_, is)| *is != "-")
                .collect();
            let answers = std::thread::scope(|scope| {
                let ask = |(to, is)| scope.spawn(move || self.cell(from, to, is, v6));
                let asked: Vec<_> = row.iter().copied().map(ask).collect();
                let join =
                    |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().expect("a cell");
                asked
                    .into_iter()
                    .map(join)
                    .collect::<Vec<anyhow::Result<_>>>()
            });
            cells += row.len();
            for answer in answers {
                wrong.extend(answer?);
            }
        }
        anyhow::ensure!(cells > 80, "only {cells} cells were asked");
        anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    /// Every way to the published port: 8080 of the host is 7777 of guest `a`.
    fn check_published(&self) -> anyhow::Result<()> {
        let mut wrong = Vec::new();
        for (from, to, expected) in [
            ("out", "203.0.113.1", "own"),
            ("out", "2001:db8:1::1", "own"),
            ("host", "203.0.113.1", "yes"),
            ("host", "2001:db8:1::1", "yes"),
            ("host", "10.1.0.1", "yes"),
            ("host", "127.0.0.1", "yes"),
            ("r", "203.0.113.1", "own"),
            ("r", "10.2.0.1", "own"),
            ("o", "203.0.113.1", "own"),
            ("c", "203.0.113.1", "yes"),
            ("c", "2001:db8:1::1", "yes"),
            // Hairpin: a neighbour, and the publishing guest itself.
            ("b", "203.0.113.1", "nat"),
            ("b", "10.1.0.1", "nat"),
            ("b", "2001:db8:1::1", "nat"),
            ("a", "203.0.113.1", "nat"),
            ("a", "10.1.0.1", "nat"),
            ("a", "2001:db8:1::1", "nat"),
            ("i", "203.0.113.1", "no"),
            ("i", "10.3.0.1", "no"),
            ("i", "2001:db8:1::1", "no"),
        ] {
            let target: IpAddr = to.parse()?;
            let own = self.address("a", from, target.is_ipv6())?;
            for by in [By::Tcp, By::Udp] {
                let patience = if expected == "no" { SILENCE } else { DUE };
                let answer = ask(self.ns(from)?, by, target, 8080, patience)?;
                let right = match (&answer, expected) {
                    (Answer::From(Some(seen)), "own") => *seen == own,
                    (Answer::From(Some(seen)), "nat") => *seen != own,
                    (Answer::From(_), expected) => expected == "yes",
                    (Answer::Refused | Answer::Silence, expected) => expected == "no",
                };
                if !right {
                    wrong.push(format!(
                        "{from} to {to}:8080 by {by:?}: {answer:?}, should be `{expected}`"
                    ));
                }
            }
        }
        anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        // Who publishes port 53 does not take the gateways' DNS from the guests.
        let dns = |from: &str, to: &str| ask(self.ns(from)?, By::Udp, to.parse()?, 53, SILENCE * 2);
        anyhow::ensure!(
            matches!(dns("out", "203.0.113.1")?, Answer::From(_)),
            "port 53 is not published"
        );
        for (from, gateway) in [("b", "10.1.0.1"), ("r", "10.2.0.1"), ("b", "fd01::1")] {
            let answer = dns(from, gateway)?;
            anyhow::ensure!(
                !matches!(answer, Answer::From(_)),
                "{from} asked {gateway} and was led to the guest"
            );
        }
        self.check_loopback("a", "10.1.0.1")?;
        // With or without a publication: others (kube-proxy) set `route_localnet` everywhere.
        self.lab
            .host
            .sh("sysctl -qw net.ipv4.conf.all.route_localnet=1")?;
        self.check_loopback("r", "10.2.0.1")
    }

    /// Publishing to 127.0.0.1 does not open the host's own loopback to guests.
    fn check_loopback(&self, from: &str, gateway: &str) -> anyhow::Result<()> {
        let loopback = Echo::at(self.lab.host, &["127.0.0.1".parse()?], 9999)?;
        let guest = self.ns(from)?;
        guest.sh(&format!(
            "ip addr flush dev lo && sysctl -qw net.ipv4.conf.eth0.route_localnet=1 && ip route add 127.0.0.0/8 via {gateway}",
        ))?;
        let answer = ask(guest, By::Udp, "127.0.0.1".parse()?, 9999, SILENCE)?;
        let seen = loopback.seen();
        anyhow::ensure!(
            answer == Answer::Silence && seen.is_empty(),
            "{from} reached the host's loopback: {answer:?}, {seen:?}"
        );
        Ok(())
    }
}

fn ready(test: &str) -> bool {
    tool::ready(test, &["nft", "ip", "ping", "bridge"])
}

#[test]
fn the_matrix() -> anyhow::Result<()> {
    if !ready("reachability::the_matrix") {
        return Ok(());
    }
    for br_netfilter in [true, false] {
        let host = Ns::new("mx")?;
        let field = Field::new(&host, br_netfilter)?;
        field.check(MATRIX4, false)?;
        field.check(MATRIX6, true)?;
    }
    Ok(())
}

/// libvirt lets an isolated guest's packets through to a routed network (only the answers are refused): here not one
/// packet arrives, counted on the guest itself.
#[test]
fn nothing_leaks_from_isolated_to_routed() -> anyhow::Result<()> {
    if !ready("reachability::nothing_leaks_from_isolated_to_routed") {
        return Ok(());
    }
    let host = Ns::new("leak")?;
    let field = Field::new(&host, true)?;
    let routed = field.ns("r")?;
    routed.sh(
        "nft add table inet seen && nft add chain inet seen seen_all '{ type filter hook prerouting priority -300; }' &&
         nft add counter inet seen seen_isolated && nft add counter inet seen seen_open &&
         nft add rule inet seen seen_all ip saddr 10.3.0.0/24 counter name seen_isolated &&
         nft add rule inet seen seen_all ip6 saddr fd03::/64 counter name seen_isolated &&
         nft add rule inet seen seen_all ip saddr 10.5.0.0/24 counter name seen_open &&
         nft add rule inet seen seen_all ip6 saddr fd05::/64 counter name seen_open",
    )?;
    for v6 in [false, true] {
        for by in By::ALL {
            for from in ["i", "o"] {
                ask(
                    field.ns(from)?,
                    by,
                    field.address(from, "r", v6)?,
                    PORT,
                    SILENCE * 3,
                )?;
            }
        }
    }
    let count = |name| -> anyhow::Result<u64> {
        let text = routed.sh(&format!("nft list counter inet seen seen_{name}"))?;
        let mut words = text
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        Ok(words.nth(1).unwrap_or_default().parse()?)
    };
    assert!(
        count("open")? >= 6,
        "the counter counts what is let through"
    );
    assert_eq!(
        count("isolated")?,
        0,
        "packets of the isolated network were delivered"
    );
    Ok(())
}

/// Port 8080 of the host is guest `a`'s port 7777.
#[test]
fn a_published_port_answers_from_every_side() -> anyhow::Result<()> {
    if !ready("reachability::a_published_port_answers_from_every_side") {
        return Ok(());
    }
    for br_netfilter in [true, false] {
        let host = Ns::new("pub")?;
        Field::new(&host, br_netfilter)?.check_published()?;
    }
    Ok(())
}

/// The whole once more, by netd and `vnet`: nothing of it was only true in the laboratory.
#[test]
fn netd_makes_the_same() -> anyhow::Result<()> {
    if !ready("reachability::netd_makes_the_same") {
        return Ok(());
    }
    for br_netfilter in [true, false] {
        let host = Ns::new("mxd")?;
        let netd = Netd::start(&host)?;
        let field = Field::daemon(&netd, br_netfilter)?;
        field.check(MATRIX4, false)?;
        field.check(MATRIX6, true)?;
        field.check_published()?;
    }
    Ok(())
}

/// What guests may reach on the host itself.
#[test]
fn host_access() -> anyhow::Result<()> {
    if !ready("reachability::host_access") {
        return Ok(());
    }
    let network = |(name, net): (&str, u8)| {
        format!(
            "[[network]]\nname = \"{name}\"\nbridge.name = \"vb-{name}\"\nhost_access = \"{name}\"\n\
             subnet = [{{ address = \"10.{net}.0.1/24\" }}, {{ address = \"fd0{net}::1/64\", dhcp.mode = \"stateful\" }}]\n\
             [[port]]\nkey = \"{name}/g{net}\"\ninterface = \"p{net}\"\nmac = \"52:54:00:00:00:0{net}\"\n\
             ipv4 = [\"10.{net}.0.10\"]\nipv6 = [\"fd0{net}::10\"]\n"
        )
    };
    let networks = [("all", 1), ("services", 2), ("none", 3)];
    let host = Ns::new("acc")?;
    let lab = Lab::plain(&host, world(&networks.map(network).concat()))?;
    let mut here: Vec<IpAddr> = vec!["203.0.113.1".parse()?, "2001:db8:1::1".parse()?];
    lab.host
        .sh("ip addr add 203.0.113.1/32 dev lo; ip addr add 2001:db8:1::1/128 dev lo")?;
    for net in 1..=3 {
        here.push(format!("10.{net}.0.1").parse()?);
        here.push(format!("fd0{net}::1").parse()?);
    }
    let _echo: Vec<_> = [53, 67, 547, PORT]
        .into_iter()
        .map(|port| Echo::at(lab.host, &here, port))
        .collect::<Result<_, _>>()?;
    let nodes: Vec<_> = networks
        .iter()
        .map(|(name, net)| lab.plug(&format!("{name}/g{net}")))
        .collect::<Result<_, _>>()?;
    for node in &nodes {
        lab::linked(&node.ns)?;
    }
    lab::break_a_rule(lab.host)?;
    for (node, (name, _)) in nodes.iter().zip(networks) {
        // Neighbours are found anew, by the rules that are there.
        node.ns.sh("ip neigh flush all; ip -6 neigh flush all")?;
        dhcp_to_everyone(lab.host, &node.ns, &format!("vb-{name}"))?;
    }
    // What is asked: own gateway or another address of the host, how, the port; then for all, services, none.
    let rows = [
        ("gw", By::Ping, 0, [true, true, false]),
        ("gw", By::Tcp, 53, [true, true, false]),
        ("gw", By::Udp, 53, [true, true, false]),
        ("gw", By::Tcp, PORT, [true, false, false]),
        ("gw", By::Udp, PORT, [true, false, false]),
        ("other", By::Ping, 0, [true, false, false]),
        ("other", By::Tcp, 53, [true, false, false]),
        ("other", By::Udp, 53, [true, false, false]),
        ("other", By::Tcp, PORT, [true, false, false]),
        ("dhcp", By::Udp, 0, [true, true, true]),
    ];
    let mut wrong = Vec::new();
    for v6 in [false, true] {
        for (what, by, port, expected) in rows {
            for (((name, net), node), due) in networks.iter().zip(&nodes).zip(expected) {
                let gateway = if v6 {
                    format!("fd0{net}::1")
                } else {
                    format!("10.{net}.0.1")
                };
                let other = if v6 { "2001:db8:1::1" } else { "203.0.113.1" };
                let target: IpAddr = if what == "other" {
                    other.parse()?
                } else {
                    gateway.parse()?
                };
                let port = if what == "dhcp" {
                    if v6 { 547 } else { 67 }
                } else {
                    port
                };
                let patience = if due || by == By::Tcp { DUE } else { SILENCE };
                let answer = ask(&node.ns, by, target, port, patience)?;
                let right = match (&answer, due) {
                    (Answer::From(_), due) => due,
                    (Answer::Refused, due) => !due,
                    (Answer::Silence, due) => !due && by != By::Tcp,
                };
                if !right {
                    wrong.push(format!("host_access {name}: {by:?} to {what} {target}:{port}: {answer:?}, due: {due}"));
                }
            }
        }
    }
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A guest without an address asks everyone: 255.255.255.255 port 67 and ff02::1:2 port 547 must arrive.
fn dhcp_to_everyone(host: &Ns, guest: &Ns, bridge: &str) -> anyhow::Result<()> {
    let index = |ns: &Ns, name: &str| -> anyhow::Result<u32> {
        let shown = ns.ip(&format!("-o link show {name}"))?;
        Ok(shown.split(':').next().unwrap_or_default().trim().parse()?)
    };
    let (here, there) = (index(host, bridge)?, index(guest, "eth0")?);
    let [v4, v6] = host.enter(|| -> std::io::Result<_> {
        let v4 = UdpSocket::bind("255.255.255.255:67")?;
        let everyone = "ff02::1:2".parse().expect("an address");
        let v6 = UdpSocket::bind(std::net::SocketAddrV6::new(everyone, 547, 0, here))?;
        v6.join_multicast_v6(&everyone, here)?;
        for socket in [&v4, &v6] {
            socket.set_read_timeout(Some(DUE))?;
        }
        Ok([v4, v6])
    })??;
    guest.enter(|| -> std::io::Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:68")?;
        socket.set_broadcast(true)?;
        socket.send_to(b"4", "255.255.255.255:67")?;
        let to =
            std::net::SocketAddrV6::new("ff02::1:2".parse().expect("an address"), 547, 0, there);
        UdpSocket::bind("[::]:546")?.send_to(b"6", to).map(|_| ())
    })??;
    for (socket, what) in [(v4, "DHCP"), (v6, "DHCPv6")] {
        let received = socket.recv_from(&mut [0; 16]);
        anyhow::ensure!(
            received.is_ok(),
            "{what} to everyone did not arrive on {bridge}: {received:?}"
        );
    }
    Ok(())
}

/// Restricted to an interface of the host, translated to a range, from ports of a range, and never within the network.
#[test]
fn the_way_out() -> anyhow::Result<()> {
    if !ready("reachability::the_way_out") {
        return Ok(());
    }
    let host = Ns::new("way")?;
    let lab = Lab::plain(&host, world(WAY_OUT))?;
    let west = lab.outside("west", "eth0", &[("203.0.113.1/24", "203.0.113.2/24")])?;
    let east = lab.outside("east", "eth1", &[("198.51.100.1/24", "198.51.100.2/24")])?;
    west.ns.sh("ip route add default via 203.0.113.1")?;
    east.ns.sh("ip route add default via 198.51.100.1")?;
    // The range is answered for on the outer link.
    lab.host
        .sh("for n in 5 6 7 8 9; do ip addr add 203.0.113.$n/32 dev eth0; done")?;
    let [range, plain, other, routed] =
        ["range/g1", "plain/g2", "plain/g3", "routed/g4"].map(|key| lab.plug(key));
    let (range, plain, other, routed) = (range?, plain?, other?, routed?);
    for node in [&range, &plain, &other, &routed] {
        lab::linked(&node.ns)?;
    }
    lab::break_a_rule(lab.host)?;
    let (to_west, to_east) = ("203.0.113.2".parse()?, "198.51.100.2".parse()?);
    let inner: IpAddr = "10.4.0.10".parse()?;
    for by in By::ALL {
        let seen = |node: &Node, to, patience| ask(&node.ns, by, to, PORT, patience);
        let answer = seen(&range, to_west, DUE)?;
        match answer {
            Answer::From(Some(IpAddr::V4(seen))) => {
                let last = seen.octets()[3];
                assert!(
                    (5..=9).contains(&last),
                    "{by:?}: {seen} is not of the range"
                );
            }
            Answer::From(None) => assert_eq!(by, By::Ping),
            Answer::From(Some(IpAddr::V6(_))) | Answer::Refused | Answer::Silence => {
                panic!("{by:?} to the west: {answer:?}")
            }
        }
        for (what, answer) in [
            ("out by another interface", seen(&range, to_east, SILENCE)?),
            (
                "into the routed network, whose way is east",
                seen(&west, inner, SILENCE)?,
            ),
            (
                "out of the routed network to the west",
                seen(&routed, to_west, SILENCE)?,
            ),
            (
                "into a translated network",
                seen(&west, "10.2.0.10".parse()?, SILENCE)?,
            ),
        ] {
            assert!(
                !matches!(answer, Answer::From(_)),
                "{by:?} {what}: {answer:?}"
            );
        }
        for (what, answer, expected) in [
            (
                "out of the routed network to the east",
                seen(&routed, to_east, DUE)?,
                Some(inner),
            ),
            (
                "into the routed network from the east",
                seen(&east, inner, DUE)?,
                Some(to_east),
            ),
            // The other subnet of the same network, through the gateway: not translated.
            (
                "within",
                seen(&plain, "10.3.0.10".parse()?, DUE)?,
                Some("10.2.0.10".parse()?),
            ),
        ] {
            let expected = if by == By::Ping { None } else { expected };
            assert_eq!(answer, Answer::From(expected), "{by:?} {what}");
        }
    }
    // A guest that speaks from a privileged port is seen with another.
    let from500 = plain.ns.enter(|| -> std::io::Result<()> {
        let socket = std::net::UdpSocket::bind("10.2.0.10:500")?;
        socket.set_read_timeout(Some(DUE))?;
        socket.send_to(b"x", "203.0.113.2:7777")?;
        socket.recv_from(&mut [0; 64]).map(|_| ())
    })?;
    from500?;
    let peers = west.echo.seen();
    assert!(
        !peers.is_empty() && peers.iter().all(|peer| peer.port() >= 1024),
        "{peers:?}"
    );
    Ok(())
}

const WAY_OUT: &str = r#"
[[network]]
name = "range"
bridge.name = "vb-range"
forward = { mode = "nat", addresses = "203.0.113.5-203.0.113.9", egress = "eth0" }
subnet = [{ address = "10.1.0.1/24" }]
[[network]]
name = "plain"
bridge.name = "vb-plain"
subnet = [{ address = "10.2.0.1/24" }, { address = "10.3.0.1/24" }]
[[network]]
name = "routed"
bridge.name = "vb-rt"
forward = { mode = "routed", egress = "eth1" }
subnet = [{ address = "10.4.0.1/24" }]
[[port]]
key = "range/g1"
interface = "p1"
mac = "52:54:00:00:00:01"
ipv4 = ["10.1.0.10"]
[[port]]
key = "plain/g2"
interface = "p2"
mac = "52:54:00:00:00:02"
ipv4 = ["10.2.0.10"]
[[port]]
key = "plain/g3"
interface = "p3"
mac = "52:54:00:00:00:03"
ipv4 = ["10.3.0.10"]
[[port]]
key = "routed/g4"
interface = "p4"
mac = "52:54:00:00:00:04"
ipv4 = ["10.4.0.10"]
"#;

/// A guest behind an unguarded port cannot send with a source that is not of its subnet.
#[test]
fn a_foreign_source_goes_nowhere() -> anyhow::Result<()> {
    if !ready("reachability::a_foreign_source_goes_nowhere") {
        return Ok(());
    }
    let host = Ns::new("src")?;
    let lab = Lab::plain(&host, world(FREE))?;
    let links = [
        ("203.0.113.1/24", "203.0.113.2/24"),
        ("2001:db8:1::1/64", "2001:db8:1::2/64"),
    ];
    let out = lab.outside("out", "eth0", &links)?;
    out.ns
        .sh("ip route add default via 203.0.113.1; ip -6 route add default via 2001:db8:1::1")?;
    let guest = lab.plug("routed/g")?;
    lab::linked(&guest.ns)?;
    lab::break_a_rule(lab.host)?;
    guest
        .ns
        .sh("ip addr add 10.99.0.9/32 dev lo; ip addr add fd99::9/128 dev lo nodad")?;
    let send = |from: &str, to: &str| {
        guest.ns.enter(|| -> std::io::Result<()> {
            std::net::UdpSocket::bind((from, 0))?
                .send_to(b"x", (to, PORT))
                .map(|_| ())
        })
    };
    // The right one after the forged one: when that has come, the other would have.
    for (forged, right, to) in [
        ("10.99.0.9", "10.2.0.10", "203.0.113.2"),
        ("fd99::9", "fd02::10", "2001:db8:1::2"),
    ] {
        send(forged, to)??;
        send(right, to)??;
        let right: IpAddr = right.parse()?;
        tests::wait_for("the datagram with the right source", DUE, || {
            let seen = out.echo.seen();
            if seen.iter().any(|peer| peer.ip() == right) {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        })?;
        let forged: IpAddr = forged.parse()?;
        assert!(
            out.echo.seen().iter().all(|peer| peer.ip() != forged),
            "{forged} was let through"
        );
    }
    Ok(())
}

const FREE: &str = r#"
[[network]]
name = "routed"
bridge.name = "vb-rt"
forward.mode = "routed"
subnet = [{ address = "10.2.0.1/24" }, { address = "fd02::1/64", dhcp.mode = "stateful" }]
[[port]]
key = "routed/g"
interface = "p1"
mac = "52:54:00:00:00:01"
ipv4 = ["10.2.0.10"]
ipv6 = ["fd02::10"]
guard = false
"#;
