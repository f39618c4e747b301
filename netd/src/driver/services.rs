//! What DHCP and DNS are told, and what they tell.
//!
//! They are told only what changed: each network's scope and zone are functions of the world, and the last ones told
//! are kept. A service that cannot serve a network does not stop it: that becomes a warning, with what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use vnet_core::dhcp::{Reserved, ra, reserved4, reserved6, v4, v6};
use vnet_core::dns::{Change, NameChange, Zone};
use vnet_core::model::{Network, Subnet4, World};
use vnet_core::serve::leases::{Lease, LeaseEvent, LeaseKind, News, Wanted};
use vnet_core::serve::tftp::{Served, Tftp};
use vnet_core::types::{IfName, IpNet, NetworkName};

use super::warnings::Source;
use super::{Driver, Tools};

/// How long until a service that could not be given is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// What a network's services were told last.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Told {
    dhcp4: Option<v4::Scope>,
    dhcp6: Option<v6::Scope>,
    ra: Option<ra::Scope>,
    subnets: Option<Vec<IpNet>>,
    zone: Option<Zone>,
    /// Whose names are by reservation: a zone that serves leases' names depends on it.
    reserved: BTreeSet<Reserved>,
    running: bool,
}

impl Told {
    fn wanted(&self, network: &NetworkName, bridge: &IfName) -> Wanted {
        Wanted {
            network: network.clone(),
            bridge: bridge.clone(),
            dhcp4: self.dhcp4.clone(),
            dhcp6: self.dhcp6.clone(),
            ra: self.ra.clone(),
            subnets: self.subnets.clone(),
        }
    }
}

/// Returns when that moment has come, if it is to come.
pub(super) async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a world says to the services of these networks.
pub(super) fn news(world: &World, networks: &[NetworkName]) -> Vec<(NetworkName, Told)> {
    let told = |name: &NetworkName| match world.active.contains(name) {
        true => Told {
            dhcp4: v4::Scope::of(world, name),
            dhcp6: v6::Scope::of(world, name),
            ra: ra::Scope::of(world, name),
            subnets: world.networks.get(name).map(|n| n.subnets().collect()),
            zone: Zone::of(world, name),
            reserved: world.networks.get(name).map(reserved).unwrap_or_default(),
            running: true,
        },
        false => Told::default(),
    };
    networks
        .iter()
        .map(|name| (name.clone(), told(name)))
        .collect()
}

impl Driver {
    /// Tells the services of these networks what the world says now.
    pub(super) async fn tell_services(&mut self, networks: &[NetworkName]) {
        self.tell(news(&self.world, networks)).await;
    }

    /// Tells the services what is to be told, as far as it is new.
    pub(super) async fn tell(&mut self, news: Vec<(NetworkName, Told)>) {
        let names: Vec<_> = news.iter().map(|(name, _)| name.clone()).collect();
        self.tell_files(&names);
        let (mut wanted, mut zones) = (Vec::new(), Vec::new());
        let (mut nameless, mut renamed) = (Vec::new(), Vec::new());
        for (name, now) in news {
            let nothing = Told::default();
            let before = self.told.get(&name).unwrap_or(&nothing);
            let Some(bridge) = self
                .world
                .networks
                .get(&name)
                .map(|n| n.bridge.name.clone())
            else {
                continue;
            };
            let restarted = now.running != before.running;
            let same = now.dhcp4 == before.dhcp4 && now.dhcp6 == before.dhcp6;
            let same = same && now.ra == before.ra && now.subnets == before.subnets;
            if !same || restarted {
                wanted.push(now.wanted(&name, &bridge));
            }
            // Another MAC in a reservation: the zone is the same, but others may add to the name.
            if now.reserved != before.reserved && before.zone.is_some() {
                renamed.push(name.clone());
            }
            if now.zone != before.zone || restarted {
                if now.zone.is_some() && before.zone.is_none() {
                    nameless.push(name.clone());
                }
                zones.push((name.clone(), now.zone.clone(), bridge));
            }
            self.told.insert(name, now);
        }
        self.configure(wanted, zones).await;
        if !nameless.is_empty() {
            self.teach_names(|lease| nameless.contains(&lease.network))
                .await;
        }
        self.relearn_names(&renamed).await;
        self.serve_files(&names);
        self.recall(&names);
    }

