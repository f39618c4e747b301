//! *The* DHCPv6 option table: what a document can have clients told, how it is spelled and how it goes over the wire.

use std::net::Ipv6Addr;

use super::options::{decode_domains, encode_domains, hex};
use super::unhex;
use crate::types::Invalid;

/// How the value of an option is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One or more addresses.
    Addresses,
    /// Addresses of time servers, each in a suboption (RFC 5908).
    TimeServers,
    /// Domain names.
    Domains,
    /// Text.
    Text,
    /// Texts with their lengths (RFC 5970 section 3.2).
    Texts,
}

use Kind::{Addresses, Domains, Text, Texts, TimeServers};

/// Every option with a name: number, name, kind. Any other can be given by its number, in hexadecimal.
pub const TABLE: &[(u16, &str, Kind)] = &[
    (21, "sip-server-domain", Domains),
    (22, "sip-server", Addresses),
    (23, "dns-server", Addresses),
    (24, "domain-search", Domains),
    (27, "nis-server", Addresses),
    (28, "nisplus-server", Addresses),
    (29, "nis-domain", Domains),
    (30, "nisplus-domain", Domains),
    (31, "sntp-server", Addresses),
    (41, "posix-timezone", Text),
    (42, "tzdb-timezone", Text),
    (56, "ntp-server", TimeServers),
    (59, "boot-file", Text),
    (60, "boot-parameters", Texts),
    (64, "aftr-name", Domains),
    (103, "captive-portal", Text),
];

/// What follows from the network unless a document says otherwise; an empty list says that there is none.
const DEFAULTS: &[u16] = &[23, 24];

/// What router advertisements say as well.
const ADVERTISED: &[u16] = &[23, 24, 103];

/// Codes that are the protocol's own: a document cannot set them.
const OURS: &[u16] = &[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 18, 19, 20, 25, 26, 32, 37, 39, 79,
];

/// One option as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DhcpOption6 {
    /// The number.
    pub code: u16,
    /// The bytes.
    pub data: Vec<u8>,
}

impl DhcpOption6 {
    /// From what a document says: the name or number of the option, and its values.
    ///
    /// # Errors
    /// A sentence that says which rule is broken.
    pub fn parse(key: &str, values: &[String]) -> Result<Self, Invalid> {
        let number = key.parse::<u16>().ok();
        let row = TABLE
            .iter()
            .find(|(code, name, _)| *name == key || Some(*code) == number);
        let code = row.map(|r| r.0).or(number).ok_or_else(|| {
            Invalid::new(format!(
                "`{}` is not a DHCPv6 option: use a name like `ntp-server`, or a number",
                key.escape_debug()
            ))
        })?;
        if OURS.contains(&code) {
            return Err(Invalid::new(format!(
                "option {code} is the server's own: it follows from the subnet and the lease"
            )));
        }
        // Without values: what clients are told by themselves, they are not.
        if values.is_empty() && DEFAULTS.contains(&code) {
            return Ok(Self {
                code,
                data: Vec::new(),
            });
        }
        let data = encode(row.map(|r| r.2), values);
        let data = data.map_err(|why| Invalid::new(format!("`{key}` {why}")))?;
        if data.len() > 512 {
            let len = data.len();
            return Err(Invalid::new(format!("`{key}` is {len} bytes: at most 512")));
        }
        Ok(Self { code, data })
    }

    /// Whether router advertisements say it as well.
    #[must_use]
    pub fn is_advertised(&self) -> bool {
        ADVERTISED.contains(&self.code)
    }

    /// The name (or number) and values as a document spells them.
    #[must_use]
    pub fn spell(&self) -> (String, Vec<String>) {
        let row = TABLE.iter().find(|(code, ..)| *code == self.code);
        let spelled = row.and_then(|(_, name, kind)| {
            if self.data.is_empty() {
                return Some(((*name).to_owned(), Vec::new()));
            }
            let values = decode(*kind, &self.data)?;
            Some(((*name).to_owned(), values))
        });
        spelled.unwrap_or_else(|| (self.code.to_string(), vec![hex(&self.data)]))
    }
}

