//! The vhost-user backend with frontends that nobody here wrote: QEMU with a Linux guest, and DPDK's virtio-user.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use tests::daemon::binary;
use tests::process::PATIENCE;
use tests::{Guest, Ns, Proc, tool, wait_for};

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
    // That it flows; how fast is the bench's.
    anyhow::ensure!(out > 1.0 && back > 1.0, "{out} {back}\n{}", backend.log());
    Ok(())
}

/// One exchange of JSON lines with a control socket or a QEMU monitor.
struct Lines(BufReader<UnixStream>);

impl Lines {
    fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = wait_for("a socket", START, || UnixStream::connect(path))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn read(&mut self) -> anyhow::Result<serde_json::Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, request: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        writeln!(self.0.get_mut(), "{request}")?;
        self.read()
    }

    /// A command of the backend; its answer when it was done.
    fn done(&mut self, request: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        let answer = self.ask(request)?;
        anyhow::ensure!(answer["ok"] == true, "{request}: {answer}");
        Ok(answer)
    }

    /// A command of QEMU's monitor, whose events are passed over.
    fn execute(&mut self, command: &serde_json::Value) -> anyhow::Result<serde_json::Value> {
        let mut answer = self.ask(command)?;
        while answer.get("event").is_some() {
            answer = self.read()?;
        }
        anyhow::ensure!(answer.get("error").is_none(), "{command}: {answer}");
        Ok(answer["return"].clone())
    }
}

#[test]
fn ports_come_and_go_and_their_guests_reach_each_other_and_a_tap_guest() -> anyhow::Result<()> {
    if !tool::ready("vhost_user::ports_come_and_go", GUEST) {
        return Ok(());
    }
    let lan = Lan::new("vu-sw")?;
    lan.tap("up0")?;
    lan.tap("tap1")?;
    let control = lan.socket("control");
    let backend = lan.backend(&["--control", &control.display().to_string(), "--tap", "up0"])?;
    let mut commands = Lines::connect(&control)?;
    for (name, mac) in [("a", "52:54:00:00:00:0a"), ("b", "52:54:00:00:00:0b")] {
        let socket = format!("{name}.sock");
        commands.done(
            &serde_json::json!({"op": "add-port", "name": name, "socket": socket, "mac": mac}),
        )?;
    }
    let a = Guest::on_vhost_user(lan.socket("a.sock"))
        .name("a")
        .mac("52:54:00:00:00:0a")
        .boot()?;
    let b = Guest::on_vhost_user(lan.socket("b.sock"))
        .name("b")
        .mac("52:54:00:00:00:0b")
        .boot()?;
    let c = Guest::on_tap(&lan.ns, "tap1")
        .name("c")
        .mac("52:54:00:00:00:0c")
        .boot()?;
    a.lease()?;
    let (at_b, at_c) = (b.lease()?, c.lease()?);
    a.run(&format!("ping -c2 -W2 {at_b} && ping -c2 -W2 {at_c}"))?;
    c.run(&format!("ping -c2 -W2 {at_b}"))?;

    b.run("iperf3 -s -D --forceflush >/dev/null 2>&1; sleep 1")?;
    let report = a.run(&format!("iperf3 -J -c {at_b} -t 2"))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let rate = report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap_or(0.0)
        / 1e6;
    eprintln!("guest to guest {rate:.0} Mbit/s");
    anyhow::ensure!(rate > 1.0, "{rate}");

    let shown = commands.done(&serde_json::json!({"op": "addresses"}))?;
    anyhow::ensure!(shown.to_string().contains("52:54:00:00:00:0c"), "{shown}");
    commands.done(&serde_json::json!({"op": "remove-port", "name": "b"}))?;
    let (code, said) = a.try_run(PATIENCE, &format!("ping -c2 -W1 {at_b}"))?;
    anyhow::ensure!(code != 0, "a port that is gone still answers: {said}");
    a.run(&format!("ping -c2 -W2 {at_c}"))?;
    let stats = commands.done(&serde_json::json!({"op": "stats"}))?;
    anyhow::ensure!(stats["ports"]["a"]["device"]["faults"] == 0, "{stats}");
    anyhow::ensure!(
        stats["ports"].get("b").is_none(),
        "{stats}\n{}",
        backend.log()
    );
    Ok(())
}

