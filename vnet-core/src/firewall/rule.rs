//! Chains and rules as data: just what our rulesets say, no more of nft's language than that.
//!
//! `Display` writes nft's own text form; `render` writes the same as JSON. A rule is known again in the kernel by
//! its [`Rule::tag`], a hash of its text, so that nothing has to be read back as an expression.

use std::borrow::Cow;
use std::fmt;

use super::set::{SetName, Table};
use crate::types::Range4;

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Whether it translates addresses (`nat`) or decides only (`filter`).
    pub nat: bool,
    /// nft's word for the hook.
    pub at: At,
    /// Lower is earlier.
    pub priority: i32,
}

/// The hooks we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Before routing (or switching).
    Prerouting,
    /// To the host itself.
    Input,
    /// Through the host.
    Forward,
    /// From the host itself.
    Output,
    /// After routing.
    Postrouting,
}

impl At {
    /// nft's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

/// A chain and all its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Where it is.
    pub table: Table,
    /// Its name.
    pub name: &'static str,
    /// Where it hangs; `None` is only jumped to.
    pub hook: Option<Hook>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// If all tests hold, the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub tests: Vec<Test>,
    /// What happens then.
    pub action: Action,
}

/// Some fields of a packet, together, against something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// Several are compared as one key.
    pub fields: Vec<Field>,
    /// Whether it holds when it does *not* match.
    pub not: bool,
    /// What it is compared with.
    pub with: With,
}

/// What fields are compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum With {
    /// A named set.
    Set(SetName),
    /// One of these.
    Values(Vec<Value>),
}

/// A constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// One of nft's words, or an address.
    Word(&'static str),
    /// A number.
    Number(u16),
    /// A prefix.
    Prefix(&'static str, u8),
}

/// What a test looks at: *the* table of fields is [`Field::text`] and [`Field::place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The interface it came by.
    Iif,
    /// The interface it leaves by.
    Oif,
    /// IPv4 or IPv6.
    Family,
    /// The transport protocol.
    Transport,
    /// The mark.
    Mark,
    /// The source port of TCP or UDP (test [`Field::Transport`] first).
    SourcePort,
    /// The destination port.
    DestinationPort,
    /// The first eight bytes of the transport header, which a later fragment has not.
    Transport8,
    /// IPv4 source.
    Source4,
    /// IPv4 destination.
    Destination4,
    /// IPv6 source.
    Source6,
    /// IPv6 destination.
    Destination6,
    /// Kind of ICMP message.
    Icmp,
    /// Kind of ICMPv6 message.
    Icmp6,
    /// Ethernet source.
    SourceMac,
    /// Ethernet destination.
    DestinationMac,
    /// Kind of Ethernet frame; for a tagged frame that of the tag.
    EtherType,
    /// Who ARP says it is, as MAC.
    ArpMac,
    /// Who ARP says it is, as address.
    ArpAddress,
    /// State of the connection.
    CtState,
    /// What was done to the connection.
    CtStatus,
    /// Whether it goes the way the connection was opened.
    CtDirection,
    /// Whether the destination is the host's own.
    DestinationKind,
}