    /// Starts and ends TFTP as the world says.
    fn serve_files(&mut self, networks: &[NetworkName]) {
        for name in networks {
            let now = match self.world.active.contains(name) {
                true => self.world.networks.get(name).map(tftp_of),
                false => None,
            };
            let now = now.unwrap_or_default();
            let running = self.tftp.entry(name.clone()).or_default();
            running.retain(|server| now.iter().any(|served| server.is_at(served)));
            let mut failed = Vec::new();
            for served in now {
                let done = match running.iter().find(|server| server.is_at(&served)) {
                    Some(server) => server.serve(served),
                    None => Tftp::start(served).map(|server| running.push(server)),
                };
                failed.extend(done.err().map(|error| format!("no TFTP: {error}")));
            }
            if running.is_empty() {
                self.tftp.remove(name);
            }
            self.cannot_serve(name, Source::Files, failed);
        }
    }

    /// Warns of what a network does not get, until it does.
    fn cannot_serve(&mut self, network: &NetworkName, source: Source, texts: Vec<String>) {
        let (failed, name) = (!texts.is_empty(), Some(network.as_str()));
        let ailed = self.warnings.has(network, source);
        for text in self.warnings.say(network, source, texts) {
            self.events.emit("service.failed", name, text);
        }
        if failed {
            self.again.get_or_insert(Instant::now() + AGAIN);
        } else if ailed && !self.warnings.is_unserved(network) {
            let text = format!("network {network} has all its services again");
            self.events.emit("service.recovered", name, text);
        }
    }

    /// What was in a service's way may be gone.
    pub(super) async fn try_services_again(&mut self) {
        self.again = None;
        let names = self.warnings.unserved();
        for name in &names {
            self.told.remove(name);
        }
        self.tell_services(&names).await;
    }

    /// The bridges of these networks were made anew: nobody listens on them.
    pub(super) async fn serve_anew(&mut self, networks: &[NetworkName]) {
        for name in networks {
            self.told.remove(name);
            self.tftp.remove(name);
        }
        self.tell_services(networks).await;
    }

    async fn configure(
        &mut self,
        wanted: Vec<Wanted>,
        zones: Vec<(NetworkName, Option<Zone>, IfName)>,
    ) {
        let touched: BTreeSet<NetworkName> = wanted
            .iter()
            .map(|w| &w.network)
            .chain(zones.iter().map(|z| &z.0))
            .cloned()
            .collect();
        let Tools { leases, dns, .. } = &self.tools;
        let (no_dhcp, no_dns) = tokio::join!(
            async {
                match wanted.is_empty() {
                    true => Vec::new(),
                    false => leases.configure(wanted).await,
                }
            },
            async {
                match zones.is_empty() {
                    true => Vec::new(),
                    false => dns.configure(zones).await,
                }
            },
        );
        let dhcp = |(name, error)| (name, format!("no DHCP or router advertisements: {error}"));
        let no_dns = no_dns.into_iter().map(|(n, e)| (n, format!("no DNS: {e}")));
        let mut failed = BTreeMap::<NetworkName, Vec<String>>::new();
        for (name, text) in no_dhcp.into_iter().map(dhcp).chain(no_dns) {
            failed.entry(name).or_default().push(text);
        }
        for name in touched {
            let texts = failed.remove(&name).unwrap_or_default();
            self.cannot_serve(&name, Source::Services, texts);
        }
    }

    /// Gives DNS the names of leases that were there before it served these networks.
    pub(super) async fn teach_names(&self, which: impl Fn(&Lease) -> bool) {
        for lease in self.tools.leases.list().await {
            if which(&lease) {
                self.name(&lease, Change::Added);
            }
        }
    }

    fn name(&self, lease: &Lease, change: Change) {
        if let Some(news) = self.name_change(lease, change) {
            self.tools.dns.names(lease.network.clone(), vec![news]);
        }
    }

    fn name_change(&self, lease: &Lease, change: Change) -> Option<NameChange> {
        let name = lease.hostname.clone()?;
        let mut ports = self.world.ports_of(&lease.network);
        let is_ports = ports.any(|p| Some(p.mac) == lease.mac && p.key.name == name);
        let told = self.told.get(&lease.network);
        let is_owner = || {
            let all = told.into_iter().flat_map(|told| &told.reserved);
            let mut of_it = all.filter(|(reserved, _)| *reserved == name);
            of_it.any(|(_, owner)| owner.has(lease))
        };
        let change = match change {
            Change::Added if is_ports || is_owner() => Change::AddedByOwner,
            Change::Added
            | Change::AddedByOwner
            | Change::Removed
            | Change::Heard
            | Change::Silent => change,
        };
        Some(NameChange {
            name,
            address: lease.address,
            change,
        })
    }

