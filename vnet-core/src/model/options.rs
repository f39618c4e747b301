//! *The* DHCPv4 option table: code, name and how its value is spelled. Documents, the server's replies, the
//! guests' requests and `--help` all follow from it; a new option is one row.

use std::fmt;
use std::net::Ipv4Addr;

use crate::types::{DomainName, Invalid, Ipv4Net};

/// How the value of an option is spelled, in documents and on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// One address.
    Address,
    /// One or more addresses.
    Addresses,
    /// Addresses two by two: a destination and its router or mask.
    Pairs,
    /// One byte.
    U8,
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
    /// Text.
    Text,
    /// Domain names, written one after another without compression (RFC 3397).
    Domains,
    /// `prefix gateway` pairs, written `10.0.0.0/8,192.168.1.1` (RFC 3442).
    Routes,
    /// Addresses, or domain names: which of them the first byte says (RFC 3361).
    Sip,
    /// Options within the option, `6=0x08`, `8=10.0.0.3`, `9=text`; or all of it in hexadecimal.
    Encapsulated,
    /// Bytes in hexadecimal, with or without colons.
    Hex,
}

impl OptionKind {
    /// What the value is, in the words of the documentation.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Address => "an address",
            Self::Addresses => "addresses",
            Self::Pairs => "addresses two by two",
            Self::U8 => "a number to 255",
            Self::U16 => "a number to 65535",
            Self::U32 => "a number to 4294967295",
            Self::Text => "a text",
            Self::Domains => "domain names",
            Self::Routes => "routes, `10.0.0.0/8,192.168.1.1`",
            Self::Sip => "addresses, or domain names",
            Self::Encapsulated => "options within it, `6=0x08` `8=10.0.0.3` `9=text`; or bytes",
            Self::Hex => "bytes in hexadecimal",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct OptionRow {
    /// The number on the wire.
    pub code: u8,
    /// The name in documents.
    pub name: &'static str,
    /// How its value is spelled.
    pub kind: OptionKind,
}

const fn row(code: u8, name: &'static str, kind: OptionKind) -> OptionRow {
    OptionRow { code, name, kind }
}

use OptionKind::{
    Address, Addresses, Domains, Encapsulated, Hex, Pairs, Routes, Sip, Text, U8, U16, U32,
};

/// Every option with a name. One without can be given by its number, in hexadecimal.
pub const TABLE: &[OptionRow] = &[
    row(1, "subnet-mask", Address),
    row(2, "time-offset", U32),
    row(3, "router", Addresses),
    row(4, "time-server", Addresses),
    row(6, "dns-server", Addresses),
    row(7, "log-server", Addresses),
    row(9, "lpr-server", Addresses),
    row(12, "host-name", Text),
    row(13, "boot-file-size", U16),
    row(15, "domain-name", Text),
    row(16, "swap-server", Address),
    row(17, "root-path", Text),
    row(18, "extensions-path", Text),
    row(19, "ip-forwarding", U8),
    row(20, "non-local-source-routing", U8),
    row(21, "policy-filter", Pairs),
    row(22, "max-datagram-reassembly", U16),
    row(23, "default-ttl", U8),
    row(26, "mtu", U16),
    row(27, "all-subnets-local", U8),
    row(28, "broadcast-address", Address),
    row(31, "router-discovery", U8),
    row(32, "router-solicitation", Address),
    row(33, "static-routes", Pairs),
    row(34, "trailer-encapsulation", U8),
    row(35, "arp-timeout", U32),
    row(36, "ethernet-encapsulation", U8),
    row(37, "tcp-ttl", U8),
    row(38, "tcp-keepalive", U32),
    row(40, "nis-domain", Text),
    row(41, "nis-server", Addresses),
    row(42, "ntp-server", Addresses),
    row(43, "vendor-encapsulated", Encapsulated),
    row(44, "netbios-name-server", Addresses),
    row(45, "netbios-datagram-server", Addresses),
    row(46, "netbios-node-type", U8),
    row(47, "netbios-scope", Text),
    row(48, "x-font-server", Addresses),
    row(49, "x-display-manager", Addresses),
    row(58, "renewal-time", U32),
    row(59, "rebinding-time", U32),
    row(60, "vendor-class", Text),
    row(64, "nisplus-domain", Text),
    row(65, "nisplus-server", Addresses),
    row(66, "tftp-server-name", Text),
    row(67, "bootfile-name", Text),
    row(68, "mobile-ip-home", Addresses),
    row(69, "smtp-server", Addresses),
    row(70, "pop3-server", Addresses),
    row(71, "nntp-server", Addresses),
    row(72, "www-server", Addresses),
    row(74, "irc-server", Addresses),
    row(100, "posix-timezone", Text),
    row(101, "tzdb-timezone", Text),
    row(108, "ipv6-only-preferred", U32),
    row(114, "captive-portal", Text),
    row(116, "auto-config", U8),
    row(119, "domain-search", Domains),
    row(120, "sip-server", Sip),
    row(121, "classless-static-route", Routes),
    row(124, "vendor-identifying-class", Hex),
    row(125, "vendor-identifying", Hex),
    row(150, "tftp-server-address", Addresses),
    row(209, "pxe-config-file", Text),
    row(210, "pxe-path-prefix", Text),
    row(252, "wpad", Text),
];

/// Names that dnsmasq's users know, where ours are others.
pub const ALIASES: &[(&str, u8)] = &[
    ("netmask", 1),
    ("hostname", 12),
    ("extension-path", 18),
    ("ip-forward-enable", 19),
    ("broadcast", 28),
    ("static-route", 33),
    ("ethernet-encap", 36),
    ("vendor-encap", 43),
    ("netbios-ns", 44),
    ("netbios-dd", 45),
    ("netbios-nodetype", 46),
    ("x-windows-fs", 48),
    ("x-windows-dm", 49),
    ("T1", 58),
    ("T2", 59),
    ("nis+-domain", 64),
    ("nis+-server", 65),
    ("tftp-server", 66),
    ("ipv6-only", 108),
    ("vendor-id-encap", 125),
];

/// Codes that are the protocol's own: a document cannot set them.
const OURS: &[u8] = &[
    0, 1, 50, 51, 52, 53, 54, 55, 57, 61, 80, 81, 82, 97, 118, 255,
];

/// One option as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DhcpOption {
    /// The number.
    pub code: u8,
    /// The bytes; longer than 255 is split on the wire (RFC 3396). Empty: clients are not told, whatever the network says
    /// otherwise.
    pub data: Vec<u8>,
}

