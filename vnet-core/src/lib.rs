//! Networks for virtual machines on Linux: the library that thinks.
//!
//! Imports go only downward. Everything above the line needs feature `host`; everything below it has no OS, no
//! clock and no runtime: time, randomness and bytes come in as arguments and effects go out as values.
//!
//! ```text
//!      serve                 async shells: DHCP, DNS, RA sockets; leases and their disk
//!        |      \
//!      host     store        the kernel (rtnetlink, nft, tap, sysctl) and the disk (redb, a log)
//!   -----+------------------------------------------------------------------ feature "host" above
//!      plan   firewall   dhcp   dns   (lease)     decide
//!          \       |      /
//!        config   model                           what a network *is*, and its file formats
//!              |
//!            types                                MAC, names, ranges, units: can only be built valid
//! ```
//!
//! | where | what |
//! |---|---|
//! | [`types`] | values that exist only if they are valid |
//! | [`model`] | [`model::World`]: networks and ports, the whole truth the daemon keeps |
//! | [`config`] | documents people write (TOML, JSON) to and from the model |
//! | [`dns`] | names: who owns one, what the answer is, whom to ask otherwise |
//! | [`tftp`] | files for machines without a system, read-only |
//! | [`dhcp`] | DHCPv4: messages in, verdicts out |
//! | [`lease`] | who holds which address: records, pool, book |
//! | [`firewall`] | the packet rules of a world, compiled whole |
//! | [`plan`] | from the world to kernel state, the difference, and reversible steps |
//! | [`host`] | the kernel: netlink, sysctls, taps (feature `host`) |
//! | [`serve`] | the shells that listen on gateways (feature `host`) |
//! | [`store`] | what survives: documents in a file, leases in a log (feature `host`) |
//! | `fuzz` | the doors for strangers' bytes, for tests only (feature `fuzz`) |

pub mod config;
pub mod dhcp;
pub mod dns;
pub mod firewall;
#[cfg(any(feature = "fuzz", all(test, feature = "host")))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "host")]
pub mod host;
pub mod lease;
pub mod model;
pub mod plan;
#[cfg(feature = "host")]
pub mod serve;
#[cfg(feature = "host")]
pub mod store;
pub mod tftp;
pub mod types;
