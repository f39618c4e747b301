//! A transmit queue: frames that the driver sends.
//!
//! Each frame is read in place: header and head are copied out and checked, the tail stays in guest memory until
//! the one copy to where it goes.

use super::features::Features;
use super::frame::{Frame, HEAD, MAX_FRAME};
use super::header::{HEADER_LEN, NetHeader};
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

/// A transmit queue.
#[derive(Debug)]
pub struct Tx {
    ring: Ring,
    features: Features,
    linear: Box<[u8; HEADER_LEN + HEAD]>,
}

impl Tx {
    pub(super) fn new(ring: Ring, features: Features) -> Self {
        Self {
            ring,
            features,
            linear: Box::new([0; HEADER_LEN + HEAD]),
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

    /// Hands up to `budget` frames to `sink`. Completed chains are seen by the driver after [`Ring::publish`].
    ///
    /// # Errors
    /// When the driver broke the ring.
    pub fn turn(
        &mut self,
        budget: usize,
        mut sink: impl FnMut(&Frame<'_>) -> Sent,
    ) -> Result<TxTurn, Fault> {
        let mut turn = TxTurn::default();
        while turn.frames + turn.malformed < budget {
            let Some(chain) = self.ring.peek(0)? else {
                break;
            };
            match self.read(chain) {
                None => turn.malformed += 1,
                Some(frame) => match sink(&frame) {
                    Sent::Done => turn.frames += 1,
                    Sent::Busy => {
                        // The pieces were trimmed for this frame: walk them anew the next time.
                        self.ring.rewind();
                        turn.busy = true;
                        break;
                    }
                },
            }
            self.ring.complete(chain, 0);
        }
        Ok(turn)
    }

    /// The frame in `chain`, or `None` when it is none: too short, too long, or with a header that is refused.
    fn read(&mut self, chain: Chain) -> Option<Frame<'_>> {
        let header_len = self.features.header_len();
        let len = chain.bytes.checked_sub(header_len)?;
        if !(14..=MAX_FRAME).contains(&len) {
            return None;
        }
        // A short (legacy) header leaves the two bytes of num_buffers out.
        let gap = HEADER_LEN - header_len;
        let linear = &mut self.linear[gap..HEADER_LEN + HEAD.min(len)];
        let pieces = self.ring.pieces(chain);
        let mut at = 0;
        let mut whole = 0;
        for piece in pieces.iter_mut() {
            let n = piece.read(&mut linear[at..]);
            at += n;
            if n < piece.len() {
                piece.advance(n);
                break;
            }
            whole += 1;
        }
        if gap > 0 {
            self.linear.copy_within(gap..HEADER_LEN, 0);
        }
        let mut raw = [0; HEADER_LEN];
        raw.copy_from_slice(&self.linear[..HEADER_LEN]);
        let header = NetHeader::checked(&raw, len, self.features).ok()?;
        self.linear[..HEADER_LEN].copy_from_slice(&header.encode());
        let linear = HEADER_LEN + HEAD.min(len);
        let tail = self.ring.pieces_ref(chain).get(whole..).unwrap_or_default();
        Frame::with_tail(&self.linear[..linear], tail, len - HEAD.min(len))
    }
}
