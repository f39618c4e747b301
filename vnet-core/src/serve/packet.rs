//! Packet sockets: whole frames of one interface, many a system call. The only unsafe code of the shells.
#![allow(
    unsafe_code,
    reason = "recvmmsg, sendmmsg, sockaddr_ll and filters have no safe wrapper"
)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::types::{IfName, Mac};

/// Frames taken in by one call.
const BATCH: usize = 64;
/// Room for one frame: DHCP fits 1500 bytes.
const FRAME: usize = 2048;
/// Room for the kernel's word on a frame (`struct tpacket_auxdata` and its header).
const CONTROL: usize = 64;
/// What waits in the kernel while the disk is busy.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// `status` bits of `struct tpacket_auxdata`: the checksum is left to hardware; the checksum was found right.
const CHECKSUM_NOT_READY: u32 = 1 << 3;
const CHECKSUM_VALID: u32 = 1 << 7;

/// One instruction of a classic filter: code, true, false, constant.
type Instruction = (u16, u8, u8, u32);

/// UDP over IPv4 to port 67, unfragmented.
const DHCP: &[Instruction] = &[
    (0x28, 0, 0, 12),     // ldh ethertype
    (0x15, 0, 8, 0x0800), // IPv4?
    (0x30, 0, 0, 23),     // ldb protocol
    (0x15, 0, 6, 17),     // UDP?
    (0x28, 0, 0, 20),     // ldh fragment
    (0x45, 4, 0, 0x1fff), // the first?
    (0xb1, 0, 0, 14),     // ldx header length
    (0x48, 0, 0, 16),     // ldh destination port
    (0x15, 0, 1, 67),     // ours?
    (0x06, 0, 0, 0xffff), // take
    (0x06, 0, 0, 0),      // leave
];

/// Answers to ARP questions.
const ARP_ANSWERS: &[Instruction] = &[
    (0x28, 0, 0, 12),
    (0x15, 0, 3, 0x0806),
    (0x28, 0, 0, 20),
    (0x15, 0, 1, 2),
    (0x06, 0, 0, 0xffff),
    (0x06, 0, 0, 0),
];

/// ICMPv6 router solicitations.
const SOLICITATIONS: &[Instruction] = &[
    (0x28, 0, 0, 12),     // ldh ethertype
    (0x15, 0, 5, 0x86dd), // IPv6?
    (0x30, 0, 0, 20),     // ldb next header
    (0x15, 0, 3, 58),     // ICMPv6?
    (0x30, 0, 0, 54),     // ldb type
    (0x15, 0, 1, 133),    // router solicitation?
    (0x06, 0, 0, 0xffff), // take
    (0x06, 0, 0, 0),      // leave
];

/// UDP over IPv6 to port 547, without extension headers.
const DHCP6: &[Instruction] = &[
    (0x28, 0, 0, 12),     // ldh ethertype
    (0x15, 0, 5, 0x86dd), // IPv6?
    (0x30, 0, 0, 20),     // ldb next header
    (0x15, 0, 3, 17),     // UDP?
    (0x28, 0, 0, 56),     // ldh destination port
    (0x15, 0, 1, 547),    // ours?
    (0x06, 0, 0, 0xffff), // take
    (0x06, 0, 0, 0),      // leave
];

/// Nothing.
const NOTHING: &[Instruction] = &[(0x06, 0, 0, 0)];

/// A socket that sees the frames of one interface that its filter takes.
#[derive(Debug)]
pub(super) struct PacketSocket {
    fd: OwnedFd,
    index: u32,
    mac: Mac,
}

impl PacketSocket {
    /// DHCPv4 messages to a server.
    ///
    /// # Errors
    /// What the system says: no such interface, no permission.
    pub(super) fn dhcp(interface: &IfName) -> io::Result<Self> {
        Self::open(interface, libc::ETH_P_IP, DHCP)
    }

    /// Answers to ARP questions.
    ///
    /// # Errors
    /// What the system says: no such interface, no permission.
    pub(super) fn arp(interface: &IfName) -> io::Result<Self> {
        Self::open(interface, libc::ETH_P_ARP, ARP_ANSWERS)
    }

    /// DHCPv6 messages to a server.
    ///
    /// # Errors
    /// What the system says: no such interface, no permission.
    pub(super) fn dhcp6(interface: &IfName) -> io::Result<Self> {
        Self::open(interface, libc::ETH_P_IPV6, DHCP6)
    }

