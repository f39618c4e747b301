//! What a frontend has said about one ring, in whatever order it said it.

use std::os::fd::OwnedFd;

use super::message::VringAddresses;

/// One ring of a session.
#[derive(Debug, Default)]
pub struct Vring {
    /// Entries; zero until said.
    pub size: u16,
    /// Available index to start from.
    pub base: u16,
    /// Where its parts are.
    pub addresses: Option<VringAddresses>,
    /// SET_VRING_KICK came, with or without an fd.
    pub kick_said: bool,
    /// Where kicks come from; without one the ring is polled.
    pub kick: Option<OwnedFd>,
    /// Where interrupts go.
    pub call: Option<OwnedFd>,
    /// Where faults are reported.
    pub err: Option<OwnedFd>,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// The device has it running.
    pub running: bool,
}

impl Vring {
    /// Whether everything is known that a start needs.
    #[must_use]
    pub fn can_start(&self) -> bool {
        !self.running && self.size > 0 && self.addresses.is_some() && self.kick_said
    }

    /// Whether the ring runs without a kick fd and must be looked at again and again.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.running && self.kick.is_none()
    }
}
