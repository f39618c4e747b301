//! How far apart the two cores are. Where this machine is virtual its host decides that, and changes it while we measure:
//! 30 ns within one cache, 180 where each cache line takes the long way, which is most of what moves figures of S1.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

/// Lines sent there and back in one burst, short enough for one slice of a busy core.
const EXCHANGES: u32 = 400;
const BURSTS: u32 = 40;
/// The other core has something else to do: the burst does not count.
const TOO_LONG: Duration = Duration::from_millis(5);
const END: u32 = u32::MAX;

/// Nanoseconds that a cache line takes from core 0 to core 1, the least of some bursts; not a number where that cannot be
/// told.
pub(crate) fn distance() -> f64 {
    let ball = Line(AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stay_on(1);
            loop {
                match ball.0.load(Ordering::Acquire) {
                    END => break,
                    odd if odd % 2 == 1 => ball.0.store(odd + 1, Ordering::Release),
                    _ => spin_loop(),
                }
            }
        });
        let here = scope.spawn(|| {
            stay_on(0);
            let bursts: Vec<_> = (0..BURSTS).filter_map(|_| burst(&ball)).collect();
            ball.0.store(END, Ordering::Release);
            bursts.into_iter().reduce(f64::min)
        });
        here.join().ok().flatten().unwrap_or(f64::NAN)
    })
}

#[repr(align(128))]
struct Line(AtomicU32);

fn burst(ball: &Line) -> Option<f64> {
    let began = Instant::now();
    for _ in 0..EXCHANGES {
        let next = ball.0.load(Ordering::Relaxed) + 1;
        ball.0.store(next, Ordering::Release);
        while ball.0.load(Ordering::Acquire) == next {
            spin_loop();
            if began.elapsed() > TOO_LONG {
                // Whoever is away answers later: begin anew from there.
                while ball.0.load(Ordering::Acquire) == next {
                    std::thread::yield_now();
                }
                return None;
            }
        }
    }
    Some(began.elapsed().as_secs_f64() * 1e9 / f64::from(EXCHANGES) / 2.0)
}

/// Has the calling thread run there.
pub(crate) fn stay_on(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    // Left where it is, the bursts only take longer.
    let _ = sched_setaffinity(None, &set);
}
