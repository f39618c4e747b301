//! What tests and benches of vhost-user ports share: a guest by the line that netd prints, the process behind it, and
//! how long it was silent.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::process::PATIENCE;
use crate::{Guest, Netd, Ns};

/// Attaches a port to `default`: the line for QEMU, adapted to this one where it leaves that open: how much memory, and
/// no MSI-X (QEMU 7.2 translating cannot have it with vhost-user).
pub fn attach(netd: &Netd, name: &str, more: &[&str]) -> anyhow::Result<String> {
    let ask = ["port", "attach", "default", name, "--kind", "vhost-user"];
    let port = netd.json(&[&ask, more].concat())?;
    let line = port["qemu"].as_str().context("no line for QEMU")?;
    let device = format!("netdev={name},");
    Ok(line
        .replace("size=1G", "size=192M")
        .replace(&device, &format!("{device}romfile=,vectors=0,")))
}

/// Boots a guest by such a line.
pub fn boot(name: &str, line: &str) -> anyhow::Result<Guest> {
    let args: Vec<&str> = line.split_whitespace().collect();
    Guest::without_card().name(name).args(&args).boot()
}

/// The backend of the only network that has one.
pub fn backend(netd: &Netd) -> anyhow::Result<u32> {
    use std::os::unix::net::UnixStream;
    let folder = std::fs::read_dir(netd.run_dir().join("vhost"))?.next();
    let control: PathBuf = folder.context("no backend")??.path().join("control");
    let peer = rustix::net::sockopt::socket_peercred(UnixStream::connect(control)?)?;
    Ok(peer.pid.as_raw_nonzero().get().cast_unsigned())
}

/// Pings every 20 ms while `disturb` acts after the 20th: how many were not answered, and the longest silence.
pub fn pings(
    ns: &Ns,
    address: &str,
    disturb: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<(usize, Duration)> {
    const COUNT: usize = 200;
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
