//! T1, T3, T4, S1, S2: rings driven by testpmd.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};
use tests::daemon::binary;
use tests::process::tail;
use tests::{Ns, Proc, wait_for};
use virtio_net_backend::port::Tap;

use crate::cores;
use crate::load::{self, Frontend, Rates, WARM_UP, WINDOW};
use crate::ovs::Ovs;
use crate::table::{line, median};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Ours,
    Testpmd,
}

impl Who {
    const ALL: [Self; 2] = [Self::Ours, Self::Testpmd];

    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "virtio-net-backend",
            Self::Testpmd => "testpmd vhost+tap",
        }
    }

    fn start(self, ns: &Ns, socket: &Path, tap: &str) -> anyhow::Result<Proc> {
        let socket_text = socket.display();
        let command = match self {
            Self::Ours => {
                let mut command =
                    load::on_core_1(&binary("virtio-net-backend")?.display().to_string());
                command.arg("--socket").arg(socket).args(["--tap", tap]);
                command
            }
            Self::Testpmd => {
                let mut command = std::process::Command::new("dpdk-testpmd");
                command.args([
                    "--no-huge",
                    "-m",
                    "256",
                    "--no-pci",
                    "-l",
                    "0,1",
                    "--main-lcore",
                    "0",
                ]);
                command.args([
                    "--log-level",
                    "warning",
                    "--file-prefix",
                    &load::unique("be"),
                ]);
                command.arg(format!("--vdev=net_vhost0,iface={socket_text},queues=1"));
                command.arg(format!("--vdev=net_tap0,iface={tap}"));
                command.args([
                    "--",
                    "--forward-mode=io",
                    "--stats-period",
                    "9",
                    "--total-num-mbufs=16384",
                    "--nb-cores=1",
                ]);
                command
            }
        };
        let backend = ns.spawn_command(command)?;
        load::up(ns, socket, Some(tap))?;
        // testpmd makes its socket before its port is there.
        sleep(Duration::from_millis(500));
        Ok(backend)
    }
}

/// One run of a backend with a frontend: rates, frames at the tap in millions a second, cores of the backend.
fn run(
    who: Who,
    reflecting: bool,
    mode: &str,
    size: u32,
    extra: &[&str],
) -> anyhow::Result<(Rates, f64, f64)> {
    let ns = Ns::new("bench")?;
    let socket = ns.scratch().join("s");
    let tap = "bt0";
    let backend = who.start(&ns, &socket, tap)?;
    if reflecting {
        load::reflect(&ns, tap)?;
    }
    let frontend = Frontend {
        sockets: &[&socket],
        mode,
        size,
        extra,
        server: false,
    }
    .start(&ns)?;
    sleep(WARM_UP);
    let (before, began) = (load::received_by(&ns, tap)?, Instant::now());
    let cores = load::cores_over(backend.id(), WINDOW)?;
    let at_tap = (load::received_by(&ns, tap)? - before) / began.elapsed().as_secs_f64() / 1e6;
    sleep(Duration::from_secs(1));
    Ok((load::rates(&frontend), at_tap, cores))
}

/// T1: guest to tap, 64 bytes.
pub(crate) fn guest_to_tap(rounds: usize) -> anyhow::Result<()> {
    let mut samples = [Vec::new(), Vec::new()];
    let mut cost = [Vec::new(), Vec::new()];
    let mut bare = Vec::new();
    for _ in 0..rounds {
        bare.push(self::bare(false)?);
        for (i, who) in Who::ALL.into_iter().enumerate() {
            let (_, at_tap, cores) = run(who, false, "txonly", 64, &[])?;
            samples[i].push(at_tap);
            cost[i].push(cores / at_tap.max(1e-6) * 1e3);
        }
    }
    for (i, who) in Who::ALL.into_iter().enumerate() {
        let ratio = median(&samples[i]) / median(&samples[1]);
        let note = format!(
            "Mpps, {:.0} ns CPU a frame {:.2?}",
            median(&cost[i]),
            samples[i]
        );
        line(
            "T1",
            "guest to tap, 64 B",
            who.name(),
            median(&samples[i]),
            Some(ratio),
            &note,
        );
    }
    bare_line("T1", "a loop of write()", "Mpps", &bare);
    Ok(())
}

