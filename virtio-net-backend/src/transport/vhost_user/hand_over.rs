//! A session that outlives its process.
//!
//! Between two messages all that a session is can be said in a few numbers and open files: what the frontend told us,
//! and the fds it sent. Whoever holds those (netd does) can give them to the next process when this one was killed.
//! The frontend's connection is among them, so it never closes and the frontend notices nothing: no VMM has to
//! reconnect, and one that cannot (crosvm) need not.
//!
//! ```text
//!   frontend ---- message ---> serve() ---> Kept + fds ---> who keeps it ..., killed ..., Kept + fds ---> resume()
//! ```
//! Where the rings stood need not be told: chains are given back in the order in which they were taken, so a successor
//! goes on from the used index that the driver sees. What was taken and not given back is taken again. Within a message
//! a session cannot be kept: its outcome may have been said or not.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use super::backend_channel::BackendChannel;
use super::bell;
use super::dirty_log::SharedLog;
use super::fds;
use super::foreign::Foreign;
use super::inflight::InflightMemory;
use super::memory_table::shared_file;
use super::message::{InflightShape, MemoryRegion, ProtocolFeatures, VringAddresses};
use super::refusal::Refusal;
use super::session::{Event, Session, event_fd};
use super::vring::Vring;
use crate::device::Settings;

