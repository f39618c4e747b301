//! The only netlink, sysctl writes, tap ioctls and nft runs of the project.
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
//! | `neighbour`, `neighbour_watch` | who has been heard, and who is heard |
//! | `nft`, `nft_watch` | the firewall's rules, by running nft; what others do to it |
//! | `survey` | what the host has that is not ours |
//! | `watch` | what changes behind our back |

mod address;
mod link;
mod neighbour;
pub mod neighbour_watch;
pub mod nft;
pub mod nft_watch;
mod observe;
mod route;
mod socket;
mod survey;
mod sysctl;
pub mod tap;
pub mod watch;
mod worker;

use std::io;
use std::net::Ipv6Addr;

pub use neighbour::Neighbour;
pub use survey::{Overlap, Taken};

use crate::firewall::{Change, batch};
use crate::plan::{Host, HostState, Scope, Step, StepError};
use crate::types::{IfName, PortName};
use worker::Desk;

/// The host's own name, without its domain.
#[must_use]
pub fn own_name() -> Option<PortName> {
    let host = rustix::system::uname();
    let name = host.nodename().to_str().ok()?;
    name.split('.').next()?.parse().ok()
}

/// The kernel of the network namespace that it was made in.
#[derive(Clone)]
pub struct Kernel {
    desk: Desk,
    nft: nft::Nft,
}

impl Kernel {
    /// Opens the kernel's doors. Whether we may change anything shows at the first step.
    ///
    /// # Errors
    /// When there is no rtnetlink to be had.
    pub fn new() -> io::Result<Self> {
        let nft = nft::Nft::new();
        Ok(Self {
            desk: Desk::open(nft.ours())?,
            nft,
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

    /// Has the kernel ask whether these addresses are there; what it learns is heard by
    /// [`neighbour_watch::NeighbourWatch`].
    ///
    /// # Errors
    /// When there is no such link.
    pub async fn ask_for(&self, dev: &IfName, addresses: Vec<Ipv6Addr>) -> Result<(), StepError> {
        let dev = dev.clone();
        let asked = self
            .desk
            .run(move |worker| worker.ask_for(&dev, &addresses));
        asked.await?
    }

    /// Changes the firewall in one transaction: plain elements at once, all else by nft.
    ///
    /// # Errors
    /// When it is refused; then nothing was changed.
    pub async fn change_rules(&mut self, change: &Change) -> Result<(), StepError> {
        if let Some(batch) = batch::batch(change) {
            let done = self.desk.run(move |worker| worker.change_elements(&batch));
            return done.await?;
        }
        let done = self.nft.apply(change).await;
        done.map_err(|error| StepError(error.to_string()))
    }

    /// The firewall's runner, which knows the changes that are our own.
    #[must_use]
    pub const fn nft(&self) -> &nft::Nft {
        &self.nft
    }
}

/// Links, addresses, sysctls and elements of sets go by netlink on a thread of their own; rules go by nft. A look at some links
/// does not list the firewall: its transactions are all or nothing, and what others do to it is noticed.
impl Host for Kernel {
    async fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        if let Step::Firewall { change, .. } = step {
            return self.change_rules(change).await;
        }
        let step = step.clone();
        self.desk.run(move |worker| worker.take(&step)).await?
    }

    async fn apply_stage(&mut self, steps: &[Step]) -> Vec<Result<(), StepError>> {
        if let [step @ Step::Firewall { .. }] = steps {
            return vec![self.apply(step).await];
        }
        let steps = steps.to_vec();
        let done = self.desk.run(move |worker| worker.take_all(&steps)).await;
        done.unwrap_or_else(|error| vec![Err(error)])
    }

    async fn observe(&mut self, scope: &Scope) -> Result<HostState, StepError> {
        let look = scope.clone();
        let links = self.desk.run(move |worker| worker.observe(&look));
        if *scope != Scope::All {
            return links.await?;
        }
        let (links, rules) = tokio::join!(links, self.nft.observe());
        let mut seen = links??;
        let rules = rules.map_err(|error| StepError(error.to_string()))?;
        seen.firewall = Some(rules.unwrap_or_default());
        Ok(seen)
    }
}
