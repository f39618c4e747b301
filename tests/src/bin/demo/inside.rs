//! Where the demo plays: namespaces for network, mounts and processes (and users, when we are not root), so that the
//! machine's network stays as it is and everything ends with the demo, even when it is killed.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, thread};

use anyhow::Context as _;
use rustix::mount::{MountFlags, mount};

/// Set for the second start, the one inside.
const INSIDE: &str = "VNET_DEMO_INSIDE";

/// Makes itself at home if we are inside; says whether we are.
pub(crate) fn enter() -> anyhow::Result<bool> {
    if std::env::var_os(INSIDE).is_none() {
        return Ok(false);
    }
    end_on_interrupt();
    // An own /run, for names of namespaces. /etc/resolv.conf is often a link into the old one: it must lead somewhere,
    // for the namespaces to put theirs there.
    let resolver =
        fs::canonicalize("/etc/resolv.conf").unwrap_or_else(|_| PathBuf::from("/etc/resolv.conf"));
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None)
        .context("cannot have a /run of our own")?;
    if resolver.starts_with("/run") {
        fs::create_dir_all(resolver.parent().unwrap_or(Path::new("/run")))?;
        fs::write(&resolver, "")?;
    }
    Ok(true)
}

/// Starts this program again, inside; its exit code.
pub(crate) fn again() -> anyhow::Result<u8> {
    let mut command = Command::new("unshare");
    if !tests::tool::root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    command.arg(std::env::current_exe()?).env(INSIDE, "1");
    // What it downloads and builds once is the user's, and is made while we still are that user.
    tests::image::image().context("the guests' kernel")?;
    let status = command
        .status()
        .context("unshare (package util-linux) is not installed")?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    if code == 1 && !tests::tool::root() && !namespaces_allowed() {
        anyhow::bail!("this host does not let users have namespaces; try `sudo make demo`");
    }
    Ok(u8::try_from(code).unwrap_or(1))
}

fn namespaces_allowed() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--user", "--map-root-user", "--net", "--mount", "true"]);
    probe.status().is_ok_and(|status| status.success())
}

/// The first process of a process namespace ignores Ctrl-C unless it asks for it.
fn end_on_interrupt() {
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        if runtime.is_ok_and(|runtime| runtime.block_on(tokio::signal::ctrl_c()).is_ok()) {
            std::process::exit(130);
        }
    });
}
