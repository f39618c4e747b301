use std::fmt;
use std::str::FromStr;

use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{RData, RecordType};
use hickory_proto::serialize::binary::BinEncodable as _;

use crate::types::{DomainName, Invalid, serde_as_text};

/// A DNS record that the document gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose it is.
    pub name: RecordName,
    /// What it says.
    pub data: RecordData,
    /// Seconds that resolvers may keep it, if the document says so.
    pub ttl: Option<u32>,
}

/// The owner of a record: a name, or with `*.` in front every name under it that has nothing of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordName {
    /// Whether it stands for all names under it.
    pub wildcard: bool,
    /// The name. Without a dot, apart from leading labels like `_http._tcp`, it lies in the network's domain.
    pub name: DomainName,
}

serde_as_text!(RecordName);

impl FromStr for RecordName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // As in a zone file; here a name does not depend on what is above it.
        match text {
            "@" => {
                return Err(Invalid::new(
                    "write the domain itself for `@`, like `lab.test`",
                ));
            }
            "*" => {
                let rule = "write `*.` and the domain for `*`, like `*.lab.test`";
                return Err(Invalid::new(rule));
            }
            _ => {}
        }
        let (wildcard, name) = text
            .strip_prefix("*.")
            .map_or((false, text), |rest| (true, rest));
        Ok(Self {
            wildcard,
            name: name.parse()?,
        })
    }
}

impl fmt::Display for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.wildcard { "*." } else { "" }, self.name)
    }
}

impl RecordName {
    /// Whether it lies in the network's domain: no dot is left when labels that name a service are taken off.
    #[must_use]
    pub fn is_relative(&self) -> bool {
        is_relative(self.name.as_str())
    }
}

impl RecordName {
    /// The whole name, as text.
    #[must_use]
    pub fn in_domain(&self, domain: Option<&DomainName>) -> String {
        match domain.filter(|_| self.is_relative()) {
            Some(domain) => format!("{self}.{domain}"),
            None => self.to_string(),
        }
    }
}

/// `web`, `_http._tcp` and `web._http._tcp` lie in the domain; `a.example` and `web.` are whole names.
fn is_relative(name: &str) -> bool {
    let plain = name.split('.').filter(|label| !label.starts_with('_'));
    plain.count() <= 1
}

/// Every type that a document may give by name: its name, its number, and which word of the value is a host's name.
const TYPES: [(&str, RecordType, Option<usize>); 14] = [
    ("A", RecordType::A, None),
    ("AAAA", RecordType::AAAA, None),
    ("CAA", RecordType::CAA, None),
    ("CNAME", RecordType::CNAME, Some(0)),
    ("HTTPS", RecordType::HTTPS, Some(1)),
    ("MX", RecordType::MX, Some(1)),
    ("NAPTR", RecordType::NAPTR, Some(5)),
    ("NS", RecordType::NS, Some(0)),
    ("PTR", RecordType::PTR, Some(0)),
    ("SRV", RecordType::SRV, Some(3)),
    ("SSHFP", RecordType::SSHFP, None),
    ("SVCB", RecordType::SVCB, Some(1)),
    ("TLSA", RecordType::TLSA, None),
    ("TXT", RecordType::TXT, None),
];

/// A type and a value in the form of a zone file: `SRV` and `0 5 80 web`, or for types without a row above RFC 3597's
/// `TYPE65280` and `\# 4 0a000001`. It exists only if the value is of the type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordData {
    kind: Kind,
    value: String,
}

/// A row of [`TYPES`], or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Row(usize),
    Number(u16),
}

