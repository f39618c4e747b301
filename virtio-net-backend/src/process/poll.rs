//! The poll set. All fds are edge-triggered: an event says «look», and who looks does so until there is nothing more.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The uplink tap has frames.
    Uplink,
    /// The listener of a port.
    Door(u16),
    /// The connection of a port.
    Session(u16),
    /// A kick for a queue of a port.
    Kick(u16, u16),
    /// The control listener.
    Control,
    /// A control connection.
    ControlClient(u16),
    /// A signal asks to stop.
    Signal,
}

impl Source {
    fn encode(self) -> u64 {
        let (kind, port, queue) = match self {
            Self::Uplink => (0, 0, 0),
            Self::Door(port) => (1, port, 0),
            Self::Session(port) => (2, port, 0),
            Self::Kick(port, queue) => (3, port, queue),
            Self::Control => (4, 0, 0),
            Self::ControlClient(client) => (5, client, 0),
            Self::Signal => (6, 0, 0),
        };
        kind << 32 | u64::from(port) << 16 | u64::from(queue)
    }

    fn decode(token: u64) -> Option<Self> {
        let part = |shift: u32| u16::try_from(token >> shift & 0xffff).unwrap_or(0);
        let (port, queue) = (part(16), part(0));
        match token >> 32 {
            0 => Some(Self::Uplink),
            1 => Some(Self::Door(port)),
            2 => Some(Self::Session(port)),
            3 => Some(Self::Kick(port, queue)),
            4 => Some(Self::Control),
            5 => Some(Self::ControlClient(port)),
            6 => Some(Self::Signal),
            _ => None,
        }
    }
}

/// The poll set.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    /// An empty set.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(64),
        })
    }

    /// Watches an fd for input.
    ///
    /// # Errors
    /// When the fd cannot be polled.
    pub fn watch(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        self.watch_for(epoll::EventFlags::IN, fd, source)
    }

    /// Watches an fd for input, and for room after there was none.
    ///
    /// # Errors
    /// When the fd cannot be polled.
    pub fn watch_both_ways(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        let both = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        self.watch_for(both, fd, source)
    }

    fn watch_for(&self, what: epoll::EventFlags, fd: impl AsFd, source: Source) -> io::Result<()> {
        let flags = what | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(source.encode());
        match epoll::add(&self.epoll, &fd, data, flags) {
            // A kick that was told twice before we looked.
            Err(Errno::EXIST) => Ok(epoll::modify(&self.epoll, fd, data, flags)?),
            done => Ok(done?),
        }
    }

    /// No longer watches it. Needed before a shared fd is closed: the frontend's copy would keep it in the set.
    pub fn forget(&self, fd: impl AsFd) {
        // It may never have been watched, which is as good.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for events; at once when `timeout` is zero, without end when it is `None`.
    ///
    /// # Errors
    /// When polling fails.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<impl Iterator<Item = Source> + use<>> {
        let timeout = timeout.map(|timeout| rustix::event::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let sources: Vec<Source> = self
            .events
            .iter()
            .filter_map(|event| Source::decode(event.data.u64()))
            .collect();
        Ok(sources.into_iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_its_token() {
        for source in [
            Source::Uplink,
            Source::Door(7),
            Source::Session(1023),
            Source::Kick(1023, 31),
            Source::Control,
            Source::ControlClient(3),
            Source::Signal,
        ] {
            assert_eq!(Source::decode(source.encode()), Some(source));
        }
        assert_eq!(Source::decode(u64::MAX), None);
    }

    #[test]
    fn an_event_comes_once_for_each_edge() {
        let mut poll = Poll::new().expect("epoll");
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("eventfd");
        poll.watch(&fd, Source::Kick(1, 2)).expect("watched");
        let mut look = || {
            poll.wait(Some(Duration::ZERO))
                .expect("polled")
                .collect::<Vec<_>>()
        };
        assert_eq!(look(), []);
        crate::transport::vhost_user::bell::ring(&fd);
        assert_eq!(look(), [Source::Kick(1, 2)]);
        assert_eq!(look(), []);
        crate::transport::vhost_user::bell::ring(&fd);
        assert_eq!(look(), [Source::Kick(1, 2)]);
    }
}
