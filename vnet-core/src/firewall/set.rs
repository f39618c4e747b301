//! The sets and maps of the ruleset, and their elements: all that differs between one world and another.
//!
//! [`SetName::spec`] is *the* table of sets. Nothing here knows why an element is where it is.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::model::Protocol;
use crate::types::{IfName, Ipv4Net, Ipv6Net, Mac, Range4};

/// The two tables that are ours. Both are called `vnet`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Packets that are routed: forward modes, access to the host, translation, published ports.
    Inet,
    /// Frames that are switched: the guard of the ports.
    Bridge,
}

impl Table {
    /// Both tables.
    pub const ALL: [Self; 2] = [Self::Inet, Self::Bridge];
    /// The name of both.
    pub const NAME: &'static str = "vnet";

    /// nft's word for the family.
    #[must_use]
    pub const fn family(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        }
    }
}

/// How one kind of address translation is done; networks that share it share the rules.
///
/// nft cannot say in JSON a map to a *range* of addresses or ports, so these are the one thing that is a rule and
/// not an element: the number of rules grows with the different translations, not with the networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Translation {
    /// To these addresses; `None` is the address that the packet leaves by.
    pub addresses: Option<Range4>,
    /// Source ports for TCP and UDP.
    pub ports: (u16, u16),
}

/// A set or map of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetName {
    /// Bridges whose packets are filtered: `nat`, `routed`, `isolated`.
    Bridges,
    /// Bridges of isolated networks.
    Isolated,
    /// Bridges of routed networks.
    Routed,
    /// A bridge and itself: packets that do not leave the network.
    Own,
    /// Which IPv4 sources may come from a bridge.
    Source4,
    /// Which IPv6 sources may come from a bridge.
    Source6,
    /// Bridges that may use only certain interfaces of the host.
    Bound,
    /// Which those are.
    Egress,
    /// Bridges whose guests may not reach all of the host.
    Limited,
    /// Those whose guests may use DHCP only.
    Closed,
    /// The IPv4 addresses of a bridge that its guests know as gateway.
    Gateway4,
    /// The IPv6 addresses of a bridge that its guests know as gateway.
    Gateway6,
    /// Bridges with a publication.
    Published,
    /// Subnets with a publication, paired with each subnet of their own network.
    Same4,
    /// The same for IPv6.
    Same6,
    /// The host's port to a guest's address...
    PublishAddress4,
    /// ...and to the guest's port.
    PublishPort4,
    /// The same for guests with an IPv6 address.
    PublishAddress6,
    /// ...and port.
    PublishPort6,
    /// Bridges whose IPv6 is translated.
    Nat6,
    /// Bridges that are translated so.
    Nat(Translation),
    /// Ports that are held to their addresses.
    Guarded,
    /// Which MAC a port has: guarded or not.
    PortMac,
    /// MACs that only their own port may use.
    OwnedMac,
    /// Guarded ports whose IPv4 addresses are not all known.
    Free4,
    /// Which IPv4 address a port has.
    Address4,
    /// IPv4 addresses that only their own port may claim.
    Owned4,
    /// Guarded ports whose IPv6 addresses are not all known.
    Free6,
    /// Those of them that make their own addresses in a prefix that allows it.
    Roaming6,
    /// Prefixes in which guests make their own addresses.
    Prefix6,
    /// Which IPv6 address a port has.
    Address6,
    /// IPv6 addresses that only their own port may use.
    Owned6,
    /// Which target of neighbour discovery a port may speak for, as a hash.
    Target6,
    /// Targets that only their own port may speak for, as hashes.
    OwnedTarget6,
    /// Ports in hairpin mode, paired with themselves.
    Reflect,
}

/// What a column of a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// The name of an interface.
    Interface,
    /// An Ethernet address.
    Mac,
    /// One IPv4 address.
    Ip4,
    /// An IPv4 prefix.
    Net4,
    /// One IPv6 address.
    Ip6,
    /// An IPv6 prefix.
    Net6,
    /// TCP or UDP.
    Protocol,
    /// A port of TCP or UDP.
    Port,
    /// A number of 32 bits.
    Mark,
}

