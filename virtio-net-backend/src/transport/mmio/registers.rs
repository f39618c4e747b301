//! The registers of virtio-mmio version 2 (virtio 1.2, 4.2.2) and the life of a device behind them.
//!
//! ```text
//!   reset ──► ACKNOWLEDGE, DRIVER ──► FEATURES_OK ──► DRIVER_OK: queues that are ready run
//!     ▲                                                   │ broken ring
//!     └───────────────── status := 0 ◄──────────── NEEDS_RESET
//! ```
//! Registers are 32 bits wide and aligned; any other access, and any register that does not exist, reads as zero and
//! swallows writes.

use super::snapshot::{QueueSnapshot, Snapshot};
use crate::device::{Device, Fault, Features, QueueState, Refused, Role, ring::MAX_SIZE};

pub(super) mod offset {
    pub(in super::super) const MAGIC: u64 = 0x00;
    pub(in super::super) const VERSION: u64 = 0x04;
    pub(in super::super) const DEVICE_ID: u64 = 0x08;
    pub(in super::super) const VENDOR_ID: u64 = 0x0c;
    pub(in super::super) const DEVICE_FEATURES: u64 = 0x10;
    pub(in super::super) const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub(in super::super) const DRIVER_FEATURES: u64 = 0x20;
    pub(in super::super) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(in super::super) const QUEUE_SEL: u64 = 0x30;
    pub(in super::super) const QUEUE_SIZE_MAX: u64 = 0x34;
    pub(in super::super) const QUEUE_SIZE: u64 = 0x38;
    pub(in super::super) const QUEUE_READY: u64 = 0x44;
    pub(in super::super) const QUEUE_NOTIFY: u64 = 0x50;
    pub(in super::super) const INTERRUPT_STATUS: u64 = 0x60;
    pub(in super::super) const INTERRUPT_ACK: u64 = 0x64;
    pub(in super::super) const STATUS: u64 = 0x70;
    pub(in super::super) const QUEUE_DESC: u64 = 0x80;
    pub(in super::super) const QUEUE_DRIVER: u64 = 0x90;
    pub(in super::super) const QUEUE_DEVICE: u64 = 0xa0;
    pub(in super::super) const SHM_LEN: u64 = 0xb0;
    pub(in super::super) const SHM_BASE: u64 = 0xb8;
    pub(in super::super) const QUEUE_RESET: u64 = 0xc0;
    pub(in super::super) const GENERATION: u64 = 0xfc;
    pub(in super::super) const CONFIG: u64 = 0x100;
}

pub(super) mod status {
    pub(in super::super) const DRIVER_OK: u32 = 4;
    pub(in super::super) const FEATURES_OK: u32 = 8;
    pub(in super::super) const NEEDS_RESET: u32 = 64;
    /// The bits that a driver may set.
    pub(super) const DRIVERS: u32 = 1 | 2 | DRIVER_OK | FEATURES_OK | 128;
}

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const NETWORK_CARD: u32 = 1;
/// "vnet", little-endian: nobody assigns these.
const VENDOR: u32 = 0x7465_6e76;

/// What else has to happen after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Quiet,
    /// Queues run now.
    Started,
    /// All is as it was in the beginning.
    Reset,
    /// A queue could not be started, so that the device needs a reset.
    Failed,
}

#[derive(Debug)]
pub(super) struct Registers {
    pub(super) device: Device,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSnapshot>,
    generation: u32,
    /// How the driver broke a ring.
    pub(super) fault: Option<Fault>,
}

impl Registers {
    pub(super) fn new(device: Device) -> Self {
        let queues = vec![QueueSnapshot::default(); usize::from(device.queues())];
        Self {
            device,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues,
            generation: 0,
            fault: None,
        }
    }

    /// Queue pairs that can run.
    pub(super) fn pairs(&self) -> u16 {
        self.device.config().max_queue_pairs
    }

