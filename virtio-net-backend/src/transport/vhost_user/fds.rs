//! What an fd from a frontend must be before it is used.
//!
//! A frontend is less dangerous than its guest, but one process serves many of them: an fd must not be able to make
//! the worker wait (a pipe, a file on a network or FUSE mount).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_get_seals, fcntl_getfl, fcntl_setfl, fstat, fstatfs};

/// File system of eventfds (`ANON_INODE_FS_MAGIC`).
const ANON_INODE_FS: u64 = 0x0904_1934;

/// An fd for kicks or interrupts: an eventfd, made non-blocking.
///
/// # Errors
/// When it is none.
pub fn event(fd: OwnedFd) -> io::Result<OwnedFd> {
    let kind = fstatfs(&fd)?.f_type;
    if kind.cast_unsigned() != ANON_INODE_FS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not an eventfd",
        ));
    }
    let flags = fcntl_getfl(&fd)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    Ok(fd)
}

/// An fd for shared memory: memfd, tmpfs or hugetlbfs (they alone know seals), at least `end` bytes long.
///
/// # Errors
/// When it is none or too short.
pub fn memory(fd: impl AsFd, end: u64) -> io::Result<()> {
    fcntl_get_seals(&fd)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not shared memory"))?;
    let len = u64::try_from(fstat(&fd)?.st_size).unwrap_or(0);
    if len < end {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "shorter than the region",
        ));
    }
    Ok(())
}

/// Adds one to an eventfd. When that fails the counter is full, and the other side has not yet looked: it will.
pub fn signal(fd: &OwnedFd) {
    // A lost wake-up is impossible here: EAGAIN means that the eventfd is readable already.
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    #[test]
    fn an_eventfd_is_taken_and_a_pipe_is_not() {
        let fd = event(eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd")).expect("accepted");
        assert!(fcntl_getfl(&fd).expect("flags").contains(OFlags::NONBLOCK));
        let (_reader, writer) = rustix::pipe::pipe().expect("pipe");
        assert!(event(writer).is_err());
    }

    #[test]
    fn memory_is_shared_memory_of_the_right_length() {
        let fd = memfd_create("t", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, 8192).expect("length");
        assert!(memory(&fd, 8192).is_ok());
        assert!(memory(&fd, 8193).is_err());
        let (reader, _writer) = rustix::pipe::pipe().expect("pipe");
        assert!(memory(&reader, 0).is_err());
    }
}
