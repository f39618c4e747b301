//! The port guard: a port may use only its own MAC and IP addresses, and may not play server. The verdicts are those of
//! the kernel's guard (`vnet_core::firewall`, table `bridge vnet`), so that a guest sees no difference between a tap
//! and a vhost-user port; `tests/tests/guard_differential.rs` sends the same frames to both.
//!
//! | frame | passes when |
//! |---|---|
//! | any | its source MAC is the port's, and it is untagged ARP, IPv4, IPv6 or RARP (how a VMM announces a guest) |
//! | ARP | the sender's MAC is the port's; its address too, or it is 0.0.0.0 (a probe, RFC 5227 2.1.1) |
//! | IPv4 | the source is the port's; or it is a DHCP client that has no address yet |
//! | IPv6 | the source is the port's; or `::` for duplicate address detection and what goes with it |
//! | neighbour advertisement, or detection | its target is an address that the port may use |
//! | from a DHCP server's port or to a client's (v4 and v6), router advertisement, redirect | never |
//!
//! In each family a port is either *held* to its addresses, or it *roams* ([`Guard::roam4`], [`Guard::roam6`]) where
//! not all are known beforehand. What a guarded port owns, no other port may claim by ARP or neighbour discovery,
//! guarded or not: that is [`Owned`].
//!
//! What a guarded port sends and cannot be read to the end (cut headers, endless extension headers, a first fragment
//! without its ports) does not pass.

use super::{
    Reason,
    vlan::untag,
    wire::{
        ARP, ICMPV6, IPV4, IPV6, RARP, UDP, Upper, be16, be32, be128, mac_bits, mac48, upper4,
        upper6,
    },
};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use vnet_core::firewall::{Free6, Hold};
use vnet_core::types::Mac;

/// The addresses of one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    macs: Vec<u64>,
    v4: Vec<RangeInclusive<u32>>,
    v6: Vec<RangeInclusive<u128>>,
    roams4: bool,
    roams6: Roams,
    /// Somebody else's, wherever the port may roam.
    barred6: BTreeSet<u128>,
    /// Whether other ports may claim its addresses all the same.
    yields4: bool,
    yields6: bool,
}

/// Whether a port may use IPv6 addresses that it was not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Roams {
    /// None.
    #[default]
    Held,
    /// Link-local ones and those of these prefixes (SLAAC: RFC 7217, RFC 8981).
    Within(Vec<RangeInclusive<u128>>),
    /// Any.
    Free,
}