/// What this machine's kernel alone takes for such a frame, in nanoseconds of CPU: a bare `write` to a tap, and where the
/// tap is `reflecting` the `read` of what comes back, 64 at a time. It is what T1 and T3 stand on.
fn bare(reflecting: bool) -> anyhow::Result<f64> {
    const TURNS: u32 = 8_000;
    const FLYING: u32 = 64;
    // A header that asks for nothing, and a frame for somebody else.
    let mut frame = [0; 12 + 60];
    frame[12..25].copy_from_slice(&[2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 0, 8]);
    let ns = Ns::new("bench")?;
    let tap = ns.enter(|| {
        let (tap, _) = Tap::open("bt0")?;
        tap.bring_up(None).map(|()| tap)
    })??;
    if reflecting {
        load::reflect(&ns, "bt0")?;
    }
    ns.enter(|| {
        cores::stay_on(1);
        let began = clock_gettime(ClockId::ThreadCPUTime);
        for _ in 0..TURNS {
            for _ in 0..FLYING {
                rustix::io::write(tap.as_fd(), &frame)?;
            }
            for _ in 0..if reflecting { FLYING } else { 0 } {
                rustix::io::read(tap.as_fd(), &mut frame).context("a frame did not come back")?;
            }
        }
        let took = Duration::try_from(clock_gettime(ClockId::ThreadCPUTime) - began)?;
        Ok(took.as_secs_f64() * 1e9 / f64::from(TURNS * FLYING))
    })?
}

/// A line for [`bare`].
fn bare_line(id: &str, who: &str, unit: &str, costs: &[f64]) {
    let cost = median(costs);
    let note = format!("{unit}, {cost:.0} ns CPU each: what this kernel takes");
    line(id, "the same", who, 1e3 / cost, None, &note);
}

/// T3: closed loop, 64 frames in flight.
pub(crate) fn closed_loop(rounds: usize) -> anyhow::Result<()> {
    let mut samples = [Vec::new(), Vec::new()];
    let mut cost = [Vec::new(), Vec::new()];
    let mut bare = Vec::new();
    for _ in 0..rounds {
        bare.push(self::bare(true)?);
        for (i, who) in Who::ALL.into_iter().enumerate() {
            let (rates, _, cores) = run(who, true, "io", 64, &["--tx-first", "--burst=64"])?;
            samples[i].push(rates.received);
            cost[i].push(cores / rates.received.max(1e-6) * 1e3);
        }
    }
    for (i, who) in Who::ALL.into_iter().enumerate() {
        let ratio = median(&samples[i]) / median(&samples[1]);
        let note = format!(
            "M round trips/s, {:.0} ns CPU each {:.3?}",
            median(&cost[i]),
            samples[i]
        );
        line(
            "T3",
            "closed loop through tap, 64 flying",
            who.name(),
            median(&samples[i]),
            Some(ratio),
            &note,
        );
    }
    bare_line("T3", "write() and read()", "M round trips/s", &bare);
    Ok(())
}

/// T4: the share of frames that come back under a flood.
pub(crate) fn flood(rounds: usize) -> anyhow::Result<()> {
    for size in [64, 1500] {
        let mut samples = [Vec::new(), Vec::new()];
        let mut back = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (i, who) in Who::ALL.into_iter().enumerate() {
                let (rates, ..) = run(who, true, "flowgen", size, &[])?;
                samples[i].push(100.0 * rates.received / rates.sent.max(1e-6));
                back[i].push(rates.received);
            }
        }
        for (i, who) in Who::ALL.into_iter().enumerate() {
            let note = format!(
                "% come back, {:.3} Mpps {:.0?}",
                median(&back[i]),
                samples[i]
            );
            line(
                "T4",
                &format!("share under a TX flood, {size} B"),
                who.name(),
                median(&samples[i]),
                None,
                &note,
            );
        }
    }
    Ok(())
}

