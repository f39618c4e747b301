//! IPv6 as guests have it: addresses by advertisement and by DHCPv6, names, the way out, and what the guard keeps
//! from them. Clients are the kernel's own, dhclient, dhcpcd and rdisc6.

use std::time::Duration;

use anyhow::Context as _;
use tests::{Machine, Netd, Ns, World, tool, wait_for};

const WAIT: Duration = Duration::from_secs(15);
/// A machine far away, which routes nothing back to private addresses.
const FAR: &str = "2001:db8:80::80";

/// The usual host, with IPv6 on its internet.
fn world() -> anyhow::Result<World> {
    let world = World::new()?;
    for ns in [&world.host, &world.internet] {
        ns.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")?;
    }
    world
        .internet
        .ip("addr add 2001:db8:1::1/64 dev uplink nodad")?;
    world.internet.ip(&format!("addr add {FAR}/128 dev lo"))?;
    world.host.ip("addr add 2001:db8:1::2/64 dev eth0 nodad")?;
    world.host.ip("-6 route add default via 2001:db8:1::1")?;
    Ok(world)
}

/// A guest that makes its addresses without waiting for duplicates.
fn guest(netd: &Netd, name: &str, more: &[&str]) -> anyhow::Result<Machine> {
    let machine = Machine::plug(netd, "six", name, more)?;
    machine
        .ns
        .sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.eth0.accept_dad=0")?;
    machine.ns.ip("link set eth0 down")?;
    machine.ns.ip("link set eth0 up")?;
    Ok(machine)
}

/// The machine's global address, once it has one that begins like this.
fn address(ns: &Ns, prefix: &str) -> anyhow::Result<String> {
    wait_for(&format!("an address in {prefix}"), WAIT, || {
        let all = ns.ip("-6 -o addr show dev eth0 scope global")?;
        let words = all.split_whitespace();
        let mut addresses = words.filter_map(|w| w.split_once('/').map(|(a, _)| a.to_owned()));
        addresses
            .find(|a| a.starts_with(prefix))
            .with_context(|| all.clone())
    })
}

fn ready(test: &str, more: &[&str]) -> bool {
    let tools = [&["nft", "ping", "dnsmasq"][..], more].concat();
    tool::ready(&format!("ipv6::{test}"), &tools)
}

const SLAAC: &str = r#"
name = "six"
[forward]
mode = "nat"
ipv6 = true
[domain]
name = "six.test"
[bridge]
mtu = 1480
[[subnet]]
address = "10.66.0.1/24"
[[subnet]]
address = "fd00:66::1/64"
[subnet.dhcp]
mode = "slaac"
routes = ["fd00:99::/48"]
pref64 = "64:ff9b::/96"
"#;

#[test]
fn the_kernel_makes_its_address_and_reaches_the_outside() -> anyhow::Result<()> {
    if !ready("the_kernel_makes_its_address_and_reaches_the_outside", &[]) {
        return Ok(());
    }
    let world = world()?;
    let netd = Netd::start(&world.host)?;
    netd.apply(SLAAC)?;
    let alice = guest(&netd, "alice", &[])?;
    address(&alice.ns, "fd00:66:")?;
    let routes = alice.ns.ip("-6 route show default")?;
    assert!(routes.contains("via fe80::"), "{routes}");
    wait_for("a ping to the outside by NAT66", WAIT, || {
        anyhow::ensure!(alice.pings(FAR)?, "none");
        Ok(())
    })?;
    assert!(alice.pings("fd00:66::1")?, "the gateway");
    Ok(())
}

#[test]
fn an_advertisement_as_others_read_it() -> anyhow::Result<()> {
    if !ready("an_advertisement_as_others_read_it", &["rdisc6"]) {
        return Ok(());
    }
    let world = world()?;
    let netd = Netd::start(&world.host)?;
    netd.apply(SLAAC)?;
    let alice = guest(&netd, "alice", &[])?;
    let said = alice.ns.sh("rdisc6 -1 -r 5 -w 2000 eth0")?;
    for word in [
        "fd00:66::/64",
        "Recursive DNS server     : fd00:66::1",
        "DNS search list          : six.test",
        "MTU                      :         1480",
        "fd00:99::/48",
        "Stateful address conf.    :           No",
        "1800 (0x00000708) seconds",
    ] {
        assert!(said.contains(word), "no `{word}` in:\n{said}");
    }
    Ok(())
}

#[test]
fn a_stopped_network_takes_its_route_back() -> anyhow::Result<()> {
    if !ready("a_stopped_network_takes_its_route_back", &[]) {
        return Ok(());
    }
    let world = world()?;
    let mut netd = Netd::start(&world.host)?;
    netd.apply(SLAAC)?;
    let alice = guest(&netd, "alice", &[])?;
    address(&alice.ns, "fd00:66:")?;
    // A daemon that ends, or dies, says no farewell: the guest keeps its way out.
    netd.kill9()?;
    assert!(alice.pings(FAR)?, "without netd");
    netd.start_again()?;
    assert!(!alice.ns.ip("-6 route show default")?.is_empty());
    netd.vnet(&["network", "stop", "six"])?;
    wait_for("the default route to go", WAIT, || {
        let routes = alice.ns.ip("-6 route show default")?;
        anyhow::ensure!(routes.is_empty(), "{routes}");
        Ok(())
    })?;
    let addresses = alice.ns.ip("-6 addr show dev eth0 scope global")?;
    assert!(addresses.contains("deprecated"), "{addresses}");
    Ok(())
}

#[test]
fn a_removed_prefix_is_deprecated() -> anyhow::Result<()> {
    if !ready("a_removed_prefix_is_deprecated", &[]) {
        return Ok(());
    }
    let world = world()?;
    let netd = Netd::start(&world.host)?;
    netd.apply(SLAAC)?;
    let alice = guest(&netd, "alice", &[])?;
    let old = address(&alice.ns, "fd00:66:")?;
    netd.apply(&SLAAC.replace("fd00:66::1/64", "fd00:67::1/64"))?;
    address(&alice.ns, "fd00:67:")?;
    wait_for("the old address to be deprecated", WAIT, || {
        let all = alice.ns.ip("-6 -o addr show dev eth0 scope global")?;
        let line = all.lines().find(|l| l.contains(&old)).unwrap_or("");
        anyhow::ensure!(line.contains("deprecated"), "{all}");
        Ok(())
    })
}
