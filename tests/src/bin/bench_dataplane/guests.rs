//! G1, G2, I1, K2: Linux guests. A translated guest is its own ceiling, so only ratios inside one run say something.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tests::{Guest, Netd, Ns, Proc, vhost};

use crate::load;
use crate::table::{line, median};

const START: Duration = Duration::from_secs(15);
/// Seconds of a transfer.
const TRANSFER: u32 = 3;

struct Lan {
    ns: Ns,
    _iperf: Proc,
}

impl Lan {
    fn new() -> anyhow::Result<Self> {
        let ns = Ns::new("bench")?;
        ns.ip("link add br0 type bridge")?;
        ns.ip("addr add 10.96.0.1/24 dev br0")?;
        ns.ip("link set br0 up")?;
        for tap in ["tap0", "tap1", "up0"] {
            ns.ip(&format!("tuntap add {tap} mode tap vnet_hdr"))?;
            ns.ip(&format!("link set {tap} master br0 up"))?;
        }
        let iperf = ns.spawn(&["iperf3", "-s", "-B", "10.96.0.1", "--forceflush"])?;
        iperf.wait_log("listening", START)?;
        Ok(Self { ns, _iperf: iperf })
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.ns.scratch().join(name)
    }

    fn backend(&self, args: &[&str]) -> anyhow::Result<Proc> {
        tests::vhost::started(&self.ns, args)
    }
}

/// A guest's transfer in Mbit/s.
fn transfer(guest: &Guest, to: &str, reverse: bool) -> anyhow::Result<f64> {
    let reverse = if reverse { "-R" } else { "" };
    let report = guest.run(&format!("iperf3 -J -c {to} -t {TRANSFER} {reverse}"))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    Ok(report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap_or(0.0)
        / 1e6)
}

/// G1: both ways, on a tap of QEMU's own and on the backend; the idle guest waits while the other transfers.
pub(crate) fn guest_to_host(rounds: usize) -> anyhow::Result<()> {
    let lan = Lan::new()?;
    let socket = lan.socket("s");
    let _backend = lan.backend(&["--socket", &socket.display().to_string(), "--tap", "up0"])?;
    let tap = Guest::on_tap(&lan.ns, "tap0").no_dhcp().boot()?;
    let ours = Guest::on_vhost_user(&socket).no_dhcp().boot()?;
    tap.run("ip addr add 10.96.0.2/24 dev eth0")?;
    ours.run("ip addr add 10.96.0.3/24 dev eth0")?;
    let mut samples = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        for (i, (guest, reverse)) in [(&ours, false), (&tap, false), (&ours, true), (&tap, true)]
            .into_iter()
            .enumerate()
        {
            samples[i].push(transfer(guest, "10.96.0.1", reverse)?);
        }
    }
    for (at, measure) in [(0, "guest TCP to host"), (2, "host TCP to guest")] {
        let (ours, tap) = (&samples[at], &samples[at + 1]);
        let ratio = median(ours) / median(tap);
        line(
            "G1",
            measure,
            "virtio-net-backend",
            median(ours),
            Some(ratio),
            &format!("Mbit/s {ours:.0?}"),
        );
        line(
            "G1",
            measure,
            "QEMU's tap",
            median(tap),
            None,
            &format!("Mbit/s {tap:.0?}"),
        );
    }
    Ok(())
}

/// Two guests that know each other, and what moves their frames.
struct Pair {
    who: &'static str,
    guests: [Guest; 2],
    /// Of its own, in the one case.
    backend: Option<Proc>,
    _lan: Lan,
    rates: Vec<f64>,
    costs: Vec<f64>,
}

/// How the guests of a [`Pair`] are connected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Switch,
    /// Taps, and otherwise as the guests of the switch: shared memory, and interrupts without MSI-X. Both are what
    /// QEMU's vhost-user needs here, and no part of a path for frames.
    Taps,
    /// Taps as QEMU has them when nothing else is said: memory of its own in huge pages, MSI-X.
    PlainTaps,
}

