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
//! Who keeps them may be slow. Then no message of any frontend is begun until it has read on; frames are not held up.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use super::port::{Door, Port};

/// Most fds in one message; the kernel takes a few more.
pub const MOST_FDS: usize = 250;

/// Who reads nothing for longer stands still, and keeps nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// Unread bytes beyond which no message is begun (the kernel takes twice that, for what a datagram costs it) ...
const TO_BEGIN: usize = 64 * 1024;
/// ... so that there is room to say how one that was begun has ended.
const TO_END: usize = 104 * 1024;

/// The way to who keeps them.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
    /// Ports that are gone, which is still to be told.
    gone: Vec<String>,
    /// Since when there has been no room.
    full_since: Option<Instant>,
}

impl Keeper {
    /// Takes one end of a SOCK_SEQPACKET pair.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            gone: Vec::new(),
            full_since: None,
        }
    }

    /// What a port is; its session only `with_session`. False when there is no room for it now.
    ///
    /// # Errors
    /// When nobody listens, or who listens has read nothing for too long.
    pub fn tell_port(&mut self, port: &Port, with_session: bool) -> io::Result<bool> {
        if !self.tell_gone()? {
            return Ok(false);
        }
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
        self.send(&told, &fds, if with_session { TO_END } else { TO_BEGIN })
    }

    /// A port was removed.
    pub fn forget(&mut self, name: String) {
        self.gone.push(name);
    }

    /// Tells which ports were removed. False when there is no room for it now.
    ///
    /// # Errors
    /// As for [`Keeper::tell_port`].
    pub fn tell_gone(&mut self) -> io::Result<bool> {
        while let Some(name) = self.gone.last() {
            let told = json!({ "name": name, "gone": true });
            if !self.send(&told, &[], TO_END)? {
                return Ok(false);
            }
            self.gone.pop();
        }
        Ok(true)
    }

    fn send(&mut self, told: &Value, fds: &[BorrowedFd<'_>], room: usize) -> io::Result<bool> {
        let bytes = serde_json::to_vec(told)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        set_socket_send_buffer_size(&self.socket, room)?;
        match sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, flags) {
            Ok(_) => {
                self.full_since = None;
                Ok(true)
            }
            // The latter for too many unread fds.
            Err(Errno::AGAIN | Errno::TOOMANYREFS) => {
                let since = *self.full_since.get_or_insert_with(Instant::now);
                if since.elapsed() < PATIENCE {
                    Ok(false)
                } else {
                    Err(io::ErrorKind::TimedOut.into())
                }
            }
            Err(error) => Err(error.into()),
        }
    }
}