/// How a field is named in nft's JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// About the packet, not in it.
    Meta(&'static str),
    /// In a header of this protocol.
    Header(&'static str, &'static str),
    /// Bits of a header: which, from where, how many.
    Raw(&'static str, u32, u32),
    /// Of the connection.
    Ct(&'static str),
    /// From the routing table.
    Fib,
}

impl Field {
    /// As nft's text form writes it.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Iif => "iifname",
            Self::Oif => "oifname",
            Self::Family => "meta nfproto",
            Self::Transport => "meta l4proto",
            Self::Mark => "meta mark",
            Self::SourcePort => "th sport",
            Self::DestinationPort => "th dport",
            Self::Transport8 => "@th,0,64",
            Self::Source4 => "ip saddr",
            Self::Destination4 => "ip daddr",
            Self::Source6 => "ip6 saddr",
            Self::Destination6 => "ip6 daddr",
            Self::Icmp => "icmp type",
            Self::Icmp6 => "icmpv6 type",
            Self::SourceMac => "ether saddr",
            Self::DestinationMac => "ether daddr",
            Self::EtherType => "ether type",
            Self::ArpMac => "arp saddr ether",
            Self::ArpAddress => "arp saddr ip",
            Self::CtState => "ct state",
            Self::CtStatus => "ct status",
            Self::CtDirection => "ct direction",
            Self::DestinationKind => "fib daddr type",
        }
    }

    /// As nft's JSON form names it.
    #[must_use]
    pub const fn place(self) -> Place {
        match self {
            Self::Iif => Place::Meta("iifname"),
            Self::Oif => Place::Meta("oifname"),
            Self::Family => Place::Meta("nfproto"),
            Self::Transport => Place::Meta("l4proto"),
            Self::Mark => Place::Meta("mark"),
            Self::SourcePort => Place::Header("th", "sport"),
            Self::DestinationPort => Place::Header("th", "dport"),
            Self::Transport8 => Place::Raw("th", 0, 64),
            Self::Source4 => Place::Header("ip", "saddr"),
            Self::Destination4 => Place::Header("ip", "daddr"),
            Self::Source6 => Place::Header("ip6", "saddr"),
            Self::Destination6 => Place::Header("ip6", "daddr"),
            Self::Icmp => Place::Header("icmp", "type"),
            Self::Icmp6 => Place::Header("icmpv6", "type"),
            Self::SourceMac => Place::Header("ether", "saddr"),
            Self::DestinationMac => Place::Header("ether", "daddr"),
            Self::EtherType => Place::Header("ether", "type"),
            Self::ArpMac => Place::Header("arp", "saddr ether"),
            Self::ArpAddress => Place::Header("arp", "saddr ip"),
            Self::CtState => Place::Ct("state"),
            Self::CtStatus => Place::Ct("status"),
            Self::CtDirection => Place::Ct("direction"),
            Self::DestinationKind => Place::Fib,
        }
    }
}

/// What happens to a packet that passed the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It may go on (to the next base chain; others may still drop it).
    Accept,
    /// It is gone.
    Drop,
    /// Another chain decides.
    Jump(&'static str),
    /// The client hears of it at once: TCP by a reset.
    Reset,
    /// The client hears of it by ICMP.
    Prohibit,
    /// It goes to where the maps say.
    Dnat {
        /// IPv6 rather than IPv4.
        v6: bool,
        /// Host port to guest address.
        address: SetName,
        /// Host port to guest port.
        port: SetName,
    },
    /// It bears the address that it leaves by.
    Masquerade {
        /// From these source ports.
        ports: Option<(u16, u16)>,
    },
    /// It bears one of these addresses.
    Snat {
        /// Which.
        addresses: Range4,
        /// From these source ports.
        ports: Option<(u16, u16)>,
    },
    /// The mark becomes the hash of the target of neighbour discovery (see `guard::target_hash`).
    MarkTarget,
    /// The mark becomes zero.
    ClearMark,
}

/// What the hash of a neighbour discovery target is made with.
pub(super) const TARGET_SEED: u32 = 0x766e_6574;
/// The hash lies below this.
pub(super) const TARGET_MODULUS: u32 = i32::MAX as u32;

/// The fields together are in the set.
pub(super) fn is(fields: &[Field], set: SetName) -> Test {
    Test {
        fields: fields.to_vec(),
        not: false,
        with: With::Set(set),
    }
}

/// The fields together are not in the set.
pub(super) fn not(fields: &[Field], set: SetName) -> Test {
    Test {
        not: true,
        ..is(fields, set)
    }
}

