//! The daemon may die; the guests must not notice.

use std::time::Duration;

use tests::world::{GATEWAY, fetch};
use tests::{Machine, Netd, Stream, World, tool, wait_for};

const TOOLS: [&str; 5] = ["nft", "busybox", "ping", "dig", "dnsmasq"];

/// Enough for a restart on a busy machine: four seconds and more.
const PINGS: u32 = 400;

fn running(netd: &Netd) -> anyhow::Result<()> {
    wait_for("the networks to run", Duration::from_secs(10), || {
        let networks = netd.json(&["network", "list"])?;
        let all = networks
            .as_array()
            .is_some_and(|all| !all.is_empty() && all.iter().all(|n| n["running"] == true));
        if all {
            Ok(())
        } else {
            Err(anyhow::anyhow!("{networks}"))
        }
    })
}

#[test]
fn no_packet_is_lost_when_the_daemon_is_killed() -> anyhow::Result<()> {
    if !tool::ready(
        "restart::no_packet_is_lost_when_the_daemon_is_killed",
        &TOOLS,
    ) {
        return Ok(());
    }
    let world = World::new()?;
    let mut netd = Netd::start(&world.host)?;
    let (alice, bob) = (
        Machine::plug(&netd, "default", "alice", &[])?,
        Machine::plug(&netd, "default", "bob", &[])?,
    );
    alice.lease()?;
    let bobs = bob.lease()?.ip.to_string();
    netd.vnet(&["port", "attach", "default", "tap"])?;
    let rules = |ns: &tests::Ns| ns.sh("nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'");
    let (before, links) = (rules(&world.host)?, world.host.ip("-o link")?);

    let near = Stream::start(&alice.ns, &bobs, PINGS)?;
    let mut far = Stream::start(&alice.ns, GATEWAY, PINGS)?;
    netd.kill9()?;
    alice.reaches(&bobs)?;
    netd.start_again()?;
    running(&netd)?;
    assert!(
        far.runs(),
        "the restart took longer than the pings; nothing was shown"
    );
    near.unharmed()?;
    far.unharmed()?;

    assert_eq!(rules(&world.host)?, before, "the same rules");
    assert_eq!(
        world.host.ip("-o link")?,
        links,
        "the same links, with their numbers"
    );
    alice.finds("192.168.122.1", &["bob"], &bobs)?;
    assert_eq!(alice.lease()?.ip, alice.address()?, "leases");
    Ok(())
}

#[test]
fn an_upgrade_cuts_nobody() -> anyhow::Result<()> {
    if !tool::ready("restart::an_upgrade_cuts_nobody", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let mut netd = Netd::start(&world.host)?;
    let alice = Machine::plug(&netd, "default", "alice", &[])?;
    alice.lease()?;
    let stream = Stream::start(&alice.ns, GATEWAY, PINGS)?;
    netd.restart()?;
    running(&netd)?;
    stream.unharmed()
}

#[test]
fn what_changed_while_it_was_dead_is_put_right() -> anyhow::Result<()> {
    if !tool::ready(
        "restart::what_changed_while_it_was_dead_is_put_right",
        &TOOLS,
    ) {
        return Ok(());
    }
    let world = World::new()?;
    let mut netd = Netd::start(&world.host)?;
    let alice = Machine::plug(&netd, "default", "alice", &[])?;
    alice.lease()?;
    netd.kill9()?;
    world
        .host
        .sh("nft flush ruleset; ip addr flush dev virbr0; ip link set p-alice nomaster")?;
    assert!(fetch(&alice.ns, "http://203.0.113.80/").is_err());
    netd.start_again()?;
    wait_for("the way out", Duration::from_secs(5), || {
        fetch(&alice.ns, "http://203.0.113.80/")
    })?;
    // And when nothing at all is left, as after a reboot.
    netd.kill9()?;
    world
        .host
        .sh("nft flush ruleset; ip link del virbr0; ip link set p-alice down")?;
    netd.start_again()?;
    wait_for("the way out", Duration::from_secs(5), || {
        fetch(&alice.ns, "http://203.0.113.80/")
    })?;
    Ok(())
}
