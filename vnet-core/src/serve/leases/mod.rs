//! The leases: the handle that the driver holds, and the one thread behind it that serves DHCP of every network.
//!
//! ```text
//!   driver --commands--> +---------------------------------+ --what may go at once--> bridges
//!   bridges --frames---> |  worker: one thread, one epoll  |
//!                        |  reads all, decides, sends      | --what waited for the disk--> bridges
//!                        +---------------------------------+
//!                             | a batch        ^ its frames
//!                             v                |
//!                        +---------------------------------+
//!                        |  disk: ONE commit a batch       | --events, answers--> DNS, event API, driver
//!                        +---------------------------------+
//! ```
//! While a batch is written the next one gathers, so the more there is to do the more leases share one `fdatasync`, and
//! nobody who needs no disk waits for it. If the disk refuses, nothing that waited for it is sent, and the records are
//! tried again with what comes next. The threads live in the network namespace of whoever called [`Leases::start`] and end
//! with the last handle.

pub(super) mod clock;
mod disk;
mod turn;
mod worker;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use tokio::sync::{broadcast, oneshot};

use crate::dhcp::v4::{Counters, ReserveError, Scope};
use crate::dhcp::{Share, ra, v6};
use crate::lease::Tally;
use crate::store::{LeaseLog, StoreError, Withdrawn};
use crate::types::{IfName, IpNet, Mac, NetworkName, PortName};
use clock::Clock;

pub use crate::lease::{LeaseEvent, LeaseKind, LeaseRecord as Lease};
pub(super) use turn::Turn;

/// Turns that a slow listener may lag behind before it loses some (and is told so).
const EVENTS: usize = 1024;

/// What one turn of the thread did to leases: a listener is woken once for all of them.
pub type News = Arc<[LeaseEvent]>;

/// The handle; clones share the thread.
#[derive(Debug, Clone)]
pub struct Leases {
    commands: Sender<Command>,
    events: broadcast::Sender<News>,
    clock: Clock,
    /// After the sender, so that the last ring is heard when the sender is gone.
    bell: Bell,
}

/// Wakes the thread, also when it is dropped.
#[derive(Debug, Clone)]
struct Bell(Arc<OwnedFd>);

impl Bell {
    fn ring(&self) {
        ring(&self.0);
    }
}

fn ring(bell: &OwnedFd) {
    // A full counter (2^64 - 2 unheard rings) is still a ring.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring();
    }
}

/// What a network should be served on its bridge; where a scope is missing, nothing (any more).
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The network.
    pub network: NetworkName,
    /// Its bridge.
    pub bridge: IfName,
    /// DHCPv4.
    pub dhcp4: Option<Scope>,
    /// DHCPv6.
    pub dhcp6: Option<v6::Scope>,
    /// Router advertisements.
    pub ra: Option<ra::Scope>,
    /// The subnets that the network has, with or without DHCP: leases outside of them end. `None` where it does not run:
    /// its leases wait for the next start.
    pub subnets: Option<Vec<IpNet>>,
}

/// What the handle asks of the thread. Answers go out after the commit of their turn.
enum Command {
    Configure(Vec<Wanted>, oneshot::Sender<Vec<(NetworkName, String)>>),
    Reserve {
        network: NetworkName,
        mac: Mac,
        wanted: Option<Ipv4Addr>,
        name: Option<PortName>,
        answer: oneshot::Sender<Result<Ipv4Addr, ReserveError>>,
    },
    List(oneshot::Sender<Vec<Lease>>),
    Release(NetworkName, IpAddr, oneshot::Sender<()>),
    Forget(NetworkName, Mac, oneshot::Sender<()>),
    DropNetwork(NetworkName, oneshot::Sender<()>),
    Stats(oneshot::Sender<Vec<Stats>>),
}

