//! The control socket: one JSON document a line, answered by one line. An fd may come with a line (SCM_RIGHTS).
//!
//! ```text
//! {"op":"add-port","name":"web","socket":"/run/vnet/default/web.sock","mac":"52:54:00:00:00:01"}
//! {"ok":true}
//! {"op":"list"}
//! {"ok":true,"ports":[{"name":"web","number":1,"connected":true, ...}]}
//! ```
//! Whoever can open the socket may command the process: its directory's mode is the permission.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg};
use serde::{Deserialize, Serialize};
use vnet_core::firewall::Hold;
use vnet_core::types::Mac;

use super::keeper::MOST_FDS;
use super::poll::{Poll, Source};
use super::worker::Worker;
use crate::transport::vhost_user::Kept;

/// Connections at a time.
const MAX_CLIENTS: usize = 8;
/// Longest line.
const MAX_LINE: usize = 64 * 1024;
/// Fds that wait for their line.
const MAX_FDS: usize = MOST_FDS;

/// A command.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Adds a port. A listening socket may come as an fd in place of a path.
    AddPort(Box<AddPort>),
    /// Changes how the switch treats a port; its guest notices nothing.
    SetPort(Box<SetPort>),
    /// Removes a port; its frontend is disconnected.
    RemovePort {
        /// Its name.
        name: String,
    },
    /// The ports and the uplink.
    List,
    /// A tap, open, in place of the uplink's, which was deleted. It comes as an fd.
    SetUplink,
    /// Tells the sessions and their fds over the socket that comes as an fd, now and whenever one changes. Who keeps them
    /// can give them to the next process with `add-port`, should this one be killed.
    Keep,
    /// Ends the process.
    Stop,
    /// What was counted.
    Stats,
    /// What the switch has learnt.
    Addresses,
    /// Sets a port's link up or down.
    SetLink {
        /// Its name.
        name: String,
        /// Up, or down.
        up: bool,
    },
}

/// A port to add.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AddPort {
    /// Its name.
    pub name: String,
    /// Where to listen, a file beside the control socket.
    pub socket: Option<PathBuf>,
    /// Where the frontend listens, instead.
    pub connect: Option<PathBuf>,
    /// The session of a predecessor, as it was told to who kept it; its fds come after that of the listening socket.
    pub session: Option<Kept>,
    /// MAC address that the device says.
    pub mac: Mac,
    /// MTU that the device says.
    pub mtu: Option<u16>,
    /// Whether its cable is in.
    #[serde(default = "up")]
    pub link: bool,
    /// Queue pairs.
    #[serde(default = "one")]
    pub queues: u16,
    /// What the port may send; anything when absent.
    pub guard: Option<Hold>,
    /// Never reaches another isolated port.
    #[serde(default)]
    pub isolated: bool,
    /// How much the port may send.
    #[serde(default)]
    pub send: LimitSpec,
    /// How much it may be sent.
    #[serde(default)]
    pub receive: LimitSpec,
}

/// A port to change in place: all of it, what is absent is as in a new port.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SetPort {
    /// Its name.
    pub name: String,
    /// What the port may send; anything when absent.
    pub guard: Option<Hold>,
    /// Never reaches another isolated port.
    #[serde(default)]
    pub isolated: bool,
    /// How much the port may send.
    #[serde(default)]
    pub send: LimitSpec,
    /// How much it may be sent.
    #[serde(default)]
    pub receive: LimitSpec,
}

const fn up() -> bool {
    true
}

const fn one() -> u16 {
    1
}

/// Limits of one direction.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LimitSpec {
    /// Bytes.
    pub bytes: Option<RateSpec>,
    /// Frames.
    pub frames: Option<RateSpec>,
}

/// A rate.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RateSpec {
    /// Units a second.
    pub per_second: u64,
    /// Units at once.
    pub burst: u64,
}

/// An answer.
#[derive(Debug, Serialize)]
pub struct Answer {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    content: serde_json::Value,
}

impl Answer {
    /// It was done; `content` is an object with what was asked for, or null.
    #[must_use]
    pub fn done(content: serde_json::Value) -> Self {
        let content = if content.is_null() {
            serde_json::json!({})
        } else {
            content
        };
        Self {
            ok: true,
            error: None,
            content,
        }
    }

    /// It was not, and why.
    #[must_use]
    pub fn refused(error: impl ToString) -> Self {
        Self {
            ok: false,
            error: Some(error.to_string()),
            content: serde_json::json!({}),
        }
    }
}

/// The socket and its connections.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    clients: Vec<Option<Client>>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    /// The rest of an answer that the socket had no room for: one at most, because nothing is obeyed meanwhile.
    unsent: Vec<u8>,
}

