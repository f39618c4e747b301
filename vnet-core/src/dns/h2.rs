//! As much of HTTP/2 (RFC 9113) as asking DNS questions takes (RFC 8484), as bytes in and bytes out.
//!
//! Each question is a GET on a stream of its own: no body goes out, so the other side's windows never matter. Of the
//! heads that come in the status is read, and the age: a cache on the way may have held the answer for long.
//! Not here: TLS and sockets (`serve::dns`), pushes (they are turned off), and what a browser needs.

mod head;

use std::collections::{BTreeMap, VecDeque};

use super::response;

/// What a client says first (section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME: usize = 9;
/// The largest frame that we take (the least that every side has to take, section 4.2).
const MOST_FRAME: usize = 16_384;
/// The largest answer: a DNS message.
const MOST_BODY: usize = 65_535;
/// The largest head.
const MOST_HEAD: usize = 65_536;
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
    pub(super) const CONTINUATION: u8 = 9;
}

/// Frame flags.
mod bit {
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const ACK: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
    pub(super) const PRIORITY: u8 = 32;
}

/// What became of a stream: the body, or `None` if there will be none.
pub(crate) type Ended = (u32, Option<Vec<u8>>);

/// The other side does not speak the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

/// What came for a question so far.
#[derive(Debug, Default)]
struct Body {
    bytes: Vec<u8>,
    head: head::Head,
}

/// A head that comes in several frames.
#[derive(Debug)]
struct Block {
    stream: u32,
    flags: u8,
    bytes: Vec<u8>,
}

