//! Bytes to a checked message, and options to bytes. Everything is bounded: relays, associations and addresses beyond
//! what an honest message has are not looked at, or the message is none.

use std::net::Ipv6Addr;

use super::code;
use crate::types::{Mac, PortName};

/// Relays between a client and us that we believe: `HOP_COUNT_LIMIT` (RFC 8415 section 7.6) is the count that the last
/// of them writes, and the first writes zero.
const MOST_RELAYS: usize = 9;
/// Associations of one message that are looked at, and addresses of each.
const MOST_IAS: usize = 8;
const MOST_ADDRESSES: usize = 8;

/// What a message is for (RFC 8415 section 7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageType {
    /// A client looks for servers.
    Solicit,
    /// A server is there.
    Advertise,
    /// A client wants what was advertised.
    Request,
    /// A client asks whether its addresses fit the link.
    Confirm,
    /// A client wants more time, of this server.
    Renew,
    /// A client wants more time, of any server.
    Rebind,
    /// A server's answer.
    Reply,
    /// A client gives an address back.
    Release,
    /// A client found its address in use.
    Decline,
    /// A server wants to be asked again.
    Reconfigure,
    /// A client asks for options only.
    InformationRequest,
}

use MessageType::{
    Advertise, Confirm, Decline, InformationRequest, Rebind, Reconfigure, Release, Renew, Reply,
    Request, Solicit,
};

impl MessageType {
    const ALL: [(u8, Self, &'static str); 11] = [
        (1, Solicit, "solicit"),
        (2, Advertise, "advertise"),
        (3, Request, "request"),
        (4, Confirm, "confirm"),
        (5, Renew, "renew"),
        (6, Rebind, "rebind"),
        (7, Reply, "reply"),
        (8, Release, "release"),
        (9, Decline, "decline"),
        (10, Reconfigure, "reconfigure"),
        (11, InformationRequest, "information-request"),
    ];

    fn from_code(code: u8) -> Option<Self> {
        let row = Self::ALL.iter().find(|row| row.0 == code);
        row.map(|row| row.1)
    }

    pub(super) fn code(self) -> u8 {
        let row = Self::ALL.iter().find(|row| row.1 == self);
        row.map_or(0, |row| row.0)
    }

    /// The word that counters use.
    #[must_use]
    pub fn word(self) -> &'static str {
        let row = Self::ALL.iter().find(|row| row.1 == self);
        row.map_or("", |row| row.2)
    }
}

/// A relay that the message passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Relay<'a> {
    pub(super) hops: u8,
    pub(super) link: Ipv6Addr,
    pub(super) peer: Ipv6Addr,
    options: &'a [u8],
}

/// A client's message, with the relays that it passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is for.
    pub kind: MessageType,
    /// By which the client knows the answer.
    pub xid: [u8; 3],
    options: &'a [u8],
    /// The one next to us first.
    pub(super) relays: Vec<Relay<'a>>,
}

/// An association of addresses (`IA_NA`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ia {
    pub(super) id: u32,
    pub(super) addresses: Vec<Ipv6Addr>,
}

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Message<'a> {
    /// Reads a message, out of whatever relays wrapped it in.
    ///
    /// # Errors
    /// [`Malformed`], whatever is wrong with it.
    pub fn parse(mut bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut relays = Vec::new();
        while let Some((&code::RELAY_FORWARD, rest)) = bytes.split_first() {
            if relays.len() == MOST_RELAYS {
                return Err(Malformed);
            }
            let (head, options) = rest.split_at_checked(33).ok_or(Malformed)?;
            let (hops, link, peer) = (head[0], address(&head[1..17]), address(&head[17..33]));
            if !is_whole(options) {
                return Err(Malformed);
            }
            relays.push(Relay {
                hops,
                link: link.ok_or(Malformed)?,
                peer: peer.ok_or(Malformed)?,
                options,
            });
            bytes = find(options, code::RELAY_MESSAGE).ok_or(Malformed)?;
        }
        let (&[kind, a, b, c], options) = bytes.split_first_chunk::<4>().ok_or(Malformed)?;
        if !is_whole(options) {
            return Err(Malformed);
        }
        Ok(Self {
            kind: MessageType::from_code(kind).ok_or(Malformed)?,
            xid: [a, b, c],
            options,
            relays,
        })
    }

    pub(super) fn option(&self, code: u16) -> Option<&'a [u8]> {
        find(self.options, code)
    }

    pub(super) fn has(&self, code: u16) -> bool {
        self.option(code).is_some()
    }

    /// The client's identifier: a type and up to 128 bytes (RFC 8415 section 11.1).
    pub(super) fn duid(&self) -> Option<&'a [u8]> {
        self.option(code::CLIENT_ID)
            .filter(|duid| (3..=130).contains(&duid.len()))
    }

    /// Whether the client asked for an option; one that says nothing gets all.
    pub(super) fn wants(&self, code: u16) -> bool {
        self.option(code::OPTION_REQUEST).is_none_or(|codes| {
            let (codes, _) = codes.as_chunks::<2>();
            codes.contains(&code.to_be_bytes())
        })
    }

    /// The associations it speaks of.
    pub(super) fn ias(&self) -> Vec<Ia> {
        let ias = walk(self.options).filter(|(code, _)| *code == code::IA_NA);
        ias.filter_map(|(_, data)| ia(data))
            .take(MOST_IAS)
            .collect()
    }

    /// Associations of a kind that we have nothing for, by their heads.
    pub(super) fn others(&self, code: u16) -> impl Iterator<Item = [u8; 4]> {
        let all = walk(self.options).filter(move |(found, _)| *found == code);
        all.filter_map(|(_, data)| data.first_chunk().copied())
            .take(MOST_IAS)
    }

    /// The first label of the name it sends (RFC 4704), and the flags that came with it.
    pub(super) fn name(&self) -> Option<(u8, PortName)> {
        let (flags, name) = self.option(code::FQDN)?.split_first()?;
        let (len, rest) = name.split_first()?;
        let label = rest.get(..usize::from(*len))?;
        Some((*flags, std::str::from_utf8(label).ok()?.parse().ok()?))
    }

    /// Its firmwares (RFC 5970 section 3.3): numbers of two bytes.
    pub(super) fn arch(&self) -> &'a [u8] {
        self.option(code::ARCH).unwrap_or_default()
    }

    /// The vendor class: whose words they are, and the first of them (RFC 8415 section 21.16).
    pub(super) fn vendor_class(&self) -> Option<([u8; 4], &'a [u8])> {
        let (enterprise, texts) = self.option(code::VENDOR_CLASS)?.split_first_chunk()?;
        Some((*enterprise, texts_of(texts).next()?))
    }

    /// The user classes (RFC 8415 section 21.15), each with its length before it as in RFC 3004.
    pub(super) fn user_classes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for text in texts_of(self.option(code::USER_CLASS).unwrap_or_default()) {
            if let Ok(len) = u8::try_from(text.len()) {
                out.push(len);
                out.extend_from_slice(text);
            }
        }
        out
    }

    /// The client's MAC where a relay or the client itself says it: RFC 6939, a DUID made of it, a link-local address.
    pub(super) fn told_mac(&self) -> Option<Mac> {
        let told = self.relays.last().and_then(|relay| {
            let link_layer = find(relay.options, code::LINK_LAYER)?;
            match link_layer {
                [0, 1, mac @ ..] => mac.try_into().ok().map(Mac),
                _ => None,
            }
        });
        let of_duid = || match self.duid()? {
            [0, 3, 0, 1, mac @ ..] | [0, 1, 0, 1, _, _, _, _, mac @ ..] => {
                mac.try_into().ok().map(Mac)
            }
            _ => None,
        };
        let of_peer = || mac_of(self.relays.last()?.peer);
        told.or_else(of_duid).or_else(of_peer)
    }
}

