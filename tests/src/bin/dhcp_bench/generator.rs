//! The generator is many machines in one process, and must not be the limit of what it measures.
//!
//! Two things that sixty thousand clients on machines of their own would not suffer are taken off it, alike whoever
//! answers: the usual receive buffer, which holds 160 answers for all of them together, and a malloc cache that is too
//! small for as many. (Tried and not kept: having what it sends handled on the server's core. On a virtual machine the
//! interrupt that hands a frame over costs both sides more than the frame.)

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context as _;
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tests::{Ns, Ran, wait_for};

const PROGRAM: &str = "perfdhcp";
/// Seconds that a run may take, five of load among them.
const DEADLINE: Duration = Duration::from_secs(60);
/// Room for all answers of a run that are late by half a second.
const BUFFER: usize = 32 << 20;

/// Runs it with these arguments among the clients.
pub(crate) fn run(clients: &Ns, arguments: &str) -> anyhow::Result<Ran> {
    // It takes and frees a lot: malloc's usual small cache costs it some microseconds an exchange.
    let line =
        format!("GLIBC_TUNABLES=glibc.malloc.tcache_count=2000 {PROGRAM} {arguments} 2>&1 || true");
    std::thread::scope(|scope| {
        let widened = scope.spawn(|| wait_for("its socket", DEADLINE / 10, || widen(clients)));
        let ran = clients.run_within(DEADLINE, &["sh", "-c", &line]);
        widened
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        ran
    })
}

/// Gives the sockets of the generator that runs in `clients` their buffer.
fn widen(clients: &Ns) -> anyhow::Result<()> {
    let is_it = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == PROGRAM)
    };
    let pid = clients.residents().into_iter().find(is_it);
    let pid = pid.context("not running yet")?;
    let sockets = sockets(pid)?;
    anyhow::ensure!(!sockets.is_empty(), "no socket yet");
    for socket in sockets {
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    }
    Ok(())
}

/// Another process's UDP sockets.
fn sockets(pid: u32) -> anyhow::Result<Vec<OwnedFd>> {
    let process = Pid::from_raw(i32::try_from(pid)?).context("a process")?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let is_socket = fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        if let (true, Some(number)) = (is_socket, entry.file_name().to_str()) {
            let number = number.parse()?;
            sockets.push(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?);
        }
    }
    Ok(sockets)
}
