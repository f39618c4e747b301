//! Which chains of a ring are in flight, in memory that outlives this process (vhost-user INFLIGHT_SHMFD).
//!
//! A backend that starts after a crash reads here which chains its predecessor took and did not give back, and takes
//! them first. The layout and the order of the writes are those of the vhost-user specification ("Inflight I/O
//! tracking", split rings).
#![allow(
    unsafe_code,
    reason = "fields of a structure in memory shared with the frontend"
)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use vm_memory::MmapRegion;

const HEADER: usize = 16;
const ENTRY: usize = 16;
const VERSION_AT: usize = 8;
const COUNT_AT: usize = 10;
const LAST_HEAD_AT: usize = 12;
const USED_AT: usize = 14;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// Bytes for one ring of `size` entries, a multiple of 64 so that rings share no cache line.
#[must_use]
pub const fn queue_bytes(size: u16) -> usize {
    (HEADER + ENTRY * size as usize).next_multiple_of(64)
}

/// The record of one ring.
#[derive(Debug)]
pub struct Inflight {
    base: NonNull<u8>,
    size: u16,
    counter: u64,
    batch: Vec<u16>,
    _region: Arc<MmapRegion>,
}

// SAFETY: `base` leads into the mapping that `_region` keeps.
unsafe impl Send for Inflight {}

impl Inflight {
    /// The record at `offset` of a region; `None` when it does not fit.
    #[must_use]
    pub fn new(region: Arc<MmapRegion>, offset: usize, size: u16) -> Option<Self> {
        if offset.checked_add(queue_bytes(size))? > region.size() {
            return None;
        }
        let base = NonNull::new(region.as_ptr().wrapping_add(offset))?;
        let record = Self {
            base,
            size,
            counter: 1,
            batch: Vec::new(),
            _region: region,
        };
        if record.get::<2>(VERSION_AT) == [0; 2] {
            record.set(VERSION_AT, 1u16.to_le_bytes());
            record.set(COUNT_AT, size.to_le_bytes());
        }
        Some(record)
    }

    /// What a predecessor took and did not give back, oldest first. `used` is the used index that the driver sees.
    pub fn recover(&mut self, used: u16) -> Vec<u16> {
        let missed = used.wrapping_sub(u16::from_le_bytes(self.get(USED_AT)));
        let mut head = u16::from_le_bytes(self.get(LAST_HEAD_AT));
        // The driver saw the last batch, but its entries were not cleared any more.
        for _ in 0..missed.min(self.size) {
            if head >= self.size {
                break;
            }
            self.set(entry(head), [0]);
            head = u16::from_le_bytes(self.get(entry(head) + NEXT_AT));
        }
        self.set(USED_AT, used.to_le_bytes());
        let mut left: Vec<(u64, u16)> = (0..self.size)
            .filter(|&head| self.get::<1>(entry(head)) == [1])
            .map(|head| (u64::from_le_bytes(self.get(entry(head) + COUNTER_AT)), head))
            .collect();
        left.sort_unstable();
        self.counter = left
            .last()
            .map_or(1, |(counter, _)| counter.wrapping_add(1));
        left.into_iter().map(|(_, head)| head).collect()
    }

    /// A chain was taken from the available ring.
    pub fn taken(&mut self, head: u16) {
        self.set(entry(head) + COUNTER_AT, self.counter.to_le_bytes());
        self.set(entry(head), [1]);
        self.counter = self.counter.wrapping_add(1);
    }

    /// A chain that was taken is the driver's again, unused: whoever starts next finds it in the available ring.
    pub fn given_back(&mut self, head: u16) {
        self.set(entry(head), [0]);
    }

    /// A chain was written to the used ring, not yet visible.
    pub fn completed(&mut self, head: u16) {
        let last: [u8; 2] = self.get(LAST_HEAD_AT);
        self.set(entry(head) + NEXT_AT, last);
        self.set(LAST_HEAD_AT, head.to_le_bytes());
        self.batch.push(head);
    }

    /// The driver sees the used index.
    pub fn published(&mut self, used: u16) {
        for head in std::mem::take(&mut self.batch) {
            self.set(entry(head), [0]);
        }
        compiler_fence(Ordering::SeqCst);
        self.set(USED_AT, used.to_le_bytes());
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        debug_assert!(at + N <= queue_bytes(self.size));
        // SAFETY: all offsets used here are inside the record, whose place in the mapping was checked.
        unsafe { self.base.add(at).cast::<[u8; N]>().read_volatile() }
    }

    fn set<const N: usize>(&self, at: usize, value: [u8; N]) {
        debug_assert!(at + N <= queue_bytes(self.size));
        // SAFETY: as in `get`.
        unsafe { self.base.add(at).cast::<[u8; N]>().write_volatile(value) }
    }
}

/// `head` is below the ring size: it was checked against the descriptor table when the chain was walked.
const fn entry(head: u16) -> usize {
    HEADER + ENTRY * head as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Arc<MmapRegion> {
        Arc::new(MmapRegion::new(4096).expect("mapping"))
    }

    #[test]
    fn a_successor_learns_what_was_taken_in_the_order_it_was_taken() {
        let memory = region();
        let mut first = Inflight::new(Arc::clone(&memory), 0, 16).expect("fits");
        assert!(first.recover(0).is_empty());
        for head in [9, 3, 7] {
            first.taken(head);
        }
        first.completed(9);
        first.published(1);
        let mut second = Inflight::new(memory, 0, 16).expect("fits");
        assert_eq!(second.recover(1), [3, 7]);
    }

    #[test]
    fn a_crash_between_index_and_clearing_repeats_nothing() {
        let memory = region();
        let mut first = Inflight::new(Arc::clone(&memory), 0, 16).expect("fits");
        for head in [1, 2, 3] {
            first.taken(head);
        }
        first.completed(1);
        first.completed(2);
        // The used index became 2, then the process died.
        let mut second = Inflight::new(memory, 0, 16).expect("fits");
        assert_eq!(second.recover(2), [3]);
    }

    #[test]
    fn a_record_outside_the_region_is_none() {
        assert!(Inflight::new(region(), 4000, 16).is_none());
        assert!(Inflight::new(region(), usize::MAX, 16).is_none());
        assert!(Inflight::new(region(), 0, 1024).is_none());
    }
}
