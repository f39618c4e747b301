//! The thread that owns every lease book and every DHCP socket. It never waits for the disk (see [`super::disk`]).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use tokio::sync::broadcast;

use super::clock::Clock;
use super::disk::{Disk, Frames, Refused};
use super::{Command, Lease, News, Stats, Turn, Wanted};
use crate::dhcp::Desk;
use crate::dhcp::ra::Removed;
use crate::lease::{Change, LeaseRecord, Time};
use crate::serve::dhcp4::Dhcp4;
use crate::serve::dhcp6::Dhcp6;
use crate::serve::packet::{Inbox, PacketSocket};
use crate::serve::ra::Ra;
use crate::store::{LeaseLog, Withdrawn};
use crate::types::NetworkName;

/// How often bridges that should be there, and a disk that was full, are looked at again.
const RETRY_MILLIS: u64 = 1000;
/// A turn with this many records was a busy one,
const BUSY: usize = 4;
/// and the next one begins so much later: a turn and a commit cost the same for one lease as for fifty, and what they
/// cost is taken from those who ask. At rates where turns are short nobody waits.
const GATHER: Duration = Duration::from_micros(700);
/// A batch with so many records waits for the one before it, and so does everybody: no disk is that slow.
const MOST: usize = 4096;
/// Epoll's name for the bell; networks have [`SOCKETS`] each, from there up.
const BELL: u64 = 0;
/// A socket of a network. They are read in this order: answers of ARP may turn a REQUEST of the same turn into a NAK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Arp,
    Dhcp4,
    Dhcp6,
    Ra,
}

const DOORS: [Door; 4] = [Door::Arp, Door::Dhcp4, Door::Dhcp6, Door::Ra];
/// Numbers of one network: a [`Door`] each.
const SOCKETS: u64 = DOORS.len() as u64;

/// What the folder had.
pub(super) struct Kept {
    pub(super) log: LeaseLog,
    pub(super) records: Vec<LeaseRecord>,
    pub(super) withdrawn: Withdrawn,
}

pub(super) struct Worker {
    disk: Disk,
    commands: Receiver<Command>,
    bell: Arc<OwnedFd>,
    epoll: OwnedFd,
    clock: Clock,
    networks: BTreeMap<NetworkName, Network>,
    withdrawn: Withdrawn,
    by_number: BTreeMap<u64, NetworkName>,
    last_number: u64,
    inbox: Inbox,
    look_again: Time,
}

struct Network {
    dhcp4: Dhcp4,
    dhcp6: Dhcp6,
    ra: Ra,
    /// Epoll's name for the first of its sockets.
    number: u64,
}

impl Network {
    fn new(
        name: &NetworkName,
        records: Vec<LeaseRecord>,
        removed: Removed,
        now: Time,
        number: u64,
    ) -> Self {
        let (v4, v6) = records.into_iter().partition(|r| r.address.is_ipv4());
        Self {
            dhcp4: Dhcp4::new(name.clone(), v4, now),
            dhcp6: Dhcp6::new(name.clone(), v6, now),
            ra: Ra::after(removed),
            number,
        }
    }

    /// Reads what waits at one door, and puts what follows into the turn.
    fn read(&mut self, door: Door, now: Time, inbox: &mut Inbox, turn: &mut Turn) {
        match door {
            Door::Arp => self.dhcp4.read_arp(now, inbox, turn),
            Door::Dhcp4 => self.dhcp4.read(now, inbox, turn),
            Door::Dhcp6 => self.dhcp6.read(now, inbox, turn),
            Door::Ra => self.ra.read(now, inbox),
        }
    }

    /// The socket of a door, while there is one.
    fn packets(&self, door: Door) -> Option<&PacketSocket> {
        match door {
            Door::Arp => self.dhcp4.sockets.extra().map(|aside| &aside.arp),
            Door::Dhcp4 => self.dhcp4.sockets.packets(),
            Door::Dhcp6 => self.dhcp6.sockets.packets(),
            Door::Ra => self.ra.sockets.packets(),
        }
    }

    /// Sends what waited for the disk.
    fn send(&mut self, door: Door, frames: Vec<Vec<u8>>) {
        match door {
            Door::Dhcp4 => self.dhcp4.sockets.send(frames),
            Door::Dhcp6 => self.dhcp6.sockets.send(frames),
            // Nothing that is heard there is answered there.
            Door::Arp | Door::Ra => {}
        }
    }

