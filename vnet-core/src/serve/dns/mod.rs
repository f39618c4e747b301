//! The DNS service: one thread of its own for all networks, and the handle that commands it.
//!
//! ```text
//!  driver ──Command──▶ Worker (one OS thread, one epoll) ──┬── udp + tcp of each gateway address
//!         ◀──replies──                                     └── upstream sockets
//! ```
//! The thread owns directory, cache and forwarder; nothing is shared and nothing is locked. It lives in the network
//! namespace of whoever called [`Dns::start`], and ends when the last handle is dropped.

mod bus;
mod channel;
mod channels;
mod checker;
mod clients;
mod gateways;
mod links;
mod listen;
mod mmsg;
mod outbound;
mod random;
mod resolv;
mod resolved;
mod tcp;
mod traffic;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use tokio::sync::oneshot;

pub use crate::dns::Stats;
use crate::dns::{Explained, NameChange, Zone};
use crate::types::{IfName, NetworkName};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use checker::fuzz as fuzz_dnssec;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use links::fuzz as fuzz_dbus;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use resolv::fuzz as fuzz_resolv_conf;
use resolved::{Link, Told};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use tcp::fuzz as fuzz_stream;

/// The handle of the DNS service.
#[derive(Debug, Clone)]
pub struct Dns {
    commands: Sender<Command>,
    /// After the sender, so that the last ring is heard when the sender is gone.
    bell: Bell,
    registrar: Option<Sender<Vec<Told>>>,
}

/// Wakes the thread, also when it is dropped.
#[derive(Debug, Clone)]
struct Bell(Arc<OwnedFd>);

impl Bell {
    fn ring(&self) {
        // A full counter (2^64 - 2 unheard rings) is still a ring.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring();
    }
}

/// Where the system's bus listens.
pub const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// What of the host the service goes by.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Tells who is asked about names that no network knows; followed as it changes.
    pub resolv_conf: PathBuf,
    /// The certificates of those who may vouch for secure upstreams; the system's when left out.
    pub authorities: Option<PathBuf>,
    /// The system's bus, by which systemd-resolved is told of the networks' names, and asked whom it asks itself; nobody
    /// is when left out.
    pub bus: Option<PathBuf>,
    /// The most bytes of answers that are kept; 8 MiB when left out.
    pub cache: Option<usize>,
}

/// What a network should be served: a zone on a bridge, or nothing any more.
pub type Wanted = (NetworkName, Option<Zone>, IfName);

/// What the handle asks of the thread.
#[derive(Debug)]
enum Command {
    Configure(Vec<Wanted>, oneshot::Sender<Vec<(NetworkName, String)>>),
    Names(NetworkName, Vec<NameChange>),
    Relearn(NetworkName, Vec<NameChange>),
    Stats(oneshot::Sender<Stats>),
    Flush(oneshot::Sender<usize>),
    Explain(NetworkName, String, u16, oneshot::Sender<Option<Explained>>),
}

impl Dns {
    /// Starts the service's thread.
    ///
    /// # Errors
    /// When the kernel gives no thread, no epoll or no event counter.
    pub fn start(setup: Setup) -> std::io::Result<Self> {
        let bell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let (commands, inbox) = channel();
        let bus = setup.bus.clone();
        let worker = worker::Worker::new(setup, inbox, Arc::clone(&bell))?;
        std::thread::Builder::new()
            .name("dns".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self {
            registrar: bus.map(registrar).transpose()?,
            commands,
            bell: Bell(bell),
        })
    }

    /// Serves these networks as wanted from now on, others as before. A live change keeps sockets, leases' names and
    /// the cache. Whatever cannot be served is told, and tried again when it is asked for again: the network works without.
    pub async fn configure(&self, wanted: Vec<Wanted>) -> Vec<(NetworkName, String)> {
        let (reply, answer) = oneshot::channel();
        let links: Vec<Told> = wanted.iter().map(link).collect();
        self.send(Command::Configure(wanted, reply));
        let problems = answer.await.unwrap_or_default();
        if let Some(registrar) = &self.registrar {
            // After the gateways are served. The thread only ends when no handle is left.
            let _ = registrar.send(links);
        }
        problems
    }

    /// Names of leases come and go.
    pub fn names(&self, network: NetworkName, changes: Vec<NameChange>) {
        self.send(Command::Names(network, changes));
    }

    /// These are all names that leases give now, whatever was told before.
    pub fn relearn(&self, network: NetworkName, names: Vec<NameChange>) {
        self.send(Command::Relearn(network, names));
    }

    /// What happened so far.
    pub async fn stats(&self) -> Stats {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Stats(reply));
        answer.await.unwrap_or_default()
    }

    /// Forgets what upstreams said; how many answers that was.
    pub async fn flush(&self) -> usize {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Flush(reply));
        answer.await.unwrap_or_default()
    }

    /// What would become of a question of a guest's, without asking anybody; `None` if the network is not served, or the
    /// name is none.
    pub async fn explain(&self, network: NetworkName, name: &str, rtype: u16) -> Option<Explained> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Explain(network, name.to_owned(), rtype, reply));
        answer.await.unwrap_or_default()
    }

    fn send(&self, command: Command) {
        // The thread only ends when no handle is left, so there is always somebody to hear.
        let _ = self.commands.send(command);
        self.bell.ring();
    }
}

/// Starts the thread that tells systemd-resolved.
fn registrar(bus: PathBuf) -> std::io::Result<Sender<Vec<Told>>> {
    let (told, inbox) = channel();
    let registrar = resolved::Registrar::new(bus, inbox);
    std::thread::Builder::new()
        .name("resolved".to_owned())
        .spawn(move || registrar.run())?;
    Ok(told)
}

fn link((network, zone, bridge): &Wanted) -> Told {
    let link = zone.as_ref().map(|zone| Link {
        bridge: bridge.clone(),
        gateways: zone.gateways().to_vec(),
        domains: zone.domains(),
    });
    (network.clone(), link)
}
