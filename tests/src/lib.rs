//! The vocabulary of the tests that run the real thing: namespaces, daemons, clients, guests.
//!
//! A test reads like what it tests, and leaves nothing behind: every part is a guard that removes what it made when
//! it is dropped, panic or not. Nothing here touches the network of the machine; everything happens in namespaces
//! whose names carry the pid of the test.
//!
//! ```text
//! scratch   a folder of our own            wait      a condition, a deadline, the last state seen
//! process   run (captured, with a deadline) and spawn (owned, log shown when the test fails)
//! netns     namespaces, links between them, commands and threads inside them
//! daemon    netd and vnet                  guest     a QEMU Linux guest in five lines
//! clients   udhcpc, dhclient               image     its kernel and initrd, cached
//! http      a web server of ten lines      tool      is it installed; a skip is counted
//! world     a host on an internet, machines on its networks, pings that are counted
//! dns       the DNS service alone, guests on its bridges
//! echo      bytes through a guest and back, each checked
//! vhost     what tests of vhost-user ports share
//! unpacked  programs of packages that may not be installed, because their service would start
//! ```
//! It is not a framework: plain functions that return `anyhow::Result`, to be used from ordinary `#[test]`s.

pub mod clients;
mod cpio;
pub mod daemon;
pub mod dns;
pub mod echo;
mod enter;
pub mod guest;
pub mod http;
pub mod image;
pub mod netns;
pub mod process;
pub mod scratch;
pub mod tool;
pub mod unpacked;
pub mod vhost;
pub mod wait;
pub mod world;

pub use clients::{Dhclient, Lease, Udhcpc};
pub use daemon::Netd;
pub use echo::Echo;
pub use guest::Guest;
pub use netns::Ns;
pub use process::{Proc, Ran};
pub use scratch::Scratch;
pub use wait::wait_for;
pub use world::{Machine, Stream, World};
