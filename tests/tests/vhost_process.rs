//! The backend as a process, as the kernel sees it: what it can still do once it serves, and what it does on a kernel that
//! lacks something.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde_json::json;
use tests::daemon::binary;
use tests::process::PATIENCE;
use tests::{Ns, tool, wait_for};

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
    let rules = [libc::TUN_F_USO4, libc::TUN_F_USO6].map(u64::from).map(|bit| {
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
    Ok(seccompiler::apply_filter(&filter.try_into()?)?)
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
        let mut commands = wait_for("the control socket", START, || UnixStream::connect(&control))?;
        commands.set_read_timeout(Some(PATIENCE))?;
        let port = json!({"op": "add-port", "name": "a", "socket": "a.sock", "mac": "52:54:00:00:00:0a"});
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
