//! One connection to an upstream, with many questions in flight: plain (RFC 7766), over TLS (RFC 7858) or over HTTPS
//! (RFC 8484). Bytes in, answers out; whose they are is the business of `channels`.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write as _};
use std::net::TcpStream;

use rustix::event::epoll::EventFlags;
use rustls::ClientConnection;

use super::tcp::{Input, Output, not_now};
use crate::dns::h2::Session;
use crate::dns::{ServerId, Target};

/// How long a connection may be idle, a plain one and a secure one, and how long it may leave questions without a sign of
/// life (milliseconds).
const IDLE: (u64, u64) = (10_000, 30_000);
const PATIENCE: u64 = 2_000;
/// After how long nobody waits for an answer any more.
const LATE: u64 = 8_000;
/// Questions in flight on one connection; more wait for their turn.
const MOST: usize = 256;
/// Bytes read in one turn, so that one upstream does not starve the rest.
const TURN: usize = 64 << 10;

/// A question that waits for its answer.
pub(super) struct Waiting {
    pub(super) ticket: u64,
    pub(super) message: Vec<u8>,
    pub(super) since: u64,
    /// On how many connections it was asked that broke.
    pub(super) broken: u8,
}

/// How bytes go over the connection.
pub(super) enum Carrier {
    Plain,
    Tls(Box<ClientConnection>),
}

/// How messages lie in those bytes.
pub(super) enum Framing {
    /// With their length in front; the number counts them.
    Lengths {
        input: Input,
        output: Output,
        next: u16,
    },
    /// A stream each.
    Http(Box<Session>),
}

impl Framing {
    pub(super) fn lengths() -> Self {
        Self::Lengths {
            input: Input::default(),
            output: Output::default(),
            next: 0,
        }
    }
}

/// One connection.
pub(super) struct Channel {
    pub(super) server: ServerId,
    pub(super) endpoint: Target,
    pub(super) socket: TcpStream,
    carrier: Carrier,
    framing: Framing,
    waiting: BTreeMap<u32, Waiting>,
    backlog: VecDeque<Waiting>,
    /// When it last said something.
    heard: u64,
    /// Whether it ever answered: then a question that it breaks off is asked once more.
    pub(super) proven: bool,
    pub(super) flags: EventFlags,
}

/// An answer, and whose it is.
pub(super) type Answered = (u64, Option<Vec<u8>>);

impl Channel {
    pub(super) fn new(
        now: u64,
        server: ServerId,
        endpoint: Target,
        socket: TcpStream,
        (carrier, framing): (Carrier, Framing),
    ) -> Self {
        Self {
            server,
            endpoint,
            socket,
            carrier,
            framing,
            waiting: BTreeMap::new(),
            backlog: VecDeque::new(),
            heard: now,
            proven: false,
            flags: EventFlags::IN | EventFlags::OUT,
        }
    }

    /// Puts a question on the connection, or behind those that wait for it.
    pub(super) fn ask(&mut self, waiting: Waiting) {
        if self.waiting.len() >= MOST {
            return self.backlog.push_back(waiting);
        }
        let mut message = waiting.message.clone();
        let Some(number) = message.first_chunk_mut::<2>() else {
            return;
        };
        let key = match &mut self.framing {
            Framing::Lengths { output, next, .. } => {
                while self.waiting.contains_key(&u32::from(*next)) {
                    *next = next.wrapping_add(1);
                }
                let key = *next;
                *next = next.wrapping_add(1);
                *number = key.to_be_bytes();
                output.push(&message);
                u32::from(key)
            }
            Framing::Http(session) => {
                // RFC 8484 section 4.1: the number 0, for the sake of caches.
                *number = [0; 2];
                let Some(stream) = session.ask(&message) else {
                    return self.backlog.push_back(waiting);
                };
                stream
            }
        };
        self.waiting.insert(key, waiting);
    }

