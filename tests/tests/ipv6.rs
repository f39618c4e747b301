//! IPv6 as guests have it: addresses by advertisement and by DHCPv6, names, the way out, and what the guard keeps
//! from them. Clients are the kernel's own, dhclient, dhcpcd and rdisc6.

use std::time::Duration;

use anyhow::Context as _;
use tests::clients::{dhclient6, value};
use tests::process::Proc;
use tests::world::finds;
use tests::{Guest, Machine, Netd, Ns, Udhcpc, World, tool, wait_for};

const WAIT: Duration = Duration::from_secs(15);
/// A guest without KVM on a busy machine.
const GUEST: Duration = Duration::from_secs(60);
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

/// Has the host ask for an address that nobody has any more, until it has asked in vain.
fn fall_silent(netd: &Netd, address: &str) -> anyhow::Result<()> {
    // It is believed to be there for up to a minute after it was heard; that is the kernel's business.
    let shown = netd.ns().ip(&format!("-6 neigh show {address}"))?;
    let dev = shown.split_whitespace().skip_while(|w| *w != "dev").nth(1);
    let dev = dev.with_context(|| shown.clone())?;
    netd.ns()
        .ip(&format!("-6 neigh change {address} dev {dev} nud stale"))?;
    wait_for("silence", 2 * WAIT, || {
        let _ = netd.ns().run(&["ping", "-c1", "-W1", address]);
        let shown = netd.ns().ip(&format!("-6 neigh show {address}"))?;
        anyhow::ensure!(!shown.contains("lladdr"), "{shown}");
        Ok(())
    })
}

/// Waits until the outside answers a ping from this address.
fn from(ns: &Ns, own: &str) -> anyhow::Result<()> {
    wait_for(&format!("a ping from {own}"), WAIT, || {
        let ran = ns.run(&["ping", "-c1", "-W1", "-I", own, FAR])?;
        anyhow::ensure!(ran.success(), "no answer");
        Ok(())
    })
}

fn ready(test: &str, more: &[&str]) -> bool {
    let tools = [&["nft", "ping", "dnsmasq"][..], more].concat();
    tool::ready(&format!("ipv6::{test}"), &tools)
}

/// One test: the usual world, where netd serves a document; and what is done there.
fn on(
    document: &str,
    test: &str,
    more: &[&str],
    done: impl FnOnce(&World, Netd) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !ready(test, more) {
        return Ok(());
    }
    let world = world()?;
    let netd = Netd::start(&world.host)?;
    netd.apply(document)?;
    done(&world, netd)
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
    let test = "the_kernel_makes_its_address_and_reaches_the_outside";
    on(SLAAC, test, &["dig"], |_, mut netd| {
        let alice = guest(&netd, "alice", &[])?;
        let own = address(&alice.ns, "fd00:66:")?;
        let routes = alice.ns.ip("-6 route show default")?;
        assert!(routes.contains("via fe80::"), "{routes}");
        alice.reaches(FAR)?;
        alice.reaches("fd00:66::1")?;

        // Nobody told netd of the address, but it was heard; and a privacy address after it.
        let named = |address: &str| {
            wait_for("its name", WAIT, || {
                let all = alice.dig("fd00:66::1", &["alice.six.test", "AAAA"])?;
                anyhow::ensure!(all.lines().any(|l| l == address), "{all}");
                let back = alice.dig("fd00:66::1", &["-x", address])?;
                anyhow::ensure!(back == "alice.six.test.", "{back}");
                Ok(())
            })
        };
        named(&own)?;
        alice.ns.ip("addr add fd00:66::abcd:1 dev eth0 nodad")?;
        from(&alice.ns, "fd00:66::abcd:1")?;
        named("fd00:66::abcd:1")?;
        // Nobody answers for it any more: the host asks in vain, and the name goes.
        alice.ns.ip("addr del fd00:66::abcd:1 dev eth0")?;
        fall_silent(&netd, "fd00:66::abcd:1")?;
        wait_for("the end of its name", WAIT, || {
            let all = alice.dig("fd00:66::1", &["alice.six.test", "AAAA"])?;
            anyhow::ensure!(all.lines().all(|l| l != "fd00:66::abcd:1"), "{all}");
            Ok(())
        })?;
        // A daemon that begins again asks the kernel whom it heard.
        netd.kill9()?;
        netd.start_again()?;
        named(&own)?;
        netd.vnet(&["port", "detach", "six", "alice"])?;
        let bob = guest(&netd, "bob", &[])?;
        address(&bob.ns, "fd00:66:")?;
        bob.finds("fd00:66::1", &["alice.six.test", "AAAA"], "")
    })
}

