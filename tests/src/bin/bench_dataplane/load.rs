//! testpmd as a neutral load, and what can be read of a process while it runs.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tests::{Ns, Proc, wait_for};

use crate::table::median;

/// How long rates are taken.
pub(crate) const WINDOW: Duration = Duration::from_secs(3);
/// How long everything may take to get going.
pub(crate) const WARM_UP: Duration = Duration::from_millis(2500);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Every login is a group of its own to the scheduler, and `nice` does not reach across: raise the whole group.
pub(crate) fn raise_priority() {
    if std::fs::write("/proc/self/autogroup", "-15").is_err() {
        eprintln!("this session's group could not be raised: figures depend on what else runs");
    }
}

/// A frontend of DPDK: `ports` are sockets with MACs.
pub(crate) struct Frontend<'a> {
    pub(crate) sockets: &'a [&'a Path],
    pub(crate) mode: &'a str,
    pub(crate) size: u32,
    pub(crate) extra: &'a [&'a str],
    pub(crate) server: bool,
}

/// Rates of a frontend: received and sent, in millions of frames a second over all ports.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) received: f64,
    pub(crate) sent: f64,
}

impl Frontend<'_> {
    /// Starts it on core 0.
    pub(crate) fn start(&self, ns: &Ns) -> anyhow::Result<Proc> {
        let mut command = Command::new("dpdk-testpmd");
        command.args([
            "--no-huge",
            "-m",
            "400",
            "--no-pci",
            "-l",
            "0,1",
            "--main-lcore",
            "1",
            "--log-level",
            "warning",
        ]);
        command.arg("--file-prefix").arg(unique("fe"));
        for (i, socket) in self.sockets.iter().enumerate() {
            let server = if self.server { ",server=1" } else { "" };
            let device = format!(
                "virtio_user{i},path={},queues=1,queue_size=256{server},mac=02:00:00:00:01:{i:02x}",
                socket.display()
            );
            command.arg(format!("--vdev={device}"));
        }
        command.args([
            "--",
            "--port-topology=loop",
            "--stats-period",
            "1",
            "--total-num-mbufs=16384",
            "--nb-cores=1",
        ]);
        command
            .arg(format!("--forward-mode={}", self.mode))
            .arg(format!("--txpkts={}", self.size));
        command.args(self.extra);
        ns.spawn_command(command)
    }
}

/// What a frontend printed last: the median of its last seconds.
pub(crate) fn rates(frontend: &Proc) -> Rates {
    let log = frontend.log();
    let (mut received, mut sent) = (Vec::new(), Vec::new());
    for block in log.split("Port statistics").skip(2) {
        let sum = |key: &str| -> f64 {
            let numbers = block.lines().filter_map(|line| {
                line.split_once(key)?
                    .1
                    .split_whitespace()
                    .next()?
                    .parse::<f64>()
                    .ok()
            });
            numbers.sum()
        };
        received.push(sum("Rx-pps:") / 1e6);
        sent.push(sum("Tx-pps:") / 1e6);
    }
    Rates {
        received: median(last(&received)),
        sent: median(last(&sent)),
    }
}

fn last(samples: &[f64]) -> &[f64] {
    &samples[samples.len().saturating_sub(4)..]
}

/// A name that no other run uses.
pub(crate) fn unique(what: &str) -> String {
    format!(
        "{what}{}x{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Cores that a process uses over a window.
pub(crate) fn cores_over(pid: u32, window: Duration) -> anyhow::Result<f64> {
    let (before, began) = (cpu_seconds(pid)?, Instant::now());
    sleep(window);
    Ok((cpu_seconds(pid)? - before) / began.elapsed().as_secs_f64())
}

/// CPU that a process used so far.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: f64 = fields.get(11).context("utime")?.parse::<f64>()?
        + fields.get(12).context("stime")?.parse::<f64>()?;
    Ok(ticks / 100.0)
}

/// Frames that an interface received so far (a tap receives what a guest sends).
pub(crate) fn received_by(ns: &Ns, interface: &str) -> anyhow::Result<f64> {
    let text = ns.sh(&format!(
        "cat /sys/class/net/{interface}/statistics/rx_packets"
    ))?;
    Ok(text.trim().parse()?)
}

/// Waits for a socket and an interface of a backend.
pub(crate) fn up(ns: &Ns, socket: &Path, interface: Option<&str>) -> anyhow::Result<()> {
    wait_for("the backend", Duration::from_secs(15), || {
        if !socket.exists() {
            return Err("no socket".to_owned());
        }
        match interface {
            Some(name) => ns
                .ip(&format!("link set {name} up"))
                .map(|_| ())
                .map_err(|error| error.to_string()),
            None => Ok(()),
        }
    })
}

/// The tap returns each frame to where it came from.
pub(crate) fn reflect(ns: &Ns, tap: &str) -> anyhow::Result<()> {
    ns.sh(&format!(
        "tc qdisc add dev {tap} ingress && tc filter add dev {tap} parent ffff: protocol all u32 match u32 0 0 \
         action mirred egress redirect dev {tap}"
    ))?;
    Ok(())
}

/// A command on core 1.
pub(crate) fn on_core_1(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "1", program]);
    command
}
