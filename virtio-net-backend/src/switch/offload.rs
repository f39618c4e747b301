//! What a sender left to the device, done in software for a receiver that cannot: finishing a checksum, and cutting a
//! large TCP or UDP packet into segments (TSO4, TSO6, USO).
//!
//! [`Pending::work`] says which of the two a receiver needs. Segments are written one at a time into a buffer that the
//! caller keeps, so nothing is allocated for a frame. All header fields are the guest's word: each is checked, and the
//! number of segments is bounded, so that a frame costs no more than a frame of its size may.

use super::{
    vlan::untag,
    wire::{IPV4, IPV6, TCP, UDP, be16, upper4, upper6},
};

/// A checksum that covers the frame from `start` to its end and belongs `offset` bytes behind `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Where the sum begins: the transport header.
    pub start: u16,
    /// Where in that header it is written.
    pub offset: u16,
}

/// What kind of large packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either: datagrams of one size, only the last may be shorter.
    Udp,
}

/// A packet to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Large {
    /// What it is.
    pub kind: Kind,
    /// Payload bytes of a segment.
    pub size: u16,
}

/// What the sender left undone in one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// A checksum to be finished.
    pub checksum: Option<Partial>,
    /// A packet to be cut.
    pub large: Option<Large>,
}

/// What a receiver takes as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    /// Unfinished checksums. Without it, nothing else (virtio 1.2, 5.1.3.1).
    pub checksum: bool,
    /// Large TCP over IPv4.
    pub tcp4: bool,
    /// Large TCP over IPv6.
    pub tcp6: bool,
    /// Large UDP over IPv4 and IPv6.
    pub udp: bool,
}

/// What is to be done for a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Deliver as it is.
    Nothing,
    /// Call [`finish_checksum`], then deliver.
    Checksum(Partial),
    /// Deliver what [`Segments`] yields; their checksums are finished.
    Segment(Large),
}

/// The frame is not what its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the frame is not what its offload header says")]
pub struct Malformed;

impl Pending {
    /// What is to be done before this receiver gets the frame.
    #[must_use]
    pub fn work(self, receiver: Accepts) -> Work {
        let taken = |large: Large| {
            receiver.checksum
                && match large.kind {
                    Kind::Tcp4 => receiver.tcp4,
                    Kind::Tcp6 => receiver.tcp6,
                    Kind::Udp => receiver.udp,
                }
        };
        match (self.large, self.checksum) {
            (Some(large), _) if !taken(large) => Work::Segment(large),
            (None, Some(partial)) if !receiver.checksum => Work::Checksum(partial),
            (Some(_) | None, _) => Work::Nothing,
        }
    }
}

/// Finishes a checksum: the field holds the sum of the pseudo header, the rest of the frame is added.
///
/// # Errors
/// If the field is not inside the frame.
pub fn finish_checksum(frame: &mut [u8], partial: Partial) -> Result<(), Malformed> {
    let start = usize::from(partial.start);
    let field = start + usize::from(partial.offset);
    if frame.len() < field + 2 {
        return Err(Malformed);
    }
    let sum = !fold(sum(&frame[start..]));
    put16(frame, field, nonzero(sum));
    Ok(())
}

/// The segments of one large packet.
#[derive(Debug)]
pub struct Segments<'a> {
    headers: &'a [u8],
    payload: &'a [u8],
    size: usize,
    network: usize,
    transport: usize,
    /// TCP, else UDP.
    tcp: bool,
    /// IPv4, else IPv6.
    v4: bool,
    sent: usize,
    index: u16,
    done: bool,
}

/// Linux never sends TCP segments below this (`TCP_MIN_SND_MSS`).
const MIN_TCP_SIZE: u16 = 48;

/// Linux never puts more datagrams into one send (`UDP_MAX_SEGMENTS`).
const MAX_DATAGRAMS: usize = 128;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

