//! The backend as a process, as the kernel sees it: what it can still do once it serves, and what it does on a kernel that
//! lacks something.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
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

/// What a frontend is offered over its connection.
fn offered(mut frontend: &UnixStream) -> anyhow::Result<u64> {
    frontend.set_read_timeout(Some(PATIENCE))?;
    frontend.write_all(GET_FEATURES.map(u32::to_le_bytes).as_flattened())?;
    let mut answer = [0; 20];
    frontend.read_exact(&mut answer)?;
    let (_, features) = answer.split_at(12);
    Ok(u64::from_le_bytes(features.try_into()?))
}

type Rules = Vec<(i64, Vec<SeccompRule>)>;

/// From here on this thread's kernel, and its children's, answers these calls so.
fn answer(rules: Rules, errno: i32) -> anyhow::Result<()> {
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
        std::env::consts::ARCH.try_into()?,
    )?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

/// Linux before 6.2 knows no USO.
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
    answer(vec![(libc::SYS_ioctl, rules)], libc::EINVAL)
}

/// Linux before 5.13 knows no Landlock.
fn forget_landlock() -> anyhow::Result<()> {
    answer(
        vec![(libc::SYS_landlock_create_ruleset, Vec::new())],
        libc::ENOSYS,
    )
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
        offered(&UnixStream::connect(ns.scratch().join("a.sock"))?)
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
        let gone = !Path::new(&format!("/proc/{pid}")).exists();
        if gone { Ok(()) } else { Err("it lives") }
    })?;
    assert!(!folder.exists());
    Ok(())
}

#[test]
fn a_backend_that_stands_still_is_replaced() -> anyhow::Result<()> {
    if !tool::ready("vhost_process::a_backend_that_stands_still", &["nft"]) {
        return Ok(());
    }
    let ns = Ns::new("vp-still")?;
    let netd = Netd::start(&ns)?;
    let attach = |name| netd.try_vnet(&["port", "attach", "default", name, "--kind", "vhost-user"]);
    attach("web")?;
    let before = tests::vhost::backend(&netd)?;
    tests::process::host(&format!("kill -STOP {before}"))?;
    attach("db")?;
    wait_for("a successor with both ports", PATIENCE, || {
        let now = tests::vhost::backend(&netd)?;
        anyhow::ensure!(now != before, "it is still {now}");
        for port in ["web", "db"] {
            let device = &netd.json(&["port", "show", "default", port])?["device"];
            anyhow::ensure!(device.is_object(), "{port}: {device}");
        }
        Ok(())
    })
}

/// A place for a backend that an ordinary user starts: a folder and a tap of his, and the program where he can reach it.
struct Place {
    ns: Ns,
    folder: PathBuf,
    program: PathBuf,
}

const ORDINARY: u32 = 65534;