/// A guest that loses an address says nothing, and the host forgets it: with its carrier, or one of many neighbours.
#[test]
fn an_address_that_the_host_forgets_is_asked_for() -> anyhow::Result<()> {
    let test = "an_address_that_the_host_forgets_is_asked_for";
    on(SLAAC, test, &["dig"], |_, netd| {
        let alice = guest(&netd, "alice", &[])?;
        let own = address(&alice.ns, "fd00:66:")?;
        let other = "fd00:66::abcd:1";
        alice.ns.ip(&format!("addr add {other} dev eth0 nodad"))?;
        for each in [&own, other] {
            from(&alice.ns, each)?;
        }
        let has = |wanted: &[&str]| {
            wait_for(&format!("{wanted:?}"), WAIT, || {
                let all = alice.dig("fd00:66::1", &["alice.six.test", "AAAA"])?;
                let mut all: Vec<&str> = all.lines().collect();
                all.sort_unstable();
                anyhow::ensure!(all == wanted, "{all:?}");
                Ok(())
            })
        };
        has(&[&own, other])?;
        // It comes back with what it makes by itself.
        alice.ns.ip("link set eth0 down")?;
        wait_for("the host to forget", WAIT, || {
            let shown = netd.ns().ip(&format!("-6 neigh show {other}"))?;
            anyhow::ensure!(!shown.contains("lladdr"), "{shown}");
            Ok(())
        })?;
        alice.ns.ip("link set eth0 up")?;
        address(&alice.ns, "fd00:66:")?;
        has(&[&own])
    })
}

#[test]
fn an_advertisement_as_others_read_it() -> anyhow::Result<()> {
    let test = "an_advertisement_as_others_read_it";
    on(SLAAC, test, &["rdisc6", "radvdump"], |_, netd| {
        let alice = guest(&netd, "alice", &[])?;
        let dump = alice.ns.spawn(&["stdbuf", "-oL", "radvdump"])?;
        let said = wait_for("an advertisement", WAIT, || {
            alice.ns.sh("rdisc6 -1 -r 5 -w 2000 eth0")
        })?;
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
        // As radvd would have been told to say the same.
        wait_for("the other reader", WAIT, || {
            alice.ns.sh("rdisc6 -1 -r 1 -w 1000 eth0")?;
            let said = dump.log();
            for word in [
                "AdvManagedFlag off;",
                "AdvDefaultLifetime 1800;",
                "AdvDefaultPreference medium;",
                "AdvLinkMTU 1480;",
                "prefix fd00:66::/64",
                "AdvOnLink on;",
                "AdvAutonomous on;",
                "route fd00:99::/48",
                "RDNSS fd00:66::1",
                "DNSSL six.test",
            ] {
                anyhow::ensure!(said.contains(word), "no `{word}` in:\n{said}");
            }
            Ok(())
        })
    })
}

#[test]
fn a_stopped_network_takes_its_route_back() -> anyhow::Result<()> {
    let test = "a_stopped_network_takes_its_route_back";
    on(SLAAC, test, &[], |_, mut netd| {
        let alice = guest(&netd, "alice", &[])?;
        address(&alice.ns, "fd00:66:")?;
        // A daemon that ends, or dies, says no farewell: the guest keeps its way out.
        netd.kill9()?;
        alice.reaches(FAR)?;
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
    })
}

#[test]
fn a_removed_prefix_is_deprecated() -> anyhow::Result<()> {
    let test = "a_removed_prefix_is_deprecated";
    on(SLAAC, test, &[], |_, netd| {
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
    })
}