    /// Makes DNS know the names of all leases of these networks and of no others.
    async fn relearn_names(&mut self, networks: &[NetworkName]) {
        if networks.is_empty() {
            return;
        }
        let leases = self.tools.leases.list().await;
        for network in networks {
            let of_it = leases.iter().filter(|lease| lease.network == *network);
            let names = of_it.filter_map(|lease| self.name_change(lease, Change::Added));
            self.tools.dns.relearn(network.clone(), names.collect());
        }
        self.recall(networks);
    }

    /// Ends the services of networks that are about to stop.
    pub(super) async fn silence_services(&mut self, networks: &[NetworkName]) {
        let bridge = |name: &NetworkName| Some(self.world.networks.get(name)?.bridge.name.clone());
        let known: Vec<_> = networks
            .iter()
            .filter_map(|name| Some((name.clone(), bridge(name)?)))
            .collect();
        for name in networks {
            self.told.remove(name);
            self.tftp.remove(name);
            // What is not wanted any more has not recovered.
            self.warnings.ask_nothing(name);
        }
        let silence = Told::default();
        let wanted = known
            .iter()
            .map(|(name, bridge)| silence.wanted(name, bridge))
            .collect();
        let zones = known
            .into_iter()
            .map(|(name, bridge)| (name, None, bridge))
            .collect();
        self.configure(wanted, zones).await;
    }

    /// What the DHCP service tells.
    pub(super) async fn lease_event(&mut self, news: Result<News, RecvError>) {
        match news {
            Ok(news) => news.iter().for_each(|event| self.one_lease_event(event)),
            // Names may have been missed, and ends of names.
            Err(RecvError::Lagged(_)) => {
                let running: Vec<NetworkName> = self.world.active.iter().cloned().collect();
                self.relearn_names(&running).await;
            }
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    fn one_lease_event(&self, event: &LeaseEvent) {
        let lease = &event.lease;
        let (kind, named) = match event.kind {
            LeaseKind::Granted => ("lease.granted", Some(Change::Added)),
            LeaseKind::Renewed => ("lease.renewed", None),
            LeaseKind::Released => ("lease.released", Some(Change::Removed)),
            LeaseKind::Expired => ("lease.expired", Some(Change::Removed)),
            LeaseKind::Declined => ("lease.declined", Some(Change::Removed)),
        };
        if let Some(change) = named {
            self.name(lease, change);
        }
        // Thousands a second may come: a sentence that nobody hears is not written.
        if self.events.is_heard() {
            let text = sentence(event.kind, lease);
            self.events.emit(kind, Some(lease.network.as_str()), text);
        }
    }
}

/// Names that reservations of either family have.
fn reserved(network: &Network) -> BTreeSet<Reserved> {
    reserved4(network).chain(reserved6(network)).collect()
}

fn tftp_of(network: &Network) -> BTreeSet<Served> {
    let of = |subnet: &Subnet4| {
        let folder = subnet.dhcp.as_ref()?.boot.as_ref()?.tftp.clone()?;
        Some(Served {
            bridge: network.bridge.name.clone(),
            gateway: subnet.gateway(),
            folder,
            mtu: network.bridge.mtu.map_or(1500, |mtu| mtu.get()),
        })
    };
    let subnets = network.subnets4.iter().filter(|_| network.owns_bridge());
    subnets.filter_map(of).collect()
}

fn sentence(kind: LeaseKind, lease: &Lease) -> String {
    let who = match (&lease.hostname, lease.mac) {
        (Some(name), _) => name.to_string(),
        (None, Some(mac)) => mac.to_string(),
        (None, None) => "a guest".to_owned(),
    };
    let address = lease.address;
    match kind {
        LeaseKind::Granted => format!("{who} has {address}"),
        LeaseKind::Renewed => format!("{who} keeps {address}"),
        LeaseKind::Released => format!("{who} gave {address} back"),
        LeaseKind::Expired => format!("the lease of {who} for {address} ended"),
        LeaseKind::Declined => format!("{who} found {address} in use by somebody else"),
    }
}
