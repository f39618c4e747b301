//! The only netlink, sysctl writes and tap ioctls of the project.
//!
//! [`Kernel`] is the real [`Host`]: it observes into and acts from the pure data of [`crate::plan`]. It decides nothing.
//!
//! | file | what |
//! |---|---|
//! | `socket` | a request to rtnetlink and its answer, with the kernel's words |
//! | `worker` | the thread it happens on |
//! | `observe` | the kernel's state as a [`HostState`] |
//! | `link`, `address`, `route`, `sysctl` | one step each |
//! | `tap` | the ioctls |
//! | `survey` | what the host has that is not ours |
//! | `watch` | what changes behind our back |

mod address;
mod link;
mod observe;
mod route;
mod socket;
mod sysctl;
pub mod tap;
mod worker;

use std::io;

use crate::plan::{Host, HostState, Scope, Step, StepError};
use worker::Desk;

/// The kernel of the network namespace that it was made in.
#[derive(Clone)]
pub struct Kernel {
    desk: Desk,
}

impl Kernel {
    /// Opens the kernel's doors. Whether we may change anything shows at the first step.
    ///
    /// # Errors
    /// When there is no rtnetlink to be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            desk: Desk::open()?,
        })
    }
}

impl Host for Kernel {
    async fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        let step = step.clone();
        self.desk.run(move |worker| worker.take(&step)).await?
    }

    async fn apply_stage(&mut self, steps: &[Step]) -> Vec<Result<(), StepError>> {
        let steps = steps.to_vec();
        let done = self.desk.run(move |worker| worker.take_all(&steps)).await;
        done.unwrap_or_else(|error| vec![Err(error)])
    }

    async fn observe(&mut self, scope: &Scope) -> Result<HostState, StepError> {
        let scope = scope.clone();
        self.desk.run(move |worker| worker.observe(&scope)).await?
    }
}