impl DhcpOption {
    /// The table's row of a number.
    #[must_use]
    pub fn row(code: u8) -> Option<&'static OptionRow> {
        TABLE.iter().find(|r| r.code == code)
    }

    /// The name of an option, or its number where it has none.
    #[must_use]
    pub fn name_of(code: u8) -> String {
        Self::row(code).map_or_else(|| code.to_string(), |row| row.name.to_owned())
    }

    /// With our own address where the document says 0.0.0.0, "this host".
    #[must_use]
    pub fn here(mut self, gateway: Ipv4Addr) -> Self {
        let kind = Self::row(self.code).map(|r| r.kind);
        if matches!(kind, Some(Address | Addresses)) {
            let (addresses, _) = self.data.as_chunks_mut::<4>();
            for address in addresses.iter_mut().filter(|a| **a == [0; 4]) {
                *address = gateway.octets();
            }
        }
        self
    }

    /// The number of an option that a document can set, by its name, dnsmasq's name or its number.
    ///
    /// # Errors
    /// A sentence that says which rule is broken.
    pub fn code_of(key: &str) -> Result<u8, Invalid> {
        let named = TABLE.iter().find(|r| r.name == key).map(|r| r.code);
        let alias = || ALIASES.iter().find(|(name, _)| *name == key);
        let code = named.or_else(|| alias().map(|(_, code)| *code));
        let code = code.or_else(|| key.parse().ok()).ok_or_else(|| {
            Invalid::new(format!(
                "`{}` is not a DHCP option: use a name like `ntp-server`, or a number",
                key.escape_debug()
            ))
        })?;
        if OURS.contains(&code) {
            return Err(Invalid::new(format!(
                "option {code} is the server's own: it follows from the subnet, the lease and what the client sends; leave it out"
            )));
        }
        Ok(code)
    }

    /// From what a document says: the name or number of the option, and its values; none, and clients are not told.
    ///
    /// # Errors
    /// A sentence that says which rule is broken.
    pub fn parse(key: &str, values: &[String]) -> Result<Self, Invalid> {
        let code = Self::code_of(key)?;
        if values.is_empty() {
            let data = Vec::new();
            return Ok(Self { code, data });
        }
        let kind = Self::row(code).map_or(Hex, |r| r.kind);
        let data = encode(kind, values).map_err(|why| Invalid::new(format!("`{key}` {why}")))?;
        if data.len() > 1024 {
            return Err(Invalid::new(format!(
                "`{key}` is {} bytes: at most 1024",
                data.len()
            )));
        }
        Ok(Self { code, data })
    }

    /// The name (or number) and values as a document spells them.
    #[must_use]
    pub fn spell(&self) -> (String, Vec<String>) {
        match Self::row(self.code) {
            Some(row) if self.data.is_empty() => (row.name.to_owned(), Vec::new()),
            None if self.data.is_empty() => (self.code.to_string(), Vec::new()),
            Some(row) => match decode(row.kind, &self.data) {
                Some(values) => (row.name.to_owned(), values),
                None => (self.code.to_string(), vec![hex(&self.data)]),
            },
            None => (self.code.to_string(), vec![hex(&self.data)]),
        }
    }
}