#[test]
fn who_missed_the_news_hears_it_from_the_next_daemon() -> anyhow::Result<()> {
    let test = "who_missed_the_news_hears_it_from_the_next_daemon";
    on(SLAAC, test, &["sysctl"], |_, mut netd| {
        let alice = guest(&netd, "alice", &[])?;
        let old = address(&alice.ns, "fd00:66:")?;
        alice.ns.sh("sysctl -qw net.ipv6.conf.eth0.accept_ra=0")?;
        netd.apply(&SLAAC.replace("fd00:66::1/64", "fd00:67::1/64"))?;
        netd.kill9()?;
        let said = alice.ns.ip("-6 -o addr show dev eth0 scope global")?;
        assert!(!said.contains("deprecated"), "{said}");
        alice.ns.sh("sysctl -qw net.ipv6.conf.eth0.accept_ra=1")?;
        netd.start_again()?;
        wait_for("the old address to be deprecated", WAIT, || {
            let all = alice.ns.ip("-6 -o addr show dev eth0 scope global")?;
            let line = all.lines().find(|l| l.contains(&old)).unwrap_or("");
            anyhow::ensure!(line.contains("deprecated"), "{all}");
            Ok(())
        })
    })
}

const STATEFUL: &str = r#"
name = "six"
[forward]
mode = "nat"
ipv6 = true
[domain]
name = "six.test"
[[subnet]]
address = "fd00:68::1/64"
[subnet.dhcp]
mode = "stateful"
lease_time = "10m"
ranges = ["fd00:68::1000-fd00:68::10ff"]
[subnet.dhcp.options]
ntp-server = "fd00:68::123"
[[subnet.dhcp.host]]
mac = "52:54:00:aa:06:01"
ip = "fd00:68::b055"
name = "boss"
"#;

#[test]
fn dhclient_gets_a_ports_address_and_its_name() -> anyhow::Result<()> {
    let test = "dhclient_gets_a_ports_address_and_its_name";
    on(STATEFUL, test, &["dhclient", "dig"], |_, mut netd| {
        let alice = guest(&netd, "alice", &[])?;
        let config = "also request dhcp6.name-servers, dhcp6.domain-search;";
        let (_client, learnt) = dhclient6(&alice.ns, config)?;
        let ip = value(&learnt, "new_ip6_address");
        assert!(ip.starts_with("fd00:68::10"), "{learnt}");
        let own = alice.port["addresses"].to_string();
        assert!(own.contains(&ip), "{ip} is not of {own}");
        assert_eq!(value(&learnt, "new_dhcp6_name_servers"), "fd00:68::1");
        assert_eq!(value(&learnt, "new_dhcp6_domain_search"), "six.test.");
        let listed = netd.vnet(&["lease", "list", "six"])?;
        assert!(listed.contains(&ip) && listed.contains("alice"), "{listed}");
        alice.finds("fd00:68::1", &["alice.six.test", "AAAA"], &ip)?;
        alice.finds("fd00:68::1", &["-x", &ip], "alice.six.test.")?;
        alice.reaches(FAR)?;
        // The moment the reply is out, the lease is on disk.
        netd.kill9()?;
        netd.start_again()?;
        assert!(netd.vnet(&["lease", "list", "six"])?.contains(&ip));
        Ok(())
    })
}

/// A machine that is no port: a veth on the bridge.
fn stray(world: &World, netd: &Netd, mac: &str) -> anyhow::Result<Ns> {
    let bridge = netd.json(&["network", "show", "six"])?["bridge"].clone();
    let bridge = bridge.as_str().unwrap_or_default();
    let stray = Ns::new("stray")?;
    world.host.link("stray", &stray, "eth0")?;
    stray.sh("sysctl -qw net.ipv6.conf.eth0.accept_dad=0")?;
    stray.ip("link set eth0 down")?;
    stray.ip(&format!("link set eth0 address {mac}"))?;
    world.host.ip(&format!("link set stray master {bridge}"))?;
    stray.ip("link set eth0 up")?;
    Ok(stray)
}

