//! A port inside the process: two ends, each a bounded queue. For embedders, tests and examples.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::FramePort;
use crate::device::{Frame, Sent};

/// Frames that wait in one direction.
const DEPTH: usize = 1024;

type Queue = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// One end.
#[derive(Debug)]
pub struct Channel {
    out: Queue,
    into: Queue,
}

impl Channel {
    /// Two ends of a fresh channel.
    #[must_use]
    pub fn pair() -> (Self, Self) {
        let (a, b) = (Queue::default(), Queue::default());
        let one = Self {
            out: Arc::clone(&a),
            into: Arc::clone(&b),
        };
        (one, Self { out: b, into: a })
    }
}

impl FramePort for Channel {
    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if out.len() >= DEPTH {
            return Sent::Busy;
        }
        let mut bytes = Vec::new();
        frame.copy_to(&mut bytes);
        out.push_back(bytes);
        Sent::Done
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let next = self
            .into
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        Ok(next.map(|frame| {
            let n = frame.len().min(into.len());
            into[..n].copy_from_slice(&frame[..n]);
            n
        }))
    }

    fn refused(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_end_sends_the_other_receives_until_it_is_full() {
        let (mut a, mut b) = Channel::pair();
        let frame = [7; 80];
        for _ in 0..DEPTH {
            assert_eq!(a.send(&Frame::new(&frame).expect("whole")), Sent::Done);
        }
        assert_eq!(a.send(&Frame::new(&frame).expect("whole")), Sent::Busy);
        let mut into = [0; 100];
        assert_eq!(b.receive(&mut into).expect("open"), Some(80));
        assert_eq!(into[..80], frame);
        assert_eq!(a.receive(&mut into).expect("open"), None);
    }
}
