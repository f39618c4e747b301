use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::{Done, HostState};
use crate::types::{IfName, Invalid, serde_as_text};

/// A sysctl that we read or set. Shown, and kept on disk, as the kernel's path under `/proc/sys`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sysctl {
    /// IPv4 packets are forwarded.
    Ip4Forwarding,
    /// IPv6 packets are forwarded, and router advertisements are ignored unless an interface says otherwise.
    Ip6Forwarding,
    /// A setting of one interface.
    Interface(IfName, Knob),
}

serde_as_text!(Sysctl);

/// The settings of one interface. In this order they are set: who switches IPv6 on has refused advertisements before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Knob {
    /// Whether router advertisements are obeyed: 0 never, 1 unless we forward, 2 always.
    AcceptRa,
    /// Whether advertised prefixes become addresses.
    Autoconf,
    /// Whether packets may be routed to 127.0.0.0/8 by this link: published ports need it.
    RouteLocalnet,
    /// Whether the link has no IPv6 at all.
    DisableIpv6,
}

impl Knob {
    /// Every knob.
    pub const ALL: [Self; 4] = [
        Self::AcceptRa,
        Self::Autoconf,
        Self::RouteLocalnet,
        Self::DisableIpv6,
    ];

    /// The protocol's directory and the file: `("ipv6", "accept_ra")`.
    #[must_use]
    pub const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::AcceptRa => ("ipv6", "accept_ra"),
            Self::Autoconf => ("ipv6", "autoconf"),
            Self::RouteLocalnet => ("ipv4", "route_localnet"),
            Self::DisableIpv6 => ("ipv6", "disable_ipv6"),
        }
    }
}

impl Sysctl {
    /// The interface it is about, if it is not the whole host's.
    #[must_use]
    pub const fn interface(&self) -> Option<&IfName> {
        match self {
            Self::Interface(name, _) => Some(name),
            Self::Ip4Forwarding | Self::Ip6Forwarding => None,
        }
    }
}

/// `net/ipv4/ip_forward`: below `/proc/sys`. With slashes, since an interface's name may have a dot.
impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip4Forwarding => f.write_str("net/ipv4/ip_forward"),
            Self::Ip6Forwarding => f.write_str("net/ipv6/conf/all/forwarding"),
            Self::Interface(name, knob) => {
                let (protocol, file) = knob.words();
                write!(f, "net/{protocol}/conf/{name}/{file}")
            }
        }
    }
}

impl FromStr for Sysctl {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        for whole in [Self::Ip4Forwarding, Self::Ip6Forwarding] {
            if whole.to_string() == text {
                return Ok(whole);
            }
        }
        let mut parts = text.split('/');
        let parts: [Option<&str>; 6] = std::array::from_fn(|_| parts.next());
        if let [
            Some("net"),
            Some(protocol),
            Some("conf"),
            Some(name),
            Some(file),
            None,
        ] = parts
        {
            let mut knobs = Knob::ALL.into_iter();
            if let Some(knob) = knobs.find(|k| k.words() == (protocol, file)) {
                return Ok(Self::Interface(name.parse()?, knob));
            }
        }
        Err(Invalid::new(format!(
            "`{}` is not a sysctl that netd sets",
            text.escape_debug()
        )))
    }
}

/// Values of the *host's* sysctls from before we changed them, so that teardown can give them back.
///
/// The daemon keeps this on disk: [`Remembered::learn`] after each executed plan, [`Remembered::complete`] before each `diff`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered(pub BTreeMap<Sysctl, String>);

impl Remembered {
    /// Takes note of what a plan has changed, and forgets what it has given back. Says whether anything is new.
    pub fn learn(&mut self, done: &Done) -> bool {
        let before = self.0.clone();
        for (key, (from, to)) in &done.changed {
            if self.0.get(key) == Some(to) {
                self.0.remove(key);
            } else {
                self.0.entry(key.clone()).or_insert_with(|| from.clone());
            }
        }
        self.0 != before
    }

    /// Adds to a desired state what the host had, wherever the world no longer asks for something else; and keeps
    /// an uplink's advertisements working for as long as forwarding is on because of us.
    pub fn complete(&self, desired: &mut HostState, observed: &HostState) {
        let forwarding = desired
            .sysctls
            .get(&Sysctl::Ip6Forwarding)
            .is_some_and(|v| v == "1");
        for (key, original) in &self.0 {
            let uplink = matches!(key, Sysctl::Interface(_, Knob::AcceptRa));
            let value = if uplink && forwarding { "2" } else { original };
            desired
                .sysctls
                .entry(key.clone())
                .or_insert_with(|| value.to_owned());
        }
        if forwarding && self.0.get(&Sysctl::Ip6Forwarding).is_some_and(|v| v == "0") {
            for key in obedient_uplinks(observed) {
                desired.sysctls.entry(key).or_insert_with(|| "2".to_owned());
            }
        }
    }
}

/// The links of the host that get addresses and routes by router advertisement, which forwarding would cost them.
pub(super) fn obedient_uplinks(observed: &HostState) -> impl Iterator<Item = Sysctl> {
    let on = |name: &IfName, knob| {
        let key = Sysctl::Interface(name.clone(), knob);
        observed.sysctls.get(&key).is_some_and(|v| v == "1")
    };
    let foreign = observed.links.iter().filter(|(_, link)| !link.is_made());
    let obedient =
        foreign.filter(move |(name, _)| on(name, Knob::AcceptRa) && on(name, Knob::Autoconf));
    obedient.map(|(name, _)| Sysctl::Interface(name.clone(), Knob::AcceptRa))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for text in [
            "net/ipv4/ip_forward",
            "net/ipv6/conf/all/forwarding",
            "net/ipv6/conf/eth0.100/accept_ra",
            "net/ipv4/conf/virbr0/route_localnet",
        ] {
            assert_eq!(text.parse::<Sysctl>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "kernel/panic",
            "net/ipv4/conf/virbr0/accept_ra",
            "net/ipv6/conf/../accept_ra",
            "net/ipv6/conf/a/accept_ra/b",
        ] {
            assert!(bad.parse::<Sysctl>().is_err(), "{bad}");
        }
    }
}
