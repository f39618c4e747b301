//! The verbs of ports.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZero;
use std::os::fd::OwnedFd;

use vnet_core::dhcp::v4::{Scope as DhcpScope, Server};
use vnet_core::host::tap;
use vnet_core::model::{Home, Network, Owner, Port, PortKey, PortKind, Qos, World};
use vnet_core::plan::Scope;
use vnet_core::serve::leases::{Lease, Stats};
use vnet_core::store::{Op, Table};
use vnet_core::types::{IfName, Mac, NetworkName, Rate};

use super::change::{forget, put};
use super::view::share_of;
use super::{Driver, Refusal, admit, ipv6};
use crate::privilege;
use crate::wire::{Outcome, PortRequest, PortView};

/// The most queues a tap takes here.
const MOST_QUEUES: u16 = 16;

impl Driver {
    /// Makes a port. Asking again for the same port is no error: the answer is the port.
    pub(super) async fn attach(&mut self, request: PortRequest) -> Result<PortView, Refusal> {
        let wish = Wish::parse(&request)?;
        if let Some(old) = self.world.ports.get(&wish.key) {
            return match wish.differs_from(old) {
                None => self.show_port(&wish.key),
                Some(what) => Err(Refusal::Exists(format!(
                    "port `{}` exists with another {what}: detach it first, or leave that out",
                    wish.key
                ))),
            };
        }
        self.look(&Scope::Links(
            wish.interface.iter().cloned().collect::<BTreeSet<_>>(),
        ))
        .await;
        if matches!(wish.kind, PortKind::VhostUser { .. }) {
            files_suffice(&self.world, wish.queues)?;
        }
        let port = self.settle_port(wish).await?;
        let mut next = self.world.clone();
        next.ports.insert(port.key.clone(), port.clone());
        let json = serde_json::to_vec(&port).map_err(|e| Refusal::Failed(e.to_string()))?;
        let touched: Vec<NetworkName> = port.key.home.network().cloned().into_iter().collect();
        let ops = vec![put(Table::Ports, &port.key, json)];
        let done = match self.prepare_port(next, &port) {
            Ok(prepared) => self.commit_prepared(prepared, ops, &touched).await,
            Err(refusal) => Err(refusal),
        };
        if let (Err(_), Some(network)) = (&done, port.key.home.network()) {
            self.tools.leases.forget(network.clone(), port.mac).await;
        }
        done?;
        self.own_names(&port).await;
        self.events.emit(
            "port.attached",
            Some(&port.key.home.to_string()),
            format!("port {} attached ({})", port.key, port.interface),
        );
        self.show_port(&port.key)
    }

    /// A guest that was there before its port may have more addresses than the port: from now on they bear its name.
    async fn own_names(&self, port: &Port) {
        let network = port.key.home.network();
        let Some(network) = network.and_then(|name| self.world.networks.get(name)) else {
            return;
        };
        if !network.subnets6.is_empty() {
            let its = |l: &Lease| l.network == network.name && l.mac == Some(port.mac);
            self.teach_names(its).await;
        }
    }

    /// The port a wish stands for, with everything chosen that it left open.
    async fn settle_port(&mut self, wish: Wish) -> Result<Port, Refusal> {
        let network = match &wish.key.home {
            Home::Network(name) => {
                Some(self.world.networks.get(name).cloned().ok_or_else(|| {
                    Refusal::NotFound(format!(
                        "network `{name}` does not exist: `vnet network list` shows those that do"
                    ))
                })?)
            }
            Home::Bridge(_) => None,
        };
        let exists = |name: &IfName| self.observed.links.contains_key(name);
        let interface = match (wish.interface, &wish.kind) {
            (Some(name), PortKind::External) => Ok(name),
            (Some(name), _) if exists(&name) => Err(Refusal::Conflict(format!(
                "interface `{name}` exists already: choose another name, or use --kind external"
            ))),
            (Some(name), _) => Ok(name),
            (None, PortKind::External) => Err(Refusal::Invalid(
                "an external port needs the name of its interface: add --interface".to_owned(),
            )),
            (None, _) => admit::free_interface(&wish.key, &self.world, exists),
        }?;
        let mac = match wish.mac {
            Some(mac) => mac,
            None => reserved_mac(network.as_ref(), &wish.key)
                .map_or_else(|| admit::free_mac(&self.world), Ok)?,
        };
        let mut port = Port {
            isolated: wish
                .isolated
                .unwrap_or(network.as_ref().is_some_and(|n| n.isolate_ports)),
            key: wish.key,
            kind: wish.kind,
            interface,
            mac,
            ipv4: wish.ipv4,
            asked6: wish.ipv6.clone(),
            ipv6: wish.ipv6,
            guard: wish.guard.unwrap_or(true),
            queues: wish.queues,
            qos: wish.qos,
        };
        if let Some(network) = network.filter(Network::owns_bridge) {
            addresses_fit(&network, &port)?;
            self.world.admits_port(&port)?;
            self.reserve_address(&network, &mut port).await?;
            if !network.subnets6.is_empty() {
                let leased = self.leased6(&network.name).await;
                ipv6::learn(&self.world, &network, &leased, &mut port);
            }
        }
        self.world.admits_port(&port)?;
        Ok(port)
    }