impl fmt::Display for DhcpOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, values) = self.spell();
        write!(f, "{name} {}", values.join(" "))
    }
}

fn encode(kind: OptionKind, values: &[String]) -> Result<Vec<u8>, String> {
    let one = || match values {
        [only] => Ok(only.as_str()),
        _ => Err(format!("takes one value, not {}", values.len())),
    };
    let number = |max: u32| {
        let text = one()?;
        text.parse::<u32>()
            .ok()
            .filter(|n| *n <= max)
            .ok_or_else(|| format!("takes a number from 0 to {max}, not `{text}`"))
    };
    let address = |text: &str| {
        text.parse::<Ipv4Addr>()
            .map_err(|_| format!("takes IPv4 addresses, not `{text}`"))
    };
    let addresses = || {
        let all: Result<Vec<_>, _> = values.iter().map(|v| address(v)).collect();
        Ok(all?.iter().flat_map(Ipv4Addr::octets).collect::<Vec<u8>>())
    };
    match kind {
        Address => Ok(address(one()?)?.octets().to_vec()),
        Addresses => addresses(),
        Pairs if values.len() % 2 == 1 => Err("takes addresses two by two".to_owned()),
        Pairs => addresses(),
        U8 => Ok(number(255)?.to_be_bytes()[3..].to_vec()),
        U16 => Ok(number(65535)?.to_be_bytes()[2..].to_vec()),
        U32 => Ok(number(u32::MAX)?.to_be_bytes().to_vec()),
        Text => Ok(one()?.as_bytes().to_vec()),
        Domains => encode_domains(values),
        Routes => encode_routes(values),
        Sip => match values.iter().all(|v| v.parse::<Ipv4Addr>().is_ok()) {
            true => Ok([&[1], addresses()?.as_slice()].concat()),
            false => Ok([&[0], encode_domains(values)?.as_slice()].concat()),
        },
        Encapsulated if values.iter().any(|v| v.contains('=')) => encapsulate(values),
        Encapsulated | Hex => {
            unhex(one()?).ok_or_else(|| "takes bytes in hexadecimal, like 01:02:ff".to_owned())
        }
    }
}

/// Options within an option: a number, a length, a value.
fn encapsulate(values: &[String]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    for text in values {
        let bad = || format!("takes options like 6=0x08 or 8=10.0.0.3, not `{text}`");
        let (code, value) = text.split_once('=').ok_or_else(bad)?;
        let code: u8 = code.trim().parse().map_err(|_| bad())?;
        // They are no options: a filler, and the end.
        if code == 0 || code == 255 {
            return Err(bad());
        }
        let value = value.trim();
        let data = match (value.strip_prefix("0x"), value.parse::<Ipv4Addr>()) {
            (Some(digits), _) => unhex(digits).ok_or_else(bad)?,
            (None, Ok(address)) => address.octets().to_vec(),
            (None, Err(_)) => value.as_bytes().to_vec(),
        };
        out.push(code);
        out.push(u8::try_from(data.len()).map_err(|_| format!("`{code}=` is too long"))?);
        out.extend_from_slice(&data);
    }
    Ok(out)
}

