//! The kit shows itself: namespaces, a deadline, clients and guests, with dnsmasq as the server of the house.

use std::time::Duration;

use tests::http::Web;
use tests::{Dhclient, Guest, Ns, Udhcpc, tool, wait_for};

/// A plain bridge with an address and dnsmasq behind it; no netd anywhere.
fn lan(label: &str) -> anyhow::Result<(Ns, tests::Proc)> {
    let ns = Ns::new(label)?;
    ns.ip("link add br0 type bridge")?;
    ns.ip("addr add 10.94.0.1/24 dev br0")?;
    ns.ip("link set br0 up")?;
    let leases = format!("--dhcp-leasefile={}", ns.scratch().join("leases").display());
    let dnsmasq = ns.spawn(&[
        "dnsmasq",
        "-k",
        "-C",
        "/dev/null",
        "-i",
        "br0",
        "--bind-interfaces",
        "--except-interface=lo",
        "--no-resolv",
        "--no-hosts",
        "--domain=lan.test",
        "--host-record=web.lan.test,10.94.0.1",
        "--dhcp-authoritative",
        "--no-ping",
        "--dhcp-range=10.94.0.50,10.94.0.90,1h",
        "--log-facility=-",
        &leases,
    ])?;
    dnsmasq.wait_log("DHCP, IP range", Duration::from_secs(10))?;
    Ok((ns, dnsmasq))
}

#[test]
fn two_guests_ping_each_other() -> anyhow::Result<()> {
    if !tool::ready(
        "kit::two_guests_ping_each_other",
        &["dnsmasq", "qemu-system-x86_64", "busybox"],
    ) {
        return Ok(());
    }
    let (ns, _dnsmasq) = lan("guests")?;
    for tap in ["tap0", "tap1"] {
        ns.ip(&format!("tuntap add {tap} mode tap vnet_hdr"))?;
        ns.ip(&format!("link set {tap} master br0 up"))?;
    }
    let web = Web::start(&ns, "the host", "10.94.0.1:80")?;
    let one = Guest::on_tap(&ns, "tap0")
        .mac("52:54:00:00:00:01")
        .name("one")
        .boot()?;
    let two = Guest::on_tap(&ns, "tap1")
        .mac("52:54:00:00:00:02")
        .name("two")
        .boot()?;

    let (first, second) = (one.lease()?, two.lease()?);
    eprintln!(
        "ready after {:.1?} and {:.1?}; leases {first} and {second}",
        one.ready()?,
        two.ready()?
    );
    assert_ne!(first, second);
    one.run(&format!("ping -c2 -W2 {second}"))?;
    two.run(&format!("ping -c2 -W2 {first}"))?;

    let page = one.run("wget -q -O- http://web.lan.test/")?;
    assert_eq!(
        page,
        format!("hello from the host, you are {first}\n"),
        "{}",
        web.address()
    );
    assert_eq!(
        one.run("echo 'two words'; cat /sys/class/net/eth0/address")?,
        "two words\n52:54:00:00:00:01\n"
    );
    let (code, output) = two.try_run(Duration::from_secs(5), "echo no; exit 7")?;
    assert_eq!((code, output.as_str()), (7, "no\n"));
    Ok(())
}

#[test]
fn clients_get_leases() -> anyhow::Result<()> {
    if !tool::ready(
        "kit::clients_get_leases",
        &["dnsmasq", "busybox", "dhclient"],
    ) {
        return Ok(());
    }
    let (ns, _dnsmasq) = lan("clients")?;
    let (small, big) = (Ns::new("small")?, Ns::new("big")?);
    for (client, port) in [(&small, "p0"), (&big, "p1")] {
        ns.link(port, client, "eth0")?;
        ns.ip(&format!("link set {port} master br0"))?;
    }
    let udhcpc = Udhcpc::on(&small, "eth0")?.hostname("small");
    let lease = udhcpc.lease()?;
    assert_eq!(
        (lease.get("router"), lease.get("domain")),
        ("10.94.0.1", "lan.test")
    );
    small.sh("ping -c1 -W2 10.94.0.1")?;

    let dhclient = Dhclient::on(&big, "eth0", "send host-name \"big\";")?;
    let _running = dhclient.start()?;
    let lease = dhclient.bound()?;
    assert_eq!(lease.get("routers"), "10.94.0.1");
    big.sh("ping -c1 -W2 10.94.0.1")?;
    dhclient.release()?;
    wait_for("the address to go", Duration::from_secs(5), || {
        let shown = big.ip("-4 -o addr show dev eth0")?;
        if shown.is_empty() {
            Ok(())
        } else {
            Err(anyhow::anyhow!(shown))
        }
    })
}

#[test]
fn a_namespace_keeps_to_itself() -> anyhow::Result<()> {
    if !tool::ready("kit::a_namespace_keeps_to_itself", &[]) {
        return Ok(());
    }
    let ns = Ns::new("alone")?;
    ns.resolv_conf("nameserver 192.0.2.53\n")?;
    assert_eq!(ns.sh("cat /etc/resolv.conf")?, "nameserver 192.0.2.53\n");
    assert_ne!(
        std::fs::read_to_string("/etc/resolv.conf")?,
        "nameserver 192.0.2.53\n"
    );
    assert_eq!(ns.sh("ls /sys/class/net")?, "lo\n");

    // What forks away from its guard dies with the namespace.
    ns.sh("setsid sleep 600 >/dev/null 2>&1 & echo $! >pid; cat pid; rm pid")
        .map(|pid| pid.trim().to_owned())
        .and_then(|pid| {
            let alive = || std::path::Path::new("/proc").join(&pid).exists();
            assert!(alive());
            let handle = ns.handle();
            drop(ns);
            assert!(!handle.exists());
            wait_for("the sleeper's end", Duration::from_secs(5), || {
                if alive() { Err("alive") } else { Ok(()) }
            })
        })
}
