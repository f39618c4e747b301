//! The driver's side of a ring, laid out by hand: for tests of the device.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Memory, QueueState};

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Guest memory from zero to here.
pub(crate) const MEMORY: u64 = 0x40_0000;

/// One region of guest memory.
pub(crate) fn memory() -> Arc<Memory> {
    let size = usize::try_from(MEMORY).expect("fits");
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).expect("memory");
    Memory::new(map)
}

/// A ring as its driver sees it.
pub(crate) struct Driver {
    pub(crate) memory: Arc<Memory>,
    pub(crate) base: u64,
    pub(crate) size: u16,
    avail: u16,
    seen: u16,
}

impl Driver {
    /// A ring whose three parts lie one after the other from `base`.
    pub(crate) fn new(memory: &Arc<Memory>, base: u64, size: u16) -> Self {
        Self {
            memory: Arc::clone(memory),
            base,
            size,
            avail: 0,
            seen: 0,
        }
    }

    pub(crate) fn setup(&self) -> QueueState {
        QueueState {
            size: self.size,
            desc_table: self.base,
            avail_ring: self.avail_at(),
            used_ring: self.used_at(),
            ..QueueState::default()
        }
    }

    pub(crate) fn avail_at(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    pub(crate) fn used_at(&self) -> u64 {
        (self.avail_at() + 6 + 2 * u64::from(self.size)).next_multiple_of(16)
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory
            .map()
            .write_slice(bytes, GuestAddress(at))
            .expect("in memory");
    }

    pub(crate) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .map()
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("in memory");
        bytes
    }

    fn read16(&self, at: u64) -> u16 {
        let bytes = self.read(at, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// Writes descriptor `number` of the table at `table`.
    pub(crate) fn descriptor(
        &self,
        table: u64,
        number: u16,
        (addr, len, flags, next): (u64, u32, u16, u16),
    ) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + 16 * u64::from(number), &bytes);
    }

    /// A chain of buffers that starts at descriptor `first`.
    pub(crate) fn chain(&mut self, first: u16, buffers: &[(u64, u32, u16)]) {
        for (i, (addr, len, flags)) in buffers.iter().enumerate() {
            let number = first + u16::try_from(i).expect("short chain");
            let more = if i + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(self.base, number, (*addr, *len, flags | more, number + 1));
        }
        self.offer(first);
    }

    /// Makes a descriptor available.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.avail % self.size);
        self.write(self.avail_at() + 4 + 2 * slot, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.set_avail(self.avail);
    }

    pub(crate) fn set_avail(&self, index: u16) {
        self.write(self.avail_at() + 2, &index.to_le_bytes());
    }

    /// Asks for an interrupt when the used index passes `index` (EVENT_IDX).
    pub(crate) fn set_used_event(&self, index: u16) {
        self.write(
            self.avail_at() + 4 + 2 * u64::from(self.size),
            &index.to_le_bytes(),
        );
    }

    /// Where the device wants the next kick (EVENT_IDX).
    pub(crate) fn avail_event(&self) -> u16 {
        self.read16(self.used_at() + 4 + 8 * u64::from(self.size))
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.read16(self.used_at())
    }

    /// What was given back since the last call: head and length.
    pub(crate) fn used(&mut self) -> Vec<(u32, u32)> {
        let index = self.read16(self.used_at() + 2);
        let mut given = Vec::new();
        while self.seen != index {
            let entry = self.read(self.used_at() + 4 + 8 * u64::from(self.seen % self.size), 8);
            let word = |at: usize| {
                u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
            };
            given.push((word(0), word(4)));
            self.seen = self.seen.wrapping_add(1);
        }
        given
    }
}
