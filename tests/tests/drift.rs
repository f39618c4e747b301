//! Somebody else changes what is ours: it is seen, and put right.

use std::time::{Duration, Instant};

use tests::world::{GATEWAY, fetch};
use tests::{Machine, Netd, World, tool, wait_for};

const TOOLS: [&str; 5] = ["nft", "busybox", "ping", "curl", "dnsmasq"];

/// The promise: most repairs take less, whatever else the machine does.
const PROMISE: Duration = Duration::from_secs(1);
/// What a single repair gets on a machine that is busy with other tests.
const REPAIR: Duration = Duration::from_secs(3);

#[test]
fn drift_is_repaired() -> anyhow::Result<()> {
    if !tool::ready("drift::drift_is_repaired", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let alice = Machine::plug(&netd, "default", "alice", &[])?;
    alice.lease()?;
    let tap = netd.json(&["port", "attach", "default", "tap"])?["interface"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let state = || {
        // Addresses without their times, links without counters, rules without packets.
        world.host.sh("ip -o addr show dev virbr0 | grep -v 'scope link' | sed 's/valid_lft.*//'; bridge link | sed 's/^[0-9]*: //; s/state [a-z]*//; s/<[^>]*>//'; \
            ip -o link show up | sed 's/^[0-9]*: //; s/[:@].*//' | sort; nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'")
    };
    let whole = state()?;
    let damages = [
        "nft flush ruleset",
        "nft delete table inet vnet",
        "ip addr del 192.168.122.1/24 dev virbr0",
        "ip link set virbr0 down",
        "ip link set p-alice nomaster",
        &format!("ip link set {tap} nomaster"),
        &format!("ip link set {tap} down"),
        "sysctl -qw net.ipv4.ip_forward=0",
    ];
    let mut times = Vec::new();
    for damage in damages {
        // Bridges settle (a port goes to forwarding, IPv6 addresses come): the comparison starts from rest.
        wait_for("the state before", Duration::from_secs(5), || {
            let now = state()?;
            if now == whole {
                Ok(())
            } else {
                Err(anyhow::anyhow!(now))
            }
        })?;
        world.host.sh(damage)?;
        let begun = Instant::now();
        wait_for(&format!("the repair after `{damage}`"), REPAIR, || {
            let now = state()?;
            if now == whole {
                Ok(())
            } else {
                Err(anyhow::anyhow!(now))
            }
        })?;
        times.push(begun.elapsed());
        eprintln!("{damage}: repaired within {:.0?}", begun.elapsed());
        wait_for(&format!("the way out after `{damage}`"), REPAIR, || {
            fetch(&alice.ns, "http://203.0.113.80/")
        })?;
    }
    times.sort_unstable();
    assert!(times[times.len() / 2] < PROMISE, "{times:?}");
    assert!(
        netd.json(&["status"])?["repairs"].as_u64() >= Some(6),
        "{}",
        netd.vnet(&["status"])?
    );
    Ok(())
}

#[test]
fn what_is_not_ours_is_left_alone() -> anyhow::Result<()> {
    if !tool::ready("drift::what_is_not_ours_is_left_alone", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    world.host.sh("nft add table ip theirs; nft add chain ip theirs c; ip link add br9 type bridge; ip addr add 10.9.0.1/24 dev br9")?;
    let theirs = || {
        world
            .host
            .sh("nft list table ip theirs; ip -o link show br9; ip -4 -o addr show br9")
    };
    let before = theirs()?;
    let netd = Netd::start(&world.host)?;
    let alice = Machine::plug(&netd, "default", "alice", &[])?;
    alice.lease()?;
    world.host.sh("nft delete table inet vnet")?;
    wait_for("the repair", REPAIR, || {
        world.host.sh("nft list table inet vnet")
    })?;
    alice.reaches(GATEWAY)?;
    assert_eq!(theirs()?, before);
    netd.vnet(&["network", "delete", "default"])?;
    assert_eq!(theirs()?, before);
    Ok(())
}

/// A container runtime that drops what it does not know stops our guests too: that is theirs to change, and ours to say.
#[test]
fn who_drops_our_packets_is_named() -> anyhow::Result<()> {
    if !tool::ready("drift::who_drops_our_packets_is_named", &["nft"]) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let warned = || anyhow::Ok(netd.vnet(&["status"])?.contains("table ip filter"));
    assert!(!warned()?);
    world.host.sh("nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'")?;
    assert!(warned()?, "{}", netd.vnet(&["status"])?);
    netd.vnet(&["network", "stop", "default"])?;
    assert!(!warned()?, "nothing of ours is forwarded now");
    Ok(())
}