#[test]
fn a_guarded_and_limited_port_keeps_to_its_addresses_and_rate() -> anyhow::Result<()> {
    if !tool::ready("vhost_user::a_guarded_port", GUEST) {
        return Ok(());
    }
    let lan = Lan::new("vu-gd")?;
    lan.tap("up0")?;
    let control = lan.socket("control");
    let _backend = lan.backend(&["--control", &control.display().to_string(), "--tap", "up0"])?;
    let mut commands = Lines::connect(&control)?;
    let mac = "52:54:00:00:00:0a";
    commands.done(&serde_json::json!({
        "op": "add-port", "name": "a", "socket": "a.sock", "mac": mac,
        "guard": {"addresses": ["10.95.0.7"]},
        "send": {"bytes": {"per-second": 1_000_000, "burst": 100_000}},
    }))?;
    let guest = Guest::on_vhost_user(lan.socket("a.sock"))
        .mac(mac)
        .no_dhcp()
        .boot()?;
    guest.run("ip addr add 10.95.0.7/24 dev eth0; ping -c2 -W2 10.95.0.1")?;
    let rate = transfer(&guest, false)?;
    eprintln!("limited to 8 Mbit/s: {rate:.1}");
    anyhow::ensure!((0.5..10.0).contains(&rate), "{rate}");
    guest.run("ip addr flush dev eth0; ip addr add 10.95.0.8/24 dev eth0")?;
    let (code, said) = guest.try_run(PATIENCE, "ping -c2 -W1 10.95.0.1")?;
    anyhow::ensure!(code != 0, "a stolen address is answered: {said}");
    let stats = commands.done(&serde_json::json!({"op": "stats"}))?;
    let drops = &stats["ports"]["a"]["switch"]["drops"];
    anyhow::ensure!(drops["guard_arp"].as_u64().unwrap_or(0) > 0, "{stats}");
    Ok(())
}

#[test]
fn several_queues_and_jumbo_frames() -> anyhow::Result<()> {
    if !tool::ready("vhost_user::several_queues", GUEST) {
        return Ok(());
    }
    let lan = Lan::new("vu-mq")?;
    lan.tap("tap0")?;
    lan.ns.ip("link set tap0 mtu 9000")?;
    lan.ns.ip("link set br0 mtu 9000")?;
    let socket = lan.socket("s");
    let backend = lan.backend(&[
        "--socket",
        &socket.display().to_string(),
        "--tap",
        "tap0",
        "--queues",
        "2",
    ])?;
    let guest = Guest::on_vhost_user(&socket).queues(2).boot()?;
    let address = guest.lease()?.to_string();
    guest.run("ip link set eth0 mtu 9000")?;
    lan.ns
        .run(&[
            "ping", "-M", "do", "-s", "8900", "-c3", "-i0.2", "-W2", &address,
        ])?
        .ok()?;
    let queues = guest.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l")?;
    assert_eq!(queues.trim(), "2");
    guest.run(
        "iperf3 -c 10.95.0.1 -P 4 -t 2 >/dev/null && iperf3 -R -c 10.95.0.1 -P 4 -t 2 >/dev/null",
    )?;
    anyhow::ensure!(!backend.log().contains("WARN"), "{}", backend.log());
    Ok(())
}

#[test]
fn a_guest_changes_the_size_of_its_rings_while_they_carry_a_transfer() -> anyhow::Result<()> {
    let needs = [GUEST, &["ethtool"]].concat();
    if !tool::ready("vhost_user::a_guest_changes", &needs) {
        return Ok(());
    }
    let lan = Lan::new("vu-size")?;
    lan.tap("tap0")?;
    let socket = lan.socket("s");
    let backend = lan.backend(&["--socket", &socket.display().to_string(), "--tap", "tap0"])?;
    let guest = Guest::on_vhost_user(&socket).boot()?;
    guest.lease()?;
    for reverse in ["", "-R"] {
        guest.run(&format!(
            "(iperf3 -c 10.95.0.1 -t 6 {reverse} >/tmp/iperf 2>&1; echo $? >/tmp/code) &"
        ))?;
        // Over vhost-user a frontend tells us nothing of a reset of one queue, so no driver may be offered one: this
        // is refused, or harmless.
        let resized = guest.run(
            "for size in 128 64 256 128 64 256; do ethtool -G eth0 rx $size tx $size && echo resized; sleep 0.5; done; true",
        )?;
        eprintln!("{}", resized.trim());
        let code = wait_for("the transfer's end", PATIENCE, || {
            guest.run("cat /tmp/code && rm /tmp/code")
        })?;
        assert_eq!(code.trim(), "0", "{}", guest.run("cat /tmp/iperf")?);
    }
    guest.run("ping -c3 -i0.2 -W2 10.95.0.1")?;
    anyhow::ensure!(!backend.log().contains("WARN"), "{}", backend.log());
    Ok(())
}

