//! What comes into the forwarder and goes out of it, and within which bounds.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::super::aliased::Aliased;
use super::super::directory::{AnchorsId, GroupId, NetworkId};
use super::super::response::Response;
use super::super::servers::ServerId;
use super::super::shares::Holder;
use crate::model::Endpoint;

/// Bounds that keep one guest from starving the others. A guest is known by its name, which all its addresses bear; an IPv4
/// address without a name is an asker of its own, and all such IPv6 addresses of a /64 are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Questions in flight, and askers who wait for them, all together.
    pub in_flight: usize,
    /// Of those, the most for one guest.
    pub per_client: usize,
    /// Bytes of the cache.
    pub cache: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: 8_192,
            per_client: 1_024,
            cache: 8 << 20,
        }
    }
}

/// The way back to who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A datagram of a listener (by the shell's number), to this address.
    Udp(usize, SocketAddr),
    /// A connection (by the shell's numbers: slot and generation).
    Tcp(usize, u64),
    /// Whoever checks signatures, and needs this (by the shell's number) for it.
    Check(u64),
}

impl Way {
    /// Whether answers of any size go by it.
    pub(in crate::dns) const fn is_wide(self) -> bool {
        match self {
            Self::Udp(..) => false,
            Self::Tcp(..) | Self::Check(_) => true,
        }
    }
}

/// Somebody who waits for an answer.
#[derive(Debug, Clone)]
pub(in crate::dns) struct Waiter {
    pub(in crate::dns) way: Way,
    pub(in crate::dns) network: NetworkId,
    /// For whom it counts.
    pub(in crate::dns) holder: Holder,
    pub(in crate::dns) client: IpAddr,
    /// Whether it is the host itself.
    pub(in crate::dns) host: bool,
    /// Whether it may be told private addresses.
    pub(in crate::dns) private: bool,
    /// As much of the query as its answer depends on.
    pub(in crate::dns) query: Box<[u8]>,
    /// Aliases that led to the question.
    pub(in crate::dns) aliased: Option<Aliased>,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Send a datagram to an upstream over one of its sockets.
    Send {
        /// To whom.
        server: ServerId,
        /// Where that is.
        address: SocketAddr,
        /// By which of its sockets.
        lane: u8,
        /// By which link of the host only, if it is known only there.
        link: Option<u32>,
        /// What.
        message: Vec<u8>,
    },
    /// Ask an upstream over a connection: one of its own to a plain one whose datagram was cut, the one that stands to
    /// a secure one. The answer goes to [`crate::dns::Resolver::stream_answer`] with the ticket.
    Stream {
        /// Whom.
        server: ServerId,
        /// Where, and how.
        endpoint: Endpoint,
        /// By which link of the host only, if it is known only there.
        link: Option<u32>,
        /// For the answer.
        ticket: u64,
        /// What, without the length in front.
        message: Vec<u8>,
    },
    /// Find out whether an answer's signatures are good: what has to be known for it is asked by
    /// [`crate::dns::Resolver::ask_for`], and what came of it is told to [`crate::dns::Resolver::checked`].
    Check(Question),
}

/// A question whose answer is to be checked.
#[derive(Debug, Clone)]
pub struct Question {
    /// For what is asked for it, and for the outcome.
    pub ticket: u64,
    /// The name, in wire form.
    pub name: Box<[u8]>,
    /// The type.
    pub rtype: u16,
    /// Who is asked.
    pub group: GroupId,
    /// What to begin with.
    pub anchors: AnchorsId,
}

/// What became of a question.
#[derive(Debug)]
pub(in crate::dns) struct Done {
    pub(in crate::dns) key: Box<[u8]>,
    pub(in crate::dns) waiters: Vec<Waiter>,
    pub(in crate::dns) outcome: Outcome,
}

#[derive(Debug)]
pub(in crate::dns) enum Outcome {
    /// What an upstream said.
    Said(Arc<Response>),
    /// Nobody said anything to this question.
    Silence(Box<[u8]>),
    /// Nobody has yet: a stale answer is better than to wait longer.
    Pending,
}

/// Why a question is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dns) enum Declined {
    /// The asker, or everybody together, has too much in flight.
    Busy,
    /// Nobody to ask.
    Nobody,
    /// It came back from whom it was sent to.
    Loop,
}
