//! Router advertisements (RFC 4861 section 6.2, with RFC 4191, 8106, 8781 and 8910) of one network, as a pure function
//! of its scope, the time and the solicitations that come in. It is not a socket or a timer, and it keeps nothing on
//! disk: a restarted daemon advertises afresh, and begins with what was being taken back ([`Advertiser::removed`]).
//!
//! ```text
//!   configure --> three in a hurry --> one every 200 to 600 s <--+
//!                                        |                       |
//!      solicitation ---- unicast at once +-- multicast ----------+
//!   configure(None) --> farewell, three times: no router, no prefix
//! ```
//! What was advertised and is not any more is taken back for as long as guests would remember it: they may have missed
//! the advertisement that first said so. A prefix is *deprecated* for two hours: guests finish what they began with it
//! and begin nothing new, instead of keeping a dead address for a day.

mod removed;
mod scope;
mod wire;

use std::net::Ipv6Addr;

pub use removed::Removed;
pub use scope::Scope;
pub(super) use scope::resolvers;
pub use wire::Solicitation;
pub(super) use wire::wire_name;

use super::ip6::{Envelope, multicast_mac};
use super::limit::Rates;
use crate::lease::Time;
use crate::types::Mac;

/// How many advertisements of something new are sent, and how far apart at most (`MAX_INITIAL_RTR_ADVERTISEMENTS`).
const HASTY: (u8, u64) = (3, 16);
/// `MIN_DELAY_BETWEEN_RAS`: multicasts come no faster, whoever asks and whatever changes.
const MULTICAST_GAP: u64 = 3;
/// `MAX_FINAL_RTR_ADVERTISEMENTS`: nobody asks again when one of them is lost.
const FAREWELLS: usize = 3;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// One advertisement and whom it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    to_mac: Mac,
    to: Ipv6Addr,
    body: wire::Body,
}

/// Why a solicitation is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is advertised here.
    Silent,
    /// The sender asks more than its share.
    RateLimit,
}

/// The advertisements of one network.
#[derive(Debug, Clone, Default)]
pub struct Advertiser {
    scope: Option<Scope>,
    removed: Removed,
    next: Option<Time>,
    last: Option<Time>,
    hasty: u8,
    rates: Rates,
    /// How many were sent.
    sent: u64,
}

impl Advertiser {
    /// An advertiser that goes on where another, of which this was kept, ended.
    #[must_use]
    pub fn after(removed: Removed) -> Self {
        Self {
            removed,
            ..Self::default()
        }
    }

    /// What is being taken back: to be kept after each [`Advertiser::configure`].
    #[must_use]
    pub const fn removed(&self) -> &Removed {
        &self.removed
    }

    /// A new scope in place of the old one; with `None` the farewells that are to be sent before the bridge goes.
    pub fn configure(&mut self, now: Time, scope: Option<Scope>) -> Vec<Advertisement> {
        if self.scope == scope {
            return Vec::new();
        }
        let (old, new) = (self.scope.as_ref(), scope.as_ref());
        self.removed.follow(now, old, new);
        self.scope = scope;
        self.hasty = HASTY.0;
        if self.scope.is_some() {
            self.next = Some(self.soonest(now));
            return Vec::new();
        }
        self.next = None;
        let last_words = wire::farewell(&std::mem::take(&mut self.removed), now);
        let farewells = (0..FAREWELLS).map(|_| self.multicast(last_words.clone()));
        farewells.collect()
    }

    /// When the next multicast may leave (RFC 4861 section 6.2.4).
    fn soonest(&self, now: Time) -> Time {
        let gap = self.last.map_or(now, |last| last.plus_secs(MULTICAST_GAP));
        gap.max(now)
    }

    /// What a solicitation is answered with: at once and to the one who asks, or (asked by nobody's address) soon and
    /// to all. RFC 4861 section 6.2.6 has routers wait up to half a second so that they do not all answer at once;
    /// this link has one.
    ///
    /// # Errors
    /// Why it is not answered.
    pub fn solicited(
        &mut self,
        now: Time,
        from: &Solicitation,
    ) -> Result<Option<Advertisement>, Reason> {
        let Some(scope) = &self.scope else {
            return Err(Reason::Silent);
        };
        if !self.rates.admits(from.mac, now) {
            return Err(Reason::RateLimit);
        }
        if from.address.is_unspecified() {
            let soon = self.soonest(now);
            self.next = self.next.map(|next| next.min(soon));
            return Ok(None);
        }
        let body = wire::body(scope, &self.removed, now);
        self.sent += 1;
        Ok(Some(Advertisement {
            to_mac: from.mac,
            to: from.address,
            body,
        }))
    }

    /// When [`Advertiser::poll`] has something to say next.
    #[must_use]
    pub const fn next_due(&self) -> Option<Time> {
        self.next
    }

    /// The advertisement that is due, if one is. `random` spreads the next.
    pub fn poll(&mut self, now: Time, random: u64) -> Option<Advertisement> {
        if self.next? > now {
            return None;
        }
        self.removed.expire(now);
        let scope = self.scope.as_ref()?;
        let body = wire::body(scope, &self.removed, now);
        let (least, most) = scope.ra.between();
        let spread = least + random % (most - least).max(1);
        self.hasty = self.hasty.saturating_sub(1);
        let wait = match self.hasty {
            0 => spread,
            1.. => spread.min(HASTY.1),
        };
        self.next = Some(now.plus_secs(wait));
        self.last = Some(now);
        Some(self.multicast(body))
    }

    /// How many advertisements went out.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    fn multicast(&mut self, body: wire::Body) -> Advertisement {
        self.sent += 1;
        Advertisement {
            to_mac: multicast_mac(ALL_NODES),
            to: ALL_NODES,
            body,
        }
    }
}

impl Advertisement {
    /// The frame that carries it, from a bridge with this MAC.
    #[must_use]
    pub fn frame(&self, ours: Mac) -> Vec<u8> {
        let envelope = Envelope {
            from_mac: ours,
            to_mac: self.to_mac,
            from: ours.link_local(),
            to: self.to,
            hops: 255,
        };
        self.body.frame(&envelope)
    }
}
