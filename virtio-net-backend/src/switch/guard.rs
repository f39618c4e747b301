//! The port guard: a port may use only its own MAC and IP addresses, and may not play server. The verdicts are those of
//! the kernel's guard (`table bridge vnet`), so that a guest sees no difference between a tap and a vhost-user port;
//! `tests/tests/guard_differential.rs` sends the same frames to both.
//!
//! | frame | passes when |
//! |---|---|
//! | any | its source MAC is the port's; it has no VLAN tag |
//! | ARP | sender MAC is the port's; sender address is the port's, or 0.0.0.0 (a probe, RFC 5227 2.1.1) |
//! | IPv4 | source is the port's; or 0.0.0.0 for a message to a DHCP server |
//! | IPv6 | source is the port's or the link-local address of its MAC; or `::` for DAD and the MLD report before it |
//! | neighbour advertisement | its target is an address that may be a source |
//! | from a DHCP or DHCPv6 server, to a client's port, router advertisement, redirect | never |
//! | other protocols | always |
//!
//! What cannot be read to the end (cut headers, endless extension headers, a first fragment without its ports) does not pass.

use super::{
    Reason,
    vlan::untag,
    wire::{
        ARP, ICMPV6, IPV4, IPV6, UDP, Upper, be16, be32, be128, mac_bits, mac48, upper4, upper6,
    },
};
use std::{net::IpAddr, ops::RangeInclusive};
use vnet_core::types::Mac;

/// The addresses of one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    macs: Vec<u64>,
    v4: Vec<RangeInclusive<u32>>,
    v6: Vec<RangeInclusive<u128>>,
}

type Verdict = Result<(), Reason>;

impl Guard {
    /// A guard for a port with these MAC addresses, their IPv6 link-local addresses, and no other address yet.
    #[must_use]
    pub fn new(macs: impl IntoIterator<Item = Mac>) -> Self {
        let macs: Vec<Mac> = macs.into_iter().collect();
        let v6 = macs.iter().map(|mac| mac.link_local().to_bits());
        let v6 = v6.map(|address| address..=address).collect();
        let macs = macs.into_iter().map(mac_bits).collect();
        Self {
            macs,
            v4: Vec::new(),
            v6,
        }
    }

    /// Adds an address, or a prefix of them. A length beyond the family's is a single address.
    #[must_use]
    pub fn allow(mut self, address: IpAddr, prefix: u8) -> Self {
        match address {
            IpAddr::V4(address) => {
                let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                self.v4
                    .push(address.to_bits() & !host..=address.to_bits() | host);
            }
            IpAddr::V6(address) => {
                let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
                self.v6
                    .push(address.to_bits() & !host..=address.to_bits() | host);
            }
        }
        self
    }

    pub(super) fn macs(&self) -> &[u64] {
        &self.macs
    }

    /// Whether the port may send this frame, given at least its headers.
    ///
    /// # Errors
    /// The reason why it may not.
    pub fn check(&self, frame: &[u8]) -> Verdict {
        if !mac48(frame, 6).is_some_and(|mac| self.has_mac(mac)) {
            return Err(Reason::GuardMac);
        }
        let outer = untag(frame);
        if outer.tags > 0 {
            return Err(Reason::GuardVlan);
        }
        match outer.ethertype {
            Some(ARP) => self.check_arp(frame, outer.payload),
            Some(IPV4) => self.check_ip4(frame, outer.payload),
            Some(IPV6) => self.check_ip6(frame, outer.payload),
            Some(_) => Ok(()),
            None => Err(Reason::GuardHidden),
        }
    }

    fn check_arp(&self, frame: &[u8], at: usize) -> Verdict {
        const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
        let (Some(kind), Some(mac), Some(address)) = (
            frame.get(at..at + 6),
            mac48(frame, at + 8),
            be32(frame, at + 14),
        ) else {
            return Err(Reason::GuardHidden);
        };
        let ours =
            kind == ETHERNET_IPV4 && self.has_mac(mac) && (address == 0 || self.has4(address));
        ours.then_some(()).ok_or(Reason::GuardArp)
    }

    fn check_ip4(&self, frame: &[u8], at: usize) -> Verdict {
        let (Some(upper), Some(source)) = (upper4(frame, at), be32(frame, at + 12)) else {
            return Err(Reason::GuardHidden);
        };
        let ports = udp_ports(frame, upper)?;
        if source == 0 {
            return if matches!(ports, Some((_, 67))) {
                Ok(())
            } else {
                Err(Reason::GuardIp4)
            };
        }
        if !self.has4(source) {
            return Err(Reason::GuardIp4);
        }
        match ports {
            Some((67, _) | (_, 68)) => Err(Reason::GuardServer),
            Some(_) | None => Ok(()),
        }
    }

    fn check_ip6(&self, frame: &[u8], at: usize) -> Verdict {
        let (Some(upper), Some(source)) = (upper6(frame, at), be128(frame, at + 8)) else {
            return Err(Reason::GuardHidden);
        };
        let icmp = icmp6_kind(frame, upper)?;
        if source == 0 {
            return if icmp.is_some_and(may_be_unspecified) {
                Ok(())
            } else {
                Err(Reason::GuardIp6)
            };
        }
        if !self.has6(source) {
            return Err(Reason::GuardIp6);
        }
        match (icmp, udp_ports(frame, upper)?) {
            (Some(ROUTER_ADVERT | REDIRECT), _) | (_, Some((547, _) | (_, 546))) => {
                Err(Reason::GuardServer)
            }
            (Some(NEIGHBOUR_ADVERT), _) => self.check_advert(frame, upper),
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// The IPv6 twin of the ARP check: RFC 4861 4.4.
    fn check_advert(&self, frame: &[u8], upper: Upper) -> Verdict {
        let target = upper
            .header
            .and_then(|at| be128(frame, at + 8))
            .ok_or(Reason::GuardHidden)?;
        self.has6(target).then_some(()).ok_or(Reason::GuardNd)
    }

    fn has_mac(&self, mac: u64) -> bool {
        self.macs.contains(&mac)
    }

    fn has4(&self, address: u32) -> bool {
        self.v4.iter().any(|range| range.contains(&address))
    }

    fn has6(&self, address: u128) -> bool {
        self.v6.iter().any(|range| range.contains(&address))
    }
}

const MLD_REPORT: u8 = 131;
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD2_REPORT: u8 = 143;

/// Duplicate address detection (RFC 4862 5.4.2) and joining the groups it needs (RFC 3590).
fn may_be_unspecified(icmp: u8) -> bool {
    matches!(icmp, NEIGHBOUR_SOLICIT | MLD_REPORT | MLD2_REPORT)
}

/// Source and destination port, if this is UDP and not a later fragment.
fn udp_ports(frame: &[u8], upper: Upper) -> Result<Option<(u16, u16)>, Reason> {
    match upper {
        Upper {
            protocol: UDP,
            header: Some(at),
            ..
        } => match (be16(frame, at), be16(frame, at + 2)) {
            (Some(source), Some(destination)) => Ok(Some((source, destination))),
            _ => Err(Reason::GuardHidden),
        },
        Upper { .. } => Ok(None),
    }
}

/// The ICMPv6 type, if it is that and not a later fragment.
fn icmp6_kind(frame: &[u8], upper: Upper) -> Result<Option<u8>, Reason> {
    match upper {
        Upper {
            protocol: ICMPV6,
            header: Some(at),
            ..
        } => frame.get(at).copied().map(Some).ok_or(Reason::GuardHidden),
        Upper { .. } => Ok(None),
    }
}
