//! How guests get their addresses, decided in pure code: bytes and time come in, verdicts go out.
//!
//! | where | what |
//! |---|---|
//! | [`v4`] | DHCPv4 |
//! | [`v6`] | DHCPv6 |
//! | [`ra`] | router advertisements: prefixes, resolvers and routes of IPv6 |
//! | `desk` | what servers of both families do alike: leases that end, what senders had |
//! | `limit` | how much one sender gets |
//! | `reserved` | names that reservations have, and whose they are in both families |
//! | `ip6` | Ethernet and IPv6 around a datagram |

mod desk;
pub mod ip6;
mod limit;
pub mod ra;
mod reserved;
pub mod v4;
pub mod v6;

pub use desk::{Changes, Desk};
pub use limit::Share;
pub use reserved::{Owner, Reserved, reserved4, reserved6};