impl Column {
    /// nft's word for the type.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Interface => "ifname",
            Self::Mac => "ether_addr",
            Self::Ip4 | Self::Net4 => "ipv4_addr",
            Self::Ip6 | Self::Net6 => "ipv6_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Mark => "mark",
        }
    }
}

/// How a set is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetSpec {
    /// Where it is.
    pub table: Table,
    /// What its elements are made of.
    pub key: &'static [Column],
    /// What they lead to, if it is a map.
    pub value: Option<Column>,
}

impl SetSpec {
    /// Whether elements are prefixes: such sets are slower to change, so that nothing per port is in one.
    #[must_use]
    pub fn interval(&self) -> bool {
        let prefix = |c: &Column| matches!(c, Column::Net4 | Column::Net6);
        self.key.iter().any(prefix)
    }
}

impl SetName {
    /// Every set that is there whatever the world holds; a [`Self::Nat`] comes with each translation in use.
    pub const FIXED: [Self; 34] = [
        Self::Bridges,
        Self::Isolated,
        Self::Routed,
        Self::Own,
        Self::Source4,
        Self::Source6,
        Self::Bound,
        Self::Egress,
        Self::Limited,
        Self::Closed,
        Self::Gateway4,
        Self::Gateway6,
        Self::Published,
        Self::Same4,
        Self::Same6,
        Self::PublishAddress4,
        Self::PublishPort4,
        Self::PublishAddress6,
        Self::PublishPort6,
        Self::Nat6,
        Self::Guarded,
        Self::PortMac,
        Self::OwnedMac,
        Self::Free4,
        Self::Address4,
        Self::Owned4,
        Self::Free6,
        Self::Roaming6,
        Self::Prefix6,
        Self::Address6,
        Self::Owned6,
        Self::Target6,
        Self::OwnedTarget6,
        Self::Reflect,
    ];

