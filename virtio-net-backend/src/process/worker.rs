//! The loop: events in, turns of the data plane, sleep.
//!
//! ```text
//!            kick, tap, timer
//!   asleep ------------------> working: turn after turn, kicks off, a look at the poll set now and then
//!      ^                          | nothing moved
//!      |  armed, still nothing    v
//!      +---------------------- lingering: looks at the rings a little longer, as long as that has paid off lately
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::control::Control;
use super::keeping::Keeping;
use super::middle::Middle;
use super::network::Network;
use super::poll::{Poll, Source};
use super::port::{Door, Port};
use crate::port::Tap;
use crate::switch::{PortIndex, Time};
use crate::transport::vhost_user::{Event, lost_memory};

/// Turns between two looks at the poll set while frames move.
const TURNS_PER_LOOK: u32 = 8;
/// Longest time the rings are looked at without anything to do.
const LINGER: Duration = Duration::from_micros(50);
/// A sleep shorter than this would better not have been.
const SHORT_SLEEP: Duration = Duration::from_micros(60);
/// How soon we come again to a frontend that was away.
const RETRY: Duration = Duration::from_millis(100);
/// How often somebody is turned away who comes again and again to a port that has a frontend.
const TURN_AWAY: Duration = Duration::from_secs(1);
/// How often a ring without kicks is looked at.
const POLLED: Duration = Duration::from_micros(200);
/// How often the switch forgets silent addresses.
const AGEING: Duration = Duration::from_secs(30);

/// The loop and all it owns.
pub struct Worker {
    poll: Poll,
    pub(super) network: Network,
    control: Option<Control>,
    pub(super) keeping: Keeping,
    start: Instant,
    linger: Duration,
    retry_at: Option<Instant>,
    turn_away_at: Option<Instant>,
    age_at: Instant,
    /// Frames moved since the switch last forgot silent addresses: there may be some to forget.
    learnt: bool,
    /// Ports whose frontends have something to say, or may be waiting at the door. Each is served once a look, however
    /// much it says.
    unserved: Vec<u16>,
    stop: bool,
}

impl Worker {
    /// A worker over a network; ports are added by [`Worker::add`] or by the control socket.
    ///
    /// # Errors
    /// When the kernel gives no poll set.
    pub fn new(mut network: Network, control: Option<Control>) -> io::Result<Self> {
        let poll = Poll::new()?;
        if let Some(uplink) = network.uplink() {
            poll.watch(uplink.tap.as_fd(), Source::Uplink)?;
        }
        network.set_uplink_offloads()?;
        if let Some(control) = &control {
            poll.watch(control.as_fd(), Source::Control)?;
        }
        let start = Instant::now();
        Ok(Self {
            poll,
            network,
            control,
            keeping: Keeping::default(),
            start,
            linger: Duration::ZERO,
            retry_at: None,
            turn_away_at: None,
            age_at: start + AGEING,
            learnt: false,
            unserved: Vec::new(),
            stop: false,
        })
    }

    /// Stops the loop when this fd becomes readable (a signalfd).
    ///
    /// # Errors
    /// When it cannot be polled.
    pub fn stop_on(&self, fd: impl AsFd) -> io::Result<()> {
        self.poll.watch(fd, Source::Signal)
    }

    /// Ends the loop after what it does now.
    pub(super) fn stop(&mut self) {
        self.stop = true;
    }

