use std::fmt;
use std::str::FromStr;

use super::{Invalid, serde_as_text};

/// The size of the largest packet of a network: 576 (what every IPv4 host must take) to 65535.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mtu(u16);

impl Mtu {
    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for Mtu {
    type Error = Invalid;

    fn try_from(bytes: u32) -> Result<Self, Invalid> {
        match u16::try_from(bytes) {
            Ok(small) if small >= 576 => Ok(Self(small)),
            Ok(_) | Err(_) => Err(Invalid::new(format!(
                "an MTU of {bytes} is out of bounds: use 576 to 65535"
            ))),
        }
    }
}

/// How long a lease lasts: seconds (at least 10), or for ever. Written `3600`, `45m`, `1h`, `7d`, `infinite`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeaseTime(u32);

serde_as_text!(LeaseTime);

impl LeaseTime {
    /// A lease that never ends (0xffffffff on the wire, RFC 2131 section 3.3).
    pub const INFINITE: Self = Self(u32::MAX);
    /// One hour, the default.
    pub const HOUR: Self = Self(3600);

    /// A lease of that many seconds.
    ///
    /// # Errors
    /// When it is shorter than ten seconds.
    pub fn from_secs(seconds: u32) -> Result<Self, Invalid> {
        if seconds < 10 {
            return Err(Invalid::new(format!(
                "a lease of {seconds} s is too short to renew: use at least 10 s"
            )));
        }
        Ok(Self(seconds))
    }

    /// Seconds, as they go over the wire.
    #[must_use]
    pub const fn secs(self) -> u32 {
        self.0
    }

    /// Whether it never ends.
    #[must_use]
    pub const fn is_infinite(self) -> bool {
        self.0 == u32::MAX
    }
}

impl fmt::Display for LeaseTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            u32::MAX => f.write_str("infinite"),
            s if s % 86400 == 0 => write!(f, "{}d", s / 86400),
            s if s % 3600 == 0 => write!(f, "{}h", s / 3600),
            s if s % 60 == 0 => write!(f, "{}m", s / 60),
            s => write!(f, "{s}s"),
        }
    }
}

impl FromStr for LeaseTime {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        if text == "infinite" {
            return Ok(Self::INFINITE);
        }
        let bad = || {
            Invalid::new(format!(
                "`{}` is not a lease time: write it like 45m, 1h, 7d or infinite",
                text.escape_debug()
            ))
        };
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86400,
            "w" => 7 * 86400,
            _ => return Err(bad()),
        };
        let count: u32 = digits.parse().map_err(|_| bad())?;
        let seconds = count.checked_mul(unit).filter(|s| *s < u32::MAX);
        Self::from_secs(
            seconds
                .ok_or_else(|| Invalid::new(format!("`{text}` is too long: write `infinite`")))?,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_times() {
        for (text, secs, shown) in [
            ("3600", 3600, "1h"),
            ("90s", 90, "90s"),
            ("45m", 2700, "45m"),
            ("2w", 1_209_600, "14d"),
            ("infinite", u32::MAX, "infinite"),
        ] {
            let time: LeaseTime = text.parse().unwrap();
            assert_eq!((time.secs(), time.to_string().as_str()), (secs, shown));
        }
        for bad in [
            "",
            "h",
            "1y",
            "-1h",
            "5s",
            "9999999999",
            "200000w",
            "1hh",
            "é",
        ] {
            assert!(bad.parse::<LeaseTime>().is_err(), "{bad}");
        }
    }

    #[test]
    fn mtu_bounds() {
        assert!(Mtu::try_from(575).is_err() && Mtu::try_from(65536).is_err());
        assert_eq!(Mtu::try_from(9000).unwrap().get(), 9000);
    }
}
