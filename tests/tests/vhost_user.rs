//! The vhost-user backend with frontends that nobody here wrote: QEMU with a Linux guest, and DPDK's virtio-user.

use std::path::PathBuf;
use std::time::Duration;

use tests::daemon::binary;
use tests::{Guest, Ns, Proc, tool};

const START: Duration = Duration::from_secs(10);
const GUEST: &[&str] = &["dnsmasq", "qemu-system-x86_64", "busybox", "iperf3"];

/// A bridge with an address, dnsmasq and an iperf3 server: where a backend's tap is plugged in.
struct Lan {
    ns: Ns,
    _dnsmasq: Proc,
    _iperf: Proc,
}

impl Lan {
    fn new(label: &str) -> anyhow::Result<Self> {
        let ns = Ns::new(label)?;
        ns.ip("link add br0 type bridge")?;
        ns.ip("addr add 10.95.0.1/24 dev br0")?;
        ns.ip("link set br0 up")?;
        let leases = format!("--dhcp-leasefile={}", ns.scratch().join("leases").display());
        let dnsmasq = ns.spawn(&[
            "dnsmasq",
            "-k",
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
    fn tap(&self, name: &str) -> anyhow::Result<()> {
        self.ns
            .ip(&format!("tuntap add {name} mode tap vnet_hdr"))?;
        self.ns
            .ip(&format!("link set {name} master br0 up"))
            .map(|_| ())
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.ns.scratch().join(name)
    }

    /// Starts the backend, ready when it says so.
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

/// Megabits a second of one TCP transfer, as iperf3 in the guest saw it.
fn transfer(guest: &Guest, reverse: bool) -> anyhow::Result<f64> {
    let reverse = if reverse { "-R" } else { "" };
    let report = guest.run(&format!("iperf3 -J -c 10.95.0.1 -t 2 {reverse}"))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    bits.map(|bits| bits / 1e6)
        .ok_or_else(|| anyhow::anyhow!("no rate in {report}"))
}

#[test]
fn a_linux_guest_gets_its_lease_and_moves_data_both_ways() -> anyhow::Result<()> {
    if !tool::ready("vhost_user::a_linux_guest", GUEST) {
        return Ok(());
    }
    let lan = Lan::new("vu-one")?;
    lan.tap("tap0")?;
    let socket = lan.socket("s");
    let backend = lan.backend(&["--socket", &socket.display().to_string(), "--tap", "tap0"])?;
    let guest = Guest::on_vhost_user(&socket).name("one").boot()?;
    let address = guest.lease()?;
    guest.run("ping -c3 -i0.2 -W2 10.95.0.1")?;
    lan.ns
        .run(&["ping", "-c3", "-i0.2", "-W2", &address.to_string()])?
        .ok()?;
    let (out, back) = (transfer(&guest, false)?, transfer(&guest, true)?);
    eprintln!("guest to host {out:.0} Mbit/s, host to guest {back:.0} Mbit/s");
    // Without segmentation offload both ways a translated guest stays far below this.
    anyhow::ensure!(out > 50.0 && back > 50.0, "{out} {back}\n{}", backend.log());
    Ok(())
}
