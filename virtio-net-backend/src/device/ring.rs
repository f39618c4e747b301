//! The device's side of a split ring, for the data path.
//!
//! `virtio_queue::Queue` translates each ring access anew and publishes used entries one at a time (measured: the
//! larger half of a peer's CPU a frame, see `docs/decisions/own-ring-access.md`). Here the three parts are
//! translated once when the ring starts, chains are walked a batch ahead so that cache misses overlap, and the used
//! index is published once a batch. `virtio_queue` still validates the set-up, holds the snapshot type and serves
//! the control queue.
//!
//! A driver that breaks the rules (index jumps, loops, addresses outside memory) breaks its ring: [`Fault`] is
//! returned, and nothing more is read until the transport sets the ring up again.
#![allow(
    unsafe_code,
    reason = "reads and writes ring fields that the driver changes at the same time"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring as vr;
use virtio_queue::{Queue, QueueState, QueueT};

use super::dirty::DirtyLog;
use super::inflight::Inflight;
use super::memory::{Memory, Slice};

/// Most entries of a ring.
pub const MAX_SIZE: u16 = 1024;
/// Chains walked ahead.
const AHEAD: usize = 32;
/// No more chains are walked ahead while so many pieces wait.
const PIECES: usize = 2048;

#[allow(
    clippy::cast_possible_truncation,
    reason = "the bindings give two-byte fields as u32"
)]
const fn word(value: u32) -> u16 {
    value as u16
}

const NEXT: u16 = word(vr::VRING_DESC_F_NEXT);
const WRITE: u16 = word(vr::VRING_DESC_F_WRITE);
const INDIRECT: u16 = word(vr::VRING_DESC_F_INDIRECT);
const NO_INTERRUPT: u16 = word(vr::VRING_AVAIL_F_NO_INTERRUPT);
const NO_NOTIFY: u16 = word(vr::VRING_USED_F_NO_NOTIFY);

/// How a driver broke its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The set-up is not a ring in guest memory.
    #[error("ring set-up is invalid")]
    Setup,
    /// The available index moved further than the ring is long.
    #[error("available index jumped")]
    IndexJump,
    /// A descriptor number beyond the table.
    #[error("descriptor number beyond the table")]
    DescriptorNumber,
    /// A chain longer than the ring, or one that loops.
    #[error("descriptor chain too long")]
    ChainTooLong,
    /// A table of descriptors that is nested, empty, misshapen or outside memory.
    #[error("bad indirect table")]
    IndirectTable,
    /// A buffer outside guest memory.
    #[error("buffer outside guest memory")]
    OutsideMemory,
    /// A device-readable buffer where the device must write.
    #[error("buffer has the wrong direction")]
    Direction,
}

/// Which descriptors of a chain count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The device reads (transmit queues); writable descriptors are passed over.
    Read,
    /// The device writes (receive queues); a readable descriptor is a fault.
    Write,
}

/// A walked chain: where its pieces are in the ring's list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chain {
    /// Number of the first descriptor.
    pub head: u16,
    /// Bytes in all pieces.
    pub bytes: usize,
    /// Descriptors that were read for it, also those that carry nothing.
    pub descriptors: usize,
    from: usize,
    to: usize,
}

/// A running split ring.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<Memory>,
    setup: QueueState,
    side: Side,
    size: u16,
    desc: *const RawDescriptor,
    avail: *const AtomicU16,
    used: *const AtomicU16,
    /// Next entry of the available ring to walk.
    next_avail: u16,
    /// The available index as last read.
    avail_seen: u16,
    /// Next entry of the used ring to write.
    next_used: u16,
    /// The used index that the driver sees.
    published: u16,
    event_idx: bool,
    chains: Vec<Chain>,
    /// First of `chains` that was not consumed.
    first: usize,
    pieces: Vec<Slice>,
    log: Option<Arc<DirtyLog>>,
    /// Guest address under which writes to the used ring are logged.
    log_used: Option<u64>,
    inflight: Option<Inflight>,
    /// Chains that a predecessor left, newest first; walked before any other.
    left: Vec<u16>,
}

// SAFETY: the pointers lead into mappings that `memory` keeps; only this value uses them on the device's side.
unsafe impl Send for Ring {}