#[test]
fn a_guest_that_leaves_a_queue_pair_unused_gets_every_flow() -> anyhow::Result<()> {
    if !tool::ready("vhost_user::a_guest_that_leaves_a_pair_unused", GUEST) {
        return Ok(());
    }
    let lan = Lan::new("vu-mq1")?;
    lan.tap("tap0")?;
    let socket = lan.socket("s");
    let program = socket.display().to_string();
    let _backend = lan.backend(&["--socket", &program, "--tap", "tap0", "--queues", "2"])?;
    // With one processor Linux uses one pair; QEMU starts both and disables the other.
    let guest = Guest::on_vhost_user(&socket).queues(2).args(&["-smp", "1"]);
    let guest = guest.boot()?;
    let address = guest.lease()?;
    // The guest speaks second: what it has not answered yet is spread by hash. That it refuses is an answer.
    let peer = std::net::SocketAddr::from((address, 9));
    let unanswered = lan.ns.enter(|| {
        let connect = |_: &u32| {
            let tried = std::net::TcpStream::connect_timeout(&peer, PATIENCE / 10);
            !tried.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        };
        (0..24u32).filter(connect).count()
    })?;
    assert_eq!(unanswered, 0, "of 24 connections");
    Ok(())
}

#[test]
fn a_guest_without_offloads_is_given_finished_frames_and_isolation_is_both_ways()
-> anyhow::Result<()> {
    if !tool::ready("vhost_user::a_guest_without_offloads", GUEST) {
        return Ok(());
    }
    let lan = Lan::new("vu-off")?;
    lan.tap("up0")?;
    let control = lan.socket("control");
    let _backend = lan.backend(&["--control", &control.display().to_string(), "--tap", "up0"])?;
    let mut commands = Lines::connect(&control)?;
    let macs = [("a", "52:54:00:00:00:0a"), ("b", "52:54:00:00:00:0b")];
    for (name, mac) in macs {
        let socket = format!("{name}.sock");
        commands.done(
            &serde_json::json!({"op": "add-port", "name": name, "socket": socket, "mac": mac}),
        )?;
    }
    let guest = |name: &str, mac: &str| {
        Guest::on_vhost_user(lan.socket(&format!("{name}.sock")))
            .name(name)
            .mac(mac)
    };
    let a = guest("a", macs[0].1).boot()?;
    let off = ["csum", "tso4", "tso6", "ecn", "ufo"]
        .map(|what| format!("virtio-net-device.guest_{what}=off"));
    let off: Vec<&str> = off.iter().flat_map(|one| ["-global", one]).collect();
    let b = guest("b", macs[1].1).args(&off).boot()?;
    a.lease()?;
    let at_b = b.lease()?;
    let listed = commands.done(&serde_json::json!({"op": "list"}))?;
    let features = |at: usize| listed["ports"][at]["features"].to_string();
    anyhow::ensure!(
        features(0).contains("guest_tso4") && !features(1).contains("guest_csum"),
        "{listed}"
    );
    // It drops what has a wrong checksum, and never sees a frame that is too long for it.
    b.run("iperf3 -s -D --forceflush >/dev/null 2>&1")?;
    wait_for("the server", START, || b.run("netstat -ltn | grep 5201"))?;
    a.run(&format!("iperf3 -c {at_b} -n 4M"))?;
    let stats = commands.done(&serde_json::json!({"op": "stats"}))?;
    assert_eq!(stats["ports"]["b"]["device"]["rx_refused"], 0, "{stats}");

    let isolate = |commands: &mut Lines, on: bool| {
        macs.iter().try_for_each(|(name, _)| {
            let ask = serde_json::json!({"op": "set-port", "name": name, "isolated": on});
            commands.done(&ask).map(drop)
        })
    };
    isolate(&mut commands, true)?;
    let (code, said) = a.try_run(PATIENCE, &format!("ping -c2 -W1 {at_b}"))?;
    anyhow::ensure!(code != 0, "isolated, and yet: {said}");
    a.run("ping -c2 -W2 10.95.0.1")?;
    b.run("ping -c2 -W2 10.95.0.1")?;
    isolate(&mut commands, false)?;
    a.run(&format!("ping -c2 -W2 {at_b}"))?;
    Ok(())
}