impl Control {
    /// Takes a bound socket.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            clients: (0..MAX_CLIENTS).map(|_| None).collect(),
        })
    }

    /// Handles an event on the listener or on a connection.
    pub fn serve(&mut self, source: Source, worker: &mut Worker) {
        match source {
            Source::Control => self.accept(worker.poll()),
            Source::ControlClient(number) => self.serve_client(number, worker),
            Source::Uplink
            | Source::Door(_)
            | Source::Session(_)
            | Source::Kick(..)
            | Source::Signal => {}
        }
    }

    fn accept(&mut self, poll: &Poll) {
        while let Ok((stream, _)) = self.listener.accept() {
            let Some(number) = self.clients.iter().position(Option::is_none) else {
                // Dropped at once: the caller sees the end of the stream and may come again.
                continue;
            };
            let source = Source::ControlClient(u16::try_from(number).unwrap_or(0));
            if stream.set_nonblocking(true).is_ok() && poll.watch_both_ways(&stream, source).is_ok()
            {
                self.clients[number] = Some(Client {
                    stream,
                    buffer: Vec::new(),
                    fds: VecDeque::new(),
                    unsent: Vec::new(),
                });
            }
        }
    }

    fn serve_client(&mut self, number: u16, worker: &mut Worker) {
        let Some(slot) = self.clients.get_mut(usize::from(number)) else {
            return;
        };
        let keep = slot.as_mut().is_some_and(|client| client.serve(worker));
        if !keep {
            *slot = None;
            // Somebody may have found no place.
            self.accept(worker.poll());
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Client {
    /// Reads and answers; false when the connection is over. Who does not read an answer is not heard until it does.
    fn serve(&mut self, worker: &mut Worker) -> bool {
        loop {
            let came = match self.flush() {
                Ok(()) => self.next_line(),
                Err(error) => Err(error),
            };
            match came {
                Ok(Some(line)) => self.obey(&line, worker),
                Ok(None) => return false,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    fn obey(&mut self, line: &[u8], worker: &mut Worker) {
        let answer = match serde_json::from_slice(line) {
            Ok(command) => worker.obey(command, &mut self.fds),
            Err(error) => {
                // Nobody knows whose they are.
                self.fds.clear();
                Answer::refused(error)
            }
        };
        self.unsent = serde_json::to_vec(&answer).unwrap_or_default();
        self.unsent.push(b'\n');
    }

    /// Sends what is left of the last answer.
    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = rustix::net::send(&self.stream, &self.unsent, flags)?;
            self.unsent.drain(..sent);
        }
        Ok(())
    }

    /// The next command; nothing when there will be none.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.buffer.drain(..=end).collect()));
            }
            if self.buffer.len() > MAX_LINE || self.fill()? == 0 {
                return Ok(None);
            }
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(
            &self.stream,
            &mut into,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?
        .bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds
                    .extend(fds.take(MAX_FDS - self.fds.len().min(MAX_FDS)));
            }
        }
        self.buffer.extend_from_slice(&bytes[..received]);
        Ok(received)
    }
}

/// Commands, a line each, of whoever may give them: sockets come as fds only, so that no file is made. How many were obeyed.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(lines: &[u8]) -> usize {
    use super::middle::Middle;
    use super::network::Network;
    use crate::fuzz::frontend::fd;
    use crate::switch::Switch;

    let network = Network::new(Middle::Switch(Box::new(Switch::new(64, 1))), None);
    let mut worker = Worker::new(network, None).expect("a poll set");
    let mut obeyed = 0;
    for line in lines.split(|byte| *byte == b'\n').take(32) {
        let Ok(mut command) = serde_json::from_slice::<Command>(line) else {
            continue;
        };
        // A socket, memory, and then what rings are kicked by.
        let mut fds: VecDeque<_> = [5, 5, 2, 2, 1, 1, 1, 1, 1, 1]
            .into_iter()
            .filter_map(fd)
            .collect();
        if let Command::AddPort(port) = &mut command {
            (port.socket, port.connect) = (None, None);
        }
        let answer = worker.obey(command, &mut fds);
        obeyed += usize::from(answer.ok);
        assert!(serde_json::to_vec(&answer).is_ok_and(|line| !line.contains(&b'\n')));
    }
    obeyed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_is_what_the_firewall_makes_of_a_port() {
        let hold = Hold {
            addresses: vec!["fd00::5".parse().expect("an address")],
            free6: vnet_core::firewall::Free6::Within(vec!["fd00::/64".parse().expect("a net")]),
            ..Hold::default()
        };
        let line = serde_json::json!({ "op": "set-port", "name": "web", "guard": hold });
        let Ok(Command::SetPort(port)) = serde_json::from_value(line) else {
            panic!("not read");
        };
        assert_eq!(port.guard, Some(hold));
    }

    #[test]
    fn a_command_is_a_line_and_what_is_unknown_is_refused() {
        let line = r#"{"op":"add-port","name":"web","socket":"web.sock","mac":"52:54:00:00:00:01",
            "guard":{"addresses":["10.0.0.5"]},"send":{"bytes":{"per-second":1000,"burst":100}}}"#;
        let Ok(Command::AddPort(port)) = serde_json::from_str(line) else {
            panic!("not read");
        };
        assert_eq!((port.name.as_str(), port.queues), ("web", 1));
        assert!(
            serde_json::from_str::<Command>(r#"{"op":"add-port","name":"x","colour":"red"}"#)
                .is_err()
        );
        assert!(serde_json::from_str::<Command>(r#"{"op":"reboot"}"#).is_err());
    }
}