/// S1, S2: two ports through the switch, both ways.
pub(crate) fn switch(rounds: usize, size: u32) -> anyhow::Result<()> {
    let id = if size == 64 { "S1" } else { "S2" };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut apart = [Vec::new(), Vec::new()];
    let mut cores = Vec::new();
    for _ in 0..rounds {
        let (rate, used) = switch_ours(size, &mut apart[0])?;
        ours.push(rate);
        cores.push(used);
        match switch_ovs(size, &mut apart[1]).or_else(|_| switch_ovs(size, &mut apart[1])) {
            Ok(rate) => theirs.push(rate),
            Err(error) => eprintln!("OVS: {error:#}"),
        }
    }
    let ratio = (!theirs.is_empty()).then(|| median(&ours) / median(&theirs));
    let measure = format!("switch, two ports, {size} B");
    let apart = apart.map(|apart| format!("cores {apart:.0?} ns apart"));
    let note = format!(
        "Mpps both ways, {:.2} cores {ours:.2?}, {}",
        median(&cores),
        apart[0]
    );
    line(
        id,
        &measure,
        "virtio-net-backend",
        median(&ours),
        ratio,
        &note,
    );
    line(
        id,
        &measure,
        "OVS-DPDK",
        median(&theirs),
        None,
        &format!("Mpps both ways {theirs:.2?}, {}", apart[1]),
    );
    Ok(())
}

const PEERS: [&str; 2] = [
    "--eth-peer=0,02:00:00:00:01:01",
    "--eth-peer=1,02:00:00:00:01:00",
];

/// The rate and the cores used; `apart` gets how far apart the cores were then.
fn switch_ours(size: u32, apart: &mut Vec<f64>) -> anyhow::Result<(f64, f64)> {
    use std::io::{BufRead as _, Write as _};
    let ns = Ns::new("bench")?;
    let control = ns.scratch().join("control");
    let mut command = load::on_core_1(&binary("virtio-net-backend")?.display().to_string());
    command.arg("--control").arg(&control);
    let backend = ns.spawn_command(command)?;
    load::up(&ns, &control, None)?;
    let mut stream = std::os::unix::net::UnixStream::connect(&control)?;
    let mut answers = std::io::BufReader::new(stream.try_clone()?);
    let sockets = ["p0", "p1"].map(|name| ns.scratch().join(name));
    for (i, socket) in sockets.iter().enumerate() {
        let request = serde_json::json!({
            "op": "add-port", "name": format!("p{i}"), "socket": socket, "mac": format!("02:00:00:00:01:{i:02x}"),
        });
        writeln!(stream, "{request}")?;
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        anyhow::ensure!(answer.contains("true"), "{answer}");
    }
    let paths = [sockets[0].as_path(), sockets[1].as_path()];
    let frontend = Frontend {
        sockets: &paths,
        mode: "flowgen",
        size,
        extra: &PEERS,
        server: false,
    }
    .start(&ns)?;
    sleep(WARM_UP);
    let used = load::cores_over(backend.id(), WINDOW)?;
    sleep(Duration::from_secs(1));
    let rate = load::rates(&frontend).received;
    apart.push(cores::distance());
    Ok((rate, used))
}

fn switch_ovs(size: u32, apart: &mut Vec<f64>) -> anyhow::Result<f64> {
    let ns = Ns::new("bench")?;
    let sockets = ["p0", "p1"].map(|name| ns.scratch().join(name));
    let paths = [sockets[0].as_path(), sockets[1].as_path()];
    let ovs = Ovs::start(&ns, &paths)?;
    let frontend = Frontend {
        sockets: &paths,
        mode: "flowgen",
        size,
        extra: &PEERS,
        server: true,
    }
    .start(&ns)?;
    // Its main thread shares core 0 with the load, so ports come up slowly.
    let first = wait_for("a frame through OVS", Duration::from_secs(25), || {
        let rate = load::rates(&frontend).received;
        if rate > 0.0 { Ok(()) } else { Err("none yet") }
    });
    first.with_context(|| format!("{}\n{}", ovs.log(), tail(&frontend.log(), 10)))?;
    sleep(WINDOW + Duration::from_secs(2));
    let rate = load::rates(&frontend).received;
    apart.push(cores::distance());
    Ok(rate)
}