    pub(super) fn read(&self, at: u64, data: &mut [u8]) {
        if let Some(at) = at.checked_sub(offset::CONFIG) {
            self.device
                .config()
                .read(usize::try_from(at).unwrap_or(usize::MAX), data);
            return;
        }
        let selected = self.selected();
        let value = match at {
            offset::MAGIC => MAGIC,
            offset::VERSION => 2,
            offset::DEVICE_ID => NETWORK_CARD,
            offset::VENDOR_ID => VENDOR,
            offset::DEVICE_FEATURES => half(self.device.offered().bits(), self.device_features_sel),
            offset::QUEUE_SIZE_MAX => selected.map_or(0, |_| u32::from(MAX_SIZE)),
            offset::QUEUE_READY => selected.map_or(0, |queue| u32::from(queue.ready)),
            offset::STATUS => self.status,
            offset::GENERATION => self.generation,
            // A shared memory region that does not exist has length and base of all ones.
            offset::SHM_LEN..offset::QUEUE_RESET
                if at < offset::SHM_BASE + 8 && at.is_multiple_of(4) =>
            {
                u32::MAX
            }
            _ => 0,
        };
        answer(data, value);
    }

    pub(super) fn write(&mut self, at: u64, data: &[u8]) -> Written {
        if let Some(at) = at.checked_sub(offset::CONFIG) {
            self.device
                .write_config(usize::try_from(at).unwrap_or(usize::MAX), data);
            return Written::Quiet;
        }
        let Some(value) = word(data) else {
            return Written::Quiet;
        };
        match at {
            offset::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            offset::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            offset::DRIVER_FEATURES => self.write_features(value),
            offset::QUEUE_SEL => self.queue_sel = value,
            offset::STATUS => return self.write_status(value),
            offset::QUEUE_READY => return self.write_ready(value),
            offset::QUEUE_RESET
                if value == 1 && self.device.accepted().has(Features::RING_RESET) =>
            {
                return self.write_ready(0);
            }
            _ => self.write_set_up(at, value),
        }
        Written::Quiet
    }

