//! The control queue: receive modes, MAC table, VLAN filter, announce, queue pairs, offloads.
//!
//! Served only where the transport brings it here (in-process, and crosvm); QEMU and cloud-hypervisor answer it
//! themselves. A few commands in a guest's life: `virtio_queue` serves it, and so it has neither a dirty log nor a record
//! of what is in flight, which frontends that bring it here do not ask for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net as vn;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes as _, GuestAddress};

use super::config_space::{ConfigSpace, STATUS_ANNOUNCE};
use super::features::Features;
use super::memory::Memory;
use super::ring::Fault;

use std::io::{Read, Write};

/// Most MAC addresses of each kind that are kept; a driver with more gets all frames of that kind.
const MAX_MACS: usize = 64;
/// Commands of one turn; the rest wait for the next.
const BUDGET: usize = 32;
/// Longest command that is read: a table of 2700 addresses. Nothing in a longer one is kept.
const MAX_COMMAND: usize = 16 * 1024;
/// The driver does not want interrupts (without EVENT_IDX).
const NO_INTERRUPT: u32 = virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;

/// What a turn over the control queue did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Commands answered, refused ones too.
    pub commands: usize,
    /// The driver is to be interrupted.
    pub interrupt: bool,
}

/// The control queue and what was set by it.
#[derive(Debug)]
pub struct Control {
    queue: Option<(Queue, Arc<Memory>)>,
    /// For which command the driver was asked to kick.
    armed: Option<u16>,
    features: Features,
    filter: Filter,
    pairs: u16,
    offloads: Option<u64>,
}

/// Which frames the driver wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    mac: [u8; 6],
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: Vec<[u8; 6]>,
    multicast: Vec<[u8; 6]>,
    /// There are more addresses than are kept: all of that kind.
    #[serde(default)]
    many_unicast: bool,
    #[serde(default)]
    many_multicast: bool,
    /// VLANs whose frames are wanted.
    vlans: Vlans,
}

impl Control {
    pub(super) fn new(mac: [u8; 6]) -> Self {
        Self {
            queue: None,
            armed: None,
            features: Features::default(),
            filter: Filter::new(mac),
            pairs: 1,
            offloads: None,
        }
    }

    pub(super) fn restore(&mut self, mut filter: Filter, pairs: u16, offloads: Option<Features>) {
        filter.unicast.truncate(MAX_MACS);
        filter.multicast.truncate(MAX_MACS);
        self.filter = filter;
        self.pairs = pairs;
        self.offloads = offloads.map(Features::bits);
    }

    pub(super) fn set_pairs(&mut self, pairs: u16) {
        self.pairs = pairs;
    }

    pub(super) fn negotiated(&mut self, features: Features) {
        self.features = features;
    }

    pub(super) fn start(&mut self, memory: Arc<Memory>, setup: QueueState) -> Result<(), Fault> {
        let queue = Queue::try_from(setup).map_err(|_| Fault::Setup)?;
        if !queue.is_valid(memory.map()) {
            return Err(Fault::Setup);
        }
        self.queue = Some((queue, memory));
        self.armed = None;
        Ok(())
    }

    pub(super) fn stop(&mut self) -> Option<QueueState> {
        self.queue.take().map(|(queue, _)| queue.state())
    }

    pub(super) fn state(&self) -> Option<QueueState> {
        self.queue.as_ref().map(|(queue, _)| queue.state())
    }

