//! One blocking netlink socket: a request and its answer, with the kernel's own words when it refuses.
//!
//! The kernel does what a request asks *inside* the send call and has the answer ready when it returns, so a blocking
//! socket on a thread of its own is as fast as any pipeline; an async one would only stall its runtime in the send.

use std::fmt;
use std::io;

use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{
    self,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use crate::firewall::batch::Batch;

/// Large enough for the biggest piece of a dump that the kernel sends.
const RECEIVE: usize = 64 * 1024;
/// A dump that was interrupted by a change is repeated this often before its last answer is taken.
const REPEATS: usize = 5;
/// `NLM_F_DUMP_INTR`: something changed while the dump ran.
const DUMP_INTERRUPTED: u16 = 0x10;

/// Why the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The error number.
    pub errno: i32,
    /// What the kernel added in words.
    pub words: Option<String>,
}

impl Refusal {
    pub(super) fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }

    fn parse(error: &ErrorMessage) -> Self {
        Self {
            errno: error.raw_code().abs(),
            words: words(&error.header),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            words: None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = io::Error::from_raw_os_error(self.errno).to_string();
        let text = text.split(" (os error").next().unwrap_or(&text);
        match &self.words {
            Some(words) => write!(f, "{words} ({text})")?,
            None => f.write_str(text)?,
        }
        if self.is(libc::EPERM) {
            write!(f, ": run as root, or give netd CAP_NET_ADMIN")?;
        }
        if self.is(libc::EXFULL) {
            write!(f, ": a bridge of the kernel takes 1023 ports")?;
        }
        Ok(())
    }
}

/// The extended acknowledgement: attributes behind the echoed header of the request, type 1 is a string.
fn words(echo: &[u8]) -> Option<String> {
    const HEADER: usize = 16;
    let mut rest = echo.get(HEADER..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]) & 0x3fff;
        let value = rest.get(4..length)?;
        if kind == 1 {
            let text = String::from_utf8_lossy(value);
            return Some(text.trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

pub(super) struct Socket {
    raw: sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// To rtnetlink.
    pub(super) fn routes() -> io::Result<Self> {
        let socket = Self::open(NETLINK_ROUTE)?;
        // Lets the kernel filter dumps (by protocol, by link); older ones send everything, which is filtered again.
        let _ = socket.raw.set_netlink_get_strict_chk(true);
        Ok(socket)
    }

    /// To nf_tables.
    pub(super) fn rules() -> io::Result<Self> {
        Self::open(NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut raw = sys::Socket::new(protocol)?;
        raw.bind_auto()?;
        raw.connect(&sys::SocketAddr::new(0, 0))?;
        raw.set_cap_ack(true)?;
        raw.set_ext_ack(true)?;
        Ok(Self {
            raw,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE),
        })
    }

    /// Sends a batch. All its answers are there when the send returns, so that none is waited for or left behind.
    pub(super) fn batch(&mut self, batch: &Batch) -> Result<(), Refusal> {
        self.raw.send(&batch.bytes, 0)?;
        let mut acknowledged = 0;
        let mut refused = None;
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => match Answer::default().take(&self.buffer, 0) {
                    Ok(done) => acknowledged += usize::from(done),
                    Err(refusal) => refused = refused.or(Some(refusal)),
                },
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        match refused {
            Some(refusal) => Err(refusal),
            None if acknowledged == batch.acknowledged => Ok(()),
            None => Err(io::Error::from_raw_os_error(libc::EPROTO).into()),
        }
    }

    /// Sends a command and waits until the kernel has done it.
    pub(super) fn command(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Refusal> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.collect().map(|_| ())
    }

    /// Asks one question with one answer.
    pub(super) fn ask(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Refusal> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        self.collect()
            .map(|answer| answer.messages.into_iter().next())
    }

    /// Asks for all there is.
    pub(super) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        let mut answer = Answer::default();
        for _ in 0..REPEATS {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            answer = self.collect()?;
            if !answer.interrupted {
                break;
            }
        }
        Ok(answer.messages)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.raw.send(&bytes, 0)?;
        Ok(())
    }

    /// Everything up to the acknowledgement or the end of the dump.
    fn collect(&mut self) -> Result<Answer, Refusal> {
        let mut answer = Answer::default();
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if answer.take(&self.buffer, self.sequence)? {
                return Ok(answer);
            }
        }
    }
}

#[derive(Default)]
struct Answer {
    messages: Vec<RouteNetlinkMessage>,
    interrupted: bool,
}

impl Answer {
    /// Takes the messages of one datagram; says whether it was the last.
    fn take(&mut self, datagram: &[u8], sequence: u32) -> Result<bool, Refusal> {
        for piece in pieces(datagram) {
            // What this version cannot read (an attribute of a later kernel) is none of ours.
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(piece) else {
                continue;
            };
            let (header, payload) = message.into_parts();
            if header.sequence_number != sequence {
                continue;
            }
            self.interrupted |= header.flags & DUMP_INTERRUPTED != 0;
            match payload {
                NetlinkPayload::InnerMessage(message) => self.messages.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(Refusal::parse(&error));
                }
                NetlinkPayload::Done(done) if done.code < 0 => {
                    let (errno, words) = (done.code.abs(), None);
                    return Err(Refusal { errno, words });
                }
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
            }
        }
        Ok(false)
    }
}

/// The messages of a datagram, by their length fields.
pub(super) fn pieces(mut datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = datagram.get(..4)?;
        let length = u32::from_ne_bytes([length[0], length[1], length[2], length[3]]);
        let length = usize::try_from(length).ok().filter(|l| *l >= 16)?;
        let piece = datagram.get(..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_an_acknowledgement() {
        let mut echo = vec![0; 16];
        echo.extend([8, 0, 2, 0, 1, 2, 3, 4]);
        echo.extend([9, 0, 1, 0, b't', b'h', b'e', b'r', 0, 0, 0, 0]);
        assert_eq!(words(&echo).as_deref(), Some("ther"));
        assert_eq!(words(&echo[..16]), None);
        assert_eq!(words(&echo[..7]), None);
        let refusal = Refusal {
            errno: libc::EEXIST,
            words: words(&echo),
        };
        assert_eq!(refusal.to_string(), "ther (File exists)");
    }

    #[test]
    fn pieces_of_a_datagram() {
        let mut datagram = vec![17, 0, 0, 0];
        datagram.resize(20, 0);
        datagram.extend([16, 0, 0, 0]);
        datagram.resize(36, 0);
        let lengths: Vec<usize> = pieces(&datagram).map(<[u8]>::len).collect();
        assert_eq!(lengths, [17, 16]);
        assert_eq!(pieces(&[200, 0, 0, 0, 0]).count(), 0);
        assert_eq!(pieces(&[0; 64]).count(), 0);
    }
}
