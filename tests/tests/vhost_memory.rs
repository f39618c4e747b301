//! Memory that comes and goes under a running guest: DIMMs plugged into QEMU and pulled again while the card, a port of
//! netd, carries frames.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::fs::SeekFrom;
use serde_json::json;
use tests::vhost::{Lines, attach, backend, boot};
use tests::{Echo, Guest, Netd, Ns, tool, wait_for};

const TOOLS: &[&str] = &["nft", "iperf3", "qemu-system-x86_64", "busybox"];
const SOON: Duration = Duration::from_secs(30);
/// The gateway of the network `default`, where the streams come from.
const GATEWAY: &str = "192.168.122.1";
/// Bytes of the stream that nobody has seen in a buffer on the way.
const MORE: u64 = 8 << 20;
const DIMM: u64 = 256 << 20;

/// QEMU's slots for memory.
struct Slots<'g> {
    qmp: Lines,
    guest: &'g Guest,
}

impl Slots<'_> {
    /// Plugs a DIMM and waits until the guest uses it, as its `policy` says.
    fn plug(&mut self, name: &str, policy: &str) -> anyhow::Result<()> {
        let before = self.total()?;
        self.guest.run(&format!(
            "echo {policy} >/sys/devices/system/memory/auto_online_blocks"
        ))?;
        let memory = format!("{name}-memory");
        self.qmp
            .execute(&json!({"execute": "object-add", "arguments": {
                "qom-type": "memory-backend-memfd", "id": memory, "size": DIMM, "share": true,
            }}))?;
        self.qmp
            .execute(&json!({"execute": "device_add", "arguments": {
                "driver": "pc-dimm", "id": name, "memdev": memory,
            }}))?;
        wait_for("more memory in the guest", SOON, || {
            let now = self.total()?;
            ensure!(now > before, "{now} kB");
            Ok(())
        })
    }

    /// Pulls a DIMM and waits until the guest has let it go.
    fn pull(&mut self, name: &str) -> anyhow::Result<()> {
        wait_for("a DIMM's end", SOON, || {
            // The guest may refuse while some page is in use, and is asked again. That it was asked is no mistake.
            let delete = json!({"execute": "device_del", "arguments": {"id": name}});
            let asked = self.qmp.execute(&delete);
            std::thread::sleep(Duration::from_millis(200));
            let plugged = self
                .qmp
                .execute(&json!({"execute": "query-memory-devices"}))?;
            ensure!(!plugged.to_string().contains(name), "{plugged} {asked:?}");
            Ok(())
        })?;
        let memory = format!("{name}-memory");
        let delete = json!({"execute": "object-del", "arguments": {"id": memory}});
        self.qmp.execute(&delete).map(drop)
    }

    /// What the guest has, in kB.
    fn total(&self) -> anyhow::Result<u64> {
        let total = self
            .guest
            .run("awk '/^MemTotal/ { print $2 }' /proc/meminfo")?;
        Ok(total.trim().parse()?)
    }
}

/// How many frames for this card lie in the first DIMM, each behind the header that only a device writes.
fn frames_in_dimm(guest: &Guest, mac: &str) -> anyhow::Result<usize> {
    const HEADER: usize = 12;
    let mac: Vec<u8> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    let only = dimms(guest.pid())?.pop().context("no DIMM")?;
    let mut memory = File::open(only)?;
    let mut count = 0;
    let mut block = vec![0; 1 << 20];
    // What was never written is a hole.
    while let Ok(at) = rustix::fs::seek(&memory, SeekFrom::Data(rustix::fs::tell(&memory)?)) {
        let read = memory.read(&mut block)?;
        ensure!(read > 0, "a hole at {at}");
        let frames = block[..read].windows(HEADER + 14).filter(|bytes| {
            let (header, frame) = bytes.split_at(HEADER);
            // One buffer, or some: the driver leaves no such number before a frame of its own.
            (1..64).contains(&header[10])
                && header[11] == 0
                && frame.starts_with(&mac)
                && frame[12..] == [8, 0]
        });
        count += frames.count();
    }
    Ok(count)
}

/// The open files behind DIMMs that a process has.
fn dimms(process: u32) -> anyhow::Result<Vec<PathBuf>> {
    let fds = fs::read_dir(format!("/proc/{process}/fd"))?;
    let paths = fds.flatten().map(|entry| entry.path());
    let is_dimm = |path: &PathBuf| {
        let name = fs::read_link(path).unwrap_or_default();
        let about = fs::metadata(path);
        name.to_string_lossy().contains("memfd") && about.is_ok_and(|about| about.len() == DIMM)
    };
    Ok(paths.filter(is_dimm).collect())
}

#[test]
fn frames_go_to_and_come_from_memory_that_is_plugged_and_pulled_while_they_flow()
-> anyhow::Result<()> {
    if !tool::ready("vhost_memory::frames_go_to_memory", TOOLS) {
        return Ok(());
    }
    let host = Ns::new("vmem")?;
    let netd = Netd::start(&host)?;
    let iperf = host.spawn(&["iperf3", "-s", "--forceflush"])?;
    iperf.wait_log("listening", SOON)?;
    let monitor = host.scratch().join("monitor");
    let line = attach(&netd, "web", &["--queues", "2"])?;
    let more = "-smp 2 -m 192M,slots=2,maxmem=2G";
    let line = format!(
        "{line} {more} -qmp unix:{},server=on,wait=off",
        monitor.display()
    );
    let web = boot("web", &line)?;
    web.lease()?;
    let shown = netd.json(&["port", "show", "default", "web"])?;
    let mac = shown["mac"].as_str().context("no MAC")?;
    let mut slots = Slots {
        qmp: Lines::monitor(&monitor)?,
        guest: &web,
    };
    let echo = Echo::start(&host, GATEWAY, &web)?;
    echo.go_on(MORE)?;

    // Linux takes buffers from the highest zone first: from here on, from the DIMM.
    slots.plug("first", "online")?;
    echo.go_on(MORE)?;
    let frames = wait_for("frames in the DIMM", SOON, || {
        let frames = frames_in_dimm(&web, mac)?;
        ensure!(frames > 10, "{frames} frames");
        Ok(frames)
    })?;
    eprintln!("{frames} frames in memory that was plugged");

    // The next process has it as well.
    let process = backend(&netd)?;
    host.run(&["kill", "-9", &process.to_string()])?.ok()?;
    echo.go_on(MORE)?;
    assert_ne!(backend(&netd)?, process);

    // Memory that can be pulled again holds no buffers of the kernel, but pages of files: they are sent from where they
    // are.
    for round in 0..2 {
        slots.plug("second", "online_movable")?;
        web.run(&format!("iperf3 -Z -c {GATEWAY} -n 16M"))
            .with_context(|| format!("round {round}"))?;
        slots.pull("second")?;
        echo.go_on(MORE)?;
        // The host has its memory back: nobody holds on to it.
        for process in [web.pid(), backend(&netd)?, netd.id().context("netd runs")?] {
            wait_for("the DIMM to be let go", SOON, || {
                let held = dimms(process)?.len();
                ensure!(held == 1, "{held} held by {process}");
                Ok(())
            })?;
        }
    }
    let shown = netd.json(&["port", "show", "default", "web"])?;
    assert_eq!(shown["device"]["counters"].get("faults"), None, "{shown}");
    assert_eq!(shown["device"]["running"], true, "{shown}");
    Ok(())
}
