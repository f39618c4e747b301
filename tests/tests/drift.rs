//! Somebody else changes what is ours: it is seen, and put right.

use std::os::unix::fs::PermissionsExt;
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

/// Whoever deletes a bridge takes everything along that listened on it: it comes back, and so do they.
#[test]
fn a_deleted_bridge_comes_back_with_its_services() -> anyhow::Result<()> {
    let test = "drift::a_deleted_bridge_comes_back_with_its_services";
    if !tool::ready(test, &["nft", "busybox", "dig", "dnsmasq", "tftp"]) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let folder = world.host.scratch().join("boot");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("hello"), "hello\n")?;
    std::fs::set_permissions(folder.join("hello"), PermissionsExt::from_mode(0o644))?;
    netd.apply(&format!(
        "name = \"lab\"\n[bridge]\nname = \"brlab\"\n[[subnet]]\naddress = \"10.77.0.1/24\"\n\
         [subnet.dhcp.boot]\nfile = \"hello\"\ntftp = \"{}\"\n",
        folder.display()
    ))?;
    let alice = Machine::plug(&netd, "lab", "alice", &[])?;
    let served = || {
        alice.lease()?;
        let got = alice.dig("10.77.0.1", &["gateway"])?;
        anyhow::ensure!(got == "10.77.0.1", "{got}");
        // Over TCP too.
        let got = alice.dig("10.77.0.1", &["+tcp", "gateway"])?;
        anyhow::ensure!(got == "10.77.0.1", "{got}");
        let file = alice
            .ns
            .sh("cd /tmp && tftp -m binary 10.77.0.1 -c get hello /dev/stdout")?;
        anyhow::ensure!(file.contains("hello"), "{file}");
        Ok(())
    };
    served()?;
    for _ in 0..2 {
        world.host.ip("link del brlab")?;
        wait_for("all services", Duration::from_secs(20), served)?;
    }
    let warnings = netd.json(&["status"])?["warnings"].to_string();
    assert_eq!(warnings, "[]");
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
