//! What a frontend can make us say about its port: so many lines a minute. It may come and leave as often as it likes,
//! and the log is everybody's.

use std::time::{Duration, Instant};

/// Lines that a port has in a while.
const MOST: u32 = 20;
/// How long that is.
const WHILE: Duration = Duration::from_secs(60);

/// A port's share of the log.
#[derive(Debug, Default)]
pub struct Voice {
    since: Option<Instant>,
    said: u32,
    left_out: u32,
}

impl Voice {
    /// Whether one more line may be said of the port. Before the first one after a silence, it says how many were left
    /// out.
    pub fn may_speak(&mut self, port: &str) -> bool {
        let (may, left_out) = self.count(Instant::now());
        if left_out > 0 {
            tracing::warn!(port, left_out, "its frontend gave too much to say");
        }
        may
    }

    /// Whether a line may be said now, and how many were left out before it.
    fn count(&mut self, now: Instant) -> (bool, u32) {
        if self.since.is_none_or(|since| now - since >= WHILE) {
            self.since = Some(now);
            self.said = 0;
        }
        if self.said == MOST {
            self.left_out = self.left_out.saturating_add(1);
            return (false, 0);
        }
        self.said += 1;
        (true, std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_left_out_and_counted() {
        let mut voice = Voice::default();
        let start = Instant::now();
        for _ in 0..MOST {
            assert_eq!(voice.count(start), (true, 0));
        }
        for _ in 0..1000 {
            assert_eq!(voice.count(start), (false, 0));
        }
        assert_eq!(voice.count(start + WHILE), (true, 1000));
        assert_eq!(voice.count(start + WHILE), (true, 0));
    }
}
