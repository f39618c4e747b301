//! The memory that tracks chains in flight: made here (GET_INFLIGHT_FD), kept by the frontend, given back to a
//! successor (SET_INFLIGHT_FD).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::MmapRegion;

use super::foreign::Foreign;
use super::lost_memory::Watched;
use super::memory_table::{BadTable, map_shared, shared_file};
use super::message::InflightShape;
use crate::device::MAX_PAIRS;
use crate::device::inflight::{Inflight, queue_bytes};
use crate::device::ring::MAX_SIZE;

/// The mapped memory.
#[derive(Debug)]
pub struct InflightMemory {
    /// Dropped before the mapping.
    watched: Watched,
    region: Arc<MmapRegion>,
    shape: InflightShape,
}

impl InflightMemory {
    /// Makes memory for a frontend that asks; `None` when it asks for more than a device can have.
    #[must_use]
    pub fn create(asked: InflightShape) -> Option<(InflightShape, OwnedFd)> {
        if asked.queues > 2 * MAX_PAIRS || asked.queue_size > MAX_SIZE {
            return None;
        }
        let size = u64::try_from(queue_bytes(asked.queue_size) * usize::from(asked.queues)).ok()?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("vhost-inflight", flags).ok()?;
        ftruncate(&fd, size).ok()?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&fd, seals).ok()?;
        Some((
            InflightShape {
                size,
                offset: 0,
                ..asked
            },
            fd,
        ))
    }

    /// Maps what a frontend kept.
    ///
    /// # Errors
    /// When it is not memory of that length.
    pub fn map(shape: InflightShape, fd: Foreign) -> Result<Self, BadTable> {
        let (watched, region) = map_shared(fd, shape.offset, shape.size)?;
        let region = Arc::new(region);
        Ok(Self {
            watched,
            region,
            shape,
        })
    }

    /// Whether the memory went away.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.watched.is_lost()
    }

    /// The memory itself and its shape, for a successor.
    #[must_use]
    pub fn kept(&self) -> Option<(InflightShape, BorrowedFd<'_>)> {
        shared_file(&self.region).map(|(fd, ..)| (self.shape, fd))
    }

    /// The record of one queue, when there is one.
    #[must_use]
    pub fn queue(&self, index: u16, size: u16) -> Option<Inflight> {
        if index >= self.shape.queues || size > self.shape.queue_size {
            return None;
        }
        let offset = queue_bytes(self.shape.queue_size) * usize::from(index);
        Inflight::new(Arc::clone(&self.region), offset, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_gets_the_same_memory() {
        let asked = InflightShape {
            size: 0,
            offset: 0,
            queues: 2,
            queue_size: 256,
        };
        let (shape, fd) = InflightMemory::create(asked).expect("made");
        assert!(ftruncate(&fd, 0).is_err(), "nobody takes it away");
        let again = fd.try_clone().expect("dup");
        let memory = InflightMemory::map(shape, fd.into()).expect("mapped");
        let mut first = memory.queue(1, 256).expect("queue");
        first.recover(0);
        first.taken(42);
        let memory = InflightMemory::map(shape, again.into()).expect("mapped");
        assert_eq!(memory.queue(1, 256).expect("queue").recover(0), [42]);
        assert!(memory.queue(2, 256).is_none());
    }

    #[test]
    fn a_frontend_cannot_ask_for_endless_memory() {
        let asked = InflightShape {
            size: 0,
            offset: 0,
            queues: 60000,
            queue_size: 60000,
        };
        assert!(InflightMemory::create(asked).is_none());
    }
}
