//! How much of the server one sender gets: a bucket of tokens for each Ethernet source.

use std::collections::BTreeMap;

use crate::lease::Time;
use crate::types::Mac;

/// Messages a second that one source may send for long. An honest client sends two, then nothing for minutes.
const PER_SECOND: u64 = 50;
/// Messages that it may send at once.
const BURST: u64 = 100;
/// Sources remembered; one that is forgotten starts with a full bucket.
const MOST: usize = 4096;
/// What a message costs, in thousandths of a token.
const COST: u64 = 1000;

/// Addresses that clients behind one Ethernet source may hold between them, unless a relay speaks for them.
pub(in crate::dhcp) const MOST_PER_SOURCE: u32 = 64;

#[derive(Debug, Clone, Default)]
pub(in crate::dhcp) struct Rates {
    buckets: BTreeMap<Mac, (Time, u64)>,
}

impl Rates {
    /// Whether a message of this source is within its share.
    pub(in crate::dhcp) fn admits(&mut self, source: Mac, now: Time) -> bool {
        if self.buckets.len() >= MOST && !self.buckets.contains_key(&source) {
            self.forget_idle(now);
        }
        let (at, tokens) = self.buckets.entry(source).or_insert((now, BURST * COST));
        *tokens = refill(*at, *tokens, now);
        *at = now;
        let enough = *tokens >= COST;
        if enough {
            *tokens -= COST;
        }
        enough
    }

    fn forget_idle(&mut self, now: Time) {
        self.buckets
            .retain(|_, (at, tokens)| refill(*at, *tokens, now) < BURST * COST);
        if self.buckets.len() >= MOST {
            self.buckets.clear();
        }
    }
}

fn refill(at: Time, tokens: u64, now: Time) -> u64 {
    let passed = now.0.saturating_sub(at.0);
    tokens
        .saturating_add(passed.saturating_mul(PER_SECOND))
        .min(BURST * COST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_costs_its_sender_only() {
        let (mut rates, loud, quiet) = (Rates::default(), Mac([2; 6]), Mac([4; 6]));
        let admitted = (0..1000).filter(|_| rates.admits(loud, Time(0))).count();
        assert_eq!(admitted as u64, BURST);
        assert!(rates.admits(quiet, Time(0)));
        let later = (0..1000).filter(|_| rates.admits(loud, Time(1000))).count();
        assert_eq!(later as u64, PER_SECOND);
    }

    #[test]
    fn memory_is_bounded() {
        let mut rates = Rates::default();
        for n in 0..20_000u32 {
            let [a, b, c, d] = n.to_be_bytes();
            rates.admits(Mac([2, 0, a, b, c, d]), Time(0));
        }
        assert!(rates.buckets.len() <= MOST);
    }
}
