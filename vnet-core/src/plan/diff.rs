use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::order::{Stage, stage_of_sysctl};
use super::sysctl::obedient_uplinks;
use super::{HostState, Link, LinkKind, Mark, NewLink, Plan, PortFlags, Scope, Step, Sysctl};
use crate::firewall::{Change, Frame};
use crate::model::{Home, PortKey};
use crate::types::{IfName, Mac};

/// What we would have to touch although it is not ours, or need although it is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Conflict {
    /// What of the world cannot be.
    pub subject: Subject,
    /// The interface in question.
    pub interface: IfName,
    /// What is wrong and what to do about it.
    pub sentence: String,
}

/// What a conflict is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A network that has its own bridge.
    Network(Uuid),
    /// A port.
    Port(PortKey),
    /// The vhost-user ports of a home.
    Uplink(Home),
    /// A bridge of the host that networks or ports depend on.
    HostBridge,
}

/// The steps from what is to what should be; none when they are equal.
///
/// # Errors
/// The first conflict; then nothing may be done.
pub fn diff(observed: &HostState, desired: &HostState) -> Result<Plan, Conflict> {
    let (plan, conflicts) = settle(observed, desired);
    match conflicts.into_iter().next() {
        Some(conflict) => Err(conflict),
        None => Ok(plan),
    }
}

/// As [`diff`], but what is in conflict is left out with all that depends on it: a daemon that starts brings up
/// what it can.
#[must_use]
pub fn settle(observed: &HostState, desired: &HostState) -> (Plan, Vec<Conflict>) {
    settle_within(observed, desired, &Scope::All)
}

/// As [`settle`], for these links only: to look again at what was touched costs what was touched, not what there is.
/// The firewall is of no link.
#[must_use]
pub fn settle_within(
    observed: &HostState,
    desired: &HostState,
    scope: &Scope,
) -> (Plan, Vec<Conflict>) {
    let mut work = Work::new(observed, desired, scope);
    work.all_but_firewall();
    if *scope == Scope::All {
        work.firewall();
    }
    (Plan::new(work.steps), work.conflicts)
}

/// As [`diff`], for what was just absorbed into `desired` (see [`super::addition`]): it costs what was added.
///
/// # Errors
/// The first conflict; then nothing may be done.
pub fn diff_addition(
    observed: &HostState,
    desired: &HostState,
    addition: &HostState,
) -> Result<Plan, Conflict> {
    let (Some(is), Some(more)) = (&observed.firewall, &addition.firewall) else {
        return diff(observed, desired);
    };
    if *is.frame() != Frame::Whole {
        return diff(observed, desired);
    }
    let scope = Scope::Links(addition.links.keys().cloned().collect());
    let mut work = Work::new(observed, desired, &scope);
    work.all_but_firewall();
    let change = is.lacking(more);
    let back = change.inverse(is);
    work.change_rules(change, back);
    match work.conflicts.into_iter().next() {
        Some(conflict) => Err(conflict),
        None => Ok(Plan::new(work.steps)),
    }
}

struct Work<'a> {
    observed: &'a HostState,
    desired: &'a HostState,
    scope: &'a Scope,
    steps: Vec<(Stage, Step)>,
    conflicts: Vec<Conflict>,
    /// Links that are in conflict, or on a bridge that is.
    barred: BTreeSet<&'a IfName>,
    created: BTreeSet<&'a IfName>,
    deleted: BTreeSet<&'a IfName>,
}

impl<'a> Work<'a> {
    const fn new(observed: &'a HostState, desired: &'a HostState, scope: &'a Scope) -> Self {
        Self {
            observed,
            desired,
            scope,
            steps: Vec::new(),
            conflicts: Vec::new(),
            barred: BTreeSet::new(),
            created: BTreeSet::new(),
            deleted: BTreeSet::new(),
        }
    }

    fn all_but_firewall(&mut self) {
        self.bar();
        self.links();
        self.retire();
        self.addresses();
        self.routes();
        self.sysctls();
    }

    fn push(&mut self, stage: Stage, step: Step) {
        self.steps.push((stage, step));
    }

    /// Finds the conflicts, and bars what is in one.
    fn bar(&mut self) {
        for (name, want) in within(&self.desired.links, self.scope) {
            if let Some(conflict) = conflict(name, want, self.observed.links.get(name)) {
                self.conflicts.push(conflict);
                self.barred.insert(name);
            }
        }
        if self.barred.is_empty() {
            return;
        }
        for (name, want) in &self.desired.links {
            let master = want.master.as_ref();
            if master.is_some_and(|m| self.barred.contains(m)) {
                self.barred.insert(name);
            }
        }
    }

