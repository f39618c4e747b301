use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::{Mark, Sysctl};
use crate::firewall::Ruleset;
use crate::types::{IfName, IpNet, Mac};

/// The part of a host that concerns us, as data: what is (observed) and what should be (desired).
///
/// Observed, it holds every link of the namespace (to know what is taken), but only *our* addresses and routes.
/// Desired, it holds what the world asks for, and the host's own links where something of ours depends on them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostState {
    /// Links by name.
    pub links: BTreeMap<IfName, Link>,
    /// Our addresses on our bridges.
    pub addresses: BTreeSet<(IfName, IpNet)>,
    /// Our routes.
    pub routes: BTreeSet<Route>,
    /// Values of sysctls, as the kernel prints them.
    pub sysctls: BTreeMap<Sysctl, String>,
    /// Our nftables tables; `None` was not looked at, or is not cared about.
    pub firewall: Option<Ruleset>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Whose it is; `None` is somebody else's.
    pub mark: Option<Mark>,
    /// What it is, with what we set on that kind.
    pub kind: LinkKind,
    /// Its address; desired `None` is whatever the kernel chose.
    pub mac: Option<Mac>,
    /// Its largest packet; desired `None` is that of the bridge it is on, or whatever it is.
    pub mtu: Option<u32>,
    /// Whether it is up.
    pub up: bool,
    /// The bridge it is on.
    pub master: Option<IfName>,
    /// How it behaves there.
    pub flags: PortFlags,
}

/// The kinds of links we tell apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge(BridgeOptions),
    /// A persistent tap.
    Tap(TapOptions),
    /// Anything else: a veth, a NIC.
    Other,
}

/// What we set on a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BridgeOptions {
    /// Spanning tree.
    pub stp: bool,
    /// How long a new port waits before it forwards, in hundredths of a second.
    pub forward_delay: u32,
}

/// What we set on a tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapOptions {
    /// Whether it takes several queues. Fixed for life, and whoever opens it must ask for the same.
    pub multi_queue: bool,
    /// The user that may open it besides root; never root.
    pub owner: Option<u32>,
}

/// How a port behaves on its bridge; all off is what the kernel gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortFlags {
    /// Frames to other isolated ports are dropped.
    pub isolated: bool,
    /// Frames may leave by the port they came from.
    pub hairpin: bool,
}

/// A route of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// Through which neighbour.
    pub via: IpAddr,
    /// By which link.
    pub dev: IfName,
    /// The metric.
    pub metric: u32,
}

/// How much of the host to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything, by dumps.
    All,
    /// These links (those that exist), their addresses, routes and sysctls; by single questions.
    Links(BTreeSet<IfName>),
}

impl Scope {
    /// Whether a link is in the scope.
    #[must_use]
    pub fn covers(&self, link: &IfName) -> bool {
        match self {
            Self::All => true,
            Self::Links(names) => names.contains(link),
        }
    }
}

impl Link {
    /// Somebody else's link of that kind, in the state the kernel makes links in.
    #[must_use]
    pub const fn foreign(kind: LinkKind) -> Self {
        Self {
            mark: None,
            kind,
            mac: None,
            mtu: None,
            up: false,
            master: None,
            flags: PortFlags {
                isolated: false,
                hairpin: false,
            },
        }
    }

    /// Whether we made it.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.mark.as_ref().is_some_and(Mark::is_made)
    }

    /// Whether it is a bridge.
    #[must_use]
    pub const fn is_bridge(&self) -> bool {
        matches!(self.kind, LinkKind::Bridge(_))
    }
}

impl HostState {
    /// Takes over what a newer look at part of the host has shown.
    pub fn refresh(&mut self, scope: &Scope, seen: Self) {
        if *scope == Scope::All {
            *self = seen;
            return;
        }
        self.links.retain(|name, _| !scope.covers(name));
        self.addresses.retain(|(dev, _)| !scope.covers(dev));
        self.routes.retain(|route| !scope.covers(&route.dev));
        self.sysctls
            .retain(|key, _| !key.interface().is_some_and(|dev| scope.covers(dev)));
        self.links.extend(seen.links);
        self.addresses.extend(seen.addresses);
        self.routes.extend(seen.routes);
        self.sysctls.extend(seen.sysctls);
        self.firewall = seen.firewall.or_else(|| self.firewall.take());
    }

