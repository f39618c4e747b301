//! DNS for guests, as pure decisions: who owns a name, what the answer is, whom to ask otherwise.
//!
//! ```text
//!  bytes ──▶ wire::Query ──▶ Directory::answer(from, query) ──┬─▶ Local / NoSuchName   the reply is written
//!                                                             ├─▶ Forward(group) ──▶ Cache ──▶ Forwarder
//!                                                             └─▶ Refuse
//! ```
//! * [`Zone`] is what one network's gateway answers for, made from the `World`; [`Directory`] holds the zones of all
//!   networks with their leases, and knows which network may see whose names.
//! * `Cache` keeps what upstreams said, within a byte limit, and may serve it stale; `Forwarder` asks upstreams.
//! * [`Resolver`] is all of them at work: messages, time and dice go in, replies and [`Effect`]s come out.
//!
//! Not here: sockets, threads, files (`serve::dns`), and recursion from the root (a resolver of the host does that).

mod aliased;
mod answer;
mod cache;

mod directory;
mod forwarder;
#[cfg(any(feature = "host", test))]
pub(crate) mod h2;
mod resolver;
mod response;
mod reverse;
mod servers;
pub(crate) mod shares;
pub(crate) mod slab;

#[cfg(test)]
mod tests;
pub mod wire;
mod zone;

pub use answer::{Answer, Ask, From, Refusal};
pub use directory::{AnchorsId, Change, Directory, GroupId, NameChange, NetworkId};
pub use forwarder::{Dice, Effect, LANES, Limits, Question, Way};
pub use resolver::{Checked, Counters, Explained, Fate, Resolver, Stats, UpstreamState, Whose};
pub use reverse::reverse_name;
pub use servers::{ServerId, Target};
pub use zone::Zone;

/// How long a guest may remember a name we own, in seconds: short, so that a guest made anew is found at once.
pub const LOCAL_TTL: u32 = 10;
/// How long a guest may remember that a name does not exist.
pub const NEGATIVE_TTL: u32 = 5;
