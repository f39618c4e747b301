//! Signals as an fd.
#![allow(
    unsafe_code,
    reason = "signalfd has no safe wrapper among our dependencies"
)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Blocks SIGTERM and SIGINT and returns an fd that becomes readable when one comes.
///
/// # Errors
/// When the kernel refuses.
pub fn stop() -> io::Result<OwnedFd> {
    // SAFETY: an empty set is valid before sigemptyset, which then writes it; the others read and write it.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fresh from signalfd, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
