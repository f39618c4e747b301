//! A virtual machine of 4 MiB and one processor, with one network card: all that `tiny_vmm` needs, and no more.
//!
//! ```text
//!   0x0000_1000  page tables   0x0000_5000  GDT, IDT, TSS   0x0000_8000  stack of CPL0   0x0000_a000  mailbox
//!   0x0001_0000  guest image, its rings and buffers         0x0040_0000  end of memory, top of the stack of CPL3
//!   0xd000_0000  registers of the card                      0xd000_1000  power: a write ends the guest
//! ```
//! The guest (`examples/guest`) is set up at CPL0 and works at CPL3, where it runs at native speed on any KVM, even one
//! that itself runs without VMX. The processor starts in long mode, so there is no boot loader and no BIOS.

mod long_mode;
mod machine;

pub use machine::Machine;

use std::time::Duration;

use virtio_net_backend::device::Memory;
use vm_memory::{ByteValued, Bytes as _, GuestAddress};

/// The guest, built from `examples/guest` by `build.rs`.
static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.bin"));

const IMAGE_AT: u64 = 0x1_0000;
const MAILBOX_AT: GuestAddress = GuestAddress(0xa000);
const MEMORY: usize = 0x40_0000;
const CARD_AT: u64 = 0xd000_0000;
const POWER_AT: u64 = 0xd000_1000;

/// How long a guest may run.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the guest is asked to do once it has its lease and has found its gateway.
#[derive(Clone, Copy, Debug, Default)]
pub struct Task {
    /// Pings to the gateway, each answered before the next.
    pub pings: u32,
    /// Frames of 64 bytes to the gateway, as fast as it goes.
    pub flood: u32,
}

/// What the guest says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mailbox {
    pings: u32,
    flood: u32,
    /// How far it came: 1 the driver runs, 2 it has a lease, 3 it knows its gateway, 4 pinged, 5 flooded.
    pub stage: u32,
    /// The address it leased.
    pub address: u32,
    /// Its netmask.
    pub mask: u32,
    /// Its router, or zero.
    pub router: u32,
    /// Who gave the lease.
    pub server: u32,
    /// For how many seconds.
    pub lease: u32,
    /// How many pings were answered.
    pub answered: u32,
}

#[allow(unsafe_code, reason = "a promise about a layout, no operation")]
// SAFETY: nine u32 in C layout: no padding, and any bytes are a value.
unsafe impl ByteValued for Mailbox {}

impl Mailbox {
    fn of(memory: &Memory) -> Option<Self> {
        memory.map().read_obj(MAILBOX_AT).ok()
    }

    fn put(memory: &Memory, task: Task) -> anyhow::Result<()> {
        let mailbox = Self {
            pings: task.pings,
            flood: task.flood,
            ..Self::default()
        };
        Ok(memory.map().write_obj(mailbox, MAILBOX_AT)?)
    }
}