#[test]
fn a_reservation_by_mac_whatever_the_identifier() -> anyhow::Result<()> {
    let test = "a_reservation_by_mac_whatever_the_identifier";
    on(STATEFUL, test, &["dhclient", "dig"], |world, netd| {
        // With a DUID of another kind.
        let stray = stray(world, &netd, "52:54:00:aa:06:01")?;
        let config = "send dhcp6.client-id 00:02:00:00:ab:11:22:33:44;";
        let (_client, learnt) = dhclient6(&stray, config)?;
        assert_eq!(
            value(&learnt, "new_ip6_address"),
            "fd00:68::b055",
            "{learnt}"
        );
        // Its address has no prefix: the way to the gateway is the kernel's, by an advertisement.
        let boss = ["boss.six.test", "AAAA"];
        finds(&stray, "fd00:68::1", &boss, "fd00:68::b055")
    })
}

#[test]
fn a_lease_becomes_a_reservation() -> anyhow::Result<()> {
    let test = "a_lease_becomes_a_reservation";
    on(STATEFUL, test, &["dhclient"], |world, netd| {
        let stray = stray(world, &netd, "52:54:00:aa:06:02")?;
        let (client, learnt) = dhclient6(&stray, "send fqdn.fqdn \"stray\";")?;
        let ip = value(&learnt, "new_ip6_address");
        assert_eq!(
            netd.json(&["lease", "show", "six", &ip])?["reserved"],
            false
        );
        let said = netd.vnet(&["lease", "reserve", "six", &ip])?;
        assert!(said.contains("is kept"), "{said}");
        let said = netd.vnet(&["lease", "reserve", "six", &ip])?;
        assert!(said.contains("already"), "{said}");
        assert_eq!(netd.json(&["lease", "show", "six", &ip])?["reserved"], true);
        let document = netd.vnet(&["network", "show", "six", "-o", "toml"])?;
        let kept = ["mac = \"52:54:00:aa:06:02\"", &format!("ip = \"{ip}\"")];
        assert!(kept.iter().all(|k| document.contains(k)), "{document}");
        // Another system on the same machine: another identifier, the same address.
        drop(client);
        stray.ip("-6 addr flush dev eth0 scope global")?;
        let config = "send dhcp6.client-id 00:02:00:00:ab:11:99:99;";
        let (_client, learnt) = dhclient6(&stray, config)?;
        assert_eq!(value(&learnt, "new_ip6_address"), ip, "{learnt}");
        Ok(())
    })
}

/// dhcpcd with files of its own; its log says what it does.
fn dhcpcd(ns: &Ns, config: &str) -> anyhow::Result<Proc> {
    let files = ns.scratch();
    // Its folders are compiled in: it gets its own.
    for folder in ["/var/lib/dhcpcd", "/run/dhcpcd"] {
        std::fs::create_dir_all(folder)?;
        let own = files.join(&folder.replace('/', "-"));
        std::fs::create_dir_all(&own)?;
        ns.bind(own, folder);
    }
    let script = files.script("hook", "#!/bin/sh\nexit 0\n")?;
    let config = format!("{config}ia_na 1\nscript {}\n", script.display());
    let config = files.write("dhcpcd.conf", &config)?;
    let config = config.display().to_string();
    ns.spawn(&["dhcpcd", "-B", "-d", "-f", &config, "eth0"])
}

#[test]
fn dhcpcd_is_served_and_confirms_its_lease_when_the_link_comes_back() -> anyhow::Result<()> {
    let test = "dhcpcd_is_served_and_confirms_its_lease_when_the_link_comes_back";
    on(STATEFUL, test, &["dhcpcd"], |_, netd| {
        let carol = guest(&netd, "carol", &[])?;
        let client = dhcpcd(&carol.ns, "ipv6only\nnoipv6rs\n")?;
        let ip = address(&carol.ns, "fd00:68::10")?;
        assert!(netd.vnet(&["lease", "list", "six"])?.contains(&ip));
        // RFC 8415 section 18.2.3: it may be on another link now, and asks.
        carol.ns.ip("link set eth0 down")?;
        carol.ns.ip("link set eth0 up")?;
        client.wait_log("confirming prior DHCPv6 lease", WAIT)?;
        assert_eq!(address(&carol.ns, "fd00:68::10")?, ip);
        Ok(())
    })
}

