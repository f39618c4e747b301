//! A virtio-mmio device for a VMM that wants the network in its own process. [`Nic`] is all of it:
//!
//! ```text
//!   vCPU thread                      Nic                          network thread
//!   exit at BASE + offset  ──►  read / write registers
//!   (notify: in the kernel) ──► doorbell eventfd  ───────────►  wait, then Link::turn(), which moves frames
//!   interrupt  ◄── irqfd ◄────  interrupt eventfd  ◄───────────  and interrupts where the driver wants that
//! ```
//!
//! With kvm-ioctls this is (complete in `examples/src/bin/tiny_vmm.rs`):
//!
//! ```text
//! let nic = Nic::new(&settings, memory)?;
//! vm.register_ioevent(nic.doorbell(), &IoEventAddress::Mmio(BASE + mmio::NOTIFY), NoDatamatch)?;
//! vm.register_irqfd(nic.interrupt(), GSI)?;
//! match vcpu.run()? {
//!     VcpuExit::MmioRead(at, data) if mmio::holds(BASE, at) => nic.read(at - BASE, data),
//!     VcpuExit::MmioWrite(at, data) if mmio::holds(BASE, at) => nic.write(at - BASE, data),
//!     ..
//! }
//! ```
//!
//! and the network thread, with `port` a tap, or whatever else implements [`FramePort`](crate::port::FramePort):
//!
//! ```
//! use virtio_net_backend::port::FramePort;
//! use virtio_net_backend::transport::mmio::{Link, Next, Nic};
//!
//! /// `wait` returns when the doorbell or the port is readable, or after a while; false ends it.
//! fn serve(nic: Nic, port: impl FramePort, wait: impl Fn(&Nic) -> bool) -> std::io::Result<()> {
//!     let mut link = Link::new(nic, port);
//!     while wait(link.nic()) {
//!         while link.turn()? == Next::Again {}
//!     }
//!     Ok(())
//! }
//! ```
//!
//! * `registers` the register model (virtio 1.2, 4.2.2), pure · [`snapshot`] its state, to save and restore
//! * [`Link`] a card plugged into a port; [`Nic::path`] for who must move frames in another way
//!
//! Not here: what becomes of frames (that is the embedder's switch or tap), and legacy (version 1) registers.

mod link;
mod registers;
pub mod snapshot;

#[cfg(test)]
#[allow(
    clippy::cast_possible_truncation,
    reason = "numbers of a test's own making"
)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::steer::Flows;
use crate::device::{Device, Fault, Features, Frame, Memory, Received, Refused, Sent, Settings};
pub use link::{Link, Next};
use registers::{Registers, Written, offset};
use snapshot::Snapshot;

/// How much address space the registers take.
pub const SIZE: u64 = 0x200;

/// The register to which an ioeventfd is bound: QueueNotify.
pub const NOTIFY: u64 = offset::QUEUE_NOTIFY;

const INTERRUPT_USED: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// Whether an access at `address` is for registers at `base`.
#[must_use]
pub fn holds(base: u64, address: u64) -> bool {
    address
        .checked_sub(base)
        .is_some_and(|offset| offset < SIZE)
}

/// A network card. Cheap to clone: all clones are the same card, for any thread.
#[derive(Clone, Debug)]
pub struct Nic(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    registers: Mutex<Registers>,
    /// InterruptStatus; beside the lock, so that a vCPU in its interrupt handler never waits for the network thread.
    pending: AtomicU32,
    doorbell: EventFd,
    interrupt: EventFd,
}

impl Nic {
    /// A card that has not met a driver yet, over the guest's memory.
    ///
    /// # Errors
    /// When the system is out of file descriptors.
    pub fn new(settings: &Settings, memory: Arc<Memory>) -> io::Result<Self> {
        let mut device = Device::new(&Settings {
            own_control_queue: true,
            ..*settings
        });
        device.set_memory(memory);
        Ok(Self(Arc::new(Shared {
            registers: Mutex::new(Registers::new(device)),
            pending: AtomicU32::new(0),
            doorbell: EventFd::new(EFD_NONBLOCK)?,
            interrupt: EventFd::new(EFD_NONBLOCK)?,
        })))
    }

    /// Readable when the driver has kicked a queue. Bind it to [`NOTIFY`], any value, four bytes.
    #[must_use]
    pub fn doorbell(&self) -> &EventFd {
        &self.0.doorbell
    }

    /// Written when the driver is to be interrupted. Bind it to an edge-triggered interrupt.
    #[must_use]
    pub fn interrupt(&self) -> &EventFd {
        &self.0.interrupt
    }

