//! The one place that changes what a thread or a child *is*: its network namespace, its mounts, its inherited files.
#![allow(unsafe_code, reason = "unshare and pre_exec have no safe form")]

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Moves the calling thread into the network namespace at `netns`, with mounts of its own: a fresh /sys, and each
/// `(source, target)` bound. Children started by the thread inherit both. For a thread that ends afterwards.
pub(crate) fn become_resident(netns: &Path, binds: &[(PathBuf, PathBuf)]) -> anyhow::Result<()> {
    let file = File::open(netns).with_context(|| format!("no namespace at {}", netns.display()))?;
    move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(LinkNameSpaceType::Network),
    )
    .context("cannot enter the namespace")?;
    // SAFETY: NEWNS (and the FS that it implies) only separates this thread's mounts and working folder from those
    // of the other threads; no file descriptor table is split, which is what makes unshare unsafe.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("cannot have mounts of our own")?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("cannot make the mounts private")?;
    // As `ip netns exec` does: /sys/class/net of this namespace. A user namespace may refuse it; netlink still works.
    let _ = mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None);
    for (source, target) in binds {
        let target = fs::canonicalize(target).unwrap_or_else(|_| target.clone());
        mount_bind(source, &target)
            .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))?;
    }
    Ok(())
}

/// Lets the child keep `fd` under its number. In the parent it stays close-on-exec, so no other child gets it.
pub(crate) fn inherit(command: &mut Command, fd: OwnedFd) {
    // SAFETY: between fork and exec only one fcntl on a descriptor that the closure owns: async-signal-safe, no
    // allocation, no lock.
    unsafe {
        command.pre_exec(move || {
            let cleared = libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0);
            if cleared == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}