#[test]
fn dhcpcd_in_dual_stack() -> anyhow::Result<()> {
    let dual = format!("{STATEFUL}[[subnet]]\naddress = \"10.68.0.1/24\"\n[subnet.dhcp]\n");
    on(&dual, "dhcpcd_in_dual_stack", &["dhcpcd"], |_, netd| {
        let carol = guest(&netd, "carol", &[])?;
        let _client = dhcpcd(&carol.ns, "")?;
        let six = address(&carol.ns, "fd00:68::10")?;
        let four = wait_for("an IPv4 address", WAIT, || {
            let all = carol.ns.ip("-4 -o addr show dev eth0")?;
            let found = all.split_whitespace().find(|w| w.starts_with("10.68.0."));
            let found = found.and_then(|w| w.split('/').next()).map(str::to_owned);
            found.with_context(|| all.clone())
        })?;
        let listed = netd.vnet(&["lease", "list", "six"])?;
        assert!(listed.contains(&six) && listed.contains(&four), "{listed}");
        let routes = wait_for("both ways out", WAIT, || {
            let four = carol.ns.ip("route show default")?;
            let six = carol.ns.ip("-6 route show default")?;
            anyhow::ensure!(!four.is_empty() && !six.is_empty(), "{four}{six}");
            anyhow::Ok(four + &six)
        })?;
        assert!(
            routes.contains("via 10.68.0.1") && routes.contains("via fe80::"),
            "{routes}"
        );
        Ok(())
    })
}

#[test]
fn dhclient_renews_confirms_and_gives_back() -> anyhow::Result<()> {
    let test = "dhclient_renews_confirms_and_gives_back";
    let short = STATEFUL.replace("10m", "10s");
    on(&short, test, &["dhclient"], |_, netd| {
        let alice = guest(&netd, "alice", &[])?;
        let (mut client, learnt) = dhclient6(&alice.ns, "")?;
        let ip = value(&learnt, "new_ip6_address");
        let file = alice.ns.scratch().join("learnt");
        wait_for("a renewal", WAIT, || {
            let learnt = std::fs::read_to_string(&file)?;
            anyhow::ensure!(value(&learnt, "reason") == "RENEW6", "{}", client.log());
            assert_eq!(value(&learnt, "new_ip6_address"), ip);
            Ok(())
        })?;
        // A client that begins again with a lease asks whether it fits, and is told.
        client.kill9()?;
        let files = alice.ns.scratch();
        let of = |name: &str| files.join(name).display().to_string();
        let [script, config, leases, pid] = ["script", "conf", "leases", "pid"].map(of);
        let run = |more: &[&str]| {
            let head = ["dhclient", "-6", "-v", "-sf", &script, "-cf", &config];
            let tail = ["-lf", &leases, "-pf", &pid, "eth0"];
            [&head[..], more, &tail]
                .concat()
                .iter()
                .map(|w| (*w).to_owned())
                .collect::<Vec<_>>()
        };
        let words = |all: &[String]| all.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let again = run(&["-d"]);
        let again: Vec<&str> = again.iter().map(String::as_str).collect();
        let client = alice.ns.spawn(&again)?;
        client.wait_log("XMT: Confirm", WAIT)?;
        client.wait_log("message status code Success", WAIT)?;
        assert!(netd.vnet(&["lease", "list", "six"])?.contains(&ip));
        alice.ns.sh(&words(&run(&["-r"])))?;
        let listed = netd.vnet(&["lease", "list", "six"])?;
        assert!(!listed.contains(&ip), "{listed}");
        Ok(())
    })
}

const UPLINK: &str = r"
interface uplink {
  AdvSendAdvert on;
  MinRtrAdvInterval 3;
  MaxRtrAdvInterval 4;
  AdvDefaultLifetime 9;
  prefix 2001:db8:2::/64 { };
};
";