    /// Moves bytes both ways; the answers that came. An error is the end of the connection.
    pub(super) fn pump(&mut self, now: u64) -> io::Result<Vec<Answered>> {
        let mut plain = Vec::new();
        let (open, some) = self.read(&mut plain)?;
        if some {
            self.heard = now;
        }
        let answered = self.take(&plain)?;
        self.proven |= !answered.is_empty();
        let waits = std::mem::take(&mut self.backlog);
        waits.into_iter().for_each(|waiting| self.ask(waiting));
        self.flush()?;
        // What came before the end is good all the same.
        if !open && answered.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answered)
    }

    /// Whether the connection is open, and whether it said anything.
    fn read(&mut self, plain: &mut Vec<u8>) -> io::Result<(bool, bool)> {
        let mut total = 0;
        while total < TURN {
            let got = match &mut self.carrier {
                Carrier::Plain => read_plain(&self.socket, plain),
                Carrier::Tls(tls) => read_tls(tls, &self.socket, plain),
            };
            match got {
                Ok(0) => return Ok((false, total > 0)),
                Ok(got) => total += got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if not_now(&e) => break,
                Err(e) => return Err(e),
            }
        }
        Ok((true, total > 0))
    }

    fn take(&mut self, plain: &[u8]) -> io::Result<Vec<Answered>> {
        let mut ended: Vec<(u32, Option<Vec<u8>>)> = Vec::new();
        match &mut self.framing {
            Framing::Lengths { input, .. } => {
                input.push(plain);
                while let Some(message) = input.next() {
                    if let Some(id) = message.first_chunk::<2>() {
                        ended.push((u16::from_be_bytes(*id).into(), Some(message)));
                    }
                }
            }
            Framing::Http(session) => {
                let spoken = match &self.carrier {
                    Carrier::Tls(tls) if tls.is_handshaking() => None,
                    Carrier::Tls(tls) => Some(tls.alpn_protocol() == Some(b"h2")),
                    Carrier::Plain => Some(false),
                };
                if spoken == Some(false) {
                    return Err(io::Error::other("it does not speak HTTP/2"));
                }
                let broken = |_| io::Error::other("what it speaks is not HTTP/2");
                session.take(plain).map_err(broken)?;
                ended.extend(std::iter::from_fn(|| session.ended()));
            }
        }
        let mut answered = Vec::new();
        for (key, message) in ended {
            let Some(waiting) = self.waiting.remove(&key) else {
                continue;
            };
            let id = waiting.message.first_chunk::<2>();
            let message = message.and_then(|mut message| {
                message.first_chunk_mut::<2>()?.copy_from_slice(id?);
                Some(message)
            });
            answered.push((waiting.ticket, message));
        }
        Ok(answered)
    }

    /// Sends what can be sent.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match (&mut self.carrier, &mut self.framing) {
            (Carrier::Plain, Framing::Lengths { output, .. }) => output.flush(&self.socket),
            // Never made: HTTP/2 is only spoken over TLS.
            (Carrier::Plain, Framing::Http(_)) => Err(io::ErrorKind::Unsupported.into()),
            (Carrier::Tls(tls), framing) => {
                // Into a buffer of its own: it is bounded by the number of questions.
                match framing {
                    Framing::Lengths { output, .. } => output.flush(tls.writer())?,
                    Framing::Http(session) => tls.writer().write_all(&session.output())?,
                }
                write_tls(tls, &self.socket)
            }
        }
    }

    /// Whether there is something that the socket did not take.
    pub(super) fn wants_write(&self) -> bool {
        match (&self.carrier, &self.framing) {
            (Carrier::Tls(tls), _) => tls.wants_write(),
            (Carrier::Plain, Framing::Lengths { output, .. }) => output.len() > 0,
            (Carrier::Plain, Framing::Http(_)) => false,
        }
    }

    /// Whether nothing new can be asked on it.
    pub(super) fn is_closing(&self) -> bool {
        match &self.framing {
            Framing::Lengths { .. } => false,
            Framing::Http(session) => session.is_closing(),
        }
    }

    pub(super) fn is_plain(&self) -> bool {
        matches!(self.carrier, Carrier::Plain)
    }

    /// Whether it is to be ended: it is idle, or it leaves questions unanswered and says nothing.
    pub(super) fn is_over(&self, now: u64) -> bool {
        let idle = if self.is_plain() { IDLE.0 } else { IDLE.1 };
        let quiet = now.saturating_sub(self.heard);
        match self.waiting.values().map(|w| w.since).min() {
            Some(since) => now.saturating_sub(since.max(self.heard)) > PATIENCE,
            None => self.is_closing() || quiet > idle,
        }
    }

    /// Forgets questions that nobody waits for any more: one that an upstream never answers would take a place for ever.
    pub(super) fn forget_late(&mut self, now: u64) {
        let late = |w: &Waiting| now.saturating_sub(w.since) > LATE;
        self.backlog.retain(|w| !late(w));
        let keys: Vec<u32> = (self.waiting.iter())
            .filter(|(_, w)| late(w))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.waiting.remove(&key);
            if let Framing::Http(session) = &mut self.framing {
                session.cancel(key);
            }
        }
    }

    /// What it leaves when it ends.
    pub(super) fn into_left(self) -> Vec<Waiting> {
        let waiting = self.waiting.into_values();
        waiting.chain(self.backlog).collect()
    }
}

fn read_plain(mut socket: &TcpStream, plain: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0; 16 << 10];
    let got = io::Read::read(&mut socket, &mut buffer)?;
    plain.extend_from_slice(&buffer[..got]);
    Ok(got)
}

fn read_tls(
    tls: &mut ClientConnection,
    mut socket: &TcpStream,
    plain: &mut Vec<u8>,
) -> io::Result<usize> {
    let got = tls.read_tls(&mut socket)?;
    let state = tls.process_new_packets().map_err(io::Error::other)?;
    let before = plain.len();
    plain.resize(before + state.plaintext_bytes_to_read(), 0);
    io::Read::read_exact(&mut tls.reader(), &mut plain[before..])?;
    Ok(got)
}