/// Longest time without an answer while `disturb` acts, by a ping every 20 ms from the host.
fn longest_silence(
    lan: &Lan,
    address: &str,
    disturb: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let mut ping = lan.ns.spawn(&[
        "ping", "-D", "-n", "-i", "0.02", "-c", "300", "-W", "1", address,
    ])?;
    ping.wait_log("icmp_seq=20 ", PATIENCE)?;
    disturb()?;
    ping.wait(PATIENCE)?;
    let times: Vec<f64> = ping
        .log()
        .lines()
        .filter(|line| line.contains("icmp_seq="))
        .filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok())
        .collect();
    let longest = times
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .fold(0.0, f64::max);
    anyhow::ensure!(times.len() > 50, "too few answers\n{}", ping.log());
    Ok(Duration::from_secs_f64(longest))
}

#[test]
fn a_killed_backend_costs_its_guest_little_and_a_transfer_goes_on() -> anyhow::Result<()> {
    if !tool::ready("vhost_user::a_killed_backend", GUEST) {
        return Ok(());
    }
    let lan = Lan::new("vu-kill")?;
    lan.tap("tap0")?;
    let socket = lan.socket("s");
    // QEMU comes again once a second; where QEMU listens, the backend comes at once.
    let ways = [
        ("--socket", "reconnect=1", 5_000),
        ("--connect", "server=on,wait=on", 5_000),
    ];
    for (flag, options, patience) in ways {
        let args = [flag, &socket.display().to_string(), "--tap", "tap0"];
        let mut backend = lan.backend(&args)?;
        let guest = Guest::on_vhost_user(&socket).connection(options).boot()?;
        let address = guest.lease()?.to_string();
        guest.run("(iperf3 -c 10.95.0.1 -t 8 >/tmp/iperf 2>&1; echo $? >/tmp/code) &")?;
        let mut second = None;
        let silence = longest_silence(&lan, &address, || {
            backend.kill9()?;
            second = Some(lan.backend(&args)?);
            Ok(())
        })?;
        eprintln!("{options}: silent for {silence:?}");
        anyhow::ensure!(silence < Duration::from_millis(patience), "{silence:?}");
        let code = wait_for("the transfer's end", PATIENCE, || {
            guest.run("cat /tmp/code")
        })?;
        assert_eq!(code.trim(), "0", "{}", guest.run("cat /tmp/iperf")?);
        drop(guest);
        drop(second);
    }
    Ok(())
}