/// Forwarding makes a host deaf to routers, and its own default route runs out: unless netd sees to it.
#[test]
fn the_host_keeps_the_route_that_it_has_by_advertisement() -> anyhow::Result<()> {
    if !ready(
        "the_host_keeps_the_route_that_it_has_by_advertisement",
        &["radvd"],
    ) {
        return Ok(());
    }
    let world = World::new()?;
    let (host, internet) = (&world.host, &world.internet);
    internet.sh("sysctl -qw net.ipv6.conf.all.forwarding=1")?;
    internet.ip("addr add 2001:db8:2::1/64 dev uplink nodad")?;
    let config = internet
        .scratch()
        .write("radvd.conf", UPLINK)?
        .display()
        .to_string();
    let pid = internet.scratch().join("radvd.pid").display().to_string();
    let _radvd = internet.spawn(&["radvd", "-n", "-m", "stderr", "-C", &config, "-p", &pid])?;
    let by_advertisement = || -> anyhow::Result<u32> {
        let routes = host.ip("-6 route show default proto ra")?;
        let left = routes.split("expires ").nth(1).context("no route")?;
        Ok(left.split("sec").next().unwrap_or("").trim().parse()?)
    };
    wait_for("the host's default route", WAIT, by_advertisement)?;

    let netd = Netd::start(host)?;
    netd.apply(SLAAC)?;
    assert_eq!(
        host.sh("cat /proc/sys/net/ipv6/conf/all/forwarding")?
            .trim(),
        "1"
    );
    // It lasts nine seconds: seen low and then high again, it was renewed while we forward.
    let mut lowest = u32::MAX;
    wait_for("another advertisement to count", WAIT, || {
        let left = by_advertisement()?;
        lowest = lowest.min(left);
        anyhow::ensure!(left > lowest, "{left}");
        Ok(())
    })?;
    netd.vnet(&["network", "delete", "six"])?;
    assert_eq!(
        host.sh("cat /proc/sys/net/ipv6/conf/all/forwarding")?
            .trim(),
        "0"
    );
    assert_eq!(
        host.sh("cat /proc/sys/net/ipv6/conf/eth0/accept_ra")?
            .trim(),
        "1"
    );
    by_advertisement().map(drop)
}

const ROUTED: &str = r#"
name = "six"
forward.mode = "routed"
domain.name = "six.test"
[[subnet]]
address = "2001:db8:66::1/64"
dhcp.mode = "both"
"#;

/// Both kinds of addresses: what the guest makes, and what it is given.
#[test]
fn both_kinds_of_addresses_and_a_routed_network() -> anyhow::Result<()> {
    let test = "both_kinds_of_addresses_and_a_routed_network";
    on(ROUTED, test, &["dhclient", "dig"], |world, netd| {
        world
            .internet
            .ip("-6 route add 2001:db8:66::/64 via 2001:db8:1::2")?;
        let alice = guest(&netd, "alice", &[])?;
        let made = address(&alice.ns, "2001:db8:66:")?;
        let (_client, learnt) = dhclient6(&alice.ns, "")?;
        let given = value(&learnt, "new_ip6_address");
        assert_ne!(made, given);
        for own in [&made, &given] {
            from(&alice.ns, own)?;
        }
        wait_for("both names", WAIT, || {
            let all = alice.dig("2001:db8:66::1", &["alice.six.test", "AAAA"])?;
            let has = |own: &String| all.lines().any(|l| l == own);
            anyhow::ensure!(has(&made) && has(&given), "{all}");
            Ok(())
        })?;

        // Nobody answers for it: the guest may be off, and its lease holds.
        let other = "2001:db8:66::abcd:1";
        alice.ns.ip(&format!("addr add {other} dev eth0 nodad"))?;
        from(&alice.ns, other)?;
        for own in [given.as_str(), other] {
            alice.ns.ip(&format!("addr flush dev eth0 to {own}"))?;
            fall_silent(&netd, own)?;
        }
        wait_for("the end of the other's name", WAIT, || {
            let all = alice.dig("2001:db8:66::1", &["alice.six.test", "AAAA"])?;
            anyhow::ensure!(all.lines().all(|l| l != other), "{all}");
            Ok(())
        })?;
        let all = alice.dig("2001:db8:66::1", &["alice.six.test", "AAAA"])?;
        assert!(all.lines().any(|l| l == given), "{all}");
        alice.finds("2001:db8:66::1", &["-x", &given], "alice.six.test.")
    })
}

const ONLY_SIX: &str = r#"
name = "only"
[forward]
mode = "nat"
ipv6 = true
[domain]
name = "only.test"
[[subnet]]
address = "fd00:69::1/64"
"#;

