//! `make bench`, the spine: netd beside libvirt 9 with dnsmasq, alternating in one run, medians and ratios.
//!
//! Both are measured from outside, as whole commands (`vnet`, `virsh`) that a person would type. Each daemon lives in
//! namespaces of its own. Read the ratios; the absolute figures are this machine's, on this day.

mod dhcp;
mod libvirt;
mod table;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::{Netd, Ns, World, daemon, wait_for};

use libvirt::Libvirt;
use table::{Row, median, ms, percentile};

/// Rounds of the quick measures and of the slow ones.
const ROUNDS: usize = 9;
const SLOW: usize = 3;

fn main() -> ExitCode {
    // A login shell's processes compete as one group; a bench in a busy shell would measure its neighbours.
    let _ = std::fs::write("/proc/self/autogroup", "-15");
    match measure() {
        Ok(rows) => {
            table::print(&rows);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> anyhow::Result<Vec<Row>> {
    anyhow::ensure!(tests::tool::root(), "the bench needs root: both daemons do");
    let mut rows = Vec::new();
    table::progress("start and stop the default network");
    rows.extend(start_and_stop()?);
    table::progress("create and start 100 networks, then 1,000");
    rows.extend(many_networks()?);
    table::progress("attach to 1,000 ports");
    rows.extend(many_ports()?);
    table::progress("one DHCP exchange");
    rows.push(exchanges()?);
    Ok(rows)
}

/// How long a whole command takes, from before it is started to after its end.
fn timed(ns: &Ns, mut command: Command) -> anyhow::Result<Duration> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    ns.enter(move || {
        let begun = Instant::now();
        let output = command.output()?;
        let took = begun.elapsed();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::ensure!(
            output.status.success(),
            "`{}`: {said}",
            tests::process::words(&command)
        );
        Ok(took)
    })?
}

fn vnet(netd: &Netd, args: &[&str]) -> anyhow::Result<Duration> {
    timed(netd.ns(), netd.vnet_command(args)?)
}

/// netd as it is run in earnest: a bench does not time its debugging.
fn quiet<'n>(ns: &'n Ns) -> anyhow::Result<Netd<'n>> {
    Netd::start_quiet(ns)
}

fn start_and_stop() -> anyhow::Result<Vec<Row>> {
    let world = World::new()?;
    let netd = quiet(&world.host)?;
    let peer = Libvirt::start()?;
    peer.define("default", &libvirt::network("default", "virbr0", 122))?;
    vnet(&netd, &["network", "stop", "default"])?;
    let (mut ours, mut theirs) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        theirs.0.push(peer.virsh(&["net-start", "default"])?);
        ours.0.push(vnet(&netd, &["network", "start", "default"])?);
        theirs.1.push(peer.virsh(&["net-destroy", "default"])?);
        ours.1.push(vnet(&netd, &["network", "stop", "default"])?);
    }
    Ok(vec![
        Row::against(
            "start the default network",
            median(&theirs.0),
            median(&ours.0),
            4.0,
        ),
        Row::against(
            "stop the default network",
            median(&theirs.1),
            median(&ours.1),
            4.0,
        ),
    ])
}

/// `count` NAT networks as one document.
fn networks(count: usize) -> String {
    let one = |at: usize| {
        let (high, low) = (at / 250 + 1, at % 250);
        format!(
            "[[network]]\nname = \"n{at}\"\n[network.bridge]\nname = \"b{at}\"\n[network.forward]\nmode = \"nat\"\n\
             [[network.subnet]]\naddress = \"10.{high}.{low}.1/24\"\n[network.subnet.dhcp]\nranges = [\"10.{high}.{low}.2-10.{high}.{low}.254\"]\n"
        )
    };
    (0..count).map(one).collect()
}

/// Time, proportional memory in MiB and processes after creating and starting networks in one `vnet apply`.
fn apply(count: usize) -> anyhow::Result<(Duration, f64, usize)> {
    let world = World::new()?;
    let netd = quiet(&world.host)?;
    let file = netd.scratch().write("networks.toml", &networks(count))?;
    let took = vnet(&netd, &["apply", "-f", &file.to_string_lossy()])?;
    let links = world.host.ip("-o link show type bridge")?.lines().count();
    anyhow::ensure!(
        links > count,
        "{links} bridges for {count} networks and the default"
    );
    let pids = world.host.residents();
    Ok((took, pss(&pids), pids.len()))
}

