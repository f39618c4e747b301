//! The state of a card, to be written to a file and read elsewhere. Data only: whoever restores it checks it, for a
//! snapshot may come from anywhere.

use serde::{Deserialize, Serialize};

use crate::device::snapshot::DeviceSnapshot;

/// Registers, queues, and what the driver told the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub(super) pending: u32,
    pub(super) status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    pub(super) generation: u32,
    pub(super) queues: Vec<QueueSnapshot>,
    pub(super) device: DeviceSnapshot,
}

/// One queue: what the driver set up, and where the device stood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueSnapshot {
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) desc_table: u64,
    pub(super) avail_ring: u64,
    pub(super) used_ring: u64,
    pub(super) next_avail: u16,
    pub(super) next_used: u16,
}
