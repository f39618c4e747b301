//! How fast answers leave by one bridge.
//!
//! Who asks for many (a relay with its clients) hears the answers by one socket, and the kernel's usual receive buffer,
//! 208 KiB, holds about 160 of them. After a moment's delay (a slow disk, a busy machine) hundreds would leave in a
//! millisecond, and most of them would be lost. So: a burst at once, the rest evenly, a little faster than questions have
//! been coming. Who is not asked much never waits here.

use std::time::{Duration, Instant};

/// Frames that may leave at once.
const BURST: u64 = 48;
/// Frames a second that may always leave.
const LEAST: u64 = 38_000;
/// How long questions are counted before it is said how fast they come.
const WINDOW: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Pace {
    /// What one frame takes.
    each: Duration,
    /// When everything that left until now would have, one by one.
    even: Instant,
    /// Since when questions are counted.
    since: Instant,
    heard: u64,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            each: Duration::from_secs(1) / clamp(LEAST),
            even: now,
            since: now,
            heard: 0,
        }
    }

    /// Questions came.
    pub(super) fn heard(&mut self, now: Instant, questions: usize) {
        self.heard += questions as u64;
        let passed = now.saturating_duration_since(self.since);
        if passed < WINDOW {
            return;
        }
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let lately = self.heard * 1000 / millis.max(1);
        let rate = (lately + lately / 8).max(LEAST);
        self.each = Duration::from_secs(1) / clamp(rate);
        self.since = now;
        self.heard = 0;
    }

    /// Lets so many frames leave, or says when they may.
    pub(super) fn admit(&mut self, now: Instant, frames: usize) -> Result<(), Instant> {
        let even = self.even.max(now) + self.each * clamp(frames as u64);
        let at = even.checked_sub(self.each * clamp(BURST));
        match at.filter(|at| *at > now) {
            Some(at) => Err(at),
            None => {
                self.even = even;
                Ok(())
            }
        }
    }
}

/// More than four thousand million a second is no different.
fn clamp(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many frames left within `span` by chunks of 16, always more waiting.
    fn left_in(pace: &mut Pace, start: Instant, span: Duration) -> u64 {
        let (mut now, mut left) = (start, 0);
        while now <= start + span {
            match pace.admit(now, 16) {
                Ok(()) => left += 16,
                Err(at) => now = at,
            }
        }
        left
    }

    #[test]
    fn a_burst_leaves_at_once_and_the_rest_evenly() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!(pace.admit(start, 48), Ok(()));
        let at = pace.admit(start, 38).expect_err("a burst at once");
        let wait = at - start;
        assert!(
            wait.abs_diff(Duration::from_millis(1)) < Duration::from_micros(1),
            "{wait:?}"
        );
        assert_eq!(pace.admit(at, 38), Ok(()));
        // Whoever paused may burst again, no more than once.
        let later = start + Duration::from_secs(9);
        assert_eq!(pace.admit(later, 48), Ok(()));
        assert!(pace.admit(later, 16).is_err());
    }

    #[test]
    fn it_follows_the_questions_and_never_falls_behind_them() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let second = Duration::from_secs(1);
        let least = left_in(&mut pace, start, second);
        assert!((38_000..38_100).contains(&least), "{least}");
        // Eighty a millisecond, told by batches of 64.
        let mut now = start + 2 * second;
        for _ in 0..1000 {
            now += Duration::from_micros(800);
            pace.heard(now, 64);
        }
        let left = left_in(&mut pace, now, second);
        assert!((85_000..95_000).contains(&left), "{left}");
        // Silence, and it is as before.
        now += 2 * second;
        pace.heard(now, 1);
        let left = left_in(&mut pace, now, second);
        assert!((38_000..38_100).contains(&left), "{left}");
    }
}
