//! What the driver can be asked, and how it answers. The one list of verbs: HTTP, files and signals all end here.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use tokio::sync::{mpsc, oneshot};
use vnet_core::config::Problems;
use vnet_core::model::{Clash, PortKey};
use vnet_core::types::{Invalid, NetworkName};

use super::events::Events;
use crate::wire::{
    ApplyReply, ApplyRequest, DhcpView, DnsLookup, DnsView, LeaseView, NetworkView, Outcome,
    PortRequest, PortView, PublishRequest, PublishView, Status,
};

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// One request to the driver.
#[derive(Debug)]
pub enum Command {
    /// How it is.
    Status(Reply<Status>),
    /// Every network.
    Networks(Reply<Vec<NetworkView>>),
    /// One network.
    Network(NetworkName, Reply<NetworkView>),
    /// Make networks true.
    Apply(ApplyRequest, Reply<ApplyReply>),
    /// Start a network.
    Start(NetworkName, Reply<Outcome>),
    /// Stop a network.
    Stop(NetworkName, Reply<Outcome>),
    /// Stop and start a network.
    Restart(NetworkName, Reply<Outcome>),
    /// Stop every network.
    StopAll(Reply<Outcome>),
    /// Forget a network.
    Delete(NetworkName, Reply<Outcome>),
    /// Start with the daemon, or not.
    Autostart(NetworkName, bool, Reply<Outcome>),
    /// Every port (of one network).
    Ports(Option<String>, Reply<Vec<PortView>>),
    /// One port.
    Port(PortKey, Reply<PortView>),
    /// Make a port.
    Attach(PortRequest, Reply<PortView>),
    /// Take a port away.
    Detach(PortKey, Reply<Outcome>),
    /// Open a tap: how many queues, for which user (`None`: one who may do everything).
    OpenTap(PortKey, u16, Option<u32>, Reply<Vec<OwnedFd>>),
    /// Every lease (of one network).
    Leases(Option<String>, Reply<Vec<LeaseView>>),
    /// One lease.
    Lease(NetworkName, IpAddr, Reply<LeaseView>),
    /// Make a lease a reservation.
    Reserve(NetworkName, IpAddr, Reply<Outcome>),
    /// End a lease.
    Release(NetworkName, IpAddr, Reply<Outcome>),
    /// How DHCP does.
    Dhcp(Reply<DhcpView>),
    /// How DNS does.
    Dns(Reply<DnsView>),
    /// Forget what upstreams said.
    FlushDns(Reply<Outcome>),
    /// What guests of a network are told of a name: the name, the type.
    LookUp(NetworkName, String, String, Reply<DnsLookup>),
    /// Every publication (of one network).
    Publications(Option<String>, Reply<Vec<PublishView>>),
    /// Publish a guest's port.
    Publish(NetworkName, PublishRequest, Reply<PublishView>),
    /// Take a publication back: `8080`, `tcp`.
    Unpublish(NetworkName, u16, vnet_core::model::Protocol, Reply<Outcome>),
    /// End, perhaps taking everything down.
    Shutdown(bool, Reply<()>),
}

/// Why a request changed nothing. Every sentence says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It is there already.
    #[error("{0}")]
    Exists(String),
    /// The request breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// Something is in its way.
    #[error("{0}")]
    Conflict(String),
    /// Not by this user.
    #[error("{0}")]
    Forbidden(String),
    /// The kernel, the disk or a service failed; everything is as it was.
    #[error("{0}")]
    Failed(String),
}

impl From<Problems> for Refusal {
    fn from(problems: Problems) -> Self {
        Self::Invalid(problems.to_string())
    }
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid.0)
    }
}

impl From<Clash> for Refusal {
    fn from(clash: Clash) -> Self {
        match clash {
            Clash::NoNetwork(_) => Self::NotFound(clash.to_string()),
            Clash::Bridge { .. }
            | Clash::Subnet { .. }
            | Clash::Published { .. }
            | Clash::Port { .. }
            | Clash::NoGuest(..) => Self::Conflict(clash.to_string()),
        }
    }
}

/// The way to the driver, for as many as like.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
    /// What happens.
    pub events: Events,
}

impl Handle {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The driver's refusal.
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refusal> {
        let gone =
            || Refusal::Failed("the daemon is shutting down: try again when it is back".to_owned());
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