fn decapsulate(mut data: &[u8]) -> Option<Vec<String>> {
    let mut values = Vec::new();
    while let [code, len, rest @ ..] = data {
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        if matches!(code, 0 | 255) || value.is_empty() {
            return None;
        }
        values.push(format!("{code}=0x{}", hex(value).replace(':', "")));
        data = rest;
    }
    data.is_empty().then_some(values)
}

pub(super) fn encode_domains(values: &[String]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    for value in values {
        let name: DomainName = value.parse().map_err(|e: Invalid| e.0)?;
        for label in name.as_str().split('.') {
            out.push(u8::try_from(label.len()).map_err(|_| "has a label that is too long")?);
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
    }
    Ok(out)
}

fn encode_routes(values: &[String]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    for value in values {
        let bad = || format!("takes routes like `10.0.0.0/8,192.168.1.1`, not `{value}`");
        let (net, via) = value.split_once(',').ok_or_else(bad)?;
        let net: Ipv4Net = net.trim().parse().map_err(|_| bad())?;
        let via: Ipv4Addr = via.trim().parse().map_err(|_| bad())?;
        out.push(net.prefix_len());
        let significant = usize::from(net.prefix_len().div_ceil(8));
        out.extend_from_slice(&net.network().octets()[..significant]);
        out.extend_from_slice(&via.octets());
    }
    Ok(out)
}

fn decode(kind: OptionKind, data: &[u8]) -> Option<Vec<String>> {
    let address = |c: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(c).ok()?).to_string());
    match kind {
        Address => Some(vec![address(data)?]),
        Pairs if !data.len().is_multiple_of(8) => None,
        Addresses | Pairs => data.chunks(4).map(address).collect(),
        U8 => Some(vec![u8::from_be_bytes(data.try_into().ok()?).to_string()]),
        U16 => Some(vec![u16::from_be_bytes(data.try_into().ok()?).to_string()]),
        U32 => Some(vec![u32::from_be_bytes(data.try_into().ok()?).to_string()]),
        Text => Some(vec![String::from_utf8(data.to_vec()).ok()?]),
        Domains => decode_domains(data),
        Routes => decode_routes(data),
        Sip => match data.split_first()? {
            (_, []) => None,
            (0, names) => decode_domains(names),
            (1, addresses) => addresses.chunks(4).map(address).collect(),
            _ => None,
        },
        Encapsulated => decapsulate(data).or_else(|| Some(vec![hex(data)])),
        Hex => Some(vec![hex(data)]),
    }
}

pub(super) fn decode_domains(mut data: &[u8]) -> Option<Vec<String>> {
    let (mut names, mut labels) = (Vec::new(), Vec::<String>::new());
    while let Some((&len, rest)) = data.split_first() {
        if len == 0 {
            names.push(std::mem::take(&mut labels).join("."));
            data = rest;
            continue;
        }
        labels.push(String::from_utf8(rest.get(..usize::from(len))?.to_vec()).ok()?);
        data = &rest[usize::from(len)..];
    }
    labels.is_empty().then_some(names)
}

fn decode_routes(mut data: &[u8]) -> Option<Vec<String>> {
    let mut routes = Vec::new();
    while let Some((&len, rest)) = data.split_first() {
        let significant = usize::from(len.div_ceil(8));
        let mut net = [0u8; 4];
        net.get_mut(..significant)?
            .copy_from_slice(rest.get(..significant)?);
        let via = <[u8; 4]>::try_from(rest.get(significant..significant + 4)?).ok()?;
        routes.push(format!(
            "{}/{len},{}",
            Ipv4Addr::from(net),
            Ipv4Addr::from(via)
        ));
        data = &rest[significant + 4..];
    }
    Some(routes)
}

