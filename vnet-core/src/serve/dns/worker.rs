//! The thread: one epoll over everything that can happen, level-triggered.
//!
//! Each turn: what is ready is read and answered, commands are obeyed, timers fire, and what the resolver decided
//! meanwhile goes out.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use tracing::{info, warn};

use super::channels::Channels;
use super::checker::Checker;
use super::clients::Clients;
use super::gateways::{Bound, Listener};
use super::links::{self, Watched};
use super::mmsg::{self, Batch};
use super::outbound::Outbound;
use super::random::Random;
use super::resolv::ResolvConf;
use super::{Command, Setup};
use crate::dns::slab::Slab;
use crate::dns::{Directory, Limits, Resolver};
use crate::types::{DomainName, NetworkName};

/// How often idle sockets and connections are looked for, while there are any.
const SWEEP: Duration = Duration::from_secs(2);
/// Queries of one turn from which on the next turn waits for more of them, and how long (the kernel adds its timer's
/// slack). Under load a fifth of a query's cost was falling asleep and being woken; a client that asks one question at a
/// time never waits.
const BUSY: usize = 8;
const GATHER: Duration = Duration::from_micros(20);
/// How often resolv.conf is looked at where it cannot be watched.
const LOOK: Duration = Duration::from_secs(2);

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Bell,
    ResolvConf,
    Udp(usize),
    Tcp(usize),
    Client(usize),
    Upstream(usize),
    Channel(usize),
    Checker,
    Links,
}

impl Token {
    const fn pack(self) -> u64 {
        let (kind, index) = match self {
            Self::Bell => (0, 0),
            Self::ResolvConf => (1, 0),
            Self::Udp(i) => (2, i),
            Self::Tcp(i) => (3, i),
            Self::Client(i) => (4, i),
            Self::Upstream(i) => (5, i),
            Self::Channel(i) => (6, i),
            Self::Checker => (7, 0),
            Self::Links => (8, 0),
        };
        kind << 56 | index as u64
    }

    fn unpack(data: u64) -> Option<Self> {
        let index = usize::try_from(data & ((1 << 56) - 1)).ok()?;
        match data >> 56 {
            0 => Some(Self::Bell),
            1 => Some(Self::ResolvConf),
            2 => Some(Self::Udp(index)),
            3 => Some(Self::Tcp(index)),
            4 => Some(Self::Client(index)),
            5 => Some(Self::Upstream(index)),
            6 => Some(Self::Channel(index)),
            7 => Some(Self::Checker),
            8 => Some(Self::Links),
            _ => None,
        }
    }
}

/// Everything the thread owns.
pub(super) struct Worker {
    epoll: OwnedFd,
    inbox: Receiver<Command>,
    bell: Arc<OwnedFd>,
    resolv_conf: ResolvConf,
    /// What systemd-resolved knows, where there is a bus to ask it by.
    links: Option<Watched>,
    pub(super) resolver: Resolver,
    pub(super) random: Random,
    pub(super) networks: BTreeMap<NetworkName, Bound>,
    pub(super) listeners: Slab<Listener>,
    pub(super) clients: Clients,
    pub(super) outbound: Outbound,
    pub(super) channels: Channels,
    pub(super) checker: Checker,
    pub(super) batch: Batch,
    pub(super) replies: Vec<Vec<u8>>,
    /// Queries taken in this turn.
    pub(super) busy: usize,
    started: Instant,
    sweep_at: Option<Instant>,
    look_at: Option<Instant>,
}