    fn links(&mut self) {
        for (name, want) in within(&self.desired.links, self.scope) {
            if want.mark.is_none() || self.barred.contains(name) {
                continue;
            }
            let have = self.observed.links.get(name);
            let (mac, mtu) = self.resolve(want, have);
            match have {
                Some(have) if as_wanted(have, want) && (have.mac, have.mtu) == (mac, mtu) => {}
                Some(have) if !want.is_made() => {
                    let to = Link {
                        kind: have.kind.clone(),
                        ..full(want, mac, mtu)
                    };
                    self.change(name, have.clone(), to);
                }
                Some(have) if same_make(have, want) => {
                    self.change(name, have.clone(), full(want, mac, mtu));
                }
                Some(have) => {
                    self.delete(name, have, Stage::Clear);
                    self.create(name, full(want, mac, mtu));
                }
                None => self.create(name, full(want, mac, mtu)),
            }
        }
    }

    /// What we do not care about is as it is; the MTU of a port is otherwise that of its bridge.
    fn resolve(&self, want: &Link, have: Option<&Link>) -> (Option<Mac>, Option<u32>) {
        let same = have.filter(|h| same_make(h, want));
        let followed = || {
            let master = want.master.as_ref().filter(|_| want.is_made())?;
            let ours = self.desired.links.get(master).and_then(|l| l.mtu);
            ours.or_else(|| self.observed.links.get(master).and_then(|l| l.mtu))
        };
        let mac = want.mac.or_else(|| have.and_then(|h| h.mac));
        let mtu = want
            .mtu
            .or_else(followed)
            .or_else(|| same.and_then(|h| h.mtu));
        (mac, mtu)
    }

    fn change(&mut self, name: &IfName, from: Link, to: Link) {
        let stage = if to.is_bridge() {
            Stage::Bridges
        } else {
            Stage::Ports
        };
        let name = name.clone();
        self.push(stage, Step::Change { name, from, to });
    }

    fn create(&mut self, name: &'a IfName, to: Link) {
        let alone = alone(&to);
        let new = NewLink {
            name: name.clone(),
            link: alone.clone(),
            sysctls: sysctls_of(self.desired, name),
            ports: BTreeSet::new(),
        };
        self.created.insert(name);
        self.push(Stage::Create, Step::Create(new));
        if alone != to {
            self.change(name, alone, to);
        }
    }

    fn delete(&mut self, name: &'a IfName, have: &Link, stage: Stage) {
        let alone = alone(have);
        if alone != *have {
            let (name, from, to) = (name.clone(), have.clone(), alone.clone());
            self.push(Stage::Retire, Step::Change { name, from, to });
        }
        self.deleted.insert(name);
        let gone = NewLink {
            name: name.clone(),
            ports: self.strangers_on(name, &alone),
            link: alone,
            sysctls: sysctls_of(self.observed, name),
        };
        self.push(stage, Step::Delete(gone));
    }

    /// Links that nobody asked us about and that lose their bridge with it.
    fn strangers_on(&self, name: &IfName, link: &Link) -> BTreeSet<IfName> {
        if !link.is_bridge() {
            return BTreeSet::new();
        }
        let on = self.observed.links.iter();
        on.filter(|(_, l)| l.mark.is_none() && l.master.as_ref() == Some(name))
            .map(|(n, _)| n.clone())
            .collect()
    }

    /// Deletes what bears our mark and is no longer wanted, and gives back what was lent.
    fn retire(&mut self) {
        for (name, have) in within(&self.observed.links, self.scope) {
            let Some(mark) = &have.mark else { continue };
            if self
                .desired
                .links
                .get(name)
                .is_some_and(|w| w.mark.is_some())
            {
                continue;
            }
            if mark.is_made() {
                self.delete(name, have, Stage::Delete);
            } else {
                let (from, mut to) = (have.clone(), have.clone());
                (to.mark, to.master, to.flags) = (None, None, PortFlags::default());
                let name = name.clone();
                self.push(Stage::Retire, Step::Change { name, from, to });
            }
        }
    }