    /// Whether the control queue runs, so that what it set counts.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.queue.is_some()
    }

    /// Queue pairs in use.
    #[must_use]
    pub fn pairs(&self) -> u16 {
        self.pairs
    }

    /// Which frames the driver wants.
    #[must_use]
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Receive offloads as the driver last set them, where it did.
    #[must_use]
    pub fn offloads(&self) -> Option<Features> {
        self.offloads.map(Features::from_bits)
    }

    pub(super) fn serve(&mut self, config: &mut ConfigSpace) -> Result<Turn, Fault> {
        let Some((mut queue, memory)) = self.queue.take() else {
            return Ok(Turn::default());
        };
        let served = self.turn(&mut queue, &memory, config);
        self.queue = Some((queue, memory));
        served
    }

    /// Serves, arms, and looks again: a command that came in between is not kicked for.
    fn turn(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        config: &mut ConfigSpace,
    ) -> Result<Turn, Fault> {
        let mut commands = 0;
        while commands < BUDGET {
            let served = self.serve_queue(queue, memory, config, BUDGET - commands)?;
            commands += served;
            if served == 0 && self.armed == Some(queue.next_avail()) {
                break;
            }
            self.armed = Some(queue.next_avail());
            let more = queue.enable_notification(memory.map());
            if !more.map_err(|_| Fault::OutsideMemory)? {
                break;
            }
        }
        let interrupt = commands > 0 && wants_interrupt(queue, memory)?;
        Ok(Turn {
            commands,
            interrupt,
        })
    }

    fn serve_queue(
        &mut self,
        queue: &mut Queue,
        memory: &Memory,
        config: &mut ConfigSpace,
        budget: usize,
    ) -> Result<usize, Fault> {
        let map = memory.map();
        for served in 0..budget {
            let chain = match queue.iter(map) {
                Ok(mut chains) => chains.next(),
                Err(_) => return Err(Fault::IndexJump),
            };
            let Some(chain) = chain else {
                return Ok(served);
            };
            let head = chain.head_index();
            let mut reader = chain
                .clone()
                .reader(map)
                .map_err(|_| Fault::OutsideMemory)?;
            let mut writer = chain.writer(map).map_err(|_| Fault::OutsideMemory)?;
            let length = reader.available_bytes();
            let mut command = vec![0; length.min(MAX_COMMAND)];
            reader
                .read_exact(&mut command)
                .map_err(|_| Fault::OutsideMemory)?;
            let done = if length > MAX_COMMAND {
                self.obey_long(&command)
            } else {
                self.obey(&command, config)
            };
            let ack = if done.is_some() {
                vn::VIRTIO_NET_OK
            } else {
                vn::VIRTIO_NET_ERR
            };
            let written = writer.write(&[u8::try_from(ack).unwrap_or(1)]).unwrap_or(0);
            queue
                .add_used(map, head, u32::try_from(written).unwrap_or(0))
                .map_err(|_| Fault::DescriptorNumber)?;
        }
        Ok(budget)
    }

    /// `None` when the command is refused.
    fn obey(&mut self, command: &[u8], config: &mut ConfigSpace) -> Option<()> {
        let (&[class, kind], data) = command.split_at_checked(2)? else {
            return None;
        };
        match u32::from(class) {
            vn::VIRTIO_NET_CTRL_RX => self.set_mode(kind, *data.first()? != 0),
            vn::VIRTIO_NET_CTRL_MAC => self.set_mac(kind, data, config),
            vn::VIRTIO_NET_CTRL_VLAN => self.set_vlan(kind, data),
            vn::VIRTIO_NET_CTRL_ANNOUNCE if u32::from(kind) == vn::VIRTIO_NET_CTRL_ANNOUNCE_ACK => {
                config.status &= !STATUS_ANNOUNCE;
                Some(())
            }
            vn::VIRTIO_NET_CTRL_MQ if u32::from(kind) == vn::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET => {
                let pairs = u16::from_le_bytes(data.get(..2)?.try_into().ok()?);
                let valid = self.features.has(Features::MQ)
                    && (1..=config.max_queue_pairs).contains(&pairs);
                valid.then(|| self.pairs = pairs)
            }
            vn::VIRTIO_NET_CTRL_GUEST_OFFLOADS
                if u32::from(kind) == vn::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET =>
            {
                let wanted = u64::from_le_bytes(data.get(..8)?.try_into().ok()?);
                let can = self.features.has(Features::CTRL_GUEST_OFFLOADS)
                    && self.features.has(Features::from_bits(wanted));
                can.then(|| self.offloads = Some(wanted))
            }
            _ => None,
        }
    }

    /// A command of which only the beginning was read: a table of more addresses than anybody keeps.
    fn obey_long(&mut self, command: &[u8]) -> Option<()> {
        let table = [vn::VIRTIO_NET_CTRL_MAC, vn::VIRTIO_NET_CTRL_MAC_TABLE_SET];
        let is_table = command.get(..2)? == table.map(|byte| u8::try_from(byte).unwrap_or(0));
        (is_table && self.features.has(Features::CTRL_RX))
            .then(|| self.filter.set_tables(Vec::new(), Vec::new(), true))
    }

    fn set_mode(&mut self, kind: u8, on: bool) -> Option<()> {
        let kind = u32::from(kind);
        let extra = kind >= vn::VIRTIO_NET_CTRL_RX_ALLUNI;
        let needed = if extra {
            Features::CTRL_RX_EXTRA
        } else {
            Features::CTRL_RX
        };
        if !self.features.has(needed) {
            return None;
        }
        let mode = match kind {
            vn::VIRTIO_NET_CTRL_RX_PROMISC => &mut self.filter.promiscuous,
            vn::VIRTIO_NET_CTRL_RX_ALLMULTI => &mut self.filter.all_multicast,
            vn::VIRTIO_NET_CTRL_RX_ALLUNI => &mut self.filter.all_unicast,
            vn::VIRTIO_NET_CTRL_RX_NOMULTI => &mut self.filter.no_multicast,
            vn::VIRTIO_NET_CTRL_RX_NOUNI => &mut self.filter.no_unicast,
            vn::VIRTIO_NET_CTRL_RX_NOBCAST => &mut self.filter.no_broadcast,
            _ => return None,
        };
        *mode = on;
        Some(())
    }

    fn set_mac(&mut self, kind: u8, data: &[u8], config: &mut ConfigSpace) -> Option<()> {
        match u32::from(kind) {
            vn::VIRTIO_NET_CTRL_MAC_ADDR_SET if self.features.has(Features::CTRL_MAC_ADDR) => {
                let mac = data.get(..6)?.try_into().ok()?;
                config.mac = mac;
                self.filter.mac = mac;
            }
            vn::VIRTIO_NET_CTRL_MAC_TABLE_SET if self.features.has(Features::CTRL_RX) => {
                let (unicast, rest) = mac_table(data)?;
                let (multicast, _) = mac_table(rest)?;
                self.filter.set_tables(unicast, multicast, false);
            }
            _ => return None,
        }
        Some(())
    }

    fn set_vlan(&mut self, kind: u8, data: &[u8]) -> Option<()> {
        let vlan = u16::from_le_bytes(data.get(..2)?.try_into().ok()?);
        let word = self.filter.vlans.0.get_mut(usize::from(vlan / 64))?;
        if !self.features.has(Features::CTRL_VLAN) {
            return None;
        }
        match u32::from(kind) {
            vn::VIRTIO_NET_CTRL_VLAN_ADD => *word |= 1 << (vlan % 64),
            vn::VIRTIO_NET_CTRL_VLAN_DEL => *word &= !(1 << (vlan % 64)),
            _ => return None,
        }
        Some(())
    }
}

