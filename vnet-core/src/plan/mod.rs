//! What the kernel should look like, how it differs, and the steps that take it there.
//!
//! Pure: a [`HostState`] is data, [`desired`] and [`diff`] are functions, and only a [`Host`] acts. The kernel is
//! one `Host` (`host::Kernel`), [`fake::FakeHost`] the other. Nothing here reads a clock, a file or a socket.
//!
//! ```text
//!   World --desired--> HostState --+
//!                                  +--diff--> Plan --execute--> Done { previous values of the host's sysctls }
//!   Host --observe---> HostState --+            |                 or
//!                                            Display           RolledBack: every step undone, in reverse
//! ```
//!
//! Desired and observed are the same type, so idempotence is a law: after a plan ran, `diff` finds nothing more.
//! A dry run prints the plan, drift repair calls `diff` again, and a starting daemon adopts what bears its [`Mark`].
//!
//! | file | what |
//! |---|---|
//! | `state` | the host as data |
//! | `owner` | the mark that says a link is ours |
//! | `sysctl` | *the* table of sysctls, and which of the host's own values to give back |
//! | `desired`, `bridge`, `port` | from the world to the state it asks for |
//! | `diff`, `order` | what differs, and in which order to change it |
//! | `step` | one reversible change |
//! | `execute` | all steps or none |
//! | `fake` | a host made of data, that can fail at any step |

mod bridge;
mod desired;
mod diff;
mod execute;
pub mod fake;
mod order;
mod owner;
mod port;
mod state;
mod step;
mod sysctl;

pub use desired::{addition, desired};
pub use diff::{Conflict, Subject, diff, diff_addition, settle, settle_within};
pub use execute::{Done, Host, RolledBack, StepError, execute};
pub use order::Plan;
pub use owner::Mark;
pub use state::{BridgeOptions, HostState, Link, LinkKind, PortFlags, Route, Scope, TapOptions};
pub use step::{NewLink, Step};
pub use sysctl::{Knob, Remembered, Sysctl};
