//! Frames that wait for a driver to make buffers available: a short queue a receive pair, as a kernel tap has one.
//!
//! Bounded in frames and bytes, so that a guest that takes nothing costs memory of fixed size and nobody's time: what
//! waits in all has a bound, beyond which a pair still has its share of as much again. So one pair may have all of it, and
//! leaves the others room; never is there more than twice as much. Memory counts as it is taken, not as it is filled.

use std::collections::VecDeque;

use crate::device::{Frame, MAX_PAIRS};

const MAX_FRAMES: usize = 1000;
const MAX_BYTES: usize = 4 << 20;
/// Buffers that are kept for the next frames, and how long they are at most: those of long frames are given back.
const SPARES: usize = 64;
const SPARE_BYTES: usize = MAX_BYTES / MAX_FRAMES;
const PAIRS: usize = MAX_PAIRS as usize;

/// The queues of a port.
#[derive(Debug, Default)]
pub struct Backlog {
    queues: [Queue; PAIRS],
    frames: usize,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Backlog {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Whether a frame waits for a pair.
    #[must_use]
    pub fn waits_for(&self, pair: u16) -> bool {
        let queue = self.queues.get(usize::from(pair));
        queue.is_some_and(|queue| !queue.frames.is_empty())
    }

    /// How many frames wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames
    }

    /// The frame that waits longest for a pair.
    #[must_use]
    pub fn first(&self, pair: u16) -> Option<Frame<'_>> {
        Frame::new(self.queues.get(usize::from(pair))?.frames.front()?)
    }

    /// Keeps a copy of a frame for a pair; false when there is no room and it is dropped.
    pub fn push(&mut self, pair: u16, frame: &Frame<'_>) -> bool {
        let len = frame.linear().len()
            + frame
                .tail()
                .iter()
                .map(crate::device::memory::Slice::len)
                .sum::<usize>();
        let Some(queue) = self.queues.get_mut(usize::from(pair)) else {
            return false;
        };
        let mut bytes = self.spare.pop().unwrap_or_default();
        let size = len.max(bytes.capacity());
        let fits = |frames: usize, bytes: usize, share: usize| {
            frames < MAX_FRAMES / share && bytes + size <= MAX_BYTES / share
        };
        if !fits(self.frames, self.bytes, 1) && !fits(queue.frames.len(), queue.bytes, PAIRS) {
            self.spare.push(bytes);
            return false;
        }
        bytes.clear();
        bytes.reserve_exact(len);
        frame.copy_to(&mut bytes);
        queue.bytes += bytes.capacity();
        self.bytes += bytes.capacity();
        self.frames += 1;
        queue.frames.push_back(bytes);
        true
    }

    /// Offers a pair's frames in order until `deliver` takes no more.
    pub fn drain(&mut self, pair: u16, mut deliver: impl FnMut(&Frame<'_>) -> bool) -> usize {
        let mut count = 0;
        let Some(queue) = self.queues.get_mut(usize::from(pair)) else {
            return 0;
        };
        while let Some(bytes) = queue.frames.front() {
            if let Some(frame) = Frame::new(bytes)
                && !deliver(&frame)
            {
                break;
            }
            if let Some(bytes) = queue.frames.pop_front() {
                queue.bytes -= bytes.capacity();
                self.bytes -= bytes.capacity();
                self.frames -= 1;
                if self.spare.len() < SPARES && bytes.capacity() <= SPARE_BYTES {
                    self.spare.push(bytes);
                }
            }
            count += 1;
        }
        count
    }

    /// Forgets all of it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many of these frames as are kept for a pair.
    fn fill(backlog: &mut Backlog, pair: u16, len: usize) -> usize {
        let pushed = std::iter::repeat_with(|| push(backlog, pair, len));
        pushed.take(2 * MAX_FRAMES).filter(|kept| *kept).count()
    }

    #[test]
    fn frames_come_out_in_order_and_the_queue_is_bounded() {
        let mut backlog = Backlog::default();
        let mut kept = 0u32;
        loop {
            let mut frame = [0; 64];
            frame[12..16].copy_from_slice(&kept.to_le_bytes());
            if !backlog.push(3, &Frame::new(&frame).expect("whole")) {
                break;
            }
            kept += 1;
        }
        assert_eq!(kept as usize, MAX_FRAMES);
        let mut next = 0u32;
        assert_eq!(
            backlog.drain(3, |frame| {
                if next == 10 {
                    return false;
                }
                assert_eq!(frame.head()[..4], next.to_le_bytes());
                next += 1;
                true
            }),
            10
        );
        assert_eq!(backlog.len(), MAX_FRAMES - 10);
        assert!(backlog.push(3, &Frame::new(&[0; 64]).expect("whole")));
    }

    #[test]
    fn large_frames_are_bounded_by_bytes() {
        assert_eq!(fill(&mut Backlog::default(), 0, 60_000), MAX_BYTES / 60_000);
    }

    #[test]
    fn a_pair_that_waits_leaves_each_other_its_share() {
        for (len, share) in [
            (64, MAX_FRAMES / PAIRS),
            (60_000, MAX_BYTES / PAIRS / 60_000),
        ] {
            let mut backlog = Backlog::default();
            let all = fill(&mut backlog, 0, len);
            for pair in 1..MAX_PAIRS {
                assert_eq!(fill(&mut backlog, pair, len), share, "{pair}");
            }
            assert_eq!(backlog.drain(5, |_| true), share);
            assert_eq!(
                fill(&mut backlog, 0, len),
                0,
                "it has had more than its own"
            );
            assert_eq!(backlog.len(), all + share * (PAIRS - 2));
            assert!(backlog.bytes <= 2 * MAX_BYTES);
        }
        let mut backlog = Backlog::default();
        assert!(!backlog.push(MAX_PAIRS, &Frame::new(&[0; 64]).expect("whole")));
    }

    #[test]
    fn memory_that_is_taken_counts_however_little_is_in_it() {
        let mut backlog = Backlog::default();
        for _ in 0..3 * MAX_FRAMES {
            push(&mut backlog, 1, 60_000);
            backlog.drain(1, |_| true);
            // In what the long one was in, were that kept.
            push(&mut backlog, 0, 64);
        }
        let queues = backlog.queues.iter().flat_map(|queue| &queue.frames);
        let taken: usize = queues.chain(&backlog.spare).map(Vec::capacity).sum();
        assert!(taken <= MAX_BYTES, "{taken}");
        assert_eq!(backlog.len(), MAX_FRAMES);
    }

    fn push(backlog: &mut Backlog, pair: u16, len: usize) -> bool {
        backlog.push(pair, &Frame::new(&vec![0; len]).expect("whole"))
    }
}