fn encode(kind: Option<Kind>, values: &[String]) -> Result<Vec<u8>, String> {
    let one = || match values {
        [only] => Ok(only.as_str()),
        _ => Err(format!("takes one value, not {}", values.len())),
    };
    let address = |text: &String| {
        let parsed = text.parse::<Ipv6Addr>();
        parsed.map_err(|_| format!("takes IPv6 addresses, not `{}`", text.escape_debug()))
    };
    if values.is_empty() {
        return Err("needs a value".to_owned());
    }
    let mut out = Vec::new();
    match kind {
        Some(Addresses) => {
            for value in values {
                out.extend_from_slice(&address(value)?.octets());
            }
        }
        Some(TimeServers) => {
            for value in values {
                let address = address(value)?;
                let kind = if address.is_multicast() { 2 } else { 1 };
                out.extend_from_slice(&[0, kind, 0, 16]);
                out.extend_from_slice(&address.octets());
            }
        }
        Some(Domains) => out = encode_domains(values)?,
        // Nothing cannot be spelled as a text: that would be no value at all.
        Some(Text) if one()?.is_empty() => return Err("needs a value".to_owned()),
        Some(Text) => out = one()?.as_bytes().to_vec(),
        Some(Texts) => {
            for value in values {
                let len = u16::try_from(value.len()).map_err(|_| "has a text that is too long")?;
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(value.as_bytes());
            }
        }
        None => out = unhex(one()?).ok_or("takes bytes in hexadecimal, like 01:02:ff")?,
    }
    Ok(out)
}

fn decode(kind: Kind, mut data: &[u8]) -> Option<Vec<String>> {
    let address = |c: &[u8; 16]| Ipv6Addr::from(*c).to_string();
    match kind {
        Addresses => {
            let (all, rest) = data.as_chunks::<16>();
            (rest.is_empty() && !all.is_empty()).then(|| all.iter().map(address).collect())
        }
        TimeServers => {
            let (all, rest) = data.as_chunks::<20>();
            let mut each = all.iter().map(|one| one.last_chunk().map(address));
            rest.is_empty().then(|| each.by_ref().collect()).flatten()
        }
        Domains => decode_domains(data),
        Text => Some(vec![String::from_utf8(data.to_vec()).ok()?]),
        Texts => {
            let mut texts = Vec::new();
            while let Some((len, rest)) = data.split_first_chunk::<2>() {
                let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
                texts.push(String::from_utf8(text.to_vec()).ok()?);
                data = rest;
            }
            data.is_empty().then_some(texts)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(values: &[&str]) -> Vec<String> {
        values.iter().map(|v| (*v).to_owned()).collect()
    }

    #[test]
    fn every_row_survives_a_round_trip() {
        for (code, name, kind) in TABLE {
            let values = match kind {
                Addresses | TimeServers => strings(&["fd00::1", "fd00::2"]),
                Domains => strings(&["lab.test", "example.org"]),
                Text => strings(&["http://[fd00::1]/boot.efi"]),
                Texts => strings(&["a", "b c"]),
            };
            let option = DhcpOption6::parse(name, &values).unwrap();
            assert_eq!(option.spell(), ((*name).to_owned(), values.clone()));
            assert_eq!(
                DhcpOption6::parse(&code.to_string(), &values).unwrap(),
                option
            );
        }
    }

    #[test]
    fn what_clients_are_told_by_themselves_can_be_switched_off() {
        for name in ["dns-server", "domain-search"] {
            let option = DhcpOption6::parse(name, &[]).unwrap();
            assert_eq!(option.spell(), (name.to_owned(), Vec::new()));
        }
    }

    #[test]
    fn what_a_document_may_not_say() {
        for (key, values) in [
            ("3", &["00"][..]),
            ("nonsense", &["1"]),
            ("65536", &["01"]),
            ("dns-server", &["10.0.0.1"]),
            ("ntp-server", &[]),
            ("boot-file", &["a", "b"]),
            ("99", &["0g"]),
        ] {
            assert!(
                DhcpOption6::parse(key, &strings(values)).is_err(),
                "{key} {values:?}"
            );
        }
    }
}