impl Place {
    fn new(label: &str) -> anyhow::Result<Self> {
        let ns = Ns::new(label)?;
        let folder = ns.scratch().join("his");
        std::fs::create_dir(&folder)?;
        std::os::unix::fs::chown(&folder, Some(ORDINARY), Some(ORDINARY))?;
        ns.ip(&format!(
            "tuntap add tap0 mode tap user {ORDINARY} vnet_hdr"
        ))?;
        ns.ip("link set tap0 up")?;
        let program = ns.scratch().script("backend", "")?;
        ns.bind(binary("virtio-net-backend")?, &program);
        Ok(Self {
            ns,
            folder,
            program,
        })
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A backend that serves, with the socket of that name.
    fn start(&self, option: &str, name: &str, more: &[&str]) -> anyhow::Result<tests::Proc> {
        let (program, socket) = (
            self.program.display().to_string(),
            self.socket(name).display().to_string(),
        );
        let user = format!("setpriv --reuid={ORDINARY} --regid={ORDINARY} --clear-groups");
        let mut argv: Vec<_> = user.split(' ').collect();
        argv.extend([&program, option, &socket, "--tap", "tap0"]);
        argv.extend(more);
        let backend = self.ns.spawn(&argv)?;
        backend.wait_log("ready", START)?;
        Ok(backend)
    }
}

/// Each thread, as most of a sandbox counts for one only, and nothing to be gained by what it might run.
fn assert_confined(backend: &tests::Proc) -> anyhow::Result<()> {
    let user = ORDINARY.to_string();
    for thread in std::fs::read_dir(format!("/proc/{}/task", backend.id()))? {
        let thread = thread?.file_name().to_string_lossy().parse()?;
        assert!(status(thread, "Uid:")?.iter().all(|id| *id == user));
        assert_eq!(status(thread, "CapEff:")?, ["0000000000000000"]);
        assert_eq!(status(thread, "NoNewPrivs:")?, ["1"]);
        assert_eq!(status(thread, "Seccomp:")?, ["2"]);
        assert_eq!(status(thread, "Threads:")?, ["2"]);
    }
    Ok(())
}

#[test]
fn an_ordinary_user_s_backend_listens_and_removes_its_socket() -> anyhow::Result<()> {
    if !tool::ready(
        "vhost_process::an_ordinary_user_s_backend_listens",
        &["setpriv"],
    ) {
        return Ok(());
    }
    let place = Place::new("vp-listen")?;
    let mut backend = place.start("--socket", "net.sock", &[])?;
    assert_confined(&backend)?;
    for _ in 0..2 {
        offered(&UnixStream::connect(place.socket("net.sock"))?)?;
    }
    assert!(backend.stop(PATIENCE)?.success());
    assert!(!place.socket("net.sock").exists());
    Ok(())
}

/// A VMM that listens, and what its backends offer.
struct Vmm(UnixListener);

impl Vmm {
    fn listen(path: &Path) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(path)?;
        std::os::unix::fs::chown(path, Some(ORDINARY), None)?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    fn next(&self) -> anyhow::Result<u64> {
        let (frontend, _) = wait_for("the backend", PATIENCE, || self.0.accept())?;
        frontend.set_nonblocking(false)?;
        offered(&frontend)
    }
}

#[test]
fn an_ordinary_user_s_backend_connects_again_and_again() -> anyhow::Result<()> {
    if !tool::ready(
        "vhost_process::an_ordinary_user_s_backend_connects",
        &["setpriv"],
    ) {
        return Ok(());
    }
    let place = Place::new("vp-knock")?;
    let vmm = Vmm::listen(&place.socket("vmm.sock"))?;
    let mut backend = place.start("--connect", "vmm.sock", &[])?;
    assert_confined(&backend)?;
    vmm.next()?;
    vmm.next()?;
    assert!(backend.stop(PATIENCE)?.success());
    Ok(())
}

#[test]
fn an_ordinary_user_s_network_has_ports_of_either_kind() -> anyhow::Result<()> {
    if !tool::ready("vhost_process::an_ordinary_user_s_network", &["setpriv"]) {
        return Ok(());
    }
    let place = Place::new("vp-ports")?;
    let mut backend = place.start("--control", "control", &[])?;
    assert_confined(&backend)?;
    let mut commands = UnixStream::connect(place.socket("control"))?;
    commands.set_read_timeout(Some(PATIENCE))?;
    let mac = "52:54:00:00:00:0a";
    for _ in 0..2 {
        let port = json!({ "op": "add-port", "name": "a", "socket": "a.sock", "mac": mac });
        done(&mut commands, &port)?;
        offered(&UnixStream::connect(place.socket("a.sock"))?)?;
        done(&mut commands, &json!({ "op": "remove-port", "name": "a" }))?;
        assert!(!place.socket("a.sock").exists());
    }
    let vmm = Vmm::listen(&place.socket("vmm.sock"))?;
    let port = json!({ "op": "add-port", "name": "b", "connect": "vmm.sock", "mac": mac });
    done(&mut commands, &port)?;
    vmm.next()?;
    assert!(backend.stop(PATIENCE)?.success());
    assert!(!place.socket("control").exists());
    Ok(())
}

#[test]
fn a_backend_that_is_given_its_sockets_makes_none() -> anyhow::Result<()> {
    if !tool::ready(
        "vhost_process::a_backend_that_is_given_its_sockets",
        &["setpriv"],
    ) {
        return Ok(());
    }
    let place = Place::new("vp-given")?;
    let user = ORDINARY.to_string();
    let backend = place.start("--control", "control", &["--user", &user])?;
    assert_confined(&backend)?;
    let mut commands = UnixStream::connect(place.socket("control"))?;
    commands.set_read_timeout(Some(PATIENCE))?;
    for kind in ["socket", "connect"] {
        let port =
            json!({ "op": "add-port", "name": "a", kind: "a.sock", "mac": "52:54:00:00:00:0a" });
        let refused = done(&mut commands, &port).expect_err("a socket of its own");
        assert!(refused.to_string().contains("--user"), "{refused}");
    }
    assert!(!place.socket("a.sock").exists());
    Ok(())
}

#[test]
fn a_kernel_without_landlock_is_told_of_and_served_on() -> anyhow::Result<()> {
    if !tool::ready("vhost_process::a_kernel_without_landlock", &["setpriv"]) {
        return Ok(());
    }
    let place = Place::new("vp-old")?;
    let backend = place.start("--socket", "net.sock", &[])?;
    let told = "this kernel has no Landlock";
    let known = !backend.log().contains(told);
    drop(backend);
    let mut old = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            forget_landlock()?;
            place.start("--socket", "net.sock", &[])
        });
        thread.join().expect("no panic")
    })?;
    offered(&UnixStream::connect(place.socket("net.sock"))?)?;
    assert_eq!(old.log().matches(told).count(), 1, "{}", old.log());
    assert!(old.stop(PATIENCE)?.success());
    assert!(!place.socket("net.sock").exists());
    assert!(known, "this kernel has it");
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
        let gone = !Path::new(&format!("/proc/{next}")).exists();
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
