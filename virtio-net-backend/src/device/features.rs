//! The feature table: one row a feature, and everything follows from it.
//!
//! What is offered, what a feature needs, and what has a name in logs is read here. A feature that no code obeys
//! has no row; a row without a test beside the code that obeys it is a bug.

use std::fmt;

use virtio_bindings::{virtio_config as vc, virtio_net as vn, virtio_ring as vr};

/// A set of feature bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(u64);

/// When a row is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    /// Always.
    Always,
    /// When the device was given an MTU.
    Mtu,
    /// When the device has more than one queue pair.
    Multiqueue,
    /// When the driver reaches the device itself, in the VMM's own process. Over vhost-user the frontend answers the
    /// control queue, or has no word for a thing: QEMU lets a driver reset a queue and tells the backend nothing, which
    /// would go on writing to memory that is the driver's again.
    InProcess,
}

struct Row {
    name: &'static str,
    bit: u32,
    /// Bits without which this one has no effect.
    needs: &'static [u32],
    /// Bits of which it needs one, where there are any.
    one_of: &'static [u32],
    offer: Offer,
}

const fn row(name: &'static str, bit: u32, needs: &'static [u32], offer: Offer) -> Row {
    Row {
        name,
        bit,
        needs,
        one_of: &[],
        offer,
    }
}