/// Lines that come over the one connection that is accepted.
fn received(lan: &Lan) -> anyhow::Result<mpsc::Receiver<String>> {
    let listener = lan.ns.enter(|| TcpListener::bind("10.95.0.1:7000"))??;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let connection = listener.accept().map(|(stream, _)| BufReader::new(stream));
        for line in connection.into_iter().flat_map(BufReader::lines) {
            let Ok(line) = line else { return };
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    Ok(told)
}

#[test]
fn a_guest_moves_to_another_qemu_and_keeps_its_connection() -> anyhow::Result<()> {
    if !tool::ready("vhost_user::a_guest_moves", GUEST) {
        return Ok(());
    }
    let lan = Lan::new("vu-mig")?;
    let mut backends = Vec::new();
    for (tap, socket) in [("tap0", "s0"), ("tap1", "s1")] {
        lan.tap(tap)?;
        let socket = lan.socket(socket).display().to_string();
        backends.push(lan.backend(&["--socket", &socket, "--tap", tap])?);
    }
    let boot = |socket: &str, monitor: &str, incoming: Option<&str>| {
        let monitor = format!("unix:{},server=on,wait=off", lan.socket(monitor).display());
        let guest = Guest::on_vhost_user(lan.socket(socket))
            .name("mover")
            .mac("52:54:00:00:00:77");
        let guest = guest.args(&["-qmp", &monitor]);
        match incoming {
            Some(path) => guest.args(&["-incoming", path]).boot(),
            None => guest.boot(),
        }
    };
    let told = received(&lan)?;
    let source = boot("s0", "m0", None)?;
    source.lease()?;
    source.run("(i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; usleep 20000; done | nc 10.95.0.1 7000) >/dev/null 2>&1 &")?;
    // Every line must come, in order, over the one connection that was accepted.
    let mut next = 1;
    let mut follow = |count: usize| {
        for _ in 0..count {
            let line = told
                .recv_timeout(PATIENCE)
                .with_context(|| format!("no line {next}"))?;
            anyhow::ensure!(line == format!("line {next}"), "line {next} is {line}");
            next += 1;
        }
        anyhow::Ok(next)
    };
    follow(20)?;
    let path = format!("unix:{}", lan.socket("move").display());
    let _target = boot("s1", "m1", Some(&path))?;
    let mut monitor = Lines::connect(&lan.socket("m0"))?;
    monitor.read()?;
    monitor.execute(&serde_json::json!({"execute": "qmp_capabilities"}))?;
    wait_for("the target's socket", START, || {
        if lan.socket("move").exists() {
            Ok(())
        } else {
            Err("not there")
        }
    })?;
    monitor.execute(&serde_json::json!({"execute": "migrate", "arguments": {"uri": path}}))?;
    let began = Instant::now();
    wait_for("the end of the migration", Duration::from_secs(60), || {
        let state = monitor
            .execute(&serde_json::json!({"execute": "query-migrate"}))
            .map_err(|e| e.to_string())?;
        if state["status"] == "completed" {
            Ok(())
        } else {
            Err(state.to_string())
        }
    })?;
    eprintln!("moved in {:?}", began.elapsed());
    monitor
        .execute(&serde_json::json!({"execute": "quit"}))
        .ok();
    drop(source);
    // More than fits into any buffer on the way, so they come from the guest where it is now.
    let last = follow(400)?;
    eprintln!("{last} lines without a gap");
    Ok(())
}

#[test]
fn a_frontend_of_dpdk_sends_and_gets_its_frames_back() -> anyhow::Result<()> {
    if !tool::ready("vhost_user::a_frontend_of_dpdk", &["dpdk-testpmd", "tc"]) {
        return Ok(());
    }
    let lan = Ns::new("vu-dpdk")?;
    let socket = lan.scratch().join("s").display().to_string();
    let program = binary("virtio-net-backend")?.display().to_string();
    let backend = lan.spawn(&[&program, "--socket", &socket, "--tap", "t0"])?;
    backend.wait_log("ready", START)?;
    // The tap returns every frame.
    lan.sh("tc qdisc add dev t0 ingress && tc filter add dev t0 parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev t0")?;
    let device = format!("virtio_user0,path={socket},queues=1,queue_size=256");
    let prefix = format!("vt{}", std::process::id());
    let line = format!(
        "sleep 6 | dpdk-testpmd --no-huge -m 256 --no-pci -l 0,1 --file-prefix {prefix} --log-level error --vdev={device} \
         -- --forward-mode=io --port-topology=loop --tx-first --burst=32 --total-num-mbufs=8192 --nb-cores=1 --stats-period 1"
    );
    let ran = lan.run_within(
        Duration::from_secs(30),
        &["sh", "-c", &format!("timeout -s INT 8 sh -c '{line}'")],
    )?;
    let counts: Vec<u64> = ran
        .stdout
        .lines()
        .filter_map(|line| {
            line.split_once("RX-packets:")?
                .1
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .collect();
    let most = counts.iter().max().copied().unwrap_or(0);
    eprintln!("{most} frames came back");
    anyhow::ensure!(most > 10_000, "{}\n{}", ran.stdout, backend.log());
    Ok(())
}
