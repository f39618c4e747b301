//! The thread: one epoll over everything that can happen, level-triggered.
//!
//! Each turn: what is ready is read and answered, commands are obeyed, timers fire, and what the resolver decided
//! meanwhile goes out. A socket gets a few batches a turn, so that a flooded network cannot starve the others.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use tracing::{debug, info, warn};

use super::mmsg::{self, Address, Batch};
use super::{Command, Stats, Wanted};
use crate::dns::slab::Slab;
use crate::dns::{Directory, From, NetworkId, Resolver, Way};
use crate::types::{IfName, NetworkName};

/// Batches a socket may take in one turn.
const TURNS: usize = 4;
/// How long until a gateway address that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Bell,
    Udp(usize),
    Tcp(usize),
}

impl Token {
    const fn pack(self) -> u64 {
        let (kind, index) = match self {
            Self::Bell => (0, 0),
            Self::Udp(i) => (1, i),
            Self::Tcp(i) => (2, i),
        };
        kind << 56 | index as u64
    }

    fn unpack(data: u64) -> Option<Self> {
        let index = usize::try_from(data & ((1 << 56) - 1)).ok()?;
        match data >> 56 {
            0 => Some(Self::Bell),
            1 => Some(Self::Udp(index)),
            2 => Some(Self::Tcp(index)),
            _ => None,
        }
    }
}

/// A gateway address that is served.
struct Listener {
    network: NetworkId,
    address: IpAddr,
    udp: UdpSocket,
    tcp: TcpListener,
}

/// A network's place in the kernel.
struct Bound {
    bridge: IfName,
    /// Each gateway address with its listener, or without if it could not be bound.
    listeners: BTreeMap<IpAddr, Option<usize>>,
}

/// Everything the thread owns.
pub(super) struct Worker {
    epoll: OwnedFd,
    inbox: Receiver<Command>,
    bell: Arc<OwnedFd>,
    resolver: Resolver,
    networks: BTreeMap<NetworkName, Bound>,
    listeners: Slab<Listener>,
    batch: Batch,
    replies: Vec<Vec<u8>>,
    started: Instant,
    retry_at: Option<Instant>,
}

impl Worker {
    pub(super) fn new(
        resolv_conf: PathBuf,
        inbox: Receiver<Command>,
        bell: Arc<OwnedFd>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let host = rustix::system::uname();
        let host = host.nodename().to_str().ok();
        let host = host.and_then(|name| name.split('.').next()?.parse().ok());
        let worker = Self {
            epoll,
            inbox,
            bell,
            resolver: Resolver::new(Directory::new(host)),
            networks: BTreeMap::new(),
            listeners: Slab::default(),
            batch: Batch::new(),
            replies: vec![Vec::with_capacity(512); mmsg::BATCH],
            started: Instant::now(),
            retry_at: None,
        };
        let _ = resolv_conf;
        worker.watch(&*worker.bell, Token::Bell, epoll::EventFlags::IN)?;
        Ok(worker)
    }