/// Real Linux guests: one that has both families, and one that has IPv6 alone.
#[test]
fn linux_guests_in_dual_stack_and_with_ipv6_only() -> anyhow::Result<()> {
    let dual = SLAAC.replace("10.66.0.1/24\"", "10.66.0.1/24\"\n[subnet.dhcp]");
    let test = "linux_guests_in_dual_stack_and_with_ipv6_only";
    on(
        &dual,
        test,
        &["qemu-system-x86_64", "busybox"],
        |world, netd| {
            netd.apply(ONLY_SIX)?;
            let boot = |network: &str, name: &str| -> anyhow::Result<Guest> {
                let port = netd.json(&["port", "attach", network, name])?;
                let text = |key: &str| port[key].as_str().unwrap_or_default().to_owned();
                let boot = Guest::on_tap(&world.host, &text("interface"));
                let boot = boot.mac(&text("mac")).name(name);
                match network {
                    "only" => boot.no_dhcp().boot(),
                    _ => boot.boot(),
                }
            };
            let (dual, only) = (boot("six", "dual")?, boot("only", "solo")?);
            assert!(dual.lease()?.to_string().starts_with("10.66.0."));
            for (guest, domain, gateway, prefix) in [
                (&dual, "six.test", "fd00:66::1", "fd00:66:"),
                (&only, "only.test", "fd00:69::1", "fd00:69:"),
            ] {
                let until = |what: &str, script: &str, word: &str| {
                    wait_for(what, GUEST, || {
                        let said = guest.run(script)?;
                        anyhow::ensure!(said.contains(word), "{said}");
                        anyhow::Ok(said)
                    })
                };
                until(
                    "an address",
                    "ip -6 addr show dev eth0 scope global",
                    prefix,
                )?;
                until("a way out", "ip -6 route show default", "via fe80::")?;
                until("NAT66", &format!("ping -6 -c1 -W2 {FAR}"), "0% packet loss")?;
                let own = format!("nslookup {}.{domain} {gateway}", guest.name());
                until("its own name", &own, prefix)?;
            }
            // What has no IPv4 has none: not even a route.
            assert_eq!(only.run("ip -4 route")?.trim(), "");
            assert_eq!(only.run("ip -4 addr show dev eth0")?.trim(), "");
            Ok(())
        },
    )
}

const DUAL: &str = r#"
name = "six"
domain.name = "six.test"
[[subnet]]
address = "10.68.0.1/24"
[subnet.dhcp]
ranges = ["10.68.0.100-10.68.0.110"]
[[subnet.dhcp.host]]
mac = "52:54:00:aa:06:01"
ip = "10.68.0.9"
name = "boss"
[[subnet]]
address = "fd00:68::1/64"
[subnet.dhcp]
mode = "stateful"
ranges = ["fd00:68::1000-fd00:68::10ff"]
"#;

/// A reservation of one family keeps its guest's name in the other one.
#[test]
fn a_reserved_guest_has_its_name_in_both_families() -> anyhow::Result<()> {
    let test = "a_reserved_guest_has_its_name_in_both_families";
    on(
        DUAL,
        test,
        &["dhclient", "dig", "busybox"],
        |world, netd| {
            let own = |name: &str, mac: &str, said: &str| -> anyhow::Result<[String; 2]> {
                let stray = stray(world, &netd, mac)?;
                let four = Udhcpc::on(&stray, "eth0")?.hostname(said).lease()?.ip;
                let (_client, learnt) = dhclient6(&stray, &format!("send fqdn.fqdn \"{said}\";"))?;
                let six = value(&learnt, "new_ip6_address");
                let own = [four.to_string(), six];
                finds(&stray, "10.68.0.1", &[name, "A"], &own[0])?;
                finds(&stray, "10.68.0.1", &[name, "AAAA"], &own[1])?;
                Ok(own)
            };
            // Reserved by the document for IPv4: the name that DHCPv6 promised is there.
            own("boss.six.test", "52:54:00:aa:06:01", "boss")?;
            world.host.ip("link del stray")?;
            // Reserved while it has both.
            let [four, six] = own("web.six.test", "52:54:00:aa:06:02", "web")?;
            netd.vnet(&["lease", "reserve", "six", &four])?;
            let asker = guest(&netd, "asker", &[])?;
            asker.lease()?;
            let web = |kind: &str, wanted: &str| {
                asker.finds("10.68.0.1", &["web.six.test", kind], wanted)
            };
            web("A", &four)?;
            web("AAAA", &six)?;
            // Who has nothing of it any more has not the name either.
            let document = netd.vnet(&["network", "show", "six", "-o", "toml"])?;
            netd.apply(&document.replace("52:54:00:aa:06:02", "52:54:00:aa:06:03"))?;
            web("AAAA", "")
        },
    )
}