    fn addresses(&mut self) {
        let (observed, desired) = (self.observed, self.desired);
        let gone = observed.addresses.difference(&desired.addresses);
        for (dev, address) in gone.filter(|(dev, _)| self.scope.covers(dev)) {
            let step = Step::RemoveAddress(dev.clone(), *address);
            self.push(Stage::RemoveAddresses, step);
        }
        for (dev, address) in &desired.addresses {
            let there = observed.addresses.contains(&(dev.clone(), *address));
            let out = self.barred.contains(dev) || !self.scope.covers(dev);
            if out || (there && !self.deleted.contains(dev)) {
                continue;
            }
            if there {
                let step = Step::RemoveAddress(dev.clone(), *address);
                self.push(Stage::RemoveAddresses, step);
            }
            self.push(Stage::AddAddresses, Step::AddAddress(dev.clone(), *address));
        }
    }

    /// The kernel drops the routes of a link that loses its last address: those are taken off and put back.
    fn routes(&mut self) {
        let (observed, desired) = (self.observed, self.desired);
        let shaken: BTreeSet<IfName> = self
            .steps
            .iter()
            .filter_map(|(_, s)| match s {
                Step::RemoveAddress(dev, _) => Some(dev.clone()),
                Step::Create(_) | Step::Delete(_) | Step::Change { .. } | Step::Set { .. } => None,
                Step::AddAddress(..) | Step::AddRoute(_) | Step::RemoveRoute(_) => None,
                Step::Firewall { .. } => None,
            })
            .collect();
        let scope = self.scope;
        for route in observed.routes.iter().filter(|r| scope.covers(&r.dev)) {
            if !desired.routes.contains(route) || shaken.contains(&route.dev) {
                self.push(Stage::RemoveRoutes, Step::RemoveRoute(route.clone()));
            }
        }
        for route in desired.routes.iter().filter(|r| scope.covers(&r.dev)) {
            let stays = observed.routes.contains(route) && !shaken.contains(&route.dev);
            if !stays && !self.barred.contains(&route.dev) {
                self.push(Stage::AddRoutes, Step::AddRoute(route.clone()));
            }
        }
    }

    /// What the kernel does not have (no IPv6, say) cannot be set and is not missed.
    fn sysctls(&mut self) {
        for (key, to) in &self.desired.sysctls {
            let dev = key.interface();
            let skip =
                |d| self.created.contains(d) || self.barred.contains(d) || !self.scope.covers(d);
            if dev.is_some_and(skip) {
                continue;
            }
            if let Some(from) = self.observed.sysctls.get(key).filter(|from| *from != to) {
                let made = |d| self.desired.links.get(d).is_some_and(Link::is_made);
                self.set(key.clone(), from, to, !dev.is_some_and(made));
            }
        }
        let key = Sysctl::Ip6Forwarding;
        let value = |state: &HostState| state.sysctls.get(&key).map(String::as_str) == Some("1");
        if value(self.desired) && !value(self.observed) {
            for uplink in obedient_uplinks(self.observed) {
                if !self.desired.sysctls.contains_key(&uplink) {
                    self.set(uplink, "1", "2", true);
                }
            }
        }
    }

    /// A ruleset that somebody has broken cannot be put back, so its repair is not taken back.
    fn firewall(&mut self) {
        let (Some(is), Some(should)) = (&self.observed.firewall, &self.desired.firewall) else {
            return;
        };
        let change = is.change_to(should);
        let back = match is.frame() {
            Frame::Broken(_) => Change::None,
            Frame::Absent | Frame::Whole => change.inverse(is),
        };
        self.change_rules(change, back);
    }

    fn change_rules(&mut self, change: Change, back: Change) {
        if change != Change::None {
            self.push(Stage::Firewall, Step::Firewall { change, back });
        }
    }

    fn set(&mut self, key: Sysctl, from: &str, to: &str, hosts: bool) {
        let stage = match hosts {
            true => stage_of_sysctl(&key, to),
            false => Stage::Interfaces,
        };
        let (from, to) = (from.to_owned(), to.to_owned());
        self.push(
            stage,
            Step::Set {
                key,
                from,
                to,
                hosts,
            },
        );
    }
}

/// Whether a link is what is wanted, apart from MAC and MTU. What a lent link is, is its owner's business.
fn as_wanted(have: &Link, want: &Link) -> bool {
    have.mark == want.mark
        && (have.kind == want.kind || !want.is_made())
        && (have.up, &have.master, have.flags) == (want.up, &want.master, want.flags)
}