    /// Whether a bridge that should be there is not, or may have been made anew.
    fn should_look_again(&self) -> bool {
        self.dhcp4.sockets.should_look_again()
            || self.dhcp6.sockets.should_look_again()
            || self.ra.sockets.should_look_again()
    }

    /// When a frame leaves that its bridge's pace keeps back.
    fn leaves(&self) -> Option<Instant> {
        let all = [
            self.dhcp4.sockets.leaves(),
            self.dhcp6.sockets.leaves(),
            self.ra.sockets.leaves(),
        ];
        all.into_iter().flatten().min()
    }

    /// Sends what was kept back until now.
    fn flush(&mut self, now: Instant) {
        self.dhcp4.sockets.flush(now);
        self.dhcp6.sockets.flush(now);
        self.ra.sockets.flush(now);
    }

    /// The leases of both families.
    fn desks(&mut self) -> [&mut Desk; 2] {
        let (v4, v6) = (&mut self.dhcp4.server, &mut self.dhcp6.server);
        [v4.desk_mut(), v6.desk_mut()]
    }

    fn records(&self) -> impl Iterator<Item = &LeaseRecord> {
        let desks = [self.dhcp4.server.desk(), self.dhcp6.server.desk()];
        desks.into_iter().flat_map(|desk| desk.book().records())
    }
}

impl Worker {
    pub(super) fn new(
        kept: Kept,
        commands: Receiver<Command>,
        bell: Arc<OwnedFd>,
        events: broadcast::Sender<News>,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = epoll::EventData::new_u64(BELL);
        epoll::add(&epoll, &*bell, wake, epoll::EventFlags::IN)?;
        raise_file_limit();
        let mut worker = Self {
            disk: Disk::start(kept.log, events, bell.clone())?,
            commands,
            bell,
            epoll,
            clock,
            networks: BTreeMap::new(),
            withdrawn: kept.withdrawn,
            by_number: BTreeMap::new(),
            last_number: 0,
            inbox: Inbox::new(),
            look_again: Time::NEVER,
        };
        let mut by_network = BTreeMap::<NetworkName, Vec<LeaseRecord>>::new();
        for record in kept.records {
            by_network
                .entry(record.network.clone())
                .or_default()
                .push(record);
        }
        for (name, records) in by_network {
            worker.enter(name, records);
        }
        Ok(worker)
    }

    pub(super) fn run(mut self) {
        let mut ready = Vec::with_capacity(256);
        loop {
            let timeout = self.timeout();
            ready.clear();
            let buffer = rustix::buffer::spare_capacity(&mut ready);
            // Interrupted: nothing is ready, and the loop comes round again.
            let _ = epoll::wait(&self.epoll, buffer, timeout.as_ref());
            let numbers: BTreeSet<u64> = ready
                .iter()
                .map(|event: &epoll::Event| event.data.u64())
                .collect();
            match self.turn(&numbers) {
                Some(records) if records >= BUSY => std::thread::sleep(GATHER),
                Some(_) => {}
                None => return,
            }
        }
    }

    /// One turn: what is durable by now, commands, answers of ARP, messages, timers, and the next batch for the disk. How
    /// many records are in it; `None` when the last handle is gone.
    fn turn(&mut self, ready: &BTreeSet<u64>) -> Option<usize> {
        let now = self.clock.now();
        let mut turn = Turn::default();
        if self.disk.next().records() >= MOST {
            let written = self.disk.wait();
            self.let_go(now, written);
        }
        let mut is_wanted = true;
        if ready.contains(&BELL) {
            self.heard();
            let written = self.disk.written();
            self.let_go(now, written);
            is_wanted = self.obey(now, &mut turn);
        }
        for door in DOORS {
            for name in self.having(ready, door) {
                let Some(network) = self.networks.get_mut(&name) else {
                    continue;
                };
                network.read(door, now, &mut self.inbox, &mut turn);
                if network.should_look_again() {
                    self.look_again = self.look_again.min(now.plus_millis(RETRY_MILLIS));
                }
                let frames = std::mem::take(&mut turn.frames);
                self.disk.next().hold(name, door, frames);
            }
        }
        self.timers(now, &mut turn);
        let records = turn.changes.len();
        if records > 0 || !turn.answers.is_empty() {
            self.disk.try_again();
        }
        self.disk.next().add(turn);
        let free = self.disk.write();
        self.send(free);
        is_wanted.then_some(records)
    }

