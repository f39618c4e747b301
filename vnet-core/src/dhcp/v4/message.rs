//! A DHCPv4 message as bytes: RFC 2131 section 2, options by RFC 2132, concatenation by RFC 3396.
//!
//! Our own walker, not dhcproto's: that one panics on `hlen` over 16 (one packet would end the daemon), takes any
//! magic cookie, drops malformed options without a word, loses all but the last of a repeated option, and does not
//! look into overloaded `file` and `sname`. It stays the independent peer of our tests. See
//! `docs/decisions/dhcp-wire.md`.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use super::code;
use crate::types::Mac;

const FIXED: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Pieces of options in one message: more is an attack, not a client.
const MOST_PIECES: usize = 128;

/// What a message is about (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageType {
    /// A client looks for servers.
    Discover,
    /// A server offers an address.
    Offer,
    /// A client wants an address, or more time for it.
    Request,
    /// A client found its address in use.
    Decline,
    /// It is the client's.
    Ack,
    /// It is not.
    Nak,
    /// A client gives its address back.
    Release,
    /// A client with an address of its own wants options.
    Inform,
}

impl MessageType {
    /// All of them, by their number on the wire.
    pub const ALL: [Self; 8] = [
        Self::Discover,
        Self::Offer,
        Self::Request,
        Self::Decline,
        Self::Ack,
        Self::Nak,
        Self::Release,
        Self::Inform,
    ];

    /// From option 53.
    #[must_use]
    pub fn from_wire(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }

    /// The value of option 53.
    #[must_use]
    pub const fn to_wire(self) -> u8 {
        self as u8 + 1
    }

    /// The word counters use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Offer => "offer",
            Self::Request => "request",
            Self::Decline => "decline",
            Self::Ack => "ack",
            Self::Nak => "nak",
            Self::Release => "release",
            Self::Inform => "inform",
        }
    }
}

/// Why bytes are not a message to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Malformed {
    /// Shorter than the fixed part.
    Short,
    /// A reply, or nothing known.
    NotARequest,
    /// A hardware address longer than its field.
    HardwareLength,
    /// No magic cookie: plain BOOTP, or nothing of the kind.
    Cookie,
    /// An option runs past the end of its field.
    Truncated,
    /// More options than any client sends.
    TooMany,
    /// No message type, or an unknown one.
    Type,
}

/// A message from a client (or a relay), checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is about.
    pub kind: MessageType,
    /// Hardware type; 1 is Ethernet.
    pub htype: u8,
    /// Length of the hardware address, at most 16.
    pub hlen: u8,
    /// Relays passed.
    pub hops: u8,
    /// The client's number for the exchange.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// The client cannot take unicast before it has its address.
    pub broadcast: bool,
    /// The address that the client has.
    pub ciaddr: Ipv4Addr,
    /// The relay nearest to the client.
    pub giaddr: Ipv4Addr,
    /// The hardware address's field; `hlen` of it count.
    pub chaddr: [u8; 16],
    options: Vec<(u8, Cow<'a, [u8]>)>,
}