    /// Its name in nft. Prefixed, so that it is never a word of nft's grammar.
    #[must_use]
    pub fn name(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Bridges => "vnet_bridges",
            Self::Isolated => "vnet_isolated",
            Self::Routed => "vnet_routed",
            Self::Own => "vnet_own",
            Self::Source4 => "vnet_source4",
            Self::Source6 => "vnet_source6",
            Self::Bound => "vnet_bound",
            Self::Egress => "vnet_egress",
            Self::Limited => "vnet_limited",
            Self::Closed => "vnet_closed",
            Self::Gateway4 => "vnet_gateway4",
            Self::Gateway6 => "vnet_gateway6",
            Self::Published => "vnet_published",
            Self::Same4 => "vnet_same4",
            Self::Same6 => "vnet_same6",
            Self::PublishAddress4 => "vnet_publish_addr4",
            Self::PublishPort4 => "vnet_publish_port4",
            Self::PublishAddress6 => "vnet_publish_addr6",
            Self::PublishPort6 => "vnet_publish_port6",
            Self::Nat6 => "vnet_nat6",
            Self::Nat(translation) => return Cow::Owned(translation.set_name()),
            Self::Guarded => "vnet_guarded",
            Self::PortMac => "vnet_port_mac",
            Self::OwnedMac => "vnet_owned_mac",
            Self::Free4 => "vnet_free4",
            Self::Address4 => "vnet_address4",
            Self::Owned4 => "vnet_owned4",
            Self::Free6 => "vnet_free6",
            Self::Roaming6 => "vnet_roaming6",
            Self::Prefix6 => "vnet_prefix6",
            Self::Address6 => "vnet_address6",
            Self::Owned6 => "vnet_owned6",
            Self::Target6 => "vnet_target6",
            Self::OwnedTarget6 => "vnet_owned_target6",
            Self::Reflect => "vnet_reflect",
        })
    }

    /// The translation that this is the set of.
    #[must_use]
    #[allow(clippy::wildcard_enum_match_arm, reason = "a question about one kind")]
    pub const fn translation(self) -> Option<Translation> {
        match self {
            Self::Nat(translation) => Some(translation),
            _ => None,
        }
    }

    /// The set by its name in nft.
    #[must_use]
    pub fn parse(table: Table, name: &str) -> Option<Self> {
        let fixed = Self::FIXED.iter().copied();
        fixed
            .chain(Translation::of_set_name(name).map(Self::Nat))
            .find(|set| set.spec().table == table && set.name() == name)
    }

    /// How it is declared: *the* table of sets.
    #[must_use]
    pub const fn spec(self) -> SetSpec {
        use Column::{Interface, Ip4, Ip6, Mac, Mark, Net4, Net6, Port, Protocol};
        let (table, key, value): (_, &'static [Column], _) = match self {
            Self::Bridges
            | Self::Isolated
            | Self::Routed
            | Self::Bound
            | Self::Limited
            | Self::Closed
            | Self::Published
            | Self::Nat6
            | Self::Nat(_) => (Table::Inet, &[Interface], None),
            Self::Own | Self::Egress => (Table::Inet, &[Interface, Interface], None),
            Self::Source4 => (Table::Inet, &[Interface, Net4], None),
            Self::Source6 => (Table::Inet, &[Interface, Net6], None),
            Self::Gateway4 => (Table::Inet, &[Interface, Ip4], None),
            Self::Gateway6 => (Table::Inet, &[Interface, Ip6], None),
            Self::Same4 => (Table::Inet, &[Net4, Net4], None),
            Self::Same6 => (Table::Inet, &[Net6, Net6], None),
            Self::PublishAddress4 => (Table::Inet, &[Protocol, Port], Some(Ip4)),
            Self::PublishAddress6 => (Table::Inet, &[Protocol, Port], Some(Ip6)),
            Self::PublishPort4 | Self::PublishPort6 => (Table::Inet, &[Protocol, Port], Some(Port)),
            Self::Guarded | Self::Free4 | Self::Free6 | Self::Roaming6 => {
                (Table::Bridge, &[Interface], None)
            }
            Self::Reflect => (Table::Bridge, &[Interface, Interface], None),
            Self::PortMac => (Table::Bridge, &[Interface, Mac], None),
            Self::OwnedMac => (Table::Bridge, &[Mac], None),
            Self::Address4 => (Table::Bridge, &[Interface, Ip4], None),
            Self::Owned4 => (Table::Bridge, &[Ip4], None),
            Self::Prefix6 => (Table::Bridge, &[Net6], None),
            Self::Address6 => (Table::Bridge, &[Interface, Ip6], None),
            Self::Owned6 => (Table::Bridge, &[Ip6], None),
            Self::Target6 => (Table::Bridge, &[Interface, Mark], None),
            Self::OwnedTarget6 => (Table::Bridge, &[Mark], None),
        };
        SetSpec { table, key, value }
    }
}

impl Translation {
    fn set_name(self) -> String {
        let (from, to) = self.ports;
        match self.addresses {
            None => format!("vnet_nat_{from}_{to}"),
            Some(range) => format!("vnet_nat_{from}_{to}_{}_{}", range.start(), range.end()),
        }
    }

    fn of_set_name(name: &str) -> Option<Self> {
        let parts: Vec<_> = name.strip_prefix("vnet_nat_")?.split('_').collect();
        let (from, to, addresses) = match parts[..] {
            [from, to] => (from, to, None),
            [from, to, start, end] => {
                let range = Range4::new(start.parse().ok()?, end.parse().ok()?).ok()?;
                (from, to, Some(range))
            }
            _ => return None,
        };
        Some(Self {
            addresses,
            ports: (from.parse().ok()?, to.parse().ok()?),
        })
    }
}

/// One value in one column.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Atom {
    /// The name of an interface.
    Interface(IfName),
    /// An Ethernet address.
    Mac(Mac),
    /// One IPv4 address.
    Ip4(Ipv4Addr),
    /// An IPv4 prefix, host bits cleared.
    Net4(Ipv4Net),
    /// One IPv6 address.
    Ip6(Ipv6Addr),
    /// An IPv6 prefix, host bits cleared.
    Net6(Ipv6Net),
    /// TCP or UDP.
    Protocol(Protocol),
    /// A port of TCP or UDP.
    Port(u16),
    /// A number of 32 bits.
    Mark(u32),
}

