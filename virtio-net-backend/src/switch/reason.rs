//! Why a frame was dropped, and what is counted. One table: metrics, logs and `Display` follow from it.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a frame went nowhere.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason there is, in the order of [`Counters::dropped`].
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The name that metrics and logs use.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// The sending port is not (or no longer) attached.
    NoPort = "no_port",
    /// Shorter than an Ethernet header.
    Runt = "runt",
    /// The source address is zero or a group address.
    BadSource = "bad_source",
    /// To 01:80:c2:00:00:0x, which a bridge never forwards (IEEE 802.1Q 8.6.3).
    Reserved = "reserved",
    /// The sender is over its rate.
    RateIn = "rate_in",
    /// The receiver is over its rate; counted at the receiver.
    RateOut = "rate_out",
    /// Guard: a source MAC address that is not the port's.
    GuardMac = "guard_mac",
    /// Guard: a VLAN tag, behind which the other checks could be evaded.
    GuardVlan = "guard_vlan",
    /// Guard: neither ARP, RARP nor IP, so that nothing is known to be true of it.
    GuardProtocol = "guard_protocol",
    /// Guard: ARP for an address, or from a MAC, that is not the port's.
    GuardArp = "guard_arp",
    /// Guard: an IPv4 source address that is not the port's.
    GuardIp4 = "guard_ip4",
    /// Guard: an IPv6 source address that is not the port's.
    GuardIp6 = "guard_ip6",
    /// Guard: a neighbour advertisement, or duplicate address detection, for an address that is not the port's.
    GuardNd = "guard_nd",
    /// Guard: a DHCP, DHCPv6 or router message, which only the network may send.
    GuardServer = "guard_server",
    /// Guard: headers cut short or too long to be read, so nothing can be said for the frame.
    GuardHidden = "guard_hidden",
    /// The source address belongs to another, guarded port.
    MacPinned = "mac_pinned",
    /// Both ends are isolated.
    Isolated = "isolated",
    /// The receiver is where the frame came from.
    SamePort = "same_port",
    /// There is nobody to receive it.
    NoReceiver = "no_receiver",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one port has sent, received and lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that the port sent, dropped or not.
    pub sent_frames: u64,
    /// Bytes of those.
    pub sent_bytes: u64,
    /// Frames that the switch decided to give to the port.
    pub received_frames: u64,
    /// Bytes of those.
    pub received_bytes: u64,
    /// Source addresses that found no place in the table (the frames were forwarded).
    pub unlearned: u64,
    drops: [u64; Reason::ALL.len()],
}

impl Counters {
    /// Drops for one reason.
    #[must_use]
    pub fn drops(&self, reason: Reason) -> u64 {
        self.drops[reason as usize]
    }

    /// All reasons for which there was a drop.
    pub fn dropped(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL
            .iter()
            .map(|reason| (*reason, self.drops(*reason)))
            .filter(|(_, count)| *count > 0)
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent_frames += 1;
        self.sent_bytes += bytes;
    }

    pub(super) fn received(&mut self, bytes: u64) {
        self.received_frames += 1;
        self.received_bytes += bytes;
    }

    pub(super) fn drop(&mut self, reason: Reason) {
        self.drops[reason as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_fit_a_metric_label() {
        let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(names.iter().all(|name| {
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        }));
    }

    #[test]
    fn a_reason_indexes_its_own_counter() {
        for reason in Reason::ALL {
            let mut counters = Counters::default();
            counters.drop(*reason);
            assert_eq!(counters.dropped().collect::<Vec<_>>(), [(*reason, 1)]);
        }
    }
}
