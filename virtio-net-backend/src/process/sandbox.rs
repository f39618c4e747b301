//! Closing the door: the directory of the sockets becomes the whole file system, the process another user's, capabilities
//! go, Landlock denies all that can be done with files, TCP, abstract sockets and others' signals, and a seccomp filter
//! leaves the system calls that the data plane, vhost-user and the control socket need. No call that opens a file is among
//! them, none that makes memory executable, and signals go to this process alone.
//!
//! Sockets are made, removed and connected to only where the process was started for that ([`Need`]); Landlock keeps the
//! former two to the directory. Not started as root, the process keeps its user and its root directory. What stays open to
//! one in the wrong hands is then:
//!
//! * where it removes: every file in the directory that its user could remove;
//! * where it connects: every socket that its user could connect to, for a filter sees no path, and Landlock has no such
//!   right before Linux 7.1;
//! * a datagram by `sendmsg` to such a socket, but only from a datagram socket that somebody hands it.
#![allow(
    unsafe_code,
    reason = "prctl and capset have no safe wrapper among our dependencies"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::port::batch::ENTER_REGISTERED;
use crate::transport::vhost_user::{bell, foreign};

/// Something that the process still does with names in the directory once it serves. From it follow what Landlock and the
/// filter leave, beyond what every process needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Makes sockets.
    Make,
    /// Removes them.
    Remove,
    /// Connects to them.
    Connect,
}

impl Need {
    fn calls(self) -> &'static [libc::c_long] {
        match self {
            Self::Make => &[libc::SYS_socket, libc::SYS_bind, libc::SYS_listen],
            Self::Remove => &[
                #[cfg(target_arch = "x86_64")]
                libc::SYS_unlink,
                libc::SYS_unlinkat,
            ],
            Self::Connect => &[libc::SYS_socket, libc::SYS_connect],
        }
    }

    fn access(self) -> BitFlags<AccessFs> {
        match self {
            Self::Make => AccessFs::MakeSock.into(),
            Self::Remove => AccessFs::RemoveFile.into(),
            Self::Connect => BitFlags::EMPTY,
        }
    }
}

