//! The config space of a network device (virtio 1.2, 5.1.4): what a driver reads by offset.

use super::features::Features;

/// Link is up.
pub const STATUS_LINK_UP: u16 = 1;
/// The driver shall announce itself.
pub const STATUS_ANNOUNCE: u16 = 2;

/// Length of the part that exists here.
pub const LEN: usize = 12;

/// The fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    /// MAC address of the port.
    pub mac: [u8; 6],
    /// `STATUS_*` bits.
    pub status: u16,
    /// Most queue pairs.
    pub max_queue_pairs: u16,
    /// MTU of the network, when there is one to say.
    pub mtu: Option<u16>,
}

impl ConfigSpace {
    /// Reads `into.len()` bytes at `offset`; what is beyond the end reads as zero.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let bytes = self.encode();
        for (i, byte) in into.iter_mut().enumerate() {
            *byte = offset
                .checked_add(i)
                .and_then(|at| bytes.get(at))
                .copied()
                .unwrap_or(0);
        }
    }

    /// A write by the driver. Only legacy drivers may write, and only the MAC address; true when something changed.
    pub fn write(&mut self, offset: usize, from: &[u8], features: Features) -> bool {
        if features.has(Features::VERSION_1) {
            return false;
        }
        let before = self.mac;
        for (i, byte) in from.iter().enumerate() {
            if let Some(field) = offset.checked_add(i).and_then(|at| self.mac.get_mut(at)) {
                *field = *byte;
            }
        }
        self.mac != before
    }

    fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..6].copy_from_slice(&self.mac);
        bytes[6..8].copy_from_slice(&self.status.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.max_queue_pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace {
            mac: [2, 0, 0, 0, 0, 9],
            status: STATUS_LINK_UP,
            max_queue_pairs: 4,
            mtu: Some(9000),
        }
    }

    #[test]
    fn fields_lie_where_the_standard_has_them() {
        let mut bytes = [0xff; 16];
        space().read(0, &mut bytes);
        assert_eq!(
            bytes,
            [2, 0, 0, 0, 0, 9, 1, 0, 4, 0, 0x28, 0x23, 0, 0, 0, 0]
        );
        let mut far = [0xff; 4];
        space().read(usize::MAX, &mut far);
        assert_eq!(far, [0; 4]);
    }

    #[test]
    fn only_a_legacy_driver_writes_its_mac() {
        let mut config = space();
        assert!(!config.write(0, &[6; 6], Features::VERSION_1));
        assert!(config.write(4, &[7, 7, 7, 7], Features::default()));
        assert_eq!(config.mac, [2, 0, 0, 0, 7, 7]);
        assert_eq!(config.status, STATUS_LINK_UP);
    }
}