fn full(want: &Link, mac: Option<Mac>, mtu: Option<u32>) -> Link {
    Link {
        mac,
        mtu,
        ..want.clone()
    }
}

/// The links that are in the scope.
fn within<'a>(
    links: &'a BTreeMap<IfName, Link>,
    scope: &'a Scope,
) -> Box<dyn Iterator<Item = (&'a IfName, &'a Link)> + 'a> {
    match scope {
        Scope::All => Box::new(links.iter()),
        Scope::Links(names) => Box::new(names.iter().filter_map(|n| links.get_key_value(n))),
    }
}

/// A made link as it is just after its creation and just before its deletion.
fn alone(link: &Link) -> Link {
    Link {
        up: false,
        master: None,
        flags: PortFlags::default(),
        ..link.clone()
    }
}

/// Whether the one can be changed into the other (what is fixed for life is the same).
fn same_make(a: &Link, b: &Link) -> bool {
    match (&a.kind, &b.kind) {
        (LinkKind::Bridge(_), LinkKind::Bridge(_)) | (LinkKind::Other, LinkKind::Other) => true,
        (LinkKind::Tap(a), LinkKind::Tap(b)) => a.multi_queue == b.multi_queue,
        (LinkKind::Bridge(_) | LinkKind::Tap(_) | LinkKind::Other, _) => false,
    }
}

fn sysctls_of(state: &HostState, name: &IfName) -> BTreeMap<Sysctl, String> {
    let key = |knob| Sysctl::Interface(name.clone(), knob);
    let keys = super::Knob::ALL.into_iter().map(key);
    keys.filter_map(|k| state.sysctls.get(&k).map(|v| (k, v.clone())))
        .collect()
}

fn conflict(name: &IfName, want: &Link, have: Option<&Link>) -> Option<Conflict> {
    let (subject, sentence) = match (&want.mark, have) {
        (None, None) => (
            Subject::HostBridge,
            format!("bridge `{name}` does not exist: create it on the host first"),
        ),
        (None, Some(have)) if !have.is_bridge() => (
            Subject::HostBridge,
            format!("`{name}` is not a bridge: name one that is (`ip link show type bridge`)"),
        ),
        (Some(Mark::Lent(key)), have) => (Subject::Port(key.clone()), unfit(name, want, have)?),
        (Some(Mark::Network(uuid)), Some(have)) if !have.is_made() && !half_made(have, want) => (
            Subject::Network(*uuid),
            format!(
                "interface `{name}` already exists and netd did not make it: give the network another bridge \
                 name, or remove what is there (`ip link show {name}`)"
            ),
        ),
        (Some(Mark::Port(key)), Some(have)) if !have.is_made() => (
            Subject::Port(key.clone()),
            format!(
                "interface `{name}` already exists and netd did not make it: give the port another interface \
                 name, or attach it as `external`"
            ),
        ),
        (Some(Mark::Uplink(home)), Some(have)) if !have.is_made() => (
            Subject::Uplink(home.clone()),
            format!(
                "interface `{name}` already exists and netd did not make it: remove it (`ip link del {name}`)"
            ),
        ),
        (None | Some(Mark::Network(_) | Mark::Port(_) | Mark::Uplink(_)), _) => return None,
    };
    let interface = name.clone();
    Some(Conflict {
        subject,
        interface,
        sentence,
    })
}

/// What a daemon that died between making a bridge and marking it leaves: down, and with the MAC that is the network's.
fn half_made(have: &Link, want: &Link) -> bool {
    have.mark.is_none() && have.is_bridge() && !have.up && have.mac == want.mac
}

/// Why somebody else's interface cannot be a port of ours.
fn unfit(name: &IfName, want: &Link, have: Option<&Link>) -> Option<String> {
    let Some(have) = have else {
        return Some(format!(
            "interface `{name}` does not exist: create it first, or attach a tap"
        ));
    };
    if have.is_made() {
        return Some(format!(
            "interface `{name}` is netd's own: attach one that somebody else made"
        ));
    }
    if have.is_bridge() {
        return Some(format!(
            "`{name}` is a bridge, and a bridge cannot be a port: attach one end of a veth pair"
        ));
    }
    match &have.master {
        Some(bridge) if have.mark.is_none() && have.master != want.master => Some(format!(
            "interface `{name}` is already on `{bridge}`: take it off first (`ip link set {name} nomaster`)"
        )),
        Some(_) | None => None,
    }
}
