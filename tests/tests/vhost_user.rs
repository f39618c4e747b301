//! The vhost-user backend with frontends that nobody here wrote: QEMU with a Linux guest, and DPDK's virtio-user.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::daemon::binary;
use tests::process::PATIENCE;
use tests::vhost::{Lan, Lines};
use tests::{Echo, Guest, Ns, tool, wait_for};

const START: Duration = Duration::from_secs(10);
const GUEST: &[&str] = &["dnsmasq", "qemu-system-x86_64", "busybox", "iperf3"];

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
    ensure!(out > 1.0 && back > 1.0, "{out} {back}\n{}", backend.log());
    Ok(())
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
    ensure!(rate > 1.0, "{rate}");

    let shown = commands.done(&serde_json::json!({"op": "addresses"}))?;
    ensure!(shown.to_string().contains("52:54:00:00:00:0c"), "{shown}");
    commands.done(&serde_json::json!({"op": "remove-port", "name": "b"}))?;
    let (code, said) = a.try_run(PATIENCE, &format!("ping -c2 -W1 {at_b}"))?;
    ensure!(code != 0, "a port that is gone still answers: {said}");
    a.run(&format!("ping -c2 -W2 {at_c}"))?;
    let stats = commands.done(&serde_json::json!({"op": "stats"}))?;
    ensure!(stats["ports"]["a"]["device"]["faults"] == 0, "{stats}");
    ensure!(
        stats["ports"].get("b").is_none(),
        "{stats}\n{}",
        backend.log()
    );
    Ok(())
}

/// How many frames left by the uplink so far.
fn uplinked(commands: &mut Lines) -> anyhow::Result<u64> {
    let stats = commands.done(&serde_json::json!({"op": "stats"}))?;
    let sent = stats["uplink"]["sent"].as_u64();
    sent.with_context(|| stats.to_string())
}

