//! The daemon that gives virtual machines their networks, and `vnet`, its command line.
//!
//! No protocol and no netlink is here: both are `vnet-core`'s. What is here is the order of things.
//!
//! | where | what |
//! |---|---|
//! | [`daemon`] | arguments, start, signals, end |
//! | [`driver`] | the one task that owns the world: every change is plan, execute, verify, persist |
//! | [`api`] | HTTP on a unix socket, events, the hand-over of file descriptors |
//! | [`cli`] | `vnet` |
//! | [`documents`] | documents on disk |
//! | [`privilege`] | who is at the other end of a socket |
//! | [`wire`] | what goes over the socket, shared by the last two |
//! | `fuzz` | the doors for strangers' bytes, for tests only (feature `fuzz`) |

pub mod api;
pub mod cli;
pub mod daemon;
pub mod documents;
pub mod driver;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
pub mod privilege;
pub mod wire;
