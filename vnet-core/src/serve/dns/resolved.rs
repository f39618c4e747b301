//! The host resolves guests with no set-up: each network's domain is told to systemd-resolved, as a routing-only domain
//! of its bridge with the gateway as the server. Where there is no systemd-resolved, nothing happens.
//!
//! A thread of its own, because the bus is asked and waited for; what it knows is what should be told and what was.
//! systemd-resolved never becomes our upstream by this (its links' `default route` stays off), and a question of the
//! host's about our domain ends here: no loops.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tracing::{debug, info, warn};

use super::bus::{Bus, Object, Writer};
use super::resolv;
use crate::types::{IfName, NetworkName};

/// How often it is looked whether systemd-resolved came, went or began anew.
const LOOK: Duration = Duration::from_secs(5);

pub(super) const RESOLVED: &str = "org.freedesktop.resolve1";
pub(super) const MANAGER: Object<'static> = Object {
    destination: RESOLVED,
    path: "/org/freedesktop/resolve1",
    interface: "org.freedesktop.resolve1.Manager",
};

/// What systemd-resolved should know of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) bridge: IfName,
    pub(super) gateways: Vec<IpAddr>,
    /// Domains whose names are asked there.
    pub(super) domains: Vec<String>,
}

/// A network's link, or that there is none any more.
pub(super) type Told = (NetworkName, Option<Link>);

/// What was told: to whom, and about which link.
#[derive(Default)]
struct Registered {
    owner: Option<String>,
    links: BTreeMap<NetworkName, (u32, Link)>,
}

/// The thread's own.
pub(super) struct Registrar {
    socket: PathBuf,
    inbox: Receiver<Vec<Told>>,
    bus: Option<Bus>,
    wanted: BTreeMap<NetworkName, Link>,
    registered: Registered,
    /// Whether systemd-resolved lives in our network namespace: numbers of links mean something else in others.
    same_host: bool,
    complained: bool,
}

impl Registrar {
    pub(super) fn new(socket: PathBuf, inbox: Receiver<Vec<Told>>) -> Self {
        Self {
            socket,
            inbox,
            bus: None,
            wanted: BTreeMap::new(),
            registered: Registered::default(),
            same_host: false,
            complained: false,
        }
    }

    /// Runs until nobody is left who could tell anything.
    pub(super) fn run(mut self) {
        loop {
            match self.inbox.recv_timeout(LOOK) {
                Ok(told) => self.wanted(told),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // Links that stay (a daemon that will come back adopts them) keep their domains: the gateway does
                    // not answer, and the next start says the same again.
                    return;
                }
            }
            if let Err(error) = self.settle() {
                self.bus = None;
                if !std::mem::replace(&mut self.complained, true) {
                    warn!(%error, "systemd-resolved cannot be told of the networks' names; it is tried again");
                }
            }
        }
    }

    fn wanted(&mut self, told: Vec<Told>) {
        for (network, link) in told {
            match link {
                Some(link) => self.wanted.insert(network, link),
                None => self.wanted.remove(&network),
            };
        }
    }

    /// Makes what systemd-resolved was told what it should be told.
    fn settle(&mut self) -> io::Result<()> {
        if self.wanted.is_empty() && self.registered.links.is_empty() {
            return Ok(());
        }
        let mut bus = match self.bus.take() {
            Some(bus) => bus,
            None if !self.socket.exists() => return Ok(()),
            None => Bus::connect(&self.socket)?,
        };
        let owner = bus.owner(RESOLVED)?;
        if owner != self.registered.owner {
            debug!(?owner, "systemd-resolved");
            self.registered.owner.clone_from(&owner);
            self.registered.links.clear();
            self.same_host = match &owner {
                Some(owner) => ours(bus.process(owner)?),
                None => false,
            };
        }
        if self.same_host {
            self.forget_old(&mut bus)?;
            self.tell_new(&mut bus)?;
        }
        self.bus = Some(bus);
        self.complained = false;
        Ok(())
    }

    fn forget_old(&mut self, bus: &mut Bus) -> io::Result<()> {
        let wanted = &self.wanted;
        let old = |network: &NetworkName, link: &Link| wanted.get(network) != Some(link);
        let links = self.registered.links.iter();
        let old: Vec<NetworkName> = links
            .filter(|(network, (_, link))| old(network, link))
            .map(|(network, _)| network.clone())
            .collect();
        for network in old {
            if let Some((index, _)) = self.registered.links.remove(&network) {
                refusable(&network, revert(bus, index))?;
            }
        }
        Ok(())
    }

    fn tell_new(&mut self, bus: &mut Bus) -> io::Result<()> {
        for (network, link) in &self.wanted {
            let Some(index) = resolv::interface(link.bridge.as_str()) else {
                continue;
            };
            let known = self.registered.links.get(network);
            if known.is_some_and(|(at, _)| *at == index) || link.domains.is_empty() {
                continue;
            }
            if refusable(network, tell(bus, index, link))? {
                info!(%network, bridge = %link.bridge, domains = ?link.domains, "the host resolves the network's names");
            }
            // Told or refused: not again until something changes.
            let told = (index, link.clone());
            self.registered.links.insert(network.clone(), told);
        }
        Ok(())
    }
}

/// Whether a process lives in our network namespace; it does as far as we can tell where we may not look.
pub(super) fn ours(process: u32) -> bool {
    let own = std::fs::read_link("/proc/thread-self/ns/net");
    let its = std::fs::read_link(format!("/proc/{process}/ns/net"));
    match (own, its) {
        (Ok(own), Ok(its)) => own == its,
        (Err(_), _) | (_, Err(_)) => true,
    }
}

/// What systemd-resolved refuses is noted and lived with; what the bus cannot carry is an error.
fn refusable(network: &NetworkName, outcome: io::Result<()>) -> io::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::Other => {
            debug!(%network, %error, "systemd-resolved refused");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn tell(bus: &mut Bus, index: u32, link: &Link) -> io::Result<()> {
    let mut servers = Writer::default();
    servers.u32(index);
    servers.array(8, |w| {
        for gateway in &link.gateways {
            w.structure();
            let octets = match gateway {
                IpAddr::V4(v4) => (2, v4.octets().to_vec()),
                IpAddr::V6(v6) => (10, v6.octets().to_vec()),
            };
            w.u32(octets.0);
            w.array(1, |w| octets.1.iter().for_each(|b| w.byte(*b)));
        }
    });
    let mut domains = Writer::default();
    domains.u32(index);
    domains.array(8, |w| {
        for domain in &link.domains {
            w.structure();
            w.text(domain);
            w.bool(true);
        }
    });
    let mut no_default = Writer::default();
    no_default.u32(index);
    no_default.bool(false);
    // Our names are not signed.
    let mut unsigned = Writer::default();
    unsigned.u32(index);
    unsigned.text("no");
    for (member, signature, body) in [
        ("SetLinkDefaultRoute", "ib", &no_default),
        ("SetLinkDNSSEC", "is", &unsigned),
        ("SetLinkDomains", "ia(sb)", &domains),
        ("SetLinkDNS", "ia(iay)", &servers),
    ] {
        bus.call(MANAGER, member, signature, body)?;
    }
    Ok(())
}

fn revert(bus: &mut Bus, index: u32) -> io::Result<()> {
    let mut body = Writer::default();
    body.u32(index);
    bus.call(MANAGER, "RevertLink", "i", &body).map(drop)
}
