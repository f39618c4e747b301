//! Network namespaces, the links between them, and what runs inside.
//!
//! ```text
//! let (lan, wan) = (Ns::new("lan")?, Ns::new("wan")?);
//! lan.link("eth0", &wan, "eth0")?;
//! lan.ip("addr add 192.0.2.1/24 dev eth0")?;
//! lan.sh("ping -c1 -W1 192.0.2.2")?;
//! ```
//! A namespace owns the processes that were spawned in it and dies with them. Names are `vtPID-N-label`; what a killed
//! test run left behind is swept by the next one.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use crate::process::{self, PATIENCE, Proc, Ran};
use crate::{Scratch, enter};

const HOME: &str = "/run/netns";
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A network namespace of this test, removed on drop with all that runs in it.
#[derive(Debug)]
pub struct Ns {
    name: String,
    scratch: Scratch,
    binds: Mutex<Vec<(PathBuf, PathBuf)>>,
    logs: AtomicU32,
}

impl Ns {
    /// A new, empty namespace with `lo` up. The label is for people.
    pub fn new(label: &str) -> anyhow::Result<Self> {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let serial = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vt{}-{serial}-{label}", std::process::id());
        let scratch = Scratch::new(label)?;
        process::host(&format!("ip netns add {name}"))
            .context("namespaces need root (or a user namespace)")?;
        let ns = Self {
            name,
            scratch,
            binds: Mutex::default(),
            logs: AtomicU32::new(0),
        };
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Its name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A folder for files of this namespace's programs.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Where its handle is.
    #[must_use]
    pub fn handle(&self) -> PathBuf {
        Path::new(HOME).join(&self.name)
    }

    /// `ip ARGS` in this namespace, plain words.
    pub fn ip(&self, args: &str) -> anyhow::Result<String> {
        process::host(&format!("ip -n {} {args}", self.name))
    }

    /// A veth pair from `end` here to `other_end` there, both up.
    pub fn link(&self, end: &str, other: &Ns, other_end: &str) -> anyhow::Result<()> {
        self.ip(&format!(
            "link add {end} type veth peer name {other_end} netns {}",
            other.name
        ))?;
        self.ip(&format!("link set {end} up"))?;
        other.ip(&format!("link set {other_end} up"))?;
        Ok(())
    }

    /// Everything that starts in this namespace from now on sees `source` at `target` (a file on a file, a folder on
    /// a folder). The machine does not.
    pub fn bind(&self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) {
        self.binds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((source.into(), target.into()));
    }

    /// Gives the namespace an /etc/resolv.conf of its own. Called again, it changes that file in place, and what runs
    /// sees the change.
    pub fn resolv_conf(&self, content: &str) -> anyhow::Result<()> {
        let first = !self.scratch.join("resolv.conf").exists();
        let path = self.scratch.write("resolv.conf", content)?;
        if first {
            self.bind(path, "/etc/resolv.conf");
        }
        Ok(())
    }

    /// The processes that live in it.
    #[must_use]
    pub fn residents(&self) -> Vec<u32> {
        let handle = fs::metadata(self.handle());
        let pids = handle
            .map(|handle| residents(handle.ino()))
            .unwrap_or_default();
        pids.into_iter()
            .filter_map(|pid| u32::try_from(pid.as_raw_pid()).ok())
            .collect()
    }

    /// Runs `action` on a thread that lives in the namespace. Sockets opened there stay in it wherever they go.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let (handle, binds) = (
            self.handle(),
            self.binds
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        );
        thread::scope(|scope| {
            let worker =
                scope.spawn(move || enter::become_resident(&handle, &binds).map(|()| action()));
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a command in the namespace: program and arguments.
    pub fn run(&self, argv: &[&str]) -> anyhow::Result<Ran> {
        self.run_within(PATIENCE, argv)
    }

    /// The same with a deadline of the caller's.
    pub fn run_within(&self, deadline: Duration, argv: &[&str]) -> anyhow::Result<Ran> {
        self.run_command(command(argv)?, deadline)
    }

    /// The same for a command with an environment or files of its own.
    pub fn run_command(&self, command: Command, deadline: Duration) -> anyhow::Result<Ran> {
        self.enter(move || process::run(command, deadline))?
    }

    /// Runs a shell line and returns its standard output; failing is an error.
    pub fn sh(&self, line: &str) -> anyhow::Result<String> {
        self.run(&["sh", "-c", line])?.ok()
    }

    /// Starts a program that runs until the guard is dropped.
    pub fn spawn(&self, argv: &[&str]) -> anyhow::Result<Proc> {
        self.spawn_command(command(argv)?)
    }

    /// The same for a command with an environment or files of its own.
    pub fn spawn_command(&self, command: Command) -> anyhow::Result<Proc> {
        let serial = self.logs.fetch_add(1, Ordering::Relaxed);
        let program = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let log = self.scratch.join(&format!("{program}.{serial}.log"));
        self.enter(move || Proc::start(command, &log))?
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

fn command(argv: &[&str]) -> anyhow::Result<Command> {
    let (program, args) = argv
        .split_first()
        .ok_or_else(|| anyhow!("an empty command"))?;
    let mut command = Command::new(program);
    command.args(args);
    Ok(command)
}

/// Kills what still lives in the namespace (a daemon that forked away), then removes its name.
fn remove(name: &str) {
    if let Ok(handle) = fs::metadata(Path::new(HOME).join(name)) {
        for pid in residents(handle.ino()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = process::host(&format!("ip netns del {name}"));
}

/// The processes whose network namespace has this inode.
fn residents(inode: u64) -> Vec<rustix::process::Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            fs::metadata(entry.path().join("ns/net")).is_ok_and(|net| net.ino() == inode)
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(rustix::process::Pid::from_raw)
        .collect()
}

/// Removes the namespaces of test processes that are gone.
fn sweep() {
    let Ok(entries) = fs::read_dir(HOME) else {
        return;
    };
    for name in entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        let owner = name
            .strip_prefix("vt")
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(&name);
        }
    }
}
