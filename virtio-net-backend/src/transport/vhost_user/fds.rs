//! What an fd from a frontend must be before it is used.
//!
//! A frontend is less dangerous than its guest, but one process serves many of them: an fd must not be able to make
//! the worker wait (a pipe, a file on a network or FUSE mount). What an fd is can be asked in ways that its file system
//! does not hear of; those come first.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{fcntl_get_seals, fstat, fstatfs};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

use super::bell;
use super::foreign::Foreign;

/// File system of huge pages (`HUGETLBFS_MAGIC`); the size of its blocks is that of its pages.
const HUGETLB_FS: u64 = 0x9584_58f6;

/// An fd for kicks or interrupts: an eventfd.
///
/// # Errors
/// When it is none.
pub fn event(fd: Foreign) -> io::Result<OwnedFd> {
    fd.checked(|fd| bell::check(fd.as_fd()))
}

/// An fd for requests to the frontend: a socket between processes of this machine.
///
/// # Errors
/// When it is none.
pub fn socket(fd: Foreign) -> io::Result<OwnedFd> {
    fd.checked(|fd| match socket_domain(fd) {
        Ok(AddressFamily::UNIX) => Ok(()),
        _ => Err(invalid("not a unix socket")),
    })
}

/// An fd for shared memory: memfd, tmpfs or hugetlbfs (they alone know seals), at least `end` bytes long.
///
/// Huge pages can be mapped, and put zeroes over when they are gone, by whole pages only.
///
/// # Errors
/// When it is none or too short, or not cut by its pages.
pub fn memory(fd: Foreign, offset: u64, end: u64) -> io::Result<OwnedFd> {
    let is_memory = |fd: &OwnedFd| match fcntl_get_seals(fd) {
        Ok(_) => Ok(()),
        Err(_) => Err(invalid("not shared memory")),
    };
    let fd = fd.checked(is_memory)?;
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
    Ok(fd)
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    #[test]
    fn an_eventfd_is_taken_and_a_pipe_is_not() {
        let fd = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
        let fd = event(fd.into()).expect("accepted");
        let mut count = [0; 8];
        let read = rustix::io::read(&fd, &mut count);
        assert_eq!(read, Err(rustix::io::Errno::AGAIN), "it was not signalled");
        let (_reader, writer) = rustix::pipe::pipe().expect("pipe");
        assert!(event(writer.into()).is_err());
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
        assert!(event(epoll.expect("epoll").into()).is_err());
    }

    #[test]
    fn a_channel_is_a_unix_socket() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(socket(OwnedFd::from(ours).into()).is_ok());
        let internet = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        assert!(socket(OwnedFd::from(internet).into()).is_err());
        let (_reader, writer) = rustix::pipe::pipe().expect("pipe");
        assert!(socket(writer.into()).is_err());
    }

    #[test]
    fn memory_is_shared_memory_of_the_right_length() {
        let fd = memfd_create("t", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, 8192).expect("length");
        let copy = || fd.try_clone().expect("a copy").into();
        assert!(memory(copy(), 100, 8192).is_ok());
        assert!(memory(copy(), 0, 8193).is_err());
        let (reader, _writer) = rustix::pipe::pipe().expect("pipe");
        assert!(memory(reader.into(), 0, 0).is_err());
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
        let copy = || fd.try_clone().expect("a copy").into();
        assert!(memory(copy(), page, 2 * page).is_ok());
        assert!(memory(copy(), 0, page + 4096).is_err());
        assert!(memory(copy(), 4096, page).is_err());
    }
}
