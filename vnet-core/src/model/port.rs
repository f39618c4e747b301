use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Qos;
use crate::types::{IfName, Invalid, Mac, NetworkName, PortName, serde_as_text};

/// Where a port is: on one of our networks, or on a plain bridge of the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Home {
    /// One of our networks.
    Network(NetworkName),
    /// A bridge that the host already has.
    Bridge(IfName),
}

impl Home {
    /// The network, where there is one.
    #[must_use]
    pub const fn network(&self) -> Option<&NetworkName> {
        match self {
            Self::Network(name) => Some(name),
            Self::Bridge(_) => None,
        }
    }

    /// The name of the tap by which the vhost-user ports here hang on the bridge.
    ///
    /// # Panics
    /// Never: eleven letters and digits are a name.
    #[must_use]
    pub fn uplink(&self) -> IfName {
        let name = format!("vu-{:08x}", self.number());
        name.parse()
            .expect("eleven letters and digits are an interface name")
    }

    /// A number that follows from the name (FNV-1a: the same in every process and version).
    #[must_use]
    pub fn number(&self) -> u32 {
        self.to_string().bytes().fold(0x811c_9dc5, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        })
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(name) => write!(f, "{name}"),
            Self::Bridge(name) => write!(f, "bridge:{name}"),
        }
    }
}

/// Which port: its home and its name there. Written `default/web` or `bridge:br0/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// Where it is.
    pub home: Home,
    /// Its name there, which is also its guest's DNS name.
    pub name: PortName,
}

serde_as_text!(PortKey);

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.home, self.name)
    }
}

impl FromStr for PortKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (home, name) = text.rsplit_once('/').ok_or_else(|| {
            Invalid::new(format!(
                "`{}` is not a port: write NETWORK/NAME, like default/web",
                text.escape_debug()
            ))
        })?;
        let home = match home.strip_prefix("bridge:") {
            Some(bridge) => Home::Bridge(bridge.parse()?),
            None => Home::Network(home.parse()?),
        };
        Ok(Self {
            home,
            name: name.parse()?,
        })
    }
}

/// Who may open a tap without being root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
}

/// What the guest's end of a port is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortKind {
    /// A persistent tap that a VMM opens by name.
    Tap {
        /// A user that may open it without being root.
        owner: Option<Owner>,
    },
    /// A tap whose file descriptor is handed over on a unix socket; it is ours by name all the same.
    TapFd {
        /// The user that may fetch it, besides root.
        owner: Option<Owner>,
    },
    /// An interface that somebody else made (veth, NIC): we only put it on the bridge, and take it off again.
    External,
    /// A vhost-user socket, served by the network's `virtio-net-backend` process.
    VhostUser {
        /// The user that may connect to it, besides root.
        owner: Option<Owner>,
    },
}

impl PortKind {
    /// The word documents and commands use.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Tap { .. } => "tap",
            Self::TapFd { .. } => "tap-fd",
            Self::External => "external",
            Self::VhostUser { .. } => "vhost-user",
        }
    }

    /// Whether the interface is a tap that we make.
    #[must_use]
    pub const fn is_our_tap(&self) -> bool {
        match self {
            Self::Tap { .. } | Self::TapFd { .. } => true,
            Self::External | Self::VhostUser { .. } => false,
        }
    }
}

/// One guest's plug. Its serde form is how the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Where and which.
    pub key: PortKey,
    /// What it is.
    pub kind: PortKind,
    /// The host's interface (for `vhost-user`: unused by the kernel, kept for its name).
    pub interface: IfName,
    /// The guest's MAC.
    pub mac: Mac,
    /// The IPv4 addresses that are the guest's alone (several only when the guest was given several).
    pub ipv4: Vec<Ipv4Addr>,
    /// The IPv6 addresses that are the guest's alone.
    pub ipv6: Vec<Ipv6Addr>,
    /// Those of them that were asked for: they stay in whatever mode their subnet is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked6: Vec<Ipv6Addr>,
    /// Whether the guest is held to its MAC and addresses and kept from playing server.
    pub guard: bool,
    /// Whether it may not reach the other isolated ports.
    pub isolated: bool,
    /// How many queues a tap can have: 1 is what every VMM opens, more must be asked for on both sides.
    pub queues: u16,
    /// How much it may carry (`vhost-user` only, so far).
    #[serde(default, skip_serializing_if = "Qos::is_unlimited")]
    pub qos: Qos,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for text in ["default/web", "bridge:br0/web"] {
            assert_eq!(text.parse::<PortKey>().unwrap().to_string(), text);
        }
        for bad in [
            "web",
            "/web",
            "default/",
            "bridge:/web",
            "bridge:0123456789abcdef/web",
        ] {
            assert!(bad.parse::<PortKey>().is_err(), "{bad}");
        }
    }
}
