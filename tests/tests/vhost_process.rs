//! The backend as a process, as the kernel sees it: what it can still do once it serves, and what it does on a kernel that
//! lacks something.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context as _;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde_json::json;
use tests::daemon::binary;
use tests::process::PATIENCE;
use tests::{Netd, Ns, tool, wait_for};

const START: Duration = Duration::from_secs(10);
/// GET_FEATURES, version 1, no payload.
const GET_FEATURES: [u32; 3] = [1, 1, 0];
const GUEST_USO4: u64 = 1 << 54;
const GUEST_USO6: u64 = 1 << 55;
const HOST_USO: u64 = 1 << 56;

/// One command of the control socket, which must be done.
fn done(control: &mut UnixStream, command: &serde_json::Value) -> anyhow::Result<()> {
    writeln!(control, "{command}")?;
    let mut answer = [0; 4096];
    let n = control.read(&mut answer)?;
    let answer: serde_json::Value = serde_json::from_slice(&answer[..n])?;
    anyhow::ensure!(answer["ok"] == true, "{command}: {answer}");
    Ok(())
}

/// From here on this thread's kernel, and its children's, knows no USO, as Linux before 6.2.
fn forget_uso() -> anyhow::Result<()> {
    let argument = |number, operator, value| {
        SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, value)
    };
    let rules = [libc::TUN_F_USO4, libc::TUN_F_USO6]
        .map(u64::from)
        .map(|bit| {
            SeccompRule::new(vec![
                argument(1, SeccompCmpOp::Eq, libc::TUNSETOFFLOAD)?,
                argument(2, SeccompCmpOp::MaskedEq(bit), bit)?,
            ])
        });
    let rules = rules.into_iter().collect::<Result<Vec<_>, _>>()?;
    let refuse = SeccompAction::Errno(libc::EINVAL.cast_unsigned());
    let filter = SeccompFilter::new(
        [(libc::SYS_ioctl, rules)].into(),
        SeccompAction::Allow,
        refuse,
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

#[test]
fn a_kernel_without_uso_serves_a_network_that_does_not_offer_it() -> anyhow::Result<()> {
    if !tool::ready("vhost_process::a_kernel_without_uso", &[]) {
        return Ok(());
    }
    let ns = Ns::new("vp-uso")?;
    let control = ns.scratch().join("control");
    let program = binary("virtio-net-backend")?.display().to_string();
    let path = control.display().to_string();
    let argv = [&program, "--control", &path, "--tap", "up0"];
    let features = |backend: &tests::Proc| {
        backend.wait_log("ready", START)?;
        let mut commands = wait_for("the control socket", START, || {
            UnixStream::connect(&control)
        })?;
        commands.set_read_timeout(Some(PATIENCE))?;
        let port =
            json!({"op": "add-port", "name": "a", "socket": "a.sock", "mac": "52:54:00:00:00:0a"});
        done(&mut commands, &port)?;
        let mut frontend = UnixStream::connect(ns.scratch().join("a.sock"))?;
        frontend.set_read_timeout(Some(PATIENCE))?;
        frontend.write_all(GET_FEATURES.map(u32::to_le_bytes).as_flattened())?;
        let mut answer = [0; 20];
        frontend.read_exact(&mut answer)?;
        let (_, features) = answer.split_at(12);
        Ok::<_, anyhow::Error>(u64::from_le_bytes(features.try_into()?))
    };
    let all = GUEST_USO4 | GUEST_USO6 | HOST_USO;
    let mut backend = ns.spawn(&argv)?;
    let offered = features(&backend)?;
    backend.stop(PATIENCE)?;
    let old = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            forget_uso()?;
            ns.spawn(&argv)
        });
        thread.join().expect("no panic")
    })?;
    assert_eq!(offered & all, all, "this kernel has it");
    assert_eq!(features(&old)?, offered & !all);
    Ok(())
}

/// The words of a field of /proc/PID/status.
fn status(pid: u32, field: &str) -> anyhow::Result<Vec<String>> {
    let all = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = all.lines().find_map(|line| line.strip_prefix(field));
    let words = line.map(|line| line.split_whitespace().map(str::to_owned).collect());
    words.ok_or_else(|| anyhow::anyhow!("no {field} in {all}"))
}

#[test]
fn a_backend_that_serves_is_nobody_and_sees_only_its_sockets() -> anyhow::Result<()> {
    if !tool::ready("vhost_process::a_backend_that_serves_is_nobody", &["nft"]) {
        return Ok(());
    }
    let ns = Ns::new("vp-box")?;
    let netd = Netd::start(&ns)?;
    netd.json(&["port", "attach", "default", "web", "--kind", "vhost-user"])?;
    let folder = std::fs::read_dir(netd.run_dir().join("vhost"))?.next();
    let folder = folder.transpose()?.context("no backend")?.path();
    let control = UnixStream::connect(folder.join("control"))?;
    let peer = rustix::net::sockopt::socket_peercred(&control)?;
    let pid = peer.pid.as_raw_nonzero().get().cast_unsigned();
    let user = tests::process::host("id -u nobody")?;
    for field in ["Uid:", "Gid:"] {
        let ids = status(pid, field)?;
        assert!(ids.iter().all(|id| id == user.trim()), "{field} {ids:?}");
    }
    assert_eq!(status(pid, "Groups:")?, [""; 0]);
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(status(pid, set)?, ["0000000000000000"], "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs:")?, ["1"]);
    assert_eq!(status(pid, "Seccomp:")?, ["2"]);
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/root"))?, folder);
    // Its last port goes, and so does it: netd can end what is another user's.
    netd.vnet(&["port", "detach", "default", "web"])?;
    wait_for("its end", PATIENCE, || {
        let gone = !std::path::Path::new(&format!("/proc/{pid}")).exists();
        if gone { Ok(()) } else { Err("it lives") }
    })?;
    assert!(!folder.exists());
    Ok(())
}

