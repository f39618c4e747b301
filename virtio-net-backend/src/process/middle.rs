//! What is between the ports of a network, and the tap that leads out of it.

use crate::device::{Frame, Sent};
use crate::port::{Batch, Tap};
use crate::switch::{PortIndex, Switch};

/// What is between the ports.
pub enum Middle {
    /// One port and the tap, nothing in between.
    Wire,
    /// A learning switch.
    Switch(Box<Switch>),
}

/// The tap that leads to the kernel.
pub struct Uplink {
    /// The tap.
    pub tap: Tap,
    /// Its number on the switch.
    pub index: Option<PortIndex>,
    /// It may have frames for us.
    pub readable: bool,
    /// Frames written to it.
    pub sent: u64,
    /// Frames read from it.
    pub received: u64,
    /// Frames for it, of this turn.
    batch: Batch,
    /// What its turns may still do.
    pub(super) credit: i64,
}

impl Uplink {
    /// A tap, under its number on the switch.
    #[must_use]
    pub fn new(tap: Tap, index: Option<PortIndex>) -> Self {
        Self {
            tap,
            index,
            readable: true,
            sent: 0,
            received: 0,
            batch: Batch::new(),
            credit: 0,
        }
    }

    /// Sends a frame, at the latest with the next [`Uplink::flush`].
    #[inline]
    pub fn send(&mut self, frame: &Frame<'_>) -> Sent {
        let sent = self.batch.send(&mut self.tap, frame);
        self.sent += u64::from(sent == Sent::Done);
        sent
    }

    /// Hands to the tap what was gathered for it.
    pub fn flush(&mut self) {
        if self.has_waiting() {
            self.batch.flush(&mut self.tap);
        }
    }

    /// Whether small frames go to the tap together.
    #[must_use]
    pub fn is_batched(&self) -> bool {
        self.batch.has_ring()
    }

    /// Whether frames wait that count as sent. Between turns these are frames for which the tap had no room, and it must
    /// be tried again.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.batch.is_empty()
    }
}