const fn one_of(row: Row, one_of: &'static [u32]) -> Row {
    Row { one_of, ..row }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        impl Features {
            $($(#[$doc])* pub const $name: Features = Features(1 << $bit);)*
        }
    };
}

names! {
    /// The device finishes partial checksums of frames that the driver sends.
    CSUM = vn::VIRTIO_NET_F_CSUM;
    /// The driver takes frames with partial checksums.
    GUEST_CSUM = vn::VIRTIO_NET_F_GUEST_CSUM;
    /// Offloads of the receive side can be changed while running.
    CTRL_GUEST_OFFLOADS = vn::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
    /// The device says its MTU.
    MTU = vn::VIRTIO_NET_F_MTU;
    /// The device says its MAC address.
    MAC = vn::VIRTIO_NET_F_MAC;
    /// The driver takes TCP/IPv4 super-frames.
    GUEST_TSO4 = vn::VIRTIO_NET_F_GUEST_TSO4;
    /// The driver takes TCP/IPv6 super-frames.
    GUEST_TSO6 = vn::VIRTIO_NET_F_GUEST_TSO6;
    /// The driver takes TCP super-frames with ECN.
    GUEST_ECN = vn::VIRTIO_NET_F_GUEST_ECN;
    /// The driver sends TCP/IPv4 super-frames.
    HOST_TSO4 = vn::VIRTIO_NET_F_HOST_TSO4;
    /// The driver sends TCP/IPv6 super-frames.
    HOST_TSO6 = vn::VIRTIO_NET_F_HOST_TSO6;
    /// The driver sends TCP super-frames with ECN.
    HOST_ECN = vn::VIRTIO_NET_F_HOST_ECN;
    /// A received frame may span several buffers.
    MRG_RXBUF = vn::VIRTIO_NET_F_MRG_RXBUF;
    /// The config space has a link status.
    STATUS = vn::VIRTIO_NET_F_STATUS;
    /// There is a control queue.
    CTRL_VQ = vn::VIRTIO_NET_F_CTRL_VQ;
    /// Receive modes by the control queue.
    CTRL_RX = vn::VIRTIO_NET_F_CTRL_RX;
    /// VLAN filter by the control queue.
    CTRL_VLAN = vn::VIRTIO_NET_F_CTRL_VLAN;
    /// More receive modes by the control queue.
    CTRL_RX_EXTRA = vn::VIRTIO_NET_F_CTRL_RX_EXTRA;
    /// The driver can be asked to announce itself.
    GUEST_ANNOUNCE = vn::VIRTIO_NET_F_GUEST_ANNOUNCE;
    /// Several queue pairs.
    MQ = vn::VIRTIO_NET_F_MQ;
    /// The MAC address is set by the control queue.
    CTRL_MAC_ADDR = vn::VIRTIO_NET_F_CTRL_MAC_ADDR;
    /// The driver takes UDP/IPv4 super-frames.
    GUEST_USO4 = vn::VIRTIO_NET_F_GUEST_USO4;
    /// The driver takes UDP/IPv6 super-frames.
    GUEST_USO6 = vn::VIRTIO_NET_F_GUEST_USO6;
    /// The driver sends UDP super-frames.
    HOST_USO = vn::VIRTIO_NET_F_HOST_USO;
    /// A descriptor may point to a table of descriptors.
    INDIRECT_DESC = vr::VIRTIO_RING_F_INDIRECT_DESC;
    /// Each side says at which index it wants to be woken.
    EVENT_IDX = vr::VIRTIO_RING_F_EVENT_IDX;
    /// Any layout of header and data in descriptors (legacy drivers).
    ANY_LAYOUT = vc::VIRTIO_F_ANY_LAYOUT;
    /// The device follows virtio 1.x.
    VERSION_1 = vc::VIRTIO_F_VERSION_1;
    /// Buffers are used in the order in which they were made available.
    IN_ORDER = vc::VIRTIO_F_IN_ORDER;
    /// One queue can be reset alone.
    RING_RESET = vc::VIRTIO_F_RING_RESET;
}

const TABLE: &[Row] = &[
    row("csum", vn::VIRTIO_NET_F_CSUM, &[], Offer::Always),
    row(
        "guest_csum",
        vn::VIRTIO_NET_F_GUEST_CSUM,
        &[],
        Offer::Always,
    ),
    row(
        "ctrl_guest_offloads",
        vn::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        &[vn::VIRTIO_NET_F_CTRL_VQ],
        Offer::InProcess,
    ),
    row("mtu", vn::VIRTIO_NET_F_MTU, &[], Offer::Mtu),
    row("mac", vn::VIRTIO_NET_F_MAC, &[], Offer::Always),
    row(
        "guest_tso4",
        vn::VIRTIO_NET_F_GUEST_TSO4,
        &[vn::VIRTIO_NET_F_GUEST_CSUM],
        Offer::Always,
    ),
    row(
        "guest_tso6",
        vn::VIRTIO_NET_F_GUEST_TSO6,
        &[vn::VIRTIO_NET_F_GUEST_CSUM],
        Offer::Always,
    ),
    one_of(
        row("guest_ecn", vn::VIRTIO_NET_F_GUEST_ECN, &[], Offer::Always),
        &[vn::VIRTIO_NET_F_GUEST_TSO4, vn::VIRTIO_NET_F_GUEST_TSO6],
    ),
    row(
        "host_tso4",
        vn::VIRTIO_NET_F_HOST_TSO4,
        &[vn::VIRTIO_NET_F_CSUM],
        Offer::Always,
    ),
    row(
        "host_tso6",
        vn::VIRTIO_NET_F_HOST_TSO6,
        &[vn::VIRTIO_NET_F_CSUM],
        Offer::Always,
    ),
    one_of(
        row("host_ecn", vn::VIRTIO_NET_F_HOST_ECN, &[], Offer::Always),
        &[vn::VIRTIO_NET_F_HOST_TSO4, vn::VIRTIO_NET_F_HOST_TSO6],
    ),
    row("mrg_rxbuf", vn::VIRTIO_NET_F_MRG_RXBUF, &[], Offer::Always),
    row("status", vn::VIRTIO_NET_F_STATUS, &[], Offer::Always),
    row("ctrl_vq", vn::VIRTIO_NET_F_CTRL_VQ, &[], Offer::Always),
    row(
        "ctrl_rx",
        vn::VIRTIO_NET_F_CTRL_RX,
        &[vn::VIRTIO_NET_F_CTRL_VQ],
        Offer::InProcess,
    ),
    row(
        "ctrl_vlan",
        vn::VIRTIO_NET_F_CTRL_VLAN,
        &[vn::VIRTIO_NET_F_CTRL_VQ],
        Offer::InProcess,
    ),
    row(
        "ctrl_rx_extra",
        vn::VIRTIO_NET_F_CTRL_RX_EXTRA,
        &[vn::VIRTIO_NET_F_CTRL_VQ],
        Offer::InProcess,
    ),
    row(
        "guest_announce",
        vn::VIRTIO_NET_F_GUEST_ANNOUNCE,
        &[vn::VIRTIO_NET_F_CTRL_VQ],
        Offer::Always,
    ),
    row(
        "mq",
        vn::VIRTIO_NET_F_MQ,
        &[vn::VIRTIO_NET_F_CTRL_VQ],
        Offer::Multiqueue,
    ),
    row(
        "ctrl_mac_addr",
        vn::VIRTIO_NET_F_CTRL_MAC_ADDR,
        &[vn::VIRTIO_NET_F_CTRL_VQ],
        Offer::InProcess,
    ),
    row(
        "guest_uso4",
        vn::VIRTIO_NET_F_GUEST_USO4,
        &[vn::VIRTIO_NET_F_GUEST_CSUM],
        Offer::Always,
    ),
    row(
        "guest_uso6",
        vn::VIRTIO_NET_F_GUEST_USO6,
        &[vn::VIRTIO_NET_F_GUEST_CSUM],
        Offer::Always,
    ),
    row(
        "host_uso",
        vn::VIRTIO_NET_F_HOST_USO,
        &[vn::VIRTIO_NET_F_CSUM],
        Offer::Always,
    ),
    row(
        "indirect_desc",
        vr::VIRTIO_RING_F_INDIRECT_DESC,
        &[],
        Offer::Always,
    ),
    row("event_idx", vr::VIRTIO_RING_F_EVENT_IDX, &[], Offer::Always),
    row("any_layout", vc::VIRTIO_F_ANY_LAYOUT, &[], Offer::Always),
    row("version_1", vc::VIRTIO_F_VERSION_1, &[], Offer::Always),
    row("in_order", vc::VIRTIO_F_IN_ORDER, &[], Offer::Always),
    row("ring_reset", vc::VIRTIO_F_RING_RESET, &[], Offer::InProcess),
];

/// What the offer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offering {
    /// The device was given an MTU.
    pub mtu: bool,
    /// The device has more than one queue pair.
    pub multiqueue: bool,
    /// The driver reaches this device in the VMM's process: its control queue and its registers. Over vhost-user what
    /// depends on that must not be offered.
    pub own_control_queue: bool,
}

