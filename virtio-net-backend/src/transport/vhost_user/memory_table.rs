//! The frontend's memory table: regions that come whole (SET_MEM_TABLE) or one by one (ADD_MEM_REG, REM_MEM_REG).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::fds;
use super::foreign::Foreign;
use super::lost_memory::Watched;
use super::message::MemoryRegion;
use crate::device::Memory;

/// Most regions.
pub const MAX_SLOTS: usize = 32;

/// Why a table was refused.
#[derive(Debug, thiserror::Error)]
pub enum BadTable {
    /// Another number of fds than of regions.
    #[error("regions and fds do not match")]
    Fds,
    /// More regions than slots.
    #[error("too many regions")]
    TooMany,
    /// A region of zero bytes, or one that wraps around.
    #[error("region {0:x?} is not a range")]
    Range(MemoryRegion),
    /// Two regions share addresses.
    #[error("regions overlap")]
    Overlap,
    /// No region like the one to remove.
    #[error("there is no such region")]
    NoSuchRegion,
    /// The fd cannot be mapped.
    #[error("region cannot be mapped: {0}")]
    Map(io::Error),
}

/// The table.
#[derive(Debug, Default)]
pub struct MemoryTable {
    regions: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    region: MemoryRegion,
    watched: Watched,
    mapped: Arc<GuestRegionMmap>,
    /// How often it was added: QEMU (7.2) adds and removes each region once for each queue pair.
    times: usize,
}

impl MemoryTable {
    /// Replaces the whole table.
    ///
    /// # Errors
    /// When a region cannot be mapped; the old table stays then.
    pub fn replace(
        &mut self,
        regions: &[MemoryRegion],
        fds: impl IntoIterator<Item = Foreign>,
    ) -> Result<(), BadTable> {
        let mut table = Self::default();
        let mut fds = fds.into_iter();
        for region in regions {
            table.add(*region, fds.next())?;
        }
        if fds.next().is_some() {
            return Err(BadTable::Fds);
        }
        *self = table;
        Ok(())
    }

    /// Adds a region.
    ///
    /// # Errors
    /// When it cannot be mapped or overlaps another.
    pub fn add(&mut self, region: MemoryRegion, fd: Option<Foreign>) -> Result<(), BadTable> {
        let fd = fd.ok_or(BadTable::Fds)?;
        if let Some(entry) = self.regions.iter_mut().find(|entry| entry.region == region) {
            entry.times = entry.times.saturating_add(1);
            return Ok(());
        }
        if self.regions.len() >= MAX_SLOTS {
            return Err(BadTable::TooMany);
        }
        let overlaps = |other: &MemoryRegion| {
            let apart = |a: u64, b: u64| {
                a >= b.saturating_add(other.size) || b >= a.saturating_add(region.size)
            };
            !apart(region.guest, other.guest) || !apart(region.user, other.user)
        };
        if self.regions.iter().any(|entry| overlaps(&entry.region)) {
            return Err(BadTable::Overlap);
        }
        let mapped = Arc::new(map(region, fd)?);
        let watched = Watched::new(&mapped).map_err(BadTable::Map)?;
        self.regions.push(Entry {
            region,
            watched,
            mapped,
            times: 1,
        });
        self.regions.sort_by_key(|entry| entry.region.guest);
        Ok(())
    }

    /// Counts more additions of a region that is there.
    pub fn add_again(&mut self, region: MemoryRegion, more: usize) {
        if let Some(entry) = self.regions.iter_mut().find(|entry| entry.region == region) {
            entry.times = entry.times.saturating_add(more);
        }
    }

    /// Removes the region with the same addresses and length.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&mut self, region: MemoryRegion) -> Result<(), BadTable> {
        let same = |entry: &Entry| {
            let other = &entry.region;
            (other.guest, other.user, other.size) == (region.guest, region.user, region.size)
        };
        let at = self
            .regions
            .iter()
            .position(same)
            .ok_or(BadTable::NoSuchRegion)?;
        self.regions[at].times -= 1;
        if self.regions[at].times == 0 {
            self.regions.remove(at);
        }
        Ok(())
    }

    /// Whether memory of the guest went away while it was mapped.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.regions.iter().any(|entry| entry.watched.is_lost())
    }

    /// The guest's memory as the device wants it; `None` while there is none.
    #[must_use]
    pub fn memory(&self) -> Option<Arc<Memory>> {
        let regions = self
            .regions
            .iter()
            .map(|entry| Arc::clone(&entry.mapped))
            .collect();
        GuestMemoryMmap::from_arc_regions(regions)
            .ok()
            .map(Memory::new)
    }

    /// Each region with its fd and how often it was added.
    pub fn entries(&self) -> impl Iterator<Item = (MemoryRegion, usize, Option<BorrowedFd<'_>>)> {
        self.regions.iter().map(|entry| {
            let file = entry.mapped.file_offset();
            (
                entry.region,
                entry.times,
                file.map(|file| file.file().as_fd()),
            )
        })
    }

    /// The guest address of an address of the frontend.
    #[must_use]
    pub fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|Entry { region, .. }| {
            let offset = user.wrapping_sub(region.user);
            (offset < region.size).then(|| region.guest + offset)
        })
    }
}

