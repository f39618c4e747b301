//! The header before each frame: what must still be done to it (checksum, segmentation).
//!
//! Bytes from a driver become a [`NetHeader`] only through [`NetHeader::checked`]; what goes on to a tap or another
//! guest is encoded anew from that, never copied from what the driver wrote.

use virtio_bindings::virtio_net as vn;

use super::features::Features;

/// Length of the header inside this crate, on taps and toward virtio 1.x drivers.
pub const HEADER_LEN: usize = 12;

/// What kind of super-frame a frame is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// A frame as it goes on a wire.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, each segment a datagram of its own.
    Udp,
}

/// A checked header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// The checksum at `csum_start + csum_offset` covers only the pseudo header.
    pub needs_csum: bool,
    /// The checksum was verified by whoever handed the frame over.
    pub data_valid: bool,
    /// Kind of super-frame.
    pub gso: Gso,
    /// A TCP super-frame with ECN.
    pub ecn: bool,
    /// Bytes of protocol headers; a hint.
    pub hdr_len: u16,
    /// Payload bytes of one segment.
    pub gso_size: u16,
    /// Where the checksum begins.
    pub csum_start: u16,
    /// Where it is stored, from `csum_start`.
    pub csum_offset: u16,
}

/// Why a header was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// An offload that was not negotiated.
    #[error("offload {0} was not negotiated")]
    NotNegotiated(&'static str),
    /// A checksum position outside the frame.
    #[error("checksum position outside the frame")]
    ChecksumOutside,
    /// An unknown kind of super-frame, or one with segments of zero bytes.
    #[error("unknown super-frame")]
    Gso,
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "the bindings give one-byte fields as u32"
)]
const fn byte(value: u32) -> u8 {
    value as u8
}

const F_NEEDS_CSUM: u8 = byte(vn::VIRTIO_NET_HDR_F_NEEDS_CSUM);
pub(super) const F_DATA_VALID: u8 = byte(vn::VIRTIO_NET_HDR_F_DATA_VALID);
const GSO_NONE: u8 = byte(vn::VIRTIO_NET_HDR_GSO_NONE);
const GSO_TCPV4: u8 = byte(vn::VIRTIO_NET_HDR_GSO_TCPV4);
const GSO_TCPV6: u8 = byte(vn::VIRTIO_NET_HDR_GSO_TCPV6);
const GSO_UDP_L4: u8 = byte(vn::VIRTIO_NET_HDR_GSO_UDP_L4);
const GSO_ECN: u8 = byte(vn::VIRTIO_NET_HDR_GSO_ECN);

impl NetHeader {
    /// Reads and checks what a driver that negotiated `features` wrote before a frame of `len` bytes.
    ///
    /// # Errors
    /// When the header asks for what was not negotiated or points outside the frame.
    pub fn checked(
        raw: &[u8; HEADER_LEN],
        len: usize,
        features: Features,
    ) -> Result<Self, BadHeader> {
        let header = Self {
            // Only a device may say that it verified a checksum (virtio 1.2, 5.1.6.2.1), and nobody here did.
            data_valid: false,
            ..Self::parse(raw)?
        };
        // A hint from somebody who may lie: whoever takes the frame next must not look beyond its end.
        let header = Self {
            hdr_len: header.hdr_len.min(u16::try_from(len).unwrap_or(u16::MAX)),
            ..header
        };
        if header.needs_csum {
            if !features.has(Features::CSUM) {
                return Err(BadHeader::NotNegotiated("csum"));
            }
            let end = usize::from(header.csum_start) + usize::from(header.csum_offset) + 2;
            if end > len {
                return Err(BadHeader::ChecksumOutside);
            }
        }
        let (needed, name) = match header.gso {
            Gso::None => return Ok(header),
            Gso::Tcp4 => (Features::HOST_TSO4, "tso4"),
            Gso::Tcp6 => (Features::HOST_TSO6, "tso6"),
            Gso::Udp => (Features::HOST_USO, "uso"),
        };
        if !features.has(needed) {
            return Err(BadHeader::NotNegotiated(name));
        }
        if header.ecn && !features.has(Features::HOST_ECN) {
            return Err(BadHeader::NotNegotiated("ecn"));
        }
        if header.gso_size == 0 || !header.needs_csum {
            return Err(BadHeader::Gso);
        }
        Ok(header)
    }

