//! Where a resolver listens and how it is spoken to, in one text: `9.9.9.9`, `tls://9.9.9.9#dns.quad9.net`,
//! `https://9.9.9.9/dns-query#dns.quad9.net`.
//!
//! The address is always written: a resolver that is known by name alone would have to be resolved first, by somebody who
//! is not it. The name after `#` is what its certificate has to show; without one it has to show the address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::types::{DomainName, Invalid};

/// The ports of DNS, of DNS over TLS (RFC 7858) and of HTTPS.
const PORTS: [u16; 3] = [53, 853, 443];
/// Where most resolvers answer (RFC 8484's own example).
const PATH: &str = "/dns-query";
/// The longest path.
const MOST_PATH: usize = 200;

/// A resolver that may be asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is spoken to.
    pub transport: Transport,
}

/// How a resolver is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// UDP, and TCP for what does not fit.
    Plain,
    /// DNS over TLS (RFC 7858).
    Tls {
        /// What its certificate shows, if not its address.
        name: Option<DomainName>,
    },
    /// DNS over HTTPS (RFC 8484).
    Https {
        /// What its certificate shows, if not its address.
        name: Option<DomainName>,
        /// Where on the server.
        path: String,
    },
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            transport: Transport::Plain,
        }
    }
}

impl Endpoint {
    /// Whether what is asked is hidden from those on the way, and who answers is known.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        match self.transport {
            Transport::Plain => false,
            Transport::Tls { .. } | Transport::Https { .. } => true,
        }
    }
}

impl FromStr for Endpoint {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = |why: &str| Invalid::new(format!("`{}` {why}", text.escape_debug()));
        let form = || {
            invalid(
                "is not a resolver, like 9.9.9.9, 9.9.9.9:53, tls://9.9.9.9#dns.quad9.net or \
                 https://9.9.9.9/dns-query#dns.quad9.net",
            )
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            let address = address(text, PORTS[0]).ok_or_else(form)?;
            // RFC 7858 section 3.1: what is said there is said in secret, and what is said at port 53 is not.
            if address.port() == PORTS[1] {
                return Err(invalid(
                    "asks in plain text where TLS is spoken: write tls:// before it",
                ));
            }
            return Ok(address.into());
        };
        let (place, name) = match rest.split_once('#') {
            Some((place, name)) => (place, Some(name.parse::<DomainName>()?)),
            None => (rest, None),
        };
        let no_address = || invalid("has to have an address after ://, and a name only after #");
        match scheme {
            "tls" => {
                let address = address(place, PORTS[1]).ok_or_else(no_address)?;
                if address.port() == PORTS[0] {
                    return Err(invalid(
                        "speaks TLS at port 53, which is for plain text: leave the port out",
                    ));
                }
                Ok(Self {
                    address,
                    transport: Transport::Tls { name },
                })
            }
            "https" => {
                let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
                let path = path.strip_suffix("{?dns}").unwrap_or(path);
                if !path.bytes().all(plain) || path.len() > MOST_PATH {
                    return Err(invalid(
                        "has a path that is too long, or not of plain characters",
                    ));
                }
                let path = if path.len() < 2 { PATH } else { path };
                Ok(Self {
                    address: address(host, PORTS[2]).ok_or_else(no_address)?,
                    transport: Transport::Https {
                        name,
                        path: path.to_owned(),
                    },
                })
            }
            _ => Err(form()),
        }
    }
}

/// What may stand in a path as it is (RFC 3986 section 3.3).
fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&byte)
}

fn address(text: &str, port: u16) -> Option<SocketAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let ip = bare.unwrap_or(text).parse::<IpAddr>();
    ip.map(|ip| SocketAddr::new(ip, port))
        .or_else(|_| text.parse())
        .ok()
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.transport {
            Transport::Plain => return write!(f, "{}", self.address),
            Transport::Tls { name } => {
                write!(f, "tls://{}", self.address)?;
                name
            }
            Transport::Https { name, path } => {
                write!(f, "https://{}{path}", self.address)?;
                name
            }
        };
        name.as_ref().map_or(Ok(()), |name| write!(f, "#{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for (text, whole) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("9.9.9.9:5353", "9.9.9.9:5353"),
            ("2620:fe::fe", "[2620:fe::fe]:53"),
            ("tls://1.1.1.1", "tls://1.1.1.1:853"),
            (
                "tls://9.9.9.9#dns.quad9.net",
                "tls://9.9.9.9:853#dns.quad9.net",
            ),
            (
                "tls://[2620:fe::fe]:8853#dns.quad9.net",
                "tls://[2620:fe::fe]:8853#dns.quad9.net",
            ),
            ("https://1.1.1.1", "https://1.1.1.1:443/dns-query"),
            ("https://1.1.1.1/{?dns}", "https://1.1.1.1:443/dns-query"),
            (
                "https://[2620:fe::fe]/q/x#dns.quad9.net",
                "https://[2620:fe::fe]:443/q/x#dns.quad9.net",
            ),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), whole);
            assert_eq!(whole.parse::<Endpoint>().unwrap(), endpoint);
        }
    }

    #[test]
    fn rfc7858_3_1_secret_and_plain_do_not_share_a_port() {
        for text in ["9.9.9.9:853", "[2620:fe::fe]:853"] {
            let error = text.parse::<Endpoint>().unwrap_err().0;
            assert!(error.contains("write tls://"), "{error}");
        }
        let error = "tls://9.9.9.9:53".parse::<Endpoint>().unwrap_err().0;
        assert!(error.contains("leave the port out"), "{error}");
        assert!("https://9.9.9.9:853".parse::<Endpoint>().is_ok());
    }

    #[test]
    fn what_is_no_resolver_is_told() {
        for (text, why) in [
            ("dns.quad9.net", "is not a resolver"),
            ("quic://9.9.9.9", "is not a resolver"),
            ("tls://dns.quad9.net", "has to have an address"),
            ("https://dns.quad9.net/dns-query", "has to have an address"),
            ("tls://9.9.9.9/x", "has to have an address"),
            ("https://9.9.9.9/a b", "a path"),
            ("https://9.9.9.9/a\r\nhost: x", "a path"),
            ("tls://9.9.9.9#", ""),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().0;
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