fn map(region: MemoryRegion, fd: Foreign) -> Result<GuestRegionMmap, BadTable> {
    let ends =
        [region.guest, region.user, region.offset].map(|start| start.checked_add(region.size));
    let [Some(_), Some(_), Some(end)] = ends else {
        return Err(BadTable::Range(region));
    };
    let size = usize::try_from(region.size).map_err(|_| BadTable::Range(region))?;
    if size == 0 {
        return Err(BadTable::Range(region));
    }
    let fd = fds::memory(fd, region.offset, end).map_err(BadTable::Map)?;
    let file = FileOffset::new(File::from(fd), region.offset);
    let mapping = MmapRegion::from_file(file, size)
        .map_err(|error| BadTable::Map(io::Error::other(error)))?;
    GuestRegionMmap::new(mapping, GuestAddress(region.guest)).ok_or(BadTable::Range(region))
}

/// The fd behind shared memory, with the place and length of what is mapped.
pub(super) fn shared_file(region: &MmapRegion) -> Option<(BorrowedFd<'_>, u64, u64)> {
    let file = region.file_offset()?;
    let size = u64::try_from(region.size()).ok()?;
    Some((file.file().as_fd(), file.start(), size))
}

/// Maps shared memory for a log or for tracking descriptors in flight. Keep the watch as long as the mapping is used.
pub(super) fn map_shared(
    fd: Foreign,
    offset: u64,
    size: u64,
) -> Result<(Watched, MmapRegion), BadTable> {
    let bad = BadTable::Range(MemoryRegion {
        guest: 0,
        size,
        user: 0,
        offset,
    });
    let (Some(end), Ok(len)) = (offset.checked_add(size), usize::try_from(size)) else {
        return Err(bad);
    };
    if len == 0 {
        return Err(bad);
    }
    let fd = fds::memory(fd, offset, end).map_err(BadTable::Map)?;
    let region = MmapRegion::from_file(FileOffset::new(File::from(fd), offset), len)
        .map_err(|error| BadTable::Map(io::Error::other(error)))?;
    let watched = Watched::new(&region).map_err(BadTable::Map)?;
    Ok((watched, region))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    fn memfd(len: u64) -> Foreign {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, len).expect("length");
        fd.into()
    }

    fn region(guest: u64, user: u64) -> MemoryRegion {
        MemoryRegion {
            guest,
            size: 0x10000,
            user,
            offset: 0,
        }
    }

    #[test]
    fn frontend_addresses_become_guest_addresses() {
        let mut table = MemoryTable::default();
        table
            .add(region(0x10_0000, 0x7000_0000), Some(memfd(0x10000)))
            .expect("added");
        table
            .add(region(0, 0x6000_0000), Some(memfd(0x10000)))
            .expect("added");
        assert_eq!(table.guest_address(0x7000_0010), Some(0x10_0010));
        assert_eq!(table.guest_address(0x7001_0000), None);
        assert!(table.memory().expect("memory").contains(0x8000));
        table.remove(region(0, 0x6000_0000)).expect("removed");
        assert!(!table.memory().expect("memory").contains(0x8000));
        assert!(table.remove(region(0, 0x6000_0000)).is_err());
    }

    #[test]
    fn a_region_added_twice_is_removed_twice() {
        let mut table = MemoryTable::default();
        for _ in 0..2 {
            table
                .add(region(0, 0), Some(memfd(0x10000)))
                .expect("added");
        }
        table.remove(region(0, 0)).expect("removed");
        assert!(table.guest_address(5).is_some());
        table.remove(region(0, 0)).expect("removed");
        assert!(table.guest_address(5).is_none());
    }

    #[test]
    fn what_cannot_be_memory_is_refused_and_the_old_table_stays() {
        let mut table = MemoryTable::default();
        table
            .add(region(0, 0), Some(memfd(0x10000)))
            .expect("added");
        assert!(matches!(
            table.add(region(0x8000, 0x900_0000), Some(memfd(0x10000))),
            Err(BadTable::Overlap)
        ));
        assert!(matches!(
            table.add(region(0x10_0000, 0x900_0000), Some(memfd(0xffff))),
            Err(BadTable::Map(_))
        ));
        assert!(matches!(
            table.add(region(u64::MAX - 5, 0x900_0000), Some(memfd(0x10000))),
            Err(BadTable::Range(_))
        ));
        assert!(matches!(
            table.add(region(0x10_0000, 0x900_0000), None),
            Err(BadTable::Fds)
        ));
        assert!(
            table
                .replace(&[region(0, 0)], [memfd(0x10000), memfd(0x10000)])
                .is_err()
        );
        assert!(table.guest_address(0xffff).is_some());
    }
}
