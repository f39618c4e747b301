//! The example programs, run as a reader would run them.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use tests::daemon::binary;
use tests::{Netd, Ns, Udhcpc, process, tool, wait_for};

const PATIENCE: Duration = Duration::from_secs(90);

/// May this machine run a guest on KVM? If not, why.
fn kvm() -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the guest is x86_64 code".to_owned());
    }
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    opened
        .map(drop)
        .map_err(|error| format!("/dev/kvm: {error}"))
}

fn tiny_vmm(arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(binary("tiny_vmm")?);
    command.args(arguments);
    process::run(command, PATIENCE)?.ok()
}

#[test]
fn a_guest_of_the_tiny_vmm_leases_an_address_and_pings_its_gateway() -> anyhow::Result<()> {
    if let Err(why) = kvm() {
        tool::skip("examples::tiny_vmm", &why);
        return Ok(());
    }
    let said = tiny_vmm(&["--pings", "20"])?;
    assert!(said.starts_with("the guest leased 10.0.2."), "{said}");
    assert!(
        said.contains("(mask 255.255.255.0, router 10.0.2.1, server 10.0.2.1) for 3600 s"),
        "{said}"
    );
    assert!(said.contains("20 of 20 pings answered"), "{said}");
    Ok(())
}

#[test]
fn a_guest_of_the_tiny_vmm_is_a_guest_of_netd() -> anyhow::Result<()> {
    if let Err(why) = kvm() {
        tool::skip("examples::tiny_vmm_on_netd", &why);
        return Ok(());
    }
    if !tool::ready("examples::tiny_vmm_on_netd", &["nft", "ip"]) {
        return Ok(());
    }
    let host = Ns::new("tiny")?;
    let netd = Netd::start(&host)?;
    netd.apply(LAB)?;
    let mac = "52:54:00:00:00:01";
    let port = netd.json(&["port", "attach", "lab", "tiny", "--mac", mac])?;
    let tap = port["interface"].as_str().unwrap_or_default();
    let mut command = Command::new(binary("tiny_vmm")?);
    command.args(["--pings", "20", "--tap", tap]);
    let said = host.run_command(command, PATIENCE)?.ok()?;
    let address = port["addresses"][0].as_str().unwrap_or_default();
    assert!(
        said.starts_with(&format!("the guest leased {address} ")),
        "{said}"
    );
    assert!(said.contains("router 10.50.0.1"), "{said}");
    assert!(said.contains("20 of 20 pings answered"), "{said}");
    let leases = netd.vnet(&["lease", "list"])?;
    assert!(leases.contains(mac), "{leases}");
    Ok(())
}

#[test]
fn no_frame_of_a_flood_is_lost_between_guest_and_switch() -> anyhow::Result<()> {
    if let Err(why) = kvm() {
        tool::skip("examples::tiny_vmm_flood", &why);
        return Ok(());
    }
    let said = tiny_vmm(&["--pings", "1", "--flood", "100001"])?;
    assert!(
        said.contains("100001 of 100001 frames came through"),
        "{said}"
    );
    Ok(())
}

#[test]
fn two_guests_of_switch_and_dhcp_reach_each_other() -> anyhow::Result<()> {
    if !tool::ready("examples::switch_and_dhcp", &["busybox", "ip", "ping"]) {
        return Ok(());
    }
    let (host, a, b) = (Ns::new("switch")?, Ns::new("a")?, Ns::new("b")?);
    let program = binary("switch_and_dhcp")?;
    let serving = host.spawn(&[&program.display().to_string(), "tap-a", "tap-b"])?;
    serving.wait_log("serving 2 taps", PATIENCE)?;
    for (guest, tap) in [(&a, "tap-a"), (&b, "tap-b")] {
        host.ip(&format!("link set {tap} netns {}", guest.name()))?;
        guest.ip(&format!("link set {tap} up"))?;
    }
    let ours = Udhcpc::on(&a, "tap-a")?.lease()?;
    let theirs = Udhcpc::on(&b, "tap-b")?.lease()?;
    assert!(ours.ip.to_string().starts_with("10.77.0."), "{ours:?}");
    assert_ne!(ours.ip, theirs.ip);
    wait_for("a ping through the switch", PATIENCE, || {
        a.sh(&format!("ping -c 1 -W 1 {}", theirs.ip))
    })?;
    Ok(())
}

const LAB: &str = r#"
name = "lab"
[[subnet]]
address = "10.50.0.1/24"
[subnet.dhcp]
ranges = ["10.50.0.100-10.50.0.102"]
"#;

#[test]
fn a_program_without_privilege_takes_the_port_that_it_owns_and_no_other() -> anyhow::Result<()> {
    if !tool::ready("examples::take_tap_fd", &["nft", "ip", "setpriv"]) {
        return Ok(());
    }
    let host = Ns::new("host")?;
    let netd = Netd::start(&host)?;
    netd.apply(LAB)?;
    netd.vnet(&[
        "port", "attach", "lab", "box", "--kind", "tap-fd", "--owner", "nobody",
    ])?;
    netd.vnet(&["port", "attach", "lab", "other", "--kind", "tap-fd"])?;
    // The build's folder may be closed to nobody.
    let program = host.scratch().join("take_tap_fd");
    fs::copy(binary("take_tap_fd")?, &program)?;
    let take = |port: &str| {
        let run = netd.run_dir();
        let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all";
        let line = format!(
            "{nobody} {} {} {port} 10.50.0.1",
            program.display(),
            run.display()
        );
        host.run(&["sh", "-c", &line])
    };
    let said = take("lab/box")?.ok()?;
    let bridges = host.sh("cat /sys/class/net/*/bridge/../address")?;
    assert!(said.starts_with("box (52:54:00:"), "{said}");
    let (_, gateway) = said
        .trim()
        .split_once("10.50.0.1 is at ")
        .unwrap_or_default();
    assert!(
        bridges.lines().any(|bridge| bridge == gateway),
        "{said}{bridges}"
    );
    let refused = take("lab/other")?.refused()?;
    assert!(refused.contains("netd says:"), "{refused}");
    Ok(())
}