    /// The IPv6 addresses that are leased in a network.
    pub(super) async fn leased6(&self, network: &NetworkName) -> BTreeSet<Ipv6Addr> {
        let leases = self.tools.leases.list().await;
        let ours = leases.iter().filter(|l| l.network == *network);
        let v6 = ours.filter_map(|l| match l.address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        });
        v6.collect()
    }

    /// Settles the first address at once, so that it can be told before the guest boots.
    async fn reserve_address(&self, network: &Network, port: &mut Port) -> Result<(), Refusal> {
        let wanted = port.ipv4.first().copied();
        let (name, mac) = (&network.name, port.mac);
        let address = match DhcpScope::of(&self.world, name) {
            None => return Ok(()),
            Some(_) if self.world.active.contains(name) => {
                let guest = Some(port.key.name.clone());
                self.tools
                    .leases
                    .reserve(name.clone(), mac, wanted, guest)
                    .await
            }
            // A stopped network has no server: one that lives for this question knows as much.
            Some(scope) => {
                let leases = self.tools.leases.list().await;
                let ours = |l: &Lease| l.network == *name && l.address.is_ipv4();
                let records = leases.into_iter().filter(ours);
                let now = admit::now();
                Server::new(scope, records, now).reserve(now, mac, wanted, Some(&port.key.name))
            }
        };
        let address = address.map_err(|e| Refusal::Conflict(e.to_string()))?;
        if wanted.is_none() {
            port.ipv4.push(address);
        }
        Ok(())
    }

    /// Takes a port away, with its lease and its names.
    pub(super) async fn detach(&mut self, key: &PortKey) -> Result<Outcome, Refusal> {
        let port = self.known_port(key)?.clone();
        let mut next = self.world.clone();
        next.ports.remove(key);
        let mut ops = vec![forget(Table::Ports, key)];
        let mut notes = Vec::new();
        let touched: Vec<NetworkName> = key.home.network().cloned().into_iter().collect();
        for name in &touched {
            notes.extend(withdraw(&mut next, name, &mut ops)?);
        }
        self.commit(next, ops, &touched).await?;
        for name in touched {
            self.tools.leases.forget(name, port.mac).await;
        }
        self.events.emit(
            "port.detached",
            Some(&key.home.to_string()),
            format!("port {key} detached"),
        );
        Ok(Outcome {
            changed: vec![key.to_string()],
            notes,
        })
    }

    fn known_port(&self, key: &PortKey) -> Result<&Port, Refusal> {
        self.world.ports.get(key).ok_or_else(|| {
            Refusal::NotFound(format!(
                "port `{key}` does not exist: `vnet port list` shows those that do"
            ))
        })
    }

    /// Opens a port's tap, for somebody who may.
    pub(super) fn open_tap(
        &self,
        key: &PortKey,
        queues: u16,
        user: Option<u32>,
    ) -> Result<Vec<OwnedFd>, Refusal> {
        let port = self.known_port(key)?;
        let (PortKind::Tap { owner } | PortKind::TapFd { owner }) = &port.kind else {
            return Err(Refusal::Invalid(format!(
                "port `{key}` is {}: only taps are handed over",
                port.kind.word()
            )));
        };
        let allowed = user.is_none_or(|uid| owner.is_some_and(|o| o.uid == uid));
        if !allowed {
            return Err(Refusal::Forbidden(format!(
                "port `{key}` is not yours: attach it with --owner, be root, or join the group `netd`"
            )));
        }
        let multi_queue = self
            .observed
            .links
            .get(&port.interface)
            .is_some_and(|link| match &link.kind {
                vnet_core::plan::LinkKind::Tap(tap) => tap.multi_queue,
                vnet_core::plan::LinkKind::Bridge(_) | vnet_core::plan::LinkKind::Other => false,
            });
        if queues > 1 && !multi_queue {
            return Err(Refusal::Invalid(format!(
                "port `{key}` has one queue: attach it with --queues {queues}"
            )));
        }
        let queues = NonZero::new(queues).unwrap_or(NonZero::<u16>::MIN);
        tap::open(&port.interface, multi_queue, queues).map_err(|e| Refusal::Failed(e.to_string()))
    }

    pub(super) fn show_port(&self, key: &PortKey) -> Result<PortView, Refusal> {
        Ok(self.port_view(self.known_port(key)?))
    }

    /// A port with what it has of DHCP.
    pub(super) async fn look_at_port(&self, key: &PortKey) -> Result<PortView, Refusal> {
        let port = self.known_port(key)?;
        let stats = self.tools.leases.stats().await;
        Ok(PortView {
            device: self.backends.device(port),
            ..self.port_view_with(&stats, port)
        })
    }

    pub(super) async fn show_ports(&self, of: Option<&str>) -> Vec<PortView> {
        let stats = self.tools.leases.stats().await;
        let mine = |p: &&Port| of.is_none_or(|of| p.key.home.to_string() == of);
        let ports = self.world.ports.values().filter(mine);
        ports.map(|p| self.port_view_with(&stats, p)).collect()
    }

    fn port_view_with(&self, stats: &[Stats], port: &Port) -> PortView {
        PortView {
            dhcp: share_of(stats, port),
            ..self.port_view(port)
        }
    }
}