    /// Sends what waited for a batch, or looks again later if the disk refused it.
    fn let_go(&mut self, now: Time, written: Result<Frames, Refused>) {
        match written {
            Ok(frames) => self.send(frames),
            Err(Refused) => self.look_again = self.look_again.min(now.plus_millis(RETRY_MILLIS)),
        }
    }

    fn send(&mut self, frames: Frames) {
        for (name, door, frames) in frames {
            if let Some(network) = self.networks.get_mut(&name) {
                network.send(door, frames);
            }
        }
    }

    fn timers(&mut self, now: Time, turn: &mut Turn) {
        let instant = Instant::now();
        for network in self.networks.values_mut() {
            for desk in network.desks() {
                if desk.next_due().is_some_and(|due| due <= now) {
                    desk.expire(now);
                    turn.events.extend(desk.take_ended());
                }
                turn.promise(desk.take_forgotten(), Vec::new(), None);
            }
            network.ra.poll(now);
            network.flush(instant);
        }
        if self.look_again <= now {
            self.look_again = Time::NEVER;
            self.disk.try_again();
            let names: Vec<NetworkName> = self.networks.keys().cloned().collect();
            for name in names {
                if let Err(error) = self.open(now, &name) {
                    tracing::warn!(network = %name, %error, "no DHCP or router advertisements");
                }
            }
        }
    }

