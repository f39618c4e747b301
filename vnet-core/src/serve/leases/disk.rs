//! The thread that waits for the disk, so that nobody else does: one batch is being written, the next one gathers.
//!
//! ```text
//!   worker --Batch--> commit --ok--> events, answers;  the frames come back, and leave by the worker's sockets
//!                           --no--> answers;           the rest comes back, and goes first in the next batch
//! ```

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::fd::OwnedFd;
use tokio::sync::broadcast;

use super::worker::Door;
use super::{LeaseEvent, News, Turn, ring};
use crate::lease::Change;
use crate::store::{LeaseLog, StoreError};
use crate::types::NetworkName;

/// Frames, by the sockets they leave by.
pub(super) type Frames = Vec<(NetworkName, Door, Vec<Vec<u8>>)>;

/// What becomes durable together, and what waits for that. Order is kept within each list.
#[derive(Default)]
pub(super) struct Batch {
    changes: Vec<Change>,
    events: Vec<LeaseEvent>,
    frames: Frames,
    answers: Vec<Box<dyn FnOnce() + Send>>,
}

impl Batch {
    /// Frames that wait for what this batch says.
    pub(super) fn hold(&mut self, network: NetworkName, door: Door, frames: Vec<Vec<u8>>) {
        if !frames.is_empty() {
            self.frames.push((network, door, frames));
        }
    }

    /// Takes in what a turn brought.
    pub(super) fn add(&mut self, turn: Turn) {
        self.changes.extend(turn.changes);
        self.events.extend(turn.events);
        self.answers.extend(turn.answers);
    }

    /// How many records it would write.
    pub(super) fn records(&self) -> usize {
        self.changes.len()
    }

    fn is_empty(&self) -> bool {
        let nothing_to_write = self.changes.is_empty() && self.events.is_empty();
        nothing_to_write && self.frames.is_empty() && self.answers.is_empty()
    }

    /// Puts what the disk refused before what came since. Nobody was told of it, and nobody waits any more.
    fn put_first(&mut self, mut refused: Self) {
        refused.changes.append(&mut self.changes);
        refused.events.append(&mut self.events);
        self.changes = refused.changes;
        self.events = refused.events;
        self.forget_doubles();
    }

    /// Only the last word on each address counts: a disk that stays full costs no more memory than the pools.
    fn forget_doubles(&mut self) {
        let mut seen = BTreeSet::new();
        let mut kept: Vec<Change> = Vec::new();
        for change in self.changes.drain(..).rev() {
            let key = match &change {
                Change::Put(record) => (record.network.clone(), record.address),
                Change::Delete(network, address) => (network.clone(), *address),
            };
            if seen.insert(key) {
                kept.push(change);
            }
        }
        kept.reverse();
        self.changes = kept;
        let most = self.changes.len().max(1024);
        let surplus = self.events.len().saturating_sub(most);
        self.events.drain(..surplus);
    }
}

/// What is written on.
pub(super) trait Paper: Send + 'static {
    /// Keeps all of it, or nothing.
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError>;

    /// Nobody waits just now.
    fn rest(&mut self) {}
}

impl Paper for LeaseLog {
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        Self::commit(self, changes)
    }

    fn rest(&mut self) {
        self.prepare();
    }
}

/// The worker's end.
pub(super) struct Disk {
    /// `None` only while it ends.
    batches: Option<Sender<Batch>>,
    done: Receiver<Result<Frames, Batch>>,
    thread: Option<JoinHandle<()>>,
    is_writing: bool,
    next: Batch,
    /// It refused the last batch, and nothing came since that would be a reason to ask again.
    is_stuck: bool,
}