    /// Adds a port under a free number, with or without a session that goes on.
    ///
    /// # Errors
    /// When its listener cannot be polled.
    pub fn add(&mut self, number: u16, port: Port) -> io::Result<()> {
        match &port.door {
            Door::Listen { listener, .. } => self.poll.watch(listener, Source::Door(number))?,
            // Not before the loop runs: names of sockets count from the directory that the sandbox enters.
            Door::Connect(_) => self.retry_at = Some(Instant::now()),
        }
        let listens = matches!(port.door, Door::Listen { .. });
        let goes_on = port.session.is_some();
        self.network.insert(number, port);
        if goes_on {
            self.welcome(number);
        } else if listens {
            self.knock(number);
        }
        self.keep(number);
        Ok(())
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// When polling fails, which leaves nothing to do.
    pub fn run(&mut self) -> io::Result<()> {
        let mut turns = 0u32;
        let mut quiet_since: Option<Instant> = None;
        while !self.stop {
            let now = self.time();
            let moved = self.network.turn(now);
            turns = turns.wrapping_add(1);
            if moved > 0 {
                quiet_since = None;
                self.learnt = true;
                if turns.is_multiple_of(TURNS_PER_LOOK) {
                    self.look(Some(Duration::ZERO))?;
                }
                continue;
            }
            let since = *quiet_since.get_or_insert_with(Instant::now);
            if since.elapsed() < self.linger {
                if turns.is_multiple_of(TURNS_PER_LOOK) {
                    self.look(Some(Duration::ZERO))?;
                } else {
                    std::hint::spin_loop();
                }
                continue;
            }
            if self.network.arm(now) {
                // Should this be a tap that takes nothing, there is more in the world than its frames.
                self.look(Some(Duration::ZERO))?;
                continue;
            }
            self.sleep(now)?;
            quiet_since = None;
        }
        Ok(())
    }

    fn sleep(&mut self, now: Time) -> io::Result<()> {
        let timeout = self.timeout(now);
        let began = Instant::now();
        self.look(timeout)?;
        // Lingering is worth it only where frames follow each other closely.
        self.linger = if began.elapsed() < SHORT_SLEEP {
            (self.linger * 2).clamp(Duration::from_micros(5), LINGER)
        } else {
            self.linger / 2
        };
        Ok(())
    }

    fn timeout(&self, now: Time) -> Option<Duration> {
        if !self.unserved.is_empty() {
            return Some(Duration::ZERO);
        }
        let wall = Instant::now();
        let after = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(wall));
        let [retry, tell, turn_away] =
            [self.retry_at, self.keeping.again_at(), self.turn_away_at].map(after);
        let polled = self.network.is_polled().then_some(POLLED);
        let age = self
            .learnt
            .then(|| self.age_at.saturating_duration_since(wall));
        let rate = self.network.rate_wait(now);
        let all = [retry, tell, turn_away, polled, age, rate];
        all.into_iter().flatten().min()
    }

    fn look(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        // Before it waits: who lost memory may have nothing more to say.
        let timeout = if lost_memory::take_any() {
            self.end_lost();
            Some(Duration::ZERO)
        } else {
            timeout
        };
        for source in self.poll.wait(timeout)? {
            self.handle(source);
        }
        for number in std::mem::take(&mut self.unserved) {
            self.serve(number);
        }
        self.timers();
        Ok(())
    }

    /// Serves it with the next look, once.
    pub(super) fn serve_soon(&mut self, number: u16) {
        if !self.unserved.contains(&number) {
            self.unserved.push(number);
        }
    }

    /// Ends the sessions whose guest memory went away.
    fn end_lost(&mut self) {
        let is_lost = |port: &Port| {
            port.session
                .as_ref()
                .is_some_and(|session| session.has_lost_memory())
        };
        let lost: Vec<u16> = self
            .network
            .ports()
            .filter(|(_, port)| is_lost(port))
            .map(|(n, _)| n)
            .collect();
        for number in lost {
            if let Some(port) = self.speak_of(number) {
                tracing::warn!(port, "guest memory went away; frontend dropped");
            }
            self.end(number);
            self.knock(number);
        }
    }

    fn timers(&mut self) {
        let now = Instant::now();
        if self.retry_at.take_if(|at| *at <= now).is_some() {
            let waiting = self.ports_that(connects);
            waiting.into_iter().for_each(|number| self.knock(number));
        }
        if self.turn_away_at.take_if(|at| *at <= now).is_some() {
            let visited = self.ports_that(|port| port.turned_away);
            visited
                .into_iter()
                .for_each(|number| self.turn_away(number));
        }
        if self.keeping.again_at().is_some_and(|at| at <= now) {
            self.tell_again();
        }
        if self.age_at <= now {
            self.age_at = now + AGEING;
            self.learnt = false;
            let time = self.time();
            if let Middle::Switch(switch) = self.network.middle() {
                switch.age(time);
            }
        }
    }

    fn ports_that(&self, wanted: impl Fn(&Port) -> bool) -> Vec<u16> {
        let ports = self.network.ports().filter(|(_, port)| wanted(port));
        ports.map(|(number, _)| number).collect()
    }

