//! DNS over TCP (RFC 7766): messages with their length in front, many on one connection, answered as they get ready.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};

use super::outbound;
use crate::dns::{NetworkId, ServerId};

/// Unsent bytes after which a client that does not read is cut off.
const MOST_OUTPUT: usize = 256 << 10;
/// Questions of one connection in flight.
const MOST_PENDING: u32 = 128;

/// A stream of messages.
pub(super) struct Stream {
    socket: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// When it last moved (milliseconds).
    pub(super) last: u64,
}

/// What a connection is for.
pub(super) enum Role {
    /// A client's.
    Client {
        network: NetworkId,
        from: SocketAddr,
        host: bool,
        pending: u32,
    },
    /// Ours to an upstream, for the answer with this ticket.
    Upstream { server: ServerId, ticket: u64 },
}

/// A connection.
pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) role: Role,
    /// Tells it from another that had its slot.
    pub(super) generation: u64,
    /// Whether the epoll watches for room to write.
    pub(super) writing: bool,
}

impl Connection {
    /// Counts a question in flight; false when there are too many.
    pub(super) fn begin(&mut self) -> bool {
        match &mut self.role {
            Role::Client { pending, .. } => {
                *pending += 1;
                *pending <= MOST_PENDING
            }
            Role::Upstream { .. } => true,
        }
    }

    /// An answer was given.
    pub(super) fn end(&mut self) {
        match &mut self.role {
            Role::Client { pending, .. } => *pending = pending.saturating_sub(1),
            Role::Upstream { .. } => {}
        }
    }
}

/// Starts a connection; it is writable when it stands.
pub(super) fn connect(to: SocketAddr, link: Option<u32>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    outbound::keep_to(&socket, to, link)?;
    match socket.connect(&to.into()) {
        Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(e),
        _ => Ok(socket.into()),
    }
}

/// The first whole message of what came, taken out.
pub(super) fn cut(input: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = usize::from(u16::from_be_bytes(*input.first_chunk()?));
    let message = input.get(2..2 + len)?.to_vec();
    input.drain(..2 + len);
    Some(message)
}

impl Stream {
    pub(super) const fn new(socket: TcpStream, now: u64) -> Self {
        Self {
            socket,
            input: Vec::new(),
            output: Vec::new(),
            last: now,
        }
    }

    pub(super) const fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Queues a message.
    pub(super) fn push(&mut self, message: &[u8]) {
        if let Ok(len) = u16::try_from(message.len()) {
            self.output.extend_from_slice(&len.to_be_bytes());
            self.output.extend_from_slice(message);
        }
    }

    /// Reads what is there; false when the other side is done.
    pub(super) fn fill(&mut self, now: u64) -> io::Result<bool> {
        self.last = now;
        let mut buffer = [0; 8192];
        // A few reads a turn: the epoll comes back for the rest.
        for _ in 0..8 {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(got) => self.input.extend_from_slice(&buffer[..got]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// The next whole message, taken out.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        cut(&mut self.input)
    }

    /// Writes what the socket takes; false when all is written.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e)
                    if e.kind() == io::ErrorKind::WouldBlock
                        || e.kind() == io::ErrorKind::NotConnected =>
                {
                    let stuck = self.output.len() > MOST_OUTPUT;
                    return if stuck {
                        Err(io::ErrorKind::TimedOut.into())
                    } else {
                        Ok(true)
                    };
                }
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }
}
