//! As much of HTTP/2 (RFC 9113) as asking DNS questions takes (RFC 8484), as bytes in and bytes out.
//!
//! Each question is a GET on a stream of its own: no body goes out, so the other side's windows never matter. Header
//! blocks that come in are not read: whether a body answers the question is seen in the body, and an error page is none.
//! Not here: TLS and sockets (`serve::dns`), pushes (they are turned off), and what a browser needs.

use std::collections::{BTreeMap, VecDeque};

/// What a client says first (section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME: usize = 9;
/// The largest frame that we take (the least that every side has to take, section 4.2).
const MOST_FRAME: usize = 16_384;
/// The largest answer: a DNS message.
const MOST_BODY: usize = 65_535;
/// How much more than its first 64 KiB the other side may send on the connection before it waits for us.
const ROOM: u32 = 1 << 24;
/// Bytes taken after which the room is told anew.
const TELL: u32 = 1 << 20;
/// Streams after which the connection is given up for a new one.
const LAST_STREAM: u32 = 1 << 30;

/// Frame types (section 6).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

/// Frame flags.
mod bit {
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const ACK: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
}

/// What became of a stream: the body, or `None` if there will be none.
pub(crate) type Ended = (u32, Option<Vec<u8>>);

/// The other side does not speak the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

/// One connection's state.
#[derive(Debug)]
pub(crate) struct Session {
    authority: String,
    path: String,
    next: u32,
    bodies: BTreeMap<u32, Vec<u8>>,
    /// How many streams the other side takes at a time.
    most: usize,
    closing: bool,
    taken: u32,
    input: Vec<u8>,
    output: Vec<u8>,
    ended: VecDeque<Ended>,
}

impl Session {
    /// A connection to a server of this name, where questions go to `path`.
    #[must_use]
    pub(crate) fn new(authority: String, path: String) -> Self {
        let mut session = Self {
            authority,
            path,
            next: 1,
            bodies: BTreeMap::new(),
            most: 100,
            closing: false,
            taken: 0,
            input: Vec::new(),
            output: PREFACE.to_vec(),
            ended: VecDeque::new(),
        };
        // No table for compressed headers (they are not read), and no pushes.
        session.frame(kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        session.frame(kind::WINDOW_UPDATE, 0, 0, &ROOM.to_be_bytes());
        session
    }

    /// Asks; the number is the answer's. `None` if the other side takes no more, now or at all.
    pub(crate) fn ask(&mut self, message: &[u8]) -> Option<u32> {
        if self.is_closing() || self.bodies.len() >= self.most {
            return None;
        }
        let path = format!("{}?dns={}", self.path, base64url(message));
        // RFC 7541: indexed `:method: GET` and `:scheme: https`, then literals that are not indexed.
        let mut block = vec![0x82, 0x87, 0x01];
        literal(&mut block, self.authority.as_bytes());
        block.push(0x04);
        literal(&mut block, path.as_bytes());
        block.extend_from_slice(&[0x0f, 0x04]);
        literal(&mut block, b"application/dns-message");
        let stream = self.next;
        self.next += 2;
        self.bodies.insert(stream, Vec::new());
        self.frame(
            kind::HEADERS,
            bit::END_STREAM | bit::END_HEADERS,
            stream,
            &block,
        );
        Some(stream)
    }

    /// Whether it takes no more questions, ever: what is in flight may still be answered.
    #[must_use]
    pub(crate) fn is_closing(&self) -> bool {
        self.closing || self.next > LAST_STREAM
    }

    /// Takes what came.
    ///
    /// # Errors
    /// When it is not HTTP/2: the connection is good for nothing.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = input.as_slice();
        while let Some((head, after)) = rest.split_first_chunk::<FRAME>() {
            let [a, b, c, kind, flags, stream @ ..] = *head;
            let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if len > MOST_FRAME {
                return Err(Broken);
            }
            let Some((payload, next)) = after.split_at_checked(len) else {
                break;
            };
            self.on_frame(
                kind,
                flags,
                u32::from_be_bytes(stream) & 0x7fff_ffff,
                payload,
            )?;
            rest = next;
        }
        self.input = rest.to_vec();
        Ok(())
    }