impl Kind {
    fn new(word: &str) -> Result<Self, Invalid> {
        let row = TYPES.iter().position(|t| t.0.eq_ignore_ascii_case(word));
        if let Some(row) = row {
            return Ok(Self::Row(row));
        }
        let upper = word.to_ascii_uppercase();
        let number = upper.strip_prefix("TYPE").and_then(|n| n.parse().ok());
        let Some(number) = number else {
            let known: Vec<_> = TYPES.iter().map(|t| t.0).collect();
            let (word, known) = (word.escape_debug(), known.join(", "));
            return Err(Invalid::new(format!(
                "`{word}` is none of {known}, nor a number like TYPE65280"
            )));
        };
        if let Some((name, ..)) = TYPES.iter().find(|t| u16::from(t.1) == number) {
            return Err(Invalid::new(format!("TYPE{number} is {name}: write that")));
        }
        // SOA is the zone's own, DNAME would have to be followed, OPT and those from 128 to 255 are no data (RFC 6895).
        if matches!(number, 0 | 6 | 39 | 41 | 128..=255) {
            return Err(Invalid::new(format!("a document cannot give TYPE{number}")));
        }
        Ok(Self::Number(number))
    }
}

impl RecordData {
    /// Whether a document may give records of a type.
    ///
    /// # Errors
    /// Which types there are.
    pub fn check_kind(kind: &str) -> Result<(), Invalid> {
        Kind::new(kind).map(drop)
    }

    /// From the two words of the document.
    ///
    /// # Errors
    /// Which types there are, or why the value is none of its type.
    pub fn new(kind: &str, value: &str) -> Result<Self, Invalid> {
        let kind = Kind::new(kind)?;
        let value = value.trim().to_owned();
        if value.len() > 4096 {
            return Err(Invalid::new("a record may be at most 4096 characters long"));
        }
        let data = Self { kind, value };
        data.encode(None).map_err(|why| {
            let (kind, value) = (data.kind(), data.value.escape_debug());
            Invalid::new(format!(
                "`{value}` is not the value of a {kind} record: {why}"
            ))
        })?;
        Ok(data)
    }

    /// The type's name.
    #[must_use]
    pub fn kind(&self) -> String {
        match self.kind {
            Kind::Row(row) => TYPES[row].0.to_owned(),
            Kind::Number(number) => format!("TYPE{number}"),
        }
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The type's number.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self.kind {
            Kind::Row(row) => TYPES[row].1.into(),
            Kind::Number(number) => number,
        }
    }

    /// As it goes over the wire; a host's name without a dot lies in the domain.
    #[must_use]
    pub fn wire(&self, domain: Option<&DomainName>) -> Option<Vec<u8>> {
        self.encode(domain).ok()
    }

    fn encode(&self, domain: Option<&DomainName>) -> Result<Vec<u8>, String> {
        let (kind, host) = match self.kind {
            Kind::Row(row) => (TYPES[row].1, TYPES[row].2),
            Kind::Number(_) => return unknown(&self.value),
        };
        // A text without quotes is one text, whatever spaces it has.
        if kind == RecordType::TXT && !self.value.contains('"') {
            let mut chunks: Vec<&[u8]> = self.value.as_bytes().chunks(255).collect();
            // RFC 1035 section 3.3.14: one text at least.
            if chunks.is_empty() {
                chunks.push(b"");
            }
            return RData::TXT(TXT::from_bytes(chunks))
                .to_bytes()
                .map_err(|e| e.to_string());
        }
        let words = self.value.split_whitespace().enumerate().map(|(i, word)| {
            let plain = Some(i) == host && is_relative(word);
            match domain.filter(|_| plain) {
                Some(domain) => format!("{word}.{domain}").to_ascii_lowercase(),
                None if Some(i) == host => word.to_ascii_lowercase(),
                None => word.to_owned(),
            }
        });
        let text = words.collect::<Vec<_>>().join(" ");
        let data = RData::try_from_str(kind, &text).map_err(|e| e.to_string())?;
        data.to_bytes().map_err(|e| e.to_string())
    }
}

