//! The one task that owns the world.
//!
//! Doors only send [`Command`]s; each is answered after it is done or refused. Every change goes one way, in
//! [`change`]: plan, execute, verify, persist, and back again if any of it fails. Nobody else writes.
//!
//! ```text
//!   HTTP, fd.sock, signals --Command--> +--------+ --plan/execute--> kernel
//!   kernel and nft events  --drift----> | driver | --commit--------> store
//!   leases                 --events---> +--------+ --configure-----> DHCP, DNS
//! ```
//!
//! | file | what |
//! |---|---|
//! | `command` | what can be asked, and refusals |
//! | `admit` | what is free: bridges, subnets, MACs, interface names |
//! | `change` | plan, execute, verify, persist |
//! | `networks`, `ports`, `leases`, `publications` | the verbs |
//! | `backends` | the processes that serve vhost-user ports |
//! | `dhcp`, `dns` | what these services have to tell |
//! | `ipv6` | the IPv6 addresses that are a port's own |
//! | `services` | what DHCP and DNS are told, and what they tell |
//! | `slaac` | names of the addresses that guests make |
//! | `restore` | from the store at start; adopting what the kernel has |
//! | `reconcile` | drift, and its repair |
//! | `view` | the world as it is shown |
//! | `warnings` | what does not work, until it does |

mod admit;
mod backends;
mod change;
mod command;
mod dhcp;
mod dns;
mod events;
mod ipv6;
mod keeper;
mod leases;
mod networks;
mod ports;
mod publications;
mod reconcile;
mod restore;
mod services;
mod slaac;
mod view;
mod warnings;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use tokio::sync::mpsc;
use vnet_core::host::Kernel;
use vnet_core::model::World;
use vnet_core::plan::{HostState, Remembered};
use vnet_core::serve::dns::Dns;
use vnet_core::serve::files::LeaseFiles;
use vnet_core::serve::leases::Leases;
use vnet_core::serve::tftp::Tftp;
use vnet_core::store::Store;
use vnet_core::types::NetworkName;

pub use command::{Command, Handle, Refusal, Reply};
pub use events::Events;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use ports::fuzz as fuzz_wish;

/// How many commands may wait.
const QUEUE: usize = 256;

/// What the driver works with.
pub struct Tools {
    /// The kernel of this network namespace.
    pub kernel: Kernel,
    /// What survives.
    pub store: Store,
    /// DHCP.
    pub leases: Leases,
    /// DNS.
    pub dns: Dns,
    /// The files by which others find guests.
    pub files: LeaseFiles,
    /// Where sockets and files for others go.
    pub run_dir: PathBuf,
    /// The program that serves vhost-user ports.
    pub backend: PathBuf,
}

/// The owner of the world.
pub struct Driver {
    world: World,
    /// What the world asks of the kernel.
    desired: HostState,
    observed: HostState,
    remembered: Remembered,
    tools: Tools,
    events: Events,
    told: BTreeMap<NetworkName, services::Told>,
    tftp: BTreeMap<NetworkName, Vec<Tftp>>,
    heard: slaac::Known,
    backends: backends::Backends,
    warnings: warnings::Warnings,
    /// When services that could not be given are tried again.
    again: Option<tokio::time::Instant>,
    started: Instant,
    repairs: u64,
}

impl Driver {
    /// Reads the store, looks at the kernel, and makes the one like the other: what runs is adopted, nothing is cut.
    ///
    /// # Errors
    /// When the store or the kernel cannot be read.
    pub async fn restore(tools: Tools, events: Events) -> Result<Self, Refusal> {
        let mut driver = Self {
            world: World::default(),
            desired: HostState::default(),
            observed: HostState::default(),
            remembered: Remembered::default(),
            backends: backends::Backends::new(tools.backend.clone(), &tools.run_dir),
            tools,
            events,
            told: BTreeMap::new(),
            tftp: BTreeMap::new(),
            heard: slaac::Known::new(),
            warnings: warnings::Warnings::default(),
            again: None,
            started: Instant::now(),
            repairs: 0,
        };
        driver.load().await?;
        Ok(driver)
    }

