#![allow(
    unsafe_code,
    reason = "recvmmsg and sendmmsg have no safe wrapper that takes many addresses; two syscalls, fenced here"
)]
//! Many datagrams with one system call: half of what a local answer costs is the way in and out of the kernel.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};

use rustix::fd::{AsFd, AsRawFd as _, BorrowedFd};

/// How many datagrams go with one call.
pub(super) const BATCH: usize = 32;
const BATCH_U32: u32 = 32;
/// Larger than any query or answer we ask for (and cut longer ones off, which shows).
const SIZE: usize = 1536;
/// The longest datagram that fits any link of IPv6, and how many of them make no more than a packet can tell.
const FITS: usize = 1232;
const MOST: usize = 32;

/// `AF_INET` and `AF_INET6` as a socket address holds them.
const V4: u16 = 2;
const V6: u16 = 10;

/// A socket address as the kernel writes it: large enough for both families, read without casts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
            let address = &mut self.addresses[i];
            address.len = header.msg_hdr.msg_namelen.min(28);
            address.bytes[address.len as usize..].fill(0);
        }
        Ok(got)
    }
}

/// A datagram to send and to whom (`None` on a connected socket).
pub(super) type Letter<'a> = (Option<Address>, &'a [u8]);

/// Sends datagrams. What the kernel has no room for is dropped, as any datagram may be; the first error other than that
/// is returned, after the rest was tried.
pub(super) fn send(socket: impl AsFd, letters: &[Letter<'_>]) -> io::Result<()> {
    let bundles: Vec<_> = letters.chunks(1).collect();
    post(socket.as_fd(), &bundles, None)
}

/// Sends datagrams in any order. Those of one size for one client travel the kernel as one and are cut at its end
/// (`UDP_SEGMENT`), for most of what an answer costs is its way down; `joins` says whether that works here.
pub(super) fn send_joined(
    socket: impl AsFd,
    letters: &mut [Letter<'_>],
    joins: &Cell<bool>,
) -> io::Result<()> {
    if letters.len() < 2 || !joins.get() {
        return send(socket, letters);
    }
    letters.sort_unstable_by_key(|(to, bytes)| (*to, bytes.len()));
    let alike = |a: &Letter<'_>, b: &Letter<'_>| a.0 == b.0 && a.1.len() == b.1.len();
    let bundles: Vec<_> = letters
        .chunk_by(alike)
        .flat_map(|bundle| {
            let whole = bundle[0].1.len() <= FITS;
            bundle.chunks(if whole { MOST } else { 1 })
        })
        .collect();
    post(socket.as_fd(), &bundles, Some(joins))
}

fn post(
    socket: BorrowedFd<'_>,
    bundles: &[&[Letter<'_>]],
    joins: Option<&Cell<bool>>,
) -> io::Result<()> {
    let mut outcome = Ok(());
    let mut rest = bundles;
    while let Some(first) = rest.first() {
        match post_some(socket, rest) {
            Ok(sent) => rest = rest.get(sent.max(1)..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return outcome,
            Err(e) => {
                outcome = if let (Some(joins), 2..) = (joins, first.len()) {
                    // A device that computes no checksums, or whose packets are smaller than all others'.
                    joins.set(false);
                    outcome.and(send(socket, first))
                } else {
                    outcome.and(Err(e))
                };
                rest = &rest[1..];
            }
        }
    }
    outcome
}

/// Room for the size of the pieces beside a bundle, laid out and aligned as the kernel reads it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Pieces {
    header: libc::cmsghdr,
    size: u16,
}

fn post_some(socket: BorrowedFd<'_>, bundles: &[&[Letter<'_>]]) -> io::Result<usize> {
    let mut vectors = [const {
        libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }
    }; BATCH];
    // SAFETY: mmsghdr is plain old data for which all zeroes is valid (null pointers with zero lengths), and so is
    // cmsghdr with a number behind it.
    let (mut headers, mut pieces): ([libc::mmsghdr; BATCH], [Pieces; BATCH]) =
        unsafe { std::mem::zeroed() };
    let (mut count, mut used) = (0, 0);
    for (bundle, (header, piece)) in bundles.iter().zip(headers.iter_mut().zip(&mut pieces)) {
        let Some(parts) = vectors.get_mut(used..used + bundle.len()) else {
            break;
        };
        for (part, (_, bytes)) in parts.iter_mut().zip(*bundle) {
            part.iov_base = bytes.as_ptr().cast_mut().cast();
            part.iov_len = bytes.len();
        }
        let (to, bytes) = &bundle[0];
        let header = &mut header.msg_hdr;
        if let Some(to) = to {
            header.msg_name = to.bytes.as_ptr().cast_mut().cast();
            header.msg_namelen = to.len;
        }
        header.msg_iov = parts.as_mut_ptr();
        header.msg_iovlen = parts.len();
        if parts.len() > 1 {
            piece.header.cmsg_level = libc::SOL_UDP;
            piece.header.cmsg_type = libc::UDP_SEGMENT;
            piece.header.cmsg_len = size_of::<libc::cmsghdr>() + size_of::<u16>();
            piece.size = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            header.msg_control = (&raw mut *piece).cast();
            header.msg_controllen = size_of::<Pieces>();
        }
        used += bundle.len();
        count += 1;
    }
    // SAFETY: the descriptor is open for the length of the borrow; each of the first `count` headers points to vectors
    // of its own, through them to bytes that are borrowed for this call, and perhaps to one control message of the
    // length it tells; the kernel only reads them.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    fn heard(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
        let mut heard: Vec<Vec<u8>> = (0..count)
            .map(|_| {
                let mut bytes = [0; 2000];
                let len = socket.recv(&mut bytes).expect("a datagram");
                bytes[..len].to_vec()
            })
            .collect();
        heard.sort();
        heard
    }

    /// Sends answers of several sizes to two clients; both hear all of theirs, one by one.
    fn each_hears_its_own(socket: &UdpSocket, joins: &Cell<bool>) {
        let clients = [(); 2].map(|()| {
            let ours = socket.local_addr().expect("an address").ip();
            let client = UdpSocket::bind((ours, 0)).expect("bound");
            let patience = Some(Duration::from_secs(10));
            client.set_read_timeout(patience).expect("a timeout");
            client
        });
        let answers: [Vec<Vec<u8>>; 2] = [1u8, 2].map(|client| {
            let of = |len: usize| (0..9u8).map(move |i| [vec![client, i], vec![7; len]].concat());
            let mut all: Vec<_> = of(20).chain(of(40)).chain(of(1400)).collect();
            all.sort();
            all
        });
        let mut letters: Vec<Letter<'_>> = Vec::new();
        for (one, other) in answers[0].iter().zip(&answers[1]) {
            for (client, answer) in clients.iter().zip([one, other]) {
                let to = client.local_addr().expect("an address");
                letters.push((Some(Address::of(to)), answer));
            }
        }
        send_joined(socket, &mut letters, joins).expect("sent");
        for (client, answers) in clients.iter().zip(answers) {
            assert_eq!(heard(client, answers.len()), answers);
        }
    }

    #[test]
    fn answers_that_go_as_one_arrive_one_by_one() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(at).expect("bound");
            let joins = Cell::new(true);
            each_hears_its_own(&socket, &joins);
            assert!(joins.get(), "{at}");
        }
    }

    #[test]
    fn where_the_kernel_cuts_nothing_they_go_one_by_one() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        // Without checksums it refuses to cut.
        let yes: libc::c_int = 1;
        // SAFETY: an open socket, and a number of the length that is told.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NO_CHECK,
                (&raw const yes).cast(),
                4,
            )
        };
        assert_eq!(set, 0);
        let joins = Cell::new(true);
        each_hears_its_own(&socket, &joins);
        assert!(!joins.get());
        each_hears_its_own(&socket, &joins);
    }
}
