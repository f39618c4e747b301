//! Token buckets. A bucket may go into debt: it lets a frame through while it holds anything at all and takes the
//! frame's whole cost, so a 64 KiB segmentation frame passes a bucket of any depth and is paid for afterwards.
//!
//! Arithmetic is in whole tokens times 10^9, so nothing is ever rounded away and the long-run rate is exact.

use super::Time;
use std::time::Duration;

const NANO: i128 = 1_000_000_000;

/// So many units a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes or frames a second.
    pub per_second: u64,
    /// How much may go at once after a pause.
    pub burst: u64,
}

/// What one direction of a port may carry. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Bytes, from the Ethernet header on, without FCS.
    pub bytes: Option<Rate>,
    /// Frames. A segmentation frame is one.
    pub frames: Option<Rate>,
}

/// A [`Limit`] at work.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limiter {
    bytes: Option<Bucket>,
    frames: Option<Bucket>,
}

impl Limiter {
    pub(super) fn new(limit: Limit, now: Time) -> Self {
        Self {
            bytes: limit.bytes.map(|rate| Bucket::new(rate, now)),
            frames: limit.frames.map(|rate| Bucket::new(rate, now)),
        }
    }

    /// Goes on with other limits; a bucket whose rate stays keeps its level.
    pub(super) fn limit_to(&mut self, limit: Limit, now: Time) {
        let bucket = |bucket: Option<Bucket>, rate: Option<Rate>| match bucket {
            Some(bucket) if Some(bucket.rate) == rate => Some(bucket),
            Some(_) | None => rate.map(|rate| Bucket::new(rate, now)),
        };
        self.bytes = bucket(self.bytes, limit.bytes);
        self.frames = bucket(self.frames, limit.frames);
    }

    /// Takes one frame's tokens from both buckets, or from none.
    pub(super) fn take(&mut self, now: Time, bytes: u64) -> bool {
        let ready =
            |bucket: &mut Option<Bucket>| bucket.as_mut().is_none_or(|bucket| bucket.ready(now));
        if !(ready(&mut self.bytes) && ready(&mut self.frames)) {
            return false;
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.spend(bytes);
        }
        if let Some(bucket) = &mut self.frames {
            bucket.spend(1);
        }
        true
    }

    /// Whether there is any limit.
    pub(super) fn is_some(&self) -> bool {
        self.bytes.is_some() || self.frames.is_some()
    }

    /// How long until a frame would be let through.
    pub(super) fn wait(&self, now: Time) -> Duration {
        [&self.bytes, &self.frames]
            .into_iter()
            .flatten()
            .map(|bucket| bucket.wait(now))
            .max()
            .unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: Rate,
    /// Tokens times [`NANO`].
    level: i128,
    at: Time,
}

impl Bucket {
    fn new(rate: Rate, now: Time) -> Self {
        Self {
            rate,
            level: depth(rate),
            at: now,
        }
    }

    fn ready(&mut self, now: Time) -> bool {
        self.level = self.level_at(now);
        self.at = self.at.max(now);
        self.level > 0
    }

    fn spend(&mut self, tokens: u64) {
        self.level -= i128::from(tokens) * NANO;
    }

    fn level_at(&self, now: Time) -> i128 {
        let earned = i128::from(now.since(self.at)) * i128::from(self.rate.per_second);
        (self.level + earned).min(depth(self.rate))
    }

    fn wait(&self, now: Time) -> Duration {
        let debt = 1 - self.level_at(now);
        if debt <= 0 {
            return Duration::ZERO;
        }
        let nanos = match self.rate.per_second {
            0 => i128::from(u64::MAX),
            rate => (debt + i128::from(rate) - 1) / i128::from(rate),
        };
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A bucket of depth zero would never let anything through.
fn depth(rate: Rate) -> i128 {
    i128::from(rate.burst.max(1)) * NANO
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limiter(per_second: u64, burst: u64) -> Limiter {
        Limiter::new(
            Limit {
                bytes: Some(Rate { per_second, burst }),
                frames: None,
            },
            Time::default(),
        )
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut limiter = limiter(1000, 3000);
        let at = |ms: u64| Time::from_nanos(ms * 1_000_000);
        assert_eq!((0..10).filter(|_| limiter.take(at(0), 1000)).count(), 3);
        assert_eq!(
            limiter.wait(at(0)),
            Duration::from_nanos(1),
            "an empty bucket needs one drop"
        );
        assert!(
            limiter.take(at(1), 1000),
            "one token is enough to go into debt"
        );
        assert_eq!(limiter.wait(at(1)), Duration::from_nanos(999_000_001));
        assert!(!limiter.take(at(999), 1000));
        assert!(limiter.take(at(1001), 1));
    }

    #[test]
    fn a_frame_larger_than_the_bucket_passes_and_is_paid_for() {
        let mut limiter = limiter(1000, 10);
        assert!(limiter.take(Time::default(), 65_000));
        assert!(!limiter.take(Time::from_nanos(64_000_000_000), 1));
        assert!(limiter.take(Time::from_nanos(65_000_000_000), 1));
    }

    #[test]
    fn a_refusal_costs_nothing() {
        let limit = Limit {
            bytes: Some(Rate {
                per_second: 1,
                burst: 100,
            }),
            frames: Some(Rate {
                per_second: 1,
                burst: 1,
            }),
        };
        let mut limiter = Limiter::new(limit, Time::default());
        assert!(limiter.take(Time::default(), 10));
        for _ in 0..100 {
            assert!(!limiter.take(Time::default(), 10));
        }
        assert!(
            limiter.take(Time::from_nanos(1), 10),
            "the byte bucket was not drained by refused frames"
        );
    }

    #[test]
    fn a_clock_that_steps_back_earns_nothing() {
        let mut limiter = limiter(1000, 1000);
        assert!(limiter.take(Time::from_nanos(5_000_000_000), 1000));
        assert!(!limiter.take(Time::from_nanos(1), 1));
        assert!(!limiter.take(Time::from_nanos(5_000_000_000), 1));
    }

    #[test]
    fn a_rate_of_nothing_waits_for_ever_and_does_not_overflow() {
        let mut limiter = limiter(0, 1);
        assert!(limiter.take(Time::default(), u64::MAX));
        assert!(!limiter.take(Time::from_nanos(u64::MAX), 1));
        assert_eq!(
            limiter.wait(Time::default()),
            Duration::from_nanos(u64::MAX)
        );
    }

    proptest! {
        /// Over any run: no more than the burst, plus the rate, plus the one frame that went into debt; and no less than
        /// the rate while there is always a frame waiting.
        #[test]
        fn the_rate_holds(
            per_second in 1_000u64..10_000_000_000, burst in 1u64..100_000,
            frames in proptest::collection::vec((0u64..2_000_000, 60u64..65_550), 1..200),
        ) {
            let mut limiter = limiter(per_second, burst);
            let (mut now, mut passed, mut refused) = (0u64, 0u128, false);
            for (gap, bytes) in frames {
                now += gap;
                let wait = limiter.wait(Time::from_nanos(now));
                let ok = limiter.take(Time::from_nanos(now), bytes);
                prop_assert_eq!(ok, wait.is_zero(), "wait and take agree");
                if ok { passed += u128::from(bytes) } else { refused = true }
                let earned = u128::from(per_second) * u128::from(now) / 1_000_000_000;
                prop_assert!(passed <= u128::from(burst) + earned + 65_550);
                if !ok { prop_assert!(passed + 1 >= earned.min(u128::from(burst)), "refused without need"); }
            }
            prop_assert!(refused || passed > 0);
        }
    }
}
