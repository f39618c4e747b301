//! Where a frame goes that a port or the tap has sent: through the middle, into the drivers' rings or to the tap.

use super::middle::{Middle, Uplink};
use super::port::Port;
use crate::device::{Credit, Frame, Sent, cost};
use crate::switch::{Egress, PortIndex, PortSet, Time};

/// Where a frame can go: all that a port's own turn does not hold.
pub(super) struct Paths<'a> {
    pub(super) ports: &'a mut [Option<Box<Port>>],
    pub(super) middle: &'a mut Middle,
    pub(super) uplink: &'a mut Option<Uplink>,
    pub(super) touched: &'a mut Vec<u16>,
    pub(super) awake: &'a mut PortSet,
    /// What the sender's turn may still do; copies beyond the first and software's work for a receiver are taken from it.
    pub(super) credit: &'a Credit,
    pub(super) now: Time,
}

impl Paths<'_> {
    /// Whether a port has a rate to keep to, so that each of its frames must ask.
    pub(super) fn is_limited(&self, number: u16) -> bool {
        match &*self.middle {
            Middle::Wire => false,
            Middle::Switch(switch) => {
                PortIndex::new(usize::from(number)).is_some_and(|index| switch.limits(index))
            }
        }
    }

    pub(super) fn may_send(&self, number: u16) -> bool {
        match &*self.middle {
            Middle::Wire => true,
            Middle::Switch(switch) => {
                index_of(number).is_some_and(|index| switch.send_wait(self.now, index).is_zero())
            }
        }
    }

    #[inline]
    pub(super) fn forward(&mut self, from: u16, frame: &Frame<'_>) -> Sent {
        let switch = match &mut *self.middle {
            Middle::Wire => return self.send_uplink(frame),
            Middle::Switch(switch) => switch,
        };
        let Some(index) = PortIndex::new(usize::from(from)) else {
            return Sent::Done;
        };
        match switch.ingress_head(self.now, index, frame.head(), frame.len()) {
            Egress::To(to) => self.send(to, frame),
            Egress::Flood(ports) => {
                let copies = ports.len() - 1;
                self.credit.spend(copies * cost(frame.len(), 0));
                ports.iter().for_each(|to| self.send(to, frame));
            }
            Egress::Drop(_) => {}
        }
        Sent::Done
    }

    #[inline]
    fn send(&mut self, to: PortIndex, frame: &Frame<'_>) {
        if self
            .uplink
            .as_ref()
            .is_some_and(|uplink| uplink.index == Some(to))
        {
            // A full tap drops, as a bridge port does: one slow way must not stop the others.
            self.send_uplink(frame);
        } else {
            self.deliver(number_of(to), frame);
        }
    }

    fn send_uplink(&mut self, frame: &Frame<'_>) -> Sent {
        match self.uplink {
            Some(uplink) => uplink.send(frame),
            None => Sent::Done,
        }
    }

    /// Hands to the tap what was sent to it.
    pub(super) fn flush_uplink(&mut self) {
        if let Some(uplink) = self.uplink {
            uplink.flush();
        }
    }

    #[inline]
    pub(super) fn deliver(&mut self, to: u16, frame: &Frame<'_>) -> Sent {
        if let Some(port) = self
            .ports
            .get_mut(usize::from(to))
            .and_then(Option::as_deref_mut)
        {
            port.deliver(frame, self.credit);
            if port.has_backlog() {
                // Buffers may come without a kick only while we look.
                self.awake.extend(index_of(to));
            }
            if self.touched.last() != Some(&to) {
                self.touched.push(to);
            }
        }
        Sent::Done
    }
}

/// The port with this number, if a switch can have it.
pub(super) fn index_of(number: u16) -> Option<PortIndex> {
    PortIndex::new(usize::from(number))
}

/// Its number.
pub(super) fn number_of(index: PortIndex) -> u16 {
    u16::try_from(index.index()).unwrap_or(u16::MAX)
}
