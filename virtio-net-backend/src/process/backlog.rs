//! Frames that wait for a driver to make buffers available: a short queue, as a kernel tap has one.
//!
//! Bounded in frames and bytes, so that a guest that takes nothing costs memory of fixed size and nobody's time.

use std::collections::VecDeque;

use crate::device::Frame;

const MAX_FRAMES: usize = 1000;
const MAX_BYTES: usize = 4 << 20;

/// The queue.
#[derive(Debug, Default)]
pub struct Backlog {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
}

impl Backlog {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// How many frames wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// The frame that waits longest.
    #[must_use]
    pub fn first(&self) -> Option<Frame<'_>> {
        Frame::new(self.frames.front()?)
    }

    /// Keeps a copy of a frame; false when there is no room and it is dropped.
    pub fn push(&mut self, frame: &Frame<'_>) -> bool {
        let len = frame.linear().len()
            + frame
                .tail()
                .iter()
                .map(crate::device::memory::Slice::len)
                .sum::<usize>();
        if self.frames.len() >= MAX_FRAMES || self.bytes + len > MAX_BYTES {
            return false;
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        frame.copy_to(&mut bytes);
        self.bytes += bytes.len();
        self.frames.push_back(bytes);
        true
    }

    /// Offers the frames in order until `deliver` takes no more.
    pub fn drain(&mut self, mut deliver: impl FnMut(&Frame<'_>) -> bool) -> usize {
        let mut count = 0;
        while let Some(bytes) = self.frames.front() {
            if let Some(frame) = Frame::new(bytes)
                && !deliver(&frame)
            {
                break;
            }
            if let Some(bytes) = self.frames.pop_front() {
                self.bytes -= bytes.len();
                if self.spare.len() < 64 {
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

    #[test]
    fn frames_come_out_in_order_and_the_queue_is_bounded() {
        let mut backlog = Backlog::default();
        let mut kept = 0u32;
        loop {
            let mut frame = [0; 64];
            frame[12..16].copy_from_slice(&kept.to_le_bytes());
            if !backlog.push(&Frame::new(&frame).expect("whole")) {
                break;
            }
            kept += 1;
        }
        assert_eq!(kept as usize, MAX_FRAMES);
        let mut next = 0u32;
        assert_eq!(
            backlog.drain(|frame| {
                if next == 10 {
                    return false;
                }
                assert_eq!(frame.head()[..4], next.to_le_bytes());
                next += 1;
                true
            }),
            10
        );
        assert!(backlog.push(&Frame::new(&[0; 64]).expect("whole")));
    }

    #[test]
    fn large_frames_are_bounded_by_bytes() {
        let mut backlog = Backlog::default();
        let frame = vec![0; 60_000];
        let kept = std::iter::repeat_with(|| backlog.push(&Frame::new(&frame).expect("whole")))
            .take(1000)
            .filter(|kept| *kept)
            .count();
        assert_eq!(kept, MAX_BYTES / 60_000);
    }
}
