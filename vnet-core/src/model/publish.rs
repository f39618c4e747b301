use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::types::{Invalid, PortName, serde_as_text};

/// What a published port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

serde_as_text!(Protocol);

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(Invalid::new(format!(
                "`{}` is not a protocol that can be published: use tcp or udp",
                text.escape_debug()
            ))),
        }
    }
}

/// Which guest a published port leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A port or a reservation of the network, by name: follows its address.
    Name(PortName),
    /// An address of the network.
    Address(Ipv4Addr),
}

serde_as_text!(Target);

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.pad(name.as_str()),
            Self::Address(address) => f.pad(&address.to_string()),
        }
    }
}

impl FromStr for Target {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

/// A port of the host that leads to a guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Publish {
    /// The protocol; with the host's port it is the publication's identity.
    pub protocol: Protocol,
    /// The host's port.
    pub host_port: u16,
    /// The guest.
    pub target: Target,
    /// The guest's port.
    pub guest_port: u16,
}

/// `8080:80/tcp` (the protocol may be left out), as the command line takes it.
///
/// # Errors
/// A sentence that shows the form.
pub(crate) fn parse_ports(text: &str) -> Result<(u16, u16, Protocol), Invalid> {
    let bad = || {
        Invalid::new(format!(
            "`{}` is not a publication: write HOSTPORT:GUESTPORT/tcp, like 8080:80/tcp",
            text.escape_debug()
        ))
    };
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (host, guest) = ports.split_once(':').ok_or_else(bad)?;
    let port = |part: &str| part.parse::<u16>().ok().filter(|p| *p != 0).ok_or_else(bad);
    Ok((port(host)?, port(guest)?, protocol.parse()?))
}

impl Publish {
    /// From a guest and `8080:80/tcp`.
    ///
    /// # Errors
    /// A sentence that shows the form.
    pub fn new(target: Target, ports: &str) -> Result<Self, Invalid> {
        let (host_port, guest_port, protocol) = parse_ports(ports)?;
        Ok(Self {
            protocol,
            host_port,
            target,
            guest_port,
        })
    }
}

/// `8080:80/tcp`
impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}/{}",
            self.host_port, self.guest_port, self.protocol
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let web: Target = "web".parse().unwrap();
        assert_eq!(
            Publish::new(web.clone(), "8080:80").unwrap().to_string(),
            "8080:80/tcp"
        );
        assert_eq!(
            Publish::new(web.clone(), "53:53/udp").unwrap().protocol,
            Protocol::Udp
        );
        for bad in [
            "",
            "80",
            "0:80",
            "80:0",
            "80:65536",
            "80:80/sctp",
            "80:80:80",
            "-1:80",
        ] {
            assert!(Publish::new(web.clone(), bad).is_err(), "{bad}");
        }
        assert_eq!(
            "10.0.0.9".parse(),
            Ok(Target::Address(Ipv4Addr::new(10, 0, 0, 9)))
        );
    }
}