    /// Reads a header that this machine's kernel wrote.
    ///
    /// # Errors
    /// When the kind of super-frame is unknown.
    pub fn parse(raw: &[u8; HEADER_LEN]) -> Result<Self, BadHeader> {
        if raw[0] == 0 && raw[1] == GSO_NONE {
            return Ok(Self::default());
        }
        let word = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let gso = match raw[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::Tcp4,
            GSO_TCPV6 => Gso::Tcp6,
            GSO_UDP_L4 => Gso::Udp,
            _ => return Err(BadHeader::Gso),
        };
        let needs_csum = raw[0] & F_NEEDS_CSUM != 0;
        Ok(Self {
            needs_csum,
            data_valid: raw[0] & F_DATA_VALID != 0,
            gso,
            ecn: raw[1] & GSO_ECN != 0 && gso != Gso::None,
            hdr_len: word(2),
            gso_size: if gso == Gso::None { 0 } else { word(4) },
            csum_start: if needs_csum { word(6) } else { 0 },
            csum_offset: if needs_csum { word(8) } else { 0 },
        })
    }

    /// The wire form, `num_buffers` being one.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut raw = [0; HEADER_LEN];
        raw[0] = if self.needs_csum { F_NEEDS_CSUM } else { 0 }
            | if self.data_valid { F_DATA_VALID } else { 0 };
        let kind = match self.gso {
            Gso::None => GSO_NONE,
            Gso::Tcp4 => GSO_TCPV4,
            Gso::Tcp6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        raw[1] = kind | if self.ecn { GSO_ECN } else { 0 };
        raw[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
        raw[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        raw[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        raw[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
        raw[10..12].copy_from_slice(&1u16.to_le_bytes());
        raw
    }

    /// Whether a driver that negotiated `features` can take a frame with this header as it is. When it cannot, the
    /// switch's `offload` finishes the frame first.
    #[must_use]
    pub fn fits(&self, features: Features) -> bool {
        let csum = !self.needs_csum || features.has(Features::GUEST_CSUM);
        let gso = match self.gso {
            Gso::None => true,
            Gso::Tcp4 => features.has(Features::GUEST_TSO4),
            Gso::Tcp6 => features.has(Features::GUEST_TSO6),
            Gso::Udp => features.has(Features::GUEST_USO4.with(Features::GUEST_USO6)),
        };
        csum && gso && (!self.ecn || features.has(Features::GUEST_ECN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tso4() -> NetHeader {
        NetHeader {
            needs_csum: true,
            gso: Gso::Tcp4,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            ..NetHeader::default()
        }
    }

    #[test]
    fn a_header_survives_the_wire() {
        assert_eq!(NetHeader::parse(&tso4().encode()), Ok(tso4()));
        assert_eq!(
            NetHeader::parse(&NetHeader::default().encode()),
            Ok(NetHeader::default())
        );
    }

    #[test]
    fn offloads_must_be_negotiated() {
        let raw = tso4().encode();
        let all = Features::CSUM.with(Features::HOST_TSO4);
        assert_eq!(NetHeader::checked(&raw, 3000, all), Ok(tso4()));
        assert_eq!(
            NetHeader::checked(&raw, 3000, Features::CSUM),
            Err(BadHeader::NotNegotiated("tso4"))
        );
        assert_eq!(
            NetHeader::checked(&raw, 3000, Features::default()),
            Err(BadHeader::NotNegotiated("csum"))
        );
        let congested = NetHeader {
            ecn: true,
            ..tso4()
        };
        let raw = congested.encode();
        assert_eq!(
            NetHeader::checked(&raw, 3000, all),
            Err(BadHeader::NotNegotiated("ecn"))
        );
        let all = all.with(Features::HOST_ECN);
        assert_eq!(NetHeader::checked(&raw, 3000, all), Ok(congested));
    }

    #[test]
    fn positions_outside_the_frame_and_empty_segments_are_refused() {
        let all = Features::CSUM.with(Features::HOST_TSO4);
        let far = NetHeader {
            csum_start: 60_000,
            csum_offset: 65_000,
            ..tso4()
        };
        assert_eq!(
            NetHeader::checked(&far.encode(), 1500, all),
            Err(BadHeader::ChecksumOutside)
        );
        let empty = NetHeader {
            gso_size: 0,
            ..tso4()
        };
        assert_eq!(
            NetHeader::checked(&empty.encode(), 1500, all),
            Err(BadHeader::Gso)
        );
        let mut unknown = tso4().encode();
        unknown[1] = 0x33;
        assert_eq!(NetHeader::checked(&unknown, 1500, all), Err(BadHeader::Gso));
    }

    #[test]
    fn what_a_driver_must_not_say_goes_no_further() {
        let said = NetHeader {
            data_valid: true,
            hdr_len: 60_000,
            ..tso4()
        };
        let all = Features::CSUM.with(Features::HOST_TSO4);
        let header = NetHeader::checked(&said.encode(), 3000, all).expect("a header");
        assert!(!header.data_valid);
        assert_eq!(header.hdr_len, 3000);
    }

    #[test]
    fn what_a_driver_takes_follows_its_features() {
        assert!(NetHeader::default().fits(Features::default()));
        assert!(!tso4().fits(Features::GUEST_CSUM));
        assert!(tso4().fits(Features::GUEST_CSUM.with(Features::GUEST_TSO4)));
    }
}
