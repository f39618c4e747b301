//! Who holds which address: the record of one lease, the pool of free addresses and the book that chooses.
//!
//! Pure data: no clock (a [`Time`] is an argument), no disk (a record is bytes that [`crate::store`] keeps) and no
//! protocol (DHCPv4, DHCPv6 and the driver that attaches ports share one [`LeaseRecord`]).
//!
//! ```text
//!   blank --offer--> offered --grant--> held --expiry, release--> lapsed --(its client returns)--> held
//!     ^                 |                |                           |
//!     +---- timeout ----+                +--decline--> quarantined   +--(the pool is empty)--> another's
//! ```

mod record;

pub use record::{Bad, Client, LeaseRecord, LeaseState};

/// Milliseconds since 1970. Whoever calls brings it; nothing below the shells reads a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// The end of a lease that never ends.
    pub const NEVER: Self = Self(u64::MAX);

    /// From whole seconds since 1970.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Whole seconds since 1970.
    #[must_use]
    pub const fn secs(self) -> u64 {
        self.0 / 1000
    }

    /// This moment and so many seconds.
    #[must_use]
    pub const fn plus_secs(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1000)))
    }

    /// This moment and so many milliseconds.
    #[must_use]
    pub const fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }
}