    /// A way to the driver, and the end of it that [`Driver::run`] takes.
    #[must_use]
    pub fn handle(events: Events) -> (Handle, mpsc::Receiver<Command>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (
            Handle {
                commands: sender,
                events,
            },
            receiver,
        )
    }

    /// Serves commands, drift and lease events until told to end.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut drift = reconcile::Drift::watch(&self.tools.kernel, &self.events);
        let mut leases = self.tools.leases.subscribe();
        let mut ear = slaac::Ear::open(&self.events);
        self.listen_again().await;
        let mut round = tokio::time::interval(slaac::ROUND);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Shutdown(teardown, reply)) => {
                        let _ = reply.send(self.shutdown(teardown).await);
                        return;
                    }
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                scope = drift.settled() => self.reconcile(&scope).await,
                death = self.backends.death() => self.revive(death),
                event = leases.recv() => self.lease_event(event).await,
                heard = ear.next() => self.heard(heard).await,
                _ = round.tick() => self.ask_around().await,
                () = services::due(self.again) => self.try_services_again().await,
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        // A caller that went away meanwhile does not want its answer.
        match command {
            Command::Status(reply) => drop(reply.send(Ok(self.status().await))),
            Command::Networks(reply) => drop(reply.send(Ok(self.show_networks().await))),
            Command::Network(name, reply) => drop(reply.send(self.show_network(&name).await)),
            Command::Apply(request, reply) => drop(reply.send(self.apply(request).await)),
            Command::Start(name, reply) => drop(reply.send(self.start(&name).await)),
            Command::Stop(name, reply) => drop(reply.send(self.stop(&name).await)),
            Command::Restart(name, reply) => drop(reply.send(self.restart(&name).await)),
            Command::StopAll(reply) => drop(reply.send(self.stop_all().await)),
            Command::Delete(name, reply) => drop(reply.send(self.delete(&name).await)),
            Command::Autostart(name, on, reply) => {
                drop(reply.send(self.autostart(&name, on).await))
            }
            Command::Ports(of, reply) => drop(reply.send(Ok(self.show_ports(of.as_deref()).await))),
            Command::Port(key, reply) => drop(reply.send(self.look_at_port(&key).await)),
            Command::Attach(request, reply) => drop(reply.send(self.attach(request).await)),
            Command::Detach(key, reply) => drop(reply.send(self.detach(&key).await)),
            Command::OpenTap(key, queues, user, reply) => {
                drop(reply.send(self.open_tap(&key, queues, user)))
            }
            Command::Leases(of, reply) => drop(reply.send(self.show_leases(of.as_deref()).await)),
            Command::Lease(network, address, reply) => {
                drop(reply.send(self.show_lease(&network, address).await))
            }
            Command::Reserve(network, address, reply) => {
                drop(reply.send(self.reserve(&network, address).await))
            }
            Command::Release(network, address, reply) => {
                drop(reply.send(self.release(&network, address).await))
            }
            Command::Dhcp(reply) => drop(reply.send(Ok(self.show_dhcp().await))),
            Command::Dns(reply) => drop(reply.send(Ok(self.show_dns().await))),
            Command::FlushDns(reply) => drop(reply.send(Ok(self.flush_dns().await))),
            Command::LookUp(network, name, kind, reply) => {
                drop(reply.send(self.look_up(&network, &name, &kind).await))
            }
            Command::Publications(of, reply) => {
                drop(reply.send(Ok(self.show_publications(of.as_deref()))))
            }
            Command::Publish(network, request, reply) => {
                drop(reply.send(self.publish(&network, &request).await))
            }
            Command::Unpublish(network, port, protocol, reply) => {
                drop(reply.send(self.unpublish(&network, port, protocol).await));
            }
            Command::Shutdown(..) => {}
        }
    }

    async fn shutdown(&mut self, teardown: bool) -> Result<(), Refusal> {
        if teardown {
            self.take_everything_down().await?;
        }
        Ok(())
    }
}