    /// The guest reads a register.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        if at == offset::INTERRUPT_STATUS {
            registers::answer(data, self.0.pending.load(Ordering::Acquire));
        } else {
            self.registers().read(at, data);
        }
    }

    /// The guest writes a register.
    pub fn write(&self, at: u64, data: &[u8]) {
        match (at, registers::word(data)) {
            (offset::INTERRUPT_ACK, Some(bits)) => {
                self.0.pending.fetch_and(!bits, Ordering::AcqRel);
            }
            (offset::QUEUE_NOTIFY, Some(_)) => self.ring(),
            _ => match self.registers().write(at, data) {
                Written::Quiet => {}
                // A queue may have waited for this: look without a kick.
                Written::Started => self.ring(),
                Written::Reset => self.0.pending.store(0, Ordering::Release),
                Written::Failed => self.raise(INTERRUPT_CONFIG),
            },
        }
    }

    /// The way for frames, until it is dropped; then the driver sees all of it at once.
    #[must_use]
    pub fn path(&self) -> Path<'_> {
        Path {
            registers: self.registers(),
            nic: self,
            failed: false,
        }
    }

    /// Sets the cable in or out.
    pub fn set_link(&self, up: bool) {
        let changed = self.registers().change(|device| device.set_link(up));
        if changed {
            self.raise(INTERRUPT_CONFIG);
        }
    }

    /// How the driver last broke a ring, since it last reset the card.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        self.registers().fault
    }

    /// Asks the driver to announce its address, after a move to another host. False when it cannot.
    #[must_use]
    pub fn announce(&self) -> bool {
        let can = self.registers().change(Device::announce);
        if can {
            self.raise(INTERRUPT_CONFIG);
        }
        can
    }

    /// The card's state. The vCPUs must be stopped, or it is the state of no single moment.
    #[must_use]
    pub fn save(&self) -> Snapshot {
        self.registers()
            .save(self.0.pending.load(Ordering::Acquire))
    }

    /// Takes on a state that a card with the same settings, over the same memory contents, had.
    ///
    /// # Errors
    /// When this card cannot have been in such a state. It is as new then.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<(), Refused> {
        let mut registers = self.registers();
        registers.restore(snapshot)?;
        drop(registers);
        self.0.pending.store(snapshot.pending, Ordering::Release);
        if snapshot.pending != 0 {
            self.raise(snapshot.pending);
        }
        self.ring();
        Ok(())
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        // Nothing panics while it holds the lock; were it to, the device is still a device.
        self.0
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the network thread. A full counter means that it has been woken.
    fn ring(&self) {
        let _ = self.0.doorbell.write(1);
    }

    fn raise(&self, cause: u32) {
        self.0.pending.fetch_or(cause, Ordering::AcqRel);
        let _ = self.0.interrupt.write(1);
    }
}

/// Frames to and from the driver. Holds the card's lock: keep it for a batch, not for a wait.
#[derive(Debug)]
pub struct Path<'a> {
    registers: MutexGuard<'a, Registers>,
    nic: &'a Nic,
    failed: bool,
}

impl Path<'_> {
    /// Hands up to `budget` frames of each queue pair to `sink`; says how many it took. Serves the control queue too.
    pub fn take(&mut self, budget: usize, mut sink: impl FnMut(&Frame<'_>) -> Sent) -> usize {
        let mut taken = 0;
        let pairs = self.registers.pairs();
        for pair in 0..pairs {
            let Some(tx) = self.registers.device.tx(pair) else {
                continue;
            };
            tx.ring().disarm();
            let mut flows = Flows::default();
            let turn = tx.turn(budget, |frame| {
                if pairs > 1 {
                    flows.note(frame.head());
                }
                sink(frame)
            });
            match turn {
                Ok(turn) => taken += turn.frames + turn.malformed,
                Err(fault) => self.fail(fault),
            }
            if pairs > 1 {
                self.registers.device.sent_by(&flows, pair);
            }
        }
        match self.registers.device.serve_control() {
            Ok(turn) => {
                if turn.interrupt {
                    self.nic.raise(INTERRUPT_USED);
                }
                taken += turn.commands;
            }
            Err(fault) => self.fail(fault),
        }
        taken
    }

    /// Gives the driver a frame. One that its filter does not admit is done with at once.
    pub fn give(&mut self, frame: &Frame<'_>) -> Received {
        let device = &mut self.registers.device;
        if !device
            .control()
            .filter()
            .admits(frame.head(), device.accepted())
        {
            return Received::Done;
        }
        let pair = device.receive_pair(frame.head(), u32::MAX).unwrap_or(0);
        match device.rx(pair).map(|rx| rx.push(frame)) {
            Some(Ok(received)) => received,
            Some(Err(fault)) => {
                self.fail(fault);
                Received::NoBuffers
            }
            None => Received::NoBuffers,
        }
    }

    /// What the driver takes: frames must be finished for it (`switch::offload`).
    #[must_use]
    pub fn accepted(&self) -> Features {
        self.registers.device.receive_features()
    }

    /// Asks for a doorbell at the next frame. True when there is one already, and the doorbell may not come. Without
    /// this the doorbell may never ring again.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        let mut waiting = false;
        for pair in 0..self.registers.pairs() {
            let armed = self.registers.device.tx(pair).map(|tx| tx.ring().arm());
            match armed {
                Some(Ok(more)) => waiting |= more,
                Some(Err(fault)) => self.fail(fault),
                None => {}
            }
        }
        waiting
    }

    /// The driver broke a ring: it must reset the device (virtio 1.2, 2.1.2).
    fn fail(&mut self, fault: Fault) {
        self.registers.fault = Some(fault);
        self.registers.fail();
        self.failed = true;
    }
}

impl Drop for Path<'_> {
    fn drop(&mut self) {
        let mut due = false;
        for pair in 0..self.registers.pairs() {
            let device = &mut self.registers.device;
            due |= device.tx(pair).is_some_and(|tx| tx.ring().publish());
            due |= device.rx(pair).is_some_and(|rx| rx.ring().publish());
        }
        if due {
            self.nic.raise(INTERRUPT_USED);
        }
        if self.failed {
            self.nic.raise(INTERRUPT_CONFIG);
        }
    }
}
