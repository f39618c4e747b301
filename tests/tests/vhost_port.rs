//! vhost-user ports as a user has them: netd starts the backend, QEMU gets the lines that `vnet port attach` prints.
//! The guest has its lease and name from netd, reaches guests of every kind, and notices no death that it need not.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::vhost::{attach, backend, boot, pings};
use tests::{Guest, Machine, Netd, Ns, tool, wait_for};

const TOOLS: &[&str] = &[
    "nft",
    "ping",
    "dig",
    "dnsperf",
    "iperf3",
    "qemu-system-x86_64",
    "busybox",
];
const SOON: Duration = Duration::from_secs(15);

fn uplink(ns: &Ns) -> anyhow::Result<String> {
    let links = ns.ip("-o link")?;
    let name = links
        .split([' ', ':', '@'])
        .find(|word| word.starts_with("vu-"));
    Ok(name.context("no uplink")?.to_owned())
}

/// They go to the uplink together, and answers to many at once go down as one packet, which is cut on the way to the guest.
fn many_questions(guest: &Guest) -> anyhow::Result<()> {
    let said = guest.run(
        "echo db.default.internal A >/tmp/names; dnsperf -s 192.168.122.1 -d /tmp/names -n 400 -c 1 -q 40 -t 15",
    )?;
    ensure!(
        said.contains("NOERROR 400 (100.00%)"),
        "answers are missing\n{said}"
    );
    Ok(())
}

#[test]
fn a_guest_by_the_printed_line_has_all_that_a_tap_guest_has() -> anyhow::Result<()> {
    if !tool::ready("vhost_port::a_guest_by_the_printed_line", TOOLS) {
        return Ok(());
    }
    let host = Ns::new("vport")?;
    let netd = Netd::start(&host)?;
    let neighbour = Machine::plug(&netd, "default", "near", &[])?;
    neighbour.lease()?;
    let web = boot("web", &attach(&netd, "web", &[])?)?;
    let db = boot("db", &attach(&netd, "db", &[])?)?;
    let (webs, dbs) = (web.lease()?.to_string(), db.lease()?.to_string());

    // Lease and name by netd, and everybody reaches everybody.
    neighbour.finds("192.168.122.1", &["web"], &webs)?;
    web.run(&format!("ping -c3 -i0.2 -W2 {}", neighbour.address()?))?;
    web.run(&format!("ping -c3 -i0.2 -W2 {dbs}"))?;
    wait_for("a ping from the host", SOON, || {
        host.run(&["ping", "-c1", "-W1", &webs])?.ok()
    })?;

    many_questions(&web)?;

    let before = backend(&netd)?;
    // The tap is deleted: netd puts it back, and the running backend takes it.
    let uplink = uplink(&host)?;
    host.ip(&format!("link del {uplink}"))?;
    wait_for("the uplink's return", SOON, || {
        host.run(&["ping", "-c1", "-W1", &webs])?.ok()
    })
    .with_context(|| netd.log())?;
    assert_eq!(backend(&netd)?, before, "the same process has the new tap");
    let log = netd.log();
    ensure!(!log.contains('\u{1b}'), "colours in a file:\n{log}");
    many_questions(&web)?;
    web.run(&format!("ping -c3 -i0.2 -W2 {dbs}"))?;
    Ok(())
}

/// Two TCP transfers, out and back, that run in the guest until told to end.
struct Transfers<'g>(&'g Guest);

impl<'g> Transfers<'g> {
    fn start(guest: &'g Guest, peer: &Guest) -> anyhow::Result<Self> {
        let address = peer.lease()?;
        peer.run("for p in 5201 5202; do iperf3 -s -D -p $p; done")?;
        wait_for("the servers", SOON, || {
            peer.run("netstat -ltn | grep 5201 && netstat -ltn | grep 5202")
        })?;
        guest.run(&format!(
            "(iperf3 -J -i1 -t 600 -p 5201 -c {address} >/tmp/out) & (iperf3 -J -i1 -t 600 -p 5202 -R -c {address} >/tmp/back) &"
        ))?;
        Ok(Self(guest))
    }

    /// Bytes that came in so far and that went out, as the card counts them.
    fn moved(&self) -> anyhow::Result<[u64; 2]> {
        let told = self
            .0
            .run("cd /sys/class/net/eth0/statistics; cat rx_bytes tx_bytes")?;
        let counts: Vec<u64> = told.split_whitespace().flat_map(str::parse).collect();
        counts.try_into().map_err(|_| anyhow::anyhow!("{told}"))
    }

    /// Waits until both have moved a good deal more: they are alive.
    fn go_on(&self) -> anyhow::Result<()> {
        let before = self.moved()?;
        wait_for("the transfers", SOON, || {
            let now = self.moved().map_err(|e| e.to_string())?;
            if now
                .iter()
                .zip(before)
                .all(|(now, then)| *now > then + 1_000_000)
            {
                Ok(())
            } else {
                Err(format!("{before:?}, then {now:?}"))
            }
        })
    }

