//! How much of the server one sender gets: a bucket of tokens for each Ethernet source.

use std::collections::BTreeMap;

use crate::lease::Time;
use crate::types::Mac;

/// Messages a second that one source may send for long. An honest client sends two, then nothing for minutes.
const PER_SECOND: u64 = 50;
/// Messages that it may send at once.
const BURST: u64 = 100;
/// Sources remembered. When there are more, those are forgotten that have used least of theirs: who invents source after
/// source has spent nothing of each, and does not wash away what was counted against the others.
const MOST: usize = 4096;
/// What a message costs, in thousandths of a token.
const COST: u64 = 1000;

/// Addresses that clients behind one Ethernet source may hold between them, unless a relay speaks for them
/// that the document names.
pub(in crate::dhcp) const MOST_PER_SOURCE: u32 = 64;

/// What one Ethernet source has of a DHCP server, and what it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Addresses that clients behind it hold, were offered or declined.
    pub addresses: u32,
    /// Its messages that were not read: too many a second.
    pub over_rate: u64,
    /// Addresses that it was refused: it has all that it may.
    pub over_pool: u64,
    /// Its messages in another's name.
    pub forged: u64,
}

impl Share {
    /// Two servers' word on one source.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            addresses: self.addresses + other.addresses,
            over_rate: self.over_rate + other.over_rate,
            over_pool: self.over_pool + other.over_pool,
            forged: self.forged + other.forged,
        }
    }
}

/// What a source is refused for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dhcp) enum Refused {
    Rate,
    Pool,
    Forged,
}

#[derive(Debug, Clone, Default)]
pub(in crate::dhcp) struct Rates {
    buckets: BTreeMap<Mac, (Time, u64)>,
    /// Only sources that were refused something, and of those the ones with most.
    refused: BTreeMap<Mac, Share>,
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

    /// Counts what a source was refused.
    pub(in crate::dhcp) fn refuse(&mut self, source: Option<Mac>, what: Refused) {
        let Some(source) = source else { return };
        if self.refused.len() >= MOST && !self.refused.contains_key(&source) {
            keep_half(&mut self.refused, |share| {
                u64::MAX - (share.over_rate + share.over_pool + share.forged)
            });
        }
        let share = self.refused.entry(source).or_default();
        *match what {
            Refused::Rate => &mut share.over_rate,
            Refused::Pool => &mut share.over_pool,
            Refused::Forged => &mut share.forged,
        } += 1;
    }

    /// What a source was refused.
    pub(in crate::dhcp) fn refused(&self, source: Mac) -> Share {
        self.refused.get(&source).copied().unwrap_or_default()
    }

    fn forget_idle(&mut self, now: Time) {
        self.buckets
            .retain(|_, (at, tokens)| refill(*at, *tokens, now) < BURST * COST);
        if self.buckets.len() >= MOST {
            keep_half(&mut self.buckets, |(at, tokens)| refill(*at, *tokens, now));
        }
    }
}

/// Drops the half of the sources that is largest by some measure, so that room is made once for many.
fn keep_half<T>(all: &mut BTreeMap<Mac, T>, measure: impl Fn(&T) -> u64) {
    let mut order: Vec<(u64, Mac)> = all.iter().map(|(mac, it)| (measure(it), *mac)).collect();
    order.sort_unstable();
    for (_, mac) in order.drain(order.len() / 2..) {
        all.remove(&mac);
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
            let source = Mac([2, 0, a, b, c, d]);
            rates.admits(source, Time(0));
            rates.refuse(Some(source), Refused::Rate);
        }
        assert!(rates.buckets.len() <= MOST && rates.refused.len() <= MOST);
    }

    #[test]
    fn invented_sources_wash_nothing_away() {
        let (mut rates, loud) = (Rates::default(), Mac([4; 6]));
        while rates.admits(loud, Time(0)) {}
        rates.refuse(Some(loud), Refused::Rate);
        rates.refuse(Some(loud), Refused::Rate);
        for n in 0..20_000u32 {
            let [a, b, c, d] = n.to_be_bytes();
            let source = Mac([2, 0, a, b, c, d]);
            assert!(rates.admits(source, Time(0)), "a newcomer is served");
            rates.refuse(Some(source), Refused::Rate);
        }
        assert!(!rates.admits(loud, Time(0)));
        assert_eq!(rates.refused(loud).over_rate, 2);
    }
}
