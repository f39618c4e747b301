//! The dirty page log of a live migration: one bit for each 4 KiB page that the device wrote.
#![allow(
    unsafe_code,
    reason = "the log is memory shared with the process that migrates, written with atomic or"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::MmapRegion;

const PAGE_SHIFT: u32 = 12;

/// A mapped log. The frontend reads and clears it while we set bits.
#[derive(Debug)]
pub struct DirtyLog {
    region: MmapRegion,
}

impl DirtyLog {
    /// A log over shared memory.
    #[must_use]
    pub fn new(region: MmapRegion) -> Self {
        Self { region }
    }

    /// The memory.
    #[must_use]
    pub fn region(&self) -> &MmapRegion {
        &self.region
    }

    /// Marks `[addr, addr + len)` as written. What lies beyond the log is not marked: the frontend made the log too
    /// small, which harms its own migration only.
    pub fn mark(&self, addr: u64, len: u64) {
        if len == 0 {
            return;
        }
        let last = addr.saturating_add(len - 1) >> PAGE_SHIFT;
        for page in addr >> PAGE_SHIFT..=last {
            if !self.mark_page(page) {
                return;
            }
        }
    }

    /// Whether a page was marked and not taken since.
    #[cfg(test)]
    pub(crate) fn is_marked(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64).expect("small");
        // SAFETY: tests ask for pages that the log has.
        let word = unsafe { &*self.region.as_ptr().cast::<AtomicU64>().add(word) };
        u64::from_le(word.load(Ordering::Acquire)) & 1 << (page % 64) != 0
    }

    fn mark_page(&self, page: u64) -> bool {
        let Ok(word) = usize::try_from(page / 64) else {
            return false;
        };
        if (word + 1) * 8 > self.region.size() {
            return false;
        }
        // SAFETY: the word is inside the mapping, which is page aligned and lives as long as `region`.
        let word = unsafe { &*self.region.as_ptr().cast::<AtomicU64>().add(word) };
        let bit = (1u64 << (page % 64)).to_le();
        // The data is in place before its bit is set.
        word.fetch_or(bit, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(log: &DirtyLog, index: usize) -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: the tests ask for words inside the mapping only.
        unsafe {
            std::ptr::copy_nonoverlapping(
                log.region.as_ptr().add(8 * index),
                bytes.as_mut_ptr(),
                8,
            );
        }
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn each_touched_page_is_marked() {
        let log = DirtyLog::new(MmapRegion::new(4096).expect("mapping"));
        log.mark(0x1000, 1);
        log.mark(0x3fff, 2);
        log.mark(64 * 4096, 4096);
        assert_eq!(word(&log, 0), 0b1_1010);
        assert_eq!(word(&log, 1), 1);
    }

    #[test]
    fn a_log_that_is_too_small_is_left_alone() {
        let log = DirtyLog::new(MmapRegion::new(4096).expect("mapping"));
        log.mark(4096 * 8 * 4096, 1);
        log.mark(u64::MAX - 10, 100);
        assert!((0..512).all(|i| word(&log, i) == 0));
    }
}