    fn handle(&mut self, source: Source) {
        match source {
            Source::Uplink => {
                if let Some(uplink) = self.network.uplink() {
                    uplink.readable = true;
                }
            }
            Source::Kick(number, _) => self.network.wake(number),
            Source::Door(number) => self.knock(number),
            Source::Session(number) => self.serve_soon(number),
            Source::Control | Source::ControlClient(_) => self.command(source),
            Source::Signal => self.stop = true,
        }
    }

    /// Goes on with another tap as the uplink.
    ///
    /// # Errors
    /// When it is no tap, or there never was an uplink.
    pub fn set_uplink(&mut self, fd: OwnedFd) -> io::Result<()> {
        let missing = || io::Error::other("this process was started without an uplink");
        let uplink = self.network.uplink().ok_or_else(missing)?;
        let tap = Tap::from_fd(fd, uplink.tap.name())?;
        self.poll.watch(tap.as_fd(), Source::Uplink)?;
        self.poll.forget(uplink.tap.as_fd());
        uplink.tap = tap;
        uplink.readable = true;
        self.network.set_uplink_offloads()
    }

    /// Takes the next frontend of a port; those that come while one is there are turned away.
    fn knock(&mut self, number: u16) {
        let Some(port) = self.network.port(number) else {
            return;
        };
        if port.session.is_some() {
            // QEMU comes again at once and without end: the next one waits for its time.
            if !port.turned_away || self.turn_away_at.is_none() {
                self.turn_away(number);
            }
            return;
        }
        let Some(stream) = port.door.knock() else {
            if matches!(port.door, Door::Connect(_)) {
                self.retry_at = Some(Instant::now() + RETRY);
            }
            return;
        };
        self.admit(number, stream);
        // Another may have come with it.
        self.turn_away(number);
    }

    /// Closes the connection of who comes to a port that has a frontend, so that a second VMM fails rather than waits.
    fn turn_away(&mut self, number: u16) {
        let Some(port) = self.network.port(number) else {
            return;
        };
        let (Some(session), Door::Listen { listener, .. }) = (&port.session, &port.door) else {
            return;
        };
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        // Asked only now: a VMM that comes again has left before, though its last words may still be to be read.
        if session.is_over() {
            if let Some(port) = self.speak_of(number) {
                tracing::info!(port, "frontend left, and another is here");
            }
            self.end(number);
            self.admit(number, stream);
            return;
        }
        if !std::mem::replace(&mut port.turned_away, true) {
            tracing::warn!(
                port = port.name,
                "a second frontend came and was turned away"
            );
        }
        self.turn_away_at
            .get_or_insert_with(|| Instant::now() + TURN_AWAY);
    }

    fn admit(&mut self, number: u16, stream: UnixStream) {
        let Some(port) = self.network.port(number) else {
            return;
        };
        if let Err(error) = port.open(stream) {
            if connects(port) {
                self.retry_at = Some(Instant::now() + RETRY);
            }
            if let Some(port) = self.speak_of(number) {
                tracing::warn!(port, %error, "frontend refused");
            }
            return;
        }
        if let Some(port) = self.speak_of(number) {
            tracing::info!(port, "frontend came");
        }
        self.welcome(number);
    }

    /// Polls the connection of a session that begins or goes on, and looks at what it has said already.
    fn welcome(&mut self, number: u16) {
        let Some(port) = self.network.port(number) else {
            return;
        };
        let watched = match &port.session {
            Some(session) => self
                .poll
                .watch(session.connection(), Source::Session(number)),
            None => Ok(()),
        };
        if let Err(error) = watched {
            if let Some(port) = self.speak_of(number) {
                tracing::warn!(port, %error, "frontend cannot be polled");
            }
            self.end(number);
        } else {
            self.serve(number);
        }
    }

    /// Handles what a frontend asks, as much as one turn allows, or looks for one. Meanwhile nobody keeps its session:
    /// killed within a message, we leave a frontend that must come again rather than one that waits for an answer for
    /// ever. So who keeps it must be told before.
    pub(super) fn serve(&mut self, number: u16) {
        let Some(port) = self.network.port(number) else {
            return;
        };
        if port.session.is_none() {
            return self.knock(number);
        }
        if self.tell(number, false) {
            self.serve_session(number);
            self.network.note_polled(number);
            self.keep(number);
        }
    }