impl Disk {
    /// Starts the thread; it rings the bell whenever it is done with a batch.
    pub(super) fn start(
        mut paper: impl Paper,
        news: broadcast::Sender<News>,
        bell: Arc<OwnedFd>,
    ) -> io::Result<Self> {
        let (batches, incoming) = channel::<Batch>();
        let (outgoing, done) = channel();
        let write = move || {
            let give = |done| {
                // The worker may be waiting for this thread to end, and for nothing else.
                let _ = outgoing.send(done);
                ring(&bell);
            };
            for Batch {
                changes,
                events,
                frames,
                answers,
            } in incoming
            {
                match paper.commit(&changes) {
                    Ok(()) => {
                        // First of all, for somebody waits at the other end of each.
                        give(Ok(frames));
                        if !events.is_empty() {
                            // Nobody may be listening.
                            let _ = news.send(events.into());
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "leases cannot be written: nobody is told about them");
                        give(Err(Batch {
                            changes,
                            events,
                            ..Batch::default()
                        }));
                    }
                }
                answers.into_iter().for_each(|answer| answer());
                paper.rest();
            }
        };
        let thread = std::thread::Builder::new()
            .name("leases-disk".to_owned())
            .spawn(write)?;
        Ok(Self {
            batches: Some(batches),
            done,
            thread: Some(thread),
            is_writing: false,
            next: Batch::default(),
            is_stuck: false,
        })
    }

    /// What gathers for the next batch.
    pub(super) fn next(&mut self) -> &mut Batch {
        &mut self.next
    }

    /// There is a reason to try again what was refused.
    pub(super) fn try_again(&mut self) {
        self.is_stuck = false;
    }

    /// Writes what gathered, if nothing is being written. What waits for nothing is free at once: its frames.
    pub(super) fn write(&mut self) -> Frames {
        if self.is_writing || self.is_stuck || self.next.is_empty() {
            return Frames::new();
        }
        let mut batch = std::mem::take(&mut self.next);
        if batch.changes.is_empty() && batch.events.is_empty() {
            let frames = std::mem::take(&mut batch.frames);
            batch.answers.into_iter().for_each(|answer| answer());
            return frames;
        }
        // The thread ends after this sender is gone.
        self.is_writing = self
            .batches
            .as_ref()
            .is_some_and(|batches| batches.send(batch).is_ok());
        Frames::new()
    }

    /// The frames of a batch that is durable by now; an error if the disk refused one, which is kept.
    pub(super) fn written(&mut self) -> Result<Frames, Refused> {
        let Ok(done) = self.done.try_recv() else {
            return Ok(Frames::new());
        };
        self.took(done)
    }

    /// The same, after waiting for it.
    pub(super) fn wait(&mut self) -> Result<Frames, Refused> {
        if !self.is_writing {
            return Ok(Frames::new());
        }
        let Ok(done) = self.done.recv() else {
            return Ok(Frames::new());
        };
        self.took(done)
    }

    fn took(&mut self, done: Result<Frames, Batch>) -> Result<Frames, Refused> {
        self.is_writing = false;
        done.map_err(|batch| {
            self.next.put_first(batch);
            self.is_stuck = true;
            Refused
        })
    }
}

/// The disk refused a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