/// What is known goes one way only; what moves is found where it is; what is silent is looked for everywhere.
#[test]
fn an_address_moves_with_its_guest_and_is_forgotten_after_a_while() -> anyhow::Result<()> {
    const BOTH: &str = "52:54:00:00:00:0b";
    if !tool::ready("vhost_user::an_address_moves", GUEST) {
        return Ok(());
    }
    let lan = Lan::new("vu-age")?;
    lan.tap("up0")?;
    let control = lan.socket("control");
    let path = control.display().to_string();
    let _backend = lan.backend(&["--control", &path, "--tap", "up0", "--ageing", "5"])?;
    let mut commands = Lines::connect(&control)?;
    let mut numbers = Vec::new();
    let mut guests = Vec::new();
    for (name, host) in [("a", 11), ("b", 12), ("c", 13)] {
        let mac = format!("52:54:00:00:00:0{name}");
        let socket = format!("{name}.sock");
        let port = commands.done(
            &serde_json::json!({"op": "add-port", "name": name, "socket": socket, "mac": mac}),
        )?;
        numbers.push(port["number"].clone());
        let guest = Guest::on_vhost_user(lan.socket(&socket));
        guests.push((guest.name(name).mac(&mac).no_dhcp().boot()?, host));
    }
    for (guest, host) in &guests {
        guest.run(&format!("ip addr add 10.95.0.{host}/24 dev eth0"))?;
    }
    let [(a, _), (b, _), (c, _)] = &guests[..] else {
        unreachable!("three were booted")
    };
    let knows = |commands: &mut Lines| -> anyhow::Result<serde_json::Value> {
        let shown = commands.done(&serde_json::json!({"op": "addresses"}))?;
        let entries = shown["addresses"].as_array().context("no list")?;
        let entry = entries.iter().find(|entry| entry["mac"] == BOTH);
        Ok(entry.map_or(serde_json::Value::Null, |entry| entry["port"].clone()))
    };

    // Known: no frame of forty goes anywhere else.
    a.run(&format!(
        "arp -s 10.95.0.12 {BOTH}; ping -c2 -W2 10.95.0.12"
    ))?;
    let before = uplinked(&mut commands)?;
    a.run("ping -c40 -i0.05 -W2 10.95.0.12")?;
    let elsewhere = uplinked(&mut commands)? - before;
    ensure!(elsewhere < 20, "{elsewhere} frames were flooded");
    assert_eq!(knows(&mut commands)?, numbers[1]);

    // Moved: the address and all that is sent to it, once its new place has spoken.
    b.run("ip link set eth0 down")?;
    c.run(&format!(
        "ip link set eth0 down; ip link set eth0 address {BOTH}; ip link set eth0 up; \
         ip addr flush dev eth0; ip addr add 10.95.0.12/24 dev eth0; ping -c2 -W2 10.95.0.11"
    ))?;
    assert_eq!(knows(&mut commands)?, numbers[2]);
    a.run("ping -c3 -i0.2 -W2 10.95.0.12")?;

    // Silent: forgotten, and looked for at the uplink too.
    c.run("ip link set eth0 down")?;
    wait_for("the switch to forget", PATIENCE, || {
        match knows(&mut commands) {
            Ok(port) if port.is_null() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    let before = uplinked(&mut commands)?;
    a.try_run(PATIENCE, "ping -c40 -i0.05 -W1 10.95.0.12")?;
    let everywhere = uplinked(&mut commands)? - before;
    ensure!(everywhere >= 40, "{everywhere} frames were flooded");
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
    ensure!((0.5..10.0).contains(&rate), "{rate}");
    guest.run("ip addr flush dev eth0; ip addr add 10.95.0.8/24 dev eth0")?;
    let (code, said) = guest.try_run(PATIENCE, "ping -c2 -W1 10.95.0.1")?;
    ensure!(code != 0, "a stolen address is answered: {said}");
    let stats = commands.done(&serde_json::json!({"op": "stats"}))?;
    let drops = &stats["ports"]["a"]["switch"]["drops"];
    ensure!(drops["guard_arp"].as_u64().unwrap_or(0) > 0, "{stats}");
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
    ensure!(!backend.log().contains("WARN"), "{}", backend.log());
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
    ensure!(!backend.log().contains("WARN"), "{}", backend.log());
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
    assert_eq!(unanswered(&lan, address)?, 0);
    Ok(())
}

/// How many of 24 connections the guest does not answer. It speaks second: such flows are spread over its queues by hash.
/// That it refuses is an answer.
fn unanswered(lan: &Lan, address: Ipv4Addr) -> anyhow::Result<usize> {
    let peer = std::net::SocketAddr::from((address, 9));
    let connect = |_: &u32| {
        let tried = std::net::TcpStream::connect_timeout(&peer, PATIENCE / 10);
        !tried.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    lan.ns.enter(|| (0..24u32).filter(connect).count())
}

#[test]
fn a_guest_that_turns_a_queue_pair_off_and_on_keeps_every_flow() -> anyhow::Result<()> {
    let needs = [GUEST, &["ethtool"]].concat();
    if !tool::ready("vhost_user::a_guest_that_turns_a_pair_off", &needs) {
        return Ok(());
    }
    let lan = Lan::new("vu-mq2")?;
    lan.tap("tap0")?;
    let socket = lan.socket("s");
    let program = socket.display().to_string();
    let backend = lan.backend(&["--socket", &program, "--tap", "tap0", "--queues", "2"])?;
    let guest = Guest::on_vhost_user(&socket).queues(2).boot()?;
    let address = guest.lease()?;
    let echo = Echo::start(&lan.ns, "10.95.0.1", &guest)?;
    for pairs in [1, 2, 1, 2] {
        guest.run(&format!("ethtool -L eth0 combined {pairs}"))?;
        echo.go_on(1 << 20)
            .with_context(|| format!("{pairs} pairs"))?;
        assert_eq!(unanswered(&lan, address)?, 0, "{pairs} pairs");
        guest.run("iperf3 -c 10.95.0.1 -P 4 -n 4M >/dev/null")?;
        guest.run("iperf3 -R -c 10.95.0.1 -P 4 -n 4M >/dev/null")?;
    }
    ensure!(!backend.log().contains("WARN"), "{}", backend.log());
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
    ensure!(
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
    ensure!(code != 0, "isolated, and yet: {said}");
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
    ensure!(times.len() > 50, "too few answers\n{}", ping.log());
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
        ensure!(silence < Duration::from_millis(patience), "{silence:?}");
        let code = wait_for("the transfer's end", PATIENCE, || {
            guest.run("cat /tmp/code")
        })?;
        assert_eq!(code.trim(), "0", "{}", guest.run("cat /tmp/iperf")?);
        drop(guest);
        drop(second);
    }
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
    ensure!(most > 10_000, "{}\n{}", ran.stdout, backend.log());
    Ok(())
}
