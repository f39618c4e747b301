//! Messages on a stream (RFC 7766 section 8): each with its length in front, in both directions.

use std::io::{self, Read as _, Write};
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};

use super::outbound;

/// Bytes of one read: a turn takes one, so that nobody holds up the rest.
const READ: usize = 16 << 10;
/// Used bytes after which a buffer is moved together.
const USED: usize = 64 << 10;

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

/// Bytes that are used up from the front.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    used: usize,
}

impl Buffer {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    fn take(&mut self, count: usize) {
        self.used += count;
        if self.used == self.bytes.len() {
            self.bytes.clear();
            self.used = 0;
            // What one large message took is not kept for small ones.
            self.bytes.shrink_to(READ);
        } else if self.used >= USED {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
    }
}

/// What came, message by message.
#[derive(Debug, Default)]
pub(super) struct Input(Buffer);

impl Input {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.bytes.extend_from_slice(bytes);
    }

    fn first(&self) -> Option<&[u8]> {
        let rest = self.0.rest();
        let len = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
        rest.get(2..2 + len)
    }

    /// Whether there is a whole message.
    pub(super) fn has_message(&self) -> bool {
        self.first().is_some()
    }

    /// The next whole message, taken out.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let message = self.first()?.to_vec();
        self.0.take(2 + message.len());
        Some(message)
    }

    /// Reads once; false when the other side is done.
    pub(super) fn fill(&mut self, socket: &TcpStream) -> io::Result<bool> {
        let mut buffer = [0; READ];
        match (&*socket).read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(got) => self.push(&buffer[..got]),
            Err(e) if not_now(&e) => {}
            Err(e) => return Err(e),
        }
        Ok(true)
    }
}

/// What is to be sent.
#[derive(Debug, Default)]
pub(super) struct Output(Buffer);

impl Output {
    /// Queues a message.
    pub(super) fn push(&mut self, message: &[u8]) {
        if let Ok(len) = u16::try_from(message.len()) {
            self.0.bytes.extend_from_slice(&len.to_be_bytes());
            self.0.bytes.extend_from_slice(message);
        }
    }

    /// How much is left to send.
    pub(super) fn len(&self) -> usize {
        self.0.rest().len()
    }

    /// Writes what the other side takes.
    pub(super) fn flush(&mut self, mut socket: impl Write) -> io::Result<()> {
        while self.len() > 0 {
            match socket.write(self.0.rest()) {
                Ok(0) => break,
                Ok(sent) => self.0.take(sent),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if not_now(&e) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Whether a socket can just not be used at this moment, or not yet.
pub(super) fn not_now(error: &io::Error) -> bool {
    [
        io::ErrorKind::WouldBlock,
        io::ErrorKind::NotConnected,
        io::ErrorKind::Interrupted,
    ]
    .contains(&error.kind())
}

/// A stream of messages: in one piece and byte by byte the same comes of it, and nothing is lost.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) -> usize {
    let mut whole = Input::default();
    whole.push(bytes);
    let all: Vec<_> = std::iter::from_fn(|| whole.next()).collect();
    assert!(!whole.has_message());
    let mut pieces = Input::default();
    let mut again = Vec::new();
    for byte in bytes {
        pieces.push(&[*byte]);
        again.extend(std::iter::from_fn(|| pieces.next()));
    }
    assert_eq!(all, again);
    let mut output = Output::default();
    all.iter().for_each(|message| output.push(message));
    let mut sent = Vec::new();
    let flushed = output.flush(&mut sent);
    assert!(flushed.is_ok() && output.len() == 0);
    assert_eq!([&sent, whole.0.rest()].concat(), bytes);
    all.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes little at a time, and then nothing.
    struct Slow(Vec<u8>, usize);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.1.saturating_sub(self.0.len()).min(7).min(bytes.len());
            if room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.0.extend_from_slice(&bytes[..room]);
            Ok(room)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_sent_in_little_pieces_is_moved_rarely() {
        let mut output = Output::default();
        let message = [7; 50_000];
        for _ in 0..6 {
            output.push(&message);
        }
        let mut slow = Slow(Vec::new(), 200_000);
        output.flush(&mut slow).unwrap();
        assert_eq!(
            (slow.0.len(), output.len()),
            (200_000, 6 * 50_002 - 200_000)
        );
        assert!(output.0.used < USED && output.0.bytes.len() <= 6 * 50_002);
        slow.1 = usize::MAX;
        output.flush(&mut slow).unwrap();
        let mut sent = Input::default();
        sent.push(&slow.0);
        assert_eq!(std::iter::from_fn(|| sent.next()).count(), 6);
        assert_eq!(output.0.bytes.len(), 0);
    }
}