    /// Runs until no handle is left.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        loop {
            match self.turn(&mut events) {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => {
                    warn!(error = %e, "the DNS thread cannot wait for events; DNS stops");
                    return;
                }
            }
        }
    }

    fn turn(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<bool> {
        events.clear();
        let timeout = self.timeout().map(timespec);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut alive = true;
        for event in events.iter() {
            match Token::unpack(event.data.u64()) {
                Some(Token::Bell) => alive = self.commands(),
                Some(Token::Udp(i)) => self.on_udp(i),
                Some(Token::Tcp(i)) => debug!(i, "tcp"),
                None => {}
            }
        }
        self.timers();
        Ok(alive)
    }

    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        self.retry_at.map(|at| at.saturating_duration_since(now))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn watch(&self, fd: impl AsFd, token: Token, flags: epoll::EventFlags) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.pack());
        Ok(epoll::add(&self.epoll, fd, data, flags)?)
    }

    fn commands(&mut self) -> bool {
        let _ = rustix::io::read(&*self.bell, &mut [0u8; 8]);
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Configure(wanted, reply) => {
                let errors = wanted
                    .into_iter()
                    .filter_map(|w| self.configure(w))
                    .collect();
                // Whoever asked may have stopped waiting; the networks are served all the same.
                let _ = reply.send(errors);
            }
            Command::Names(network, changes) => {
                for change in &changes {
                    self.resolver.directory_mut().change(&network, change);
                }
            }
            Command::Stats(reply) => {
                let _ = reply.send(self.stats());
            }
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        self.resolver.stats(&mut stats);
        stats
    }

    /// Serves one network as wanted; the error says what cannot be served yet.
    fn configure(&mut self, (network, zone, bridge): Wanted) -> Option<(NetworkName, String)> {
        let Some(zone) = zone else {
            self.forget(&network);
            return None;
        };
        let gateways = zone.gateways().to_vec();
        self.resolver.directory_mut().put(zone);
        let mut bound = self.networks.remove(&network).unwrap_or_else(|| Bound {
            bridge: bridge.clone(),
            listeners: BTreeMap::new(),
        });
        let moved = bound.bridge != bridge;
        let gone = |address: &IpAddr| moved || !gateways.contains(address);
        for listener in extract(&mut bound.listeners, gone) {
            self.close(listener);
        }
        bound.bridge = bridge;
        for address in gateways {
            bound.listeners.entry(address).or_insert(None);
        }
        self.networks.insert(network.clone(), bound);
        let problem = self.bind(&network)?;
        warn!(%network, problem, "DNS is not served on every gateway; it is tried again");
        Some((network, problem))
    }

    fn forget(&mut self, network: &NetworkName) {
        self.resolver.directory_mut().remove(network);
        let bound = self.networks.remove(network);
        for listener in bound
            .into_iter()
            .flat_map(|b| b.listeners.into_values())
            .flatten()
        {
            self.close(listener);
        }
    }

    fn close(&mut self, listener: usize) {
        // Closing the sockets takes them out of the epoll: nobody else holds them.
        drop(self.listeners.remove(listener));
    }

    /// Binds what is not bound yet; the sentence says what could not be.
    fn bind(&mut self, network: &NetworkName) -> Option<String> {
        let id = self.resolver.directory().id(network)?;
        let bound = self.networks.get(network)?;
        let bridge = bound.bridge.clone();
        let missing: Vec<IpAddr> = bound
            .listeners
            .iter()
            .filter_map(|(address, listener)| listener.is_none().then_some(*address))
            .collect();
        let mut problems = Vec::new();
        for address in missing {
            match self.listen(id, address, &bridge) {
                Ok(listener) => {
                    if let Some(bound) = self.networks.get_mut(network) {
                        bound.listeners.insert(address, Some(listener));
                    }
                }
                Err(e) => problems.push(explain(address, &bridge, &e)),
            }
        }
        if problems.is_empty() {
            return None;
        }
        self.retry_at.get_or_insert(Instant::now() + RETRY);
        Some(problems.join("; "))
    }

    fn listen(
        &mut self,
        network: NetworkId,
        address: IpAddr,
        bridge: &IfName,
    ) -> io::Result<usize> {
        let (udp, tcp) = super::listen::bind(address, bridge)?;
        let index = self.listeners.insert(Listener {
            network,
            address,
            udp,
            tcp,
        });
        let watched = self.listeners.get(index).map_or(Ok(()), |l| {
            self.watch(&l.udp, Token::Udp(index), epoll::EventFlags::IN)?;
            self.watch(&l.tcp, Token::Tcp(index), epoll::EventFlags::IN)
        });
        watched.inspect_err(|_| self.close(index))?;
        debug!(%address, %bridge, "DNS is served");
        Ok(index)
    }

    fn timers(&mut self) {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            let all: Vec<NetworkName> = self.networks.keys().cloned().collect();
            for network in all {
                let waiting = |b: &Bound| b.listeners.values().any(Option::is_none);
                if self.networks.get(&network).is_some_and(waiting) && self.bind(&network).is_none()
                {
                    info!(%network, "DNS is served on every gateway now");
                }
            }
        }
    }

    fn on_udp(&mut self, index: usize) {
        let now = self.now();
        let Some(listener) = self.listeners.get(index) else {
            return;
        };
        for _ in 0..TURNS {
            let got = match self.batch.receive(&listener.udp) {
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    debug!(error = %e, address = %listener.address, "no query could be received");
                    return;
                }
            };
            for i in 0..got {
                let (bytes, address) = self.batch.message(i);
                let out = &mut self.replies[i];
                out.clear();
                let Some(ip) = address.ip() else { continue };
                let from = From {
                    network: listener.network,
                    address: ip,
                    host: ip == listener.address,
                };
                let way = Way::Udp;
                self.resolver.handle(now, &from, way, bytes, out);
            }
            let ready: Vec<(Option<Address>, &[u8])> = (0..got)
                .filter(|i| !self.replies[*i].is_empty())
                .map(|i| (Some(self.batch.message(i).1), self.replies[i].as_slice()))
                .collect();
            if let Err(e) = mmsg::send(&listener.udp, &ready) {
                debug!(error = %e, address = %listener.address, "an answer could not be sent");
            }
            if got < mmsg::BATCH {
                return;
            }
        }
    }
}

/// Takes out the listeners of addresses that are gone.
fn extract(
    listeners: &mut BTreeMap<IpAddr, Option<usize>>,
    gone: impl Fn(&IpAddr) -> bool,
) -> Vec<usize> {
    let mut closed = Vec::new();
    listeners.retain(|address, listener| {
        let gone = gone(address);
        if gone {
            closed.extend(*listener);
        }
        !gone
    });
    closed
}

/// What to tell the person whose network has no DNS.
fn explain(address: IpAddr, bridge: &IfName, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{address} port 53 is taken by another program (`ss -lnp sport = 53` names it): guests get no DNS from \
             {bridge} until it lets go"
        ),
        io::ErrorKind::PermissionDenied => {
            format!(
                "no permission to listen on {address} port 53 (CAP_NET_BIND_SERVICE and CAP_NET_RAW)"
            )
        }
        _ => format!("cannot listen on {address} port 53 of {bridge}: {error}"),
    }
}

fn timespec(duration: Duration) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
