//! A DHCPv6 server (RFC 8415, with 4704, 5908, 5970, 6355 and 6939) as a pure function of its scope, its book and the
//! messages that come in. It is not a socket, a timer or a disk: those are `serve`'s. It delegates no prefixes and
//! gives no temporary addresses; each association gets one address.
//!
//! ```text
//!           SOLICIT                REQUEST, RENEW, REBIND      RELEASE, DECLINE    CONFIRM, INFORMATION-REQUEST
//!   client ---------> offer             |                           |                        |
//!              |        |               v                           v                        v
//!        rapid +--> Commit           Commit                      Commit                    Reply
//! ```
//! [`Verdict::Commit`] is the promise of the house: its reply may not leave before its records are on disk.
//!
//! | where | what |
//! |---|---|
//! | `frame` | Ethernet, IPv6 and UDP around a message |
//! | `message` | bytes to a checked message; options to bytes |
//! | `scope` | what a network's DHCPv6 follows from |
//! | `server` | what each kind of message is answered with |
//! | `bind` | which address, and what becomes of it |
//! | `directory` | whose a reservation is, and whose a name |
//! | `reply` | what goes back |

mod bind;
mod code;
mod directory;
mod frame;
mod message;
mod reply;
mod scope;
mod server;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

pub use frame::{Datagram, SERVER_PORT, SERVERS, SITE_SERVERS, frame};
pub use message::{Malformed, Message, MessageType};
pub use scope::{Member, Scope, Subnet};
pub use server::Server;

use crate::lease::{Change, LeaseEvent};
use crate::types::Mac;

/// Where a message came from, as the link saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// The frame's source; `None` where the transport does not tell.
    pub mac: Option<Mac>,
    /// The packet's source: the client's link-local address, or a relay's.
    pub address: Ipv6Addr,
    /// Where it was sent to: the servers' group, or an address of ours.
    pub to: Ipv6Addr,
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What it is.
    pub kind: MessageType,
    /// To whom.
    pub to: Ipv6Addr,
    /// Whether a client or a relay listens there.
    pub port: u16,
    /// From which address of ours; `None` is the link-local one.
    pub from: Option<Ipv6Addr>,
    /// The message, wrapped for relays where it passes some.
    pub bytes: Vec<u8>,
}

/// What is to be done about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Ignore(Reason),
    /// Send this.
    Reply(Reply),
    /// Put the records on disk; then, and only then, send the reply and tell the events.
    Commit {
        /// What must be durable, in one transaction.
        records: Vec<Change>,
        /// What the world may then know.
        events: Vec<LeaseEvent>,
        /// What the client may then know.
        then: Reply,
    },
}

/// Why a message gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It is not a DHCPv6 message to a server.
    Malformed,
    /// It goes through us to a server elsewhere.
    NotForUs,
    /// It is a server's own kind of message.
    NotForServers,
    /// The sender uses more than its share of the server.
    RateLimit,
    /// A guarded port plays relay.
    ForgedRelay,
    /// A message of this kind goes to the servers' group.
    Unicast,
    /// The link it is about is none of ours.
    NoSubnet,
    /// The client chose another server, or may not choose one.
    OtherServer,
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
            Self::ForgedRelay => "forged-relay",
            Self::Unicast => "unicast",
            Self::NoSubnet => "no-subnet",
            Self::OtherServer => "other-server",
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
}
