//! A transmit queue: frames that the driver sends.
//!
//! Header and head of a frame are copied out and checked, some frames at a time; the tail stays in guest memory until the
//! one copy to where it goes.

use std::array;
use std::cell::Cell;

use super::features::Features;
use super::frame::{Frame, HEAD, MAX_FRAME};
use super::header::{HEADER_LEN, NetHeader};
use super::memory::Slice;
use super::ring::{Chain, Fault, Ring};

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Taken, or dropped for good: the driver gets its buffer back.
    Done,
    /// The other side is full: the frame stays in the ring and the turn ends.
    Busy,
}

/// What a turn over a transmit queue did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxTurn {
    /// Frames handed to the sink and taken.
    pub frames: usize,
    /// Chains without a valid frame, given back unsent.
    pub malformed: usize,
    /// The sink was full.
    pub busy: bool,
}

/// What may still be done in a turn, in small frames. It may end in debt: what is begun is done.
#[derive(Debug)]
pub struct Credit(Cell<i64>);

impl Credit {
    /// So much.
    #[must_use]
    pub fn new(units: usize) -> Self {
        Self::from_left(i64::try_from(units).unwrap_or(i64::MAX))
    }

    /// As much as was [`Credit::left`].
    #[must_use]
    pub fn from_left(left: i64) -> Self {
        Self(Cell::new(left))
    }

    /// How much there is, less than nothing after a frame that cost more.
    #[must_use]
    pub fn left(&self) -> i64 {
        self.0.get()
    }

    /// Takes some.
    pub fn spend(&self, units: usize) {
        let units = i64::try_from(units).unwrap_or(i64::MAX);
        self.0.set(self.0.get().saturating_sub(units));
    }
}

/// What it costs to move one frame of `bytes` that lies in so many descriptors, in small frames: a cold copy of 2 KiB, or
/// a walk over sixteen descriptors, takes about as long as one.
#[must_use]
pub const fn cost(bytes: usize, descriptors: usize) -> usize {
    // What is longer than any frame is not copied.
    let copied = if bytes > HEADER_LEN + MAX_FRAME {
        0
    } else {
        bytes
    };
    1 + copied / 2048 + descriptors / 16
}

/// Frames whose beginnings are copied before the first of them goes on.
const TOGETHER: usize = 16;

/// A transmit queue.
#[derive(Debug)]
pub struct Tx {
    ring: Ring,
    features: Features,
    copied: Box<[Copied; TOGETHER]>,
}

/// The beginning of a frame, out of reach of the driver.
#[derive(Debug)]
struct Copied {
    chain: Chain,
    /// Bytes of the frame; `None` when the chain holds none.
    len: Option<usize>,
    /// Pieces that are wholly in `linear`.
    whole: usize,
    linear: [u8; HEADER_LEN + HEAD],
}

impl Tx {
    pub(super) fn new(ring: Ring, features: Features) -> Self {
        let nothing = |_| Copied {
            chain: Chain::default(),
            len: None,
            whole: 0,
            linear: [0; HEADER_LEN + HEAD],
        };
        Self {
            ring,
            features,
            copied: Box::new(array::from_fn(nothing)),
        }
    }

    /// The ring, to arm and publish it.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    pub(super) fn ring_ref(&self) -> &Ring {
        &self.ring
    }

    pub(super) fn into_ring(self) -> Ring {
        self.ring
    }

    /// Hands frames that [`cost`] up to `budget` to `sink`: so many small ones, fewer that are large. Completed chains are
    /// seen by the driver after [`Ring::publish`].
    ///
    /// # Errors
    /// When the driver broke the ring.
    pub fn turn(
        &mut self,
        budget: usize,
        sink: impl FnMut(&Frame<'_>) -> Sent,
    ) -> Result<TxTurn, Fault> {
        self.turn_within(&Credit::new(budget), sink)
    }

    /// Hands frames to `sink` as long as there is credit, of which each takes its [`cost`]. The sink may take some too,
    /// for what it has to do beyond one copy.
    ///
    /// # Errors
    /// When the driver broke the ring.
    pub fn turn_within(
        &mut self,
        credit: &Credit,
        mut sink: impl FnMut(&Frame<'_>) -> Sent,
    ) -> Result<TxTurn, Fault> {
        let mut turn = TxTurn::default();
        while credit.left() > 0 {
            let count = self.copy_next(credit)?;
            if count == 0 {
                break;
            }
            for copied in self.copied.iter().take(count) {
                if credit.left() <= 0 {
                    // The sink took it. Copying has trimmed the pieces: they are walked anew the next time.
                    self.ring.rewind();
                    break;
                }
                match copied.frame(&self.ring) {
                    None => turn.malformed += 1,
                    Some(frame) => match sink(&frame) {
                        Sent::Done => turn.frames += 1,
                        Sent::Busy => {
                            self.ring.rewind();
                            turn.busy = true;
                            return Ok(turn);
                        }
                    },
                }
                credit.spend(copied.cost());
                self.ring.complete(copied.chain, 0);
            }
        }
        Ok(turn)
    }

    /// Copies the beginnings of the next frames, of as many as there is credit for; how many.
    ///
    /// Several before the first of them goes on: what has just been copied out is not read again (loads that span
    /// several stores wait for them) while the last frame is still on its way into its receiver's memory.
    fn copy_next(&mut self, credit: &Credit) -> Result<usize, Fault> {
        let left = Credit::from_left(credit.left());
        let mut count = 0;
        for copied in self.copied.iter_mut() {
            if left.left() <= 0 {
                break;
            }
            let Some(chain) = self.ring.peek(count)? else {
                break;
            };
            copied.chain = chain;
            copied.len = copied.copy(self.features, self.ring.pieces(chain));
            left.spend(copied.cost());
            count += 1;
        }
        Ok(count)
    }
}

impl Copied {
    fn cost(&self) -> usize {
        cost(self.chain.bytes, self.chain.descriptors)
    }

    /// Copies header and head of the frame in its chain; its length, or `None` when it is none: too short, too long, or with
    /// a header that is refused.
    fn copy(&mut self, features: Features, pieces: &mut [Slice]) -> Option<usize> {
        let header_len = features.header_len();
        let len = self.chain.bytes.checked_sub(header_len)?;
        if !(14..=MAX_FRAME).contains(&len) {
            return None;
        }
        // A short (legacy) header leaves the two bytes of num_buffers out.
        let gap = HEADER_LEN - header_len;
        let linear = &mut self.linear[gap..HEADER_LEN + HEAD.min(len)];
        let mut at = 0;
        self.whole = 0;
        for piece in pieces {
            let n = piece.read(&mut linear[at..]);
            at += n;
            if n < piece.len() {
                piece.advance(n);
                break;
            }
            self.whole += 1;
        }
        if gap > 0 {
            self.linear.copy_within(gap..HEADER_LEN, 0);
        }
        let mut raw = [0; HEADER_LEN];
        raw.copy_from_slice(&self.linear[..HEADER_LEN]);
        let header = NetHeader::checked(&raw, len, features).ok()?;
        self.linear[..HEADER_LEN].copy_from_slice(&header.encode());
        Some(len)
    }

    /// The frame, if it is one.
    fn frame<'a>(&'a self, ring: &'a Ring) -> Option<Frame<'a>> {
        let len = self.len?;
        let head = HEAD.min(len);
        let tail = ring.pieces_ref(self.chain);
        let tail = tail.get(self.whole..).unwrap_or_default();
        Frame::with_tail(&self.linear[..HEADER_LEN + head], tail, len - head)
    }
}