#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct RawDescriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Ring {
    /// Starts a ring.
    ///
    /// # Errors
    /// [`Fault::Setup`] when size, alignment or place are not those of a ring.
    pub fn start(memory: Arc<Memory>, setup: QueueState, side: Side) -> Result<Self, Fault> {
        let size = usize::from(setup.size);
        let queue = Queue::try_from(setup).map_err(|_| Fault::Setup)?;
        if setup.size == 0 || setup.size > MAX_SIZE || !queue.is_valid(memory.map()) {
            return Err(Fault::Setup);
        }
        let part = |addr: u64, len: usize, align: usize| {
            let (ptr, _) = memory.whole(addr, len).ok_or(Fault::Setup)?.as_raw();
            if ptr.align_offset(align) == 0 {
                Ok(ptr)
            } else {
                Err(Fault::Setup)
            }
        };
        let desc = part(setup.desc_table, 16 * size, 16)?.cast::<RawDescriptor>();
        let avail = part(setup.avail_ring, 6 + 2 * size, 2)?.cast::<AtomicU16>();
        let used = part(setup.used_ring, 6 + 8 * size, 4)?.cast::<AtomicU16>();
        Ok(Self {
            desc,
            avail,
            used,
            size: setup.size,
            next_avail: setup.next_avail,
            avail_seen: setup.next_avail,
            next_used: setup.next_used,
            published: setup.next_used,
            event_idx: setup.event_idx_enabled,
            chains: Vec::with_capacity(AHEAD),
            first: 0,
            pieces: Vec::with_capacity(4 * AHEAD),
            log: None,
            log_used: None,
            inflight: None,
            left: Vec::new(),
            memory,
            setup,
            side,
        })
    }

    /// The state with which the ring can be started again, here or elsewhere. Chains that were walked but not
    /// consumed are given back.
    #[must_use]
    pub fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.next_avail.wrapping_sub(self.waiting()),
            next_used: self.next_used,
            ..self.setup
        }
    }

    /// Stops for good, in order: what was walked and not consumed is given back, in the record of chains in flight too.
    /// A driver that sets the ring up anew, with the same record, must not meet chains that are no longer in flight.
    #[must_use]
    pub fn stop(mut self) -> QueueState {
        let state = self.state();
        if let Some(inflight) = &mut self.inflight {
            // Newest first: killed in between, what is left is still the oldest without a gap.
            let walked = self.chains.iter().skip(self.first).rev();
            let heads = self.left.iter().copied();
            for head in heads.chain(walked.map(|chain| chain.head)) {
                inflight.given_back(head);
            }
        }
        state
    }

    /// Logs writes to buffers and, where [`Ring::set_log_used`] said so, to the used ring from here on.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>) {
        self.log = log;
    }

    /// The guest address under which writes to the used ring are logged.
    pub fn set_log_used(&mut self, log_used: Option<u64>) {
        self.log_used = log_used;
    }

    /// Keeps a record of chains in flight. What a predecessor left is walked first, and the available index follows
    /// from it: all that was given back plus all that is in flight.
    pub fn set_inflight(&mut self, mut inflight: Inflight) {
        let mut left = inflight.recover(self.next_used);
        left.retain(|&head| head < self.size);
        let taken = u16::try_from(left.len()).unwrap_or(0);
        self.next_avail = self.next_used.wrapping_add(taken);
        self.avail_seen = self.next_avail;
        left.reverse();
        self.left = left;
        self.inflight = Some(inflight);
    }

    /// The chain at `ahead` places after the next one, walked but not consumed. `None` when the driver has made no
    /// more available.
    ///
    /// # Errors
    /// When the driver broke the ring.
    #[inline]
    pub fn peek(&mut self, ahead: usize) -> Result<Option<Chain>, Fault> {
        if self.first + ahead >= self.chains.len() {
            self.walk_ahead(ahead)?;
        }
        Ok(self.chains.get(self.first + ahead).copied())
    }

    /// The pieces of a chain from [`Ring::peek`].
    #[inline]
    #[must_use]
    pub fn pieces(&mut self, chain: Chain) -> &mut [Slice] {
        self.pieces
            .get_mut(chain.from..chain.to)
            .unwrap_or_default()
    }

    /// The same, to read.
    #[inline]
    #[must_use]
    pub fn pieces_ref(&self, chain: Chain) -> &[Slice] {
        self.pieces.get(chain.from..chain.to).unwrap_or_default()
    }

    /// Forgets the chains that were walked ahead; they are walked anew, in the same order.
    pub fn rewind(&mut self) {
        let waiting = self.chains.iter().skip(self.first).rev();
        self.left.extend(waiting.map(|chain| chain.head));
        self.forget_walked();
    }

    /// Gives the next chain back to the driver with `written` bytes in it; the driver sees it after
    /// [`Ring::publish`].
    #[inline]
    pub fn complete(&mut self, chain: Chain, written: u32) {
        self.first += 1;
        if self.first >= self.chains.len() {
            self.forget_walked();
        }
        let slot = 2 + 4 * usize::from(self.next_used & (self.size - 1));
        let entry = (u64::from(written) << 32) | u64::from(chain.head);
        // SAFETY: slot < 2 + 4 * size, so the 8-byte entry is inside the used ring; it is 4-byte aligned, hence the
        // unaligned write.
        unsafe {
            self.used
                .add(slot)
                .cast::<u64>()
                .cast_mut()
                .write_unaligned(entry.to_le())
        };
        self.log_fields(slot, 4);
        if let Some(inflight) = &mut self.inflight {
            inflight.completed(chain.head);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all completed chains at once. True when it wants to be interrupted for that.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.published = new;
        self.used_field(1).store(new.to_le(), Ordering::Release);
        self.log_fields(1, 1);
        if let Some(inflight) = &mut self.inflight {
            inflight.published(new);
        }
        // The index must be visible before we look whether the driver wants to know (virtio 1.2, 2.7.7.2).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = u16::from_le(
                self.avail_field(2 + usize::from(self.size))
                    .load(Ordering::Relaxed),
            );
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u16::from_le(self.avail_field(0).load(Ordering::Relaxed)) & NO_INTERRUPT == 0
        }
    }

    /// Asks the driver for a kick at the next chain. True when there is something to do already, for which no kick may
    /// come: a chain that was not walked yet, or a frame that nobody has taken.
    ///
    /// # Errors
    /// When the available index jumped.
    pub fn arm(&mut self) -> Result<bool, Fault> {
        if self.event_idx {
            let at = 2 + 4 * usize::from(self.size);
            self.used_field(at)
                .store(self.next_avail.to_le(), Ordering::Relaxed);
            self.log_fields(at, 1);
        } else {
            self.used_field(0).store(0, Ordering::Relaxed);
            self.log_fields(0, 1);
        }
        // The wish must be visible before we look a last time (virtio 1.2, 2.7.10.1).
        fence(Ordering::SeqCst);
        // Buffers that were walked ahead wait for a frame, which comes from elsewhere.
        Ok(self.available()? > 0 || (self.side == Side::Read && self.waiting() > 0))
    }

    /// Tells the driver that no kick is needed: we are looking anyway.
    pub fn disarm(&mut self) {
        if !self.event_idx {
            self.used_field(0)
                .store(NO_NOTIFY.to_le(), Ordering::Relaxed);
            self.log_fields(0, 1);
        }
    }

    /// Marks the first `written` bytes of a piece for a migration. What was not written is not marked: a driver may say
    /// that each of its buffers is gigabytes long.
    pub fn log_write(&self, piece: &Slice, written: usize) {
        if let Some(log) = &self.log
            && let Some(addr) = self.memory.address_of(piece)
        {
            log.mark(addr, written.min(piece.len()) as u64);
        }
    }

    /// Whether writes are being logged.
    #[must_use]
    pub fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// Chains taken from the available ring but not consumed.
    fn waiting(&self) -> u16 {
        u16::try_from(self.chains.len() - self.first + self.left.len()).unwrap_or(u16::MAX)
    }

    fn forget_walked(&mut self) {
        self.chains.clear();
        self.pieces.clear();
        self.first = 0;
    }

    /// Chains made available and not yet walked.
    #[inline]
    fn available(&mut self) -> Result<u16, Fault> {
        let left = self.avail_seen.wrapping_sub(self.next_avail);
        if left > 0 {
            return Ok(left);
        }
        self.avail_seen = u16::from_le(self.avail_field(1).load(Ordering::Acquire));
        let left = self.avail_seen.wrapping_sub(self.next_avail);
        if left.wrapping_add(self.waiting()) > self.size {
            self.avail_seen = self.next_avail;
            return Err(Fault::IndexJump);
        }
        Ok(left)
    }

    /// Walks more chains until there are more than `ahead`, or a batch of them when the driver has so many.
    fn walk_ahead(&mut self, ahead: usize) -> Result<(), Fault> {
        let wanted = (self.first + ahead + 1).max(AHEAD);
        let mut walked = 0;
        while self.chains.len() < wanted
            && (self.pieces.len().max(walked) < PIECES || self.chains.len() <= self.first + ahead)
        {
            let Some(head) = self.next_head()? else {
                break;
            };
            let chain = self.walk(head)?;
            walked += chain.descriptors;
            if let Some(piece) = self.pieces.get(chain.from) {
                piece.prefetch();
            }
            self.chains.push(chain);
        }
        Ok(())
    }

    #[inline]
    fn next_head(&mut self) -> Result<Option<u16>, Fault> {
        if let Some(head) = self.left.pop() {
            return Ok(Some(head));
        }
        if self.available()? == 0 {
            return Ok(None);
        }
        let slot = 2 + usize::from(self.next_avail & (self.size - 1));
        let head = u16::from_le(self.avail_field(slot).load(Ordering::Relaxed));
        self.next_avail = self.next_avail.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight
            && head < self.size
        {
            inflight.taken(head);
        }
        Ok(Some(head))
    }

    fn walk(&mut self, head: u16) -> Result<Chain, Fault> {
        let from = self.pieces.len();
        let walked = self.walk_table(head);
        let descriptors = walked.inspect_err(|_| self.pieces.truncate(from))?;
        let to = self.pieces.len();
        let bytes = self.pieces.iter().skip(from).map(Slice::len).sum();
        Ok(Chain {
            head,
            bytes,
            descriptors,
            from,
            to,
        })
    }

    /// How many descriptors there were.
    fn walk_table(&mut self, head: u16) -> Result<usize, Fault> {
        let mut number = head;
        for count in 1..=usize::from(self.size) {
            if number >= self.size {
                return Err(Fault::DescriptorNumber);
            }
            // SAFETY: number < size, so the descriptor is inside the table, which is 16-byte aligned.
            let descriptor = unsafe { self.desc.add(usize::from(number)).read_volatile() };
            let flags = u16::from_le(descriptor.flags);
            if flags & INDIRECT != 0 {
                if flags & NEXT != 0 {
                    return Err(Fault::IndirectTable);
                }
                let (addr, len) = (u64::from_le(descriptor.addr), u32::from_le(descriptor.len));
                return self.walk_indirect(addr, len).map(|more| count + more);
            }
            self.add(&descriptor)?;
            if flags & NEXT == 0 {
                return Ok(count);
            }
            number = u16::from_le(descriptor.next);
        }
        Err(Fault::ChainTooLong)
    }

    fn walk_indirect(&mut self, addr: u64, len: u32) -> Result<usize, Fault> {
        let len = usize::try_from(len).map_err(|_| Fault::IndirectTable)?;
        let count = len / 16;
        if len == 0 || !len.is_multiple_of(16) || count > usize::from(MAX_SIZE) {
            return Err(Fault::IndirectTable);
        }
        let table = self.memory.whole(addr, len).ok_or(Fault::IndirectTable)?;
        let (base, _) = table.as_raw();
        let mut number = 0;
        for walked in 1..=count {
            // SAFETY: number < count, so the 16 bytes are inside the table; the driver may place it unaligned.
            let descriptor = unsafe { base.cast::<[u64; 2]>().add(number).read_unaligned() };
            let descriptor = RawDescriptor::from_words(descriptor);
            let flags = u16::from_le(descriptor.flags);
            if flags & INDIRECT != 0 {
                return Err(Fault::IndirectTable);
            }
            self.add(&descriptor)?;
            if flags & NEXT == 0 {
                return Ok(walked);
            }
            number = usize::from(u16::from_le(descriptor.next));
            if number >= count {
                return Err(Fault::DescriptorNumber);
            }
        }
        Err(Fault::ChainTooLong)
    }

    #[inline]
    fn add(&mut self, descriptor: &RawDescriptor) -> Result<(), Fault> {
        let writable = u16::from_le(descriptor.flags) & WRITE != 0;
        match (self.side, writable) {
            (Side::Read, true) => return Ok(()),
            (Side::Write, false) => return Err(Fault::Direction),
            (Side::Read, false) | (Side::Write, true) => {}
        }
        let len = u32::from_le(descriptor.len) as usize;
        if self
            .memory
            .pieces(u64::from_le(descriptor.addr), len, &mut self.pieces)
        {
            Ok(())
        } else {
            Err(Fault::OutsideMemory)
        }
    }

    #[inline]
    fn avail_field(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index < 3 + usize::from(self.size));
        // SAFETY: callers stay below 3 + size, the length of the available ring in 16-bit words.
        unsafe { &*self.avail.add(index) }
    }

    #[inline]
    fn used_field(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index < 3 + 4 * usize::from(self.size));
        // SAFETY: callers stay below 3 + 4 * size, the length of the used ring in 16-bit words.
        unsafe { &*self.used.add(index) }
    }

    /// Logs a write to so many 16-bit words of the used ring. The frontend says where that is, whatever that may be;
    /// what is nowhere is beyond every log.
    #[inline]
    fn log_fields(&self, index: usize, count: u64) {
        if let (Some(log), Some(used)) = (&self.log, self.log_used)
            && let Some(at) = used.checked_add(2 * index as u64)
        {
            log.mark(at, 2 * count);
        }
    }
}

impl RawDescriptor {
    fn from_words(words: [u64; 2]) -> Self {
        let second = u64::from_le(words[1]);
        Self {
            addr: words[0],
            len: ((second & 0xffff_ffff) as u32).to_le(),
            flags: ((second >> 32 & 0xffff) as u16).to_le(),
            next: ((second >> 48) as u16).to_le(),
        }
    }
}
