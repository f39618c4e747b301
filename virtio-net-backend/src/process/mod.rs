//! The process: one thread that polls listeners, kicks, the uplink tap and the control socket, and moves frames.
//!
//! ```text
//!   control (JSON lines) --> worker --> network: ports, switch, uplink
//!   listeners, sessions  --^    |          turn(): at most so many frames of each ring, then the next
//!   kicks, tap           --^    +--> asleep in epoll when nothing moves
//! ```
//! Who commands the process may also keep its sessions ([`keeper`]), so that they outlive it.
//!
//! One writer owns everything, so there is no lock. Ports come and go while it runs. Once [`sandbox`] has closed the
//! door the process opens no file any more.

pub mod backlog;
pub mod commands;
pub mod control;
pub mod faults;
pub mod keeper;
mod keeping;
pub mod middle;
pub mod network;
mod paths;
pub mod poll;
pub mod port;
pub mod sandbox;
pub mod signals;
pub mod voice;
pub mod worker;

pub use network::Network;
pub use worker::Worker;
