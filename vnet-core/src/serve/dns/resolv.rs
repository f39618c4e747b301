//! The host's own resolvers: resolv.conf, followed as it changes, whether it is written, replaced, or a link that
//! comes to point elsewhere (VPNs, NetworkManager, systemd-resolved each do another of these).

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// A resolv.conf and what it said last.
pub(super) struct ResolvConf {
    path: PathBuf,
    inotify: Option<OwnedFd>,
    last: Option<Vec<SocketAddr>>,
}

impl ResolvConf {
    pub(super) fn new(path: PathBuf) -> Self {
        // Without inotify (the user's limit of instances is small) the file is looked at from time to time.
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok();
        Self {
            path,
            inotify,
            last: None,
        }
    }

    /// What becomes readable when the file may have changed.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(rustix::fd::AsFd::as_fd)
    }

    /// Reads the file anew; the resolvers, if they are others than before.
    pub(super) fn changed(&mut self) -> Option<&[SocketAddr]> {
        self.rearm();
        // No file, no resolvers: as for every program of the host.
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let resolvers = parse(&text);
        if self.last.as_ref() == Some(&resolvers) {
            return None;
        }
        self.last = Some(resolvers);
        self.last.as_deref()
    }

    /// What it said last.
    pub(super) fn known(&self) -> &[SocketAddr] {
        self.last.as_deref().unwrap_or_default()
    }

    /// Forgets pending events and watches the file, where it lies, and where it leads. Watching again is harmless.
    fn rearm(&self) {
        let Some(inotify) = &self.inotify else { return };
        let mut buffer = [0u8; 4096];
        while rustix::io::read(inotify, &mut buffer).is_ok_and(|got| got > 0) {}
        let target = self.path.canonicalize().ok();
        let folders = [Some(self.path.as_path()), target.as_deref()];
        let folders = folders.into_iter().flatten().filter_map(Path::parent);
        let names = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::CLOSE_WRITE;
        for folder in folders {
            let _ = inotify::add_watch(inotify, folder, names);
        }
        let content = WatchFlags::MODIFY | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        let _ = inotify::add_watch(inotify, &self.path, content);
    }
}

/// The most resolvers of a file.
const MOST: usize = 64;

/// The `nameserver` lines (resolv.conf(5)), not only the first three.
fn parse(text: &str) -> Vec<SocketAddr> {
    let mut resolvers = Vec::new();
    for line in text.lines() {
        if resolvers.len() >= MOST {
            break;
        }
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let address = words.next().and_then(address);
        resolvers.extend(address.filter(|a| !resolvers.contains(a)));
    }
    resolvers
}

fn address(text: &str) -> Option<SocketAddr> {
    let (ip, scope) = text
        .split_once('%')
        .map_or((text, None), |(ip, scope)| (ip, Some(scope)));
    match (ip.parse().ok()?, scope) {
        (IpAddr::V6(v6), Some(scope)) => {
            let scope = scope.parse().ok().or_else(|| interface(scope))?;
            Some(SocketAddrV6::new(v6, 53, 0, scope).into())
        }
        (ip, _) => Some(SocketAddr::new(ip, 53)),
    }
}

/// The number of an interface.
pub(super) fn interface(name: &str) -> Option<u32> {
    let any = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )
    .ok()?;
    rustix::net::netdevice::name_to_index(&any, name).ok()
}

/// A file that somebody else writes.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) -> usize {
    let resolvers = parse(&String::from_utf8_lossy(bytes));
    assert!(resolvers.len() <= MOST);
    resolvers.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_of_a_file() {
        let text = "# nameserver 9.9.9.9\nsearch lab.test\nnameserver 10.0.0.1\nnameserver 10.0.0.1\n\
                    nameserver\tfd00::53 \nnameserver fe80::1%7\nnameserver bogus\nnameserver\noptions edns0\n";
        let got: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(got, ["10.0.0.1:53", "[fd00::53]:53", "[fe80::1%7]:53"]);
    }
}
