//! Taps: the ioctls on `/dev/net/tun`, each behind a safe function, and nothing else.
//!
//! A tap is made with `IFF_VNET_HDR` (offloads) and, if asked, several queues. Whether it has several is fixed for
//! life, and whoever opens it by name has to ask for the same: QEMU `queues=2` or more, cloud-hypervisor
//! `num_queues=4` or more. An fd that we open and hand over works with one queue or many.
#![allow(unsafe_code, reason = "ioctl is the only way to make a tap")]

use std::io;
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::plan::TapOptions;
use crate::types::IfName;

const DEVICE: &str = "/dev/net/tun";
/// Refuse to open a tap that is there already.
const IFF_TUN_EXCL: libc::c_int = 0x8000;
const ROOT: u32 = 0;

/// Why a tap could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has no taps, or the container does not show them.
    #[error(
        "{DEVICE} does not exist: load the module (`modprobe tun`), or give the container that device"
    )]
    NoDevice,
    /// Not allowed.
    #[error(
        "not allowed to use taps: run as root, or give netd CAP_NET_ADMIN and access to {DEVICE}"
    )]
    NotAllowed,
    /// All its queues are taken.
    #[error("tap `{0}` is in use: stop the guest that holds it open")]
    Busy(IfName),
    /// Made with another number of queues, or not a tap.
    #[error("`{0}` cannot be opened as this kind of tap: it was made with other flags")]
    OtherFlags(IfName),
    /// Anything else the kernel says.
    #[error("tap `{0}`: {1}")]
    Kernel(IfName, io::Error),
}

/// A tap that vanishes with this value unless it is [`NewTap::keep`]t.
#[derive(Debug)]
pub struct NewTap {
    file: OwnedFd,
    name: IfName,
}

impl NewTap {
    /// Makes a tap, down, that bears no mark yet.
    ///
    /// # Errors
    /// When the name is taken, or taps are not to be had.
    pub fn create(name: &IfName, options: TapOptions) -> Result<Self, TapError> {
        let file = attach(name, options.multi_queue, IFF_TUN_EXCL)?;
        let new = Self {
            file,
            name: name.clone(),
        };
        new.set_owner(options.owner)?;
        Ok(new)
    }

    /// Makes it stay when nobody holds it open.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keep(self) -> Result<(), TapError> {
        integer_ioctl(&self.file, libc::TUNSETPERSIST, 1).map_err(|e| explain(&self.name, e))
    }

    /// A tap without an owner can be opened by *everybody* who may open the device, so nobody's is root's.
    fn set_owner(&self, owner: Option<u32>) -> Result<(), TapError> {
        let uid = owner.unwrap_or(ROOT);
        integer_ioctl(&self.file, libc::TUNSETOWNER, libc::c_ulong::from(uid))
            .map_err(|e| explain(&self.name, e))
    }
}

/// Opens queues of a tap that is there, to be handed over.
///
/// # Errors
/// When it is not there, not such a tap, or taken.
pub fn open(
    name: &IfName,
    multi_queue: bool,
    queues: NonZeroU16,
) -> Result<Vec<OwnedFd>, TapError> {
    let mut files = Vec::with_capacity(queues.get().into());
    for _ in 0..queues.get() {
        // Opening a name that is not there would make a new tap, which nobody would find again.
        rustix::net::netdevice::name_to_index(&probe(name)?, name.as_str())
            .map_err(|e| explain(name, e.into()))?;
        files.push(attach(name, multi_queue, 0)?);
    }
    Ok(files)
}

/// Lets another user open a tap that is there.
pub(super) fn set_owner(name: &IfName, options: TapOptions) -> Result<(), TapError> {
    let file = attach(name, options.multi_queue, 0)?;
    let name = name.clone();
    NewTap { file, name }.set_owner(options.owner)
}

fn probe(name: &IfName) -> Result<OwnedFd, TapError> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| explain(name, e.into()))
}

/// Opens the device and attaches it to the tap of that name.
fn attach(name: &IfName, multi_queue: bool, extra: libc::c_int) -> Result<OwnedFd, TapError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => TapError::NoDevice,
        Errno::ACCESS | Errno::PERM => TapError::NotAllowed,
        other => TapError::Kernel(name.clone(), other.into()),
    })?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | extra;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    set_interface(&file, name, flags).map_err(|e| explain(name, e))?;
    Ok(file)
}

fn explain(name: &IfName, error: io::Error) -> TapError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::NotAllowed,
        Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name.clone()),
        Some(libc::EINVAL) => TapError::OtherFlags(name.clone()),
        _ => TapError::Kernel(name.clone(), error),
    }
}

/// `TUNSETIFF`
fn set_interface(file: &OwnedFd, name: &IfName, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `ifreq`, which is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // At most 15 bytes by type, so the last of the 16 stays zero.
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(name.as_str().bytes().take(15))
    {
        *to = from.cast_signed();
    }
    // The flags are sixteen bits; IFF_TUN_EXCL is the topmost.
    let [low, high, ..] = flags.to_le_bytes();
    request.ifr_ifru.ifru_flags = libc::c_short::from_le_bytes([low, high]);
    // SAFETY: the descriptor is open, `TUNSETIFF` reads and writes one `ifreq`, and ours lives through the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An ioctl of the tun device whose argument is a number, not a pointer.
fn integer_ioctl(file: &OwnedFd, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the descriptor is open, and both requests this is called with (`TUNSETPERSIST`, `TUNSETOWNER`) take
    // their argument by value, so that nothing is read or written through it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, value) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
