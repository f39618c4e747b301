//! The doors: HTTP/JSON and events on `netd.sock`, and the hand-over of taps on `fd.sock`.
//!
//! Nothing is decided here: each request becomes one [`crate::driver::Command`]. Who may ask is settled at the
//! door by what the kernel says of the peer: root, the daemon's user and the group `netd` may change things, others
//! may look.

mod extract;
mod fd;
mod http;
mod listen;

pub use fd::{Fetched, fetch_tap, serve as serve_fds};
pub use http::{openapi, serve};
pub use listen::{Listening, bind};

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use fd::fuzz as fuzz_fd;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use http::{Caller, app};
