//! One vhost-user port: where its frontend comes from, the session while there is one, and what it counted.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::backlog::Backlog;
use super::faults::Faults;
use crate::device::{Fault, Frame, Received, Settings};
use crate::transport::finish::Finisher;
use crate::transport::vhost_user::refusal::Refusal;
use crate::transport::vhost_user::{Kept, Session};

/// Where the frontend comes from.
#[derive(Debug)]
pub enum Door {
    /// We listen; the path is ours to remove when we made the socket.
    Listen {
        /// The listening socket.
        listener: UnixListener,
        /// The file to remove in the end.
        path: Option<PathBuf>,
    },
    /// The frontend listens, and we come again whenever it was away.
    Connect(PathBuf),
}

impl Door {
    /// Listens at `path`, in place of a socket that a predecessor left.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn listen(path: &Path) -> io::Result<Self> {
        match UnixStream::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?
            }
            Err(_) => {}
        }
        Self::from_listener(UnixListener::bind(path)?, Some(path.to_owned()))
    }

    /// Takes a socket that someone else bound.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn from_listener(listener: UnixListener, path: Option<PathBuf>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Listen { listener, path })
    }

    /// The socket has another path from here on (the root directory changed).
    pub fn rename(&mut self, to: Option<PathBuf>) {
        if let Self::Listen { path, .. } = self {
            *path = to;
        }
    }

    /// A fresh connection, when a frontend is there.
    #[must_use]
    pub fn knock(&self) -> Option<UnixStream> {
        match self {
            Self::Listen { listener, .. } => listener.accept().ok().map(|(stream, _)| stream),
            Self::Connect(path) => UnixStream::connect(path).ok(),
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Self::Listen {
            path: Some(path), ..
        } = self
        {
            // Somebody else may have removed it, which is as good.
            drop(std::fs::remove_file(path));
        }
    }
}

/// What a port counted beside the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Frames from the driver.
    pub tx_frames: u64,
    /// Chains from the driver that held no valid frame.
    pub tx_malformed: u64,
    /// Frames into the driver's buffers.
    pub rx_frames: u64,
    /// Frames dropped because the driver made no buffers available for too long.
    pub rx_no_buffers: u64,
    /// Frames dropped because no buffer was large enough or they could not be finished for this driver.
    pub rx_refused: u64,
    /// Rings that the driver broke.
    pub faults: u64,
    /// Frontends that came.
    pub sessions: u64,
}

/// A port.
#[derive(Debug)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// What its device is made with.
    pub settings: Settings,
    /// Where the frontend comes from.
    pub door: Door,
    /// The frontend, while there is one.
    pub session: Option<Session>,
    /// What was counted.
    pub counters: Counters,
    /// Why rings were stopped.
    pub faults: Faults,
    /// Looked at in each turn; asleep until a kick otherwise.
    pub awake: bool,
    /// Receive queues that were written to since the last flush.
    touched: u32,
    backlog: Backlog,
    finisher: Finisher,
}

impl Port {
    /// A port without a frontend yet.
    #[must_use]
    pub fn new(name: String, settings: Settings, door: Door) -> Self {
        Self {
            name,
            settings,
            door,
            session: None,
            counters: Counters::default(),
            faults: Faults::default(),
            awake: false,
            touched: 0,
            backlog: Backlog::default(),
            finisher: Finisher::default(),
        }
    }

    /// Starts a session on a fresh connection.
    ///
    /// # Errors
    /// When the socket cannot be used.
    pub fn open(&mut self, stream: UnixStream) -> io::Result<()> {
        self.session = Some(Session::new(stream, &self.settings)?);
        self.counters.sessions += 1;
        Ok(())
    }

    /// Goes on with the session of a predecessor.
    ///
    /// # Errors
    /// When it cannot be gone on with; its frontend is disconnected then.
    pub fn resume(&mut self, kept: &Kept, fds: VecDeque<OwnedFd>) -> Result<(), Refusal> {
        self.session = Some(Session::resume(&self.settings, kept, fds)?);
        self.counters.sessions += 1;
        Ok(())
    }

    /// Ends the session; the fds must leave the poll set.
    pub fn close(&mut self) -> Vec<OwnedFd> {
        self.awake = false;
        self.touched = 0;
        self.backlog.clear();
        let Some(mut session) = self.session.take() else {
            return Vec::new();
        };
        session.shut_down();
        session.retire()
    }