    fn serve_session(&mut self, number: u16) {
        let Some(port) = self.network.port(number) else {
            return;
        };
        let name = &port.name;
        let Some(session) = &mut port.session else {
            return;
        };
        match session.serve(|request| tracing::debug!(port = name, ?request, "request")) {
            Ok(served) => {
                if served.more {
                    self.serve_soon(number);
                }
                self.apply(number, served.events);
            }
            Err(reason) => {
                if let Some(port) = self.speak_of(number) {
                    tracing::info!(port, %reason, "frontend left");
                }
                self.end(number);
                // The next one may be waiting already.
                self.serve_soon(number);
            }
        }
    }

    fn apply(&mut self, number: u16, events: Vec<Event>) {
        for event in events {
            match event {
                Event::KickChanged { queue, retired } => {
                    retired.iter().for_each(|fd| self.poll.forget(fd));
                    let session = self
                        .network
                        .port(number)
                        .and_then(|port| port.session.as_ref());
                    if let Some(kick) = session.and_then(|session| session.kick(queue))
                        && let Err(error) = self.poll.watch(kick, Source::Kick(number, queue))
                        && let Some(port) = self.speak_of(number)
                    {
                        tracing::warn!(port, %error, queue, "kick fd cannot be polled");
                    }
                }
                Event::Ready => {
                    self.network.wake(number);
                    self.negotiated(number);
                }
                Event::DriverChanged => {
                    if let Some(port) = self.network.port(number) {
                        port.forget_waiting();
                    }
                }
                Event::Broken { queue, fault } => {
                    if let Some(port) = self.network.port(number) {
                        port.broke(queue, fault);
                    }
                }
                Event::Announce(mac) => {
                    let now = self.time();
                    self.network.originate(number, &announcement(mac), now);
                }
            }
        }
    }

    /// What a driver takes may have changed.
    fn negotiated(&mut self, number: u16) {
        if matches!(self.network.middle(), Middle::Wire) {
            if let Err(error) = self.network.set_uplink_offloads()
                && let Some(port) = self.speak_of(number)
            {
                tracing::warn!(port, %error, "offloads of the tap");
            }
            // Frames that came before there was anyone to take them.
            if let Some(uplink) = self.network.uplink() {
                uplink.readable = true;
            }
        }
    }

    /// The name of a port of which one more line may be said, because of its frontend.
    fn speak_of(&mut self, number: u16) -> Option<&str> {
        let port = self.network.port(number)?;
        port.voice.may_speak(&port.name).then_some(&port.name)
    }

    fn end(&mut self, number: u16) {
        for fd in self.network.close(number) {
            self.poll.forget(fd);
        }
        self.keep(number);
        if self.network.port(number).is_some_and(|port| connects(port)) {
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    fn command(&mut self, source: Source) {
        let Some(mut control) = self.control.take() else {
            return;
        };
        control.serve(source, self);
        self.control = Some(control);
    }

    pub(super) fn poll(&self) -> &Poll {
        &self.poll
    }

    pub(super) fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    /// Takes a port away with all that is polled for it.
    pub(super) fn remove(&mut self, number: u16) -> Option<Box<Port>> {
        self.end(number);
        let port = self.network.remove(number)?;
        self.keep_no_more(&port.name);
        if let Door::Listen { listener, .. } = &port.door {
            self.poll.forget(listener);
        }
        if let (Middle::Switch(switch), Some(index)) =
            (self.network.middle(), PortIndex::new(usize::from(number)))
        {
            switch.detach(index);
        }
        Some(port)
    }

    pub(super) fn time(&self) -> Time {
        Time::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

fn connects(port: &Port) -> bool {
    port.session.is_none() && matches!(port.door, Door::Connect(_))
}

/// A RARP request for one's own address, as every switch on the way learns from it (RFC 903).
fn announcement(mac: [u8; 6]) -> Vec<u8> {
    let mut linear = crate::device::NetHeader::default().encode().to_vec();
    linear.extend([0xff; 6]);
    linear.extend(mac);
    linear.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    linear.extend(mac);
    linear.extend([0; 4]);
    linear.extend(mac);
    linear.extend([0; 4]);
    linear.resize(crate::device::header::HEADER_LEN + 60, 0);
    linear
}
