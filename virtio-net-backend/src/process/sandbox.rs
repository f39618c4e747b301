//! Closing the door: the directory of the sockets becomes the whole file system, the process another user's, capabilities
//! go, and a seccomp filter leaves the system calls that the data plane, vhost-user and the control socket need. No call
//! that opens a file is among them, none that makes memory executable, and signals go to this process alone.
#![allow(
    unsafe_code,
    reason = "prctl and capset have no safe wrapper among our dependencies"
)]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::port::batch::ENTER_REGISTERED;

/// Gives up everything that is not needed any more. Sockets are found by their file names in `directory` from here on.
///
/// The process becomes `user`, when one is given: then names in `directory` can be made and removed only if it is that
/// user's, so sockets must come as open files. Without the right to change the root directory or the user (not started as
/// root) those parts are left out; the filter stands in any case.
///
/// # Errors
/// When the directory is not there or the kernel has no seccomp.
pub fn enter(directory: &Path, user: Option<u32>) -> io::Result<()> {
    enter_directory(directory)?;
    match rustix::process::chroot(".") {
        Ok(()) => rustix::process::chdir("/")?,
        Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match user.map(become_user) {
        Some(Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL)) => {
            tracing::warn!(user, "it cannot become that user and stays who it is");
        }
        Some(Err(error)) => return Err(error.into()),
        Some(Ok(())) | None => {}
    }
    drop_capabilities()?;
    // SAFETY: a flag of this process, no memory is touched.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    seccompiler::apply_filter(&filter().map_err(io::Error::other)?).map_err(io::Error::other)
}

/// Only the part of [`enter`] on which file names depend.
///
/// # Errors
/// When the directory is not there.
pub fn enter_directory(directory: &Path) -> io::Result<()> {
    let here = directory.as_os_str().is_empty();
    Ok(rustix::process::chdir(if here {
        Path::new(".")
    } else {
        directory
    })?)
}

/// Also the group of that number, and no other. There is one thread.
fn become_user(user: u32) -> rustix::io::Result<()> {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Empties the three capability sets: a root without them is a user who owns root's files, which cannot be opened.
fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let sets = [[0u32; 3]; 2];
    // SAFETY: both structures are laid out as capset(2) wants them for version 3, and only read.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// System calls that are allowed with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // frames and kicks
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_ctl,
    // frontends and control connections
    #[cfg(target_arch = "x86_64")]
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_ppoll,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_connect,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_close,
    // guest memory, logs, memory for chains in flight
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    // the runtime
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

fn filter() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(
        libc::SYS_socket,
        vec![is(0, libc::AF_UNIX.cast_unsigned().into())?],
    );
    // A panic ends the process by a signal to itself.
    let us = std::process::id().into();
    rules.insert(libc::SYS_tgkill, vec![is(0, us)?]);
    rules.insert(libc::SYS_io_uring_enter, vec![registered_ring()?]);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![never_executable()?]);
    }
    let ioctls = [
        libc::TUNSETOFFLOAD,
        libc::TUNGETIFF,
        // a new tap for the uplink, opened by who commands us
        libc::TUNSETVNETHDRSZ,
        libc::TUNSETVNETLE,
        libc::FIONBIO,
    ];
    let ioctls = ioctls
        .iter()
        .map(|code| is(1, *code))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_ioctl, ioctls);
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture)?;
    Ok(filter.try_into()?)
}

/// The argument with this number has this value.
fn is(argument: u8, value: u64) -> Result<SeccompRule, seccompiler::Error> {
    let condition =
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// The fourth argument has the flag for a ring that this thread registered. None can be registered any more, so a ring
/// that came from a frontend, with leave to open files in our name, is never entered.
fn registered_ring() -> Result<SeccompRule, seccompiler::Error> {
    let flag = u64::from(ENTER_REGISTERED);
    let has = SeccompCmpOp::MaskedEq(flag);
    let condition = SeccompCondition::new(3, SeccompCmpArgLen::Dword, has, flag)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// The third argument, which says what memory is for, lacks that.
fn never_executable() -> Result<SeccompRule, seccompiler::Error> {
    let mask = libc::PROT_EXEC.cast_unsigned().into();
    let lacks = SeccompCmpOp::MaskedEq(mask);
    let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, lacks, 0)?;
    Ok(SeccompRule::new(vec![condition])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filtered_thread_opens_no_file_and_still_talks() {
        let outcome = std::thread::spawn(|| {
            seccompiler::apply_filter(&filter().expect("compiled")).expect("applied");
            let pair = rustix::pipe::pipe();
            let opened = std::fs::File::open("/dev/null");
            let socket = std::os::unix::net::UnixDatagram::unbound();
            let internet = std::net::UdpSocket::bind("127.0.0.1:0");
            (
                pair.is_err(),
                opened.is_err(),
                socket.is_ok(),
                internet.is_err(),
            )
        });
        assert_eq!(outcome.join().expect("ran"), (true, true, true, true));
    }

    #[test]
    fn a_filtered_thread_keeps_its_ring_and_enters_no_other() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, recv, socketpair};

        use crate::device::{Frame, header::HEADER_LEN};
        use crate::port::{Batch, Tap};

        let outcome = std::thread::spawn(|| {
            let mut batch = Batch::new();
            if !batch.has_ring() {
                eprintln!("skipped: no io_uring here");
                return None;
            }
            let foreign = io_uring::IoUring::new(4).expect("a ring");
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let pair = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
            let (ours, theirs) = pair.expect("a pair");
            let mut tap = Tap::pretended(ours);
            seccompiler::apply_filter(&filter().expect("compiled")).expect("applied");
            let linear = [0; HEADER_LEN + 60];
            for _ in 0..3 {
                batch.send(&mut tap, &Frame::new(&linear).expect("whole"));
            }
            batch.flush(&mut tap);
            let mut into = [0; 100];
            let came = (0..4)
                .filter(|_| recv(&theirs, &mut into, rustix::net::RecvFlags::empty()).is_ok());
            let refused = |done: std::io::Result<usize>| {
                done.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
            };
            Some((
                came.count(),
                batch.has_ring(),
                refused(foreign.submit()),
                refused(foreign.submitter().register_files(&[0]).map(|()| 0)),
                refused(io_uring::IoUring::new(4).map(|_| 0)),
            ))
        });
        let told = outcome.join().expect("ran");
        assert!(
            told.is_none_or(|told| told == (3, true, true, true, true)),
            "{told:?}"
        );
    }

    #[test]
    fn a_filtered_thread_makes_nothing_executable_and_signals_nobody_else() {
        let map = |protection| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a fresh anonymous mapping, which nobody uses.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
            at != libc::MAP_FAILED
        };
        let parent = rustix::process::getppid().map_or(1, rustix::process::Pid::as_raw_pid);
        let outcome = std::thread::spawn(move || {
            // SAFETY: signal 0 asks whether it could be sent, and sends nothing.
            let may_signal =
                |pid: i32| unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, 0) } == 0;
            let before = may_signal(parent);
            seccompiler::apply_filter(&filter().expect("compiled")).expect("applied");
            let us = rustix::process::getpid().as_raw_pid();
            (
                before,
                may_signal(parent),
                may_signal(us),
                map(libc::PROT_READ),
                map(libc::PROT_READ | libc::PROT_EXEC),
            )
        });
        let told = outcome.join().expect("ran");
        assert_eq!(told, (true, false, true, true, false));
    }
}