impl Worker {
    pub(super) fn new(
        setup: Setup,
        inbox: Receiver<Command>,
        bell: Arc<OwnedFd>,
    ) -> io::Result<Self> {
        let limits = Limits::default();
        let limits = Limits {
            cache: setup.cache.unwrap_or(limits.cache),
            ..limits
        };
        let host = crate::host::own_name().map(DomainName::from);
        let mut worker = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            inbox,
            bell,
            resolv_conf: ResolvConf::new(setup.resolv_conf),
            links: setup.bus.map(Watched::start).transpose()?,
            resolver: Resolver::new(Directory::new(host), limits),
            random: Random::default(),
            networks: BTreeMap::new(),
            listeners: Slab::default(),
            clients: Clients::default(),
            outbound: Outbound::default(),
            channels: Channels::new(setup.authorities),
            checker: Checker::new()?,
            batch: Batch::new(),
            replies: vec![Vec::new(); mmsg::BATCH],
            busy: 0,
            started: Instant::now(),
            sweep_at: None,
            look_at: None,
        };
        worker.watch(&*worker.bell, Token::Bell, epoll::EventFlags::IN)?;
        worker.watch(
            worker.checker.descriptor(),
            Token::Checker,
            epoll::EventFlags::IN,
        )?;
        if let Some(links) = &worker.links {
            worker.watch(links.descriptor(), Token::Links, epoll::EventFlags::IN)?;
        }
        match worker.resolv_conf.descriptor() {
            Some(fd) => worker.watch(fd, Token::ResolvConf, epoll::EventFlags::IN)?,
            None => worker.look_at = Some(Instant::now() + LOOK),
        }
        worker.look();
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
        if std::mem::take(&mut self.busy) >= BUSY {
            std::thread::sleep(GATHER);
        }
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
                Some(Token::ResolvConf) => self.look(),
                Some(Token::Udp(i)) => self.on_udp(i),
                Some(Token::Tcp(i)) => self.on_accept(i),
                Some(Token::Client(i)) => self.on_client(i),
                Some(Token::Upstream(i)) => self.on_upstream(i),
                Some(Token::Channel(i)) => self.on_channel(i),
                Some(Token::Checker) => self.on_checker(),
                Some(Token::Links) => self.on_links(),
                None => {}
            }
        }
        self.timers();
        self.carry_out();
        Ok(alive)
    }

    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let due = self
            .resolver
            .due()
            .map(|due| self.started + Duration::from_millis(due));
        let all = [self.sweep_at, self.look_at, due];
        let next = all.into_iter().flatten().min();
        next.map(|at| at.saturating_duration_since(now))
    }

    /// Milliseconds since the thread began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn watch(
        &self,
        fd: impl AsFd,
        token: Token,
        flags: epoll::EventFlags,
    ) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token.pack()),
            flags,
        )?)
    }

    pub(super) fn rewatch(
        &self,
        fd: impl AsFd,
        token: Token,
        flags: epoll::EventFlags,
    ) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token.pack()),
            flags,
        )?)
    }

    /// There is something that gets old.
    pub(super) fn sweep_later(&mut self) {
        self.sweep_at.get_or_insert_with(|| Instant::now() + SWEEP);
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
                    self.resolver.change(&network, change);
                }
            }
            Command::Relearn(network, names) => {
                self.resolver.directory_mut().relearn(&network, &names);
            }
            Command::Stats(reply) => {
                let _ = reply.send(self.resolver.stats(self.now()));
            }
            Command::Flush(reply) => drop(reply.send(self.resolver.flush())),
            Command::Explain(network, name, rtype, reply) => {
                let now = self.now();
                let _ = reply.send(self.resolver.explain(now, &network, &name, rtype));
            }
        }
    }

    fn look(&mut self) {
        if let Some(resolvers) = self.resolv_conf.changed() {
            info!(?resolvers, "the host's resolvers");
            self.follow();
        }
    }

    fn on_links(&mut self) {
        if let Some(links) = &mut self.links {
            links.take();
        }
        self.follow();
    }

    fn follow(&mut self) {
        let links = self.links.as_ref().and_then(Watched::known);
        let (others, domains) = links::whom(self.resolv_conf.known(), links);
        self.resolver.follow(others, domains);
    }

    fn timers(&mut self) {
        let (now, ms) = (Instant::now(), self.now());
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = Some(now + LOOK);
            self.look();
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep_at = None;
            self.outbound.sweep(ms);
            self.sweep_clients(ms);
            self.sweep_channels(ms);
            let channels = self.outbound.is_empty() && self.channels.is_empty();
            if !channels || !self.clients.is_empty() {
                self.sweep_later();
            }
        }
        self.resolver.tick(ms, &mut || self.random.next());
    }
}

fn timespec(duration: Duration) -> rustix::event::Timespec {
    // Rounded up to a millisecond: waking a little early would only mean waking twice.
    let duration = duration + Duration::from_micros(999);
    rustix::event::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
