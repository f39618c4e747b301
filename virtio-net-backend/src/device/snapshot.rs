//! What the driver told a device besides its queues, to save and restore. Queues are the transport's to save: it
//! knows their set-up.

use serde::{Deserialize, Serialize};

use super::ctrl::Filter;
use super::{Device, Refused};

/// Config space and what the control queue set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSnapshot {
    mac: [u8; 6],
    status: u16,
    filter: Filter,
    pairs: u16,
    offloads: Option<u64>,
}

impl Device {
    /// Config space and what the control queue set.
    #[must_use]
    pub fn save(&self) -> DeviceSnapshot {
        DeviceSnapshot {
            mac: self.config.mac,
            status: self.config.status,
            filter: self.ctrl.filter().clone(),
            pairs: self.ctrl.pairs(),
            offloads: self.ctrl.offloads().map(super::Features::bits),
        }
    }

    /// Takes that on again, after [`Device::accept`].
    ///
    /// # Errors
    /// When a driver could not have told this device so.
    pub fn restore(&mut self, snapshot: &DeviceSnapshot) -> Result<(), Refused> {
        let offloads = snapshot.offloads.map(super::Features::from_bits);
        if let Some(unknown) = offloads
            .map(|set| set.without(self.accepted))
            .filter(|set| !set.is_empty())
        {
            return Err(Refused::NotOffered(unknown));
        }
        if !(1..=self.config.max_queue_pairs).contains(&snapshot.pairs) {
            return Err(Refused::NoSuchQueue(snapshot.pairs));
        }
        self.config.mac = snapshot.mac;
        self.config.status = snapshot.status;
        self.ctrl
            .restore(snapshot.filter.clone(), snapshot.pairs, offloads);
        Ok(())
    }
}