    /// Until when nothing happens unless somebody writes.
    fn timeout(&self) -> Option<Timespec> {
        let due = self
            .networks
            .values()
            .flat_map(|n| {
                let desks = [n.dhcp4.server.desk(), n.dhcp6.server.desk()];
                let due = desks.map(Desk::next_due).into_iter();
                due.chain([n.ra.next_due()])
            })
            .flatten();
        let next = due.chain([self.look_again]).min();
        let next = next.filter(|at| *at != Time::NEVER).map(|at| {
            let wait = at.0.saturating_sub(self.clock.now().0);
            // At least a millisecond, or an event that is due within it would spin.
            Duration::from_millis(wait.max(1))
        });
        let leaves = self.networks.values().filter_map(Network::leaves).min();
        let leaves = leaves.map(|at| at.saturating_duration_since(Instant::now()));
        let wait = next.into_iter().chain(leaves).min()?;
        Some(Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        })
    }

    /// Does what the handles ask; whether there is one left.
    fn obey(&mut self, now: Time, turn: &mut Turn) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.command(now, command, turn),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn command(&mut self, now: Time, command: Command, turn: &mut Turn) {
        match command {
            Command::Configure(wanted, answer) => {
                let failed = self.configure(now, wanted, turn);
                turn.answer(answer, failed);
            }
            Command::Reserve {
                network,
                mac,
                wanted,
                name,
                answer,
            } => {
                let server = &mut self.network(network).dhcp4.server;
                let found = server.reserve(now, mac, wanted, name.as_ref());
                turn.answer(answer, found);
            }
            Command::List(answer) => {
                let held = self.held(now);
                turn.answer(answer, held);
            }
            Command::Release(network, address, answer) => {
                if let Some(network) = self.networks.get_mut(&network) {
                    let [v4, v6] = network.desks();
                    let desk = if address.is_ipv4() { v4 } else { v6 };
                    turn.add(desk.release(now, address));
                }
                turn.answer(answer, ());
            }
            Command::Forget(network, mac, answer) => {
                if let Some(network) = self.networks.get_mut(&network) {
                    turn.add(network.dhcp4.server.forget(now, mac));
                    turn.add(network.dhcp6.server.forget(now, mac));
                }
                turn.answer(answer, ());
            }
            Command::DropNetwork(name, answer) => {
                self.withdrawn.put(&name, &Removed::default());
                self.withdrawn.save();
                if let Some(network) = self.networks.remove(&name) {
                    self.by_number.remove(&network.number);
                    let gone = network
                        .records()
                        .map(|r| Change::Delete(name.clone(), r.address));
                    turn.promise(gone.collect(), Vec::new(), None);
                }
                turn.answer(answer, ());
            }
            Command::Stats(answer) => {
                let stats = self
                    .networks
                    .iter()
                    .map(|(name, n)| stats(name, n))
                    .collect();
                turn.answer(answer, stats);
            }
        }
    }

    fn configure(
        &mut self,
        now: Time,
        wanted: Vec<Wanted>,
        turn: &mut Turn,
    ) -> Vec<(NetworkName, String)> {
        let mut failed = Vec::new();
        for Wanted {
            network: name,
            bridge,
            dhcp4,
            dhcp6,
            ra,
            subnets,
        } in wanted
        {
            let silent = dhcp4.is_none() && dhcp6.is_none() && ra.is_none();
            if silent && !self.networks.contains_key(&name) {
                continue;
            }
            let network = self.network(name.clone());
            network.ra.configure(now, ra, bridge.clone());
            let removed = network.ra.removed().clone();
            network.dhcp6.configure(dhcp6, bridge.clone());
            network.dhcp4.configure(dhcp4, bridge);
            if let Some(subnets) = subnets {
                for desk in network.desks() {
                    turn.add(desk.keep_within(now, &subnets));
                }
            }
            self.withdrawn.put(&name, &removed);
            if let Err(error) = self.open(now, &name) {
                failed.push((name, error.to_string()));
            }
        }
        self.withdrawn.save();
        failed
    }

    /// Opens a network's sockets if it has none and its bridge is there; looks again later if it is not.
    fn open(&mut self, now: Time, name: &NetworkName) -> std::io::Result<()> {
        let Some(network) = self.networks.get_mut(name) else {
            return Ok(());
        };
        let watch = |network: &Network, doors: &[Door]| -> std::io::Result<()> {
            for door in doors {
                if let Some(socket) = network.packets(*door) {
                    let data = epoll::EventData::new_u64(network.number + *door as u64);
                    epoll::add(&self.epoll, socket.as_fd(), data, epoll::EventFlags::IN)?;
                }
            }
            Ok(())
        };
        let opened = network.dhcp4.open();
        if matches!(opened, Ok(true)) {
            watch(network, &[Door::Arp, Door::Dhcp4])?;
        }
        let serving = network.dhcp6.open();
        if matches!(serving, Ok(true)) {
            watch(network, &[Door::Dhcp6])?;
        }
        let advertising = network.ra.open();
        if matches!(advertising, Ok(true)) {
            watch(network, &[Door::Ra])?;
        }
        if network.should_look_again() {
            self.look_again = self.look_again.min(now.plus_millis(RETRY_MILLIS));
        }
        opened.and(serving).and(advertising).map(drop)
    }

    fn network(&mut self, name: NetworkName) -> &mut Network {
        if !self.networks.contains_key(&name) {
            self.enter(name.clone(), Vec::new());
        }
        let removed = Removed::default();
        self.networks
            .entry(name.clone())
            .or_insert_with(|| Network::new(&name, Vec::new(), removed, Time::default(), 0))
    }

    fn enter(&mut self, name: NetworkName, records: Vec<LeaseRecord>) {
        self.last_number += SOCKETS;
        let number = self.last_number;
        self.by_number.insert(number, name.clone());
        let removed = self.withdrawn.of(&name);
        let network = Network::new(&name, records, removed, self.clock.now(), number);
        self.networks.insert(name, network);
    }

    /// The networks at whose door somebody waits.
    fn having(&self, ready: &BTreeSet<u64>, door: Door) -> Vec<NetworkName> {
        let door = door as u64;
        let numbers = ready.iter().filter(|n| **n != BELL && *n % SOCKETS == door);
        numbers
            .filter_map(|n| self.by_number.get(&(n - door)).cloned())
            .collect()
    }

    fn held(&mut self, now: Time) -> Vec<Lease> {
        let mut held = Vec::new();
        for network in self.networks.values_mut() {
            held.extend(network.records().filter(|r| r.is_held(now)).cloned());
        }
        held
    }

    fn heard(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.bell, &mut count);
    }
}

fn stats(name: &NetworkName, network: &Network) -> Stats {
    let server = &network.dhcp4.server;
    let (four, six) = (server.desk(), network.dhcp6.server.desk());
    let pools = four.book().pools();
    let members = network.dhcp6.server.members();
    let ports = server.scope().members.keys().copied().chain(members);
    let shares = ports.map(|mac| (mac, four.share(mac).and(six.share(mac))));
    Stats {
        network: name.clone(),
        counters: server.counters().clone(),
        tally: four.book().tally(),
        pool_total: pools.iter().map(crate::lease::Pool::total).sum(),
        pool_busy: pools.iter().map(crate::lease::Pool::busy).sum(),
        counters6: network.dhcp6.server.counters().clone(),
        tally6: six.book().tally(),
        shares: shares.collect(),
        advertised: network.ra.sent(),
    }
}

/// Three descriptors a network: a thousand networks need more than the usual soft limit.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
