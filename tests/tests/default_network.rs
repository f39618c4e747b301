//! The network that is there after `netd` starts for the first time, seen from its guests.

use anyhow::Context as _;
use tests::world::{GATEWAY, HOST, WWW, fetch, finds};
use tests::{Machine, Netd, Ns, Udhcpc, World, tool};

const TOOLS: [&str; 6] = ["nft", "busybox", "dig", "curl", "ping", "dnsmasq"];

/// What `vnet network list` knows of a network.
fn network(netd: &Netd, name: &str) -> anyhow::Result<serde_json::Value> {
    let all = netd.json(&["network", "list"])?;
    let found = all
        .as_array()
        .and_then(|all| all.iter().find(|network| network["name"] == name));
    found
        .cloned()
        .with_context(|| format!("no `{name}` in {all}"))
}

#[test]
fn a_guest_has_everything() -> anyhow::Result<()> {
    if !tool::ready("default_network::a_guest_has_everything", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let default = network(&netd, "default")?;
    assert_eq!(
        (&default["running"], &default["autostart"]),
        (&true.into(), &true.into())
    );
    assert_eq!(default["bridge"], "virbr0");
    assert_eq!(default["addresses"][0], "192.168.122.1/24");

    let (alice, bob) = (
        Machine::plug(&netd, "default", "alice", &[])?,
        Machine::plug(&netd, "default", "bob", &[])?,
    );
    let lease = alice.lease()?;
    assert_eq!(lease.ip, alice.address()?, "the address promised at attach");
    assert_eq!(
        (lease.get("router"), lease.get("dns"), lease.get("mask")),
        ("192.168.122.1", "192.168.122.1", "24")
    );
    let bobs = bob.lease()?.ip.to_string();

    alice.reaches(&bobs)?;
    alice.reaches("192.168.122.1")?;
    alice.reaches(GATEWAY)?;
    let seen = alice.fetch(&format!("http://{WWW}/"))?;
    assert_eq!(
        seen,
        format!("hello from www.example.org, you are {HOST}\n"),
        "masqueraded"
    );

    alice.finds("192.168.122.1", &["www.example.org"], WWW)?;
    alice.finds("192.168.122.1", &["+tcp", "www.example.org"], WWW)?;
    alice.finds("192.168.122.1", &["bob"], &bobs)?;
    let name = alice.dig("192.168.122.1", &["-x", &bobs])?;
    assert_eq!(name.trim(), "bob.default.internal.", "PTR of bob");
    alice.finds("192.168.122.1", &["bob.default.internal"], &bobs)?;
    assert_eq!(lease.get("domain"), "default.internal");

    // Nothing but replies comes in: the internet has a route to the guests here, and still does not reach them.
    world
        .internet
        .ip(&format!("route add 192.168.122.0/24 via {HOST}"))?;
    assert!(
        !world
            .internet
            .run(&["ping", "-c1", "-W1", &bobs])?
            .success(),
        "outside to guest"
    );
    Ok(())
}

#[test]
fn a_guest_that_renames_itself_is_found_by_its_new_name_only() -> anyhow::Result<()> {
    if !tool::ready(
        "default_network::a_guest_that_renames_itself_is_found_by_its_new_name_only",
        &TOOLS,
    ) {
        return Ok(());
    }
    let world = World::new()?;
    let _netd = Netd::start(&world.host)?;
    // Not a port: a port's guest bears the port's name.
    let guest = Ns::new("stray")?;
    world.host.link("vstray", &guest, "eth0")?;
    world.host.ip("link set vstray master virbr0")?;
    let lease = Udhcpc::on(&guest, "eth0")?
        .hostname("caterpillar")
        .lease()?;
    let (address, at) = (lease.ip.to_string(), "192.168.122.1");
    finds(&guest, at, &["caterpillar"], &address)?;
    let again = Udhcpc::on(&guest, "eth0")?.hostname("butterfly").lease()?;
    assert_eq!(again.ip, lease.ip, "the same lease");
    finds(&guest, at, &["butterfly"], &address)?;
    finds(&guest, at, &["caterpillar"], "")?;
    finds(&guest, at, &["-x", &address], "butterfly.default.internal.")?;
    Ok(())
}

#[test]
fn a_taken_subnet_is_avoided() -> anyhow::Result<()> {
    if !tool::ready("default_network::a_taken_subnet_is_avoided", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    // Somebody else's bridge of that name, and a VPN whose route only overlaps.
    world.host.ip("link add virbr0 type bridge")?;
    world
        .host
        .ip(&format!("route add 192.168.122.128/25 via {GATEWAY}"))?;
    let before = world.host.ip("link show virbr0")?;

    let netd = Netd::start(&world.host)?;
    let default = network(&netd, "default")?;
    assert_eq!(default["bridge"], "virbr1");
    assert_eq!(default["addresses"][0], "192.168.123.1/24");
    assert_eq!(
        world.host.ip("link show virbr0")?,
        before,
        "the other's bridge is untouched"
    );
    let alice = Machine::plug(&netd, "default", "alice", &[])?;
    assert_eq!(alice.lease()?.get("router"), "192.168.123.1");
    Ok(())
}

/// Links, addresses, routes, rules and the sysctls that netd turns.
fn fingerprint(ns: &Ns) -> anyhow::Result<String> {
    ns.sh("ip -o link | sed 's/^[0-9]*: //'; ip -4 -o addr | sed 's/^[0-9]*: //'; ip -4 route; ip rule; nft list ruleset; \
        sysctl -a 2>/dev/null | grep -E 'forward|rp_filter|route_localnet' | grep -vE '\\.virbr'")
}

#[test]
fn the_machine_is_left_as_it_was() -> anyhow::Result<()> {
    if !tool::ready("default_network::the_machine_is_left_as_it_was", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    world.host.sh("nft add table inet theirs; nft add chain inet theirs c '{ type filter hook forward priority 10; }'; nft add rule inet theirs c tcp dport 9 drop")?;
    let before = fingerprint(&world.host)?;
    let mut netd = Netd::start_with(&world.host, &["--teardown-on-exit"])?;
    netd.vnet(&["port", "attach", "default", "web"])?;
    netd.vnet(&["publish", "default", "web", "8080:80/tcp"])?;
    assert_ne!(fingerprint(&world.host)?, before);
    assert!(netd.stop()?.success());
    assert_eq!(fingerprint(&world.host)?, before);
    Ok(())
}

#[test]
fn without_the_flag_networks_stay_and_can_be_stopped() -> anyhow::Result<()> {
    if !tool::ready(
        "default_network::without_the_flag_networks_stay_and_can_be_stopped",
        &TOOLS,
    ) {
        return Ok(());
    }
    let world = World::new()?;
    let mut netd = Netd::start(&world.host)?;
    let alice = Machine::plug(&netd, "default", "alice", &[])?;
    alice.lease()?;
    assert!(netd.stop()?.success());
    assert_eq!(
        alice.fetch(&format!("http://{WWW}/"))?,
        format!("hello from www.example.org, you are {HOST}\n")
    );
    netd.start_again()?;
    netd.vnet(&["network", "stop", "--all"])?;
    assert!(
        world.host.ip("link show virbr0").is_err(),
        "the bridge is gone"
    );
    assert!(fetch(&alice.ns, &format!("http://{WWW}/")).is_err());

    // Its ports come back with it.
    netd.vnet(&["network", "start", "default"])?;
    alice.reaches("192.168.122.1")?;
    assert_eq!(alice.lease()?.ip, alice.address()?);
    Ok(())
}
