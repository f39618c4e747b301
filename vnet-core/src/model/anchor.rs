//! A key that DNSSEC begins with: who checks signatures believes it without being told by anybody.

use std::fmt;
use std::str::FromStr;

use crate::types::{DomainName, Invalid};

/// Algorithms that signatures can be checked of (the `DNS Security Algorithm Numbers` registry).
const ALGORITHMS: [u8; 5] = [8, 10, 13, 14, 15];
/// The bits of the flags: a key of a zone (RFC 4034 section 2.1.1), and one that was revoked (RFC 5011 section 3).
const ZONE_KEY: u16 = 0x0100;
const REVOKED: u16 = 0x0080;
/// The longest key: RSA with 8192 bits and its exponent.
const MOST: usize = 1100;

/// The public key of a zone, as its DNSKEY record says it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustAnchor {
    /// The zone; `None` is the root.
    pub zone: Option<DomainName>,
    /// The record's flags.
    pub flags: u16,
    /// The number of the key's algorithm.
    pub algorithm: u8,
    /// The key.
    pub key: Vec<u8>,
}

impl FromStr for TrustAnchor {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = |why: &str| Invalid::new(format!("`{}` {why}", text.escape_debug()));
        let form = || {
            invalid(
                "is not the key of a zone, like `example.org. DNSKEY 257 3 13 mdsswUyr...` (a DS will not do)",
            )
        };
        let mut words = text.split_ascii_whitespace();
        let zone = match words.next().ok_or_else(form)? {
            "." => None,
            name => Some(name.trim_end_matches('.').parse::<DomainName>()?),
        };
        // As in a zone file: a lifetime, the class and the type may stand between.
        let is_type = |word: &&str| {
            ["IN", "DNSKEY"]
                .iter()
                .any(|t| t.eq_ignore_ascii_case(word))
        };
        let mut numbers = Vec::new();
        let mut key = String::new();
        for word in words {
            if key.is_empty() && numbers.len() < 4 && is_type(&word) {
                // What stood before was the lifetime.
                numbers.clear();
            } else if key.is_empty() && numbers.len() < 3 {
                numbers.push(word.parse::<u32>().map_err(|_| form())?);
            } else {
                key.push_str(word);
            }
        }
        let [flags, protocol, algorithm] = *numbers.as_slice() else {
            return Err(form());
        };
        let (Ok(flags), 3, Ok(algorithm)) =
            (u16::try_from(flags), protocol, u8::try_from(algorithm))
        else {
            return Err(form());
        };
        if flags & ZONE_KEY == 0 || flags & REVOKED != 0 {
            return Err(invalid(
                "is no key that signs a zone (its flags are 256 or 257)",
            ));
        }
        if !ALGORITHMS.contains(&algorithm) {
            return Err(invalid(
                "is of an algorithm that is none of 8, 10, 13, 14 and 15",
            ));
        }
        let key = base64(&key).filter(|key| (32..=MOST).contains(&key.len()));
        Ok(Self {
            zone,
            flags,
            algorithm,
            key: key.ok_or_else(form)?,
        })
    }
}

impl fmt::Display for TrustAnchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(zone) = &self.zone {
            write!(f, "{zone}")?;
        }
        write!(f, ". DNSKEY {} 3 {} ", self.flags, self.algorithm)?;
        for chunk in self.key.chunks(3) {
            let bits = chunk.iter().enumerate();
            let bits = bits.fold(0u32, |acc, (i, byte)| {
                acc | u32::from(*byte) << (16 - 8 * i)
            });
            for i in 0..4 {
                let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize];
                let digit = if i > chunk.len() { b'=' } else { digit };
                write!(f, "{}", char::from(digit))?;
            }
        }
        Ok(())
    }
}

/// The digits of base64 (RFC 4648 section 4).
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for digit in digits.bytes() {
        let value = DIGITS.iter().position(|d| *d == digit)?;
        bits = (bits << 6 | u32::try_from(value).ok()?) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "mdsswUyr3DPW132mOi8V9xESWE8jTo0dxCjjnopKl+GqJxpVXckHAeF+KkxLbxILfDLUT0rAK9iUzy1L53eKGQ==";

    #[test]
    fn keys_as_zone_files_and_dig_write_them() {
        for (text, zone) in [
            (format!(". DNSKEY 257 3 13 {KEY}"), None),
            (
                format!(
                    ".\t172800\tIN\tDNSKEY\t257 3 13 {}  {}",
                    &KEY[..40],
                    &KEY[40..]
                ),
                None,
            ),
            (format!("example.org. 257 3 13 {KEY}"), Some("example.org")),
            (
                format!("Example.ORG 3600 DNSKEY 256 3 13 {KEY}"),
                Some("example.org"),
            ),
        ] {
            let anchor: TrustAnchor = text.parse().unwrap();
            assert_eq!(
                anchor.zone.as_ref().map(ToString::to_string).as_deref(),
                zone
            );
            assert_eq!((anchor.algorithm, anchor.key.len()), (13, 64));
            let written = anchor.to_string();
            assert!(written.ends_with(KEY), "{written}");
            assert_eq!(written.parse::<TrustAnchor>().unwrap(), anchor);
        }
    }

    #[test]
    fn what_is_no_key() {
        for text in [
            "",
            ".",
            "example.org",
            ". DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D",
            ". DNSKEY 257 3 13 notbase64",
            ". DNSKEY 257 3 13 mdss",
            &format!(". DNSKEY 257 3 1 {KEY}"),
            &format!(". DNSKEY 385 3 13 {KEY}"),
            &format!(". DNSKEY 1 3 13 {KEY}"),
            &format!(". DNSKEY 257 2 13 {KEY}"),
            &format!("a..b DNSKEY 257 3 13 {KEY}"),
        ] {
            assert!(text.parse::<TrustAnchor>().is_err(), "{text}");
        }
    }
}