impl Features {
    /// The set with exactly these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As the wire has it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set less `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is here.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is here.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What a device offers.
    #[must_use]
    pub fn offered(offering: Offering) -> Self {
        let offered = |row: &&Row| match row.offer {
            Offer::Always => true,
            Offer::Mtu => offering.mtu,
            Offer::Multiqueue => offering.multiqueue,
            Offer::InProcess => offering.own_control_queue,
        };
        Self(
            TABLE
                .iter()
                .filter(offered)
                .fold(0, |bits, row| bits | 1 << row.bit),
        )
    }

    /// This set less each feature whose needs are not in it (such a feature has no effect).
    #[must_use]
    pub fn effective(self) -> Self {
        let has = |&bit: &u32| self.has(Self(1 << bit));
        let met = |row: &&Row| {
            row.needs.iter().all(has) && (row.one_of.is_empty() || row.one_of.iter().any(has))
        };
        let less = TABLE
            .iter()
            .filter(|row| !met(row))
            .fold(self, |set, row| set.without(Self(1 << row.bit)));
        // What went may have been what another needs: ECN needs TSO, which needs CSUM.
        if less == self { self } else { less.effective() }
    }

    /// Length of the header before each frame: 12 bytes since virtio 1.0 or with mergeable buffers, else 10.
    #[must_use]
    pub const fn header_len(self) -> usize {
        if self.has(Self::VERSION_1) || self.has(Self::MRG_RXBUF) {
            12
        } else {
            10
        }
    }
}

/// What a driver can turn off and on while it runs (CTRL_GUEST_OFFLOADS).
pub(super) const RECEIVE_OFFLOADS: Features = Features::GUEST_CSUM
    .with(Features::GUEST_TSO4)
    .with(Features::GUEST_TSO6)
    .with(Features::GUEST_ECN)
    .with(Features::GUEST_USO4)
    .with(Features::GUEST_USO6);

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut set = f.debug_set();
        for row in TABLE {
            let bit = Self(1 << row.bit);
            if rest.has(bit) {
                set.entry(&format_args!("{}", row.name));
                rest = rest.without(bit);
            }
        }
        if !rest.is_empty() {
            set.entry(&format_args!("{:#x}", rest.0));
        }
        set.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offering = Offering {
        mtu: true,
        multiqueue: true,
        own_control_queue: true,
    };

    #[test]
    fn each_bit_and_name_is_in_the_table_once() {
        for (i, row) in TABLE.iter().enumerate() {
            assert!(row.bit < 64);
            assert!(
                TABLE[..i]
                    .iter()
                    .all(|other| other.bit != row.bit && other.name != row.name)
            );
            assert!(
                row.needs
                    .iter()
                    .chain(row.one_of)
                    .all(|need| TABLE.iter().any(|other| other.bit == *need))
            );
        }
        assert_eq!(
            Features::offered(ALL).bits().count_ones() as usize,
            TABLE.len()
        );
    }

    #[test]
    fn the_offer_follows_the_configuration() {
        let plain = Features::offered(Offering {
            mtu: false,
            multiqueue: false,
            own_control_queue: false,
        });
        assert!(
            !plain.has(Features::MTU)
                && !plain.has(Features::MQ)
                && !plain.has(Features::CTRL_MAC_ADDR)
                && !plain.has(Features::RING_RESET)
        );
        assert!(Features::offered(ALL).has(Features::RING_RESET));
        assert!(plain.has(Features::VERSION_1) && plain.has(Features::EVENT_IDX));
    }

    #[test]
    fn a_feature_without_what_it_needs_has_no_effect() {
        let set = Features::HOST_TSO4.with(Features::VERSION_1);
        assert_eq!(set.effective(), Features::VERSION_1);
        let set = set.with(Features::CSUM);
        assert_eq!(set.effective(), set);
        let chain = Features::GUEST_ECN.with(Features::GUEST_TSO6);
        assert_eq!(chain.effective(), Features::default(), "two steps away");
        let chain = chain.with(Features::GUEST_CSUM);
        assert_eq!(chain.effective(), chain);
        let ecn = Features::HOST_ECN.with(Features::CSUM);
        assert_eq!(ecn.effective(), Features::CSUM);
        for alone in [Features::MQ, Features::GUEST_ANNOUNCE] {
            assert_eq!(alone.effective(), Features::default(), "{alone:?}");
        }
    }

    #[test]
    fn the_header_is_long_only_where_the_driver_knows_it() {
        assert_eq!(Features::default().header_len(), 10);
        assert_eq!(Features::MRG_RXBUF.header_len(), 12);
        assert_eq!(Features::VERSION_1.header_len(), 12);
    }
}