macro_rules! atom_from {
    ($($t:ty => $variant:ident),+ $(,)?) => {$(
        impl From<$t> for Atom {
            fn from(value: $t) -> Self {
                Self::$variant(value)
            }
        }
    )+};
}
atom_from!(
    IfName => Interface, Mac => Mac, Ipv4Addr => Ip4, Ipv6Addr => Ip6, Protocol => Protocol, u16 => Port, u32 => Mark,
);

impl From<&IfName> for Atom {
    fn from(name: &IfName) -> Self {
        Self::Interface(name.clone())
    }
}

impl From<Ipv4Net> for Atom {
    fn from(net: Ipv4Net) -> Self {
        Self::Net4(net.trunc())
    }
}

impl From<Ipv6Net> for Atom {
    fn from(net: Ipv6Net) -> Self {
        Self::Net6(net.trunc())
    }
}

/// As nft writes it: quoted names, `tcp`, a full-length prefix as an address.
impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "\"{name}\""),
            Self::Mac(mac) => write!(f, "{mac}"),
            Self::Ip4(address) => write!(f, "{address}"),
            Self::Net4(net) if net.prefix_len() == 32 => write!(f, "{}", net.addr()),
            Self::Net4(net) => write!(f, "{net}"),
            Self::Ip6(address) => write!(f, "{address}"),
            Self::Net6(net) if net.prefix_len() == 128 => write!(f, "{}", net.addr()),
            Self::Net6(net) => write!(f, "{net}"),
            Self::Protocol(protocol) => write!(f, "{protocol}"),
            Self::Port(port) => write!(f, "{port}"),
            Self::Mark(mark) => write!(f, "{mark:#010x}"),
        }
    }
}

/// The values of a key's columns. There is one for every port in every set, so it is not a `Vec`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key([Option<Atom>; Key::MOST]);

impl Key {
    /// No set has more columns.
    pub const MOST: usize = 2;

    /// The values, in the order of the columns; `None` when there are too many.
    #[must_use]
    pub fn new(atoms: &[Atom]) -> Option<Self> {
        let mut key = [const { None }; Self::MOST];
        for (i, atom) in atoms.iter().enumerate() {
            *key.get_mut(i)? = Some(atom.clone());
        }
        Some(Self(key))
    }

    /// The values, in the order of the columns; too many do not compile.
    pub(super) fn of<const N: usize>(atoms: [Atom; N]) -> Self {
        const { assert!(N <= Self::MOST, "a key has too many columns") };
        let mut key = [const { None }; Self::MOST];
        for (to, atom) in key.iter_mut().zip(atoms) {
            *to = Some(atom);
        }
        Self(key)
    }

    /// The values, in the order of the columns.
    pub fn iter(&self) -> impl Iterator<Item = &Atom> {
        self.0.iter().flatten()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// One element of a set (key only) or of a map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// One value for each column of the key.
    pub key: Key,
    /// What it leads to, in a map.
    pub value: Option<Atom>,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key: Vec<_> = self.key.iter().map(Atom::to_string).collect();
        f.write_str(&key.join(" . "))?;
        match &self.value {
            Some(value) => write!(f, " : {value}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_are_read_back() {
        let range = "203.0.113.5-203.0.113.9".parse().unwrap();
        let nat = |addresses| {
            let ports = (1024, 65535);
            SetName::Nat(Translation { addresses, ports })
        };
        let all: Vec<_> = SetName::FIXED
            .into_iter()
            .chain([nat(None), nat(Some(range))])
            .collect();
        for set in &all {
            assert_eq!(SetName::parse(set.spec().table, &set.name()), Some(*set));
            assert_eq!(all.iter().filter(|s| s.name() == set.name()).count(), 1);
        }
        for foreign in [
            "",
            "vnet_",
            "vnet_nat_1",
            "vnet_nat_01_2",
            "vnet_nat_1_2_10.0.0.9_10.0.0.1",
        ] {
            assert_eq!(SetName::parse(Table::Inet, foreign), None, "{foreign}");
        }
    }
}
