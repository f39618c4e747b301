use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Boot, DhcpOption, DhcpOption6};
use crate::types::{Ipv6Net, LeaseTime, Mac, PortName, Range4};

/// DHCPv4 of one subnet. Without ranges only reservations are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcp4 {
    /// What may be handed out, in order; within the subnet, without overlaps.
    pub ranges: Vec<DhcpRange4>,
    /// Addresses that belong to somebody.
    pub hosts: Vec<Reservation4>,
    /// How long a lease lasts.
    pub lease_time: LeaseTime,
    /// What else every client of the subnet is told.
    pub options: Vec<DhcpOption>,
    /// Which of the options are told to clients that do not ask for them.
    pub always: Vec<u8>,
    /// What machines without a system load.
    pub boot: Option<Boot>,
    /// Relays that are trusted with more than one station's share, by their `giaddr`.
    pub relays: Vec<Ipv4Addr>,
}

/// Addresses to be handed out, and what is special about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpRange4 {
    /// The addresses.
    pub range: Range4,
    /// Another lease time than the subnet's.
    pub lease_time: Option<LeaseTime>,
    /// Options that win over the subnet's.
    pub options: Vec<DhcpOption>,
}

impl From<Range4> for DhcpRange4 {
    fn from(range: Range4) -> Self {
        Self {
            range,
            lease_time: None,
            options: Vec::new(),
        }
    }
}

/// Where a relay heard the client, in the words of its option 82 (RFC 3046). What is `None` may be anything.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Circuit {
    /// The relay's circuit (suboption 1): its interface or port.
    pub circuit_id: Option<Vec<u8>>,
    /// Who is at the other end (suboption 2): a modem, a switch.
    pub remote_id: Option<Vec<u8>>,
}

impl Circuit {
    /// Whether it says nothing.
    #[must_use]
    pub const fn is_anywhere(&self) -> bool {
        self.circuit_id.is_none() && self.remote_id.is_none()
    }
}

/// An address, a name or both, kept for one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation4 {
    /// Known by its MAC,
    pub mac: Option<Mac>,
    /// or by its client identifier (option 61, raw bytes), or by either...
    pub client_id: Option<Vec<u8>>,
    /// ...or by the relay's circuit that it comes from...
    pub circuit: Circuit,
    /// ...or, with none of these, by the name it sends. Also the name it gets.
    pub name: Option<PortName>,
    /// The address; `None` only names the client.
    pub ip: Option<Ipv4Addr>,
    /// Another lease time than the subnet's.
    pub lease_time: Option<LeaseTime>,
    /// Options that win over the subnet's.
    pub options: Vec<DhcpOption>,
}

impl Reservation4 {
    /// Whether the client is known by nothing but the name it sends.
    #[must_use]
    pub const fn is_by_name(&self) -> bool {
        self.mac.is_none() && self.client_id.is_none() && self.circuit.is_anywhere()
    }
}

/// How guests of an IPv6 subnet get their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RaMode {
    /// Router advertisements with autonomous addresses, nothing else.
    Slaac,
    /// Autonomous addresses, and DHCPv6 for names and options.
    Stateless,
    /// Addresses only by DHCPv6.
    Stateful,
    /// Both kinds of addresses.
    Both,
}

impl RaMode {
    /// Every mode, in the order documents list them.
    pub const ALL: [Self; 4] = [Self::Slaac, Self::Stateless, Self::Stateful, Self::Both];

    /// The word documents use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Slaac => "slaac",
            Self::Stateless => "stateless",
            Self::Stateful => "stateful",
            Self::Both => "both",
        }
    }
}

/// Router advertisements and DHCPv6 of one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcp6 {
    /// Who makes the addresses.
    pub mode: RaMode,
    /// What DHCPv6 may hand out, first to last.
    pub ranges: Vec<(Ipv6Addr, Ipv6Addr)>,
    /// Addresses that belong to somebody.
    pub hosts: Vec<Reservation6>,
    /// How long a lease lasts.
    pub lease_time: LeaseTime,
    /// What else every client of the subnet is told.
    pub options: Vec<DhcpOption6>,
    /// What machines without a system load: files are URLs.
    pub boot: Option<Boot>,
    /// Relays that are trusted with more than one station's share, by the link that they name or their own address.
    pub relays: Vec<Ipv6Addr>,
    /// Where else the gateway leads, besides everywhere (RFC 4191).
    pub routes: Vec<Ipv6Net>,
    /// The prefix of a translator to IPv4 (RFC 8781).
    pub pref64: Option<Ipv6Net>,
}

/// An IPv6 address kept for one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation6 {
    /// Known by its MAC...
    pub mac: Option<Mac>,
    /// ...or by its DUID.
    pub duid: Option<Vec<u8>>,
    /// The name it gets.
    pub name: Option<PortName>,
    /// The address.
    pub ip: Ipv6Addr,
    /// Another lease time than the subnet's.
    pub lease_time: Option<LeaseTime>,
    /// Options that win over the subnet's.
    pub options: Vec<DhcpOption6>,
}
