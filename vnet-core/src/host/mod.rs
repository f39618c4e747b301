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
//! | `neighbour` | who has been heard |
//! | `nft` | the firewall, by running nft |
//! | `survey` | what the host has that is not ours |
//! | `watch` | what changes behind our back |

mod address;
mod link;
mod neighbour;
pub mod nft;
mod observe;
mod route;
mod socket;
mod survey;
mod sysctl;
pub mod tap;
pub mod watch;
mod worker;

use std::io;

pub use neighbour::Neighbour;
pub use survey::{Overlap, Taken};

use crate::plan::{Host, HostState, Scope, Step, StepError};
use crate::types::IfName;
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

    /// What the host has that is not ours.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub async fn survey(&self) -> Result<Taken, StepError> {
        self.desk.run(worker::Worker::survey).await?
    }

    /// The neighbours known on one link.
    ///
    /// # Errors
    /// When there is no such link.
    pub async fn neighbours(&self, dev: &IfName) -> Result<Vec<Neighbour>, StepError> {
        let dev = dev.clone();
        self.desk.run(move |worker| worker.neighbours(&dev)).await?
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