fn many_networks() -> anyhow::Result<Vec<Row>> {
    let (mut theirs, mut ours, mut thousand) = (Vec::new(), Vec::new(), Vec::new());
    let (mut their_memory, mut our_memory, mut memory) = (0.0, 0.0, 0.0);
    let (mut their_processes, mut our_processes) = (0, 0);
    for _ in 0..SLOW {
        let peer = Libvirt::start()?;
        theirs.push(peer.create_many(100)?);
        let pids = peer.ns().residents();
        (their_memory, their_processes) = (pss(&pids), pids.len());
        drop(peer);
        let (took, mebibytes, processes) = apply(100)?;
        ours.push(took);
        (our_memory, our_processes) = (mebibytes, processes);
        let (took, mebibytes, _) = apply(1000)?;
        thousand.push(took);
        memory = mebibytes;
    }
    let (hundred, thousand) = (median(&ours), median(&thousand));
    let times = thousand.as_secs_f64() / hundred.as_secs_f64();
    Ok(vec![
        Row::below(
            "create and start 100 NAT networks",
            Some(ms(median(&theirs))),
            ms(hundred),
            500.0,
            "ms",
        ),
        Row::below(
            "  processes",
            Some(their_processes as f64),
            our_processes as f64,
            1.5,
            "",
        ),
        Row::below("  PSS", Some(their_memory), our_memory, 30.0, "MiB"),
        Row::below(
            "1,000 networks",
            None,
            ms(thousand),
            10.0 * ms(hundred),
            "ms",
        ),
        Row::below("  times the time of 100", None, times, 10.0, "x"),
        Row::below("  PSS", None, memory, 80.0, "MiB"),
    ])
}

/// The proportional memory of processes, in MiB.
fn pss(pids: &[u32]) -> f64 {
    let one = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok()
    };
    pids.iter().filter_map(one).sum::<f64>() / 1024.0
}

fn rules(ns: &Ns) -> anyhow::Result<usize> {
    let listed: serde_json::Value =
        serde_json::from_str(&ns.run(&["nft", "-j", "list", "ruleset"])?.ok()?)?;
    let objects = listed["nftables"].as_array().context("no ruleset")?;
    Ok(objects
        .iter()
        .filter(|object| object.get("rule").is_some())
        .count())
}

fn many_ports() -> anyhow::Result<Vec<Row>> {
    let world = World::new()?;
    let netd = quiet(&world.host)?;
    let file = "name = \"big\"\n[[subnet]]\naddress = \"10.50.0.1/16\"\n[subnet.dhcp]\nranges = [\"10.50.0.2-10.50.200.254\"]\n";
    netd.apply(file)?;
    vnet(&netd, &["port", "attach", "big", "p0"])?;
    let with_one = rules(&world.host)?;
    for port in 1..1000 {
        vnet(&netd, &["port", "attach", "big", &format!("p{port}")])?;
    }
    let with_many = rules(&world.host)?;
    let mut attach = Vec::new();
    // A bridge has 1,024 ports at most, so each goes again.
    for round in 0..200 {
        let name = format!("q{round}");
        attach.push(vnet(&netd, &["port", "attach", "big", &name])?);
        vnet(&netd, &["port", "detach", "big", &name])?;
    }
    Ok(vec![
        Row::below(
            "attach with 1,000 ports: p99",
            None,
            ms(percentile(&attach, 99)),
            15.0,
            "ms",
        ),
        Row::below("  median", None, ms(median(&attach)), 15.0, "ms"),
        Row::below(
            "  rules (with one port: the left column)",
            Some(with_one as f64),
            with_many as f64,
            with_one as f64 + 0.5,
            "",
        ),
    ])
}

fn exchanges() -> anyhow::Result<Row> {
    let world = World::new()?;
    let netd = quiet(&world.host)?;
    let ours = tests::Machine::plug(&netd, "default", "client", &["--guard", "off"])?;
    let peer = Libvirt::start()?;
    peer.define("default", &libvirt::network("default", "virbr0", 122))?;
    peer.virsh(&["net-start", "default"])?;
    let theirs = Ns::new("client")?;
    peer.ns().link("port", &theirs, "eth0")?;
    peer.ns().ip("link set port master virbr0")?;
    for (bridge, port) in [(peer.ns(), "port"), (&world.host, ours.interface.as_str())] {
        wait_for("the port to forward", Duration::from_secs(60), || {
            let shown = bridge.sh(&format!("bridge link show dev {port}"))?;
            anyhow::ensure!(shown.contains("state forwarding"), shown);
            Ok(())
        })?;
    }
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    for round in 0..5_u8 {
        their_times.push(dhcp::exchange(&theirs, [0x52, 0x54, 0, 0xcc, 0, round])?);
        for more in 0..10_u8 {
            our_times.push(dhcp::exchange(
                &ours.ns,
                [0x52, 0x54, 0, 0xdd, more, round],
            )?);
        }
    }
    Ok(Row::below(
        "DISCOVER to ACK of a new client",
        Some(ms(median(&their_times))),
        ms(median(&our_times)),
        20.0,
        "ms",
    ))
}

/// What the peers of this bench are, for the head of the table.
fn versions(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.lines().next().unwrap_or("?").to_owned()
}

/// The head of the table.
fn head() -> String {
    let netd = daemon::binary("netd")
        .map(|path| versions(&path.to_string_lossy()))
        .unwrap_or_default();
    format!(
        "{netd}; libvirt {}; {}",
        versions("virsh"),
        versions("dnsmasq")
    )
}
