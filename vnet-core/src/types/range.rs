use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::{Invalid, serde_as_text};

/// An inclusive range of IPv4 addresses, written `10.0.0.2-10.0.0.99` (or one address).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Range4 {
    start: Ipv4Addr,
    end: Ipv4Addr,
}

serde_as_text!(Range4);

impl Range4 {
    /// The range from `start` to `end`, both in it.
    ///
    /// # Errors
    /// When the start is after the end.
    pub fn new(start: Ipv4Addr, end: Ipv4Addr) -> Result<Self, Invalid> {
        if start <= end {
            return Ok(Self { start, end });
        }
        Err(Invalid::new(format!(
            "the range {start}-{end} ends before it starts: swap the two addresses"
        )))
    }

    /// The first address.
    #[must_use]
    pub const fn start(&self) -> Ipv4Addr {
        self.start
    }

    /// The last address.
    #[must_use]
    pub const fn end(&self) -> Ipv4Addr {
        self.end
    }

    /// Whether the address lies in the range.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.start..=self.end).contains(&address)
    }

    /// Whether the two ranges share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// How many addresses there are (a /0 has 2^32).
    #[must_use]
    pub fn count(&self) -> u64 {
        u64::from(u32::from(self.end)) - u64::from(u32::from(self.start)) + 1
    }
}

impl fmt::Display for Range4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl FromStr for Range4 {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let address = |part: &str| {
            part.trim().parse::<Ipv4Addr>().map_err(|_| {
                Invalid::new(format!(
                    "`{}` is not a range of addresses: write it like 10.0.0.2-10.0.0.99",
                    text.escape_debug()
                ))
            })
        };
        let (start, end) = text.split_once('-').unwrap_or((text, text));
        Self::new(address(start)?, address(end)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range() {
        let range: Range4 = "10.0.0.2 - 10.0.0.9".parse().unwrap();
        assert_eq!(
            (range.to_string().as_str(), range.count()),
            ("10.0.0.2-10.0.0.9", 8)
        );
        assert!(
            range.contains(Ipv4Addr::new(10, 0, 0, 9))
                && !range.contains(Ipv4Addr::new(10, 0, 0, 10))
        );
        assert!(
            range.overlaps(&"10.0.0.9".parse().unwrap())
                && !range.overlaps(&"10.0.0.10".parse().unwrap())
        );
        assert_eq!(
            "0.0.0.0-255.255.255.255".parse::<Range4>().unwrap().count(),
            1 << 32
        );
        assert!(
            "10.0.0.9-10.0.0.2"
                .parse::<Range4>()
                .unwrap_err()
                .0
                .contains("swap")
        );
        assert!("10.0.0-9".parse::<Range4>().is_err());
    }
}
