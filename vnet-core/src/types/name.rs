use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use super::{Invalid, serde_as_text};

/// A text newtype whose rule is one function; everything else follows.
macro_rules! name {
    ($(#[$doc:meta])* $t:ident($text:ty), $rule:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $t($text);

        serde_as_text!($t);

        impl $t {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }
        impl FromStr for $t {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                $rule(text).map(Self)
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
        impl AsRef<str> for $t {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
        impl std::borrow::Borrow<str> for $t {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }
    };
}

name!(
    /// The name of a network: 1 to 63 letters, digits, `.`, `_` or `-`, starting with a letter or digit.
    NetworkName(String),
    network
);
name!(
    /// The name of a port, which is also its guest's DNS name: one DNS label, kept in lower case.
    PortName(String),
    label
);
name!(
    /// The name of a network interface, as the kernel takes it: at most 15 bytes.
    IfName(Short),
    interface
);
name!(
    /// A DNS name without the trailing dot, in lower case: labels of at most 63, at most 253 in all.
    DomainName(String),
    domain
);

impl DomainName {
    /// Whether this name is `other` or lies under it.
    #[must_use]
    pub fn is_under(&self, other: &Self) -> bool {
        self.0 == other.0
            || self
                .0
                .strip_suffix(other.0.as_str())
                .is_some_and(|rest| rest.ends_with('.'))
    }

    /// The whole name, as text: one without a dot lies in the domain.
    #[must_use]
    pub fn in_domain(&self, domain: Option<&Self>) -> String {
        match domain.filter(|_| !self.0.contains('.')) {
            Some(domain) => format!("{self}.{domain}"),
            None => self.to_string(),
        }
    }

    /// `label.self`, if that is still a valid name.
    ///
    /// # Errors
    /// When the result would be too long.
    pub fn child(&self, label: &str) -> Result<Self, Invalid> {
        format!("{label}.{}", self.0).parse()
    }
}

impl From<PortName> for DomainName {
    fn from(name: PortName) -> Self {
        Self(name.0)
    }
}

fn network(text: &str) -> Result<String, Invalid> {
    let ok = (1..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if ok {
        return Ok(text.to_owned());
    }
    Err(Invalid::new(format!(
        "`{}` is not a network name: use 1 to 63 letters, digits, `.`, `_` or `-`, starting with a letter or digit",
        text.escape_debug()
    )))
}

/// What the kernel holds a name in. There is one for every port in every set of the firewall, so it is not a `String`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Short {
    bytes: [u8; IfName::MOST],
    len: u8,
}

impl IfName {
    const MOST: usize = 15;
}

impl Short {
    /// The first of the text that fits: all of a valid name.
    fn new(text: &str) -> Self {
        let mut bytes = [0; IfName::MOST];
        let mut len = 0;
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
            len += 1;
        }
        Self { bytes, len }
    }

    fn as_str(&self) -> &str {
        let used = self.bytes.get(..usize::from(self.len));
        str::from_utf8(used.unwrap_or_default()).unwrap_or_default()
    }
}

impl Ord for Short {
    /// As the texts: what is unused is zero, and no name holds a zero.
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes.cmp(&other.bytes)
    }
}

impl PartialOrd for Short {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Short {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

fn interface(text: &str) -> Result<Short, Invalid> {
    let shown = text.escape_debug();
    if text.len() > IfName::MOST {
        return Err(Invalid::new(format!(
            "`{shown}` is too long for an interface name: the kernel takes at most 15 bytes, this has {}",
            text.len()
        )));
    }
    let ok = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && !["all", "default", "lo"].contains(&text);
    if ok {
        return Ok(Short::new(text));
    }
    Err(Invalid::new(format!(
        "`{shown}` is not a usable interface name: use letters, digits, `.`, `_` or `-` (and not `all`, `default`, `lo`)"
    )))
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn label(text: &str) -> Result<String, Invalid> {
    if is_label(text) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(Invalid::new(format!(
        "`{}` is not a host name: use 1 to 63 letters, digits, `-` or `_`, without dots",
        text.escape_debug()
    )))
}

fn domain(text: &str) -> Result<String, Invalid> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    if bare.len() <= 253 && bare.split('.').all(is_label) {
        return Ok(bare.to_ascii_lowercase());
    }
    Err(Invalid::new(format!(
        "`{}` is not a domain name: use labels of letters, digits, `-` or `_`, joined by single dots",
        text.escape_debug()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names() {
        for good in ["virbr0", "vnet-web", "eth0.100", "_x", "123456789012345"] {
            assert!(good.parse::<IfName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "1234567890123456",
            "lo",
            "all",
            "-x",
            "a\"b",
            "x:y",
        ] {
            assert!(bad.parse::<IfName>().is_err(), "{bad}");
        }
        assert!(
            "1234567890123456"
                .parse::<IfName>()
                .unwrap_err()
                .0
                .contains("15 bytes")
        );
    }

    #[test]
    fn names_fold_case_where_dns_does() {
        assert_eq!("Web".parse::<PortName>().unwrap().as_str(), "web");
        assert_eq!(
            "Lab.Test.".parse::<DomainName>().unwrap().as_str(),
            "lab.test"
        );
        assert_eq!("Lab".parse::<NetworkName>().unwrap().as_str(), "Lab");
        for bad in [
            "",
            "a..b",
            "-a",
            "a-.b",
            &"x".repeat(64),
            &["abcdefg"; 40].join("."),
        ] {
            assert!(bad.parse::<DomainName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn under_counts_whole_labels() {
        let lab: DomainName = "lab.test".parse().unwrap();
        assert!("web.lab.test".parse::<DomainName>().unwrap().is_under(&lab));
        assert!(lab.is_under(&lab));
        assert!(!"collab.test".parse::<DomainName>().unwrap().is_under(&lab));
    }
}
