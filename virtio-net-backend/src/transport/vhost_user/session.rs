//! One connection to a frontend: its requests against a device of its own.
//!
//! State is what was said, not where we are in a sequence: each request is stored, then every ring that has all it
//! needs is started. So SET_VRING_ENABLE before SET_FEATURES (QEMU), memory after addresses, or a second memory table
//! while rings run are all the same case.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backend_channel::BackendChannel;
use super::bell;
use super::dirty_log::SharedLog;
use super::fds;
use super::foreign::Foreign;
use super::inflight::InflightMemory;
use super::memory_table::{MAX_SLOTS, MemoryTable};
use super::message::{
    self, Code, F_LOG_ALL, F_PROTOCOL_FEATURES, InflightShape, ProtocolFeatures, Request,
    VringAddresses,
};
use super::refusal::Refusal;
use super::vring::Vring;
use super::wire::{Broken, Message, Wire};
use crate::device::ring::MAX_SIZE;
use crate::device::{Device, Fault, Features, Refused, Settings};

/// Requests handled in one turn; the rest wait, so that a chatty frontend does not hold up frames of others.
const BUDGET: usize = 32;
/// Time after which none is begun in a turn: some cost as much as hundreds of frames.
const TIME: Duration = Duration::from_micros(150);

/// What the process has to do after requests were handled.
#[derive(Debug)]
pub enum Event {
    /// The kick fd of a queue changed. `retired` must leave the poll set before it is closed.
    KickChanged {
        /// The queue.
        queue: u16,
        /// The fd it had.
        retired: Option<OwnedFd>,
    },
    /// A queue started or was enabled: look at it without waiting for a kick.
    Ready,
    /// The driver left, or takes other frames from here on: what waits is not for it.
    DriverChanged,
    /// The guest moved here and cannot announce itself: do it for this address.
    Announce([u8; 6]),
    /// A queue cannot run as it was set up, and waits for another set-up.
    Broken {
        /// The queue.
        queue: u16,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// What a turn over the requests left to do.
#[derive(Debug)]
pub struct Served {
    /// For the process, in order.
    pub events: Vec<Event>,
    /// The budget was used up: more requests may wait.
    pub more: bool,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    pub(super) wire: Wire,
    pub(super) device: Device,
    pub(super) vrings: Vec<Vring>,
    pub(super) table: MemoryTable,
    pub(super) features: u64,
    pub(super) protocol: ProtocolFeatures,
    pub(super) log: Option<SharedLog>,
    pub(super) inflight: Option<InflightMemory>,
    pub(super) channel: Option<BackendChannel>,
    pub(super) status: u8,
    pub(super) events: Vec<Event>,
}

pub(super) enum Answer {
    /// Acknowledged when the frontend asked for that.
    Ack,
    /// Replied to in any case.
    Reply(Vec<u8>, Option<OwnedFd>),
}

impl Session {
    /// A session on a fresh connection.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn new(stream: UnixStream, settings: &Settings) -> io::Result<Self> {
        let device = Device::new(settings);
        let queues = device.queues();
        Ok(Self {
            wire: Wire::new(stream)?,
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            table: MemoryTable::default(),
            features: 0,
            protocol: ProtocolFeatures::default(),
            log: None,
            inflight: None,
            channel: None,
            status: 0,
            events: Vec::new(),
            device,
        })
    }

    /// Handles the requests that have arrived; more may wait when it returns after its budget.
    ///
    /// # Errors
    /// When the connection is over, or the frontend broke the protocol without asking for an acknowledgement.
    pub fn serve(&mut self, mut trace: impl FnMut(&Request)) -> Result<Served, Broken> {
        let mut more = true;
        let began = Instant::now();
        for handled in 0..BUDGET {
            if handled > 0 && began.elapsed() > TIME {
                break;
            }
            let Some(message) = self.wire.receive()? else {
                more = false;
                break;
            };
            let header = message.header;
            match self.handle(message, &mut trace) {
                Ok(Answer::Reply(payload, fd)) => {
                    let bytes = message::encode(header.code, true, &payload);
                    self.wire.send(&bytes, fd.as_ref().map(AsFd::as_fd))?;
                }
                outcome => {
                    let acks = header.wants_ack() && self.protocol.has(ProtocolFeatures::REPLY_ACK);
                    // Who waits for an answer of another length would wait for ever.
                    let answered = Code::from_number(header.code).is_some_and(Code::is_answered);
                    if acks && !answered {
                        let code = u64::from(outcome.is_err());
                        let bytes = message::encode(header.code, true, &code.to_le_bytes());
                        self.wire.send(&bytes, None)?;
                    } else if let Err(refusal) = outcome {
                        return Err(Broken::Socket(io::Error::other(refusal)));
                    }
                }
            }
        }
        let events = std::mem::take(&mut self.events);
        Ok(Served { events, more })
    }

    /// Ends the connection for the frontend, also where somebody keeps it.
    pub fn shut_down(&self) {
        self.wire.shut_down();
    }

    /// Whether the frontend is gone, though what it said before may still be to be read.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.wire.is_over()
    }

