//! As much of D-Bus as calling a few methods takes: messages as bytes, and one connection that asks and waits.
//!
//! Little-endian, version 1, no file descriptors: what is not an answer to our last call is passed over; of signals it is
//! only told that there was one. What
//! comes is bounded and checked; nothing in it can do more than fail the call.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd as _, BorrowedFd};

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest message that we take.
const MOST: usize = 1 << 20;
/// Messages passed over while waiting for one answer.
const MOST_OTHERS: usize = 64;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
/// Nobody is started because we call.
const NO_AUTO_START: u8 = 2;

/// Header fields by number.
mod field {
    pub(super) const PATH: u8 = 1;
    pub(super) const INTERFACE: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const ERROR_NAME: u8 = 4;
    pub(super) const REPLY_SERIAL: u8 = 5;
    pub(super) const DESTINATION: u8 = 6;
    pub(super) const SIGNATURE: u8 = 8;
}

/// Whom a call goes to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Object<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
}

const BUS: Object<'static> = Object {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// Values as they lie in a message: each at a multiple of its size, from the message's begin.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).unwrap_or(0));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.byte(u8::try_from(text.len()).unwrap_or(0));
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    /// An array of what `fill` writes, whose elements lie at multiples of `align`.
    pub(super) fn array(&mut self, align: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let len_at = self.0.len() - 4;
        self.align(align);
        let start = self.0.len();
        fill(self);
        let len = u32::try_from(self.0.len() - start).unwrap_or(0);
        self.0[len_at..len_at + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// A structure begins.
    pub(super) fn structure(&mut self) {
        self.align(8);
    }
}

/// Values of a message that came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.align(2);
        let bytes = self.bytes.get(self.at..)?.first_chunk()?;
        self.at += 2;
        Some(u16::from_le_bytes(*bytes))
    }

    /// Where it stands.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    /// The same values, read from a place on.
    pub(super) const fn after(self, at: usize) -> Self {
        Self { at, ..self }
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.bytes.get(self.at..)?.first_chunk()?;
        self.at += 4;
        Some(u32::from_le_bytes(*bytes))
    }

    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        let bytes = self.bytes.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        Some(bytes)
    }

    pub(super) fn text(&mut self) -> Option<&'a str> {
        let bytes = self.bytes()?;
        self.at += 1;
        std::str::from_utf8(bytes).ok()
    }

    pub(super) fn signature(&mut self) -> Option<&'a str> {
        let len = usize::from(self.byte()?);
        let bytes = self.bytes.get(self.at..self.at + len)?;
        self.at += len + 1;
        std::str::from_utf8(bytes).ok()
    }

    /// The elements of an array, read one by one.
    pub(super) fn array<T>(
        &mut self,
        align: usize,
        mut element: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.align(align);
        let end = self
            .at
            .checked_add(len)
            .filter(|end| *end <= self.bytes.len())?;
        let mut all = Vec::new();
        while self.at < end {
            self.align(align);
            let before = self.at;
            all.push(element(self)?);
            if self.at <= before {
                return None;
            }
        }
        Some(all)
    }
}

/// The bytes of a call.
fn call(serial: u32, to: Object<'_>, member: &str, signature: &str, body: &Writer) -> Vec<u8> {
    let mut w = Writer(vec![b'l', METHOD_CALL, NO_AUTO_START, 1]);
    w.u32(u32::try_from(body.0.len()).unwrap_or(0));
    w.u32(serial);
    w.array(8, |w| {
        for (code, kind, value) in [
            (field::PATH, "o", to.path),
            (field::INTERFACE, "s", to.interface),
            (field::MEMBER, "s", member),
            (field::DESTINATION, "s", to.destination),
        ] {
            w.structure();
            w.byte(code);
            w.signature(kind);
            w.text(value);
        }
        if !signature.is_empty() {
            w.structure();
            w.byte(field::SIGNATURE);
            w.signature("g");
            w.signature(signature);
        }
    });
    w.align(8);
    w.0.extend_from_slice(&body.0);
    w.0
}

/// An answer that came.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    to: u32,
    error: Option<String>,
}

/// The body of a whole message, if it is an answer.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn body(message: &[u8]) -> Option<&[u8]> {
    let (body, end) = length(message.first_chunk()?)?;
    let message = message.get(..end)?;
    answer(message)?;
    message.get(body..)
}

/// How long a message is, from its first 16 bytes: where its body begins, and where it ends.
fn length(head: &[u8; 16]) -> Option<(usize, usize)> {
    let word = |at: usize| head[at..].first_chunk().map(|w| u32::from_le_bytes(*w));
    let fields = usize::try_from(word(12)?).ok()?;
    let body = (16usize.checked_add(fields)?).next_multiple_of(8);
    let end = body.checked_add(usize::try_from(word(4)?).ok()?)?;
    (head[0] == b'l' && head[3] == 1 && end <= MOST).then_some((body, end))
}

/// Reads the header of a whole message; `None` if it is no answer.
fn answer(message: &[u8]) -> Option<Answer> {
    let kind = *message.get(1)?;
    if kind != METHOD_RETURN && kind != ERROR {
        return None;
    }
    let mut reader = Reader {
        bytes: message,
        at: 12,
    };
    let mut answer = Answer {
        to: 0,
        error: (kind == ERROR).then(String::new),
    };
    reader.array(8, |r| {
        let code = r.byte()?;
        let kind = r.signature()?;
        match kind {
            "u" => {
                let value = r.u32()?;
                if code == field::REPLY_SERIAL {
                    answer.to = value;
                }
            }
            "s" | "o" => {
                let value = r.text()?;
                if code == field::ERROR_NAME && answer.error.is_some() {
                    answer.error = Some(value.to_owned());
                }
            }
            "g" => {
                r.signature()?;
            }
            _ => return None,
        }
        Some(())
    })?;
    Some(answer)
}