/// What a session was told, for a successor. Its fds go beside it, in this order: the connection, the regions, the log,
/// the memory for chains in flight, the channel, then each ring's kick, call and error fd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kept {
    features: u64,
    protocol: ProtocolFeatures,
    status: u8,
    regions: Vec<KeptRegion>,
    log: Option<KeptLog>,
    inflight: Option<InflightShape>,
    channel: bool,
    vrings: Vec<KeptVring>,
    /// Queue pairs in use, where the driver told us by its control queue.
    #[serde(default)]
    pairs: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptRegion {
    region: MemoryRegion,
    times: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeptLog {
    offset: u64,
    size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct KeptVring {
    size: u16,
    base: u16,
    addresses: Option<VringAddresses>,
    kick_said: bool,
    enabled: bool,
    running: bool,
    kick: bool,
    call: bool,
    err: bool,
}

impl Kept {
    /// How many fds belong to it.
    #[must_use]
    pub fn fds(&self) -> usize {
        let single = [self.log.is_some(), self.inflight.is_some(), self.channel];
        let rings = self
            .vrings
            .iter()
            .flat_map(|ring| [ring.kick, ring.call, ring.err]);
        let others = single.into_iter().chain(rings).filter(|there| *there);
        1 + self.regions.len() + others.count()
    }
}

impl Session {
    /// All that a successor needs; `None` within a message.
    #[must_use]
    pub fn kept(&self) -> Option<(Kept, Vec<BorrowedFd<'_>>)> {
        if !self.wire.is_between_messages() {
            return None;
        }
        let mut fds = vec![self.wire.as_fd()];
        let mut regions = Vec::new();
        for (region, times, fd) in self.table.entries() {
            fds.push(fd?);
            regions.push(KeptRegion { region, times });
        }
        let log = match &self.log {
            Some(log) => {
                let (fd, offset, size) = shared_file(log.log().region())?;
                fds.push(fd);
                Some(KeptLog { offset, size })
            }
            None => None,
        };
        let inflight = match &self.inflight {
            Some(memory) => {
                let (shape, fd) = memory.kept()?;
                fds.push(fd);
                Some(shape)
            }
            None => None,
        };
        fds.extend(self.channel.as_ref().map(AsFd::as_fd));
        let mut vrings = Vec::new();
        for vring in &self.vrings {
            let all = [&vring.kick, &vring.call, &vring.err];
            fds.extend(all.into_iter().flatten().map(AsFd::as_fd));
            vrings.push(KeptVring::of(vring));
        }
        let kept = Kept {
            features: self.features,
            protocol: self.protocol,
            status: self.status,
            regions,
            log,
            inflight,
            channel: self.channel.is_some(),
            vrings,
            pairs: self
                .device
                .control()
                .is_running()
                .then(|| self.device.control().pairs()),
        };
        Some((kept, fds))
    }

    /// Goes on with what a predecessor was told. [`Session::serve`] has the events of the start.
    ///
    /// # Errors
    /// When the fds are not those that belong to it, or this device cannot do what the predecessor's could.
    pub fn resume(
        settings: &Settings,
        kept: &Kept,
        mut fds: VecDeque<OwnedFd>,
    ) -> Result<Self, Refusal> {
        let missing = || Refusal::Fd(io::ErrorKind::InvalidInput.into());
        if fds.len() != kept.fds() {
            return Err(missing());
        }
        let mut next = || fds.pop_front().ok_or_else(missing);
        let stream = UnixStream::from(next()?);
        let mut next = || next().map(Foreign::from);
        let mut session = Self::new(stream, settings).map_err(Refusal::Fd)?;
        // A predecessor of another version may not have known the control queue.
        if session.vrings.len() < kept.vrings.len() {
            return Err(Refusal::Range("number of rings"));
        }
        if !ProtocolFeatures::offered().has(kept.protocol) {
            return Err(Refusal::Range("protocol features"));
        }
        session.choose(kept.protocol);
        session.status = kept.status;
        for kept in &kept.regions {
            session.table.add(kept.region, Some(next()?))?;
            let again = kept.times.saturating_sub(1);
            session.table.add_again(kept.region, again);
        }
        if let Some(memory) = session.table.memory() {
            session.device.set_memory(memory);
        }
        if let Some(log) = &kept.log {
            session.log = Some(SharedLog::map(next()?, log.offset, log.size)?);
        }
        if let Some(shape) = kept.inflight {
            session.inflight = Some(InflightMemory::map(shape, next()?)?);
        }
        if kept.channel {
            session.channel = Some(BackendChannel::new(
                fds::socket(next()?).map_err(Refusal::Fd)?,
            ));
        }
        session.accept(kept.features)?;
        if let Some(pairs) = kept.pairs {
            session.device.set_pairs(pairs)?;
        }
        for (index, kept) in kept.vrings.iter().enumerate() {
            let mut take = |there: bool| event_fd(there, there.then(&mut next).transpose()?);
            let fds = [take(kept.kick)?, take(kept.call)?, take(kept.err)?];
            session.vrings[index] = kept.vring(fds);
        }
        session.go_on(kept)?;
        Ok(session)
    }

    /// Starts the rings that ran, from where their drivers stand, and makes up for what a killed process did not say.
    fn go_on(&mut self, kept: &Kept) -> Result<(), Refusal> {
        let rings = self.vrings.iter_mut().zip(&kept.vrings).zip(0u16..);
        for ((vring, _), index) in rings.filter(|((_, kept), _)| kept.running) {
            let outside = Refusal::RingOutside(index);
            let used = vring.addresses.map(|addresses| addresses.used);
            let used = used.and_then(|used| self.table.guest_address(used));
            vring.base = self.device.used_index(used.ok_or(outside)?)?;
            if let (Some(log), Some(addresses)) = (&self.log, vring.addresses)
                && addresses.logged
            {
                log.log().mark(addresses.log, 6 + 8 * u64::from(vring.size));
            }
        }
        self.start_ready();
        for (vring, queue) in self.vrings.iter().zip(0u16..) {
            let retired = None;
            self.events.push(Event::KickChanged { queue, retired });
            // The used index may have been published without an interrupt.
            vring.call.iter().for_each(bell::ring);
        }
        Ok(())
    }
}

impl KeptVring {
    fn of(vring: &Vring) -> Self {
        Self {
            size: vring.size,
            base: vring.base,
            addresses: vring.addresses,
            kick_said: vring.kick_said,
            enabled: vring.enabled,
            running: vring.running,
            kick: vring.kick.is_some(),
            call: vring.call.is_some(),
            err: vring.err.is_some(),
        }
    }

    fn vring(&self, [kick, call, err]: [Option<OwnedFd>; 3]) -> Vring {
        Vring {
            size: self.size,
            base: self.base,
            addresses: self.addresses,
            kick_said: self.kick_said,
            kick,
            call,
            err,
            enabled: self.enabled,
            running: false,
        }
    }
}
