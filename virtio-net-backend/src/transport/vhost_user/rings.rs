//! The rings of a session: when they start, stop, wait for memory, and fail.
//!
//! ```text
//!   said: size, addresses, kick ──► runs ──► broken: waits for a new kick
//!            ▲        memory gone │  ▲
//!            │                    ▼  │ memory there
//!   GET_VRING_BASE, reset ◄── waits for memory
//! ```

use super::bell;
use super::refusal::Refusal;
use super::session::{Answer, Event, Session};
use crate::device::{Fault, QueueState, Refused, Role};

impl Session {
    /// Stops a queue whose driver broke it and says so to the frontend.
    pub fn fail(&mut self, queue: u16) {
        self.device.stop_queue(queue);
        if let Some(vring) = self.vrings.get_mut(usize::from(queue)) {
            vring.running = false;
            // Not started again until the frontend sets it up anew.
            vring.kick_said = false;
            if let Some(err) = &vring.err {
                bell::ring(err);
            }
        }
    }

    /// Serves the control queue, where the frontend hands it on; how many commands there were. The driver kicks for the
    /// next, unless there were so many that it is to be served again.
    ///
    /// # Errors
    /// When the driver broke the ring, which is its number.
    pub fn serve_control(&mut self) -> Result<usize, (u16, Fault)> {
        if !self.device.control().is_running() {
            return Ok(0);
        }
        let is_control = |index: &u16| self.device.role(*index) == Some(Role::Control);
        let Some(index) = self.indices().find(is_control) else {
            return Ok(0);
        };
        if !self.is_enabled(index) {
            return Ok(0);
        }
        let turn = self
            .device
            .serve_control()
            .map_err(|fault| (index, fault))?;
        if turn.interrupt {
            self.interrupt(index);
        }
        Ok(turn.commands)
    }

    /// Stops a ring and says from where a successor goes on.
    pub(super) fn stop(&mut self, index: u16) -> Result<Answer, Refusal> {
        self.vring(index)?;
        self.halt(index);
        let vring = self.vring(index)?;
        vring.kick_said = false;
        vring.call = None;
        let retired = vring.kick.take();
        let base = vring.base;
        self.events.push(Event::KickChanged {
            queue: index,
            retired,
        });
        // Not every frontend says more than that when its guest is reset.
        if self.vrings.iter().all(|vring| !vring.running) {
            self.events.push(Event::DriverChanged);
        }
        let mut payload = u32::from(index).to_le_bytes().to_vec();
        payload.extend(u32::from(base).to_le_bytes());
        Ok(Answer::Reply(payload, None))
    }

    pub(super) fn reset(&mut self) -> Answer {
        self.halt_all();
        self.device.reset();
        self.events.push(Event::DriverChanged);
        for vring in &mut self.vrings {
            vring.enabled = false;
            vring.kick_said = false;
            // `base` stays: QEMU (7.2) resets by SET_STATUS and asks where the rings stood only after that.
        }
        Answer::Ack
    }

    pub(super) fn memory_changed(&mut self) -> Result<Answer, Refusal> {
        self.halt_all();
        match self.table.memory() {
            Some(memory) => self.device.set_memory(memory),
            None => self.device.forget_memory(),
        }
        self.start_ready();
        Ok(Answer::Ack)
    }

    pub(super) fn restart(&mut self) -> Result<(), Refusal> {
        self.memory_changed().map(|_| ())
    }

    /// Stops all rings in the device; those that can start do so at the next [`Session::start_ready`].
    pub(super) fn halt_all(&mut self) {
        for index in self.indices() {
            self.halt(index);
        }
    }

    /// Stops a ring in the device and keeps where it stood.
    pub(super) fn halt(&mut self, index: u16) {
        let state = self.device.stop_queue(index);
        if let Some(vring) = self.vrings.get_mut(usize::from(index)) {
            vring.running = false;
            if let Some(state) = state {
                vring.base = state.next_avail;
            }
        }
    }

    /// Starts each ring that has all it needs. One whose memory is not there waits for it: a frontend may say where its
    /// rings are before it says what its memory is, and may take memory away and bring it again. One that cannot be a
    /// ring is reported and waits for a new set-up.
    pub(super) fn start_ready(&mut self) {
        if self.device.memory().is_none() {
            return;
        }
        for index in self.indices() {
            if !self.vrings[usize::from(index)].can_start() || self.device.role(index).is_none() {
                continue;
            }
            let Some(setup) = self.setup(index) else {
                continue;
            };
            match self.start(index, setup) {
                Ok(()) => self.events.push(Event::Ready),
                Err(refused) => {
                    self.fail(index);
                    if let Refused::Ring(fault) = refused {
                        self.events.push(Event::Broken {
                            queue: index,
                            fault,
                        });
                    }
                }
            }
        }
    }

    /// Where a ring is in the guest's memory; `None` while any part of it is nowhere there.
    fn setup(&self, index: u16) -> Option<QueueState> {
        let vring = self.vrings.get(usize::from(index))?;
        let addresses = vring.addresses?;
        let guest = |user| self.table.guest_address(user);
        Some(QueueState {
            size: vring.size,
            desc_table: guest(addresses.desc)?,
            avail_ring: guest(addresses.avail)?,
            used_ring: guest(addresses.used)?,
            next_avail: vring.base,
            ..QueueState::default()
        })
    }

    fn start(&mut self, index: u16, setup: QueueState) -> Result<(), Refused> {
        self.device.start_queue_where_driver_stands(index, setup)?;
        let vring = &mut self.vrings[usize::from(index)];
        vring.running = true;
        if let Some(ring) = self.device.ring(index) {
            let logged = vring.addresses.filter(|addresses| addresses.logged);
            ring.set_log_used(logged.map(|addresses| addresses.log));
            let memory = self.inflight.as_ref();
            if let Some(record) = memory.and_then(|memory| memory.queue(index, setup.size)) {
                ring.set_inflight(record);
            }
        }
        Ok(())
    }
}