    /// Lets `change` at the device; when it says that the config space changed, drivers will notice.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Device) -> bool) -> bool {
        let changed = change(&mut self.device);
        self.generation = self.generation.wrapping_add(u32::from(changed));
        changed
    }

    /// A ring is broken: nothing runs until the driver resets the device.
    pub(super) fn fail(&mut self) {
        self.status |= status::NEEDS_RESET;
        for index in 0..self.device.queues() {
            self.device.stop_queue(index);
        }
    }

    pub(super) fn save(&self, pending: u32) -> Snapshot {
        let mut queues = self.queues.clone();
        for (queue, index) in queues.iter_mut().zip(0..) {
            if let Some(state) = self.device.queue_state(index) {
                (queue.next_avail, queue.next_used) = (state.next_avail, state.next_used);
            }
        }
        Snapshot {
            pending,
            status: self.status,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            driver_features: self.driver_features,
            queue_sel: self.queue_sel,
            generation: self.generation,
            queues,
            device: self.device.save(),
        }
    }

    pub(super) fn restore(&mut self, snapshot: &Snapshot) -> Result<(), Refused> {
        self.reset();
        let restored = self.try_restore(snapshot);
        if restored.is_err() {
            self.reset();
        }
        restored
    }

    fn try_restore(&mut self, snapshot: &Snapshot) -> Result<(), Refused> {
        if snapshot.queues.len() != self.queues.len() {
            return Err(Refused::NoSuchQueue(self.device.queues()));
        }
        self.device_features_sel = snapshot.device_features_sel;
        self.driver_features_sel = snapshot.driver_features_sel;
        self.driver_features = snapshot.driver_features;
        self.queue_sel = snapshot.queue_sel;
        self.generation = snapshot.generation;
        self.queues.clone_from(&snapshot.queues);
        self.status = snapshot.status & (status::DRIVERS | status::NEEDS_RESET);
        if self.status & status::FEATURES_OK != 0 {
            self.device
                .accept(Features::from_bits(self.driver_features))?;
        }
        self.device.restore(&snapshot.device)?;
        if self.runs() {
            self.start_ready()
        } else {
            Ok(())
        }
    }

    fn write_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let (shift, keep) = match self.driver_features_sel {
            0 => (0, !0xffff_ffff),
            1 => (32, 0xffff_ffff),
            _ => return,
        };
        self.driver_features = self.driver_features & keep | u64::from(value) << shift;
    }

    fn write_status(&mut self, value: u32) -> Written {
        if value == 0 {
            self.reset();
            return Written::Reset;
        }
        let ran = self.runs();
        let new = value & status::DRIVERS & !self.status;
        self.status |= new & !status::FEATURES_OK;
        if new & status::FEATURES_OK != 0 && self.accept() {
            self.status |= status::FEATURES_OK;
        }
        // Whichever bit completes it: a driver may have said DRIVER_OK too early.
        if ran || !self.runs() {
            return Written::Quiet;
        }
        match self.start_ready() {
            Ok(()) => Written::Started,
            Err(refused) => self.failed(refused),
        }
    }

    /// Without VERSION_1 there is no virtio-mmio version 2 driver.
    fn accept(&mut self) -> bool {
        let features = Features::from_bits(self.driver_features);
        features.has(Features::VERSION_1) && self.device.accept(features).is_ok()
    }

    fn write_ready(&mut self, value: u32) -> Written {
        let runs = self.runs();
        let Some((index, queue)) = self.selected_mut() else {
            return Written::Quiet;
        };
        let ready = value & 1 == 1;
        if queue.ready == ready {
            return Written::Quiet;
        }
        queue.ready = ready;
        (queue.next_avail, queue.next_used) = (0, 0);
        if !ready {
            self.device.stop_queue(index);
            return Written::Quiet;
        }
        if !runs {
            return Written::Quiet;
        }
        match self.start(index) {
            Ok(()) => Written::Started,
            Err(refused) => self.failed(refused),
        }
    }

    /// Size and place of a queue; fixed while it is ready.
    fn write_set_up(&mut self, at: u64, value: u32) {
        let Some((_, queue)) = self.selected_mut().filter(|(_, queue)| !queue.ready) else {
            return;
        };
        match at {
            offset::QUEUE_SIZE => queue.size = u16::try_from(value).unwrap_or(0),
            offset::QUEUE_DESC | 0x84 => put_half(&mut queue.desc_table, at, value),
            offset::QUEUE_DRIVER | 0x94 => put_half(&mut queue.avail_ring, at, value),
            offset::QUEUE_DEVICE | 0xa4 => put_half(&mut queue.used_ring, at, value),
            _ => {}
        }
    }

    fn runs(&self) -> bool {
        let needed = status::FEATURES_OK | status::DRIVER_OK;
        self.status & (needed | status::NEEDS_RESET) == needed
    }

    fn start_ready(&mut self) -> Result<(), Refused> {
        for index in 0..self.device.queues() {
            if self.queues[usize::from(index)].ready && self.role(index).is_some() {
                self.start(index)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, index: u16) -> Result<(), Refused> {
        let queue = &self.queues[usize::from(index)];
        let setup = QueueState {
            max_size: MAX_SIZE,
            next_avail: queue.next_avail,
            next_used: queue.next_used,
            size: queue.size,
            desc_table: queue.desc_table,
            avail_ring: queue.avail_ring,
            used_ring: queue.used_ring,
            ..QueueState::default()
        };
        self.device.start_queue(index, setup)
    }

    fn failed(&mut self, refused: Refused) -> Written {
        if let Refused::Ring(fault) = refused {
            self.fault = Some(fault);
        }
        self.fail();
        Written::Failed
    }

    fn reset(&mut self) {
        self.device.reset();
        self.fault = None;
        self.status = 0;
        self.driver_features = 0;
        (
            self.device_features_sel,
            self.driver_features_sel,
            self.queue_sel,
        ) = (0, 0, 0);
        self.queues.fill_with(QueueSnapshot::default);
    }

    fn role(&self, index: u16) -> Option<Role> {
        self.device.role(index)
    }

    fn selected(&self) -> Option<&QueueSnapshot> {
        let index = u16::try_from(self.queue_sel).ok()?;
        self.role(index)?;
        self.queues.get(usize::from(index))
    }

    fn selected_mut(&mut self) -> Option<(u16, &mut QueueSnapshot)> {
        let index = u16::try_from(self.queue_sel).ok()?;
        self.role(index)?;
        Some((index, self.queues.get_mut(usize::from(index))?))
    }
}

/// Half of a 64-bit register; there is nothing beyond.
#[expect(clippy::cast_possible_truncation, reason = "a half is asked for")]
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn put_half(field: &mut u64, at: u64, value: u32) {
    let high = at & 4 != 0;
    let (keep, shift) = if high {
        (0xffff_ffff, 32)
    } else {
        (!0xffff_ffff, 0)
    };
    *field = *field & keep | u64::from(value) << shift;
}

/// Answers a read of a register: four bytes, or nothing.
pub(super) fn answer(data: &mut [u8], value: u32) {
    data.fill(0);
    if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
        *data = value.to_le_bytes();
    }
}

/// The value of a write to a register: four bytes, or nothing.
pub(super) fn word(data: &[u8]) -> Option<u32> {
    data.try_into().ok().map(u32::from_le_bytes)
}