/// The addresses that are some guarded port's own.
#[derive(Clone, Debug, Default)]
pub(super) struct Owned {
    v4: BTreeSet<u32>,
    v6: BTreeSet<u128>,
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
            v6,
            ..Self::default()
        }
    }

    /// The guard of a port that is held to this: what `vnet_core::firewall` makes of it for the kernel.
    #[must_use]
    pub fn of(hold: &Hold) -> Self {
        let own = hold.addresses.iter();
        let mut guard = own.fold(Self::new(hold.macs.iter().copied()), |guard, address| {
            guard.allow(*address, 128)
        });
        if hold.free4 {
            guard = guard.roam4();
        }
        guard = match &hold.free6 {
            Free6::None => guard,
            Free6::Within(prefixes) if prefixes.is_empty() => guard,
            Free6::Within(prefixes) => {
                guard.roam6(prefixes.iter().map(|net| (net.addr(), net.prefix_len())))
            }
            Free6::Any => guard.roam6([]),
        };
        guard = guard.bar6(hold.bars6.iter().copied());
        guard.yields4 = hold.yields4;
        guard.yields6 = hold.yields6;
        guard
    }

    /// Adds an address, or a prefix of them. A length beyond the family's is a single address.
    #[must_use]
    pub fn allow(mut self, address: IpAddr, prefix: u8) -> Self {
        match address {
            IpAddr::V4(address) => {
                let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                let bits = address.to_bits();
                self.v4.push(bits & !host..=bits | host);
            }
            IpAddr::V6(address) => self.v6.push(range6(address, prefix)),
        }
        self
    }

    /// Lets the port use any IPv4 address that is not another's: for a network that does not know them.
    #[must_use]
    pub fn roam4(mut self) -> Self {
        self.roams4 = true;
        self
    }

    /// Lets the port use any link-local IPv6 address and any of these prefixes that is not another's; with no prefix
    /// at all, any address.
    #[must_use]
    pub fn roam6(mut self, prefixes: impl IntoIterator<Item = (Ipv6Addr, u8)>) -> Self {
        let prefixes = prefixes.into_iter();
        let mut ranges: Vec<_> = prefixes.map(|(at, length)| range6(at, length)).collect();
        self.roams6 = if ranges.is_empty() {
            Roams::Free
        } else {
            ranges.push(range6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));
            Roams::Within(ranges)
        };
        self
    }

    /// Keeps the port from addresses that are somebody else's, like the gateway's.
    #[must_use]
    pub fn bar6(mut self, addresses: impl IntoIterator<Item = Ipv6Addr>) -> Self {
        let bits = addresses.into_iter().map(Ipv6Addr::to_bits);
        self.barred6.extend(bits);
        self
    }

    pub(super) fn macs(&self) -> &[u64] {
        &self.macs
    }

    /// Whether the port may send this frame, given at least its headers.
    pub(super) fn check(&self, frame: &[u8], owned: &Owned) -> Verdict {
        if !mac48(frame, 6).is_some_and(|mac| self.has_mac(mac)) {
            return Err(Reason::GuardMac);
        }
        let outer = untag(frame);
        if outer.tags > 0 {
            return Err(Reason::GuardVlan);
        }
        match outer.ethertype {
            Some(ARP) => self.check_arp(frame, outer.payload, owned),
            Some(IPV4) => self.check_ip4(frame, outer.payload, owned),
            Some(IPV6) => self.check_ip6(frame, outer.payload, owned),
            Some(RARP) => Ok(()),
            Some(_) => Err(Reason::GuardProtocol),
            None => Err(Reason::GuardHidden),
        }
    }

    fn check_arp(&self, frame: &[u8], at: usize, owned: &Owned) -> Verdict {
        const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
        let (Some(kind), Some(mac), Some(address)) = (
            frame.get(at..at + 6),
            mac48(frame, at + 8),
            be32(frame, at + 14),
        ) else {
            return Err(Reason::GuardHidden);
        };
        let ours = kind == ETHERNET_IPV4
            && self.has_mac(mac)
            && (address == 0 || self.may_use4(address, owned));
        ours.then_some(()).ok_or(Reason::GuardArp)
    }

    fn check_ip4(&self, frame: &[u8], at: usize, owned: &Owned) -> Verdict {
        let (Some(upper), Some(source)) = (upper4(frame, at), be32(frame, at + 12)) else {
            return Err(Reason::GuardHidden);
        };
        match (source, udp_ports(frame, upper)?) {
            (_, Some((67, _) | (_, 68))) => Err(Reason::GuardServer),
            (0, Some((68, 67))) => Ok(()),
            (_, Some(_) | None) if self.may_use4(source, owned) => Ok(()),
            (_, Some(_) | None) => Err(Reason::GuardIp4),
        }
    }

    fn check_ip6(&self, frame: &[u8], at: usize, owned: &Owned) -> Verdict {
        let (Some(upper), Some(source)) = (upper6(frame, at), be128(frame, at + 8)) else {
            return Err(Reason::GuardHidden);
        };
        let icmp = icmp6_kind(frame, upper)?;
        if claims(icmp, source) {
            let target = target(frame, upper).ok_or(Reason::GuardHidden)?;
            let held = self.roams6 == Roams::Held;
            let foreign = owned.v6.contains(&target) || self.barred6.contains(&target);
            if !self.has6(target) && (held || foreign) {
                return Err(Reason::GuardNd);
            }
        }
        match (icmp, udp_ports(frame, upper)?) {
            (Some(ROUTER_ADVERT | REDIRECT), _) | (_, Some((547, _) | (_, 546))) => {
                Err(Reason::GuardServer)
            }
            (Some(kind), _) if source == 0 && may_be_unspecified(kind) => Ok(()),
            (Some(_) | None, _) if self.may_use6(source, owned) => Ok(()),
            (Some(_) | None, _) => Err(Reason::GuardIp6),
        }
    }

    fn has_mac(&self, mac: u64) -> bool {
        self.macs.contains(&mac)
    }

    fn may_use4(&self, address: u32, owned: &Owned) -> bool {
        self.has4(address) || self.roams4 && !owned.v4.contains(&address)
    }

    fn may_use6(&self, address: u128, owned: &Owned) -> bool {
        let roams = match &self.roams6 {
            Roams::Held => false,
            Roams::Within(ranges) => ranges.iter().any(|range| range.contains(&address)),
            Roams::Free => true,
        };
        let foreign = owned.v6.contains(&address) || self.barred6.contains(&address);
        self.has6(address) || roams && !foreign
    }

    fn has4(&self, address: u32) -> bool {
        self.v4.iter().any(|range| range.contains(&address))
    }

    fn has6(&self, address: u128) -> bool {
        self.v6.iter().any(|range| range.contains(&address))
    }
}

