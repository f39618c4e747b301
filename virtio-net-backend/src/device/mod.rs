//! The virtio-net device: features, config space, queues and what the driver told it. No fd, no thread, no clock.
//!
//! ```text
//!   transport                 Device                         switch / port
//!   set_memory, accept   ->   features, config space
//!   start_queue          ->   Rx[n]  <- push(frame)    <-    frames toward the driver
//!   kick                 ->   Tx[n]  -> turn(sink)     ->    frames from the driver
//!   interrupt            <-   ring().publish()
//! ```
//! A transport owns a `Device`, tells it what the driver set up, calls [`Tx::turn`] after a kick, and interrupts the
//! driver when `publish` says so. Queue `2n` receives, `2n + 1` transmits, and the last is the control queue.

pub mod config_space;
pub mod ctrl;
#[cfg(test)]
mod ctrl_tests;
pub mod dirty;
pub mod features;
pub mod frame;
pub mod header;
pub mod inflight;
pub mod memory;
#[cfg(test)]
pub(crate) mod mock;
pub mod ring;
pub mod rx;
pub mod snapshot;
pub mod steer;
#[cfg(test)]
mod tests;
pub mod tx;

use std::sync::Arc;

pub use config_space::ConfigSpace;
pub use features::{Features, Offering};
pub use frame::Frame;
pub use header::{Gso, NetHeader};
pub use memory::Memory;
pub use ring::Fault;
pub use rx::{Received, Rx};
pub use tx::{Credit, Sent, Tx, TxTurn, cost};
pub use virtio_queue::QueueState;

use dirty::DirtyLog;
use ring::{Ring, Side};

/// Most queue pairs of a device.
pub const MAX_PAIRS: u16 = 16;

/// What a device is made with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// MAC address of the port.
    pub mac: [u8; 6],
    /// MTU to tell the driver.
    pub mtu: Option<u16>,
    /// Queue pairs, 1 to [`MAX_PAIRS`].
    pub queue_pairs: u16,
    /// The control queue reaches this device (in-process transports; over vhost-user the frontend answers it).
    pub own_control_queue: bool,
    /// Features not to offer.
    pub withheld: Features,
}

/// What a queue carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Frames toward the driver, pair number.
    Receive(u16),
    /// Frames from the driver, pair number.
    Transmit(u16),
    /// Commands.
    Control,
}

/// Why a transport's request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The driver accepted what was not offered.
    #[error("features {0:?} were not offered")]
    NotOffered(Features),
    /// There is no such queue.
    #[error("there is no queue {0}")]
    NoSuchQueue(u16),
    /// The guest's memory is not known yet.
    #[error("guest memory is not set")]
    NoMemory,
    /// The ring cannot be where it is said to be.
    #[error(transparent)]
    Ring(#[from] Fault),
}

/// The device.
#[derive(Debug)]
pub struct Device {
    config: ConfigSpace,
    /// The MAC address that it begins with, for each driver again.
    mac: [u8; 6],
    offered: Features,
    accepted: Features,
    control_here: bool,
    memory: Option<Arc<Memory>>,
    log: Option<Arc<DirtyLog>>,
    rx: Vec<Option<Rx>>,
    tx: Vec<Option<Tx>>,
    ctrl: ctrl::Control,
    steer: steer::Steer,
}