/// A request with every text read.
struct Wish {
    key: PortKey,
    kind: PortKind,
    mac: Option<Mac>,
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
    interface: Option<IfName>,
    guard: Option<bool>,
    isolated: Option<bool>,
    queues: u16,
    qos: Qos,
}

impl Wish {
    fn parse(request: &PortRequest) -> Result<Self, Refusal> {
        let home = match (&request.network, &request.bridge) {
            (Some(network), None) => Home::Network(network.parse()?),
            (None, Some(bridge)) => Home::Bridge(bridge.parse()?),
            (Some(_), Some(_)) | (None, None) => {
                return Err(Refusal::Invalid(
                    "a port is on a network or on a bridge: give one of them".to_owned(),
                ));
            }
        };
        let owner = request.owner.as_deref().map(owner).transpose()?;
        let kind = match request.kind.as_deref().unwrap_or("tap") {
            "tap" => PortKind::Tap { owner },
            "tap-fd" => PortKind::TapFd { owner },
            "external" => PortKind::External,
            "vhost-user" => PortKind::VhostUser { owner },
            other => {
                return Err(Refusal::Invalid(format!(
                    "`{}` is no kind of port: use tap, tap-fd, external or vhost-user",
                    other.escape_debug()
                )));
            }
        };
        let mac = request.mac.as_deref().map(str::parse::<Mac>).transpose()?;
        if let Some(mac) = mac.filter(|m| m.is_group() || m.is_zero()) {
            return Err(Refusal::Invalid(format!(
                "{mac} is no single guest's address: clear the lowest bit of its first byte"
            )));
        }
        let queues = request.queues.unwrap_or(1);
        if queues == 0 || queues > MOST_QUEUES {
            return Err(Refusal::Invalid(format!(
                "a tap has 1 to {MOST_QUEUES} queues, not {queues}"
            )));
        }
        let rate = |text: &Option<String>| text.as_deref().map(str::parse::<Rate>).transpose();
        let qos = Qos {
            inward: rate(&request.rate_in)?,
            outward: rate(&request.rate_out)?,
        };
        if !qos.is_unlimited() && !matches!(kind, PortKind::VhostUser { .. }) {
            return Err(Refusal::Invalid(format!(
                "rates are for vhost-user ports today, this one is {}: add --kind vhost-user, or limit its interface with tc",
                kind.word()
            )));
        }
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for text in &request.ip {
            match text.parse() {
                Ok(IpAddr::V4(ip)) => ipv4.push(ip),
                Ok(IpAddr::V6(ip)) => ipv6.push(ip),
                Err(_) => {
                    return Err(Refusal::Invalid(format!(
                        "`{}` is not an address",
                        text.escape_debug()
                    )));
                }
            }
        }
        Ok(Self {
            key: PortKey {
                home,
                name: request.name.parse()?,
            },
            kind,
            mac,
            ipv4,
            ipv6,
            interface: request.interface.as_deref().map(str::parse).transpose()?,
            guard: request.guard,
            isolated: request.isolated,
            queues,
            qos,
        })
    }

