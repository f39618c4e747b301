//! Ethernet and IPv6 around a datagram, and the checksum that covers both. It knows UDP and ICMPv6, no extension
//! headers (nobody who asks for an address sends any) and no fragments.

use std::net::Ipv6Addr;

use crate::types::Mac;

const ETHERNET: usize = 14;
const HEADER: usize = 40;
/// `Next Header` of UDP.
pub(super) const UDP: u8 = 17;
/// `Next Header` of ICMPv6.
pub(super) const ICMP: u8 = 58;

/// Who speaks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// The frame's source.
    pub from_mac: Mac,
    /// The frame's destination.
    pub to_mac: Mac,
    /// The packet's source.
    pub from: Ipv6Addr,
    /// The packet's destination.
    pub to: Ipv6Addr,
    /// How many routers it may still pass; 255 proves that it passed none.
    pub hops: u8,
}

/// A whole, undamaged packet of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) envelope: Envelope,
    /// The protocol's header and what follows it.
    pub(super) bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Takes a frame apart. `checked` says that the kernel vouches for the checksum.
    pub(super) fn parse(frame: &'a [u8], protocol: u8, checked: bool) -> Option<Self> {
        let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
        let (header, rest) = packet.split_at_checked(HEADER)?;
        if ethernet.get(12..14)? != [0x86, 0xdd] || header[0] >> 4 != 6 || header[6] != protocol {
            return None;
        }
        let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let bytes = rest.get(..len)?;
        let envelope = Envelope {
            to_mac: Mac(*ethernet.first_chunk()?),
            from_mac: Mac(*ethernet.get(6..12)?.first_chunk()?),
            from: address(header, 8)?,
            to: address(header, 24)?,
            hops: header[7],
        };
        if envelope.from_mac.is_group() || envelope.from.is_multicast() {
            return None;
        }
        let whole = checked || checksum(&envelope, protocol, bytes) == 0;
        whole.then_some(Self { envelope, bytes })
    }
}

/// The frame around a datagram whose checksum field, at `check`, is still zero.
pub(super) fn seal(envelope: &Envelope, protocol: u8, mut bytes: Vec<u8>, check: usize) -> Vec<u8> {
    let sum = match checksum(envelope, protocol, &bytes) {
        0 => 0xffff,
        sum => sum,
    };
    if let Some(field) = bytes.get_mut(check..check + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(ETHERNET + HEADER + bytes.len());
    out.extend_from_slice(&envelope.to_mac.0);
    out.extend_from_slice(&envelope.from_mac.0);
    out.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&[protocol, envelope.hops]);
    out.extend_from_slice(&envelope.from.octets());
    out.extend_from_slice(&envelope.to.octets());
    out.extend_from_slice(&bytes);
    out
}

/// Where a multicast address lives on an Ethernet (RFC 2464 section 7).
pub(super) fn multicast_mac(to: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = to.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

fn address(header: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets))
}

/// RFC 8200 section 8.1. Zero for a datagram whose checksum field is right.
fn checksum(envelope: &Envelope, protocol: u8, bytes: &[u8]) -> u16 {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    let next = [0, 0, 0, protocol];
    let (from, to) = (envelope.from.octets(), envelope.to.octets());
    let mut sum = 0u64;
    for part in [&from[..], &to, &len, &next, bytes] {
        let (pairs, odd) = part.as_chunks::<2>();
        sum += pairs
            .iter()
            .map(|pair| u64::from(u16::from_be_bytes(*pair)))
            .sum::<u64>();
        sum += odd.first().map_or(0, |last| u64::from(*last) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
