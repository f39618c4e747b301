//! G1, G2, I1: Linux guests. A translated guest is its own ceiling, so only ratios inside one run say something.

use std::path::PathBuf;
use std::time::Duration;

use tests::daemon::binary;
use tests::{Guest, Ns, Proc};

use crate::load;
use crate::table::{line, median};

const START: Duration = Duration::from_secs(15);

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
        let program = binary("virtio-net-backend")?.display().to_string();
        let argv: Vec<&str> = std::iter::once(program.as_str())
            .chain(args.iter().copied())
            .collect();
        let backend = self.ns.spawn(&argv)?;
        backend.wait_log("ready", START)?;
        Ok(backend)
    }
}

/// A guest's transfer in Mbit/s.
fn transfer(guest: &Guest, to: &str, reverse: bool) -> anyhow::Result<f64> {
    let reverse = if reverse { "-R" } else { "" };
    let report = guest.run(&format!("iperf3 -J -c {to} -t 3 {reverse}"))?;
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

/// G2: two guests through the switch, relative to two taps on a bridge.
pub(crate) fn guest_to_guest(rounds: usize) -> anyhow::Result<()> {
    let (ours, taps) = (two_guests(rounds, true)?, two_guests(rounds, false)?);
    let ratio = median(&ours) / median(&taps);
    line(
        "G2",
        "guest TCP to guest",
        "virtio-net-backend",
        median(&ours),
        Some(ratio),
        &format!("Mbit/s {ours:.0?}"),
    );
    line(
        "G2",
        "guest TCP to guest",
        "two taps on a bridge",
        median(&taps),
        None,
        &format!("Mbit/s {taps:.0?}"),
    );
    Ok(())
}

fn two_guests(rounds: usize, ours: bool) -> anyhow::Result<Vec<f64>> {
    use std::io::{BufRead as _, Write as _};
    let lan = Lan::new()?;
    let control = lan.socket("control");
    let mut backend = None;
    if ours {
        backend =
            Some(lan.backend(&["--control", &control.display().to_string(), "--tap", "up0"])?);
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
    }
    let boot = |i: u32| {
        let guest = if ours {
            Guest::on_vhost_user(lan.socket(&format!("p{i}")))
        } else {
            Guest::on_tap(&lan.ns, &format!("tap{i}"))
        };
        guest
            .mac(&format!("52:54:00:00:01:{i:02x}"))
            .no_dhcp()
            .boot()
    };
    let (one, two) = (boot(0)?, boot(1)?);
    one.run("ip addr add 10.96.0.2/24 dev eth0")?;
    two.run("ip addr add 10.96.0.3/24 dev eth0; iperf3 -s -D >/dev/null 2>&1; sleep 1")?;
    let samples = (0..rounds)
        .map(|_| transfer(&one, "10.96.0.3", false))
        .collect();
    drop(backend);
    samples
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