impl<'a> Relay<'a> {
    pub(super) fn interface_id(&self) -> Option<&'a [u8]> {
        find(self.options, code::INTERFACE_ID)
    }
}

/// The MAC that a link-local address was made from.
fn mac_of(address: Ipv6Addr) -> Option<Mac> {
    let [.., a, b, c, 0xff, 0xfe, d, e, f] = address.octets() else {
        return None;
    };
    address
        .is_unicast_link_local()
        .then_some(Mac([a ^ 2, b, c, d, e, f]))
}

fn ia(data: &[u8]) -> Option<Ia> {
    let (head, options) = data.split_at_checked(12)?;
    if !is_whole(options) {
        return None;
    }
    let addresses = walk(options)
        .filter(|(code, data)| *code == code::IA_ADDRESS && data.len() >= 24)
        .filter_map(|(_, data)| address(&data[..16]));
    Some(Ia {
        id: u32::from_be_bytes(*head.first_chunk()?),
        addresses: addresses.take(MOST_ADDRESSES).collect(),
    })
}

/// Texts with lengths of two bytes, up to the first that is not whole.
fn texts_of(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, after) = rest.split_first_chunk::<2>()?;
        let (text, after) = after.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        rest = after;
        Some(text)
    })
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from)
}

fn find(options: &[u8], code: u16) -> Option<&[u8]> {
    walk(options).find(|(found, _)| *found == code).map(|o| o.1)
}

/// The options up to the first that is not whole.
fn walk(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (&[a, b, c, d], after) = rest.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_be_bytes([c, d]));
        let (data, after) = after.split_at_checked(len)?;
        rest = after;
        Some((u16::from_be_bytes([a, b]), data))
    })
}

fn is_whole(options: &[u8]) -> bool {
    let used: usize = walk(options).map(|(_, data)| 4 + data.len()).sum();
    used == options.len()
}

/// Adds an option; one that is too long for its length field is left out.
pub(super) fn put(out: &mut Vec<u8>, code: u16, data: &[u8]) {
    let Ok(len) = u16::try_from(data.len()) else {
        return;
    };
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
}

/// Adds an address of an association with how long it lasts.
pub(super) fn put_address(out: &mut Vec<u8>, address: Ipv6Addr, preferred: u32, valid: u32) {
    let mut data = address.octets().to_vec();
    data.extend_from_slice(&preferred.to_be_bytes());
    data.extend_from_slice(&valid.to_be_bytes());
    put(out, code::IA_ADDRESS, &data);
}

/// Adds how something went, in a few words.
pub(super) fn put_status(out: &mut Vec<u8>, status: u16, words: &str) {
    let mut data = status.to_be_bytes().to_vec();
    data.extend_from_slice(words.as_bytes());
    put(out, code::STATUS, &data);
}

/// Wraps an answer for the relays that the message passed (RFC 8415 section 19.3).
pub(super) fn wrap(message: &Message<'_>, mut bytes: Vec<u8>) -> Vec<u8> {
    for relay in message.relays.iter().rev() {
        let mut out = vec![code::RELAY_REPLY, relay.hops];
        out.extend_from_slice(&relay.link.octets());
        out.extend_from_slice(&relay.peer.octets());
        if let Some(id) = relay.interface_id() {
            put(&mut out, code::INTERFACE_ID, id);
        }
        put(&mut out, code::RELAY_MESSAGE, &bytes);
        bytes = out;
    }
    bytes
}
