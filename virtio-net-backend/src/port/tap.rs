//! A kernel tap with virtio-net headers, by raw ioctls (no crate sets IFF_VNET_HDR and offloads as needed).
#![allow(
    unsafe_code,
    reason = "TUN ioctls and writev from guest memory; one system call a function"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::FramePort;
use crate::device::header::HEADER_LEN;
use crate::device::{Features, Frame, Sent};

/// Pieces of a frame that go to the kernel in one call; a frame in more pieces is copied together first.
const MAX_PIECES: usize = 64;

/// Large UDP packets, which Linux has since 6.2.
const USO: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A queue of a tap.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
    /// The kernel knows large UDP packets.
    uso: bool,
    refused: u64,
    scratch: Vec<u8>,
}

impl Tap {
    /// Attaches to a tap, and creates it when there is none. True when it was created.
    ///
    /// # Errors
    /// When the name is too long, /dev/net/tun cannot be opened, or the tap is in use.
    pub fn open(name: &str) -> io::Result<(Self, bool)> {
        let existed = interface_flags(name).is_ok();
        let fd = open_tun()?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let attached = attach(&fd, name, flags);
        if matches!(&attached, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
            // It was made for several queues and must be attached to as such.
            attach(&fd, name, flags | libc::IFF_MULTI_QUEUE)?;
        } else {
            attached?;
        }
        Ok((Self::from_fd(fd, name)?, !existed))
    }

    /// Takes a tap fd that someone else opened with IFF_VNET_HDR.
    ///
    /// # Errors
    /// When it is no such fd.
    pub fn from_fd(fd: OwnedFd, name: &str) -> io::Result<Self> {
        let mut tap = Self {
            fd,
            name: name.to_owned(),
            uso: false,
            refused: 0,
            scratch: Vec::new(),
        };
        let flags = rustix::fs::fcntl_getfl(&tap.fd)?;
        rustix::fs::fcntl_setfl(&tap.fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        let header_len = libc::c_int::try_from(HEADER_LEN).map_err(io::Error::other)?;
        tap.set_int(libc::TUNSETVNETHDRSZ, header_len)?;
        tap.set_int(libc::TUNSETVNETLE, 1)?;
        tap.uso = tap.probe_uso()?;
        Ok(tap)
    }

    /// An fd that takes frames and knows no request of a tap, for tests.
    #[cfg(test)]
    pub(crate) fn pretended(fd: OwnedFd) -> Self {
        Self {
            fd,
            name: String::new(),
            uso: false,
            refused: 0,
            scratch: Vec::new(),
        }
    }

    /// Linux before 6.2 refuses the whole set when USO is in it.
    fn probe_uso(&self) -> io::Result<bool> {
        let with_uso = libc::TUN_F_CSUM | USO;
        match self.set_value(libc::TUNSETOFFLOAD, libc::c_ulong::from(with_uso)) {
            Ok(()) => self.set_value(libc::TUNSETOFFLOAD, 0).map(|()| true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What a driver must not be offered, because this kernel's taps neither give nor take it.
    #[must_use]
    pub fn withheld(&self) -> Features {
        if self.uso {
            return Features::default();
        }
        Features::HOST_USO
            .with(Features::GUEST_USO4)
            .with(Features::GUEST_USO6)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there still is an interface behind it: someone may have deleted it.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        // SAFETY: an ifreq of zeroes is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })
            .is_ok()
    }

    /// Tells the kernel which unfinished frames it may hand to us: those that a driver with `features` takes.
    ///
    /// # Errors
    /// When the kernel refuses the set.
    pub fn set_offloads(&self, features: Features) -> io::Result<()> {
        let mut flags = 0;
        let mut add = |feature, flag| {
            if features.has(feature) {
                flags |= flag;
            }
        };
        add(Features::GUEST_CSUM, libc::TUN_F_CSUM);
        add(Features::GUEST_TSO4, libc::TUN_F_TSO4);
        add(Features::GUEST_TSO6, libc::TUN_F_TSO6);
        add(Features::GUEST_ECN, libc::TUN_F_TSO_ECN);
        // The kernel knows the two only together.
        if self.uso {
            add(Features::GUEST_USO4.with(Features::GUEST_USO6), USO);
        }
        if features.has(Features::GUEST_CSUM) {
            self.set_value(libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
        } else {
            self.set_value(libc::TUNSETOFFLOAD, 0)
        }
    }

    /// Sets the MTU and brings the interface up, for a tap that was just created.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bring_up(&self, mtu: Option<u16>) -> io::Result<()> {
        if let Some(mtu) = mtu {
            let mut request = request(&self.name)?;
            request.ifr_ifru.ifru_mtu = libc::c_int::from(mtu);
            interface_ioctl(libc::SIOCSIFMTU, &mut request)?;
        }
        let mut request = request(&self.name)?;
        request.ifr_ifru.ifru_flags = interface_flags(&self.name)?
            | libc::c_short::try_from(libc::IFF_UP).map_err(io::Error::other)?;
        interface_ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Frames that it refused to someone who writes for us.
    pub(super) fn refuse(&mut self, frames: u32) {
        self.refused += u64::from(frames);
    }

    fn set_int(&self, code: libc::c_ulong, value: libc::c_int) -> io::Result<()> {
        // SAFETY: these requests read one int through the pointer.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), code, &raw const value) })
    }

    fn set_value(&self, code: libc::c_ulong, value: libc::c_ulong) -> io::Result<()> {
        // SAFETY: these requests take a plain value and touch no memory.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), code, value) })
    }

    fn write(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        let linear = frame.linear();
        let tail = frame.tail();
        if tail.is_empty() {
            rustix::io::write(&self.fd, linear)?;
            return Ok(());
        }
        if tail.len() >= MAX_PIECES {
            frame.copy_to(&mut self.scratch);
            rustix::io::write(&self.fd, &self.scratch)?;
            return Ok(());
        }
        let mut pieces = [const {
            libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }
        }; MAX_PIECES];
        pieces[0].iov_base = linear.as_ptr().cast_mut().cast();
        pieces[0].iov_len = linear.len();
        for (piece, slice) in pieces[1..].iter_mut().zip(tail) {
            let (base, len) = slice.as_raw();
            piece.iov_base = base.cast();
            piece.iov_len = len;
        }
        let count = libc::c_int::try_from(1 + tail.len()).unwrap_or(1);
        // SAFETY: the first piece is private memory, the others lie in a mapping that `frame` keeps; the kernel only
        // reads them, and copes with a guest that changes them.
        let written = unsafe { libc::writev(self.fd.as_raw_fd(), pieces.as_ptr(), count) };
        if written < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl FramePort for Tap {
    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        match self.write(frame) {
            Ok(()) => Sent::Done,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Busy,
            // The kernel found the frame malformed, or the link is down: it will not take it later either.
            Err(_) => {
                self.refused += 1;
                Sent::Done
            }
        }
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.fd, into) {
            Ok(n) => Ok(Some(n)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn refused(&self) -> u64 {
        self.refused
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_tun() -> io::Result<OwnedFd> {
    // SAFETY: a constant path; the fd is owned from here on.
    let fd = unsafe {
        libc::open(
            c"/dev/net/tun".as_ptr(),
            libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fresh from open, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(fd: &OwnedFd, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq of zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('%') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a name for an interface",
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn interface_flags(name: &str) -> io::Result<libc::c_short> {
    let mut request = request(name)?;
    interface_ioctl(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS filled this member.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

fn interface_ioctl(code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: the interface requests used here read and write one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), code, request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
