//! Who is at the other end of a socket, and what they may do.
//!
//! The kernel tells a peer's user and groups (SO_PEERCRED, SO_PEERGROUPS); nothing a peer says about itself counts.
#![allow(unsafe_code, reason = "SO_PEERGROUPS has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

/// The other end of a unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its groups, the first among them.
    pub groups: Vec<u32>,
}

impl Peer {
    /// The peer of a connected socket.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        let credentials = rustix::net::sockopt::socket_peercred(&socket)?;
        let mut groups = vec![credentials.gid.as_raw()];
        groups.extend(peer_groups(&socket)?);
        Ok(Self {
            uid: credentials.uid.as_raw(),
            groups,
        })
    }

    /// Whether it may change things: root, the daemon's own user, and the group.
    #[must_use]
    pub fn may_write(&self, group: Option<u32>) -> bool {
        self.uid == 0
            || self.uid == rustix::process::geteuid().as_raw()
            || group.is_some_and(|g| self.groups.contains(&g))
    }
}

fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut bytes = libc::socklen_t::try_from(groups.len() * 4).map_err(io::Error::other)?;
        // SAFETY: the pointer and length describe `groups`, which lives across the call; the kernel writes at most
        // `bytes` bytes of plain integers into it and stores how many it wrote (or needs) in `bytes`.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = usize::try_from(bytes).map_err(io::Error::other)? / 4;
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// The number of a user, given by name or number, as the host's own databases say.
#[must_use]
pub fn user(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| entry("passwd", name))
}

/// The number of a group, by name.
#[must_use]
pub fn group(name: &str) -> Option<u32> {
    entry("group", name)
}

/// The third field of a database's line, asked for through the host's name service.
fn entry(database: &str, name: &str) -> Option<u32> {
    if name.is_empty()
        || !name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-$@\\".contains(&b))
    {
        return None;
    }
    let output = Command::new("getent")
        .args([database, "--", name])
        .output()
        .ok()?;
    String::from_utf8_lossy(&output.stdout)
        .split(':')
        .nth(2)?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_kernel_tells_who_we_are() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = Peer::of(&a).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert!(peer.groups.contains(&rustix::process::getegid().as_raw()));
    }

    #[test]
    fn strangers_may_not_write() {
        let me = rustix::process::geteuid().as_raw();
        let stranger = Peer {
            uid: me + 4711,
            groups: vec![100, 7],
        };
        assert!(!stranger.may_write(None) && !stranger.may_write(Some(8)));
        assert!(stranger.may_write(Some(7)));
        assert!(
            Peer {
                uid: me,
                groups: vec![]
            }
            .may_write(None)
        );
    }

    #[test]
    fn users_by_name_and_number() {
        assert_eq!((user("root"), user("4711")), (Some(0), Some(4711)));
        assert_eq!(
            (user("no-such-user-here"), user("-x; y"), group("root")),
            (None, None, Some(0))
        );
    }
}
