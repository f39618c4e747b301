//! Rings an eventfd that somebody else has too, without ever waiting for it.
//!
//! A write to an eventfd waits while its counter is full, unless the open file says that it must not: and who shares the
//! open file can fill the one and change the other at any moment. The kernel's asynchronous I/O rings an eventfd when an
//! operation has ended. That never waits, never asks the file what it wants, and takes nothing but an eventfd. So an
//! operation that is over at once rings, and one that cannot begin tells what a file is.
//!
//! A kernel without asynchronous I/O, or with none left for us, rings by a write to a file that was told not to wait.
#![allow(
    unsafe_code,
    reason = "asynchronous I/O has no safe wrapper among our dependencies; one step a function"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Operations whose ends nobody has fetched yet; the kernel keeps them until then.
const MOST: u32 = 32;
/// `IOCB_CMD_PREAD` and `IOCB_CMD_POLL`.
const READ: u16 = 0;
const POLL: u16 = 5;
/// `IOCB_FLAG_RESFD`: ring the eventfd in the last field.
const RING: u32 = 1;

/// `struct iocb`; the two fields after the first change places with the order of bytes, and are zero.
#[repr(C)]
#[derive(Default)]
struct Operation {
    data: u64,
    key_and_flags: [u32; 2],
    code: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    bell: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct End {
    _data: u64,
    _operation: u64,
    _results: [i64; 2],
}

/// This process' way to the kernel.
struct Ringer {
    context: libc::c_ulong,
    /// Can be written at any time, and not be read at all.
    nowhere: File,
    /// Since ends were fetched.
    rung: AtomicU32,
}

static RINGER: OnceLock<Option<Ringer>> = OnceLock::new();

/// Gets ready for a sandbox that opens no file; without one nobody has to.
pub fn prepare() {
    ringer();
}

fn ringer() -> Option<&'static Ringer> {
    let new = || match Ringer::new() {
        Ok(ringer) => Some(ringer),
        Err(error) => {
            tracing::warn!(%error, "no asynchronous I/O: a frontend that misuses its own eventfd can make all wait");
            None
        }
    };
    RINGER.get_or_init(new).as_ref()
}

/// Makes sure that a file is an eventfd, and can be rung. It is not rung by that.
///
/// # Errors
/// When it is none.
pub(super) fn check(fd: BorrowedFd<'_>) -> io::Result<()> {
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "not an eventfd");
    match ringer() {
        Some(ringer) => ringer.is_bell(fd).then_some(()).ok_or_else(none),
        None => {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
            // Of all files only an eventfd takes a zero of eight bytes, which adds nothing.
            let wrote = rustix::io::write(fd, &0u64.to_ne_bytes());
            wrote
                .is_ok_and(|len| len == 8)
                .then_some(())
                .ok_or_else(none)
        }
    }
}

/// Adds one to an eventfd. One whose counter is full can be read already: nobody misses that.
pub fn ring(fd: impl AsFd) {
    let fd = fd.as_fd();
    match ringer() {
        Some(ringer) => ringer.ring(fd),
        None => drop(rustix::io::write(fd, &1u64.to_ne_bytes())),
    }
}

impl Ringer {
    fn new() -> io::Result<Self> {
        let nowhere = OpenOptions::new().write(true).open("/dev/null")?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one number to where it is told.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, MOST, &raw mut context) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            context,
            nowhere,
            rung: AtomicU32::new(0),
        })
    }

    /// Asks for what cannot be, for another reason than that this is no eventfd.
    fn is_bell(&self, fd: BorrowedFd<'_>) -> bool {
        let told = self.submit(READ, 0, fd);
        told.is_err_and(|error| error.raw_os_error() == Some(libc::EBADF))
    }

    fn ring(&self, fd: BorrowedFd<'_>) {
        // Nowhere can always be written to: over at once.
        let can_write = libc::POLLOUT.cast_unsigned().into();
        // What it was checked to be it stays.
        drop(self.submit(POLL, can_write, fd));
        if self
            .rung
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(MOST / 2)
        {
            self.fetch();
        }
    }

    /// Once more if the kernel keeps too many ends for us: that says nothing of the file.
    fn submit(&self, code: u16, buffer: u64, bell: BorrowedFd<'_>) -> io::Result<()> {
        match self.submit_once(code, buffer, bell) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.fetch();
                self.submit_once(code, buffer, bell)
            }
            told => told,
        }
    }

    fn submit_once(&self, code: u16, buffer: u64, bell: BorrowedFd<'_>) -> io::Result<()> {
        let operation = Operation {
            code,
            file: self.nowhere.as_raw_fd().cast_unsigned(),
            buffer,
            flags: RING,
            bell: bell.as_raw_fd().cast_unsigned(),
            ..Operation::default()
        };
        let all = [&raw const operation];
        // SAFETY: one operation, read by the call and not after it; its buffer is no address (POLL) or of no length.
        match unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, all.as_ptr()) } {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Lets the kernel forget what has ended.
    fn fetch(&self) {
        let mut ends = [End::default(); MOST as usize];
        let at_once = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the kernel writes at most as many as there is room for.
        let fetched = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                ends.len(),
                ends.as_mut_ptr(),
                &raw const at_once,
            )
        };
        debug_assert!(fetched >= 0, "{}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn count(fd: impl AsFd) -> u64 {
        let mut count = [0; 8];
        let read = rustix::io::read(fd, &mut count);
        read.map_or(0, |_| u64::from_ne_bytes(count))
    }

    #[test]
    fn each_ring_counts_however_many() {
        let fd = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
        check(fd.as_fd()).expect("an eventfd");
        assert_eq!(count(&fd), 0, "looking does not ring");
        for _ in 0..10_000 {
            ring(&fd);
        }
        assert_eq!(count(&fd), 10_000);
    }

    #[test]
    fn a_full_one_that_would_wait_does_not_make_us_wait() {
        let fd = eventfd(0, EventfdFlags::empty()).expect("eventfd");
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).expect("filled");
        check(fd.as_fd()).expect("an eventfd");
        for _ in 0..100 {
            ring(&fd);
        }
        assert!(count(&fd) >= u64::MAX - 1);
    }

    #[test]
    fn nothing_else_is_a_bell() {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let null = File::open("/dev/null").expect("a file");
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        let all = [reader.as_fd(), writer.as_fd(), null.as_fd()];
        for fd in all.into_iter().chain([epoll.expect("epoll").as_fd()]) {
            assert!(check(fd).is_err());
        }
    }
}
