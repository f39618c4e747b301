//! What tests and benches of vhost-user ports share: a place for a backend without netd, a guest by the line that netd
//! prints, the process behind it, how long it was silent, and a word with QEMU or the backend.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::daemon::binary;
use crate::process::PATIENCE;
use crate::{Guest, Netd, Ns, Proc, wait_for};

const START: Duration = Duration::from_secs(10);

/// A bridge with an address, dnsmasq and an iperf3 server: where a backend's tap is plugged in.
#[derive(Debug)]
pub struct Lan {
    /// Where all of it runs.
    pub ns: Ns,
    _dnsmasq: Proc,
    _iperf: Proc,
}

impl Lan {
    /// The bridge is `br0`, its address 10.95.0.1.
    pub fn new(label: &str) -> anyhow::Result<Self> {
        let ns = Ns::new(label)?;
        ns.ip("link add br0 type bridge")?;
        ns.ip("addr add 10.95.0.1/24 dev br0")?;
        ns.ip("link set br0 up")?;
        let leases = format!("--dhcp-leasefile={}", ns.scratch().join("leases").display());
        let dnsmasq = ns.spawn(&[
            "dnsmasq",
            "-k",
            "--pid-file",
            "-C",
            "/dev/null",
            "-i",
            "br0",
            "--bind-interfaces",
            "--except-interface=lo",
            "-p",
            "0",
            "--dhcp-authoritative",
            "--no-ping",
            "--dhcp-range=10.95.0.50,10.95.0.90,1h",
            "--log-facility=-",
            &leases,
        ])?;
        dnsmasq.wait_log("DHCP, IP range", START)?;
        let iperf = ns.spawn(&["iperf3", "-s", "-B", "10.95.0.1", "--forceflush"])?;
        iperf.wait_log("listening", START)?;
        Ok(Self {
            ns,
            _dnsmasq: dnsmasq,
            _iperf: iperf,
        })
    }

    /// Adds a tap to the bridge.
    pub fn tap(&self, name: &str) -> anyhow::Result<()> {
        self.ns
            .ip(&format!("tuntap add {name} mode tap vnet_hdr"))?;
        self.ns
            .ip(&format!("link set {name} master br0 up"))
            .map(|_| ())
    }

    /// Where a socket of that name is.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.ns.scratch().join(name)
    }

    /// Starts the backend, ready when it says so.
    pub fn backend(&self, args: &[&str]) -> anyhow::Result<Proc> {
        started(&self.ns, args)
    }
}

/// A backend that is ready, in a namespace.
pub fn started(ns: &Ns, args: &[&str]) -> anyhow::Result<Proc> {
    let program = binary("virtio-net-backend")?.display().to_string();
    let backend = ns.spawn(&[&[program.as_str()], args].concat())?;
    backend.wait_log("ready", START)?;
    Ok(backend)
}

/// JSON lines to and from a backend's control socket, or QEMU's monitor.
#[derive(Debug)]
pub struct Lines(BufReader<UnixStream>);

impl Lines {
    /// Connects to a backend's control socket.
    pub fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = wait_for("a socket", START, || UnixStream::connect(path))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Connects to QEMU's monitor (`-qmp unix:PATH,server=on,wait=off`), ready for commands.
    pub fn monitor(path: &Path) -> anyhow::Result<Self> {
        let mut lines = Self::connect(path)?;
        lines.read()?;
        lines.execute(&json!({"execute": "qmp_capabilities"}))?;
        Ok(lines)
    }

    fn read(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, request: &Value) -> anyhow::Result<Value> {
        writeln!(self.0.get_mut(), "{request}")?;
        self.read()
    }

    /// A command of the backend; its answer when it was done.
    pub fn done(&mut self, request: &Value) -> anyhow::Result<Value> {
        let answer = self.ask(request)?;
        ensure!(answer["ok"] == true, "{request}: {answer}");
        Ok(answer)
    }

    /// A command of QEMU's monitor, whose events are passed over.
    pub fn execute(&mut self, command: &Value) -> anyhow::Result<Value> {
        let mut answer = self.ask(command)?;
        while answer.get("event").is_some() {
            answer = self.read()?;
        }
        ensure!(answer.get("error").is_none(), "{command}: {answer}");
        Ok(answer["return"].clone())
    }
}

/// Attaches a port to `default`: the line for QEMU, adapted to this one where it leaves that open: how much memory, and
/// no MSI-X (QEMU 7.2 translating cannot have it with vhost-user).
pub fn attach(netd: &Netd, name: &str, more: &[&str]) -> anyhow::Result<String> {
    attach_to(netd, "default", name, more)
}

/// The same on another network.
pub fn attach_to(netd: &Netd, network: &str, name: &str, more: &[&str]) -> anyhow::Result<String> {
    let ask = ["port", "attach", network, name, "--kind", "vhost-user"];
    let port = netd.json(&[&ask, more].concat())?;
    let line = port["qemu"].as_str().context("no line for QEMU")?;
    let device = format!("netdev={name},");
    let line = line.split(' ').map(|word| {
        let (word, _) = word.split_once(",vectors=").unwrap_or((word, ""));
        word.replace("size=1G", "size=192M")
            .replace(&device, &format!("{device}romfile=,vectors=0,"))
    });
    Ok(line.collect::<Vec<_>>().join(" "))
}

/// Boots a guest by such a line.
pub fn boot(name: &str, line: &str) -> anyhow::Result<Guest> {
    let args: Vec<&str> = line.split_whitespace().collect();
    Guest::without_card().name(name).args(&args).boot()
}

/// The backend of the only network that has one.
pub fn backend(netd: &Netd) -> anyhow::Result<u32> {
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