impl Pair {
    fn new(by: By) -> anyhow::Result<Self> {
        let lan = Lan::new()?;
        let backend = match by {
            By::Switch => Some(Self::switch(&lan)?),
            By::Taps | By::PlainTaps => None,
        };
        let boot = |i: u32| {
            let guest = match by {
                By::Switch => Guest::on_vhost_user(lan.socket(&format!("p{i}"))),
                By::Taps => Guest::on_tap(&lan.ns, &format!("tap{i}")).args(&[
                    "-object",
                    "memory-backend-memfd,id=memory,size=192M,share=on",
                    "-numa",
                    "node,memdev=memory",
                    "-global",
                    "virtio-net-pci.vectors=0",
                ]),
                By::PlainTaps => Guest::on_tap(&lan.ns, &format!("tap{i}")),
            };
            let mac = format!("52:54:00:00:01:{i:02x}");
            guest.mac(&mac).no_dhcp().boot()
        };
        let guests = [boot(0)?, boot(1)?];
        guests[0].run("ip addr add 10.96.0.2/24 dev eth0")?;
        guests[1].run("ip addr add 10.96.0.3/24 dev eth0; iperf3 -s -D >/dev/null 2>&1")?;
        tests::wait_for("the server", START, || {
            guests[1].run("netstat -ltn | grep 5201")
        })?;
        Ok(Self {
            who: match by {
                By::Switch => "virtio-net-backend",
                By::Taps => "two taps on a bridge",
                By::PlainTaps => "taps, QEMU's defaults",
            },
            guests,
            backend,
            _lan: lan,
            rates: Vec::new(),
            costs: Vec::new(),
        })
    }

    fn switch(lan: &Lan) -> anyhow::Result<Proc> {
        use std::io::{BufRead as _, Write as _};
        let control = lan.socket("control");
        let backend =
            lan.backend(&["--control", &control.display().to_string(), "--tap", "up0"])?;
        let mut stream = std::os::unix::net::UnixStream::connect(&control)?;
        let mut answers = std::io::BufReader::new(stream.try_clone()?);
        for i in 0..2 {
            let request = serde_json::json!({
                "op": "add-port", "name": format!("p{i}"), "socket": format!("p{i}"), "mac": format!("52:54:00:00:01:{i:02x}"),
            });
            writeln!(stream, "{request}")?;
            let mut answer = String::new();
            answers.read_line(&mut answer)?;
            anyhow::ensure!(answer.contains("true"), "{answer}");
        }
        Ok(backend)
    }

    /// One transfer: its rate, and what everybody's CPU was for a gigabyte.
    fn transfer(&mut self) -> anyhow::Result<()> {
        let processes = self.guests.iter().map(Guest::pid);
        let processes: Vec<u32> = processes
            .chain(self.backend.as_ref().map(Proc::id))
            .collect();
        let spent = || -> anyhow::Result<f64> {
            let all = processes.iter().map(|pid| load::cpu_seconds(*pid));
            Ok(all.collect::<anyhow::Result<Vec<_>>>()?.iter().sum())
        };
        let before = spent()?;
        let rate = transfer(&self.guests[0], "10.96.0.3", false)?;
        let gigabytes = rate * f64::from(TRANSFER) / 8e3;
        self.costs.push((spent()? - before) / gigabytes);
        self.rates.push(rate);
        Ok(())
    }
}

/// G2: two guests through the switch, relative to two taps on a bridge; the pairs take turns, the others idle.
pub(crate) fn guest_to_guest(rounds: usize) -> anyhow::Result<()> {
    let mut pairs = [
        Pair::new(By::Switch)?,
        Pair::new(By::Taps)?,
        Pair::new(By::PlainTaps)?,
    ];
    // A translated guest's figures scatter by a tenth: more of them.
    for _ in 0..2 * rounds + 1 {
        for pair in &mut pairs {
            pair.transfer()?;
        }
    }
    let ours = median(&pairs[0].rates);
    for pair in &pairs {
        let rate = median(&pair.rates);
        line(
            "G2",
            "guest TCP to guest",
            pair.who,
            rate,
            pair.backend.is_none().then_some(ours / rate),
            &format!(
                "Mbit/s {:.0?}; {:.2} s of CPU a gigabyte",
                pair.rates,
                median(&pair.costs)
            ),
        );
    }
    Ok(())
}

