//! A card and what it is plugged into: all that a network thread does, but for the waiting.
//!
//! A card's path has a protocol (take, give, ask for the doorbell, look again), and a thread that gets it wrong sleeps
//! for ever. Here it is once.

use std::io;

use super::Nic;
use crate::device::frame::MAX_FRAME;
use crate::device::header::HEADER_LEN;
use crate::device::{Frame, Received, Sent};
use crate::port::FramePort;
use crate::transport::finish::Finisher;

/// Frames of each direction in one turn: vCPUs that set a register wait so long at most.
const BATCH: usize = 256;

/// What to do after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// There may be more: take another turn.
    Again,
    /// Nothing is left: wait until the doorbell or the port is readable.
    Wait,
    /// The port takes no more, and the driver's frames wait for it: come again in a moment.
    Blocked,
}

/// A card that is plugged into a port.
#[derive(Debug)]
pub struct Link<P> {
    nic: Nic,
    port: P,
    buffer: Box<[u8]>,
    finisher: Finisher,
    dropped: u64,
}

impl<P: FramePort> Link<P> {
    /// Plugs a card into a port.
    #[must_use]
    pub fn new(nic: Nic, port: P) -> Self {
        Self {
            nic,
            port,
            buffer: vec![0; HEADER_LEN + MAX_FRAME].into_boxed_slice(),
            finisher: Finisher::default(),
            dropped: 0,
        }
    }

    /// The card.
    #[must_use]
    pub fn nic(&self) -> &Nic {
        &self.nic
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> &P {
        &self.port
    }

    /// Pulls the plug.
    #[must_use]
    pub fn into_port(self) -> P {
        self.port
    }

    /// Frames for the driver that were lost: it had no buffers for them, or they could not be finished for it.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Moves a batch of frames each way.
    ///
    /// # Errors
    /// When the port is gone.
    pub fn turn(&mut self) -> io::Result<Next> {
        // Before anything is looked at: a doorbell from here on is for the next wait. It is empty when the wait ended
        // for another reason.
        let _ = self.nic.doorbell().read();
        let mut path = self.nic.path();
        let mut blocked = false;
        let port = &mut self.port;
        let mut moved = path.take(BATCH, |frame| {
            let sent = port.send(frame);
            blocked |= sent == Sent::Busy;
            sent
        });
        for _ in 0..BATCH {
            let Some(length) = self.port.receive(&mut self.buffer)? else {
                break;
            };
            moved += 1;
            let linear = &mut self.buffer[..length];
            if let Some(buffers) = linear.get_mut(10..HEADER_LEN) {
                // However many a kernel believes there are.
                buffers.copy_from_slice(&1u16.to_le_bytes());
            }
            let Some(frame) = Frame::new(linear) else {
                continue;
            };
            let features = path.accepted();
            let mut missed = 0;
            let finished = self.finisher.finish(&frame, features, |frame| {
                let given = path.give(frame) == Received::Done;
                missed += u64::from(!given);
                given
            });
            self.dropped += missed + finished.unwrap_or(1);
        }
        Ok(if moved > 0 {
            Next::Again
        } else if blocked {
            Next::Blocked
        } else if path.arm() {
            Next::Again
        } else {
            Next::Wait
        })
    }
}
