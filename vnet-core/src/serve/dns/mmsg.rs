#![allow(
    unsafe_code,
    reason = "recvmmsg and sendmmsg have no safe wrapper that takes many addresses; two syscalls, fenced here"
)]
//! Many datagrams with one system call: half of what a local answer costs is the way in and out of the kernel.

use std::io;
use std::net::{SocketAddr, SocketAddrV6};

use rustix::fd::{AsFd, AsRawFd};

/// How many datagrams go with one call.
pub(super) const BATCH: usize = 32;
const BATCH_U32: u32 = 32;
/// Larger than any query or answer we ask for (and cut longer ones off, which shows).
const SIZE: usize = 1536;

/// `AF_INET` and `AF_INET6` as a socket address holds them.
const V4: u16 = 2;
const V6: u16 = 10;

/// A socket address as the kernel writes it: large enough for both families, read without casts.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Address {
    bytes: [u8; 28],
    len: u32,
}

impl Address {
    const NONE: Self = Self {
        bytes: [0; 28],
        len: 0,
    };

    /// For the kernel to read.
    pub(super) fn of(address: SocketAddr) -> Self {
        let mut bytes = [0; 28];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let (family, len) = match address {
            SocketAddr::V4(v4) => {
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                (V4, 16)
            }
            SocketAddr::V6(v6) => {
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..].copy_from_slice(&v6.scope_id().to_ne_bytes());
                (V6, 28)
            }
        };
        bytes[..2].copy_from_slice(&family.to_ne_bytes());
        Self { bytes, len }
    }

    /// As the rest of the program knows it.
    pub(super) fn socket(&self) -> Option<SocketAddr> {
        let b = &self.bytes;
        let port = u16::from_be_bytes([b[2], b[3]]);
        match u16::from_ne_bytes([b[0], b[1]]) {
            V4 => {
                let ip = <[u8; 4]>::try_from(&b[4..8]).ok()?;
                Some(SocketAddr::new(ip.into(), port))
            }
            V6 => {
                let ip = <[u8; 16]>::try_from(&b[8..24]).ok()?;
                let scope = u32::from_ne_bytes([b[24], b[25], b[26], b[27]]);
                Some(SocketAddrV6::new(ip.into(), port, 0, scope).into())
            }
            _ => None,
        }
    }
}

/// Room for a batch of datagrams.
pub(super) struct Batch {
    buffers: Vec<[u8; SIZE]>,
    addresses: [Address; BATCH],
    lengths: [usize; BATCH],
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            buffers: vec![[0; SIZE]; BATCH],
            addresses: [Address::NONE; BATCH],
            lengths: [0; BATCH],
        }
    }

    /// The datagram in a place and where it came from. One that was too long is shown as empty.
    pub(super) fn message(&self, i: usize) -> (&[u8], Address) {
        (&self.buffers[i][..self.lengths[i]], self.addresses[i])
    }

    /// Receives what is there, up to a batch; an error if there is nothing.
    pub(super) fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let mut vectors = [const {
            libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }
        }; BATCH];
        // SAFETY: mmsghdr is plain old data for which all zeroes is valid (null pointers with zero lengths).
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        for (i, buffer) in self.buffers.iter_mut().enumerate() {
            vectors[i].iov_base = buffer.as_mut_ptr().cast();
            vectors[i].iov_len = SIZE;
            let header = &mut headers[i].msg_hdr;
            header.msg_name = self.addresses[i].bytes.as_mut_ptr().cast();
            header.msg_namelen = 28;
            header.msg_iov = &raw mut vectors[i];
            header.msg_iovlen = 1;
        }
        // SAFETY: the descriptor is open for the length of the borrow; each of the BATCH headers points to one
        // vector, one address of 28 bytes and (through its vector) one buffer of SIZE bytes, all alive and borrowed
        // mutably by this call alone; a null timeout is allowed.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH_U32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        for (i, header) in headers.iter().take(got).enumerate() {
            let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            self.lengths[i] = if cut {
                0
            } else {
                (header.msg_len as usize).min(SIZE)
            };
            self.addresses[i].len = header.msg_hdr.msg_namelen.min(28);
        }
        Ok(got)
    }
}

/// Sends datagrams, each to its address (`None` on a connected socket). What the kernel has no room for is dropped, as
/// any datagram may be; the first error other than that is returned, after the rest was tried.
pub(super) fn send(socket: impl AsFd, messages: &[(Option<Address>, &[u8])]) -> io::Result<()> {
    let mut outcome = Ok(());
    for chunk in messages.chunks(BATCH) {
        let mut rest = chunk;
        while !rest.is_empty() {
            match send_some(socket.as_fd(), rest) {
                Ok(sent) => rest = rest.get(sent.max(1)..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return outcome,
                Err(e) => {
                    outcome = Err(e);
                    rest = &rest[1..];
                }
            }
        }
    }
    outcome
}

fn send_some(socket: impl AsFd, messages: &[(Option<Address>, &[u8])]) -> io::Result<usize> {
    let mut vectors = [const {
        libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }
    }; BATCH];
    // SAFETY: mmsghdr is plain old data for which all zeroes is valid (null pointers with zero lengths).
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for (i, (address, bytes)) in messages.iter().enumerate().take(BATCH) {
        vectors[i].iov_base = bytes.as_ptr().cast_mut().cast();
        vectors[i].iov_len = bytes.len();
        let header = &mut headers[i].msg_hdr;
        if let Some(address) = address {
            header.msg_name = address.bytes.as_ptr().cast_mut().cast();
            header.msg_namelen = address.len;
        }
        header.msg_iov = &raw mut vectors[i];
        header.msg_iovlen = 1;
    }
    let count = u32::try_from(messages.len().min(BATCH)).unwrap_or(0);
    // SAFETY: the descriptor is open for the length of the borrow; each of the first `count` headers points to one
    // vector, and through it to bytes that are borrowed for this call; the kernel only reads them.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
