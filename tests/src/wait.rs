//! Waiting for a condition. Tests never sleep for a time that "should do".

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// Asks `probe` until it answers `Ok`, or fails after `deadline` with the last `Err` that it gave.
///
/// ```
/// # use std::time::Duration;
/// let mut left = 3;
/// let got = tests::wait_for("the count", Duration::from_secs(1), || {
///     left -= 1;
///     if left == 0 { Ok("done") } else { Err(format!("{left} left")) }
/// });
/// assert_eq!(got.unwrap(), "done");
/// ```
pub fn wait_for<T, E: Display>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(state) if start.elapsed() >= deadline => {
                anyhow::bail!(
                    "waited {:.1?} for {what}; last seen: {state:#}",
                    start.elapsed()
                );
            }
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_tells_the_last_state() {
        let mut asked = 0;
        let error = wait_for::<(), _>("rain", Duration::from_millis(20), || {
            asked += 1;
            Err(format!("sun {asked}"))
        })
        .unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("rain; last seen: sun {asked}")),
            "{error}"
        );
    }
}
