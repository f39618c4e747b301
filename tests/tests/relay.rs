//! Guests on another link, and the relays that others wrote between them and us: dnsmasq and ISC's dhcrelay.
//!
//! ```text
//!   far ---- relay ---- bridge of `lab`, netd
//!       eth1       eth0
//!   10.51.0.0/24   10.50.0.0/24      fd00:51::/64   fd00:50::/64
//! ```

use std::path::Path;
use std::time::Duration;

use tests::world::reaches;
use tests::{Dhclient, Netd, Ns, Proc, World, clients, tool, unpacked, wait_for};

const TOOLS: [&str; 5] = ["nft", "busybox", "dhclient", "dnsmasq", "ping"];
const PATIENCE: Duration = Duration::from_secs(15);

const LAB: &str = r#"
name = "lab"
[domain]
name = "lab.test"
[[subnet]]
address = "10.50.0.1/24"
[subnet.dhcp]
ranges = ["10.50.0.100-10.50.0.199"]
[[subnet]]
address = "10.51.0.1/24"
[subnet.dhcp]
ranges = ["10.51.0.100-10.51.0.199"]
[subnet.dhcp.options]
router = "10.51.0.2"
[[subnet.dhcp.host]]
circuit_id = "eth1"
ip = "10.51.0.9"
name = "faraway"
[[subnet]]
address = "fd00:50::1/64"
[subnet.dhcp]
mode = "stateful"
[[subnet]]
address = "fd00:51::1/64"
[subnet.dhcp]
mode = "stateful"
ranges = ["fd00:51::1000-fd00:51::1fff"]
"#;

/// A host that serves `lab`, a machine that is to relay, and one behind it.
struct Far<'w> {
    netd: Netd<'w>,
    relay: Ns,
    far: Ns,
}

impl<'w> Far<'w> {
    fn on(world: &'w World) -> anyhow::Result<Self> {
        Self::serving(world, LAB)
    }

    fn serving(world: &'w World, document: &str) -> anyhow::Result<Self> {
        world
            .host
            .sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")?;
        let netd = Netd::start(&world.host)?;
        netd.apply(document)?;
        let bridge = netd.json(&["network", "show", "lab"])?["bridge"].clone();
        let bridge = bridge.as_str().unwrap_or_default();
        let (relay, far) = (Ns::new("relay")?, Ns::new("far")?);
        for ns in [&relay, &far] {
            let keys = ["all", "default"].map(|k| format!("net.ipv6.conf.{k}.accept_dad=0"));
            ns.sh(&format!("sysctl -qw {}", keys.join(" ")))?;
        }
        world.host.link("relay0", &relay, "eth0")?;
        world.host.ip(&format!("link set relay0 master {bridge}"))?;
        relay.link("eth1", &far, "eth0")?;
        for line in [
            "addr add 10.50.0.2/24 dev eth0",
            "addr add 10.51.0.2/24 dev eth1",
            "addr add fd00:50::2/64 dev eth0 nodad",
            "addr add fd00:51::2/64 dev eth1 nodad",
        ] {
            relay.ip(line)?;
        }
        reaches(&relay, "10.50.0.1")?;
        reaches(&relay, "fd00:50::1")?;
        Ok(Self { netd, relay, far })
    }

    /// A relay that came up: it says this word.
    fn relays(&self, argv: &[&str], word: &str) -> anyhow::Result<Proc> {
        let proc = self.relay.spawn(argv)?;
        proc.wait_log(word, PATIENCE)?;
        Ok(proc)
    }

    /// ISC's relay between the far link and netd.
    fn dhcrelay(&self, program: &Path, more: &[&str]) -> anyhow::Result<Proc> {
        let program = program.display().to_string();
        let pid = self.relay.scratch().join("pid").display().to_string();
        let fixed = ["-4", "-d", "-pf", &pid, "-i", "eth0", "-i", "eth1"];
        let argv = [&[&*program][..], &fixed, more, &["10.50.0.1"]].concat();
        self.relays(&argv, "Sending on   Socket")
    }

    fn listed(&self, address: &str) -> anyhow::Result<()> {
        let listed = self.netd.vnet(&["lease", "list", "lab"])?;
        anyhow::ensure!(listed.contains(address), "no {address} in\n{listed}");
        Ok(())
    }
}

fn dnsmasq(more: &[&str]) -> Vec<String> {
    let fixed = ["dnsmasq", "-d", "-C", "/dev/null", "-p", "0", "--log-dhcp"];
    let all = fixed.iter().chain(more);
    all.map(|word| (*word).to_owned()).collect()
}

