use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::model::{Home, PortKey};
use crate::types::{IfName, Invalid};

/// Whose a link is, if it is ours: written on the link itself, so that a daemon that starts finds what it made.
///
/// A link we *made* bears the mark as its alias. A link that somebody else made and that we only put on a bridge
/// keeps its alias; it bears the mark as an alternative name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// The bridge of a network: `netd:<uuid>`.
    Network(Uuid),
    /// The tap of a port: `netd:port:default/web`.
    Port(PortKey),
    /// The tap by which the vhost-user ports of a home hang on its bridge: `netd:uplink:default`.
    Uplink(Home),
    /// Somebody else's interface that is a port for now: `netd:lent:default/web`.
    Lent(PortKey),
}

impl Mark {
    /// Whether we made the link, and so may delete it.
    #[must_use]
    pub const fn is_made(&self) -> bool {
        match self {
            Self::Network(_) | Self::Port(_) | Self::Uplink(_) => true,
            Self::Lent(_) => false,
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(uuid) => write!(f, "netd:{uuid}"),
            Self::Port(key) => write!(f, "netd:port:{key}"),
            Self::Uplink(home) => write!(f, "netd:uplink:{home}"),
            Self::Lent(key) => write!(f, "netd:lent:{key}"),
        }
    }
}

impl FromStr for Mark {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || Invalid::new(format!("`{}` is not a mark of netd's", text.escape_debug()));
        let rest = text.strip_prefix("netd:").ok_or_else(bad)?;
        match rest.split_once(':') {
            None => rest.parse().map(Self::Network).map_err(|_| bad()),
            Some(("port", key)) => key.parse().map(Self::Port),
            Some(("lent", key)) => key.parse().map(Self::Lent),
            Some(("uplink", home)) => match home.strip_prefix("bridge:") {
                Some(bridge) => bridge
                    .parse::<IfName>()
                    .map(|b| Self::Uplink(Home::Bridge(b))),
                None => home.parse().map(|n| Self::Uplink(Home::Network(n))),
            },
            Some(_) => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip() {
        for text in [
            "netd:67e55044-10b1-426f-9247-bb680e5fe0c8",
            "netd:port:default/web",
            "netd:port:bridge:br0/web",
            "netd:lent:default/web",
            "netd:uplink:default",
            "netd:uplink:bridge:br0",
        ] {
            assert_eq!(text.parse::<Mark>().unwrap().to_string(), text);
        }
        for foreign in [
            "",
            "netd",
            "netd:",
            "netd:web",
            "netd:tap:default/web",
            "my uplink",
        ] {
            assert!(foreign.parse::<Mark>().is_err(), "{foreign}");
        }
    }
}
