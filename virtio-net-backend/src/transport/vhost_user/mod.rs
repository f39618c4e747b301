//! The vhost-user protocol, backend side.
//!
//! ```text
//!   unix socket -> wire (bytes and fds) -> message (typed requests) -> session (device, rings, memory) -> reply
//! ```
//! Own request handling, because the crates that exist insist on an order of messages that QEMU does not keep: it
//! sends SET_VRING_ENABLE before SET_FEATURES (see `docs/decisions/own-vhost-user-session.md`). A session
//! therefore stores what it is told in any order and starts a ring when everything it needs is there.
//!
//! A session can be kept by somebody else and go on in a successor of a process that was killed: see [`hand_over`].
//!
//! Not here: listening, reconnecting and polling (`process`), frames (`device`).

pub mod backend_channel;
pub mod bell;
pub mod dirty_log;
pub mod fds;
pub mod foreign;
pub mod hand_over;
pub mod inflight;
pub mod lost_memory;
pub mod memory_table;
pub mod message;
pub mod refusal;
mod rings;
pub mod session;
pub mod vring;
pub mod wire;

pub use foreign::Foreign;
pub use hand_over::Kept;
pub use message::{ProtocolFeatures, Request};
pub use session::{Event, Session};