    /// The next stream that ended.
    pub(crate) fn ended(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    /// What is to be sent, taken out.
    pub(crate) fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    fn on_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Broken> {
        match kind {
            kind::DATA => self.on_data(flags, stream, payload),
            kind::HEADERS => {
                if flags & bit::END_STREAM != 0 {
                    self.end(stream);
                }
                Ok(())
            }
            kind::RST_STREAM => {
                if self.bodies.remove(&stream).is_some() {
                    self.ended.push_back((stream, None));
                }
                Ok(())
            }
            kind::SETTINGS if flags & bit::ACK == 0 => {
                for setting in payload.as_chunks::<6>().0 {
                    let [0, 3, value @ ..] = setting else {
                        continue;
                    };
                    self.most = usize::try_from(u32::from_be_bytes(*value)).unwrap_or(usize::MAX);
                }
                self.frame(kind::SETTINGS, bit::ACK, 0, &[]);
                Ok(())
            }
            kind::PING if flags & bit::ACK == 0 && payload.len() == 8 => {
                self.frame(kind::PING, bit::ACK, 0, payload);
                Ok(())
            }
            kind::GOAWAY => self.on_goaway(payload),
            kind::PUSH_PROMISE => Err(Broken),
            // Priorities, windows for bodies that we never send, and what is not known (section 4.1).
            _ => Ok(()),
        }
    }

    fn on_data(&mut self, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Broken> {
        self.taken += u32::try_from(payload.len()).unwrap_or(0);
        if self.taken >= TELL {
            let taken = std::mem::take(&mut self.taken);
            self.frame(kind::WINDOW_UPDATE, 0, 0, &taken.to_be_bytes());
        }
        let mut data = payload;
        if flags & bit::PADDED != 0 {
            let (pad, rest) = payload.split_first().ok_or(Broken)?;
            let len = rest.len().checked_sub(usize::from(*pad)).ok_or(Broken)?;
            data = &rest[..len];
        }
        let Some(body) = self.bodies.get_mut(&stream) else {
            return Ok(());
        };
        if body.len() + data.len() > MOST_BODY {
            self.bodies.remove(&stream);
            self.ended.push_back((stream, None));
            // CANCEL (section 7).
            self.frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes());
            return Ok(());
        }
        body.extend_from_slice(data);
        if flags & bit::END_STREAM != 0 {
            self.end(stream);
        }
        Ok(())
    }

    /// Section 6.8: streams above the last that is told were not looked at.
    fn on_goaway(&mut self, payload: &[u8]) -> Result<(), Broken> {
        let last = payload.first_chunk::<4>().ok_or(Broken)?;
        let last = u32::from_be_bytes(*last) & 0x7fff_ffff;
        self.closing = true;
        let unseen = self.bodies.split_off(&last.saturating_add(1));
        self.ended
            .extend(unseen.into_keys().map(|stream| (stream, None)));
        Ok(())
    }

    fn end(&mut self, stream: u32) {
        if let Some(body) = self.bodies.remove(&stream) {
            let body = Some(body).filter(|body| !body.is_empty());
            self.ended.push_back((stream, body));
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
        self.output.extend_from_slice(&len[1..]);
        self.output.extend_from_slice(&[kind, flags]);
        self.output.extend_from_slice(&stream.to_be_bytes());
        self.output.extend_from_slice(payload);
    }
}

/// A string as it is, its length in front (RFC 7541 sections 5.1 and 5.2).
fn literal(block: &mut Vec<u8>, text: &[u8]) {
    match u8::try_from(text.len()).ok().filter(|len| *len < 127) {
        Some(len) => block.push(len),
        None => {
            block.push(127);
            let mut rest = text.len().saturating_sub(127);
            loop {
                let low = u8::try_from(rest & 127).unwrap_or(0);
                rest >>= 7;
                block.push(low | if rest > 0 { 128 } else { 0 });
                if rest == 0 {
                    break;
                }
            }
        }
    }
    block.extend_from_slice(text);
}

/// RFC 4648 section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len() * 4 / 3 + 3);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| usize::from(chunk.get(i).copied().unwrap_or(0));
        let all = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digits = (0..=chunk.len()).map(|i| DIGITS[all >> (18 - 6 * i) & 63]);
        text.extend(digits.map(char::from));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let [_, _, a, b] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[0, a, b, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    fn session() -> Session {
        let mut session = Session::new("dns.test".to_owned(), "/dns-query".to_owned());
        assert!(session.output().starts_with(PREFACE));
        session
    }

    #[test]
    fn rfc8484_4_1_1_a_question_is_a_get() {
        // The RFC's own example.
        let message = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";
        assert_eq!(
            base64url(message),
            "AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB"
        );
        let mut session = session();
        assert_eq!(session.ask(message), Some(1));
        assert_eq!(session.ask(message), Some(3));
        let output = session.output();
        let text = String::from_utf8_lossy(&output);
        assert!(
            text.contains("/dns-query?dns=AAABAAAB") && text.contains("application/dns-message")
        );
    }

    #[test]
    fn rfc7541_5_1_long_strings() {
        let mut block = Vec::new();
        literal(&mut block, &[b'x'; 1337 + 127]);
        // The RFC's own number (appendix C.1.2), with another prefix.
        assert_eq!(block[..4], [127, 0b1011_1001, 0b0000_1010, b'x']);
    }

    #[test]
    fn answers_in_pieces_and_in_any_order() {
        let mut session = session();
        session.ask(b"one");
        session.ask(b"two");
        session.output();
        let all = [
            frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 2]),
            frame(kind::HEADERS, bit::END_HEADERS, 3, &[0x88]),
            frame(kind::DATA, bit::PADDED, 3, b"\x02answerxx"),
            frame(kind::PING, 0, 0, b"12345678"),
            frame(
                kind::HEADERS,
                bit::END_HEADERS | bit::END_STREAM,
                1,
                &[0x8d],
            ),
            frame(kind::DATA, bit::END_STREAM, 3, b" two"),
        ]
        .concat();
        for byte in all {
            session.take(&[byte]).unwrap();
        }
        assert_eq!(
            session.ended(),
            Some((1, None)),
            "an answer without a body is none"
        );
        assert_eq!(session.ended(), Some((3, Some(b"answer two".to_vec()))));
        assert_eq!(
            session.output(),
            [
                frame(kind::SETTINGS, bit::ACK, 0, &[]),
                frame(kind::PING, bit::ACK, 0, b"12345678")
            ]
            .concat()
        );
        assert!(session.ask(b"a").is_some() && session.ask(b"b").is_some());
        assert_eq!(session.ask(b"c"), None, "two at a time, it said");
    }

