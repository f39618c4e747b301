//! Guest memory that is taken away while we use it (its file is truncated): the fault costs that guest its session, not
//! every guest of the process its network.
//!
//! Mapped ranges are listed in a static table. The handler of SIGBUS looks the faulting address up there, puts zero
//! pages over the whole range and marks it; the instruction is repeated and finds zeroes. Whoever polls sessions asks
//! [`Watched::is_lost`] and ends them.
#![allow(
    unsafe_code,
    reason = "a signal handler, and mmap over a range whose pages are gone"
)]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vm_memory::MmapRegion;

const SLOTS: usize = 4096;

struct Slot {
    /// Zero: the slot is free.
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; SLOTS];

/// Something was lost since [`take_any`] was last asked.
static ANY: AtomicBool = AtomicBool::new(false);

/// An entry of the table, for as long as the range is mapped.
#[derive(Debug)]
pub struct Watched(usize);

impl Watched {
    /// Lists a mapping. Drop this before the mapping.
    ///
    /// # Errors
    /// When the table is full: memory that is not listed must not be used.
    pub fn new(region: &MmapRegion) -> io::Result<Self> {
        Self::list(region).ok_or_else(|| io::Error::other("too many mappings"))
    }

    fn list(region: &MmapRegion) -> Option<Self> {
        let start = region.as_ptr() as usize;
        let at = TABLE.iter().position(|slot| {
            slot.start
                .compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })?;
        TABLE[at].lost.store(false, Ordering::Relaxed);
        TABLE[at].len.store(region.size(), Ordering::Release);
        Some(Self(at))
    }

    /// Whether the memory behind the mapping went away.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        TABLE[self.0].lost.load(Ordering::Acquire)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        TABLE[self.0].len.store(0, Ordering::Release);
        TABLE[self.0].start.store(0, Ordering::Release);
    }
}

/// Whether any memory was lost since the last call.
pub fn take_any() -> bool {
    ANY.load(Ordering::Relaxed) && ANY.swap(false, Ordering::AcqRel)
}

/// Installs the handler, once for the process.
///
/// # Errors
/// When the kernel refuses.
pub fn install() -> io::Result<()> {
    // SAFETY: a zeroed sigaction is valid; the handler is async-signal-safe: atomics, mmap and sigaction only.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

extern "C" fn handle(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to a handler that was installed with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let slot = TABLE.iter().find(|slot| {
        let len = slot.len.load(Ordering::Acquire);
        len > 0 && address.wrapping_sub(slot.start.load(Ordering::Acquire)) < len
    });
    if let Some(slot) = slot {
        let (start, len) = (
            slot.start.load(Ordering::Relaxed),
            slot.len.load(Ordering::Relaxed),
        );
        slot.lost.store(true, Ordering::Release);
        ANY.store(true, Ordering::Release);
        // SAFETY: the range is one of our own mappings, still owned by its `MmapRegion`, which unmaps it later; only
        // what is behind it changes.
        let mapped = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped != libc::MAP_FAILED {
            return;
        }
    }
    // Not ours: the next time it is fatal, as it should be.
    // SAFETY: resets one signal to its default.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::super::memory_table::MemoryTable;
    use super::super::message::MemoryRegion;
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    #[test]
    fn memory_that_is_truncated_reads_as_zero_and_is_reported() {
        install().expect("handler");
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, 0x10000).expect("length");
        let mut table = MemoryTable::default();
        let region = MemoryRegion {
            guest: 0,
            size: 0x10000,
            user: 0x1000_0000,
            offset: 0,
        };
        table
            .add(region, Some(fd.try_clone().expect("dup").into()))
            .expect("added");
        let memory = table.memory().expect("memory");
        let slice = memory.whole(0x8000, 4).expect("inside");
        slice.write(0, &[1, 2, 3, 4]);
        assert!(!table.is_lost());
        ftruncate(&fd, 0).expect("truncated");
        let mut bytes = [9; 4];
        slice.read(&mut bytes);
        assert_eq!(bytes, [0; 4]);
        assert!(table.is_lost() && take_any());
    }
}