impl<'a> Message<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (fixed, rest) = bytes.split_at_checked(FIXED).ok_or(Malformed::Short)?;
        if fixed[0] != 1 {
            return Err(Malformed::NotARequest);
        }
        // Checked before anything looks at chaddr: the length comes from the sender.
        if fixed[2] > 16 {
            return Err(Malformed::HardwareLength);
        }
        let field = rest.strip_prefix(&COOKIE).ok_or(Malformed::Cookie)?;
        let mut options = Vec::with_capacity(16);
        let overload = walk(field, &mut options)?;
        // RFC 3396 section 5: the aggregate is options, file, sname, in that order.
        if overload & 1 != 0 {
            walk(&fixed[108..236], &mut options)?;
        }
        if overload & 2 != 0 {
            walk(&fixed[44..108], &mut options)?;
        }
        let kind = options
            .iter()
            .find(|(code, _)| *code == code::MESSAGE_TYPE)
            .and_then(|(_, data)| MessageType::from_wire(*data.first()?))
            .ok_or(Malformed::Type)?;
        let mut chaddr = [0; 16];
        chaddr.copy_from_slice(&fixed[28..44]);
        Ok(Self {
            kind,
            htype: fixed[1],
            hlen: fixed[2],
            hops: fixed[3],
            xid: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            secs: u16::from_be_bytes([fixed[8], fixed[9]]),
            broadcast: fixed[10] & 0x80 != 0,
            ciaddr: address_at(fixed, 12),
            giaddr: address_at(fixed, 24),
            chaddr,
            options,
        })
    }

    /// The hardware address, if it is Ethernet's and one that a client can have.
    #[must_use]
    pub fn mac(&self) -> Option<Mac> {
        let mac = Mac(*self.chaddr.first_chunk::<6>()?);
        (self.htype == 1 && self.hlen == 6 && !mac.is_group() && !mac.is_zero()).then_some(mac)
    }

    /// The bytes of an option, its pieces joined.
    #[must_use]
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options
            .iter()
            .find(|(c, _)| *c == code)
            .map(|(_, data)| data.as_ref())
    }

    /// A suboption of what a relay says about the client (RFC 3046). Without a relay nobody may say it.
    #[must_use]
    pub fn agent(&self, suboption: u8) -> Option<&[u8]> {
        if self.giaddr == Ipv4Addr::UNSPECIFIED {
            return None;
        }
        let mut data = self.option(code::RELAY)?;
        while let [found, len, rest @ ..] = data {
            let (value, rest) = rest.split_at_checked(usize::from(*len))?;
            if *found == suboption {
                return Some(value);
            }
            data = rest;
        }
        None
    }

    /// A suboption of the relay's that is one address.
    #[must_use]
    pub fn agent_address(&self, suboption: u8) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.agent(suboption)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    }

    /// An option that is one address.
    #[must_use]
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.option(code)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    }

    /// An option that is one number of two bytes.
    #[must_use]
    pub fn u16(&self, code: u8) -> Option<u16> {
        Some(u16::from_be_bytes(self.option(code)?.try_into().ok()?))
    }

    /// An option that is one number of four bytes.
    #[must_use]
    pub fn u32(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.option(code)?.try_into().ok()?))
    }
}

fn address_at(fixed: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3])
}

/// Collects the options of one field; pieces of one code are joined (RFC 3396). The value of option 52.
fn walk<'a>(mut field: &'a [u8], into: &mut Vec<(u8, Cow<'a, [u8]>)>) -> Result<u8, Malformed> {
    let (mut overload, mut pieces) = (0, into.len());
    while let Some((&code, rest)) = field.split_first() {
        field = rest;
        if code == code::PAD {
            continue;
        }
        if code == code::END {
            break;
        }
        let (&len, rest) = field.split_first().ok_or(Malformed::Truncated)?;
        let (data, rest) = rest
            .split_at_checked(usize::from(len))
            .ok_or(Malformed::Truncated)?;
        field = rest;
        pieces += 1;
        if pieces > MOST_PIECES {
            return Err(Malformed::TooMany);
        }
        if code == code::OVERLOAD {
            overload = data.first().copied().unwrap_or(0);
            continue;
        }
        match into.iter_mut().find(|(c, _)| *c == code) {
            Some((_, joined)) => joined.to_mut().extend_from_slice(data),
            None => into.push((code, Cow::Borrowed(data))),
        }
    }
    Ok(overload)
}

/// END, and option 52 if it comes to that.
const OVERHEAD: usize = 4;
/// What a reply is nothing without: its kind, the server, the times and the mask.
const ESSENTIALS: usize = 40;

/// The fixed part of a reply.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) htype: u8,
    pub(super) hlen: u8,
    pub(super) xid: u32,
    pub(super) broadcast: bool,
    pub(super) ciaddr: Ipv4Addr,
    pub(super) yiaddr: Ipv4Addr,
    pub(super) siaddr: Ipv4Addr,
    pub(super) giaddr: Ipv4Addr,
    pub(super) chaddr: [u8; 16],
    /// The boot file: at most 127 bytes. With one, options do not overflow into its field.
    pub(super) file: &'a [u8],
    /// The boot server's name: at most 63 bytes, likewise.
    pub(super) sname: &'a [u8],
}

