//! One turn of the loop: what was decided, and what waits for the disk.

use tokio::sync::oneshot;

use super::LeaseEvent;
use crate::dhcp::Changes;
use crate::lease::Change;

/// What one turn brought. Order is kept within each list; frames and answers wait for the commit of all `changes`.
#[derive(Default)]
pub(in crate::serve) struct Turn {
    pub(super) changes: Vec<Change>,
    pub(in crate::serve) events: Vec<LeaseEvent>,
    /// Frames of the network that is being read.
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) answers: Vec<Box<dyn FnOnce() + Send>>,
}

impl Turn {
    /// Takes an answer to a command.
    pub(super) fn answer<T: Send + 'static>(&mut self, to: oneshot::Sender<T>, what: T) {
        // Whoever asked may have gone.
        self.answers.push(Box::new(move || {
            let _ = to.send(what);
        }));
    }

    /// Takes what a command changed.
    pub(super) fn add(&mut self, changes: Changes) {
        self.promise(changes.records, changes.events, None);
    }

    /// Takes a promise: records first, then the event and the frame.
    pub(in crate::serve) fn promise(
        &mut self,
        records: Vec<Change>,
        events: Vec<LeaseEvent>,
        frame: Option<Vec<u8>>,
    ) {
        self.changes.extend(records);
        self.events.extend(events);
        self.frames.extend(frame);
    }
}