/// RFC 3597 section 5: `\# 4 0a000001`, with spaces between the digits wherever one likes.
fn unknown(value: &str) -> Result<Vec<u8>, String> {
    const FORM: &str = "write it like `\\# 4 0a000001`";
    let mut words = value.split_whitespace();
    let length = match (words.next(), words.next()) {
        (Some("\\#"), Some(length)) => length.parse::<usize>().map_err(|_| FORM)?,
        _ => return Err(FORM.to_owned()),
    };
    let digits: Vec<u32> = words
        .flat_map(str::chars)
        .map(|digit| digit.to_digit(16).ok_or(FORM))
        .collect::<Result<_, _>>()?;
    if digits.len() != 2 * length {
        return Err(format!("these are not {length} bytes"));
    }
    let byte = |pair: &[u32]| u8::try_from(pair[0] << 4 | pair[1]).map_err(|_| FORM.to_owned());
    digits.chunks_exact(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_type() {
        for (kind, value) in [
            ("A", "10.0.0.1"),
            ("AAAA", "fd00::1"),
            ("CAA", "0 issue ca.example"),
            ("CNAME", "web"),
            ("HTTPS", "1 . alpn=h2"),
            ("MX", "10 mail"),
            (
                "NAPTR",
                "100 10 \"u\" \"E2U+sip\" \"!^.*$!sip:info@example.com!\" .",
            ),
            ("NS", "ns.example"),
            ("PTR", "web._http._tcp"),
            ("TYPE65280", "\\# 4 0a00 0001"),
            ("type65280", "\\# 0"),
            ("SRV", "0 5 80 web"),
            ("SSHFP", "2 1 123456789abcdef67890123456789abcdef67890"),
            ("SVCB", "1 web port=8080"),
            (
                "TLSA",
                "3 1 1 0d6fce3320315023ff499a3f3de1362c88ee8380311ac8c036890ab13243aa09",
            ),
            ("txt", "v=spf1 -all"),
        ] {
            let data = RecordData::new(kind, value).unwrap();
            assert!(data.wire(None).is_some(), "{kind}");
            assert_eq!(RecordData::new(&data.kind(), data.value()).unwrap(), data);
        }
        for (kind, value) in [
            ("A", "web"),
            ("SRV", "0 5 web"),
            ("MX", "mail"),
            ("LOC", "here"),
            ("TYPE1", "\\# 4 0a000001"),
            ("TYPE41", "\\# 0"),
            ("TYPE255", "\\# 0"),
            ("TYPE65280", "0a000001"),
            ("TYPE65280", "\\# 3 0a000001"),
            ("TYPE65280", "\\# 1 0g"),
            ("TYPE65536", "\\# 0"),
            ("CNAME", "a..b"),
        ] {
            assert!(RecordData::new(kind, value).is_err(), "{kind} {value}");
        }
    }

    #[test]
    fn hosts_without_a_dot_lie_in_the_domain() {
        let lab: DomainName = "lab.test".parse().unwrap();
        let srv = RecordData::new("SRV", "0 5 80 Web").unwrap();
        assert!(
            srv.wire(Some(&lab))
                .unwrap()
                .ends_with(b"\x03web\x03lab\x04test\0")
        );
        let mx = RecordData::new("MX", "10 mail.example.").unwrap();
        assert!(
            mx.wire(Some(&lab))
                .unwrap()
                .ends_with(b"\x04mail\x07example\0")
        );
        let ptr = RecordData::new("PTR", "web._http._tcp").unwrap();
        assert!(
            ptr.wire(Some(&lab))
                .unwrap()
                .ends_with(b"\x05_http\x04_tcp\x03lab\x04test\0")
        );
        let txt = RecordData::new("TXT", "v=spf1 -all").unwrap();
        assert_eq!(txt.wire(None).unwrap(), b"\x0bv=spf1 -all");
        // RFC 1035 section 3.3.14: a text that is empty is one text.
        for empty in ["", "  ", "\"\""] {
            let txt = RecordData::new("TXT", empty).unwrap();
            assert_eq!(txt.wire(None).unwrap(), b"\0", "{empty}");
        }
        for (name, instead) in [("@", "`lab.test`"), ("*", "`*.lab.test`")] {
            let wrong = name.parse::<RecordName>().unwrap_err().to_string();
            assert!(wrong.contains(instead), "{wrong}");
        }
        for (name, relative) in [
            ("_http._tcp", true),
            ("web", true),
            ("*.apps", true),
            ("_x.web", true),
            ("web._http._tcp", true),
            ("a.example", false),
            ("_x.a.example", false),
        ] {
            assert_eq!(
                name.parse::<RecordName>().unwrap().is_relative(),
                relative,
                "{name}"
            );
        }
    }
}
