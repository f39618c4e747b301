//! Ports, with real guests in them.

use tests::{Guest, Machine, Netd, World, tool};

const TOOLS: [&str; 5] = ["nft", "busybox", "qemu-system-x86_64", "dig", "dnsmasq"];

fn boot<'n>(netd: &Netd<'n>, name: &str) -> anyhow::Result<tests::guest::Boot<'n>> {
    let port = netd.json(&["port", "show", "default", name])?;
    let text = |key: &str| port[key].as_str().unwrap_or_default().to_owned();
    Ok(Guest::on_tap(netd.ns(), &text("interface"))
        .mac(&text("mac"))
        .name(name))
}

/// One guest on a tap that netd made, one on a tap that netd handed over as an open file.
#[test]
fn guests_on_tap_and_tap_fd() -> anyhow::Result<()> {
    if !tool::ready("ports::guests_on_tap_and_tap_fd", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let one = netd.json(&["port", "attach", "default", "one"])?;
    let two = netd.json(&["port", "attach", "default", "two", "--kind", "tap-fd"])?;
    let first = boot(&netd, "one")?.boot()?;
    let mac = two["mac"].as_str().unwrap_or_default();
    let second = Guest::opened(&netd, "default", "two")
        .mac(mac)
        .name("two")
        .boot()?;

    assert_eq!(first.lease()?.to_string(), one["addresses"][0]);
    assert_eq!(second.lease()?.to_string(), two["addresses"][0]);
    first.run("ping -c2 -W2 two")?;
    second.run("ping -c2 -W2 one")?;
    for guest in [&first, &second] {
        assert_eq!(
            guest.run("wget -q -O- http://www.example.org/")?,
            "hello from www.example.org, you are 198.51.100.2\n"
        );
    }
    let leases = netd.json(&["lease", "list", "default"])?;
    assert_eq!(leases.as_array().map(Vec::len), Some(2), "{leases}");
    Ok(())
}

#[test]
fn a_guest_with_two_queues_and_one_without_root() -> anyhow::Result<()> {
    if !tool::ready(
        "ports::a_guest_with_two_queues_and_one_without_root",
        &TOOLS,
    ) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    netd.vnet(&[
        "port", "attach", "default", "wide", "--queues", "2", "--owner", "nobody",
    ])?;
    let wide = boot(&netd, "wide")?.queues(2).boot()?;
    wide.lease()?;
    wide.run("ping -c2 -W2 192.168.122.1")?;
    let queues = wide.run("ls /sys/class/net/eth0/queues | grep -c tx")?;
    assert_eq!(queues.trim(), "2");
    drop(wide);

    // The owner opens it without any capability.
    let tap = netd.json(&["port", "show", "default", "wide"])?["interface"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let open = format!(
        "echo quit | setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all \
         qemu-system-x86_64 -M none -nodefaults -display none -monitor stdio \
         -netdev tap,id=n,ifname={tap},script=no,downscript=no,queues=2"
    );
    let ran = world.host.run(&["sh", "-c", &open])?;
    assert!(
        ran.success() && !ran.stderr.contains("could not"),
        "{ran:?}"
    );
    Ok(())
}

#[test]
fn a_detached_port_leaves_nothing() -> anyhow::Result<()> {
    if !tool::ready("ports::a_detached_port_leaves_nothing", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let (alice, bob) = (
        Machine::plug(&netd, "default", "alice", &[])?,
        Machine::plug(&netd, "default", "bob", &[])?,
    );
    alice.lease()?;
    let bobs = bob.lease()?.ip.to_string();
    alice.finds("192.168.122.1", &["bob"], &bobs)?;
    netd.vnet(&["port", "detach", "default", "bob"])?;
    alice.finds("192.168.122.1", &["bob"], "")?;
    alice.finds("192.168.122.1", &["-x", &bobs], "")?;
    let leases = netd.json(&["lease", "list"])?;
    assert!(!leases.to_string().contains(&bobs), "{leases}");
    assert!(!alice.pings(&bobs)?, "off the bridge");
    assert!(
        world.host.ip("link show p-bob").is_ok(),
        "an interface of somebody else is let go, not deleted"
    );

    let tap = netd.json(&["port", "attach", "default", "tap"])?["interface"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    world.host.ip(&format!("link show {tap}"))?;
    netd.vnet(&["port", "detach", "default", "tap"])?;
    assert!(world.host.ip(&format!("link show {tap}")).is_err());
    assert!(!world.host.sh("nft list ruleset")?.contains(&tap));
    Ok(())
}

#[test]
fn isolated_ports_do_not_see_each_other() -> anyhow::Result<()> {
    if !tool::ready("ports::isolated_ports_do_not_see_each_other", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let alice = Machine::plug(&netd, "default", "alice", &["--isolated"])?;
    let bob = Machine::plug(&netd, "default", "bob", &["--isolated"])?;
    let carol = Machine::plug(&netd, "default", "carol", &[])?;
    let [_, bobs, carols] =
        [&alice, &bob, &carol].map(|machine| machine.lease().map(|lease| lease.ip.to_string()));
    let (bobs, carols) = (bobs?, carols?);
    assert!(!alice.pings(&bobs)?, "isolated from isolated");
    assert!(
        alice.pings(&carols)? && alice.pings("192.168.122.1")?,
        "the others and the gateway are reached"
    );
    Ok(())
}

#[test]
fn a_port_on_a_plain_bridge() -> anyhow::Result<()> {
    if !tool::ready("ports::a_port_on_a_plain_bridge", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    world
        .host
        .sh("ip link add br0 type bridge; ip addr add 10.7.0.1/24 dev br0; ip link set br0 up")?;
    let netd = Netd::start(&world.host)?;
    let port = netd.json(&["port", "attach", "--bridge", "br0", "vm"])?;
    let tap = port["interface"].as_str().unwrap_or_default();
    assert!(
        world.host.sh("bridge link")?.contains(&format!("{tap}: ")),
        "{port}"
    );
    netd.vnet(&["port", "detach", "bridge:br0", "vm"])?;
    assert!(world.host.ip(&format!("link show {tap}")).is_err());
    assert!(
        world.host.ip("-4 addr show br0")?.contains("10.7.0.1/24"),
        "the bridge is theirs"
    );
    Ok(())
}
