//! Keeps the sessions of a backend process while it lives, for the one that follows it.
//!
//! The process tells each of its ports over a socket pair: one datagram a change, JSON with open files (the port's
//! listening socket; of a session its connection, the guest's memory, the eventfds). None of it is used here. It is
//! there so that a VMM's connection stays open when the process at its other end is killed, and can be given to a new
//! one. The last datagrams of a killed process are still read before the end of its socket.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags,
    SocketType, recvmsg, socketpair,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Most open files with one datagram or command.
pub(super) const MOST_FDS: usize = 250;
/// Most ports: more than a process may have, however it fares.
const MOST_PORTS: usize = 1024;
/// Longest datagram.
const MOST_BYTES: usize = 64 * 1024;

/// The ports of a process, by name.
#[derive(Default)]
pub(super) struct Kept(BTreeMap<String, KeptPort>);

/// What is kept of a port.
pub(super) struct KeptPort {
    /// As the process told it; null when there is none that could go on.
    pub(super) session: Value,
    /// Whether its cable is in.
    pub(super) link: bool,
    /// The listening socket, then those of the session.
    pub(super) fds: Vec<OwnedFd>,
}

/// Our end of the pair.
pub(super) struct Keeper {
    socket: UnixStream,
    kept: Kept,
}

#[derive(Deserialize)]
struct Told {
    name: String,
    #[serde(default)]
    gone: bool,
    #[serde(default)]
    listener: bool,
    #[serde(default = "up")]
    link: bool,
    #[serde(default)]
    session: Value,
}

/// A process of an older release does not say.
const fn up() -> bool {
    true
}

impl Kept {
    pub(super) fn remove(&mut self, name: &str) -> Option<KeptPort> {
        self.0.remove(name)
    }

    /// Leaves the listening sockets: whoever was connected must come again.
    pub(super) fn forget_sessions(&mut self) {
        for port in self.0.values_mut() {
            port.session = Value::Null;
            port.fds.truncate(1);
        }
    }

    /// `whole`: nothing was cut off for want of room.
    fn learn(&mut self, datagram: &[u8], fds: Vec<OwnedFd>, whole: bool) {
        let Ok(told) = serde_json::from_slice::<Told>(datagram) else {
            // Whose it was is not known, and what is known of it may be true no more.
            self.0.clear();
            return;
        };
        // Without its socket there is nothing to go on with.
        if told.gone || !told.listener || !whole {
            self.0.remove(&told.name);
            return;
        }
        if self.0.len() >= MOST_PORTS && !self.0.contains_key(&told.name) {
            return;
        }
        let (session, link) = (told.session, told.link);
        self.0.insert(told.name, KeptPort { session, link, fds });
    }
}

impl Keeper {
    /// A keeper, and the end that the process gets.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // A stream by its type here only: it is read by datagrams.
        let socket = UnixStream::from_std(ours.into())?;
        let kept = Kept::default();
        Ok((Self { socket, kept }, theirs))
    }

    /// Keeps what the process tells until it is dead; what is left of it.
    pub(super) async fn until_death(mut self) -> Kept {
        let mut buffer = vec![0; MOST_BYTES];
        loop {
            let socket = &self.socket;
            let received = socket
                .async_io(Interest::READABLE, || receive(socket, &mut buffer))
                .await;
            match received {
                Ok((0, ..)) | Err(_) => return self.kept,
                Ok((len, fds, whole)) => self.kept.learn(&buffer[..len], fds, whole),
            }
        }
    }
}

fn receive(socket: &UnixStream, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>, bool)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(into)];
    let received = recvmsg(socket, slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            fds.extend(some);
        }
    }
    let cut = ReturnFlags::CTRUNC | ReturnFlags::TRUNC;
    Ok((received.bytes, fds, !received.flags.intersects(cut)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fds(count: usize) -> Vec<OwnedFd> {
        let one = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        std::iter::repeat_with(one).take(count).collect()
    }

    #[test]
    fn what_was_told_last_is_kept() {
        let mut kept = Kept::default();
        let web = br#"{"name":"web","listener":true,"session":{"features":1}}"#;
        kept.learn(web, fds(3), true);
        kept.learn(
            br#"{"name":"db","listener":true,"session":null}"#,
            fds(1),
            true,
        );
        kept.learn(
            br#"{"name":"old","listener":true,"session":{}}"#,
            fds(2),
            true,
        );
        kept.learn(br#"{"name":"old","gone":true}"#, fds(0), true);
        assert!(kept.remove("old").is_none());
        let db = kept.remove("db").expect("kept");
        assert_eq!((db.session, db.fds.len()), (Value::Null, 1));
        kept.forget_sessions();
        let web = kept.remove("web").expect("kept");
        assert_eq!((web.session, web.fds.len()), (Value::Null, 1));
        // Open files that did not fit: better none than some.
        let web = br#"{"name":"web","listener":true,"session":{"features":1}}"#;
        kept.learn(web, fds(2), false);
        assert!(kept.remove("web").is_none());
        kept.learn(web, fds(3), true);
        kept.learn(br"nonsense", fds(1), true);
        assert!(kept.remove("web").is_none());
        for n in 0..=MOST_PORTS {
            let told = format!(r#"{{"name":"p{n}","listener":true}}"#);
            kept.learn(told.as_bytes(), Vec::new(), true);
        }
        assert!(kept.remove("p1").is_some());
        assert!(kept.remove(&format!("p{MOST_PORTS}")).is_none());
    }
}