/// The field is one of the words.
pub(super) fn one_of(field: Field, words: &[&'static str]) -> Test {
    values(field, words.iter().copied().map(Value::Word).collect())
}

/// The field is this word.
pub(super) fn word(field: Field, word: &'static str) -> Test {
    values(field, vec![Value::Word(word)])
}

/// The field is one of the constants.
pub(super) fn values(field: Field, values: Vec<Value>) -> Test {
    Test {
        fields: vec![field],
        not: false,
        with: With::Values(values),
    }
}

/// UDP to one of these ports.
pub(super) fn udp_to(ports: &[u16]) -> [Test; 2] {
    let ports = ports.iter().copied().map(Value::Number).collect();
    [
        word(Field::Transport, "udp"),
        values(Field::DestinationPort, ports),
    ]
}

/// UDP from one of these ports.
pub(super) fn udp_from(ports: &[u16]) -> [Test; 2] {
    let ports = ports.iter().copied().map(Value::Number).collect();
    [
        word(Field::Transport, "udp"),
        values(Field::SourcePort, ports),
    ]
}

impl Rule {
    /// A rule.
    pub(super) fn new(tests: impl IntoIterator<Item = Test>, action: Action) -> Self {
        Self {
            tests: tests.into_iter().collect(),
            action,
        }
    }

    /// What it is known by in the kernel: its comment.
    #[must_use]
    pub fn tag(&self) -> String {
        format!("vnet {:016x}", fnv1a(self.to_string().as_bytes()))
    }
}

/// FNV-1a, 64 bits: small, and the same in every build (unlike the standard library's).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => f.write_str(word),
            Self::Number(number) => write!(f, "{number}"),
            Self::Prefix(address, length) => write!(f, "{address}/{length}"),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: Vec<_> = self.fields.iter().map(|field| field.text()).collect();
        write!(f, "{} ", fields.join(" . "))?;
        if self.not {
            f.write_str("!= ")?;
        }
        match &self.with {
            With::Set(set) => write!(f, "@{}", set.name()),
            With::Values(values) => {
                let all: Vec<_> = values.iter().map(Value::to_string).collect();
                match &all[..] {
                    [one] => f.write_str(one),
                    _ => write!(f, "{{ {} }}", all.join(", ")),
                }
            }
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to_ports = |ports: &Option<(u16, u16)>| {
            ports.map_or(Cow::Borrowed(""), |(from, to)| {
                format!(":{from}-{to}").into()
            })
        };
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Reset => f.write_str("reject with tcp reset"),
            Self::Prohibit => f.write_str("reject with icmpx admin-prohibited"),
            Self::Dnat { v6, address, port } => {
                let family = if *v6 { "ip6" } else { "ip" };
                let key = "meta l4proto . th dport";
                let (address, port) = (address.name(), port.name());
                write!(
                    f,
                    "dnat {family} to {key} map @{address} : {key} map @{port}"
                )
            }
            Self::Masquerade { ports: None } => f.write_str("masquerade"),
            Self::Masquerade { ports } => write!(f, "masquerade to {}", to_ports(ports)),
            Self::Snat { addresses, ports } => {
                write!(f, "snat ip to {}{}", range(addresses), to_ports(ports))
            }
            Self::MarkTarget => write!(
                f,
                "meta mark set jhash @th,64,128 mod {TARGET_MODULUS} seed {TARGET_SEED:#x}"
            ),
            Self::ClearMark => f.write_str("meta mark set 0x00000000"),
        }
    }
}

fn range(range: &Range4) -> String {
    if range.start() == range.end() {
        return range.start().to_string();
    }
    range.to_string()
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for test in &self.tests {
            write!(f, "{test} ")?;
        }
        write!(f, "{}", self.action)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(hook) = &self.hook {
            let kind = if hook.nat { "nat" } else { "filter" };
            let (at, priority) = (hook.at.word(), hook.priority);
            writeln!(
                f,
                "\t\ttype {kind} hook {at} priority {priority}; policy accept;"
            )?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}
