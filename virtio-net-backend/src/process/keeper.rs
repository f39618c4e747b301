//! Who keeps our sessions, so that they outlive us: netd, at the other end of a socket pair.
//!
//! One datagram a change, JSON with fds: what the socket holds when we are killed is still read. A port is told with its
//! listening socket, if it has one, and with its session, if that is between two messages:
//!
//! ```text
//! {"name":"web","listener":true,"link":true,"session":{...}}    fds: the listener, then those of the session
//! {"name":"web","listener":true,"link":true,"session":null}     none, or within a message: not for a successor
//! {"name":"web","gone":true}
//! ```

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use super::port::{Door, Port};

/// Most fds in one message; the kernel takes a few more.
pub const MOST_FDS: usize = 250;

/// The way to who keeps them.
#[derive(Debug)]
pub struct Keeper(OwnedFd);

impl Keeper {
    /// Takes one end of a SOCK_SEQPACKET pair.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// What a port is; its session only `with_session`.
    ///
    /// # Errors
    /// When nobody listens, or who listens falls behind.
    pub fn tell_port(&self, port: &Port, with_session: bool) -> io::Result<()> {
        let mut fds = Vec::new();
        if let Door::Listen { listener, .. } = &port.door {
            fds.push(listener.as_fd());
        }
        let listener = !fds.is_empty();
        let session = port.session.as_ref().filter(|_| with_session);
        let kept = session.and_then(|session| session.kept());
        let kept = kept.filter(|(kept, _)| kept.fds() < MOST_FDS);
        let session = kept.map(|(kept, of_session)| {
            fds.extend(of_session);
            kept
        });
        let told = json!({
            "name": port.name, "listener": listener, "link": port.link_up, "session": session,
        });
        self.send(&told, &fds)
    }

    /// A port was removed.
    ///
    /// # Errors
    /// As for [`Keeper::tell_port`].
    pub fn tell_gone(&self, name: &str) -> io::Result<()> {
        self.send(&json!({ "name": name, "gone": true }), &[])
    }

    fn send(&self, told: &Value, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(told)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags)?;
        Ok(())
    }
}
