//! Guests that move to another QEMU while they run, and with them their connections: between two backends alone, and from
//! a port of one host's netd to a port of another's. What a card writes into the guest's memory must come along, also
//! when the process behind it is another in the middle of the move.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use tests::guest::MOVABLE;
use tests::process::PATIENCE;
use tests::vhost::{Lan, Lines, attach_to, backend, boot};
use tests::{Echo, Guest, Netd, Ns, tool, wait_for};

const START: Duration = Duration::from_secs(10);
const MOVE: Duration = Duration::from_secs(60);
const TOOLS: &[&str] = &["dnsmasq", "qemu-system-x86_64", "busybox", "iperf3"];
const MAC: &str = "52:54:00:00:00:77";
/// Bytes of a stream that nobody has seen in a buffer on the way.
const MORE: u64 = 2 << 20;

/// A guest on its way to another QEMU.
struct Move {
    monitor: Lines,
    began: Instant,
}

impl Move {
    /// Begins, from the QEMU with this monitor to the one that waits at this socket. The guest runs on until
    /// [`Move::end`].
    fn begin(monitor: &Path, target: &Path) -> anyhow::Result<Self> {
        wait_for("the target's socket", START, || {
            if target.exists() {
                Ok(())
            } else {
                Err("not there")
            }
        })?;
        let mut monitor = Lines::monitor(monitor)?;
        monitor.execute(&terms(24 << 20, 1))?;
        let began = Instant::now();
        let uri = format!("unix:{}", target.display());
        monitor.execute(&json!({"execute": "migrate", "arguments": {"uri": uri}}))?;
        Ok(Self { monitor, began })
    }

    fn state(&mut self) -> anyhow::Result<serde_json::Value> {
        self.monitor.execute(&json!({"execute": "query-migrate"}))
    }

    /// Waits until all memory was sent once, and what was written meanwhile once more.
    fn has_sent_all(&mut self) -> anyhow::Result<()> {
        let passes = |state: &serde_json::Value| state["ram"]["dirty-sync-count"].as_u64();
        let before = passes(&self.state()?).unwrap_or(0);
        wait_for("a pass over the memory", MOVE, || {
            let state = self.state()?;
            // Should it have ended already, there will be no other.
            if state["status"] != "active" && state["status"] != "setup" {
                return Ok(Err(anyhow::anyhow!("{state}")));
            }
            ensure!(passes(&state) > Some(before + 1), "{state}");
            Ok(Ok(()))
        })?
    }

    /// Waits until the guest is there, and ends the QEMU that it left.
    fn end(mut self) -> anyhow::Result<()> {
        self.monitor.execute(&terms(1 << 30, 2000))?;
        wait_for("the end of the migration", MOVE, || {
            let state = self.state()?;
            ensure!(state["status"] == "completed", "{state}");
            Ok(())
        })?;
        eprintln!("moved in {:?}", self.began.elapsed());
        // It may be gone before it answers.
        let _ = self.monitor.execute(&json!({"execute": "quit"}));
        Ok(())
    }
}

/// Bytes a second, and for how many milliseconds the guest may stand still in the end: for one, it never moves while it
/// has anything to do.
fn terms(bandwidth: u64, pause: u32) -> serde_json::Value {
    let parameters = json!({"downtime-limit": pause, "max-bandwidth": bandwidth});
    json!({"execute": "migrate-set-parameters", "arguments": parameters})
}

/// A guest that always has something to do, so that its move ends only when it may.
fn busy(guest: &Guest) -> anyhow::Result<()> {
    guest.run("dd if=/dev/urandom of=/tmp/a bs=1M count=2")?;
    guest.run("(while usleep 20000; do cp /tmp/a /tmp/b; done) >/dev/null 2>&1 &")?;
    Ok(())
}

/// The arguments of a QEMU with a monitor, and of one that waits for a guest.
fn monitored(monitor: &Path) -> [String; 2] {
    let path = monitor.display();
    ["-qmp".to_owned(), format!("unix:{path},server=on,wait=off")]
}

fn waiting(at: &Path) -> [String; 2] {
    ["-incoming".to_owned(), format!("unix:{}", at.display())]
}

/// Two backends on taps of the LAN, and a guest on the first of them.
fn two_backends(lan: &Lan) -> anyhow::Result<[tests::Proc; 2]> {
    let start = |n: u8| {
        lan.tap(&format!("tap{n}"))?;
        let socket = lan.socket(&format!("s{n}")).display().to_string();
        lan.backend(&["--socket", &socket, "--tap", &format!("tap{n}")])
    };
    Ok([start(0)?, start(1)?])
}