    /// Adds what another state has.
    pub fn absorb(&mut self, other: Self) {
        self.links.extend(other.links);
        self.addresses.extend(other.addresses);
        self.routes.extend(other.routes);
        self.sysctls.extend(other.sysctls);
        match (&mut self.firewall, other.firewall) {
            (Some(rules), Some(more)) => rules.absorb(more),
            (mine @ None, more) => *mine = more,
            (Some(_), None) => {}
        }
    }

    /// The links that this state and another describe differently, addresses, routes and sysctls included: what to
    /// look at before a change from the one to the other.
    #[must_use]
    pub fn differing(&self, other: &Self) -> BTreeSet<IfName> {
        let mut names = BTreeSet::new();
        for (a, b) in [(self, other), (other, self)] {
            let links = a.links.iter().filter(|(k, v)| b.links.get(*k) != Some(v));
            names.extend(links.map(|(name, _)| name.clone()));
            let addresses = a.addresses.difference(&b.addresses);
            names.extend(addresses.map(|(dev, _)| dev.clone()));
            let routes = a.routes.difference(&b.routes);
            names.extend(routes.map(|route| route.dev.clone()));
            let sysctls = a
                .sysctls
                .iter()
                .filter(|(k, v)| b.sysctls.get(k) != Some(v));
            names.extend(sysctls.filter_map(|(key, _)| key.interface().cloned()));
        }
        names
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {} dev {}", self.to, self.via, self.dev)?;
        match self.metric {
            0 => Ok(()),
            metric => write!(f, " metric {metric}"),
        }
    }
}

impl LinkKind {
    const fn word(&self) -> &'static str {
        match self {
            Self::Bridge(_) => "bridge",
            Self::Tap(_) => "tap",
            Self::Other => "link",
        }
    }

    /// `bridge virbr0, stp on, forward delay 200`
    pub(super) fn describe(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        write!(f, "{}{name}", self.word())?;
        match self {
            Self::Bridge(BridgeOptions { stp, forward_delay }) => {
                if *stp || *forward_delay != 0 {
                    let word = if *stp { "on" } else { "off" };
                    write!(f, ", stp {word}, forward delay {forward_delay}")?;
                }
            }
            Self::Tap(TapOptions { multi_queue, owner }) => {
                if *multi_queue {
                    write!(f, ", multi-queue")?;
                }
                if let Some(uid) = owner {
                    write!(f, ", owner {uid}")?;
                }
            }
            Self::Other => {}
        }
        Ok(())
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(f, "")
    }
}

/// `bridge, mac 52:54:00:00:00:01, mtu 1500, up [netd:...]`
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(mac) = self.mac {
            write!(f, ", mac {mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ", mtu {mtu}")?;
        }
        if let Some(master) = &self.master {
            write!(f, ", on {master}")?;
        }
        if self.flags.isolated {
            write!(f, ", isolated")?;
        }
        if self.flags.hairpin {
            write!(f, ", hairpin")?;
        }
        write!(f, "{}", if self.up { ", up" } else { ", down" })?;
        match &self.mark {
            Some(mark) => write!(f, " [{mark}]"),
            None => write!(f, " [not ours]"),
        }
    }
}

/// One line for each thing, in order: what golden cases hold.
impl fmt::Display for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, link) in &self.links {
            writeln!(f, "link {name}: {link}")?;
        }
        for (dev, address) in &self.addresses {
            writeln!(f, "address {dev}: {address}")?;
        }
        for route in &self.routes {
            writeln!(f, "route {route}")?;
        }
        for (key, value) in &self.sysctls {
            writeln!(f, "sysctl {key} = {value}")?;
        }
        match &self.firewall {
            Some(ruleset) => write!(f, "{ruleset}"),
            None => Ok(()),
        }
    }
}
