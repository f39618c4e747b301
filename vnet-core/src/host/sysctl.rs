//! Reads and writes sysctls, of the network namespace that the calling thread is in.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::plan::Sysctl;

const ROOT: &str = "/proc/sys/";

fn open(key: &Sysctl, flags: OFlags) -> Result<std::os::fd::OwnedFd, Errno> {
    let path = format!("{ROOT}{key}");
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// The value, without the line's end; `None` where the kernel has no such thing.
pub(super) fn read(key: &Sysctl) -> Result<Option<String>, Errno> {
    let file = match open(key, OFlags::RDONLY) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = [0; 64];
    let count = rustix::io::read(&file, &mut bytes)?;
    let text = String::from_utf8_lossy(&bytes[..count]);
    Ok(Some(text.trim_end().to_owned()))
}

/// Sets the value unless it is that already.
pub(super) fn write(key: &Sysctl, value: &str) -> Result<(), Errno> {
    if read(key)?.as_deref() == Some(value) {
        return Ok(());
    }
    let file = open(key, OFlags::WRONLY)?;
    rustix::io::write(&file, value.as_bytes()).map(|_| ())
}
