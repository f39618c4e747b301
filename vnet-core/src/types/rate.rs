use std::fmt;
use std::str::FromStr;

use super::{Invalid, serde_as_text};

/// Bits a second, and how many bytes may go at once after a pause. Written `100mbit` or `100mbit,burst=256k`.
///
/// `k`, `m` and `g` before `bit` are thousands, as networks count; after a burst they are 1024s, as memory does. Without a burst
/// it is what goes in 50 ms, and at least 64 KiB: one large frame before the network card cuts it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rate {
    bits: u64,
    burst: u64,
}

serde_as_text!(Rate);

/// Slower than a modem is a mistake, faster than this is no limit.
const LEAST: u64 = 8_000;
const MOST: u64 = 1_000_000_000_000;
const LEAST_BURST: u64 = 2_000;
const MOST_BURST: u64 = 1 << 30;
const LARGE_FRAME: u64 = 64 << 10;

impl Rate {
    /// Bytes a second.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.bits / 8
    }

    /// Bytes at once.
    #[must_use]
    pub const fn burst(self) -> u64 {
        self.burst
    }

    fn usual_burst(bits: u64) -> u64 {
        (bits / 8 / 20).clamp(LARGE_FRAME, MOST_BURST)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (1_000_000_000, "gbit"),
            (1_000_000, "mbit"),
            (1_000, "kbit"),
        ];
        let unit = units
            .into_iter()
            .find(|(unit, _)| self.bits.is_multiple_of(*unit));
        let (unit, word) = unit.unwrap_or((1, "bit"));
        write!(f, "{}{word}", self.bits / unit)?;
        if self.burst == Self::usual_burst(self.bits) {
            return Ok(());
        }
        let units = [(1 << 20, "m"), (1 << 10, "k")];
        let unit = units
            .into_iter()
            .find(|(unit, _)| self.burst.is_multiple_of(*unit));
        let (unit, word) = unit.unwrap_or((1, ""));
        write!(f, ",burst={}{word}", self.burst / unit)
    }
}

impl FromStr for Rate {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || {
            Invalid::new(format!(
                "`{}` is not a rate: write it like 100mbit, 1gbit or 100mbit,burst=256k",
                text.escape_debug()
            ))
        };
        let (rate, burst) = match text.split_once(",burst=") {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let units = [
            ("gbit", 1_000_000_000),
            ("mbit", 1_000_000),
            ("kbit", 1_000),
            ("bit", 1),
        ];
        let bits = count(rate.trim(), &units).ok_or_else(bad)?;
        if !(LEAST..=MOST).contains(&bits) {
            return Err(Invalid::new(format!(
                "a rate of {} is out of bounds: use 8kbit to 1000gbit",
                rate.trim().escape_debug()
            )));
        }
        let burst = match burst {
            Some(burst) => count(burst.trim(), &[("m", 1 << 20), ("k", 1 << 10), ("", 1)]),
            None => Some(Self::usual_burst(bits)),
        };
        let burst = burst.ok_or_else(bad)?;
        if !(LEAST_BURST..=MOST_BURST).contains(&burst) {
            return Err(Invalid::new(format!(
                "a burst of {burst} bytes is out of bounds: use 2k to 1024m"
            )));
        }
        Ok(Self { bits, burst })
    }
}

/// A number and its unit: the first whose name the text ends with.
fn count(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let fits = |(name, unit): &(&str, u64)| Some((text.strip_suffix(name)?, *unit));
    let (digits, unit) = units.iter().find_map(fits)?;
    let digits = Some(digits).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_shown() {
        for (text, bytes, burst, shown) in [
            ("100mbit", 12_500_000, 625_000, "100mbit"),
            ("8000000bit", 1_000_000, 65_536, "8mbit"),
            ("8mbit,burst=64k", 1_000_000, 65_536, "8mbit"),
            ("1500kbit,burst=3000", 187_500, 3000, "1500kbit,burst=3000"),
            ("1gbit,burst=2m", 125_000_000, 2 << 20, "1gbit,burst=2m"),
            ("12345bit", 1543, 65_536, "12345bit"),
        ] {
            let rate: Rate = text.parse().expect(text);
            assert_eq!((rate.bytes_per_second(), rate.burst()), (bytes, burst));
            assert_eq!(rate.to_string(), shown);
            assert_eq!(shown.parse(), Ok(rate), "{shown}");
        }
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in [
            "",
            "bit",
            "100",
            "100mb",
            "-1mbit",
            "+1mbit",
            "1.5gbit",
            "7kbit",
            "1001gbit",
            "99999999999999999999bit",
            "1gbit,burst=",
            "1gbit,burst=1k",
            "1gbit,burst=2g",
            "1gbit,burst=1025m",
            "1gbit burst 2m",
            "é",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