#[test]
fn dnsmasq_relays_v4_and_giaddr_chooses_the_subnet() -> anyhow::Result<()> {
    let name = "relay::dnsmasq_relays_v4_and_giaddr_chooses_the_subnet";
    if !tool::ready(name, &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let far = Far::on(&world)?;
    let argv = dnsmasq(&["--dhcp-relay=10.51.0.2,10.50.0.1"]);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let _relay = far.relays(&argv, "DHCP relay from 10.51.0.2 to 10.50.0.1")?;
    let client = Dhclient::on(&far.far, "eth0", "send host-name \"far\";\n")?;
    let running = client.start()?;
    let lease = client.bound()?;
    let ip = lease.ip.to_string();
    assert!(ip.starts_with("10.51.0.1"), "{lease:?}");
    assert_eq!(lease.get("routers"), "10.51.0.2");
    far.listed(&ip)?;
    drop(running);

    // A client that names its subnet gets an address of that one (RFC 3011), wherever it is.
    let config =
        "option subnet-selection code 118 = ip-address;\nsend subnet-selection 10.50.0.0;\n";
    let client = Dhclient::on(&far.far, "eth0", config)?;
    let _running = client.start()?;
    let ip = client.bound()?.ip.to_string();
    assert!(ip.starts_with("10.50.0.1"), "{ip}");
    Ok(())
}

#[test]
fn dhcrelay_adds_its_circuit_and_a_reservation_is_for_it() -> anyhow::Result<()> {
    let name = "relay::dhcrelay_adds_its_circuit_and_a_reservation_is_for_it";
    let Some(dhcrelay) = unpacked::program(name, "isc-dhcp-relay", "usr/sbin/dhcrelay") else {
        return Ok(());
    };
    if !tool::ready(name, &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let far = Far::on(&world)?;
    let relay = far.dhcrelay(&dhcrelay, &["-a"])?;
    // It throws away what comes back without its words, or not for its circuit.
    let client = Dhclient::on(&far.far, "eth0", "send host-name \"other\";\n")?;
    let running = client.start()?;
    let lease = client.bound()?;
    assert_eq!(
        lease.ip.to_string(),
        "10.51.0.9",
        "{lease:?}\n{}",
        relay.log()
    );
    assert_eq!(lease.get("routers"), "10.51.0.2");
    let listed = far.netd.vnet(&["lease", "list", "lab"])?;
    assert!(listed.contains("faraway"), "{listed}");
    drop(running);
    Ok(())
}

#[test]
fn a_client_behind_dhcrelay_renews_past_it() -> anyhow::Result<()> {
    let name = "relay::a_client_behind_dhcrelay_renews_past_it";
    let Some(dhcrelay) = unpacked::program(name, "isc-dhcp-relay", "usr/sbin/dhcrelay") else {
        return Ok(());
    };
    if !tool::ready(name, &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    // T1 comes soon, T2 does not: what is renewed was renewed by unicast.
    let document = LAB.replace(
        "router = \"10.51.0.2\"\n",
        "router = \"10.51.0.2\"\nrenewal-time = 2\nrebinding-time = 3000\n",
    );
    let far = Far::serving(&world, &document)?;
    far.relay.sh("sysctl -qw net.ipv4.ip_forward=1")?;
    let relay = far.dhcrelay(&dhcrelay, &[])?;
    let client = Dhclient::on(&far.far, "eth0", "send host-name \"other\";\n")?;
    let running = client.start()?;
    let lease = client.bound()?;
    // The address that the relay wrote to, not the far subnet's gateway, which is nowhere on the far link.
    assert_eq!(lease.get("dhcp_server_identifier"), "10.50.0.1");
    // The relay hears what its host routes and brings it too, but what it brings back comes from its own address.
    let log = wait_for("two renewals", PATIENCE, || {
        let log = running.log();
        let direct = log
            .lines()
            .filter(|l| l.starts_with("DHCPACK") && l.ends_with(" from 10.50.0.1"));
        anyhow::ensure!(direct.count() >= 2, "{log}\n{}", relay.log());
        Ok(log)
    })?;
    let broadcast = |line: &&str| line.contains("DHCPREQUEST") && line.contains("255.255.255.255");
    assert_eq!(log.lines().filter(broadcast).count(), 1, "{log}");
    Ok(())
}

#[test]
fn dhcrelay_forwards_v6() -> anyhow::Result<()> {
    let name = "relay::dhcrelay_forwards_v6";
    let Some(dhcrelay) = unpacked::program(name, "isc-dhcp-relay", "usr/sbin/dhcrelay") else {
        return Ok(());
    };
    if !tool::ready(name, &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let far = Far::on(&world)?;
    let pid = far.relay.scratch().join("pid").display().to_string();
    v6(
        &far,
        &[
            &dhcrelay.display().to_string(),
            "-6",
            "-d",
            "-I",
            "-pf",
            &pid,
            "-l",
            "eth1",
            "-u",
            "fd00:50::1%eth0",
        ],
        "Sending on   Socket",
    )
}

#[test]
fn dnsmasq_forwards_v6() -> anyhow::Result<()> {
    let name = "relay::dnsmasq_forwards_v6";
    if !tool::ready(name, &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let far = Far::on(&world)?;
    let argv = dnsmasq(&["--dhcp-relay=fd00:51::2,fd00:50::1"]);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    v6(&far, &argv, "DHCP relay from fd00:51::2 to fd00:50::1")
}

fn v6(far: &Far, argv: &[&str], word: &str) -> anyhow::Result<()> {
    let relay = far.relays(argv, word)?;
    let (_client, learnt) = clients::dhclient6(&far.far, "").map_err(|e| e.context(relay.log()))?;
    let ip = clients::value(&learnt, "new_ip6_address");
    assert!(ip.starts_with("fd00:51::1"), "{learnt}");
    far.listed(&ip)
}