impl Owned {
    /// What these ports own: their single addresses. A prefix is nobody's alone.
    pub(super) fn by<'a>(guards: impl Iterator<Item = &'a Guard>) -> Self {
        let mut owned = Self::default();
        for guard in guards {
            let single4 = guard.v4.iter().filter(|range| range.start() == range.end());
            let single6 = guard.v6.iter().filter(|range| range.start() == range.end());
            if !guard.yields4 {
                owned.v4.extend(single4.map(RangeInclusive::start));
            }
            if !guard.yields6 {
                owned.v6.extend(single6.map(RangeInclusive::start));
            }
        }
        owned
    }

    /// Whether a port without a guard may send this frame. A tagged one is of another LAN.
    pub(super) fn check(&self, frame: &[u8]) -> Verdict {
        match be16(frame, 12) {
            Some(ARP) if be32(frame, 28).is_some_and(|address| self.v4.contains(&address)) => {
                Err(Reason::GuardArp)
            }
            Some(IPV6) if self.claimed6(frame).is_some() => Err(Reason::GuardNd),
            Some(_) | None => Ok(()),
        }
    }

    /// The address of ours that a neighbour message claims.
    fn claimed6(&self, frame: &[u8]) -> Option<u128> {
        let (upper, source) = (upper6(frame, 14)?, be128(frame, 22)?);
        let icmp = icmp6_kind(frame, upper).ok()?;
        let target = target(frame, upper).filter(|_| claims(icmp, source));
        target.filter(|target| self.v6.contains(target))
    }
}

const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD2_REPORT: u8 = 143;

/// Whether an ICMPv6 message speaks for its target: an advertisement (RFC 4861 4.4), or duplicate address detection
/// (RFC 4862 5.4.2).
fn claims(icmp: Option<u8>, source: u128) -> bool {
    icmp == Some(NEIGHBOUR_ADVERT) || icmp == Some(NEIGHBOUR_SOLICIT) && source == 0
}

/// Duplicate address detection (RFC 4862 5.4.2), joining the groups it needs (RFC 3590), and asking for a router.
fn may_be_unspecified(icmp: u8) -> bool {
    matches!(icmp, NEIGHBOUR_SOLICIT | ROUTER_SOLICIT | MLD2_REPORT)
}

/// The target of a neighbour message.
fn target(frame: &[u8], upper: Upper) -> Option<u128> {
    be128(frame, upper.header? + 8)
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

fn range6(address: Ipv6Addr, prefix: u8) -> RangeInclusive<u128> {
    let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
    let bits = address.to_bits();
    bits & !host..=bits | host
}