impl<'a> Segments<'a> {
    /// Prepares to cut `frame`.
    ///
    /// # Errors
    /// If it is not a packet of that kind, or would become unreasonably many.
    pub fn new(frame: &'a [u8], large: Large) -> Result<Self, Malformed> {
        let outer = untag(frame);
        let v4 = match (large.kind, outer.ethertype) {
            (Kind::Tcp4 | Kind::Udp, Some(IPV4)) => true,
            (Kind::Tcp6 | Kind::Udp, Some(IPV6)) => false,
            _ => return Err(Malformed),
        };
        let network = outer.payload;
        let upper = if v4 {
            upper4(frame, network)
        } else {
            upper6(frame, network)
        }
        .ok_or(Malformed)?;
        let transport = upper.header.filter(|_| !upper.fragment).ok_or(Malformed)?;
        let tcp = large.kind != Kind::Udp;
        if upper.protocol != if tcp { TCP } else { UDP } {
            return Err(Malformed);
        }
        let header = if tcp {
            usize::from(frame.get(transport + 12).ok_or(Malformed)? >> 4) * 4
        } else {
            8
        };
        if header < if tcp { 20 } else { 8 } {
            return Err(Malformed);
        }
        let (headers, payload) = frame
            .split_at_checked(transport + header)
            .ok_or(Malformed)?;
        let size = usize::from(large.size);
        let reasonable = if tcp {
            large.size >= MIN_TCP_SIZE
        } else {
            size > 0 && payload.len().div_ceil(size) <= MAX_DATAGRAMS
        };
        // Every segment must be expressible in its own length fields.
        if !reasonable || headers.len() - network + size.min(payload.len()) > usize::from(u16::MAX)
        {
            return Err(Malformed);
        }
        Ok(Self {
            headers,
            payload,
            size,
            network,
            transport,
            tcp,
            v4,
            sent: 0,
            index: 0,
            done: false,
        })
    }

    /// How many segments there are in all.
    #[must_use]
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size).max(1)
    }

    /// Writes the next segment into `out`, replacing what is there. False, and nothing written, after the last.
    pub fn next_into(&mut self, out: &mut Vec<u8>) -> bool {
        if self.done {
            return false;
        }
        let rest = &self.payload[self.sent..];
        let piece = &rest[..rest.len().min(self.size)];
        let last = piece.len() == rest.len();
        out.clear();
        out.extend_from_slice(self.headers);
        out.extend_from_slice(piece);
        self.write_network(out);
        if self.tcp {
            self.write_tcp(out, last)
        } else {
            self.write_udp(out)
        }
        self.sent += piece.len();
        self.index = self.index.wrapping_add(1);
        self.done = last;
        true
    }

    fn write_network(&self, out: &mut [u8]) {
        let at = self.network;
        let length = out.len() - at;
        if self.v4 {
            put16(out, at + 2, low16(length));
            // RFC 6864 4: each fragmentable datagram has an identification of its own.
            let id = be16(out, at + 4)
                .unwrap_or_default()
                .wrapping_add(self.index);
            put16(out, at + 4, id);
            put16(out, at + 10, 0);
            let sum = !fold(sum(&out[at..at + usize::from(out[at] & 15) * 4]));
            put16(out, at + 10, sum);
        } else {
            put16(out, at + 4, low16(length - 40));
        }
    }

    fn write_tcp(&self, out: &mut [u8], last: bool) {
        let at = self.transport;
        let sequence = u32::from_be_bytes([out[at + 4], out[at + 5], out[at + 6], out[at + 7]]);
        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers wrap")]
        let sequence = sequence.wrapping_add(self.sent as u32);
        out[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            out[at + 13] &= !(TCP_FIN | TCP_PSH);
        }
        if self.index > 0 {
            // RFC 3168 6.1.2: the congestion window is reduced once.
            out[at + 13] &= !TCP_CWR;
        }
        self.write_checksum(out, at + 16, TCP);
    }

    fn write_udp(&self, out: &mut [u8]) {
        put16(out, self.transport + 4, low16(out.len() - self.transport));
        self.write_checksum(out, self.transport + 6, UDP);
    }

    fn write_checksum(&self, out: &mut [u8], field: usize, protocol: u8) {
        let addresses = if self.v4 {
            self.network + 12..self.network + 20
        } else {
            self.network + 8..self.network + 40
        };
        put16(out, field, 0);
        let length = low16(out.len() - self.transport);
        let total = sum(&out[addresses])
            + sum(&[0, protocol])
            + sum(&length.to_be_bytes())
            + sum(&out[self.transport..]);
        put16(out, field, nonzero(!fold(total)));
    }
}

/// One's complement sum of 16-bit words in memory order, not yet folded; an odd last byte is padded. RFC 1071.
fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(4);
    let mut total: u64 = chunks
        .by_ref()
        .map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]])))
        .sum();
    let mut rest = [0; 4];
    rest[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    total += u64::from(u32::from_ne_bytes(rest));
    total
}

/// Folds a sum to 16 bits, in host order.
#[expect(
    clippy::cast_possible_truncation,
    reason = "nothing is left above the low half"
)]
fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    (total as u16).to_be()
}

/// Zero means "no checksum" in UDP and is the same number as all ones in any case.
fn nonzero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is meant; lengths were checked to fit"
)]
fn low16(number: usize) -> u16 {
    number as u16
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