/// One bit for each of 4096 VLANs; the numbers of those that are in, where it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u16>", into = "Vec<u16>")]
struct Vlans(Box<[u64; 64]>);

impl Default for Vlans {
    fn default() -> Self {
        Self(Box::new([0; 64]))
    }
}

impl From<Vec<u16>> for Vlans {
    fn from(numbers: Vec<u16>) -> Self {
        let mut vlans = Self::default();
        for number in numbers {
            if let Some(word) = vlans.0.get_mut(usize::from(number / 64)) {
                *word |= 1 << (number % 64);
            }
        }
        vlans
    }
}

impl From<Vlans> for Vec<u16> {
    fn from(vlans: Vlans) -> Self {
        let is_in = |number: &u16| vlans.0[usize::from(number / 64)] & 1 << (number % 64) != 0;
        (0..4096).filter(is_in).collect()
    }
}

/// Whether the driver wants to hear of what was used since it was last asked.
fn wants_interrupt(queue: &mut Queue, memory: &Memory) -> Result<bool, Fault> {
    let map = memory.map();
    if queue.event_idx_enabled() {
        let wants = queue.needs_notification(map);
        return wants.map_err(|_| Fault::OutsideMemory);
    }
    let flags: u16 = map
        .read_obj(GuestAddress(queue.avail_ring()))
        .map_err(|_| Fault::OutsideMemory)?;
    Ok(u32::from(u16::from_le(flags)) & NO_INTERRUPT == 0)
}

fn mac_table(data: &[u8]) -> Option<(Vec<[u8; 6]>, &[u8])> {
    let (count, rest) = data.split_at_checked(4)?;
    let count = usize::try_from(u32::from_le_bytes(count.try_into().ok()?)).ok()?;
    let (macs, rest) = rest.split_at_checked(count.checked_mul(6)?)?;
    Some((macs.as_chunks().0.to_vec(), rest))
}

impl Filter {
    fn new(mac: [u8; 6]) -> Self {
        Self {
            mac,
            // Until the driver sets a mode it gets everything, as from QEMU.
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Vec::new(),
            multicast: Vec::new(),
            many_unicast: false,
            many_multicast: false,
            vlans: Vlans::default(),
        }
    }

    /// New tables in place of the old. Of a kind with too many addresses to keep, all frames are wanted.
    fn set_tables(&mut self, mut unicast: Vec<[u8; 6]>, mut multicast: Vec<[u8; 6]>, many: bool) {
        self.many_unicast = many || unicast.len() > MAX_MACS;
        self.many_multicast = many || multicast.len() > MAX_MACS;
        unicast.truncate(MAX_MACS);
        multicast.truncate(MAX_MACS);
        (self.unicast, self.multicast) = (unicast, multicast);
    }

    /// Whether the driver wants the frame that begins with `head`.
    #[must_use]
    pub fn admits(&self, head: &[u8], features: Features) -> bool {
        let Some(to) = head.first_chunk::<6>() else {
            return false;
        };
        let has_modes = features.has(Features::CTRL_RX);
        if has_modes && self.promiscuous {
            return true;
        }
        if features.has(Features::CTRL_VLAN) && head.get(12..14) == Some(&[0x81, 0]) {
            let tag = head
                .get(14..16)
                .map_or(0, |b| u16::from_be_bytes([b[0], b[1]]) & 0xfff);
            if self.vlans.0[usize::from(tag / 64)] & 1 << (tag % 64) == 0 {
                return false;
            }
        }
        if !has_modes {
            true
        } else if *to == [0xff; 6] {
            !self.no_broadcast
        } else if to[0] & 1 == 1 {
            !self.no_multicast
                && (self.all_multicast || self.many_multicast || self.multicast.contains(to))
        } else {
            let all = self.all_unicast || self.many_unicast;
            !self.no_unicast && (all || *to == self.mac || self.unicast.contains(to))
        }
    }
}