/// K2: how long a guest is silent when its backend is killed: under netd, and alone with QEMU's own `reconnect=1`.
pub(crate) fn silence(rounds: usize) -> anyhow::Result<()> {
    let host = Ns::new("bench")?;
    let netd = Netd::start(&host)?;
    // A VMM that would never come again, were its connection to end.
    let qemu = vhost::attach(&netd, "web", &[])?.replace(",reconnect=1", "");
    let ours = vhost::boot("web", &qemu)?;
    let address = ours.lease()?.to_string();
    let mut silences = [Vec::new(), Vec::new()];
    let mut alone = Alone::new()?;
    for _ in 0..rounds {
        let process = vhost::backend(&netd)?;
        let (_, silent) = vhost::pings(&host, &address, || kill(process))?;
        silences[0].push(silent.as_secs_f64() * 1e3);
        silences[1].push(alone.silent()?.as_secs_f64() * 1e3);
    }
    for (who, silences) in ["virtio-net-backend, netd", "alone, reconnect=1"]
        .into_iter()
        .zip(&silences)
    {
        line(
            "K2",
            "silence when the backend is killed",
            who,
            median(silences),
            None,
            &format!("ms {silences:.0?}"),
        );
    }
    Ok(())
}

fn kill(process: u32) -> anyhow::Result<()> {
    let process = rustix::process::Pid::from_raw(i32::try_from(process)?);
    let process = process.context("no process")?;
    Ok(rustix::process::kill_process(
        process,
        rustix::process::Signal::KILL,
    )?)
}

/// A backend without netd, started again by hand, and a QEMU that comes back by itself.
struct Alone {
    lan: Lan,
    backend: Proc,
    _guest: Guest,
}

impl Alone {
    fn new() -> anyhow::Result<Self> {
        let lan = Lan::new()?;
        let backend = Self::start(&lan)?;
        let guest = Guest::on_vhost_user(lan.socket("s")).connection("reconnect=1");
        let guest = guest.no_dhcp().boot()?;
        guest.run("ip addr add 10.96.0.3/24 dev eth0; ping -c2 10.96.0.1")?;
        Ok(Self {
            lan,
            backend,
            _guest: guest,
        })
    }

    fn start(lan: &Lan) -> anyhow::Result<Proc> {
        let socket = lan.socket("s").display().to_string();
        lan.backend(&["--socket", &socket, "--tap", "up0"])
    }

    fn silent(&mut self) -> anyhow::Result<Duration> {
        let (lan, backend) = (&self.lan, &mut self.backend);
        let (_, silent) = vhost::pings(&lan.ns, "10.96.0.3", || {
            backend.kill9()?;
            *backend = Self::start(lan)?;
            Ok(())
        })?;
        Ok(silent)
    }
}

/// I1: CPU of the backend with a connected guest that does nothing.
pub(crate) fn idle(_rounds: usize) -> anyhow::Result<()> {
    let lan = Lan::new()?;
    let socket = lan.socket("s");
    let backend = lan.backend(&["--socket", &socket.display().to_string(), "--tap", "up0"])?;
    let guest = Guest::on_vhost_user(&socket).no_dhcp().boot()?;
    guest.run("ip addr add 10.96.0.3/24 dev eth0; ping -c2 10.96.0.1")?;
    let cores = load::cores_over(backend.id(), Duration::from_secs(20))?;
    line(
        "I1",
        "CPU with an idle guest",
        "virtio-net-backend",
        100.0 * cores,
        None,
        "% of a core over 20 s",
    );
    Ok(())
}