#[test]
fn a_port_beyond_the_limit_of_files_is_refused_with_what_to_do() -> anyhow::Result<()> {
    if !tool::ready(
        "vhost_process::a_port_beyond_the_limit",
        &["nft", "prlimit"],
    ) {
        return Ok(());
    }
    let ns = Ns::new("vp-file")?;
    let netd = Netd::start(&ns)?;
    let id = netd.id().context("netd runs")?.to_string();
    ns.run(&["prlimit", "--pid", &id, "--nofile=280:280"])?
        .ok()?;
    let attach = |name| netd.try_vnet(&["port", "attach", "default", name, "--kind", "vhost-user"]);
    attach("one")?.ok()?;
    let refused = attach("two")?.refused()?;
    anyhow::ensure!(refused.contains("LimitNOFILE"), "{refused}");
    netd.vnet(&["port", "attach", "default", "tap"])?;
    Ok(())
}

#[test]
fn netd_tells_a_backend_only_what_changed() -> anyhow::Result<()> {
    if !tool::ready("vhost_process::netd_tells_a_backend_only", &["nft"]) {
        return Ok(());
    }
    let ns = Ns::new("vp-told")?;
    let netd = Netd::start(&ns)?;
    for name in ["a", "b", "c", "d"] {
        netd.vnet(&["port", "attach", "default", name, "--kind", "vhost-user"])?;
    }
    netd.vnet(&["port", "detach", "default", "c"])?;
    let told = netd.log().matches("on other terms").count();
    assert_eq!(told, 0, "{}", netd.log());
    let shown = netd.json(&["port", "show", "default", "a"])?;
    assert_eq!(shown["device"]["connected"], false, "{shown}");
    Ok(())
}

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/netd.service");

/// The capabilities that the unit leaves to netd, as setpriv wants them.
fn bounding_set() -> anyhow::Result<String> {
    let unit = std::fs::read_to_string(UNIT)?;
    let set = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let kept = set.context("no bounding set")?.split_whitespace();
    let kept = kept.map(|name| name.trim_start_matches("CAP_").to_lowercase());
    Ok(kept.fold("--bounding-set=-all".to_owned(), |all, name| {
        all + ",+" + &name
    }))
}

#[test]
fn what_the_unit_leaves_suffices_for_ports_of_every_kind_and_their_processes() -> anyhow::Result<()>
{
    if !tool::ready("vhost_process::what_the_unit_leaves", &["nft", "setpriv"]) {
        return Ok(());
    }
    let ns = Ns::new("vp-unit")?;
    let set = bounding_set()?;
    // Nothing that it needs may be written to: ProtectSystem=strict, but for the folder of this test.
    let strict = format!(
        "mount --bind {0} {0} && mount -o remount,bind,ro / && exec \"$@\"",
        std::env::temp_dir().display()
    );
    let calls = [env!("CARGO_BIN_EXE_under_unit"), UNIT];
    let under = [
        &[
            "unshare",
            "--mount",
            "sh",
            "-c",
            &strict,
            "sh",
            "setpriv",
            &set,
            "--no-new-privs",
        ],
        &calls[..],
    ];
    let mut netd = Netd::start_under(&ns, &under.concat())?;
    for kind in ["vhost-user", "tap-fd"] {
        netd.vnet(&[
            "port", "attach", "default", kind, "--kind", kind, "--owner", "nobody",
        ])?;
    }
    let machine = tests::Machine::plug(&netd, "default", "near", &[])?;
    machine.lease()?;
    machine.finds(
        "192.168.122.1",
        &["near.default.internal"],
        &machine.address()?.to_string(),
    )?;
    // A backend that was killed has a successor, which a netd that comes again adopts, and ends in the end.
    let before = tests::vhost::backend(&netd)?;
    ns.run(&["kill", "-9", &before.to_string()])?.ok()?;
    let next = wait_for("the next process", PATIENCE, || {
        let now = tests::vhost::backend(&netd)?;
        anyhow::ensure!(now != before, "it is still {before}");
        Ok(now)
    })?;
    let user = tests::process::host("id -u nobody")?;
    assert!(status(next, "Uid:")?.iter().all(|id| id == user.trim()));
    // Without the right to it, it would go on and only be less closed in.
    let root = std::fs::read_link(format!("/proc/{next}/root"))?;
    assert!(root.starts_with(netd.run_dir()), "{}", root.display());
    netd.restart()?;
    assert_eq!(tests::vhost::backend(&netd)?, next);
    netd.vnet(&["port", "detach", "default", "vhost-user"])?;
    wait_for("its end", PATIENCE, || {
        let gone = !std::path::Path::new(&format!("/proc/{next}")).exists();
        if gone { Ok(()) } else { Err("it lives") }
    })?;
    // What it was left with is what the unit says.
    let pid = netd.id().context("netd runs")?;
    assert_eq!(status(pid, "Seccomp:")?, ["2"]);
    assert_ne!(
        status(pid, "CapBnd:")?,
        status(std::process::id(), "CapBnd:")?
    );
    Ok(())
}