/// What one network's DHCP did and has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// The network.
    pub network: NetworkName,
    /// Messages by kind, and by the reason why they got no answer.
    pub counters: Counters,
    /// Addresses by state.
    pub tally: Tally,
    /// Addresses in all ranges.
    pub pool_total: u64,
    /// Those that are somebody's, reserved or in quarantine.
    pub pool_busy: u64,
    /// DHCPv6 messages.
    pub counters6: v6::Counters,
    /// IPv6 addresses by state.
    pub tally6: Tally,
    /// What each port has of both servers, and what it was refused.
    pub shares: BTreeMap<Mac, Share>,
    /// Router advertisements sent.
    pub advertised: u64,
}

/// Why the leases cannot be served at all.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The leases on disk cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system refuses a thread or an epoll.
    #[error("the DHCP thread cannot start: {0}")]
    Io(#[from] std::io::Error),
}

impl Leases {
    /// Reads all leases of a folder, which is made if it is not there, and starts the thread.
    ///
    /// # Errors
    /// When the leases cannot be read, or the system refuses.
    pub fn start(folder: &Path) -> Result<Self, StartError> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = Bell(Arc::new(bell.map_err(std::io::Error::from)?));
        let (commands, receiver) = channel();
        let (events, _) = broadcast::channel(EVENTS);
        let (log, records) = LeaseLog::open(folder)?;
        let kept = worker::Kept {
            log,
            records,
            withdrawn: Withdrawn::open(folder),
        };
        let clock = Clock::start();
        let worker = worker::Worker::new(kept, receiver, bell.0.clone(), events.clone(), clock)?;
        std::thread::Builder::new()
            .name("leases".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self {
            commands,
            events,
            clock,
            bell,
        })
    }

    /// What the leases' ends are told by.
    pub(super) const fn clock(&self) -> Clock {
        self.clock
    }

    /// Serves these networks as said from now on; the others stay as they are. Leases stay whatever changes. A
    /// bridge that does not exist yet is served as soon as it does. What cannot be served, and why.
    pub async fn configure(&self, wanted: Vec<Wanted>) -> Vec<(NetworkName, String)> {
        let names: Vec<NetworkName> = wanted.iter().map(|w| w.network.clone()).collect();
        let answer = self.ask(|answer| Command::Configure(wanted, answer)).await;
        let gone = || "the DHCP thread has ended".to_owned();
        answer.unwrap_or_else(|| names.into_iter().map(|name| (name, gone())).collect())
    }

    /// An address for a new port: its reservation, what is wanted, what it had before, or one that is free. It is
    /// kept for that MAC until the next [`Leases::configure`] of the network, whose scope has the port.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn reserve(
        &self,
        network: NetworkName,
        mac: Mac,
        wanted: Option<Ipv4Addr>,
        name: Option<PortName>,
    ) -> Result<Ipv4Addr, ReserveError> {
        let command = |answer| Command::Reserve {
            network,
            mac,
            wanted,
            name,
            answer,
        };
        let answer = self.ask(command).await;
        answer.unwrap_or(Err(ReserveError::NoDhcp))
    }

    /// The leases that are held now, of all networks, ordered by network and address.
    pub async fn list(&self) -> Vec<Lease> {
        self.ask(Command::List).await.unwrap_or_default()
    }

    /// Ends a lease. It is gone from the disk's point of view when this returns.
    pub async fn release(&self, network: NetworkName, address: IpAddr) {
        let command = |answer| Command::Release(network, address, answer);
        self.ask(command).await;
    }

    /// Forgets whatever a MAC holds, held or was promised in a network: its port is gone.
    pub async fn forget(&self, network: NetworkName, mac: Mac) {
        self.ask(|answer| Command::Forget(network, mac, answer))
            .await;
    }

    /// Forgets a network and all its leases.
    pub async fn drop_network(&self, network: NetworkName) {
        self.ask(|answer| Command::DropNetwork(network, answer))
            .await;
    }

    /// Everything that happens to leases from now on, in order, each after it is on disk.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<News> {
        self.events.subscribe()
    }

    /// What was counted, by network.
    pub async fn stats(&self) -> Vec<Stats> {
        self.ask(Command::Stats).await.unwrap_or_default()
    }

    /// `None` only if the thread has ended, which it does not before the last handle.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (answer, receiver) = oneshot::channel();
        self.commands.send(command(answer)).ok()?;
        self.bell.ring();
        receiver.await.ok()
    }
}
