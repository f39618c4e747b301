//! vhost-user ports as a user has them: netd starts the backend, QEMU gets the lines that `vnet port attach` prints.
//! The guest has its lease and name from netd, reaches guests of every kind, and notices no death that it need not.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::process::PATIENCE;
use tests::{Guest, Machine, Netd, Ns, tool, wait_for};

const TOOLS: &[&str] = &["nft", "ping", "dig", "qemu-system-x86_64", "busybox"];
const SOON: Duration = Duration::from_secs(15);

/// Boots a guest by the line that attaching its port printed, adapted to this QEMU where the line leaves it open: how
/// much memory, and no MSI-X (QEMU 7.2 translating cannot have it with vhost-user).
fn boot(netd: &Netd, name: &str) -> anyhow::Result<Guest> {
    let port = netd.json(&["port", "attach", "default", name, "--kind", "vhost-user"])?;
    let line = port["qemu"].as_str().context("no line for QEMU")?;
    let line = line.replace("size=1G", "size=192M");
    let device = format!("netdev={name},");
    let line = line.replace(&device, &format!("{device}romfile=,vectors=0,"));
    let args: Vec<&str> = line.split_whitespace().collect();
    Guest::without_card().name(name).args(&args).boot()
}

/// The backend of the only network that has one.
fn backend(netd: &Netd) -> anyhow::Result<u32> {
    use std::os::unix::net::UnixStream;
    let folder = std::fs::read_dir(netd.run_dir().join("vhost"))?.next();
    let control: PathBuf = folder.context("no backend")??.path().join("control");
    let peer = rustix::net::sockopt::socket_peercred(UnixStream::connect(control)?)?;
    Ok(peer.pid.as_raw_nonzero().get().cast_unsigned())
}

fn uplink(ns: &Ns) -> anyhow::Result<String> {
    let links = ns.ip("-o link")?;
    let name = links
        .split([' ', ':', '@'])
        .find(|word| word.starts_with("vu-"));
    Ok(name.context("no uplink")?.to_owned())
}

/// Pings every 20 ms while `disturb` acts: how many were not answered, and the longest silence.
fn pings(
    ns: &Ns,
    address: &str,
    disturb: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<(usize, Duration)> {
    const COUNT: usize = 300;
    let count = COUNT.to_string();
    let mut ping = ns.spawn(&[
        "ping", "-D", "-n", "-i", "0.02", "-c", &count, "-W", "1", address,
    ])?;
    ping.wait_log("icmp_seq=20 ", PATIENCE)?;
    disturb()?;
    ping.wait(PATIENCE)?;
    let log = ping.log();
    let answers = log.lines().filter(|line| line.contains("icmp_seq="));
    let times: Vec<f64> = answers
        .filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok())
        .collect();
    ensure!(times.len() > 50, "too few answers\n{log}");
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    Ok((
        COUNT - times.len(),
        Duration::from_secs_f64(gaps.fold(0.0, f64::max)),
    ))
}

#[test]
fn a_guest_by_the_printed_line_has_all_that_a_tap_guest_has() -> anyhow::Result<()> {
    if !tool::ready("vhost_port::a_guest_by_the_printed_line", TOOLS) {
        return Ok(());
    }
    let host = Ns::new("vport")?;
    let mut netd = Netd::start(&host)?;
    let neighbour = Machine::plug(&netd, "default", "near", &[])?;
    neighbour.lease()?;
    let (web, db) = (boot(&netd, "web")?, boot(&netd, "db")?);
    let (webs, dbs) = (web.lease()?.to_string(), db.lease()?.to_string());

    // Lease and name by netd, and everybody reaches everybody.
    neighbour.finds("192.168.122.1", &["web"], &webs)?;
    web.run(&format!("ping -c3 -i0.2 -W2 {}", neighbour.address()?))?;
    web.run(&format!("ping -c3 -i0.2 -W2 {dbs}"))?;
    wait_for("a ping from the host", SOON, || {
        host.run(&["ping", "-c1", "-W1", &webs])?.ok()
    })?;

    // netd dies and comes back: the process is adopted, nothing is lost.
    let before = backend(&netd)?;
    let (lost, _) = pings(&host, &webs, || {
        netd.kill9()?;
        netd.start_again()
    })?;
    assert_eq!(lost, 0, "pings lost with netd");
    assert_eq!(backend(&netd)?, before, "the same process serves on");

    // The tap is deleted: netd puts it back, and the running backend takes it.
    let uplink = uplink(&host)?;
    host.ip(&format!("link del {uplink}"))?;
    wait_for("the uplink's return", SOON, || {
        host.run(&["ping", "-c1", "-W1", &webs])?.ok()
    })
    .with_context(|| netd.log())?;
    assert_eq!(backend(&netd)?, before, "the same process has the new tap");

    // The backend dies: netd starts another, QEMU reconnects.
    let (_, silence) = pings(&host, &webs, || {
        host.run(&["kill", "-9", &before.to_string()])?
            .ok()
            .map(drop)
    })?;
    eprintln!("backend killed: silent for {silence:?}");
    assert_ne!(backend(&netd)?, before);
    ensure!(silence < Duration::from_secs(4), "{silence:?}");
    web.run(&format!("ping -c3 -i0.2 -W2 {dbs}"))?;
    Ok(())
}