/// A QEMU on one of them.
fn on_backend(lan: &Lan, n: u8, arguments: &[String; 2]) -> anyhow::Result<Guest> {
    let guest = Guest::on_vhost_user(lan.socket(&format!("s{n}")));
    let arguments = arguments.each_ref().map(String::as_str);
    guest
        .name("mover")
        .mac(MAC)
        .movable()
        .args(&arguments)
        .boot()
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
    if !tool::ready("vhost_migration::a_guest_moves", TOOLS) {
        return Ok(());
    }
    let lan = Lan::new("vu-mig")?;
    let _backends = two_backends(&lan)?;
    let told = received(&lan)?;
    let (monitor, door) = (lan.socket("m0"), lan.socket("move"));
    let source = on_backend(&lan, 0, &monitored(&monitor))?;
    source.lease()?;
    source.run("(i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; usleep 20000; done | nc 10.95.0.1 7000) >/dev/null 2>&1 &")?;
    // Every line must come, in order, over the one connection that was accepted.
    let mut next = 1;
    let mut follow = |count: usize| {
        for _ in 0..count {
            let line = told
                .recv_timeout(PATIENCE)
                .with_context(|| format!("no line {next}"))?;
            ensure!(line == format!("line {next}"), "line {next} is {line}");
            next += 1;
        }
        anyhow::Ok(next)
    };
    follow(20)?;
    let _target = on_backend(&lan, 1, &waiting(&door))?;
    Move::begin(&monitor, &door)?.end()?;
    drop(source);
    // More than fits into any buffer on the way, so they come from the guest where it is now.
    let last = follow(400)?;
    eprintln!("{last} lines without a gap");
    Ok(())
}

#[test]
fn what_a_card_writes_into_memory_that_was_sent_already_is_sent_again() -> anyhow::Result<()> {
    if !tool::ready("vhost_migration::what_a_card_writes", TOOLS) {
        return Ok(());
    }
    let lan = Lan::new("vu-migrx")?;
    let _backends = two_backends(&lan)?;
    let (monitor, door) = (lan.socket("m0"), lan.socket("move"));
    let source = on_backend(&lan, 0, &monitored(&monitor))?;
    source.lease()?;
    let echo = Echo::lazy(&lan.ns, "10.95.0.1", &source)?;
    echo.go_on(MORE)?;
    let _target = on_backend(&lan, 1, &waiting(&door))?;
    busy(&source)?;
    let mut moving = Move::begin(&monitor, &door)?;
    moving.has_sent_all()?;
    echo.go_on(MORE)?;
    moving.end()?;
    drop(source);
    echo.go_on(MORE)
}

/// A host with a bridge on the LAN, and netd with a network on that.
fn host(lan: &Lan, name: &str) -> anyhow::Result<Ns> {
    let host = Ns::new(name)?;
    let port = format!("to-{name}");
    lan.ns.link(&port, &host, "eth0")?;
    lan.ns.ip(&format!("link set {port} master br0"))?;
    host.ip("link add br0 type bridge")?;
    host.ip("link set br0 up")?;
    host.ip("link set eth0 master br0")?;
    Ok(host)
}

fn netd(host: &Ns) -> anyhow::Result<Netd<'_>> {
    let netd = Netd::start(host)?;
    netd.apply("name = \"lab\"\n[bridge]\nname = \"br0\"\n[forward]\nmode = \"bridge\"\n")?;
    Ok(netd)
}

/// The host's backend is killed; when this returns another has taken its place.
fn killed(netd: &Netd) -> anyhow::Result<()> {
    let before = backend(netd)?;
    netd.ns().run(&["kill", "-9", &before.to_string()])?.ok()?;
    wait_for("the next process", START, || {
        let now = backend(netd)?;
        ensure!(now != before, "it is still {before}");
        Ok(())
    })
}

#[test]
fn a_guest_moves_between_hosts_while_their_backends_are_killed() -> anyhow::Result<()> {
    if !tool::ready(
        "vhost_migration::a_guest_moves_between_hosts",
        &[TOOLS, &["nft"]].concat(),
    ) {
        return Ok(());
    }
    let lan = Lan::new("vu-mighost")?;
    let (left, right) = (host(&lan, "left")?, host(&lan, "right")?);
    let (left, right) = (netd(&left)?, netd(&right)?);
    let (monitor, door) = (lan.socket("m0"), lan.socket("move"));
    let qemu = |netd: &Netd, arguments: [String; 2]| {
        let line = attach_to(netd, "lab", "mover", &["--mac", MAC])?;
        let line = line.replace("size=192M", &format!("size={MOVABLE}"));
        boot(
            "mover",
            &format!("{line} -m {MOVABLE} {}", arguments.join(" ")),
        )
    };
    let source = qemu(&left, monitored(&monitor))?;
    source.lease()?;
    let echo = Echo::lazy(&lan.ns, "10.95.0.1", &source)?;
    echo.go_on(MORE)?;

    let _target = qemu(&right, waiting(&door))?;
    busy(&source)?;
    let mut moving = Move::begin(&monitor, &door)?;
    moving.has_sent_all()?;
    killed(&left)?;
    killed(&right)?;
    moving.has_sent_all()?;
    echo.go_on(MORE)?;
    moving.end()?;
    drop(source);
    echo.go_on(MORE)?;
    killed(&right)?;
    echo.go_on(MORE)
}