/// One connection's state.
#[derive(Debug)]
pub(crate) struct Session {
    authority: String,
    path: String,
    next: u32,
    bodies: BTreeMap<u32, Body>,
    block: Option<Block>,
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
            block: None,
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
        self.bodies.insert(stream, Body::default());
        self.frame(
            kind::HEADERS,
            bit::END_STREAM | bit::END_HEADERS,
            stream,
            &block,
        );
        Some(stream)
    }

    /// Nobody waits for an answer any more (CANCEL, section 7).
    pub(crate) fn cancel(&mut self, stream: u32) {
        if self.bodies.remove(&stream).is_some() {
            self.frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes());
        }
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
        // Section 6.10: nothing comes between the parts of a head.
        let goes_on = |b: &Block| kind == kind::CONTINUATION && b.stream == stream;
        if self.block.as_ref().is_some_and(|b| !goes_on(b)) {
            return Err(Broken);
        }
        match kind {
            kind::DATA => self.on_data(flags, stream, payload),
            kind::HEADERS => self.on_headers(flags, stream, payload),
            kind::CONTINUATION => self.on_continuation(flags, payload),
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

    fn on_headers(&mut self, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Broken> {
        let mut bytes = unpadded(flags, payload)?;
        if flags & bit::PRIORITY != 0 {
            bytes = bytes.get(5..).ok_or(Broken)?;
        }
        let block = Block {
            stream,
            flags,
            bytes: bytes.to_vec(),
        };
        if flags & bit::END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        self.on_head(&block)
    }

    fn on_continuation(&mut self, flags: u8, payload: &[u8]) -> Result<(), Broken> {
        let mut block = self.block.take().ok_or(Broken)?;
        if block.bytes.len() + payload.len() > MOST_HEAD {
            return Err(Broken);
        }
        block.bytes.extend_from_slice(payload);
        if flags & bit::END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        self.on_head(&block)
    }

    /// A whole head: an answer's, one that says that it will come (1xx), or what follows a body.
    fn on_head(&mut self, block: &Block) -> Result<(), Broken> {
        let head = head::read(&block.bytes).ok_or(Broken)?;
        if let Some(body) = self.bodies.get_mut(&block.stream) {
            let waits = body.head.status.is_none_or(|status| status < 200);
            if waits {
                body.head = head;
            }
        }
        if block.flags & bit::END_STREAM != 0 {
            self.end(block.stream);
        }
        Ok(())
    }

    fn on_data(&mut self, flags: u8, stream: u32, payload: &[u8]) -> Result<(), Broken> {
        self.taken += u32::try_from(payload.len()).unwrap_or(0);
        if self.taken >= TELL {
            let taken = std::mem::take(&mut self.taken);
            self.frame(kind::WINDOW_UPDATE, 0, 0, &taken.to_be_bytes());
        }
        let data = unpadded(flags, payload)?;
        let Some(body) = self.bodies.get_mut(&stream) else {
            return Ok(());
        };
        if body.bytes.len() + data.len() > MOST_BODY {
            self.cancel(stream);
            self.ended.push_back((stream, None));
            return Ok(());
        }
        body.bytes.extend_from_slice(data);
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

    /// RFC 8484 section 4.2.1: only a success is an answer; section 5.1: what it says of time has run since it left.
    fn end(&mut self, stream: u32) {
        if let Some(Body { mut bytes, head }) = self.bodies.remove(&stream) {
            let success = head.status.is_some_and(|s| (200..300).contains(&s));
            response::age(&mut bytes, head.age);
            let body = Some(bytes).filter(|body| success && !body.is_empty());
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

/// What is between a frame's padding.
fn unpadded(flags: u8, payload: &[u8]) -> Result<&[u8], Broken> {
    if flags & bit::PADDED == 0 {
        return Ok(payload);
    }
    let (pad, rest) = payload.split_first().ok_or(Broken)?;
    let len = rest.len().checked_sub(usize::from(*pad)).ok_or(Broken)?;
    Ok(&rest[..len])
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
    fn rfc8484_4_2_1_only_a_success_is_an_answer() {
        for (head, answered) in [
            (&[0x88][..], true),
            (b"\x08\x03299", true),
            (&[0x8e], false),
            (b"\x08\x03302", false),
            (&[], false),
        ] {
            let mut session = session();
            session.ask(b"one");
            let head = frame(kind::HEADERS, bit::END_HEADERS, 1, head);
            session.take(&head).unwrap();
            let body = frame(kind::DATA, bit::END_STREAM, 1, b"an answer, or a page");
            session.take(&body).unwrap();
            let (_, body) = session.ended().unwrap();
            assert_eq!(body.is_some(), answered, "{head:?}");
        }
    }

    #[test]
    fn rfc9113_8_1_heads_before_behind_and_in_pieces() {
        let mut session = session();
        session.ask(b"one");
        let all = [
            frame(kind::HEADERS, bit::END_HEADERS, 1, b"\x08\x03103"),
            frame(
                kind::HEADERS,
                bit::PADDED | bit::PRIORITY,
                1,
                b"\x02\0\0\0\0\0\x88xx",
            ),
            frame(kind::CONTINUATION, 0, 1, b"\x00\x03a"),
            frame(kind::CONTINUATION, bit::END_HEADERS, 1, b"ge\x0210"),
            frame(kind::DATA, 0, 1, b"answer"),
            frame(
                kind::HEADERS,
                bit::END_HEADERS | bit::END_STREAM,
                1,
                b"\x00\x01x\x01y",
            ),
        ];
        session.take(&all.concat()).unwrap();
        assert_eq!(session.ended(), Some((1, Some(b"answer".to_vec()))));
        session.ask(b"two");
        session.take(&frame(kind::HEADERS, 0, 3, &[0x88])).unwrap();
        let between = frame(kind::DATA, 0, 3, b"x");
        assert_eq!(session.take(&between), Err(Broken));
    }

    #[test]
    fn rfc8484_5_1_an_answer_ages_in_caches_on_the_way() {
        let answer = b"\0\0\x81\x80\0\x01\0\x01\0\0\0\0\x01a\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\x02\x58\0\x04\xc0\0\x02\x01";
        for (age, left) in [
            (&b"\x88"[..], 600u32),
            (b"\x88\x55\x03250", 350),
            (b"\x88\x55\x03700", 0),
        ] {
            let mut session = session();
            session.ask(b"one");
            let head = frame(kind::HEADERS, bit::END_HEADERS, 1, age);
            let body = frame(kind::DATA, bit::END_STREAM, 1, answer);
            session.take(&[head, body].concat()).unwrap();
            let body = session.ended().unwrap().1.unwrap();
            let ttl = body.len() - 10;
            assert_eq!(body[ttl..ttl + 4], left.to_be_bytes());
        }
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
        let head = frame(kind::HEADERS, bit::END_HEADERS, 1, &[0x88]);
        let body = frame(kind::DATA, bit::END_STREAM, 1, b"still");
        session.take(&[head, body].concat()).unwrap();
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
