//! Addresses that only mean something on some inner network: whoever serves a name may say them of any name (DNS
//! rebinding), plainly, wrapped into IPv6, or as a hint.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::wire::{rtype, skip_name, u16_at};

/// The hints of a service record (RFC 9460 section 14.3.2).
const HINTS: (u16, u16) = (4, 6);

/// Whether a record names such an address.
pub(super) fn names_inner(kind: u16, data: &[u8]) -> bool {
    match kind {
        rtype::A => inner4(data),
        rtype::AAAA => inner6(data),
        // What is garbled is taken for the worst: a client may read it otherwise than we do.
        rtype::SVCB | rtype::HTTPS => hints(data).unwrap_or(true),
        _ => false,
    }
}

/// Priority, target, and parameters: a key, a length, a value (RFC 9460 section 2.2).
fn hints(data: &[u8]) -> Option<bool> {
    let mut at = skip_name(data, 2)?;
    let mut inner = false;
    while at < data.len() {
        let (key, len) = (u16_at(data, at)?, usize::from(u16_at(data, at + 2)?));
        let value = data.get(at + 4..at + 4 + len)?;
        inner |= key == HINTS.0 && value.chunks(4).any(inner4);
        inner |= key == HINTS.1 && value.chunks(16).any(inner6);
        at += 4 + len;
    }
    Some(inner)
}

fn inner4(octets: &[u8]) -> bool {
    <[u8; 4]>::try_from(octets).is_ok_and(|octets| v4(octets.into()))
}

fn inner6(octets: &[u8]) -> bool {
    <[u8; 16]>::try_from(octets).is_ok_and(|octets| v6(octets.into()))
}

fn v4(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    let shared = a == 100 && b & 0xc0 == 64;
    let nowhere = a == 0 || a >= 224;
    v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared || nowhere
}

fn v6(v6: Ipv6Addr) -> bool {
    let words = v6.segments();
    let wrapped = |high: u16, low: u16| v4((u32::from(high) << 16 | u32::from(low)).into());
    let site_local = words[0] & 0xffc0 == 0xfec0;
    let inside = match words {
        // Also `::` and `::1`, which are of this form (RFC 4291 section 2.5.5).
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => wrapped(high, low),
        // NAT64 by the well-known prefix and by the one for local use (RFC 6052, RFC 8215).
        [0x64, 0xff9b, 0 | 1, _, _, _, high, low] => wrapped(high, low),
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => wrapped(high, low),
        _ => false,
    };
    inside || site_local || v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_multicast()
}