    /// Ends them; each must have been one connection from the beginning to now.
    fn end(self) -> anyhow::Result<()> {
        let guest = self.0;
        guest.run("test $(pidof iperf3 | wc -w) = 2; killall -INT iperf3")?;
        wait_for("their end", SOON, || guest.run("! pidof iperf3"))?;
        for report in ["/tmp/out", "/tmp/back"] {
            let report: serde_json::Value =
                serde_json::from_str(&guest.run(&format!("cat {report}"))?)?;
            let error = report["error"].as_str().unwrap_or_default();
            ensure!(error.is_empty() || error.contains("interrupt"), "{error}");
            let streams = report["start"]["connected"].as_array().map_or(0, Vec::len);
            ensure!(streams == 1, "{streams} connections");
        }
        Ok(())
    }
}

#[test]
fn a_killed_backend_or_daemon_costs_a_transfer_nothing_but_a_moment() -> anyhow::Result<()> {
    if !tool::ready("vhost_port::a_killed_backend", TOOLS) {
        return Ok(());
    }
    let host = Ns::new("vkill")?;
    let mut netd = Netd::start(&host)?;
    // A VMM that would never come again, were its connection to end.
    let line = attach(&netd, "web", &[])?.replace(",reconnect=1", "");
    let web = boot("web", &line)?;
    let port = netd.json(&["port", "attach", "default", "old"])?;
    let (tap, mac) = (port["interface"].as_str(), port["mac"].as_str());
    let old = Guest::on_tap(&host, tap.context("no tap")?)
        .mac(mac.context("no MAC")?)
        .name("old")
        .boot()?;
    let address = web.lease()?.to_string();
    let transfers = Transfers::start(&web, &old)?;
    transfers.go_on()?;

    // netd dies and comes back: the process is adopted, nothing is lost.
    let before = backend(&netd)?;
    let (lost, _) = pings(&host, &address, || {
        netd.kill9()?;
        netd.start_again()
    })?;
    assert_eq!(lost, 0, "pings lost with netd");
    assert_eq!(backend(&netd)?, before, "the same process serves on");
    transfers.go_on()?;

    // The backend dies, again and again: netd gives each its predecessor's sessions.
    let mut losses = Vec::new();
    let mut last = before;
    for _ in 0..4 {
        let (lost, silence) = pings(&host, &address, || {
            host.run(&["kill", "-9", &last.to_string()])?.ok().map(drop)
        })?;
        let next = backend(&netd)?;
        assert_ne!(next, last);
        eprintln!("backend killed: {lost} pings lost, silent for {silence:?}");
        (last, _) = (next, losses.push(lost));
        transfers.go_on().with_context(|| netd.log())?;
    }
    // A ping every 20 ms: fifty are a second, and a VMM that has to come again is never faster than that. A busy machine
    // may be slow once in four.
    losses.sort_unstable();
    ensure!(losses[losses.len() / 2] < 50, "{losses:?}");
    transfers.end()
}

/// What is printed for other VMMs, of one queue pair and of several.
#[test]
fn the_lines_for_other_vmms_are_as_they_take_them() -> anyhow::Result<()> {
    if !tool::ready("vhost_port::the_lines_for_other_vmms", &["nft"]) {
        return Ok(());
    }
    let host = Ns::new("vlines")?;
    let netd = Netd::start(&host)?;
    for (kind, queues) in [
        ("vhost-user", "1"),
        ("vhost-user", "4"),
        ("tap", "1"),
        ("tap", "4"),
        ("tap-fd", "1"),
        ("tap-fd", "4"),
    ] {
        let name = format!("{kind}{queues}");
        let ask = [
            "port", "attach", "default", &name, "--kind", kind, "--queues", queues,
        ];
        let port = netd.json(&ask)?;
        let text = |key: &str| port[key].as_str().unwrap_or_default().to_owned();
        let (mac, socket, interface) = (text("mac"), text("socket"), text("interface"));
        // It counts queues, two a pair.
        let pairs = if queues == "4" { ",num_queues=8" } else { "" };
        let (cloud_hypervisor, crosvm) = match kind {
            // How many queues there are, crosvm asks the device.
            "vhost-user" => (
                format!(
                    "--memory size=1G,shared=on --net vhost_user=true,socket={socket},mac={mac}{pairs}"
                ),
                format!("--vhost-user net,socket={socket}"),
            ),
            "tap" => (
                format!("--net tap={interface},mac={mac}{pairs}"),
                format!(
                    "--net tap-name={interface},mac={mac}{}",
                    if queues == "4" { ",vq-pairs=4" } else { "" }
                ),
            ),
            // What `vnet port open` replaces.
            _ => (
                match queues {
                    "1" => format!("--net fd={{fd}},mac={mac}"),
                    _ => format!("--net fd=[{{fd-list}}],mac={mac}{pairs}"),
                },
                format!("--net tap-fd={{fd}},mac={mac}"),
            ),
        };
        for (format, line) in [("cloud-hypervisor", &cloud_hypervisor), ("crosvm", &crosvm)] {
            let said = netd.vnet(&["port", "show", "default", &name, "-o", format])?;
            assert_eq!(said.trim_end(), line, "{name}");
        }
        assert_eq!(
            (&text("cloud_hypervisor"), &text("crosvm")),
            (&cloud_hypervisor, &crosvm)
        );
    }
    Ok(())
}

