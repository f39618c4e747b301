//! Sockets that follow a bridge: a packet socket, and whatever else its protocol holds there. The bridge may not be
//! there yet, may go and be made anew under the same name; whoever makes it need not wait for us.
//!
//! ```text
//!   want(bridge) --open--> link --receive fails--> doubtful --open--> the same, or a new one
//! ```

use std::collections::VecDeque;
use std::io;
use std::thread;
use std::time::Instant;

use super::pace::Pace;
use super::packet::{Inbox, PacketSocket, index_of};
use crate::types::{IfName, Mac};

/// Frames that leave together.
const TOGETHER: usize = 16;
/// Frames that may wait to leave; who asks for more has to wait before it is heard.
const MOST: usize = 4096;

/// The sockets of one protocol of one network.
#[derive(Debug)]
pub(super) struct Bridged<E> {
    bridge: Option<IfName>,
    link: Option<Link<E>>,
}

#[derive(Debug)]
struct Link<E> {
    packets: PacketSocket,
    pace: Pace,
    /// What the pace keeps back, and until when.
    waiting: VecDeque<Vec<u8>>,
    leaves: Option<Instant>,
    extra: E,
    /// A socket said that its interface is down or gone.
    doubtful: bool,
}

impl<E> Default for Bridged<E> {
    fn default() -> Self {
        Self {
            bridge: None,
            link: None,
        }
    }
}

impl<E> Bridged<E> {
    /// Follows this bridge from now on; with `None` there is nothing to hear.
    pub(super) fn want(&mut self, bridge: Option<IfName>) {
        self.bridge = bridge;
        if self.bridge.is_none() {
            self.link = None;
        }
    }

    /// Opens what should be open: `Ok(true)` if there are new sockets. A bridge that is not there is no error.
    pub(super) fn open(
        &mut self,
        make: impl FnOnce(&IfName, u32) -> io::Result<(PacketSocket, E)>,
    ) -> io::Result<bool> {
        let Some(bridge) = &self.bridge else {
            return Ok(false);
        };
        let index = match index_of(bridge) {
            Ok(index) => index,
            Err(e) if is_missing(&e) => {
                self.link = None;
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        if let Some(link) = &mut self.link
            && link.packets.index() == index
        {
            link.doubtful = false;
            return Ok(false);
        }
        // The old ones first: they may hold what the new ones need.
        self.link = None;
        let (packets, extra) = make(bridge, index)?;
        self.link = Some(Link {
            packets,
            pace: Pace::new(Instant::now()),
            waiting: VecDeque::new(),
            leaves: None,
            extra,
            doubtful: false,
        });
        Ok(true)
    }

    pub(super) fn packets(&self) -> Option<&PacketSocket> {
        self.link.as_ref().map(|link| &link.packets)
    }

    pub(super) fn extra(&self) -> Option<&E> {
        self.link.as_ref().map(|link| &link.extra)
    }

    pub(super) fn extra_mut(&mut self) -> Option<&mut E> {
        self.link.as_mut().map(|link| &mut link.extra)
    }

    /// Whether a bridge that should be there is not, or may have been made anew.
    pub(super) fn should_look_again(&self) -> bool {
        self.bridge.is_some() && self.link.as_ref().is_none_or(|link| link.doubtful)
    }

    /// Reads at most so many batches of what waits, and sends what may be answered at once: batch by batch, so that who
    /// asked is busy with the first answers when the last come. `one` is given a frame, whether its checksum is the
    /// kernel's word, our MAC, and where its answers go.
    pub(super) fn read(
        &mut self,
        batches: usize,
        inbox: &mut Inbox,
        mut one: impl FnMut(&[u8], bool, Mac, &mut Vec<Vec<u8>>),
    ) {
        let Some(link) = &mut self.link else {
            return;
        };
        if link.waiting.len() >= MOST {
            link.catch_up();
        }
        let ours = link.packets.mac();
        let mut at_once = Vec::new();
        for _ in 0..batches {
            match link.packets.receive(inbox) {
                Ok(0) => break,
                Ok(heard) => link.pace.heard(Instant::now(), heard),
                Err(_) => {
                    link.doubtful = true;
                    break;
                }
            }
            for (bytes, checked) in inbox.frames() {
                one(bytes, checked, ours, &mut at_once);
            }
            link.send(&mut at_once);
        }
    }

    /// Sends frames, at the bridge's pace.
    pub(super) fn send(&mut self, mut frames: Vec<Vec<u8>>) {
        if let Some(link) = &mut self.link {
            link.send(&mut frames);
        }
    }

    /// When something leaves that the pace keeps back.
    pub(super) fn leaves(&self) -> Option<Instant> {
        self.link.as_ref()?.leaves
    }

    /// Sends what the pace kept back until now.
    pub(super) fn flush(&mut self, now: Instant) {
        if let Some(link) = &mut self.link
            && link.leaves.is_some_and(|at| at <= now)
        {
            link.flush(now);
        }
    }
}

impl<E> Link<E> {
    fn send(&mut self, frames: &mut Vec<Vec<u8>>) {
        if !frames.is_empty() {
            self.waiting.extend(frames.drain(..));
            self.flush(Instant::now());
        }
    }

    fn flush(&mut self, now: Instant) {
        self.leaves = None;
        while !self.waiting.is_empty() {
            let count = self.waiting.len().min(TOGETHER);
            if let Err(at) = self.pace.admit(now, count) {
                self.leaves = Some(at);
                return;
            }
            let frames: Vec<Vec<u8>> = self.waiting.drain(..count).collect();
            self.packets.send(&frames);
        }
    }

    /// Waits until half of what waits has left.
    fn catch_up(&mut self) {
        while self.waiting.len() > MOST / 2
            && let Some(at) = self.leaves
        {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            self.flush(Instant::now());
        }
    }
}

/// Whether a call failed because its interface does not exist (yet, or any more).
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}
