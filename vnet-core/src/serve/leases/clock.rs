//! The clock that leases live by.

use rustix::time::{ClockId, clock_gettime};

use crate::lease::Time;

/// The wall clock when we began and the time that passed since, suspension included: a step of the wall clock ends
/// no lease.
#[derive(Debug, Clone, Copy)]
pub(in crate::serve) struct Clock {
    began: Time,
    since: u64,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            began: wall(),
            since: millis(ClockId::Boottime),
        }
    }

    pub(in crate::serve) fn now(&self) -> Time {
        self.began
            .plus_millis(millis(ClockId::Boottime).saturating_sub(self.since))
    }
}

/// What everybody else goes by.
pub(in crate::serve) fn wall() -> Time {
    Time(millis(ClockId::Realtime))
}

fn millis(clock: ClockId) -> u64 {
    let at = clock_gettime(clock);
    let seconds = u64::try_from(at.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(at.tv_nsec).unwrap_or(0) / 1_000_000
}