impl Device {
    /// A device before any driver.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let pairs = settings.queue_pairs.clamp(1, MAX_PAIRS);
        let offered = Features::offered(Offering {
            mtu: settings.mtu.is_some(),
            multiqueue: pairs > 1,
            own_control_queue: settings.own_control_queue,
        });
        Self {
            config: ConfigSpace {
                mac: settings.mac,
                status: config_space::STATUS_LINK_UP,
                max_queue_pairs: pairs,
                mtu: settings.mtu,
            },
            mac: settings.mac,
            offered: offered.without(settings.withheld),
            accepted: Features::default(),
            control_here: settings.own_control_queue,
            memory: None,
            log: None,
            rx: (0..pairs).map(|_| None).collect(),
            tx: (0..pairs).map(|_| None).collect(),
            ctrl: ctrl::Control::new(settings.mac),
            steer: steer::Steer::default(),
        }
    }

    /// What the device offers.
    #[must_use]
    pub fn offered(&self) -> Features {
        self.offered
    }

    /// What the driver accepted and what therefore has effect.
    #[must_use]
    pub fn accepted(&self) -> Features {
        self.accepted
    }

    /// What the driver takes unfinished: its choice, less what it has turned off since by the control queue.
    #[must_use]
    pub fn receive_features(&self) -> Features {
        match self.ctrl.offloads() {
            Some(on) => self
                .accepted
                .without(features::RECEIVE_OFFLOADS.without(on)),
            None => self.accepted,
        }
    }

    /// The driver's choice. Queues that run keep what they started with.
    ///
    /// # Errors
    /// When it holds what was not offered.
    pub fn accept(&mut self, features: Features) -> Result<(), Refused> {
        let unknown = features.without(self.offered);
        if !unknown.is_empty() {
            return Err(Refused::NotOffered(unknown));
        }
        self.accepted = features.effective();
        self.ctrl.negotiated(self.accepted);
        Ok(())
    }

    /// Number of queues: two a pair and the control queue.
    #[must_use]
    pub fn queues(&self) -> u16 {
        2 * self.config.max_queue_pairs + 1
    }

    /// Whether the control queue comes here over vhost-user: crosvm hands it on like any other, QEMU and
    /// cloud-hypervisor answer it themselves.
    pub fn set_control_here(&mut self, here: bool) {
        self.control_here = here;
    }

    /// What queue `index` carries. Where the control queue is ours, it follows the first pair without MQ. (DPDK keeps
    /// CTRL_VQ to itself, and sets several pairs up nevertheless.)
    #[must_use]
    pub fn role(&self, index: u16) -> Option<Role> {
        let one = self.control_here
            && self.accepted.has(Features::CTRL_VQ)
            && !self.accepted.has(Features::MQ);
        let pairs = if one { 1 } else { self.config.max_queue_pairs };
        match (index / 2, index % 2) {
            (pair, 0) if pair < pairs => Some(Role::Receive(pair)),
            (pair, 1) if pair < pairs => Some(Role::Transmit(pair)),
            (pair, 0) if pair == pairs && self.control_here => Some(Role::Control),
            _ => None,
        }
    }

    /// The guest's memory, or its new layout. Every queue is stopped: start them again with their states.
    pub fn set_memory(&mut self, memory: Arc<Memory>) {
        self.stop_all();
        self.memory = Some(memory);
    }

    /// There is no guest memory any more. Every queue is stopped.
    pub fn forget_memory(&mut self) {
        self.stop_all();
        self.memory = None;
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> Option<&Arc<Memory>> {
        self.memory.as_ref()
    }

    /// From here on, writes to guest memory are logged for a migration, or no longer.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        for ring in self.rings() {
            ring.set_log(log.clone());
        }
        self.log = log;
    }

    /// The ring of a running data queue.
    pub fn ring(&mut self, index: u16) -> Option<&mut Ring> {
        match self.role(index)? {
            Role::Receive(pair) => self.rx(pair).map(Rx::ring),
            Role::Transmit(pair) => self.tx(pair).map(Tx::ring),
            Role::Control => None,
        }
    }

    /// Starts a queue.
    ///
    /// # Errors
    /// When there is no such queue, no memory yet, or the ring is not in it.
    pub fn start_queue(&mut self, index: u16, mut setup: QueueState) -> Result<(), Refused> {
        let role = self.role(index).ok_or(Refused::NoSuchQueue(index))?;
        let memory = Arc::clone(self.memory.as_ref().ok_or(Refused::NoMemory)?);
        setup.event_idx_enabled = self.accepted.has(Features::EVENT_IDX);
        setup.max_size = ring::MAX_SIZE;
        setup.ready = true;
        let start = |side| {
            let mut ring = Ring::start(Arc::clone(&memory), setup, side)?;
            ring.set_log(self.log.clone());
            Ok::<_, Fault>(ring)
        };
        match role {
            Role::Receive(pair) => {
                let rx = Rx::new(start(Side::Write)?, self.accepted);
                self.rx[usize::from(pair)] = Some(rx);
            }
            Role::Transmit(pair) => {
                let tx = Tx::new(start(Side::Read)?, self.accepted);
                self.tx[usize::from(pair)] = Some(tx);
            }
            Role::Control => self.ctrl.start(memory, setup)?,
        }
        Ok(())
    }

    /// Starts a queue whose used index is not known: the driver's memory tells it (vhost-user says only the
    /// available index).
    ///
    /// # Errors
    /// As for [`Device::start_queue`].
    pub fn start_queue_where_driver_stands(
        &mut self,
        index: u16,
        setup: QueueState,
    ) -> Result<(), Refused> {
        let next_used = self.used_index(setup.used_ring)?;
        self.start_queue(index, QueueState { next_used, ..setup })
    }

    /// The used index that the driver sees in a used ring.
    ///
    /// # Errors
    /// When there is no memory yet, or the ring is not in it.
    pub fn used_index(&self, used_ring: u64) -> Result<u16, Refused> {
        let memory = self.memory.as_ref().ok_or(Refused::NoMemory)?;
        let at = used_ring.checked_add(2).ok_or(Fault::Setup)?;
        let mut used = [0; 2];
        let read = memory.whole(at, 2).map(|slice| slice.read(&mut used));
        read.ok_or(Fault::Setup)?;
        Ok(u16::from_le_bytes(used))
    }

    /// Stops a queue (RING_RESET, GET_VRING_BASE) and says where it stood; `None` when it did not run.
    pub fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        match self.role(index)? {
            Role::Receive(pair) => self.rx[usize::from(pair)]
                .take()
                .map(|rx| rx.into_ring().stop()),
            Role::Transmit(pair) => self.tx[usize::from(pair)]
                .take()
                .map(|tx| tx.into_ring().stop()),
            Role::Control => self.ctrl.stop(),
        }
    }

    /// Where a running queue stands.
    #[must_use]
    pub fn queue_state(&self, index: u16) -> Option<QueueState> {
        match self.role(index)? {
            Role::Receive(pair) => self.rx[usize::from(pair)]
                .as_ref()
                .map(|rx| rx.ring_ref().state()),
            Role::Transmit(pair) => self.tx[usize::from(pair)]
                .as_ref()
                .map(|tx| tx.ring_ref().state()),
            Role::Control => self.ctrl.state(),
        }
    }

    /// Back to the state before any driver; memory stays, and so does the link.
    pub fn reset(&mut self) {
        self.stop_all();
        self.accepted = Features::default();
        self.log = None;
        self.config.status &= config_space::STATUS_LINK_UP;
        self.config.mac = self.mac;
        self.ctrl = ctrl::Control::new(self.mac);
    }

    /// The config space.
    #[must_use]
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// A write to the config space.
    pub fn write_config(&mut self, offset: usize, from: &[u8]) {
        self.config.write(offset, from, self.accepted);
    }

    /// Asks the driver to announce itself (after a migration). True when it negotiated that: raise a config
    /// interrupt then.
    pub fn announce(&mut self) -> bool {
        let can =
            self.accepted.has(Features::GUEST_ANNOUNCE) && self.accepted.has(Features::STATUS);
        if can {
            self.config.status |= config_space::STATUS_ANNOUNCE;
        }
        can
    }

    /// Sets the link up or down; true when a config interrupt is due.
    pub fn set_link(&mut self, up: bool) -> bool {
        let before = self.config.status;
        if up {
            self.config.status |= config_space::STATUS_LINK_UP;
        } else {
            self.config.status &= !config_space::STATUS_LINK_UP;
        }
        before != self.config.status && self.accepted.has(Features::STATUS)
    }

    /// The receive queue of a pair, when it runs.
    pub fn rx(&mut self, pair: u16) -> Option<&mut Rx> {
        self.rx.get_mut(usize::from(pair))?.as_mut()
    }

    /// The transmit queue of a pair, when it runs.
    pub fn tx(&mut self, pair: u16) -> Option<&mut Tx> {
        self.tx.get_mut(usize::from(pair))?.as_mut()
    }

    /// Serves the control queue. The driver kicks it for whatever it was not told of here, unless the turn used its
    /// budget up: then it is to be served again.
    ///
    /// # Errors
    /// When the driver broke the ring.
    pub fn serve_control(&mut self) -> Result<ctrl::Turn, Fault> {
        self.ctrl.serve(&mut self.config)
    }

    /// Queue pairs in use, as the driver told a predecessor by the control queue.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn set_pairs(&mut self, pairs: u16) -> Result<(), Refused> {
        if !(1..=self.config.max_queue_pairs).contains(&pairs) {
            return Err(Refused::NoSuchQueue(pairs));
        }
        self.ctrl.set_pairs(pairs);
        Ok(())
    }

    /// What the driver asked for by the control queue.
    #[must_use]
    pub fn control(&self) -> &ctrl::Control {
        &self.ctrl
    }

    /// Of `usable`, a bit a pair, the receive pairs that run and that the driver has in use. The transport says which it
    /// lets carry frames: a queue that runs may be disabled (vhost-user, «Ring states»).
    #[must_use]
    pub fn receive_pairs(&self, usable: u32) -> u32 {
        let running = self.rx.iter().zip(0u32..).filter(|(rx, _)| rx.is_some());
        let pairs = usable & running.fold(0, |set, (_, pair)| set | 1 << pair);
        if self.ctrl.is_running() {
            pairs & ((1 << self.ctrl.pairs()) - 1)
        } else {
            pairs
        }
    }

    /// The receive pair for a frame: the one whose transmit queue last carried its flow, else one by hash among
    /// [`Device::receive_pairs`]. `None` when there is none.
    #[must_use]
    pub fn receive_pair(&self, head: &[u8], usable: u32) -> Option<u16> {
        let pairs = self.receive_pairs(usable);
        match pairs.count_ones() {
            0 => None,
            1 => u16::try_from(pairs.trailing_zeros()).ok(),
            _ => Some(self.steer.pair(head, pairs)),
        }
    }

    /// Remembers that the driver sends these flows by `pair`.
    pub fn sent_by(&mut self, flows: &steer::Flows, pair: u16) {
        if self.rx.get(1).is_some_and(Option::is_some) {
            self.steer.learn(flows, pair);
        }
    }

    fn rings(&mut self) -> impl Iterator<Item = &mut Ring> {
        let rx = self.rx.iter_mut().flatten().map(Rx::ring);
        rx.chain(self.tx.iter_mut().flatten().map(Tx::ring))
    }

    fn stop_all(&mut self) {
        // All of them: roles may have changed with the driver's features.
        let rx = self.rx.iter_mut().filter_map(Option::take);
        let tx = self.tx.iter_mut().filter_map(Option::take);
        let rings = rx.map(Rx::into_ring).chain(tx.map(Tx::into_ring));
        for ring in rings {
            let _ = ring.stop();
        }
        self.ctrl.stop();
    }
}
