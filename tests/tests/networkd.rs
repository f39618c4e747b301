//! systemd-networkd's client, the one of most guests with systemd, in a namespace and without the rest of systemd:
//! DHCPv4 with an identifier of RFC 4361, router advertisements and DHCPv6, and back after its cable was out.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::Context as _;
use tests::{Machine, Netd, Proc, World, tool, wait_for};

const WAIT: Duration = Duration::from_secs(30);
const PROGRAM: &str = "/lib/systemd/systemd-networkd";

const LAB: &str = r#"
name = "six"
[domain]
name = "six.test"
[[subnet]]
address = "10.69.0.1/24"
[subnet.dhcp]
options = { ntp-server = ["10.69.0.1"] }
[[subnet]]
address = "fd00:69::1/64"
[subnet.dhcp]
mode = "both"
ranges = ["fd00:69::1000-fd00:69::1fff"]
"#;

const NETWORK: &str = "\
[Match]
Name=eth0
[Network]
DHCP=yes
IPv6AcceptRA=yes
IPv6DuplicateAddressDetection=0
[DHCPv4]
Hostname=erin
UseNTP=yes
[IPv6AcceptRA]
DHCPv6Client=yes
";

/// Starts it on a machine, with folders of its own in place of the system's.
fn networkd(machine: &Machine) -> anyhow::Result<Proc> {
    let files = machine.ns.scratch();
    for (own, place) in [("etc", "/etc/systemd/network"), ("run", "/run/systemd")] {
        let own = files.join(own);
        std::fs::create_dir_all(&own)?;
        // It gives up root, and must still find its way.
        std::fs::set_permissions(&own, PermissionsExt::from_mode(0o755))?;
        std::fs::create_dir_all(place)?;
        machine.ns.bind(own, place);
    }
    files.write("etc/eth0.network", NETWORK)?;
    // Where /sys cannot be written it knows that no udev will tell it of cards, as in a container.
    let line = format!("mount -o remount,bind,ro /sys && exec {PROGRAM}");
    machine.ns.spawn(&["sh", "-c", &line])
}

/// The card's addresses of a family that begin like this.
fn address(machine: &Machine, prefix: &str, client: &Proc) -> anyhow::Result<String> {
    wait_for(&format!("an address in {prefix}"), WAIT, || {
        let all = machine.ns.ip("-o addr show dev eth0 scope global")?;
        let words = all.split_whitespace();
        let mut found = words.filter_map(|w| w.split_once('/').map(|(a, _)| a.to_owned()));
        found
            .find(|a| a.starts_with(prefix))
            .with_context(|| format!("{all}{}", client.log()))
    })
}

#[test]
fn it_has_both_families_and_comes_back() -> anyhow::Result<()> {
    let name = "networkd::it_has_both_families_and_comes_back";
    if !tool::ready(name, &["nft", "ping", "dnsmasq", "dig", PROGRAM]) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    netd.apply(LAB)?;
    let erin = Machine::plug(&netd, "six", "erin", &[])?;
    let client = networkd(&erin)?;

    let four = address(&erin, "10.69.0.", &client)?;
    assert_eq!(four, erin.address()?.to_string());
    let six = address(&erin, "fd00:69::1", &client)?;
    // The address that it made itself, beside the leased one.
    address(&erin, "fd00:69::5054:ff:fe", &client)?;
    let routes = erin.ns.ip("route show default")?;
    assert!(
        routes.contains("via 10.69.0.1") && routes.contains("proto dhcp"),
        "{routes}"
    );
    erin.reaches("10.69.0.1")?;
    erin.finds("10.69.0.1", &["-x", &six], "erin.six.test.")?;
    // What it asked for and was told.
    let told = wait_for("the lease that it saved", WAIT, || {
        let all = erin.ns.sh("cat /run/systemd/netif/leases/*")?;
        anyhow::ensure!(all.contains("ADDRESS="), "{all}");
        Ok(all)
    })?;
    for line in [
        "NTP=10.69.0.1",
        "DNS=10.69.0.1",
        "ROUTER=10.69.0.1",
        "DOMAINNAME=six.test",
    ] {
        assert!(told.contains(line), "{line} in {told}");
    }
    let lease = netd.json(&["lease", "show", "six", "erin"])?;
    let identifier = lease["client_id"].as_str().unwrap_or("");
    assert!(identifier.starts_with("ff"), "{lease}");

    // The cable is out and in: it asks for what it had.
    erin.ns.ip("addr flush dev eth0 scope global")?;
    netd.ns().ip(&format!("link set {} down", erin.interface))?;
    netd.ns().ip(&format!("link set {} up", erin.interface))?;
    assert_eq!(address(&erin, "10.69.0.", &client)?, four);
    assert_eq!(address(&erin, &six, &client)?, six);
    erin.reaches("10.69.0.1")?;
    let leases = netd.vnet(&["lease", "list", "six"])?;
    assert_eq!(leases.matches(&four).count(), 1, "{leases}");
    Ok(())
}