/// Options as they go over the wire, with their codes.
type Options<'a> = [(u8, Cow<'a, [u8]>)];

/// Writes a reply: the options in the order given, overflowing into `file` and `sname` where the client's size
/// does not hold them (RFC 2131 section 4.1, option 52); what fits nowhere is left out, the last first, and its
/// code is told. What comes last stays in the options field, since a relay looks nowhere else (RFC 3046 section 2.2): its room is kept.
pub(super) fn encode(
    head: &Head<'_>,
    options: &Options<'_>,
    last: &Options<'_>,
    most: usize,
) -> (Vec<u8>, Vec<u8>) {
    let mut out = Vec::with_capacity(400);
    out.extend_from_slice(&[2, head.htype, head.hlen, 0]);
    out.extend_from_slice(&head.xid.to_be_bytes());
    out.extend_from_slice(&[0, 0, if head.broadcast { 0x80 } else { 0 }, 0]);
    for address in [head.ciaddr, head.yiaddr, head.siaddr, head.giaddr] {
        out.extend_from_slice(&address.octets());
    }
    out.extend_from_slice(&head.chaddr);
    out.resize(FIXED, 0);
    out.extend_from_slice(&COOKIE);

    let mut kept = most.saturating_sub(out.len() + OVERHEAD + ESSENTIALS);
    // The very last matters most.
    let first = last.iter().rposition(|(_, data)| {
        let left = kept.checked_sub(wire_len(data));
        kept = left.unwrap_or(kept);
        left.is_none()
    });
    let last = &last[first.map_or(0, |at| at + 1)..];
    let most = most - last.iter().map(|(_, data)| wire_len(data)).sum::<usize>();
    let all: usize = options.iter().map(|(_, data)| wire_len(data)).sum();
    let fits = out.len() + all < most;
    let room = if fits {
        most - 1
    } else {
        most.saturating_sub(OVERHEAD)
    };
    let (mut file, mut sname, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for (code, data) in options {
        let len = wire_len(data);
        if out.len() + len <= room {
            put(&mut out, *code, data);
        } else if head.file.is_empty() && file.len() + len < 128 {
            put(&mut file, *code, data);
        } else if head.sname.is_empty() && sname.len() + len < 64 {
            put(&mut sname, *code, data);
        } else {
            left_out.push(*code);
        }
    }
    let overload = u8::from(!file.is_empty()) | (u8::from(!sname.is_empty()) << 1);
    if overload != 0 {
        put(&mut out, code::OVERLOAD, &[overload]);
    }
    for (code, data) in last {
        put(&mut out, *code, data);
    }
    for (field, at) in [(file, 108), (sname, 44)] {
        if !field.is_empty() {
            out[at..at + field.len()].copy_from_slice(&field);
            out[at + field.len()] = code::END;
        }
    }
    for (field, at) in [(head.file, 108), (head.sname, 44)] {
        if let Some(room) = out.get_mut(at..at + field.len()) {
            room.copy_from_slice(field);
        }
    }
    out.push(code::END);
    // RFC 1542 section 2.1: BOOTP's 300 bytes are the least that some clients and relays take.
    if out.len() < 300 {
        out.resize(300, 0);
    }
    (out, left_out)
}

/// What an option takes on the wire, headers of its pieces included.
fn wire_len(data: &[u8]) -> usize {
    data.len() + 2 * data.len().div_ceil(255).max(1)
}

fn put(out: &mut Vec<u8>, code: u8, data: &[u8]) {
    if data.is_empty() {
        out.extend_from_slice(&[code, 0]);
    }
    for piece in data.chunks(255) {
        out.push(code);
        out.push(u8::try_from(piece.len()).unwrap_or(255));
        out.extend_from_slice(piece);
    }
}
