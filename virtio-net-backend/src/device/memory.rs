//! Guest memory as the device sees it: addresses are translated once, then bytes are copied by checked slices.
//!
//! Not an owner of mappings (that is `vm-memory`), and never a Rust reference into guest memory: the guest writes
//! there while we read, so everything goes through raw pointers and copies.
#![allow(
    unsafe_code,
    reason = "copies between private memory and guest memory that other processors write at the same time"
)]

use std::ptr::{self, NonNull};
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// The guest's memory with a table for quick translation.
#[derive(Debug)]
pub struct Memory {
    map: GuestMemoryMmap,
    regions: Vec<Region>,
}

#[derive(Debug)]
struct Region {
    start: u64,
    len: u64,
    host: NonNull<u8>,
}

// SAFETY: the pointers lead into mappings that `map` owns and keeps; all access through them is by copies that
// tolerate other writers.
unsafe impl Send for Memory {}
// SAFETY: as above; `Memory` itself is never written after construction.
unsafe impl Sync for Memory {}

impl Memory {
    /// Takes hold of `map`; regions keep mapped as long as this lives.
    #[must_use]
    pub fn new(map: GuestMemoryMmap) -> Arc<Self> {
        let regions = map
            .iter()
            .filter_map(|region| {
                Some(Region {
                    start: region.start_addr().0,
                    len: region.len(),
                    host: NonNull::new(region.as_ptr())?,
                })
            })
            .collect();
        Arc::new(Self { map, regions })
    }

    /// The `vm-memory` view of the same memory, for paths where speed does not matter.
    #[must_use]
    pub fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// The longest piece of `[addr, addr + len)` that starts at `addr` and lies in one region.
    /// `None` when `addr` is not guest memory or `len` is zero.
    #[must_use]
    pub fn piece(&self, addr: u64, len: usize) -> Option<Slice> {
        if len == 0 {
            return None;
        }
        let region = self
            .regions
            .iter()
            .find(|r| addr.wrapping_sub(r.start) < r.len)?;
        let offset = usize::try_from(addr - region.start).ok()?;
        let room = usize::try_from(region.len).ok()? - offset;
        // SAFETY: offset < region.len, so the sum stays inside the mapping the region describes.
        let ptr = unsafe { region.host.add(offset) };
        Some(Slice {
            ptr,
            len: len.min(room),
        })
    }

    /// `[addr, addr + len)` when all of it lies in one region, as rings must.
    #[must_use]
    pub fn whole(&self, addr: u64, len: usize) -> Option<Slice> {
        self.piece(addr, len).filter(|slice| slice.len == len)
    }

    /// Appends the pieces of `[addr, addr + len)` to `out`; false when any byte is outside guest memory.
    /// An empty range is fine and adds nothing.
    #[must_use]
    pub fn pieces(&self, mut addr: u64, mut len: usize, out: &mut Vec<Slice>) -> bool {
        while len > 0 {
            let Some(slice) = self.piece(addr, len) else {
                return false;
            };
            let Some(next) = addr.checked_add(slice.len as u64) else {
                return false;
            };
            len -= slice.len;
            addr = next;
            out.push(slice);
        }
        true
    }

    /// The guest address behind `slice`, which must come from this memory.
    #[must_use]
    pub fn address_of(&self, slice: &Slice) -> Option<u64> {
        let at = slice.ptr.as_ptr() as u64;
        self.regions.iter().find_map(|r| {
            let offset = at.wrapping_sub(r.host.as_ptr() as u64);
            (offset < r.len).then(|| r.start + offset)
        })
    }

    /// Whether `addr` is guest memory.
    #[must_use]
    pub fn contains(&self, addr: u64) -> bool {
        self.map.address_in_range(GuestAddress(addr))
    }
}

/// A piece of guest memory. It cannot be cloned and is handed out only behind a reference, so it cannot outlive
/// the ring (and the [`Memory`]) that it came from.
#[derive(Debug)]
pub struct Slice {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a slice is a checked address; every access is a copy that tolerates other writers.
unsafe impl Send for Slice {}

impl Slice {
    /// Bytes in this piece.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is left of it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pointer and length, for an iovec. The kernel checks nothing, so the length must not be enlarged.
    #[must_use]
    pub fn as_raw(&self) -> (*mut u8, usize) {
        (self.ptr.as_ptr(), self.len)
    }

