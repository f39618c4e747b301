//! A receive queue: frames toward the driver.

use super::features::Features;
use super::frame::Frame;
use super::header::{F_DATA_VALID, HEADER_LEN};
use super::memory::Slice;
use super::ring::{Fault, Ring};

/// What became of a frame toward a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is in the driver's buffers, seen after [`Ring::publish`].
    Done,
    /// The driver has not made enough buffers available: try again, or drop.
    NoBuffers,
    /// It fits in none of the driver's buffers: dropped.
    TooLong,
}

/// A receive queue.
#[derive(Debug)]
pub struct Rx {
    ring: Ring,
    features: Features,
}

impl Rx {
    pub(super) fn new(ring: Ring, features: Features) -> Self {
        Self { ring, features }
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

    /// Whether the driver has made a buffer available.
    ///
    /// # Errors
    /// When the driver broke the ring.
    pub fn has_buffers(&mut self) -> Result<bool, Fault> {
        Ok(self.ring.peek(0)?.is_some())
    }

    /// Copies a frame into the driver's buffers.
    ///
    /// # Errors
    /// When the driver broke the ring.
    #[inline]
    pub fn push(&mut self, frame: &Frame<'_>) -> Result<Received, Fault> {
        let total = self.features.header_len() + frame.len();
        let Some(chain) = self.ring.peek(0)? else {
            return Ok(Received::NoBuffers);
        };
        if chain.bytes < total {
            return self.push_merged(frame, total);
        }
        let vouches = self.must_not_vouch(frame);
        let ring = &mut self.ring;
        if vouches {
            let mut header = header_of(frame);
            header[0] &= !F_DATA_VALID;
            let header = &header[..self.features.header_len()];
            let source = Source::new([header, frame.head()], frame.tail());
            fill_all(ring.pieces(chain), source);
        } else {
            copy_to_chain(self.features, ring.pieces(chain), frame);
        }
        if ring.is_logged() {
            let mut left = total;
            for piece in ring.pieces_ref(chain) {
                let written = left.min(piece.len());
                ring.log_write(piece, written);
                left -= written;
            }
        }
        self.ring
            .complete(chain, u32::try_from(total).unwrap_or(u32::MAX));
        Ok(Received::Done)
    }

    /// Whether the frame says that its checksum was verified, to a driver that does not know what that means (virtio
    /// 1.2, 5.1.6.4.1: the bit is for drivers with GUEST_CSUM).
    #[inline]
    fn must_not_vouch(&self, frame: &Frame<'_>) -> bool {
        frame.linear()[0] & F_DATA_VALID != 0 && !self.features.has(Features::GUEST_CSUM)
    }

    /// A frame that needs more than one chain.
    fn push_merged(&mut self, frame: &Frame<'_>, total: usize) -> Result<Received, Fault> {
        if !self.features.has(Features::MRG_RXBUF) {
            return Ok(Received::TooLong);
        }
        let mut room = 0;
        let mut count = 0;
        while room < total {
            match self.ring.peek(count)? {
                Some(chain) if chain.bytes > 0 => room += chain.bytes,
                // An empty buffer holds nothing; a ring of them must not be searched for ever.
                Some(_) => return Ok(Received::TooLong),
                None => return Ok(Received::NoBuffers),
            }
            count += 1;
        }
        let mut linear = header_of(frame);
        if self.must_not_vouch(frame) {
            linear[0] &= !F_DATA_VALID;
        }
        let buffers = u16::try_from(count).unwrap_or(u16::MAX);
        linear[10..].copy_from_slice(&buffers.to_le_bytes());
        let mut source = Source::new([&linear, frame.head()], frame.tail());
        let mut left = total;
        for _ in 0..count {
            let Some(chain) = self.ring.peek(0)? else {
                return Err(Fault::IndexJump);
            };
            for piece in self.ring.pieces_ref(chain) {
                let written = source.fill(piece);
                self.ring.log_write(piece, written);
            }
            let written = left.min(chain.bytes);
            left -= written;
            self.ring
                .complete(chain, u32::try_from(written).unwrap_or(u32::MAX));
        }
        Ok(Received::Done)
    }
}

fn header_of(frame: &Frame<'_>) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header.copy_from_slice(&frame.linear()[..HEADER_LEN]);
    header
}

/// Copies header and frame to one chain that is large enough.
#[inline]
fn copy_to_chain(features: Features, pieces: &[Slice], frame: &Frame<'_>) {
    let linear = frame.linear();
    if features.header_len() == HEADER_LEN {
        if let [only] = pieces {
            // A driver that used the buffer before often finds the header as it left it.
            let mut at = only.assure(&header_of(frame));
            at += only.write(at, frame.head());
            for slice in frame.tail() {
                at += only.write_from(at, slice, 0);
            }
            return;
        }
        fill_all(pieces, Source::new([linear, &[]], frame.tail()));
    } else {
        fill_all(
            pieces,
            Source::new([&linear[..10], frame.head()], frame.tail()),
        );
    }
}

fn fill_all(pieces: &[Slice], mut source: Source<'_>) {
    for piece in pieces {
        source.fill(piece);
    }
}

/// What is still to be copied of a frame.
struct Source<'a> {
    private: [&'a [u8]; 2],
    tail: &'a [Slice],
    /// Bytes of the first tail piece that are already copied.
    skip: usize,
}

impl<'a> Source<'a> {
    fn new(private: [&'a [u8]; 2], tail: &'a [Slice]) -> Self {
        Self {
            private,
            tail,
            skip: 0,
        }
    }

    /// Fills a piece as far as there is something; how far that was.
    fn fill(&mut self, piece: &Slice) -> usize {
        let mut at = 0;
        for part in &mut self.private {
            let n = piece.write(at, part);
            *part = &part[n..];
            at += n;
        }
        while at < piece.len() {
            let Some((first, rest)) = self.tail.split_first() else {
                break;
            };
            let n = piece.write_from(at, first, self.skip);
            at += n;
            self.skip += n;
            if self.skip >= first.len() {
                self.tail = rest;
                self.skip = 0;
            }
        }
        at
    }
}
