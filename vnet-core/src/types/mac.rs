use std::fmt;
use std::str::FromStr;

use super::{Invalid, serde_as_text};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

serde_as_text!(Mac);

impl Mac {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// An address of the prefix that virtual machines are known by (52:54:00), from three random bytes.
    #[must_use]
    pub const fn virtual_machine(random: [u8; 3]) -> Self {
        Self([0x52, 0x54, 0x00, random[0], random[1], random[2]])
    }

    /// Whether the group bit is set (multicast or broadcast): such an address is nobody's own.
    #[must_use]
    pub const fn is_group(&self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether all bits are zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 6]
    }

    /// The bytes as they go over the wire.
    #[must_use]
    pub const fn octets(&self) -> [u8; 6] {
        self.0
    }

    /// The link-local address that a host derives from this MAC (RFC 4291 appendix A).
    #[must_use]
    pub fn link_local(&self) -> std::net::Ipv6Addr {
        let m = self.0;
        let seg = |a: u8, b: u8| u16::from_be_bytes([a, b]);
        std::net::Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            seg(m[0] ^ 2, m[1]),
            seg(m[2], 0xff),
            seg(0xfe, m[3]),
            seg(m[4], m[5]),
        )
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(
            f,
            "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
            m[0], m[1], m[2], m[3], m[4], m[5]
        )
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || {
            Invalid::new(format!(
                "`{text}` is not a MAC address: write six bytes like 52:54:00:12:34:56"
            ))
        };
        let mut octets = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(bad)?;
            if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            Err(bad())
        } else {
            Ok(Self(octets))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        let mac: Mac = "52:54:00:AB:0c:1".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:0c:01");
        assert_eq!("52-54-00-ab-0c-01".parse::<Mac>().unwrap(), mac);
    }

    #[test]
    fn what_is_not_a_mac() {
        for text in [
            "",
            "52:54:00:ab:0c",
            "52:54:00:ab:0c:01:02",
            "52:54:00:ab:0c:1g",
            "52:54:00:ab:0c:001",
            "+1:2:3:4:5:6",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn link_local_of_a_known_pair() {
        let mac: Mac = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::5054:ff:fe12:3456");
    }
}