    /// Copies from the start of the piece; returns how many bytes were copied.
    pub fn read(&self, into: &mut [u8]) -> usize {
        let n = into.len().min(self.len);
        // SAFETY: n bytes are inside both the mapping and `into`; private and guest memory do not overlap.
        unsafe { ptr::copy_nonoverlapping(self.ptr.as_ptr(), into.as_mut_ptr(), n) };
        n
    }

    /// Copies to `offset` in the piece; returns how many bytes were copied.
    pub fn write(&self, offset: usize, from: &[u8]) -> usize {
        let n = from.len().min(self.len.saturating_sub(offset));
        if n > 0 {
            // SAFETY: offset + n <= len, inside the mapping; private and guest memory do not overlap.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.ptr.as_ptr().add(offset), n) };
        }
        n
    }

    /// Has `from` at the start of the piece, and writes only where that is not so already: a line that nobody writes stays
    /// in the caches of both processors. Returns how many bytes of it there was room for.
    #[inline]
    pub fn assure<const N: usize>(&self, from: &[u8; N]) -> usize {
        let mut there = [0; N];
        if self.read(&mut there) == N && there == *from {
            return N;
        }
        self.write(0, from)
    }

    /// Copies from another piece (of another guest, or the same) to `offset`; returns how many bytes were copied.
    pub fn write_from(&self, offset: usize, from: &Slice, skip: usize) -> usize {
        let n = from
            .len
            .saturating_sub(skip)
            .min(self.len.saturating_sub(offset));
        if n > 0 {
            // SAFETY: both ranges lie inside their mappings; `copy` allows that a guest aims both at one place.
            unsafe {
                ptr::copy(
                    from.ptr.as_ptr().add(skip),
                    self.ptr.as_ptr().add(offset),
                    n,
                )
            };
        }
        n
    }

    /// Starts loading the first bytes into the cache.
    #[inline]
    pub fn prefetch(&self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch of any address has no effect that a program can see.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.ptr.as_ptr().cast());
            _mm_prefetch::<_MM_HINT_T0>(self.ptr.as_ptr().wrapping_add(64).cast());
        }
    }

    /// Drops the first `n` bytes (all of it when there are fewer).
    pub fn advance(&mut self, n: usize) {
        let n = n.min(self.len);
        // SAFETY: n <= len, so the pointer stays inside the mapping or one past its end.
        self.ptr = unsafe { self.ptr.add(n) };
        self.len -= n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestRegionMmap, MmapRegion};

    fn memory(protection: i32) -> Arc<Memory> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let region = MmapRegion::build(None, 4096, protection, flags).expect("mapping");
        let region = GuestRegionMmap::new(region, GuestAddress(0)).expect("fits");
        Memory::new(GuestMemoryMmap::from_regions(vec![region]).expect("one region"))
    }

    #[test]
    fn what_is_there_already_is_not_written() {
        // A write would be the end of this process.
        let memory = memory(libc::PROT_READ);
        assert_eq!(memory.whole(8, 16).expect("inside").assure(&[0; 12]), 12);
    }

    #[test]
    fn what_differs_is_written_as_far_as_there_is_room() {
        let memory = memory(libc::PROT_READ | libc::PROT_WRITE);
        let read = |len| {
            let mut bytes = vec![0; len];
            memory.whole(0, len).expect("inside").read(&mut bytes);
            bytes
        };
        assert_eq!(memory.whole(0, 64).expect("inside").assure(&[1, 2, 3]), 3);
        assert_eq!(read(4), [1, 2, 3, 0]);
        // The beginning is the same, and there is no room for what is not.
        assert_eq!(memory.whole(0, 3).expect("inside").assure(&[1, 2, 3, 9]), 3);
        assert_eq!(memory.whole(0, 2).expect("inside").assure(&[7, 7, 7]), 2);
        assert_eq!(read(4), [7, 7, 3, 0]);
    }
}