    /// What the wish asks for that a port is not, if anything.
    fn differs_from(&self, port: &Port) -> Option<&'static str> {
        let other = [
            ("kind", self.kind != port.kind),
            ("MAC", self.mac.is_some_and(|mac| mac != port.mac)),
            (
                "address",
                !self.ipv4.iter().all(|ip| port.ipv4.contains(ip)),
            ),
            (
                "address",
                !self.ipv6.iter().all(|ip| port.ipv6.contains(ip)),
            ),
            (
                "interface",
                self.interface
                    .as_ref()
                    .is_some_and(|i| *i != port.interface),
            ),
            ("guard", self.guard.is_some_and(|g| g != port.guard)),
            (
                "isolation",
                self.isolated.is_some_and(|i| i != port.isolated),
            ),
            (
                "rate",
                self.qos
                    .inward
                    .is_some_and(|_| self.qos.inward != port.qos.inward)
                    || self
                        .qos
                        .outward
                        .is_some_and(|_| self.qos.outward != port.qos.outward),
            ),
            (
                "number of queues",
                self.queues != port.queues && self.queues != 1,
            ),
        ];
        other
            .into_iter()
            .find(|(_, differs)| *differs)
            .map(|(what, _)| what)
    }
}

/// Files that netd has for everything but ports.
const FILES_OF_OURS: u64 = 256;
/// Files that it keeps for a port with its VMM, and for each queue: listener, connection, memory, channel and the like; kick,
/// call and error.
const FILES_OF_PORT: u64 = 8;
const FILES_OF_QUEUE: u64 = 3;

/// Whether one more vhost-user port finds the files that are kept for it: without them its guest would not survive a death
/// of the process that serves it, or netd could open nothing any more.
fn files_suffice(world: &World, queues: u16) -> Result<(), Refusal> {
    let of = |queues: u16| FILES_OF_PORT + 2 * FILES_OF_QUEUE * u64::from(queues);
    let vhost = world
        .ports
        .values()
        .filter(|p| matches!(p.kind, PortKind::VhostUser { .. }));
    let count = vhost.clone().count();
    let needed = FILES_OF_OURS + vhost.map(|p| of(p.queues)).sum::<u64>() + of(queues);
    match rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        Some(limit) if limit < needed => Err(Refusal::Failed(format!(
            "netd may open {limit} files, and {} vhost-user ports need up to {needed}: raise the limit where netd is \
             started (LimitNOFILE= in its unit, or ulimit -n) and start it again",
            count + 1
        ))),
        Some(_) | None => Ok(()),
    }
}

fn owner(name: &str) -> Result<Owner, Refusal> {
    let uid = privilege::user(name).ok_or_else(|| {
        Refusal::Invalid(format!("`{}` is no user of this host", name.escape_debug()))
    })?;
    Ok(Owner { uid })
}

/// The MAC that a reservation of the port's name already promises.
fn reserved_mac(network: Option<&Network>, key: &PortKey) -> Option<Mac> {
    let hosts = network?
        .subnets4
        .iter()
        .filter_map(|s| s.dhcp.as_ref())
        .flat_map(|d| &d.hosts);
    hosts
        .into_iter()
        .find(|h| h.name.as_ref() == Some(&key.name))
        .and_then(|h| h.mac)
}

fn addresses_fit(network: &Network, port: &Port) -> Result<(), Refusal> {
    for ip in &port.ipv4 {
        if !network
            .subnet4_of(*ip)
            .is_some_and(|s| s.is_guest_address(*ip))
        {
            let subnets: Vec<_> = network
                .subnets4
                .iter()
                .map(|s| s.prefix().to_string())
                .collect();
            return Err(Refusal::Invalid(format!(
                "{ip} is not a guest address of network `{}` ({})",
                network.name,
                subnets.join(", ")
            )));
        }
    }
    for ip in &port.ipv6 {
        if !network
            .subnets6
            .iter()
            .any(|s| s.address.contains(ip) && s.gateway() != *ip)
        {
            return Err(Refusal::Invalid(format!(
                "{ip} is not a guest address of network `{}`",
                network.name
            )));
        }
    }
    Ok(())
}

/// Publications that led to a guest that is gone are taken back with it.
fn withdraw(
    next: &mut World,
    name: &NetworkName,
    ops: &mut Vec<Op>,
) -> Result<Vec<String>, Refusal> {
    let Some(mut network) = next.networks.get(name).cloned() else {
        return Ok(Vec::new());
    };
    let (kept, lost): (Vec<_>, Vec<_>) = network
        .publish
        .into_iter()
        .partition(|p| next.guest_address(name, &p.target).is_some());
    network.publish = kept;
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    ops.push(super::networks::keep(&network)?);
    next.networks.insert(name.clone(), network);
    Ok(lost
        .iter()
        .map(|p| format!("the publication {p} led to it and is taken back"))
        .collect())
}

/// Reads a request. No user's name: another program would be asked for it.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(request: &PortRequest) {
    let owner = request.owner.as_deref();
    if owner.is_none_or(|owner| owner.parse::<u32>().is_ok()) {
        let _ = Wish::parse(request);
    }
}
