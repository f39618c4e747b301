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

mod book;
pub mod interop;
mod pool;
mod record;
pub mod row;

pub use book::{Book, MOST_LAPSED, Offer, Slot, Tally};
pub use pool::Pool;
pub use record::{Bad, Client, LeaseRecord, LeaseState};

use std::net::IpAddr;

use crate::types::NetworkName;

/// What must be on disk before anybody may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Keep this record, in place of the one with its network and address.
    Put(LeaseRecord),
    /// Forget the record of this address.
    Delete(NetworkName, IpAddr),
}

/// What happened to a lease, for whoever keeps names, files or an event stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseEvent {
    /// What happened.
    pub kind: LeaseKind,
    /// The lease it happened to, as it now stands.
    pub lease: LeaseRecord,
}

/// What can happen to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseKind {
    /// A client got it.
    Granted,
    /// Its client got more time, or another name.
    Renewed,
    /// Its client, or an operator, gave it back.
    Released,
    /// Its time ran out.
    Expired,
    /// Its address was found in use by somebody else.
    Declined,
}

impl LeaseKind {
    /// The word that events and tables use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Renewed => "renewed",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Declined => "declined",
        }
    }
}

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

    /// Seconds since 1970, or `None` for never: what documents and files say.
    #[must_use]
    pub const fn as_unix(self) -> Option<u64> {
        if self.0 == u64::MAX {
            return None;
        }
        Some(self.secs())
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
