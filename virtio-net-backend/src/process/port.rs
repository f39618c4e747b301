//! One vhost-user port: where its frontend comes from, the session while there is one, and what it counted.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::backlog::Backlog;
use super::faults::Faults;
use super::voice::Voice;
use crate::device::{Credit, Fault, Frame, MAX_PAIRS, Received, Settings, cost};
use crate::transport::finish::Finisher;
use crate::transport::vhost_user::foreign;
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
        match connect(path) {
            Ok(_) | Err(Errno::AGAIN) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(Errno::CONNREFUSED) => std::fs::remove_file(path)?,
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
            Self::Connect(path) => connect(path).ok(),
        }
    }
}

/// Connects without waiting: who listens there may accept nothing for ever.
fn connect(path: &Path) -> rustix::io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
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
    /// Frames from a queue that runs but is disabled: taken without effect.
    pub tx_disabled: u64,
    /// Frames from the driver while the link was down.
    pub tx_link_down: u64,
    /// Chains from the driver that held no valid frame.
    pub tx_malformed: u64,
    /// Frames into the driver's buffers.
    pub rx_frames: u64,
    /// Frames dropped because the link was down.
    pub rx_link_down: u64,
    /// Frames dropped because no driver had a receive queue running and enabled.
    pub rx_no_driver: u64,
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
    /// What may still be said of its frontends.
    pub voice: Voice,
    /// Frames pass, and the driver is told so. It outlives sessions, as a cable outlives a machine.
    pub link_up: bool,
    /// What the port's turns may still do.
    pub(super) credit: i64,
    /// The queue pair that its turn begins with.
    pub(super) first_pair: u16,
    /// Receive queues that were written to since the last flush.
    touched: u32,
    /// Somebody was turned away in this session, and it was said.
    pub(super) turned_away: bool,
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
            voice: Voice::default(),
            link_up: true,
            credit: 0,
            first_pair: 0,
            touched: 0,
            turned_away: false,
            backlog: Backlog::default(),
            finisher: Finisher::default(),
        }
    }

    /// Starts a session on a fresh connection.
    ///
    /// # Errors
    /// When the socket cannot be used, or too many files that frontends sent cannot be closed.
    pub fn open(&mut self, stream: UnixStream) -> io::Result<()> {
        if foreign::are_too_many() {
            let why =
                "files that some frontend sent do not close: see who has what on a FUSE mount";
            return Err(io::Error::other(why));
        }
        let mut session = Session::new(stream, &self.settings)?;
        session.set_link(self.link_up);
        self.session = Some(session);
        self.counters.sessions += 1;
        Ok(())
    }

    /// Pulls the cable, or puts it in again.
    pub fn set_link(&mut self, up: bool) {
        self.link_up = up;
        if !up {
            self.counters.rx_link_down += self.backlog.len() as u64;
            self.backlog.clear();
        }
        if let Some(session) = &mut self.session {
            session.set_link(up);
        }
    }

    /// Drops what waits for the driver's buffers: it was made for a driver that is no more.
    pub fn forget_waiting(&mut self) {
        self.counters.rx_no_driver += self.backlog.len() as u64;
        self.backlog.clear();
    }

    /// Goes on with the session of a predecessor.
    ///
    /// # Errors
    /// When it cannot be gone on with; its frontend is disconnected then.
    pub fn resume(&mut self, kept: &Kept, fds: VecDeque<OwnedFd>) -> Result<(), Refusal> {
        let mut session = Session::resume(&self.settings, kept, fds)?;
        session.set_link(self.link_up);
        self.session = Some(session);
        self.counters.sessions += 1;
        Ok(())
    }

    /// Ends the session; the fds must leave the poll set.
    pub fn close(&mut self) -> Vec<OwnedFd> {
        self.touched = 0;
        self.turned_away = false;
        self.faults.begin_anew();
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
            .is_some_and(|session| usable(session) != 0)
    }

    /// Whether some ring has no kicks and must be looked at again and again.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(Session::is_polled)
    }

    /// Whether frames wait for the driver's buffers.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Whether the driver has buffers for a frame, so that one may be fetched for it. Of several pairs one is enough:
    /// which one a frame is for is not known before it is there.
    pub fn has_buffers(&mut self) -> bool {
        let usable = self.session.as_ref().map_or(0, usable);
        pairs_of(usable).any(|pair| !self.backlog.waits_for(pair) && self.has_buffers_in(pair))
    }

    fn has_buffers_in(&mut self, pair: u16) -> bool {
        let rx = self
            .session
            .as_mut()
            .map(|session| session.device().rx(pair));
        match rx.flatten().map(crate::device::Rx::has_buffers) {
            Some(Ok(has)) => has,
            Some(Err(fault)) => {
                self.fail(2 * pair, fault);
                false
            }
            None => false,
        }
    }

    /// The receive pairs whose buffers are waited for, a bit each: those that frames wait for, and all that can be used
    /// when more frames are `wanted`. Buffers elsewhere do not help what waits.
    #[must_use]
    pub fn awaited(&self, wanted: bool) -> u32 {
        let usable = self.session.as_ref().map_or(0, usable);
        let waiting = pairs_of(u32::MAX).filter_map(|pair| {
            let frame = self.backlog.first(pair)?;
            self.pair_now(pair, &frame)
        });
        waiting.fold(if wanted { usable } else { 0 }, |set, pair| set | 1 << pair)
    }

    /// The pair for a frame that waits for `pair`: still that one, unless it can be used no more.
    fn pair_now(&self, pair: u16, frame: &Frame<'_>) -> Option<u16> {
        let session = self.session.as_ref()?;
        if usable(session) >> pair & 1 == 1 {
            Some(pair)
        } else {
            self.pair_of(frame)
        }
    }

    /// Hands a frame to the driver, finishing what it cannot take as it is. The work that this is beyond a copy is taken
    /// from `credit`.
    #[inline]
    pub fn deliver(&mut self, frame: &Frame<'_>, credit: &Credit) {
        if !self.link_up {
            self.counters.rx_link_down += 1;
        } else if !frame.is_plain() && !self.takes(frame) {
            self.finish(frame, credit);
        } else {
            self.put(frame);
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

    /// Hands over frames that waited, as many as `budget` pays for; how many.
    pub fn drain(&mut self, budget: usize) -> usize {
        if self.backlog.is_empty() {
            return 0;
        }
        let mut backlog = std::mem::take(&mut self.backlog);
        let credit = Credit::new(budget);
        let mut count = 0;
        for offset in 0..MAX_PAIRS {
            // As with what it sends, each is the first in its turn.
            let pair = (self.first_pair + offset) % MAX_PAIRS;
            count += backlog.drain(pair, |frame| {
                let taken = credit.left() > 0 && self.push(self.pair_now(pair, frame), frame);
                if taken {
                    credit.spend(cost(frame.len(), 0));
                }
                taken
            });
        }
        self.backlog = backlog;
        count
    }

    /// Counts a queue that was stopped because its driver broke it.
    pub fn broke(&mut self, queue: u16, fault: Fault) {
        self.counters.faults += 1;
        self.faults.note(&self.name, queue, fault);
    }

    /// The rings that stopped because the driver broke them, and how.
    #[must_use]
    pub fn stopped(&self) -> BTreeMap<u16, String> {
        let runs = |queue: &u16| {
            let session = self.session.as_ref();
            session.is_some_and(|session| session.device_ref().queue_state(*queue).is_some())
        };
        let stopped = self.faults.by_queue().filter(|(queue, _)| !runs(queue));
        stopped
            .map(|(queue, fault)| (queue, fault.to_string()))
            .collect()
    }

    /// Stops a queue that its driver broke.
    pub fn fail(&mut self, queue: u16, fault: Fault) {
        self.broke(queue, fault);
        if let Some(session) = &mut self.session {
            session.fail(queue);
        }
    }

    /// Puts a finished frame into the driver's buffers, or behind others that wait for them; false when there is no
    /// room, and it is dropped.
    #[inline]
    fn put(&mut self, frame: &Frame<'_>) -> bool {
        let pair = self.pair_of(frame);
        let behind = pair.filter(|pair| self.backlog.waits_for(*pair));
        (behind.is_none() && self.push(pair, frame)) || self.wait(pair, frame)
    }

    /// The pair that a frame is for.
    #[inline]
    fn pair_of(&self, frame: &Frame<'_>) -> Option<u16> {
        let session = self.session.as_ref()?;
        let device = session.device_ref();
        device.receive_pair(frame.head(), enabled(session))
    }

    /// Puts a finished frame into the buffers of a pair; false when there are none.
    #[inline]
    fn push(&mut self, pair: Option<u16>, frame: &Frame<'_>) -> bool {
        let (Some(session), Some(pair)) = (&mut self.session, pair) else {
            self.counters.rx_no_driver += 1;
            return true;
        };
        let Some(rx) = session.device().rx(pair) else {
            self.counters.rx_no_driver += 1;
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

    /// False when there is no room, and it is dropped.
    fn wait(&mut self, pair: Option<u16>, frame: &Frame<'_>) -> bool {
        let kept = pair.is_some_and(|pair| self.backlog.push(pair, frame));
        self.counters.rx_no_buffers += u64::from(!kept);
        kept
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
    fn finish(&mut self, frame: &Frame<'_>, credit: &Credit) {
        credit.spend(cost(frame.len(), 0));
        let session = self.session.as_ref();
        let features = session.map(|session| session.device_ref().receive_features());
        let mut finisher = std::mem::take(&mut self.finisher);
        let finished = finisher.finish(frame, features.unwrap_or_default(), |frame| {
            credit.spend(cost(frame.len(), 0));
            // No room is made before the turn ends: when there is none, the rest would be cut for nothing.
            self.put(frame)
        });
        self.finisher = finisher;
        match finished {
            Ok(left) => self.counters.rx_no_buffers += left,
            Err(_) => self.counters.rx_refused += 1,
        }
    }
}

/// The receive pairs that may carry frames, a bit each.
fn usable(session: &Session) -> u32 {
    session.device_ref().receive_pairs(enabled(session))
}

/// The receive pairs that the frontend lets carry frames.
fn enabled(session: &Session) -> u32 {
    let enabled = (0..session.queues() / 2).filter(|pair| session.is_enabled(2 * pair));
    enabled.fold(0, |set, pair| set | 1 << pair)
}

/// The pairs of a set.
fn pairs_of(set: u32) -> impl Iterator<Item = u16> {
    (0..MAX_PAIRS).filter(move |pair| set >> pair & 1 == 1)
}