    /// Router solicitations.
    ///
    /// # Errors
    /// What the system says: no such interface, no permission.
    pub(super) fn solicitations(interface: &IfName) -> io::Result<Self> {
        Self::open(interface, libc::ETH_P_IPV6, SOLICITATIONS)
    }

    fn open(interface: &IfName, protocol: libc::c_int, take: &[Instruction]) -> io::Result<Self> {
        let index = index_of(interface)?;
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: socket() takes no pointers; protocol 0 receives nothing until bind().
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: the call above just made this descriptor and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        attach_filter(fd.as_raw_fd(), take)?;
        let on: libc::c_int = 1;
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, &on)?;
        // Our own replies need not come back to us; kernels before 4.20 do not know the option.
        let _ = set_option(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &on);
        // More than the system's limit needs CAP_NET_ADMIN: take what we get.
        let big = set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER);
        if big.is_err() {
            let _ = set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER);
        }
        // SAFETY: sockaddr_ll is plain integers; all zero is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
        address.sll_protocol = u16::try_from(protocol).unwrap_or(0).to_be();
        address.sll_ifindex = i32::try_from(index).unwrap_or(0);
        let mut len = socklen(size_of::<libc::sockaddr_ll>());
        let pointer = (&raw mut address).cast::<libc::sockaddr>();
        // SAFETY: `pointer` is a live sockaddr_ll of `len` bytes for the whole call.
        check(unsafe { libc::bind(fd.as_raw_fd(), pointer, len) })?;
        // SAFETY: as above; the kernel writes at most `len` bytes to it and the length to `len`.
        check(unsafe { libc::getsockname(fd.as_raw_fd(), pointer, &raw mut len) })?;
        let mac = address.sll_addr.first_chunk::<6>().copied();
        Ok(Self {
            fd,
            index,
            mac: Mac(mac.unwrap_or_default()),
        })
    }

    /// The interface's number, by which one sees that it was made anew.
    #[must_use]
    pub(super) const fn index(&self) -> u32 {
        self.index
    }

    /// The interface's MAC when the socket was made.
    #[must_use]
    pub(super) const fn mac(&self) -> Mac {
        self.mac
    }

    /// Takes in what waits, up to a batch. How many frames there were; 0 when nothing waits.
    ///
    /// # Errors
    /// What the system says (the interface is down or gone).
    pub(super) fn receive(&self, inbox: &mut Inbox) -> io::Result<usize> {
        inbox.reset();
        let count = u32::try_from(BATCH).unwrap_or(0);
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: `headers` has BATCH entries, each pointing at an iovec, a buffer and a control area that live in
        // the same Inbox, which is borrowed mutably for the whole call and never moves its boxes.
        let got = unsafe {
            libc::recvmmsg(
                self.fd.as_raw_fd(),
                inbox.headers.as_mut_ptr(),
                count,
                flags,
                std::ptr::null_mut(),
            )
        };
        match check(got) {
            Ok(got) => {
                inbox.filled = usize::try_from(got).unwrap_or(0);
                Ok(inbox.filled)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Sends frames, many a call. How many went out: a frame that the interface refuses is lost, as on any wire.
    pub(super) fn send(&self, frames: &[Vec<u8>]) -> usize {
        let mut sent = 0;
        for batch in frames.chunks(BATCH) {
            sent += self.send_batch(batch);
        }
        sent
    }

    fn send_batch(&self, frames: &[Vec<u8>]) -> usize {
        let mut parts: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: mmsghdr is integers and pointers; all zero is a valid value.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = part;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        let (mut at, mut sent) = (0, 0);
        while at < headers.len() {
            let rest = &mut headers[at..];
            let count = u32::try_from(rest.len()).unwrap_or(0);
            // SAFETY: `rest` has `count` entries whose iovecs point at `frames`, alive and only read; the socket is
            // bound, so no address is needed.
            let done = unsafe {
                libc::sendmmsg(
                    self.fd.as_raw_fd(),
                    rest.as_mut_ptr(),
                    count,
                    libc::MSG_DONTWAIT,
                )
            };
            match usize::try_from(done) {
                Ok(done) if done > 0 => {
                    at += done;
                    sent += done;
                }
                // The first of the rest was refused: go on after it.
                Ok(_) | Err(_) => at += 1,
            }
        }
        sent
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Room for one batch of frames. Made once, used for every socket.
pub(super) struct Inbox {
    headers: Box<[libc::mmsghdr]>,
    parts: Box<[libc::iovec]>,
    frames: Box<[[u8; FRAME]]>,
    controls: Box<[Control]>,
    filled: usize,
}

#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; CONTROL]);

// SAFETY: the raw pointers in it lead only into boxes of the same value, which move with it between threads.
unsafe impl Send for Inbox {}

impl Inbox {
    /// Empty room.
    pub(super) fn new() -> Self {
        // SAFETY: mmsghdr and iovec are integers and pointers; all zero is a valid value of both.
        let (header, part) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            headers: vec![header; BATCH].into_boxed_slice(),
            parts: vec![part; BATCH].into_boxed_slice(),
            frames: vec![[0; FRAME]; BATCH].into_boxed_slice(),
            controls: vec![Control([0; CONTROL]); BATCH].into_boxed_slice(),
            filled: 0,
        }
    }

    /// The frames of the last batch, and whether their checksum is the kernel's word (or nobody's).
    pub(super) fn frames(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let filled = self.headers.iter().zip(&self.frames).take(self.filled);
        filled.map(|(header, frame)| {
            let len = usize::try_from(header.msg_len).unwrap_or(0);
            (&frame[..len.min(FRAME)], is_checked(&header.msg_hdr))
        })
    }

    /// The kernel overwrites lengths at each call: set everything again.
    fn reset(&mut self) {
        self.filled = 0;
        for at in 0..BATCH {
            self.parts[at] = libc::iovec {
                iov_base: self.frames[at].as_mut_ptr().cast(),
                iov_len: FRAME,
            };
            let header = &mut self.headers[at].msg_hdr;
            header.msg_iov = &raw mut self.parts[at];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[at].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL;
            header.msg_name = std::ptr::null_mut();
            header.msg_namelen = 0;
        }
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

/// What the auxiliary data says about a frame's checksum.
fn is_checked(header: &libc::msghdr) -> bool {
    // SAFETY: the header was filled by recvmmsg, and its control area lives in the Inbox that is borrowed here.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: not null, so CMSG_FIRSTHDR or CMSG_NXTHDR found a whole header within the control area.
        let head = unsafe { &*control };
        let wanted = head.cmsg_level == libc::SOL_PACKET && head.cmsg_type == libc::PACKET_AUXDATA;
        // SAFETY: as above.
        let data = unsafe { libc::CMSG_DATA(control) };
        if wanted && head.cmsg_len >= size_of::<libc::cmsghdr>() + size_of::<u32>() {
            // SAFETY: at least four bytes of data follow the header; they may be unaligned.
            let status = unsafe { data.cast::<u32>().read_unaligned() };
            return status & (CHECKSUM_NOT_READY | CHECKSUM_VALID) != 0;
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        control = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
    false
}

/// Lets a socket receive nothing: it only holds its port.
///
/// # Errors
/// What the system says.
pub(super) fn deafen(socket: &impl AsFd) -> io::Result<()> {
    attach_filter(socket.as_fd().as_raw_fd(), NOTHING)
}

fn attach_filter(fd: RawFd, take: &[Instruction]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = take
        .iter()
        .map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap_or(0),
        filter: filter.as_mut_ptr(),
    };
    set_raw(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn set_option(
    fd: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &libc::c_int,
) -> io::Result<()> {
    set_raw(fd.as_raw_fd(), level, name, value)
}

fn set_raw<T>(fd: RawFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let pointer = std::ptr::from_ref(value).cast();
    // SAFETY: `pointer` is a live T of that size, only read; the options used here expect exactly these types, and
    // a filter program's pointer leads to a live array of its length.
    check(unsafe { libc::setsockopt(fd, level, name, pointer, socklen(size_of::<T>())) })?;
    Ok(())
}

/// The number of an interface.
///
/// # Errors
/// What the system says: no such interface.
pub(super) fn index_of(interface: &IfName) -> io::Result<u32> {
    let name = std::ffi::CString::new(interface.as_str())?;
    // SAFETY: `name` is a terminated string, alive for the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn socklen(len: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(len).unwrap_or(0)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
