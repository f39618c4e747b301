//! Reading headers out of bytes that nobody vouches for. Every access is checked; nothing allocates.

use vnet_core::types::Mac;

pub(super) const ETH_HEADER: usize = 14;
pub(super) const IPV4: u16 = 0x0800;
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV6: u16 = 0x86dd;
pub(super) const RARP: u16 = 0x8035;

pub(super) const ICMPV6: u8 = 58;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)?
        .try_into()
        .ok()
        .map(u16::from_be_bytes)
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)?
        .try_into()
        .ok()
        .map(u32::from_be_bytes)
}

pub(super) fn be128(bytes: &[u8], at: usize) -> Option<u128> {
    bytes
        .get(at..at + 16)?
        .try_into()
        .ok()
        .map(u128::from_be_bytes)
}

/// A MAC address in the low 48 bits.
pub(super) fn mac48(bytes: &[u8], at: usize) -> Option<u64> {
    let mac: [u8; 6] = bytes.get(at..at + 6)?.try_into().ok()?;
    Some(mac_bits(Mac(mac)))
}

pub(super) fn mac_bits(mac: Mac) -> u64 {
    mac.octets()
        .iter()
        .fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

/// What an IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Upper {
    pub protocol: u8,
    /// Where its header begins in the frame; `None` in a fragment other than the first, which has none.
    pub header: Option<usize>,
    /// Part of a fragmented packet (the first part, if it has a header).
    pub fragment: bool,
}

/// The upper layer of the IPv4 packet at `l3`, or `None` if its header is not whole.
pub(super) fn upper4(frame: &[u8], l3: usize) -> Option<Upper> {
    let header = frame.get(l3..l3 + 20)?;
    let length = usize::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || length < 20 || frame.len() < l3 + length {
        return None;
    }
    let fragment = be16(header, 6)?;
    let first = fragment & 0x1fff == 0;
    Some(Upper {
        protocol: header[9],
        header: first.then_some(l3 + length),
        fragment: fragment & 0x3fff != 0,
    })
}

/// The upper layer of the IPv6 packet at `l3`, or `None` if the chain of extension headers cannot be followed to its end.
pub(super) fn upper6(frame: &[u8], l3: usize) -> Option<Upper> {
    const MAX_EXTENSIONS: usize = 8;
    let header = frame.get(l3..l3 + 40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (mut next, mut at, mut fragment) = (header[6], l3 + 40, false);
    for _ in 0..=MAX_EXTENSIONS {
        match next {
            // hop-by-hop, routing, destination options, mobility, HIP, shim6: RFC 6564 4
            0 | 43 | 60 | 135 | 139 | 140 => {
                let fixed = frame.get(at..at + 2)?;
                next = fixed[0];
                at += 8 + usize::from(fixed[1]) * 8;
            }
            // authentication header: RFC 4302 2.2
            51 => {
                let fixed = frame.get(at..at + 2)?;
                next = fixed[0];
                at += 8 + usize::from(fixed[1]) * 4;
            }
            44 => {
                let fixed = frame.get(at..at + 8)?;
                fragment = true;
                if be16(fixed, 2)? & 0xfff8 != 0 {
                    return Some(Upper {
                        protocol: fixed[0],
                        header: None,
                        fragment,
                    });
                }
                next = fixed[0];
                at += 8;
            }
            protocol => {
                return Some(Upper {
                    protocol,
                    header: Some(at),
                    fragment,
                });
            }
        }
    }
    None
}