/// Gives up everything but what all processes do and the `needs` of this one. Sockets are found by their file names in
/// `directory` from here on.
///
/// The process becomes `user`, when one is given. Without the right to change the root directory or the user (not started
/// as root) those parts are left out, on a kernel without it Landlock; the filter stands in any case.
///
/// # Errors
/// When the directory is not there or the kernel has no seccomp.
pub fn enter(directory: &Path, user: Option<u32>, needs: &[Need]) -> io::Result<()> {
    bell::prepare();
    enter_directory(directory)?;
    match rustix::process::chroot(".") {
        Ok(()) => rustix::process::chdir("/")?,
        Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    // SAFETY: a flag of this process, no memory is touched.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // While who we are may look into the directory.
    match restrict(Path::new("."), needs)? {
        RulesetStatus::FullyEnforced => {}
        RulesetStatus::PartiallyEnforced => {
            tracing::info!("this kernel has no more than a part of Landlock")
        }
        RulesetStatus::NotEnforced => {
            tracing::warn!("this kernel has no Landlock, only the system call filter guards files");
        }
    }
    match user.map(become_user) {
        Some(Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL)) => {
            tracing::warn!(user, "it cannot become that user and stays who it is");
        }
        Some(Err(error)) => return Err(error.into()),
        Some(Ok(())) | None => {}
    }
    drop_capabilities()?;
    // A thread, which gets no more rights than we have by now.
    foreign::prepare();
    let filter = filter(needs).map_err(io::Error::other)?;
    seccompiler::apply_filter_all_threads(&filter).map_err(io::Error::other)
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

/// Landlock: nothing is done with files but what the `needs` are, in `directory`. There is one thread.
fn restrict(directory: &Path, needs: &[Need]) -> io::Result<RulesetStatus> {
    // What newer kernels have beyond that was not tried.
    const KNOWN: ABI = ABI::V7;
    let rules = || {
        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::from_all(KNOWN))?
            .scope(Scope::from_all(KNOWN))?
            .create()?;
        let access = needs
            .iter()
            .fold(BitFlags::EMPTY, |all, need| all | need.access());
        if !access.is_empty() {
            rules = rules.add_rule(PathBeneath::new(PathFd::new(directory)?, access))?;
        }
        Ok(rules.restrict_self()?.ruleset)
    };
    rules().map_err(|error: Box<dyn Error + Send + Sync>| io::Error::other(error))
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

/// System calls that every process makes, with any arguments.
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
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_close,
    // interrupts
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
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

fn filter(needs: &[Need]) -> Result<BpfProgram, seccompiler::Error> {
    let needed = needs.iter().flat_map(|need| need.calls());
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = (ALLOWED.iter().chain(needed))
        .map(|call| (*call, Vec::new()))
        .collect();
    if let Some(any) = rules.get_mut(&libc::SYS_socket) {
        for flag in [0, libc::SOCK_NONBLOCK] {
            any.push(unix_stream(flag)?);
        }
    }
    rules.insert(libc::SYS_sendto, vec![to_peer()?]);
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

/// A stream between processes of this machine. A datagram would go anywhere without `connect`.
fn unix_stream(flag: libc::c_int) -> Result<SeccompRule, seccompiler::Error> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flag;
    let conditions = [(0, libc::AF_UNIX), (1, kind)].map(|(argument, value)| {
        let value = value.cast_unsigned().into();
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    });
    Ok(SeccompRule::new(
        conditions.into_iter().collect::<Result<_, _>>()?,
    )?)
}

/// The fifth argument names nobody: it goes where the socket is connected to.
fn to_peer() -> Result<SeccompRule, seccompiler::Error> {
    let nobody = SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    Ok(SeccompRule::new(vec![nobody])?)
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
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::path::PathBuf;

    use super::*;

    /// A folder with a socket that listens and a file, and the same beside it.
    struct Folders {
        here: PathBuf,
        _listeners: [UnixListener; 2],
    }

    impl Folders {
        fn new(name: &str) -> Self {
            let root = format!("vnb-{name}-{}", std::process::id());
            let here = std::env::temp_dir().join(root).join("here");
            let _listeners = [here.clone(), here.with_file_name("there")].map(|folder| {
                std::fs::create_dir_all(&folder).expect("a folder");
                std::fs::write(folder.join("file"), "old").expect("a file");
                UnixListener::bind(folder.join("socket")).expect("a socket")
            });
            Self { here, _listeners }
        }

        fn there(&self) -> PathBuf {
            self.here.with_file_name("there")
        }
    }

    impl Drop for Folders {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(self.here.parent().expect("a root")));
        }
    }

    /// Which of the needs can be met in a folder.
    fn met(folder: &Path) -> Vec<Need> {
        let made = UnixListener::bind(folder.join("new")).is_ok();
        let removed = std::fs::remove_file(folder.join("file")).is_ok();
        let connected = UnixStream::connect(folder.join("socket")).is_ok();
        let all = [
            (Need::Make, made),
            (Need::Remove, removed),
            (Need::Connect, connected),
        ];
        all.into_iter()
            .filter_map(|(need, is)| is.then_some(need))
            .collect()
    }

    const MODES: [&[Need]; 4] = [
        &[],
        &[Need::Remove],
        &[Need::Connect],
        &[Need::Make, Need::Remove, Need::Connect],
    ];

    #[test]
    fn a_thread_under_both_does_with_sockets_what_it_needs_and_elsewhere_only_connects() {
        for needs in MODES {
            let folders = Folders::new("needs");
            let outcome = std::thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    let status = restrict(&folders.here, needs).expect("restricted");
                    seccompiler::apply_filter(&filter(needs).expect("compiled")).expect("applied");
                    (status, met(&folders.here), met(&folders.there()))
                });
                thread.join().expect("ran")
            });
            let (status, here, there) = outcome;
            assert_eq!(here, needs);
            if status == RulesetStatus::NotEnforced {
                eprintln!("skipped: no Landlock here");
                continue;
            }
            let connects = needs.iter().filter(|need| **need == Need::Connect);
            assert!(there.iter().eq(connects), "{needs:?}: {there:?}");
        }
    }

    #[test]
    fn a_restricted_thread_touches_no_file_no_tcp_no_abstract_socket_and_no_other_process() {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::SocketAddr;

        let folders = Folders::new("files");
        let name =
            SocketAddr::from_abstract_name(folders.here.as_os_str().as_bytes()).expect("a name");
        let abstract_listener = UnixListener::bind_addr(&name).expect("a socket");
        let internet = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = internet.local_addr().expect("its address");
        let parent = rustix::process::getppid().expect("a parent");
        let attempts = || {
            let in_folder = |folder: &Path| {
                [
                    std::fs::read(folder.join("file")).is_ok(),
                    std::fs::read_dir(folder).is_ok(),
                    std::fs::write(folder.join("file"), "new").is_ok(),
                    std::fs::write(folder.join("other"), "new").is_ok(),
                    std::fs::create_dir(folder.join("folder")).is_ok(),
                    std::fs::rename(folder.join("file"), folder.join("renamed")).is_ok(),
                    std::os::unix::fs::symlink("file", folder.join("link")).is_ok(),
                ]
            };
            let beyond = [
                TcpListener::bind("127.0.0.1:0").is_ok(),
                TcpStream::connect(port).is_ok(),
                UnixStream::connect_addr(&name).is_ok(),
                rustix::process::test_kill_process(parent).is_ok(),
            ];
            (
                in_folder(&folders.here),
                in_folder(&folders.there()),
                beyond,
            )
        };
        let outcome = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let [.., all] = MODES;
                (
                    restrict(&folders.here, all).expect("restricted"),
                    attempts(),
                )
            });
            thread.join().expect("ran")
        });
        if outcome.0 != RulesetStatus::FullyEnforced {
            eprintln!("skipped: this kernel's Landlock is {:?}", outcome.0);
            return;
        }
        assert_eq!(outcome.1, ([false; 7], [false; 7], [false; 4]));
        // Without it all of that can be done, or the test shows nothing.
        assert_eq!(attempts(), ([true; 7], [true; 7], [true; 4]));
        drop((abstract_listener, internet));
    }

    #[test]
    fn a_filtered_thread_opens_no_file_and_still_talks() {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        let folders = Folders::new("talk");
        let mailbox = folders.here.join("mailbox");
        let letters = UnixDatagram::bind(&mailbox).expect("a socket");
        let outcome = std::thread::spawn(move || {
            let stray = UnixDatagram::unbound().expect("a socket");
            let needs = [Need::Connect];
            seccompiler::apply_filter(&filter(&needs).expect("compiled")).expect("applied");
            let pair = rustix::pipe::pipe();
            let opened = std::fs::File::open("/dev/null");
            let internet = std::net::UdpSocket::bind("127.0.0.1:0");
            let datagram = UnixDatagram::unbound();
            let refused = [
                pair.is_err(),
                opened.is_err(),
                internet.is_err(),
                datagram.is_err(),
                stray.send_to(b"x", mailbox).is_err(),
            ];
            (refused, ours.send(b"x").is_ok())
        });
        assert_eq!(outcome.join().expect("ran"), ([true; 5], true));
        drop((theirs, letters));
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
            seccompiler::apply_filter(&filter(&[]).expect("compiled")).expect("applied");
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
            seccompiler::apply_filter(&filter(&[]).expect("compiled")).expect("applied");
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