    #[test]
    fn what_was_not_looked_at_is_told() {
        let mut session = session();
        for _ in 0..3 {
            session.ask(b"x");
        }
        session
            .take(&frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]))
            .unwrap();
        assert_eq!(
            (session.ended(), session.ended()),
            (Some((3, None)), Some((5, None)))
        );
        assert!(session.is_closing() && session.ask(b"y").is_none());
        session
            .take(&frame(kind::DATA, bit::END_STREAM, 1, b"still"))
            .unwrap();
        assert_eq!(session.ended(), Some((1, Some(b"still".to_vec()))));
    }

    #[test]
    fn too_much_is_cut_off() {
        let mut session = session();
        session.ask(b"x");
        for _ in 0..5 {
            session
                .take(&frame(kind::DATA, 0, 1, &[0; 16_000]))
                .unwrap();
        }
        assert_eq!(session.ended(), Some((1, None)));
        assert_eq!(session.take(&[0xff; 9]), Err(Broken));
        assert_eq!(
            session.take(&frame(kind::PUSH_PROMISE, 0, 1, &[])),
            Err(Broken)
        );
    }

    #[test]
    fn the_corpus_breaks_nothing() {
        let mut answered = 0;
        crate::dns::tests::feed("http2", |bytes| {
            // In one piece and byte by byte: the same comes of it.
            let mut whole = session();
            let stream = whole.ask(b"one");
            let said = whole.take(bytes);
            let ended: Vec<_> = std::iter::from_fn(|| whole.ended()).collect();
            let mut pieces = session();
            pieces.ask(b"one");
            let mut broken = false;
            for byte in bytes {
                broken |= pieces.take(&[*byte]).is_err();
                if broken {
                    break;
                }
            }
            let again: Vec<_> = std::iter::from_fn(|| pieces.ended()).collect();
            assert_eq!(said.is_err(), broken);
            if !broken {
                assert_eq!(ended, again);
            }
            answered += ended
                .iter()
                .filter(|(s, b)| Some(*s) == stream && b.is_some())
                .count();
            assert!(whole.output().len() < 1 << 16);
        });
        assert!(answered > 50, "{answered}");
    }

    proptest! {
        #[test]
        fn no_bytes_break_anything(pieces in proptest::collection::vec((0u8..11, any::<u8>(), 0u8..8, proptest::collection::vec(any::<u8>(), 0..40)), 0..12), noise in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut session = session();
            session.ask(b"one");
            session.ask(b"two");
            for (kind, flags, stream, payload) in pieces {
                let _ = session.take(&frame(kind, flags, stream, &payload));
            }
            let _ = session.take(&noise);
            let ended = std::iter::from_fn(|| session.ended()).count();
            prop_assert!(ended <= 2);
        }
    }
}