/// Bytes as `01:02:ff`.
pub(super) fn hex(data: &[u8]) -> String {
    data.iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

/// `01:02:ff` or `0102ff` as bytes.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    if digits.is_empty() || digits.len() % 2 == 1 {
        return None;
    }
    let nibble = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    digits
        .chunks(2)
        .map(|p| Some(nibble(p[0])? << 4 | nibble(p[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn strings(values: &[&str]) -> Vec<String> {
        values.iter().map(|v| (*v).to_owned()).collect()
    }

    #[test]
    fn codes_and_names_are_unique() {
        assert_eq!(
            TABLE.iter().map(|r| r.code).collect::<BTreeSet<_>>().len(),
            TABLE.len()
        );
        assert_eq!(
            TABLE.iter().map(|r| r.name).collect::<BTreeSet<_>>().len(),
            TABLE.len()
        );
    }

    #[test]
    fn every_row_survives_a_round_trip() {
        for row in TABLE.iter().filter(|r| !OURS.contains(&r.code)) {
            let values = match row.kind {
                Address => strings(&["10.0.0.1"]),
                Sip => strings(&["sip.lab.test", "example.org"]),
                Encapsulated => strings(&["6=0x08", "8=0x0a000003"]),
                Addresses | Pairs => strings(&["10.0.0.1", "10.0.0.2"]),
                U8 | U16 | U32 => strings(&["7"]),
                Text => strings(&["some text"]),
                Domains => strings(&["lab.test", "example.org"]),
                Routes => strings(&["10.0.0.0/8,192.168.1.1", "0.0.0.0/0,192.168.1.2"]),
                Hex => strings(&["01:02:ff"]),
            };
            let option = DhcpOption::parse(row.name, &values).unwrap();
            assert_eq!(
                option.spell(),
                (row.name.to_owned(), values),
                "{}",
                row.name
            );
            assert_eq!(
                DhcpOption::parse(&row.code.to_string(), &option.spell().1).unwrap(),
                option
            );
        }
    }

    #[test]
    fn every_spelling_of_a_value() {
        let bytes = |key: &str, values: &[&str]| {
            let option = DhcpOption::parse(key, &strings(values)).unwrap();
            let (key, values) = option.spell();
            assert_eq!(DhcpOption::parse(&key, &values).unwrap(), option);
            option.data
        };
        assert_eq!(bytes("sip-server", &["10.0.0.1"]), [1, 10, 0, 0, 1]);
        assert_eq!(bytes("sip-server", &["a.b"]), [0, 1, b'a', 1, b'b', 0]);
        let within = ["6=0x08", "8=10.0.0.3", "9=hi"];
        let expected = [6, 1, 8, 8, 4, 10, 0, 0, 3, 9, 2, b'h', b'i'];
        assert_eq!(bytes("vendor-encap", &within), expected);
        assert_eq!(bytes("43", &["01:02:ff"]), [1, 2, 0xff]);
        assert_eq!(bytes("43", &["01:02:ff:fe:ff"]), [1, 2, 0xff, 0xfe, 0xff]);
        assert!(bytes("router", &[]).is_empty() && bytes("99", &[]).is_empty());
    }

    #[test]
    fn other_names_are_of_known_options() {
        for (name, code) in ALIASES {
            assert!(TABLE.iter().all(|r| r.name != *name), "{name}");
            assert!(DhcpOption::row(*code).is_some(), "{name}");
        }
    }

    #[test]
    fn what_a_document_may_not_say() {
        for (key, values) in [
            ("51", &["60"][..]),
            ("nonsense", &["1"]),
            ("256", &["01"]),
            ("router", &["here"]),
            ("netmask", &["255.0.0.0"]),
            ("static-route", &["10.0.0.1"]),
            ("43", &["6=0x0"]),
            ("43", &["0=0x01"]),
            ("43", &["6=0x01", "08"]),
            ("sip-server", &["10.0.0.1", "a..b"]),
            ("mtu", &["65536"]),
            ("mtu", &["1", "2"]),
            ("classless-static-route", &["10.0.0.0/33,1.1.1.1"]),
            ("43", &["0g"]),
            ("43", &["123"]),
        ] {
            assert!(
                DhcpOption::parse(key, &strings(values)).is_err(),
                "{key} {values:?}"
            );
        }
    }
}