fn write_tls(tls: &mut ClientConnection, mut socket: &TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(&mut socket) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if not_now(&e) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    use super::*;

    /// A channel to an upstream of the test's own.
    fn connected(framing: Framing) -> (Channel, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let endpoint = Target::from(crate::model::Endpoint::from(address));
        let spoken = (Carrier::Plain, framing);
        let channel = Channel::new(0, ServerId::default(), endpoint, socket, spoken);
        let upstream = listener.accept().unwrap().0;
        let patience = Some(Duration::from_secs(10));
        upstream.set_read_timeout(patience).unwrap();
        (channel, upstream)
    }

    /// Questions by their tickets, all with the same number, as askers choose it.
    fn ask(channel: &mut Channel, tickets: std::ops::Range<u64>, now: u64) {
        for ticket in tickets {
            channel.ask(Waiting {
                ticket,
                message: vec![0xab, 0xcd, 1, 0, u8::try_from(ticket).unwrap()],
                since: now,
                broken: 0,
            });
        }
    }

    fn hear(upstream: &mut TcpStream) -> Vec<u8> {
        let mut len = [0; 2];
        io::Read::read_exact(upstream, &mut len).unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
        io::Read::read_exact(upstream, &mut message).unwrap();
        message
    }

    fn say(upstream: &mut TcpStream, message: &[u8]) {
        let len = u16::try_from(message.len()).unwrap().to_be_bytes();
        upstream.write_all(&[&len[..], message].concat()).unwrap();
    }

    /// What comes until there are so many.
    fn answers(channel: &mut Channel, count: usize, now: u64) -> Vec<Answered> {
        let end = Instant::now() + Duration::from_secs(10);
        let mut all = Vec::new();
        while all.len() < count {
            assert!(Instant::now() < end, "{} answers", all.len());
            all.extend(channel.pump(now).unwrap());
            std::thread::yield_now();
        }
        all
    }

    #[test]
    fn rfc7766_6_2_1_1_questions_do_not_wait_for_answers_which_come_in_any_order() {
        let (mut channel, mut upstream) = connected(Framing::lengths());
        ask(&mut channel, 1..4, 0);
        channel.flush().unwrap();
        let heard: Vec<_> = (0..3).map(|_| hear(&mut upstream)).collect();
        // Section 7: told apart by their numbers alone, so no two have the same.
        let mut numbers: Vec<_> = heard.iter().map(|m| [m[0], m[1]]).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 3);
        for message in heard.iter().rev() {
            say(&mut upstream, message);
        }
        let answers = answers(&mut channel, 3, 0);
        let told: Vec<_> = answers.iter().map(|(ticket, _)| *ticket).collect();
        assert_eq!(told, [3, 2, 1]);
        for (ticket, message) in answers {
            let wanted = [0xab, 0xcd, 1, 0, u8::try_from(ticket).unwrap()];
            assert_eq!(message.unwrap(), wanted, "the asker's own number");
        }
        // What answers nothing is passed over, and so is a second answer.
        say(&mut upstream, &heard[0]);
        say(&mut upstream, &[0x77, 0x77, 0]);
        ask(&mut channel, 4..5, 0);
        channel.flush().unwrap();
        let last = hear(&mut upstream);
        say(&mut upstream, &last);
        assert_eq!(super::tests::answers(&mut channel, 1, 0)[0].0, 4);
    }

    #[test]
    fn rfc7766_6_2_3_who_is_idle_is_closed_and_who_is_asked_is_waited_for() {
        let (mut channel, mut upstream) = connected(Framing::lengths());
        ask(&mut channel, 1..2, 0);
        channel.flush().unwrap();
        let heard = hear(&mut upstream);
        assert!(!channel.is_over(PATIENCE));
        assert!(channel.is_over(PATIENCE + 1), "it says nothing at all");
        say(&mut upstream, &heard);
        answers(&mut channel, 1, 1_500);
        assert!(!channel.is_over(1_500 + IDLE.0));
        assert!(channel.is_over(1_500 + IDLE.0 + 1));
    }

    #[test]
    fn rfc7766_6_2_4_what_a_broken_connection_leaves_is_known() {
        let (mut channel, mut upstream) = connected(Framing::lengths());
        ask(&mut channel, 1..4, 0);
        channel.flush().unwrap();
        let first = hear(&mut upstream);
        say(&mut upstream, &first);
        assert_eq!(answers(&mut channel, 1, 0)[0].0, 1);
        drop(upstream);
        let end = Instant::now() + Duration::from_secs(10);
        while channel.pump(0).is_ok() {
            assert!(Instant::now() < end, "the end is not noticed");
        }
        let left: Vec<_> = channel.into_left().iter().map(|w| w.ticket).collect();
        assert_eq!(left, [2, 3]);
    }

    /// The same question is the same request, whoever asks it: caches on the way may know it.
    #[test]
    fn rfc8484_4_1_the_number_is_0() {
        let session = Session::new("dns.example".to_owned(), "/dns-query".to_owned());
        let (mut channel, _upstream) = connected(Framing::Http(Box::new(session)));
        ask(&mut channel, 1..2, 0);
        let Framing::Http(session) = &mut channel.framing else {
            panic!("it was HTTP");
        };
        let said = session.output();
        // The bytes 0 0 1 0 1 in base64url, and not ab cd.
        let wanted = b"/dns-query?dns=AAABAAE";
        assert!(said.windows(wanted.len()).any(|part| part == wanted));
    }
}