    /// Whether a driver is there that takes frames.
    #[must_use]
    pub fn receives(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.is_enabled(0))
    }

    /// Whether frames wait for the driver's buffers.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the driver has buffers for a frame, so that one may be fetched for it.
    pub fn has_buffers(&mut self) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        if !session.is_enabled(0) || !self.backlog.is_empty() {
            return false;
        }
        match session.device().rx(0).map(crate::device::Rx::has_buffers) {
            Some(Ok(has)) => has,
            Some(Err(fault)) => {
                self.fail(0, fault);
                false
            }
            None => false,
        }
    }

    /// Hands a frame to the driver, finishing what it cannot take as it is.
    #[inline]
    pub fn deliver(&mut self, frame: &Frame<'_>) {
        if !frame.is_plain() && !self.takes(frame) {
            self.finish(frame);
        } else if !self.backlog.is_empty() || !self.push(frame) {
            self.wait(frame);
        }
    }

    /// Shows the driver what was delivered, and interrupts it where it wants that.
    pub fn flush(&mut self) {
        while self.touched != 0 {
            let pair = u16::try_from(self.touched.trailing_zeros()).unwrap_or(0);
            self.touched &= self.touched - 1;
            if let Some(session) = &mut self.session
                && let Some(rx) = session.device().rx(pair)
                && rx.ring().publish()
            {
                session.interrupt(2 * pair);
            }
        }
    }

    /// Hands over frames that waited; how many.
    pub fn drain(&mut self) -> usize {
        if self.backlog.is_empty() {
            return 0;
        }
        let mut backlog = std::mem::take(&mut self.backlog);
        let count = backlog.drain(|frame| self.push(frame));
        self.backlog = backlog;
        count
    }

    /// Counts a queue that was stopped because its driver broke it.
    pub fn broke(&mut self, queue: u16, fault: Fault) {
        self.counters.faults += 1;
        self.faults.note(&self.name, queue, fault);
    }

    /// Stops a queue that its driver broke.
    pub fn fail(&mut self, queue: u16, fault: Fault) {
        self.broke(queue, fault);
        if let Some(session) = &mut self.session {
            session.fail(queue);
        }
    }

    /// Puts a finished frame into the driver's buffers; false when there are none.
    #[inline]
    fn push(&mut self, frame: &Frame<'_>) -> bool {
        let Some(session) = &mut self.session else {
            return true;
        };
        let pair = session.device_ref().receive_pair(frame.head());
        if !session.is_enabled(2 * pair) {
            return true;
        }
        let Some(rx) = session.device().rx(pair) else {
            return true;
        };
        match rx.push(frame) {
            Ok(Received::Done) => {
                self.counters.rx_frames += 1;
                self.touched |= 1 << pair;
                true
            }
            Ok(Received::NoBuffers) => false,
            Ok(Received::TooLong) => {
                self.counters.rx_refused += 1;
                true
            }
            Err(fault) => {
                self.fail(2 * pair, fault);
                true
            }
        }
    }

    fn wait(&mut self, frame: &Frame<'_>) {
        if self.backlog.push(frame) {
            // Buffers may come without a kick only while we look.
            self.awake = true;
        } else {
            self.counters.rx_no_buffers += 1;
        }
    }

    fn takes(&self, frame: &Frame<'_>) -> bool {
        let features = self
            .session
            .as_ref()
            .map(|session| session.device_ref().receive_features());
        frame
            .header()
            .is_ok_and(|header| header.fits(features.unwrap_or_default()))
    }

    /// Finishes the checksum or cuts the frame for a driver that cannot.
    fn finish(&mut self, frame: &Frame<'_>) {
        let session = self.session.as_ref();
        let features = session.map(|session| session.device_ref().receive_features());
        let mut finisher = std::mem::take(&mut self.finisher);
        let finished = finisher.finish(frame, features.unwrap_or_default(), |frame| {
            if !self.backlog.is_empty() || !self.push(frame) {
                self.wait(frame);
            }
        });
        self.finisher = finisher;
        self.counters.rx_refused += u64::from(finished.is_err());
    }
}