#[test]
fn a_vmm_comes_again_when_backend_and_daemon_were_killed_together() -> anyhow::Result<()> {
    if !tool::ready("vhost_port::a_vmm_comes_again", TOOLS) {
        return Ok(());
    }
    let host = Ns::new("vboth")?;
    let mut netd = Netd::start(&host)?;
    let web = boot("web", &attach(&netd, "web", &[])?)?;
    let address = web.lease()?.to_string();
    let process = backend(&netd)?;
    netd.kill9()?;
    host.run(&["kill", "-9", &process.to_string()])?.ok()?;
    netd.start_again()?;
    assert_ne!(backend(&netd)?, process);
    wait_for("the guest's return", SOON, || {
        host.run(&["ping", "-c1", "-W1", &address])?.ok()
    })
    .with_context(|| netd.log())?;
    // And the new one, adopted by nobody yet, is killed in its turn.
    let process = backend(&netd)?;
    host.run(&["kill", "-9", &process.to_string()])?.ok()?;
    wait_for("the guest's return", SOON, || {
        host.run(&["ping", "-c1", "-W1", &address])?.ok()
    })
    .with_context(|| netd.log())?;
    Ok(())
}

#[test]
fn one_guest_on_two_ports_by_both_printed_lines() -> anyhow::Result<()> {
    if !tool::ready("vhost_port::one_guest_on_two_ports", TOOLS) {
        return Ok(());
    }
    let host = Ns::new("vtwo")?;
    let netd = Netd::start(&host)?;
    let lines = attach(&netd, "web", &[])? + " " + &attach(&netd, "web2", &[])?;
    let guest = boot("web", &lines)?;
    guest.lease()?;
    let cards = guest.run("ls -d /sys/class/net/eth*")?;
    assert_eq!(cards.split_whitespace().count(), 2, "{cards}");
    let shown = netd.json(&["port", "show", "default", "web2"])?;
    assert_eq!(shown["device"]["connected"], true, "{shown}");
    let shown = netd.json(&["port", "show", "default", "web"])?;
    ensure!(
        shown["device"]["counters"]["tx_frames"].as_u64() > Some(0),
        "{shown}"
    );
    assert_eq!(shown["device"]["running"], true, "{shown}");
    Ok(())
}

/// Megabits a second that came through of two megabytes, as the receiving iperf3 saw it.
fn rate(guest: &Guest, direction: &str) -> anyhow::Result<f64> {
    let report = guest.run(&format!("iperf3 -J -n 2M {direction} -c 192.168.122.1"))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    bits.map(|bits| bits / 1e6)
        .with_context(|| format!("no rate in {report}"))
}

#[test]
fn a_limited_port_keeps_to_its_rates_also_in_the_next_process() -> anyhow::Result<()> {
    if !tool::ready("vhost_port::a_limited_port", TOOLS) {
        return Ok(());
    }
    let host = Ns::new("vrate")?;
    let netd = Netd::start(&host)?;
    let iperf = host.spawn(&["iperf3", "-s", "--forceflush"])?;
    iperf.wait_log("listening", SOON)?;
    // Refused with what to do: a kind that has none, and what is no rate.
    for (args, word) in [
        (["t", "--rate-in", "8mbit"], "vhost-user"),
        (["t", "--rate-out", "fast"], "100mbit"),
    ] {
        let ran = netd.try_vnet(&[&["port", "attach", "default"][..], &args].concat())?;
        ensure!(
            ran.ok().is_err_and(|e| e.to_string().contains(word)),
            "{args:?}"
        );
    }
    let slow = ["--rate-in", "8mbit,burst=64k", "--rate-out", "8mbit"];
    let guest = boot("slow", &attach(&netd, "slow", &slow)?)?;
    let shown = netd.json(&["port", "show", "default", "slow"])?;
    assert_eq!([&shown["rate_in"], &shown["rate_out"]], ["8mbit", "8mbit"]);
    guest.lease()?;
    // Bursts come on top of the 8. However slow the machine is, it is no faster; without limits it is, twenty times.
    for direction in ["", "-R"] {
        let rate = rate(&guest, direction)?;
        ensure!(rate < 12.0, "{direction}: {rate}");
    }
    let process = backend(&netd)?;
    host.run(&["kill", "-9", &process.to_string()])?.ok()?;
    wait_for("the next process", SOON, || match backend(&netd) {
        Ok(next) if next != process => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let rate = rate(&guest, "")?;
    ensure!(rate < 12.0, "{rate}");
    Ok(())
}
