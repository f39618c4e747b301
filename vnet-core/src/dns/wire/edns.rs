//! What a message says of EDNS (RFC 6891).

use super::{record_at, rtype};

/// What a client's EDNS record says (RFC 6891 section 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The largest UDP message it takes.
    pub payload: u16,
    /// The version; only 0 is defined.
    pub version: u8,
    /// Whether it wants DNSSEC records (RFC 3225).
    pub dnssec_ok: bool,
}

/// The OPT record among the additional ones, after so many others: at most one, owned by the root. `None` is malformed.
pub(super) fn read(bytes: &[u8], mut at: usize, before: u16, count: u16) -> Option<Option<Edns>> {
    const MOST: u16 = 8;
    if before > MOST || count > MOST {
        return None;
    }
    for _ in 0..before {
        at = record_at(bytes, at)?.end;
    }
    let mut found = None;
    for _ in 0..count {
        let record = record_at(bytes, at)?;
        if record.rtype == rtype::OPT {
            if found.is_some() || bytes.get(at) != Some(&0) {
                return None;
            }
            let [_, version, flags, _] = record.ttl.to_be_bytes();
            found = Some(Edns {
                payload: record.class,
                version,
                dnssec_ok: flags & 0x80 != 0,
            });
        }
        at = record.end;
    }
    Some(found)
}
