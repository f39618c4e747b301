//! What an fd from a frontend must be before it is used.
//!
//! A frontend is less dangerous than its guest, but one process serves many of them: an fd must not be able to make
//! the worker wait (a pipe, a file on a network or FUSE mount).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_get_seals, fcntl_getfl, fcntl_setfl, fstat, fstatfs};

/// File system of eventfds (`ANON_INODE_FS_MAGIC`).
const ANON_INODE_FS: u64 = 0x0904_1934;
/// File system of huge pages (`HUGETLBFS_MAGIC`); the size of its blocks is that of its pages.
const HUGETLB_FS: u64 = 0x9584_58f6;

/// An fd for kicks or interrupts: an eventfd, made non-blocking.
///
/// Timers, epoll sets and many more are of the same file system, and the sandbox hides /proc, which has their names. But
/// of them all only an eventfd can be written a zero of eight bytes, which adds nothing.
///
/// # Errors
/// When it is none.
pub fn event(fd: OwnedFd) -> io::Result<OwnedFd> {
    let none = || io::Error::new(io::ErrorKind::InvalidInput, "not an eventfd");
    let kind = fstatfs(&fd)?.f_type;
    if kind.cast_unsigned() != ANON_INODE_FS {
        return Err(none());
    }
    let flags = fcntl_getfl(&fd)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
    match rustix::io::write(&fd, &0u64.to_ne_bytes()) {
        Ok(8) => Ok(fd),
        _ => Err(none()),
    }
}

/// An fd for shared memory: memfd, tmpfs or hugetlbfs (they alone know seals), at least `end` bytes long.
///
/// Huge pages can be mapped, and put zeroes over when they are gone, by whole pages only.
///
/// # Errors
/// When it is none or too short, or not cut by its pages.
pub fn memory(fd: impl AsFd, offset: u64, end: u64) -> io::Result<()> {
    let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
    fcntl_get_seals(&fd).map_err(|_| invalid("not shared memory"))?;
    let len = u64::try_from(fstat(&fd)?.st_size).unwrap_or(0);
    if len < end {
        return Err(invalid("shorter than the region"));
    }
    let files = fstatfs(&fd)?;
    let page = u64::try_from(files.f_bsize).unwrap_or(0);
    let huge = files.f_type.cast_unsigned() == HUGETLB_FS;
    if huge && !(offset.is_multiple_of(page) && end.is_multiple_of(page)) {
        return Err(invalid("not cut by its huge pages"));
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
        let mut count = [0; 8];
        let read = rustix::io::read(&fd, &mut count);
        assert_eq!(read, Err(rustix::io::Errno::AGAIN), "it was not signalled");
        let (_reader, writer) = rustix::pipe::pipe().expect("pipe");
        assert!(event(writer).is_err());
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        assert!(event(epoll.expect("epoll")).is_err());
        let full = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("filled");
        assert!(
            event(full).is_ok(),
            "a full counter takes no one, but a zero"
        );
    }

    #[test]
    fn memory_is_shared_memory_of_the_right_length() {
        let fd = memfd_create("t", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, 8192).expect("length");
        assert!(memory(&fd, 100, 8192).is_ok());
        assert!(memory(&fd, 0, 8193).is_err());
        let (reader, _writer) = rustix::pipe::pipe().expect("pipe");
        assert!(memory(&reader, 0, 0).is_err());
    }

    #[test]
    fn huge_pages_are_taken_whole() {
        // An empty file of huge pages needs none of them, on any machine.
        let Ok(fd) = memfd_create("t", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB) else {
            eprintln!("SKIP huge_pages_are_taken_whole: this kernel has none");
            return;
        };
        let page = u64::try_from(fstatfs(&fd).expect("a file system").f_bsize).expect("a size");
        ftruncate(&fd, 2 * page).expect("length");
        assert!(memory(&fd, page, 2 * page).is_ok());
        assert!(memory(&fd, 0, page + 4096).is_err());
        assert!(memory(&fd, 4096, page).is_err());
    }
}