/// A lease outlives a stop and a restart, but not its subnet.
#[test]
fn leases_end_with_their_subnet() -> anyhow::Result<()> {
    let test = "leases_end_with_their_subnet";
    on(
        DUAL,
        test,
        &["dhclient", "dig", "busybox"],
        |world, mut netd| {
            let stray = stray(world, &netd, "52:54:00:aa:06:02")?;
            let four = Udhcpc::on(&stray, "eth0")?
                .hostname("web")
                .lease()?
                .ip
                .to_string();
            let (client, learnt) = dhclient6(&stray, "send fqdn.fqdn \"web\";")?;
            let six = value(&learnt, "new_ip6_address");
            drop(client);
            let listed = |netd: &Netd| -> anyhow::Result<[bool; 2]> {
                let all = netd.vnet(&["lease", "list", "six"])?;
                Ok([&four, &six].map(|ip| all.contains(ip.as_str())))
            };
            netd.vnet(&["network", "stop", "six"])?;
            assert_eq!(listed(&netd)?, [true; 2]);
            netd.vnet(&["network", "start", "six"])?;
            netd.kill9()?;
            netd.start_again()?;
            assert_eq!(listed(&netd)?, [true; 2]);

            // One subnet is another one, the other family is gone.
            let (v4, _) = DUAL
                .split_once("[[subnet]]\naddress = \"fd00")
                .context("two")?;
            netd.apply(&v4.replace("10.68.", "10.69."))?;
            assert_eq!(listed(&netd)?, [false; 2]);
            let bridge = netd.json(&["network", "show", "six"])?["bridge"].clone();
            let file = format!("{}.status", bridge.as_str().unwrap_or_default());
            let file = netd.run_dir().join("leases").join(file);
            wait_for("the file without them", WAIT, || {
                let text = std::fs::read_to_string(&file)?;
                anyhow::ensure!(!text.contains(&four), "{text}");
                Ok(())
            })?;
            let asker = guest(&netd, "asker", &[])?;
            asker.lease()?;
            for kind in ["A", "AAAA"] {
                asker.finds("10.69.0.1", &["web.six.test", kind], "")?;
            }
            netd.kill9()?;
            netd.start_again()?;
            assert_eq!(listed(&netd)?, [false; 2]);
            asker.finds("10.69.0.1", &["web.six.test", "A"], "")
        },
    )
}

/// A guest is one name: what it has in either family is given back.
#[test]
fn a_name_gives_back_all_that_it_has() -> anyhow::Result<()> {
    let test = "a_name_gives_back_all_that_it_has";
    on(DUAL, test, &["dhclient", "busybox"], |world, netd| {
        let stray = stray(world, &netd, "52:54:00:aa:06:02")?;
        let four = Udhcpc::on(&stray, "eth0")?.hostname("web").lease()?.ip;
        let (client, learnt) = dhclient6(&stray, "send fqdn.fqdn \"web\";")?;
        let six = value(&learnt, "new_ip6_address");
        drop(client);
        let said = netd.vnet(&["lease", "release", "six", "web"])?;
        for ip in [four.to_string(), six] {
            assert!(said.contains(&format!("{ip} of six is free")), "{said}");
        }
        let listed = netd.json(&["lease", "list", "six"])?;
        assert_eq!(listed, serde_json::json!([]));
        let nobody = netd.try_vnet(&["lease", "release", "six", "web"])?;
        let nobody = nobody.refused()?;
        assert!(nobody.contains("no address, name or MAC"), "{nobody}");
        Ok(())
    })
}
