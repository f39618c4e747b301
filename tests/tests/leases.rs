//! Leases as the clients of real machines get, keep and lose them.

use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::Value;
use tests::{Dhclient, Machine, Netd, World, tool, wait_for};

const TOOLS: [&str; 5] = ["nft", "busybox", "dig", "dhclient", "dnsmasq"];

const LAB: &str = r#"
name = "lab"
[domain]
name = "lab.test"
[dns]
host = [{ ip = "10.50.0.7", names = ["printer"] }]
[[subnet]]
address = "10.50.0.1/24"
[subnet.dhcp]
ranges = ["10.50.0.100-10.50.0.102"]
lease_time = "10m"
[[subnet.dhcp.host]]
mac = "52:54:00:aa:00:01"
ip = "10.50.0.9"
name = "boss"
"#;

fn leases(netd: &Netd) -> anyhow::Result<Vec<Value>> {
    Ok(netd
        .json(&["lease", "list", "lab"])?
        .as_array()
        .cloned()
        .unwrap_or_default())
}

fn lab(world: &World) -> anyhow::Result<Netd<'_>> {
    let netd = Netd::start(&world.host)?;
    netd.apply(LAB)?;
    Ok(netd)
}

#[test]
fn udhcpc_gets_keeps_and_gives_back() -> anyhow::Result<()> {
    if !tool::ready("leases::udhcpc_gets_keeps_and_gives_back", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = lab(&world)?;
    let alice = Machine::plug(&netd, "lab", "alice", &[])?;
    let client = alice.client()?;
    let running = client.start()?;
    let lease = client.bound()?;
    assert_eq!(
        (lease.get("domain"), lease.get("lease")),
        ("lab.test", "600")
    );
    alice.finds("10.50.0.1", &["alice.lab.test"], &lease.ip.to_string())?;
    alice.finds(
        "10.50.0.1",
        &["-x", &lease.ip.to_string()],
        "alice.lab.test.",
    )?;
    alice.finds("10.50.0.1", &["printer.lab.test"], "10.50.0.7")?;
    let held = leases(&netd)?;
    assert!(
        held.iter()
            .any(|l| l["address"] == lease.ip.to_string() && l["mac"] == alice.mac),
        "{held:?}"
    );

    running.signal(Signal::USR1)?;
    running.wait_log("sending renew", Duration::from_secs(5))?;
    wait_for("the renewal", Duration::from_secs(5), || {
        if running.log().matches("obtained").count() == 2 {
            Ok(())
        } else {
            Err(running.log())
        }
    })?;
    assert_eq!(client.bound()?.ip, lease.ip);
    // What was said is counted, and told in a table too.
    let stats = netd.json(&["lease", "stats"])?;
    let networks = stats["networks"].as_array().into_iter().flatten();
    let mut of_lab = networks.filter(|n| n["network"] == "lab");
    let of_lab = of_lab.next().context("no network")?;
    let v4 = &of_lab["v4"];
    assert_eq!(v4["received"]["request"], 2, "{stats}");
    assert_eq!(v4["sent"]["ack"], 2, "{stats}");
    assert_eq!(
        (&of_lab["pool"], &v4["held"]),
        (&3.into(), &1.into()),
        "{stats}"
    );
    let nowhere = netd.try_vnet(&["lease", "list", "nowhere"])?.refused()?;
    assert!(
        nowhere.contains("network `nowhere` does not exist"),
        "{nowhere}"
    );
    let table = netd.vnet(&["lease", "stats"])?;
    assert!(
        table.starts_with("NETWORK") && table.contains("IPv6"),
        "{table}"
    );
    Ok(())
}

#[test]
fn a_released_lease_is_gone() -> anyhow::Result<()> {
    if !tool::ready("leases::a_released_lease_is_gone", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = lab(&world)?;
    // A machine that netd knows nothing of: a veth on the bridge, not a port.
    let bridge = bridge(&netd)?;
    let stranger = tests::Ns::new("stranger")?;
    world.host.link("stray", &stranger, "eth0")?;
    world.host.ip(&format!("link set stray master {bridge}"))?;
    let dhclient = Dhclient::on(&stranger, "eth0", "send host-name \"stranger\";")?;
    let _running = dhclient.start()?;
    let lease = dhclient.bound()?;
    assert_eq!(
        (lease.get("routers"), lease.get("domain_name")),
        ("10.50.0.1", "lab.test")
    );
    let listed = |netd: &Netd| {
        anyhow::Ok(
            leases(netd)?
                .iter()
                .any(|l| l["address"] == lease.ip.to_string()),
        )
    };
    assert!(listed(&netd)?);
    dhclient.release()?;
    wait_for("the lease to end", Duration::from_secs(5), || {
        if listed(&netd)? {
            Err(anyhow::anyhow!("still there"))
        } else {
            Ok(())
        }
    })
}

fn bridge(netd: &Netd) -> anyhow::Result<String> {
    Ok(netd.json(&["network", "show", "lab"])?["bridge"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

#[test]
fn a_reservation_is_kept_and_named() -> anyhow::Result<()> {
    if !tool::ready("leases::a_reservation_is_kept_and_named", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = lab(&world)?;
    let boss = Machine::plug(&netd, "lab", "desk", &["--mac", "52:54:00:aa:00:01"])?;
    boss.ns.ip("link set eth0 address 52:54:00:aa:00:01")?;
    assert_eq!(boss.lease()?.ip.to_string(), "10.50.0.9");
    boss.finds("10.50.0.1", &["boss.lab.test"], "10.50.0.9")?;
    Ok(())
}

#[test]
fn a_lease_outlives_the_daemon() -> anyhow::Result<()> {
    if !tool::ready("leases::a_lease_outlives_the_daemon", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let mut netd = lab(&world)?;
    let bridge = bridge(&netd)?;
    let mut machines = Vec::new();
    for name in ["one", "two"] {
        let ns = tests::Ns::new(name)?;
        world.host.link(name, &ns, "eth0")?;
        world.host.ip(&format!("link set {name} master {bridge}"))?;
        machines.push(ns);
    }
    let first = tests::Udhcpc::on(&machines[0], "eth0")?.lease()?.ip;
    // The moment the ACK is out, the lease is on disk.
    netd.kill9()?;
    netd.start_again()?;
    let second = tests::Udhcpc::on(&machines[1], "eth0")?.lease()?.ip;
    assert_ne!(first, second, "an acknowledged lease was forgotten");
    assert_eq!(
        tests::Udhcpc::on(&machines[0], "eth0")?.lease()?.ip,
        first,
        "the same machine, the same address"
    );
    Ok(())
}

#[test]
fn a_pool_ends_and_a_released_address_comes_back() -> anyhow::Result<()> {
    if !tool::ready(
        "leases::a_pool_ends_and_a_released_address_comes_back",
        &TOOLS,
    ) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = lab(&world)?;
    for name in ["a", "b", "c"] {
        netd.vnet(&["port", "attach", "lab", name])?;
    }
    let refused = netd.try_vnet(&["port", "attach", "lab", "d"])?.refused()?;
    assert!(refused.contains("no address is free"), "{refused}");
    netd.vnet(&["port", "detach", "lab", "b"])?;
    netd.vnet(&["port", "attach", "lab", "d"])?;
    Ok(())
}

#[test]
fn a_lease_becomes_a_reservation() -> anyhow::Result<()> {
    if !tool::ready("leases::a_lease_becomes_a_reservation", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = lab(&world)?;
    let stranger = tests::Ns::new("stranger")?;
    world.host.link("stray", &stranger, "eth0")?;
    world
        .host
        .ip(&format!("link set stray master {}", bridge(&netd)?))?;
    // A client that is known by an identifier, not by its MAC: the reservation is for it all the same.
    let config = "send host-name \"stranger\";\nsend dhcp-client-identifier 00:11:22:33:44;\n";
    let dhclient = Dhclient::on(&stranger, "eth0", config)?;
    let running = dhclient.start()?;
    let first = dhclient.bound()?.ip.to_string();
    let shown = netd.json(&["lease", "show", "lab", "stranger"])?;
    assert_eq!(
        (&shown["address"], &shown["reserved"]),
        (&first.as_str().into(), &false.into()),
        "{shown}"
    );
    let said = netd.vnet(&["lease", "reserve", "lab", "stranger"])?;
    assert!(said.contains("is kept"), "{said}");
    let said = netd.vnet(&["lease", "reserve", "lab", &first])?;
    assert!(said.contains("already"), "{said}");
    assert_eq!(
        netd.json(&["lease", "show", "lab", &first])?["reserved"],
        true
    );
    let document = netd.vnet(&["network", "show", "lab", "-o", "toml"])?;
    assert!(
        document.contains(&format!("ip = \"{first}\"")),
        "{document}"
    );

    drop(running);
    dhclient.release()?;
    let _running = dhclient.start()?;
    assert_eq!(dhclient.bound()?.ip.to_string(), first);
    let nobody = netd
        .try_vnet(&["lease", "show", "lab", "10.50.0.77"])?
        .refused()?;
    assert!(nobody.contains("nobody has a lease"), "{nobody}");
    let nobody = netd
        .try_vnet(&["lease", "show", "lab", "nobody"])?
        .refused()?;
    assert!(nobody.contains("no address, name or MAC"), "{nobody}");
    Ok(())
}

#[test]
fn libvirts_name_modules_find_the_guests() -> anyhow::Result<()> {
    if !tool::ready("leases::libvirts_name_modules_find_the_guests", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = lab(&world)?;
    let alice = Machine::plug(&netd, "lab", "alice", &[])?;
    let ip = alice.lease()?.ip.to_string();
    let folder = netd.run_dir().join("leases");
    let bridge = bridge(&netd)?;
    let read = |kind: &str| -> anyhow::Result<Value> {
        let text = std::fs::read_to_string(folder.join(format!("{bridge}.{kind}")))?;
        Ok(serde_json::from_str(&text)?)
    };
    wait_for("the lease's file", Duration::from_secs(5), || {
        let status = read("status")?;
        anyhow::ensure!(status[0]["ip-address"] == ip.as_str(), "{status}");
        Ok(())
    })?;
    assert_eq!(read("status")?[0]["mac-address"], alice.mac);
    assert_eq!(read("macs")?[0]["domain"], "alice");
    assert_eq!(read("macs")?[0]["macs"][0], alice.mac);

    // The modules themselves, where they are installed, with these files where they look.
    if std::path::Path::new("/usr/lib/x86_64-linux-gnu/libnss_libvirt.so.2").exists() {
        let looker = tests::Ns::new("looker")?;
        let home = looker.scratch().join("lib");
        std::fs::create_dir_all(home.join("libvirt/dnsmasq"))?;
        for kind in ["status", "macs"] {
            let name = format!("{bridge}.{kind}");
            std::fs::copy(folder.join(&name), home.join("libvirt/dnsmasq").join(&name))?;
        }
        let switch = looker
            .scratch()
            .write("nsswitch", "hosts: libvirt libvirt_guest\n")?;
        looker.bind(home, "/var/lib");
        looker.bind(switch, "/etc/nsswitch.conf");
        let found = looker.sh("getent hosts alice")?;
        assert!(found.starts_with(&ip), "{found}");
    }

    alice.ns.ip("link set eth0 down")?;
    netd.vnet(&["port", "detach", "lab", "alice"])?;
    wait_for("the lease to vanish", Duration::from_secs(5), || {
        let (status, macs) = (read("status")?, read("macs")?);
        anyhow::ensure!(
            status == serde_json::json!([]) && macs == serde_json::json!([]),
            "{status} {macs}"
        );
        Ok(())
    })?;
    netd.vnet(&["network", "delete", "lab"])?;
    wait_for("the files to vanish", Duration::from_secs(5), || {
        let left = std::fs::read_dir(&folder)?.flatten().map(|e| e.file_name());
        let left: Vec<_> = left
            .filter(|n| n.to_string_lossy().starts_with(&bridge))
            .collect();
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
