//! The thread: one epoll over everything that can happen.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use rustix::fd::OwnedFd;

use super::{Command, Stats};
use crate::dns::Directory;

/// Everything the thread owns.
pub(super) struct Worker {
    _resolv_conf: PathBuf,
    inbox: Receiver<Command>,
    bell: Arc<OwnedFd>,
    directory: Directory,
}

impl Worker {
    pub(super) fn new(
        resolv_conf: PathBuf,
        inbox: Receiver<Command>,
        bell: Arc<OwnedFd>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            _resolv_conf: resolv_conf,
            inbox,
            bell,
            directory: Directory::new(None),
        })
    }

    pub(super) fn run(mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => self.wait(),
            }
        }
    }

    fn wait(&self) {
        let mut fds = [rustix::event::PollFd::new(
            &self.bell,
            rustix::event::PollFlags::IN,
        )];
        let _ = rustix::event::poll(&mut fds, None);
        let _ = rustix::io::read(&*self.bell, &mut [0u8; 8]);
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Configure(wanted, reply) => {
                for (network, zone, _bridge) in wanted {
                    match zone {
                        Some(zone) => _ = self.directory.put(zone),
                        None => self.directory.remove(&network),
                    }
                }
                let _ = reply.send(Vec::new());
            }
            Command::Names(network, changes) => {
                for change in &changes {
                    self.directory.change(&network, change);
                }
            }
            Command::Stats(reply) => {
                let _ = reply.send(Stats::default());
            }
        }
    }
}
