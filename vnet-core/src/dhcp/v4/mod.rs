//! A DHCPv4 server (RFC 2131, 2132, 3011, 3046, 3396, 3442, 3527, 4039, 4702, 5107, 6842) as a pure function of its scope, its book and
//! the messages that come in. It is not a socket, a timer or a disk: those are `serve`'s.
//!
//! ```text
//!            DISCOVER                    REQUEST                 RELEASE, DECLINE     INFORM
//!   client ------------> choose, offer ------------> grant            |                 |
//!                             |                        |              v                 v
//!          Reply / Probe <----+                        +---------> Commit            Reply
//! ```
//! [`Verdict::Commit`] is the promise of the house: its reply may not leave before its records are on disk.
//! [`Verdict::Probe`] asks the link while the offer is already on its way: an answer that arrives before the client's
//! REQUEST turns that into a NAK ([`Server::conflict`]), and a free address costs no time at all.
//!
//! | where | what |
//! |---|---|
//! | `frame` | Ethernet, IPv4 and UDP around a message; ARP |
//! | `message` | bytes to a checked message; fields and options to bytes |
//! | `scope` | what a network's DHCP follows from |
//! | `identity` | who sent it, and which reservation is its own |
//! | `server` | the states of RFC 2131 |
//! | `bind` | what they do to the book |
//! | `allocate` | which address; the operator's requests |
//! | `reply` | which options, and where to |
//! | `search` | the domain search list, short |

mod allocate;
mod bind;
mod code;
mod frame;
mod identity;
mod message;
mod reply;
mod scope;
mod search;
mod server;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

pub use allocate::ReserveError;
pub use frame::{Datagram, arp_answer, arp_probe, frame};
pub use message::{Malformed, Message, MessageType};
pub use reply::{Destination, Reply};
pub use scope::{Member, Scope, Subnet};
pub use server::Server;

use crate::lease::{Change, LeaseEvent};
use crate::types::Mac;

/// Where a message came from and went to, as the link saw it. What the transport does not tell is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sender {
    /// The frame's source.
    pub mac: Option<Mac>,
    /// The packet's source.
    pub ip: Option<Ipv4Addr>,
    /// The packet's destination.
    pub to: Option<Ipv4Addr>,
}

/// What is to be done about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Ignore(Reason),
    /// Send this.
    Reply(Reply),
    /// Ask the link who has the address, and send this at once, if there is something to say yet. If somebody answers:
    /// [`Server::conflict`].
    Probe {
        /// The address in question.
        address: Ipv4Addr,
        /// The offer of it.
        then: Option<Reply>,
    },
    /// Put the records on disk; then, and only then, send the reply and tell the event.
    Commit {
        /// What must be durable, in one transaction.
        records: Vec<Change>,
        /// What the world may then know.
        events: Vec<LeaseEvent>,
        /// What the client may then know.
        then: Option<Reply>,
    },
}

/// Why a message gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It is not a DHCP message to a server.
    Malformed,
    /// It goes through us to a server elsewhere.
    NotForUs,
    /// It is a server's own kind of message.
    NotForServers,
    /// The sender uses more than its share of the server.
    RateLimit,
    /// The clients behind one Ethernet source (a relay that the document does not name is one, too) hold as many
    /// addresses as they may.
    SourceLimit,
    /// A guarded port speaks for another hardware address, or another for a guarded port.
    ForgedSource,
    /// A guarded port plays relay.
    ForgedRelay,
    /// Neither an identifier nor a hardware address.
    NoIdentity,
    /// A relay, or an address, of no subnet of ours.
    NoSubnet,
    /// No address is left for this client.
    Exhausted,
    /// The client chose another server.
    OtherServer,
    /// The client has no such lease.
    NoLease,
    /// The message lacks what its kind must have.
    Incomplete,
}

impl Reason {
    /// The word counters use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotForUs => "not-for-us",
            Self::NotForServers => "not-for-servers",
            Self::RateLimit => "rate-limit",
            Self::SourceLimit => "source-limit",
            Self::ForgedSource => "forged-source",
            Self::ForgedRelay => "forged-relay",
            Self::NoIdentity => "no-identity",
            Self::NoSubnet => "no-subnet",
            Self::Exhausted => "exhausted",
            Self::OtherServer => "other-server",
            Self::NoLease => "no-lease",
            Self::Incomplete => "incomplete",
        }
    }
}

/// What was counted since the server began.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Messages by kind.
    pub received: BTreeMap<MessageType, u64>,
    /// Replies by kind.
    pub sent: BTreeMap<MessageType, u64>,
    /// Messages that got no answer, by reason.
    pub ignored: BTreeMap<Reason, u64>,
    /// Addresses found in use by an ARP answer.
    pub conflicts: u64,
}
