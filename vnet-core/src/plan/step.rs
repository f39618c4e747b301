use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Link, Mark, Route, Sysctl};
use crate::firewall::Change;
use crate::types::{IfName, IpNet};

/// One change of the host that can be undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a link, down and on no bridge.
    Create(NewLink),
    /// Delete a link of ours, which is down and on no bridge.
    Delete(NewLink),
    /// Change what differs between two descriptions of a link.
    Change {
        /// Which link.
        name: IfName,
        /// What it is.
        from: Link,
        /// What it becomes.
        to: Link,
    },
    /// Give a bridge an address.
    AddAddress(IfName, IpNet),
    /// Take it away.
    RemoveAddress(IfName, IpNet),
    /// Add a route.
    AddRoute(Route),
    /// Remove it.
    RemoveRoute(Route),
    /// Set a sysctl.
    Set {
        /// Which.
        key: Sysctl,
        /// Its value.
        from: String,
        /// Its new value.
        to: String,
        /// Whether it is a value of the host's own, to be given back one day.
        hosts: bool,
    },
    /// Change our nftables tables, in one transaction.
    Firewall {
        /// What changes.
        change: Change,
        /// What takes it back.
        back: Change,
    },
}

/// A link with all that comes and goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLink {
    /// Its name.
    pub name: IfName,
    /// What it is.
    pub link: Link,
    /// Its sysctls.
    pub sysctls: BTreeMap<Sysctl, String>,
    /// Other people's links that are on this bridge.
    pub ports: BTreeSet<IfName>,
}

impl Step {
    /// The step that takes this one back.
    #[must_use]
    pub fn undo(&self) -> Self {
        match self {
            Self::Create(link) => Self::Delete(link.clone()),
            Self::Delete(link) => Self::Create(link.clone()),
            Self::Change { name, from, to } => Self::Change {
                name: name.clone(),
                from: to.clone(),
                to: from.clone(),
            },
            Self::AddAddress(dev, address) => Self::RemoveAddress(dev.clone(), *address),
            Self::RemoveAddress(dev, address) => Self::AddAddress(dev.clone(), *address),
            Self::AddRoute(route) => Self::RemoveRoute(route.clone()),
            Self::RemoveRoute(route) => Self::AddRoute(route.clone()),
            Self::Set {
                key,
                from,
                to,
                hosts,
            } => Self::Set {
                key: key.clone(),
                from: to.clone(),
                to: from.clone(),
                hosts: *hosts,
            },
            Self::Firewall { change, back } => Self::Firewall {
                change: back.clone(),
                back: change.clone(),
            },
        }
    }

    /// The link that the step touches, if it is not about the whole host.
    #[must_use]
    pub const fn link(&self) -> Option<&IfName> {
        match self {
            Self::Create(new) | Self::Delete(new) => Some(&new.name),
            Self::Change { name, .. } => Some(name),
            Self::AddAddress(dev, _) | Self::RemoveAddress(dev, _) => Some(dev),
            Self::AddRoute(route) | Self::RemoveRoute(route) => Some(&route.dev),
            Self::Set { key, .. } => key.interface(),
            Self::Firewall { .. } => None,
        }
    }
}

/// A line for people: `+` makes, `-` removes, `~` changes.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(new) => write!(f, "+ {new}"),
            Self::Delete(new) => write!(f, "- {new}"),
            Self::Change { name, from, to } => {
                write!(f, "~ {name}:")?;
                changes(f, from, to)
            }
            Self::AddAddress(dev, address) => write!(f, "+ address {address} on {dev}"),
            Self::RemoveAddress(dev, address) => write!(f, "- address {address} on {dev}"),
            Self::AddRoute(route) => write!(f, "+ route {route}"),
            Self::RemoveRoute(route) => write!(f, "- route {route}"),
            Self::Set { key, from, to, .. } => write!(f, "~ {key}: {from} -> {to}"),
            Self::Firewall { change, back: _ } => firewall(f, change),
        }
    }
}

/// `bridge virbr0, mac 52:54:00:00:00:01, mtu 1500, route_localnet 0, disable_ipv6 1`
impl fmt::Display for NewLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.link.kind.describe(f, &format!(" {}", self.name))?;
        if let Some(mac) = self.link.mac {
            write!(f, ", mac {mac}")?;
        }
        if let Some(mtu) = self.link.mtu {
            write!(f, ", mtu {mtu}")?;
        }
        for (key, value) in &self.sysctls {
            if let Sysctl::Interface(_, knob) = key {
                write!(f, ", {} {value}", knob.words().1)?;
            }
        }
        Ok(())
    }
}

/// `~ firewall: bridges +1 -0, source4 +1 -0`
fn firewall(f: &mut fmt::Formatter<'_>, change: &Change) -> fmt::Result {
    match change {
        Change::None => write!(f, "~ firewall: nothing"),
        Change::Whole(ruleset) if ruleset.is_absent() => write!(f, "- firewall"),
        Change::Whole(ruleset) => write!(f, "+ firewall, {} rules", ruleset.rule_count()),
        Change::Elements(changes) => {
            for (index, change) in changes.iter().enumerate() {
                let start = if index == 0 { "~ firewall:" } else { "," };
                let name = change.set.name();
                write!(f, "{start} {name}")?;
                for (sign, count) in [("+", change.add.len()), ("-", change.remove.len())] {
                    if count > 0 {
                        write!(f, " {sign}{count}")?;
                    }
                }
            }
            Ok(())
        }
    }
}

/// ` mtu 9000, onto virbr0, isolated on, up`
fn changes(f: &mut fmt::Formatter<'_>, from: &Link, to: &Link) -> fmt::Result {
    let mut said = Vec::new();
    if from.mark != to.mark {
        let text = |mark: &Option<Mark>| mark.as_ref().map_or("none".to_owned(), Mark::to_string);
        said.push(format!("mark {} -> {}", text(&from.mark), text(&to.mark)));
    }
    if from.kind != to.kind {
        said.push(format!("{} -> {}", from.kind, to.kind));
    }
    if let (true, Some(mac)) = (from.mac != to.mac, to.mac) {
        said.push(format!("mac {mac}"));
    }
    if let (true, Some(mtu)) = (from.mtu != to.mtu, to.mtu) {
        said.push(format!("mtu {mtu}"));
    }
    match (&from.master, &to.master) {
        (from, to) if from == to => {}
        (_, Some(bridge)) => said.push(format!("onto {bridge}")),
        (Some(bridge), None) => said.push(format!("off {bridge}")),
        (None, None) => {}
    }
    let word = |on: bool| if on { "on" } else { "off" };
    if from.flags.isolated != to.flags.isolated {
        said.push(format!("isolated {}", word(to.flags.isolated)));
    }
    if from.flags.hairpin != to.flags.hairpin {
        said.push(format!("hairpin {}", word(to.flags.hairpin)));
    }
    match (from.up, to.up) {
        (false, true) => said.push("up".to_owned()),
        (true, false) => said.push("down".to_owned()),
        (true, true) | (false, false) => {}
    }
    write!(f, " {}", said.join(", "))
}