    /// The connection, to poll it.
    #[must_use]
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }

    /// The device.
    pub fn device(&mut self) -> &mut Device {
        &mut self.device
    }

    /// The device, to look at.
    #[must_use]
    pub fn device_ref(&self) -> &Device {
        &self.device
    }

    /// Whether memory of the guest went away while it was mapped; nothing good can come of this session.
    #[must_use]
    pub fn has_lost_memory(&self) -> bool {
        self.table.is_lost()
            || self.log.as_ref().is_some_and(SharedLog::is_lost)
            || self.inflight.as_ref().is_some_and(InflightMemory::is_lost)
    }

    /// Number of data queues.
    #[must_use]
    pub fn queues(&self) -> u16 {
        2 * self.device.config().max_queue_pairs
    }

    /// All queues: data, and the control queue where the frontend hands it on.
    pub(super) fn indices(&self) -> std::ops::Range<u16> {
        0..self.device.queues()
    }

    /// The kick fd of a queue.
    #[must_use]
    pub fn kick(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        self.vrings
            .get(usize::from(queue))?
            .kick
            .as_ref()
            .map(AsFd::as_fd)
    }

    /// Whether a queue may carry frames: it runs and is enabled. Without protocol features there is no enabling.
    #[must_use]
    pub fn is_enabled(&self, queue: u16) -> bool {
        self.vrings.get(usize::from(queue)).is_some_and(|vring| {
            vring.running && (vring.enabled || self.features & F_PROTOCOL_FEATURES == 0)
        })
    }

    /// Whether some queue has no kick fd and must be polled.
    #[must_use]
    pub fn is_polled(&self) -> bool {
        self.vrings.iter().any(Vring::is_polled)
    }

    /// Interrupts the driver for a queue.
    pub fn interrupt(&self, queue: u16) {
        if let Some(call) = self
            .vrings
            .get(usize::from(queue))
            .and_then(|vring| vring.call.as_ref())
        {
            bell::ring(call);
        }
    }

    /// Changes the link state and tells the frontend, where it listens.
    pub fn set_link(&mut self, up: bool) {
        if self.device.set_link(up)
            && let Some(channel) = &self.channel
        {
            // A frontend that does not read its channel misses a hint, no more.
            drop(channel.config_changed());
        }
    }

    /// All kick fds, to take them out of a poll set before the session is dropped.
    pub fn retire(&mut self) -> Vec<OwnedFd> {
        let replaced = self.events.drain(..).filter_map(|event| match event {
            Event::KickChanged { retired, .. } => retired,
            Event::Ready | Event::DriverChanged | Event::Announce(_) | Event::Broken { .. } => None,
        });
        let kicks = self.vrings.iter_mut().filter_map(|vring| vring.kick.take());
        replaced.chain(kicks).collect()
    }

    fn handle(
        &mut self,
        message: Message,
        trace: &mut impl FnMut(&Request),
    ) -> Result<Answer, Refusal> {
        let request = Request::parse(message.header.code, &message.payload)?;
        trace(&request);
        let mut fds = message.fds;
        match request {
            Request::GetFeatures => Ok(reply_u64(
                self.device.offered().bits() | F_PROTOCOL_FEATURES | F_LOG_ALL,
            )),
            Request::SetFeatures(bits) => self.set_features(bits),
            Request::GetProtocolFeatures => Ok(reply_u64(ProtocolFeatures::offered().0)),
            Request::SetProtocolFeatures(bits) => self.set_protocol(ProtocolFeatures(bits)),
            Request::GetQueueNum => Ok(reply_u64(self.queue_number())),
            Request::SetOwner | Request::ResetOwner | Request::SetLogFd => Ok(Answer::Ack),
            Request::SetMemTable(regions) => {
                self.table.replace(&regions, fds)?;
                self.memory_changed()
            }
            Request::AddMemReg(region) => {
                self.table.add(region, fds.pop_front())?;
                self.memory_changed()
            }
            Request::RemMemReg(region) => {
                // A frontend may send the region's fd along; it is closed here.
                self.table.remove(region)?;
                self.memory_changed()
            }
            Request::GetMaxMemSlots => Ok(reply_u64(MAX_SLOTS as u64)),
            Request::SetLogBase { size, offset } => self.set_log(size, offset, fds.pop_front()),
            Request::SetVringNum(index, num) => self.set_size(index, num),
            Request::SetVringAddr(index, addresses) => self.set_addresses(index, addresses),
            Request::SetVringBase(index, base) => self.set_base(index, base),
            Request::GetVringBase(index) => self.stop(index),
            Request::SetVringKick(index, with_fd) => self.set_kick(index, with_fd, fds.pop_front()),
            Request::SetVringCall(index, with_fd) => self.set_call(index, with_fd, fds.pop_front()),
            Request::SetVringErr(index, with_fd) => self.set_err(index, with_fd, fds.pop_front()),
            Request::SetVringEnable(index, on) => self.set_enabled(index, on),
            Request::SendRarp(mac) => {
                self.events.push(Event::Announce(mac));
                Ok(Answer::Ack)
            }
            Request::NetSetMtu(mtu) => self.check_mtu(mtu),
            Request::SetBackendReqFd => {
                let fd = fds
                    .pop_front()
                    .ok_or(Refusal::Fd(io::ErrorKind::InvalidInput.into()))?;
                let fd = fds::socket(fd).map_err(Refusal::Fd)?;
                self.channel = Some(BackendChannel::new(fd));
                Ok(Answer::Ack)
            }
            Request::GetConfig {
                offset,
                size,
                flags,
            } => Ok(self.config(offset, size, flags)),
            Request::SetConfig { offset, bytes } => {
                self.device.write_config(offset as usize, &bytes);
                Ok(Answer::Ack)
            }
            Request::GetInflightFd(shape) => match InflightMemory::create(shape) {
                Some((shape, fd)) => Ok(Answer::Reply(shape.encode(), Some(fd))),
                None => Err(Refusal::Range("inflight shape")),
            },
            Request::SetInflightFd(shape) => self.set_inflight(shape, fds.pop_front()),
            Request::ResetDevice => Ok(self.reset()),
            Request::SetStatus(status) => {
                self.status = status;
                Ok(if status == 0 {
                    self.reset()
                } else {
                    Answer::Ack
                })
            }
            Request::GetStatus => Ok(reply_u64(u64::from(self.status))),
        }
    }

    /// The driver goes by what we said: more than that would not get through.
    fn check_mtu(&self, mtu: u64) -> Result<Answer, Refusal> {
        let most = self.device.config().mtu.unwrap_or(u16::MAX);
        let fits = (68..=u64::from(most)).contains(&mtu);
        fits.then_some(Answer::Ack).ok_or(Refusal::Range("mtu"))
    }

    fn set_inflight(
        &mut self,
        shape: InflightShape,
        fd: Option<Foreign>,
    ) -> Result<Answer, Refusal> {
        let fd = fd.ok_or(Refusal::Fd(io::ErrorKind::InvalidInput.into()))?;
        let memory = InflightMemory::map(shape, fd)?;
        // No ring goes on with the old one, which nobody watches any more.
        self.halt_all();
        self.inflight = Some(memory);
        self.start_ready();
        Ok(Answer::Ack)
    }

    pub(super) fn vring(&mut self, index: u16) -> Result<&mut Vring, Refusal> {
        let vring = self.vrings.get_mut(usize::from(index));
        vring.ok_or(Refusal::Device(Refused::NoSuchQueue(index)))
    }

    /// Features as the driver and the frontend chose them; rings are not told yet.
    pub(super) fn accept(&mut self, bits: u64) -> Result<(), Refusal> {
        let wanted = Features::from_bits(bits & !(F_PROTOCOL_FEATURES | F_LOG_ALL));
        self.device.accept(wanted)?;
        self.features = bits;
        let log = self.log.as_ref().filter(|_| bits & F_LOG_ALL != 0);
        self.device.set_log(log.map(|log| Arc::clone(log.log())));
        Ok(())
    }

    fn set_features(&mut self, bits: u64) -> Result<Answer, Refusal> {
        let before = self.device.accepted();
        self.accept(bits)?;
        if self.device.accepted() == before {
            self.start_ready();
        } else {
            self.events.push(Event::DriverChanged);
            self.restart()?;
        }
        Ok(Answer::Ack)
    }

    /// How many queues a frontend may have, in the unit in which it counts: QEMU (it alone takes RARP) counts pairs.
    /// Others count rings: cloud-hypervisor refuses to start when there are too few for its pairs, crosvm gives its
    /// guest exactly so many, the control queue among them.
    fn queue_number(&self) -> u64 {
        if self.protocol.has(ProtocolFeatures::RARP) {
            u64::from(self.device.config().max_queue_pairs)
        } else {
            u64::from(self.device.queues())
        }
    }

    /// The protocol's features as the frontend chose them, and what follows from them.
    pub(super) fn choose(&mut self, protocol: ProtocolFeatures) {
        self.protocol = protocol;
        self.device
            .set_control_here(!protocol.has(ProtocolFeatures::RARP));
    }

    fn set_protocol(&mut self, wanted: ProtocolFeatures) -> Result<Answer, Refusal> {
        if !ProtocolFeatures::offered().has(wanted) {
            return Err(Refusal::Range("protocol features"));
        }
        self.choose(wanted);
        Ok(Answer::Ack)
    }

    fn set_size(&mut self, index: u16, num: u32) -> Result<Answer, Refusal> {
        let size = u16::try_from(num)
            .ok()
            .filter(|size| *size <= MAX_SIZE && size.is_power_of_two());
        self.vring(index)?.size = size.ok_or(Refusal::Range("ring size"))?;
        Ok(Answer::Ack)
    }

    fn set_addresses(&mut self, index: u16, addresses: VringAddresses) -> Result<Answer, Refusal> {
        let vring = self.vring(index)?;
        let moved = vring.addresses.is_some_and(|old| {
            (old.desc, old.avail, old.used) != (addresses.desc, addresses.avail, addresses.used)
        });
        vring.addresses = Some(addresses);
        if vring.running && moved {
            self.halt(index);
        } else if let Some(ring) = self.device.ring(index) {
            // QEMU sends the same addresses again to turn logging on and off.
            ring.set_log_used(addresses.logged.then_some(addresses.log));
        }
        self.start_ready();
        Ok(Answer::Ack)
    }

    fn set_kick(
        &mut self,
        index: u16,
        with_fd: bool,
        fd: Option<Foreign>,
    ) -> Result<Answer, Refusal> {
        let fd = event_fd(with_fd, fd)?;
        let vring = self.vring(index)?;
        let retired = std::mem::replace(&mut vring.kick, fd);
        vring.kick_said = true;
        self.events.push(Event::KickChanged {
            queue: index,
            retired,
        });
        self.start_ready();
        Ok(Answer::Ack)
    }

    fn set_base(&mut self, index: u16, base: u32) -> Result<Answer, Refusal> {
        self.vring(index)?.base = u16::try_from(base).map_err(|_| Refusal::Range("base"))?;
        Ok(Answer::Ack)
    }

    fn set_call(
        &mut self,
        index: u16,
        with_fd: bool,
        fd: Option<Foreign>,
    ) -> Result<Answer, Refusal> {
        let call = event_fd(with_fd, fd)?;
        // Whatever was completed before there was a way to say so.
        call.iter().for_each(bell::ring);
        self.vring(index)?.call = call;
        Ok(Answer::Ack)
    }

    fn set_err(
        &mut self,
        index: u16,
        with_fd: bool,
        fd: Option<Foreign>,
    ) -> Result<Answer, Refusal> {
        self.vring(index)?.err = event_fd(with_fd, fd)?;
        Ok(Answer::Ack)
    }

    fn set_enabled(&mut self, index: u16, on: bool) -> Result<Answer, Refusal> {
        self.vring(index)?.enabled = on;
        self.events.push(Event::Ready);
        Ok(Answer::Ack)
    }

    fn set_log(&mut self, size: u64, offset: u64, fd: Option<Foreign>) -> Result<Answer, Refusal> {
        let fd = fd.ok_or(Refusal::Fd(io::ErrorKind::InvalidInput.into()))?;
        let shared = SharedLog::map(fd, offset, size)?;
        let log = Arc::clone(shared.log());
        let due = self.features & F_LOG_ALL != 0;
        self.device.set_log(due.then_some(log));
        self.log = Some(shared);
        // QEMU looks at the kind of this answer only; cloud-hypervisor waits for as many bytes as it sent.
        let payload = [size, offset].map(u64::to_le_bytes);
        Ok(Answer::Reply(payload.as_flattened().to_vec(), None))
    }

    fn config(&self, offset: u32, size: u32, flags: u32) -> Answer {
        let mut payload = Vec::with_capacity(12 + size as usize);
        for word in [offset, size, flags] {
            payload.extend(word.to_le_bytes());
        }
        payload.resize(12 + size as usize, 0);
        self.device
            .config()
            .read(offset as usize, &mut payload[12..]);
        Answer::Reply(payload, None)
    }
}

fn reply_u64(value: u64) -> Answer {
    Answer::Reply(value.to_le_bytes().to_vec(), None)
}

/// The fd of a kick, call or err request.
pub(super) fn event_fd(with_fd: bool, fd: Option<Foreign>) -> Result<Option<OwnedFd>, Refusal> {
    match (with_fd, fd) {
        (true, Some(fd)) => fds::event(fd).map(Some).map_err(Refusal::Fd),
        (true, None) => Err(Refusal::Fd(io::ErrorKind::InvalidInput.into())),
        (false, _) => Ok(None),
    }
}
