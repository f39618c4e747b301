//! One question in flight: who was asked, who waits, and whom to ask next.

use std::sync::Arc;

use super::super::response::Response;
use super::super::servers::{Ability, Server, ServerId, Servers, Standing};
use super::super::shares::Share;
use super::traffic::Waiter;

/// Whether something is in a message that an upstream may not stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum With {
    Yes,
    /// It is known that it cannot.
    No,
    /// To see whether it works without.
    Trial,
}

impl With {
    fn of(ability: Ability, now: u64) -> Self {
        if ability.is_lacking(now) {
            Self::No
        } else {
            Self::Yes
        }
    }
}

/// The manner in which an upstream is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manner {
    pub(super) edns: With,
    /// The random case of the name.
    pub(super) case: With,
}

impl Manner {
    /// As is best with this upstream.
    pub(super) fn with(server: &Server, now: u64) -> Self {
        Self {
            edns: With::of(server.edns, now),
            case: With::of(server.case, now),
        }
    }
}

/// One message that may still be answered.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) server: ServerId,
    pub(super) lane: u8,
    pub(super) id: u16,
    /// The question as it was sent, in its random case.
    pub(super) question: Box<[u8]>,
    pub(super) sent: u64,
    pub(super) tcp: bool,
    pub(super) manner: Manner,
}

/// One question in flight.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) key: Box<[u8]>,
    pub(super) servers: Arc<[ServerId]>,
    pub(super) question: Box<[u8]>,
    pub(super) flags: u16,
    pub(super) dnssec_ok: bool,
    pub(super) waiters: Vec<(Waiter, Share)>,
    pub(super) attempts: Vec<Attempt>,
    /// Those that were asked in this round.
    pub(super) tried: Vec<ServerId>,
    pub(super) sends: u8,
    /// When something is to be done next.
    pub(super) due: u64,
    pub(super) stale_at: Option<u64>,
    pub(super) deadline: u64,
    /// A failure that some upstream reported, for want of better.
    pub(super) failure: Option<Response>,
    pub(super) generation: u64,
}

impl Asking {
    /// What an answer of a connection is brought with.
    pub(super) fn ticket(&self, slot: usize) -> u64 {
        (self.generation & 0xff_ffff_ffff) << 24 | slot as u64 & 0xff_ffff
    }

    /// What EDNS says to an upstream: whether signatures are wanted; nothing to one that does not know EDNS.
    pub(super) fn edns(&self, manner: Manner) -> Option<bool> {
        (manner.edns == With::Yes).then_some(self.dnssec_ok)
    }
}

/// Whom to ask next among those not asked yet: the first that is up, with one beside it whose rest is over; if none is
/// up, whoever is left.
pub(super) fn choose(
    servers: &Servers,
    now: u64,
    asking: &Asking,
) -> Option<(Option<ServerId>, ServerId)> {
    let left = || {
        asking
            .servers
            .iter()
            .copied()
            .filter(|s| !asking.tried.contains(s))
    };
    let of = |standing| left().find(|s| servers.standing(now, *s) == standing);
    let probing = of(Standing::Probing);
    match of(Standing::Up) {
        Some(up) => Some((probing, up)),
        None => probing.or_else(|| left().next()).map(|any| (None, any)),
    }
}