/// A connection to the system's bus.
#[derive(Debug)]
pub(super) struct Bus {
    socket: UnixStream,
    serial: u32,
    /// Whether something else came while an answer was waited for.
    heard: bool,
}

impl Bus {
    /// Connects, and says who we are.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Self {
            socket,
            serial: 0,
            heard: false,
        };
        let user = rustix::process::geteuid().as_raw().to_string();
        let user: String = user.bytes().map(|b| format!("{b:02x}")).collect();
        bus.socket
            .write_all(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            bus.socket.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 512 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        if !line.starts_with(b"OK") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        bus.socket.write_all(b"BEGIN\r\n")?;
        bus.call(BUS, "Hello", "", &Writer::default())?;
        Ok(bus)
    }

    /// Who has a name on the bus, by its number there.
    pub(super) fn owner(&mut self, name: &str) -> io::Result<Option<String>> {
        let mut body = Writer::default();
        body.text(name);
        match self.call(BUS, "GetNameOwner", "s", &body) {
            Ok(reply) => Ok(reply.reader().text().map(str::to_owned)),
            Err(e) if e.kind() == io::ErrorKind::Other => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The process that has a number on the bus.
    pub(super) fn process(&mut self, owner: &str) -> io::Result<u32> {
        let mut body = Writer::default();
        body.text(owner);
        let reply = self.call(BUS, "GetConnectionUnixProcessID", "s", &body)?;
        let process = reply.reader().u32();
        Ok(process.ok_or(io::ErrorKind::InvalidData)?)
    }

    /// Calls a method and waits for its answer. An error of the callee's is of kind `Other`.
    pub(super) fn call(
        &mut self,
        to: Object<'_>,
        member: &str,
        signature: &str,
        body: &Writer,
    ) -> io::Result<Reply> {
        self.serial = self.serial.wrapping_add(1).max(1);
        let message = call(self.serial, to, member, signature, body);
        self.socket.write_all(&message)?;
        let until = Instant::now() + PATIENCE;
        for _ in 0..MOST_OTHERS {
            if Instant::now() > until {
                break;
            }
            let (mut message, body) = self.next()?;
            let Some(answer) = answer(&message).filter(|a| a.to == self.serial) else {
                self.heard = true;
                continue;
            };
            return match answer.error {
                Some(name) => Err(io::Error::other(format!("{member}: {name}"))),
                None => Ok(Reply(message.split_off(body))),
            };
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Asks for signals: from now on they make the descriptor readable.
    pub(super) fn listen(&mut self, to: &str) -> io::Result<()> {
        let mut body = Writer::default();
        body.text(to);
        self.call(BUS, "AddMatch", "s", &body).map(drop)
    }

    /// What becomes readable when something comes.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether something came beside the answers, since this was asked last.
    pub(super) fn heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    /// Reads what is there, for the sake of having been told.
    pub(super) fn pass_over(&mut self) -> io::Result<()> {
        for _ in 0..MOST_OTHERS {
            let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
            if poll(&mut ready, Some(&Timespec::default()))? == 0 {
                break;
            }
            self.next()?;
        }
        Ok(())
    }

    /// The next message, and where its body begins.
    fn next(&mut self) -> io::Result<(Vec<u8>, usize)> {
        let mut head = [0; 16];
        self.socket.read_exact(&mut head)?;
        let (body, end) = length(&head).ok_or(io::ErrorKind::InvalidData)?;
        let mut message = head.to_vec();
        message.resize(end, 0);
        self.socket.read_exact(&mut message[16..])?;
        Ok((message, body))
    }
}

/// What a method gave back.
#[derive(Debug)]
pub(super) struct Reply(Vec<u8>);

impl Reply {
    pub(super) fn reader(&self) -> Reader<'_> {
        Reader::new(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_as_the_specification_lays_it_out() {
        let mut body = Writer::default();
        body.u32(7);
        body.array(8, |w| {
            w.structure();
            w.text("lab.test");
            w.bool(true);
        });
        assert_eq!(
            body.0,
            b"\x07\0\0\0\x14\0\0\0\x08\0\0\0lab.test\0\0\0\0\x01\0\0\0"
        );
        let message = call(5, BUS, "Hello", "", &Writer::default());
        assert_eq!(message[..8], *b"l\x01\x02\x01\0\0\0\0");
        assert_eq!(message.len() % 8, 0);
        let head = message.first_chunk().unwrap();
        assert_eq!(length(head), Some((message.len(), message.len())));
        assert_eq!(answer(&message), None, "a call is no answer");
    }

    #[test]
    fn an_answer_is_known_by_its_number() {
        let mut w = Writer(vec![b'l', METHOD_RETURN, 1, 1]);
        w.u32(8);
        w.u32(99);
        w.array(8, |w| {
            w.byte(field::REPLY_SERIAL);
            w.signature("u");
            w.u32(5);
            w.structure();
            w.byte(field::SIGNATURE);
            w.signature("g");
            w.signature("s");
        });
        let told = answer(&w.0).unwrap();
        assert_eq!((told.to, told.error), (5, None));
    }

    proptest! {
        #[test]
        fn no_bytes_break_anything(mut bytes in proptest::collection::vec(any::<u8>(), 16..120), like: bool) {
            if like {
                bytes[..4].copy_from_slice(b"l\x02\0\x01");
            }
            let _ = length(bytes.first_chunk().unwrap());
            let _ = answer(&bytes);
            let mut reader = Reader { bytes: &bytes, at: 0 };
            let _ = reader.array(8, |r| { Some((r.u32()?, r.text()?.len(), r.byte()?)) });
        }
    }
}