impl Drop for Disk {
    /// What gathered is written before it ends.
    fn drop(&mut self) {
        if let Some(batches) = self.batches.take()
            && !self.next.is_empty()
        {
            let _ = batches.send(std::mem::take(&mut self.next));
        }
        if let Some(thread) = self.thread.take() {
            // It panics no more than we do.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::mpsc::RecvTimeoutError;
    use std::time::Duration;

    use rustix::event::{EventfdFlags, eventfd};
    use tokio::sync::oneshot;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A paper of our making: what it is asked to keep goes into `ask`, and what it says comes out of `said`.
    struct Told {
        ask: Sender<Vec<Change>>,
        said: Receiver<bool>,
    }

    impl Paper for Told {
        fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
            self.ask.send(changes.to_vec()).expect("a listener");
            match self.said.recv() {
                Ok(true) => Ok(()),
                _ => Err(StoreError::Full(PathBuf::from("here"))),
            }
        }
    }

    /// The other end of it.
    struct Slow {
        disk: Disk,
        asked: Receiver<Vec<Change>>,
        says: Sender<bool>,
    }

    impl Slow {
        fn new() -> Self {
            let (ask, asked) = channel();
            let (says, said) = channel();
            let bell = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
            let events = broadcast::channel(16).0;
            Self {
                disk: Disk::start(Told { ask, said }, events, Arc::new(bell)).expect("a thread"),
                asked,
                says,
            }
        }

        /// A turn with a record, and a frame that waits for it.
        fn turn(&mut self, last: u8) {
            let mut turn = Turn::default();
            turn.changes.push(change(last));
            self.disk
                .next()
                .hold(network(), Door::Dhcp4, vec![vec![last]]);
            self.disk.next().add(turn);
        }

        fn asked(&self) -> Vec<Change> {
            self.asked.recv_timeout(PATIENCE).expect("a commit")
        }

        fn says(&self, done: bool) {
            self.says.send(done).expect("the thread");
        }
    }

    fn network() -> NetworkName {
        "lab".parse().expect("a name")
    }

    fn change(last: u8) -> Change {
        Change::Delete(network(), [10, 0, 0, last].into())
    }

    fn bytes(frames: Frames) -> Vec<Vec<u8>> {
        frames.into_iter().flat_map(|(_, _, each)| each).collect()
    }

    #[test]
    fn the_next_batch_gathers_while_one_is_written_and_frames_come_after_it() {
        let mut slow = Slow::new();
        slow.turn(1);
        assert!(slow.disk.write().is_empty());
        assert_eq!(slow.asked(), [change(1)]);
        slow.turn(2);
        assert!(slow.disk.write().is_empty());
        slow.turn(3);
        assert!(slow.disk.write().is_empty());
        assert_eq!(slow.disk.written(), Ok(Frames::new()));
        slow.says(true);
        assert_eq!(slow.disk.wait().map(bytes), Ok(vec![vec![1]]));
        assert!(slow.disk.write().is_empty());
        assert_eq!(slow.asked(), [change(2), change(3)]);
        slow.says(true);
        assert_eq!(slow.disk.wait().map(bytes), Ok(vec![vec![2], vec![3]]));
    }

    #[test]
    fn what_needs_no_disk_waits_for_none_but_for_what_came_before_it() {
        let mut slow = Slow::new();
        let (answer, mut answered) = oneshot::channel();
        let mut ask = Turn::default();
        ask.answer(answer, 7);
        slow.disk.next().add(ask);
        assert!(slow.disk.write().is_empty());
        assert_eq!(answered.try_recv(), Ok(7));
        // The same behind a batch.
        slow.turn(1);
        assert!(slow.disk.write().is_empty());
        let (answer, mut answered) = oneshot::channel();
        let mut ask = Turn::default();
        ask.answer(answer, 8);
        slow.disk.next().add(ask);
        assert!(slow.disk.write().is_empty());
        slow.asked();
        assert!(answered.try_recv().is_err());
        slow.says(true);
        assert_eq!(slow.disk.wait().map(bytes), Ok(vec![vec![1]]));
        assert!(slow.disk.write().is_empty());
        assert_eq!(answered.try_recv(), Ok(8));
    }

    #[test]
    fn what_is_refused_is_told_to_nobody_and_goes_first_when_there_is_a_reason() {
        let mut slow = Slow::new();
        slow.turn(1);
        slow.turn(2);
        assert!(slow.disk.write().is_empty());
        slow.asked();
        slow.turn(3);
        slow.turn(1);
        slow.says(false);
        assert_eq!(slow.disk.wait(), Err(Refused));
        // Not again and again.
        assert!(slow.disk.write().is_empty());
        let nothing = slow.asked.recv_timeout(Duration::from_millis(20));
        assert_eq!(nothing, Err(RecvTimeoutError::Timeout));
        slow.disk.try_again();
        assert!(slow.disk.write().is_empty());
        assert_eq!(slow.asked(), [change(2), change(3), change(1)]);
        slow.says(true);
        let frames = slow.disk.wait().map(bytes);
        assert_eq!(frames, Ok(vec![vec![3], vec![1]]), "the refused are gone");
    }

    #[test]
    fn what_gathered_is_written_at_the_end() {
        let mut slow = Slow::new();
        slow.turn(1);
        assert!(slow.disk.write().is_empty());
        slow.turn(2);
        slow.says(true);
        slow.says(true);
        drop(slow.disk);
        let asked: Vec<_> = slow.asked.iter().collect();
        assert_eq!(asked, [[change(1)], [change(2)]]);
    }
}
