//! The verbs of networks.

use std::collections::BTreeSet;
use std::path::Path;

use vnet_core::config::native::{DomainDoc, NetworkDoc};
use vnet_core::model::{Network, Subnet4, World};
use vnet_core::plan::Scope;
use vnet_core::store::{Op, Table};
use vnet_core::types::NetworkName;

use super::change::{forget, put};
use super::{Driver, Refusal, admit, ipv6};
use crate::wire::{Action, Applied, ApplyReply, ApplyRequest, Outcome};

/// The most networks of one request: more is a mistake, and would keep everybody waiting.
const MOST: usize = 5000;

impl Driver {
    /// Makes networks true: new ones are created (and started), running ones changed in place. All or none.
    pub(super) async fn apply(&mut self, request: ApplyRequest) -> Result<ApplyReply, Refusal> {
        if request.networks.len() > MOST {
            return Err(Refusal::Invalid(format!(
                "{} networks in one request: at most {MOST}",
                request.networks.len()
            )));
        }
        let (next, changes, notes) = self.settle(&request).await?;
        let prepared = self.prepare(next)?;
        let networks = changes
            .iter()
            .map(|c| Applied {
                name: c.name.to_string(),
                action: c.action,
            })
            .collect();
        let mut reply = ApplyReply {
            networks,
            steps: prepared.steps(),
            notes,
        };
        if request.dry_run {
            return Ok(reply);
        }
        let changed: Vec<NetworkName> = changes
            .iter()
            .filter(|c| c.action != Action::Unchanged)
            .map(|c| c.name.clone())
            .collect();
        let next = prepared.world();
        let networks = changed.iter().filter_map(|name| next.networks.get(name));
        let mut ops = networks.map(keep).collect::<Result<Vec<_>, _>>()?;
        let moved = next.ports.values();
        for port in moved.filter(|port| self.world.ports.get(&port.key) != Some(port)) {
            let json = serde_json::to_vec(port).map_err(|e| Refusal::Failed(e.to_string()))?;
            ops.push(put(Table::Ports, &port.key, json));
        }
        self.commit_prepared(prepared, ops, &changed).await?;
        for change in changes.iter().filter(|c| c.action != Action::Unchanged) {
            self.announce(change);
            reply.notes.extend(self.warnings.of(&change.name));
        }
        Ok(reply)
    }

    fn announce(&self, change: &Change) {
        let name = change.name.as_str();
        let state = if self.world.active.contains(&change.name) {
            "running"
        } else {
            "stopped"
        };
        match change.action {
            Action::Created => self.events.emit(
                "network.created",
                Some(name),
                format!("network {name} created ({state})"),
            ),
            Action::Changed => self.events.emit(
                "network.changed",
                Some(name),
                format!("network {name} changed ({state})"),
            ),
            Action::Unchanged => {}
        }
    }

    /// The world after a request, with what becomes of each network and what was chosen for it.
    async fn settle(
        &mut self,
        request: &ApplyRequest,
    ) -> Result<(World, Vec<Change>, Vec<String>), Refusal> {
        let taken = self
            .tools
            .kernel
            .survey()
            .await
            .map_err(|e| Refusal::Failed(e.to_string()))?;
        let (mut next, mut changes, mut notes) = (self.world.clone(), Vec::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for (i, doc) in request.networks.iter().enumerate() {
            let network = settle_one(doc, &next, &taken)
                .map_err(|refusal| place(i, doc, request, refusal))?;
            let name = network.name.clone();
            if !seen.insert(name.clone()) {
                return Err(Refusal::Invalid(format!("network `{name}` is given twice")));
            }
            let old = self.world.networks.get(&name);
            if old.is_some() && request.only_new {
                return Err(Refusal::Exists(format!(
                    "network `{name}` exists: change it with `vnet network edit {name}` or `vnet apply`"
                )));
            }
            let action = match old {
                None => Action::Created,
                Some(old) if *old == network => Action::Unchanged,
                Some(_) => Action::Changed,
            };
            if action == Action::Changed {
                keeps_its_identity(old, &network)?;
            }
            next.admits_network(&network)?;
            let runs = next.active.contains(&name) || (action == Action::Created && request.start);
            if runs {
                admit::fits_the_host(
                    &network,
                    old.filter(|_| self.world.active.contains(&name)),
                    &taken,
                )?;
                next.active.insert(name.clone());
            }
            notes.extend(choices(doc, &network, action));
            next.networks.insert(name.clone(), network);
            changes.push(Change { name, action });
        }
        for change in changes.iter().filter(|c| c.action != Action::Unchanged) {
            next.publishes_known_guests(&change.name)?;
            ports_still_fit(&next, &change.name)?;
            let leased = self.leased6(&change.name).await;
            ipv6::learn_again(&mut next, &change.name, &leased);
        }
        Ok((next, changes, notes))
    }

    pub(super) fn known(&self, name: &NetworkName) -> Result<(), Refusal> {
        if self.world.networks.contains_key(name) {
            return Ok(());
        }
        Err(no_such_network(name.as_str()))
    }

    /// Starts a network; its ports come back with it.
    pub(super) async fn start(&mut self, name: &NetworkName) -> Result<Outcome, Refusal> {
        self.known(name)?;
        if self.world.active.contains(name) {
            return Ok(Outcome::default());
        }
        let taken = self
            .tools
            .kernel
            .survey()
            .await
            .map_err(|e| Refusal::Failed(e.to_string()))?;
        if let Some(network) = self.world.networks.get(name) {
            admit::fits_the_host(network, None, &taken)?;
        }
        let mut next = self.world.clone();
        next.active.insert(name.clone());
        self.commit(next, Vec::new(), std::slice::from_ref(name))
            .await?;
        self.events.emit(
            "network.started",
            Some(name.as_str()),
            format!("network {name} started"),
        );
        let notes = self.warnings.of(name);
        Ok(Outcome {
            changed: vec![name.to_string()],
            notes,
        })
    }

    /// Stops a network; its ports and leases are kept.
    pub(super) async fn stop(&mut self, name: &NetworkName) -> Result<Outcome, Refusal> {
        self.known(name)?;
        if !self.world.active.contains(name) {
            return Ok(Outcome::default());
        }
        self.stop_these(std::slice::from_ref(name)).await
    }

    /// Stops every network.
    pub(super) async fn stop_all(&mut self) -> Result<Outcome, Refusal> {
        let names: Vec<NetworkName> = self.world.active.iter().cloned().collect();
        if names.is_empty() {
            return Ok(Outcome::default());
        }
        self.stop_these(&names).await
    }

    async fn stop_these(&mut self, names: &[NetworkName]) -> Result<Outcome, Refusal> {
        let mut next = self.world.clone();
        next.active.retain(|name| !names.contains(name));
        self.silence_services(names).await;
        if let Err(refusal) = self.commit(next, Vec::new(), names).await {
            self.tell_services(names).await;
            return Err(refusal);
        }
        for name in names {
            self.warnings.forget(name);
            self.events.emit(
                "network.stopped",
                Some(name.as_str()),
                format!("network {name} stopped"),
            );
        }
        Ok(Outcome {
            changed: names.iter().map(ToString::to_string).collect(),
            notes: Vec::new(),
        })
    }

    /// Stops and starts.
    pub(super) async fn restart(&mut self, name: &NetworkName) -> Result<Outcome, Refusal> {
        self.stop(name).await?;
        self.start(name).await
    }

    /// Forgets a network, its ports and its leases.
    pub(super) async fn delete(&mut self, name: &NetworkName) -> Result<Outcome, Refusal> {
        self.known(name)?;
        let mut next = self.world.clone();
        next.active.remove(name);
        next.networks.remove(name);
        let gone: Vec<_> = self.world.ports_of(name).map(|p| p.key.clone()).collect();
        next.ports.retain(|key, _| !gone.contains(key));
        let mut ops: Vec<Op> = gone.iter().map(|key| forget(Table::Ports, key)).collect();
        ops.push(forget(Table::Networks, name));
        self.silence_services(std::slice::from_ref(name)).await;
        if let Err(refusal) = self.commit(next, ops, std::slice::from_ref(name)).await {
            self.tell_services(std::slice::from_ref(name)).await;
            return Err(refusal);
        }
        self.tools.leases.drop_network(name.clone()).await;
        self.warnings.forget(name);
        self.events.emit(
            "network.deleted",
            Some(name.as_str()),
            format!("network {name} deleted"),
        );
        let notes = match gone.len() {
            0 => Vec::new(),
            n => vec![format!(
                "{n} port{} went with it",
                if n == 1 { "" } else { "s" }
            )],
        };
        Ok(Outcome {
            changed: vec![name.to_string()],
            notes,
        })
    }

    /// Start with the daemon, or not.
    pub(super) async fn autostart(
        &mut self,
        name: &NetworkName,
        on: bool,
    ) -> Result<Outcome, Refusal> {
        self.known(name)?;
        let mut next = self.world.clone();
        let Some(network) = next.networks.get_mut(name) else {
            return Ok(Outcome::default());
        };
        network.autostart = on;
        let ops = vec![keep(network)?];
        self.commit(next, ops, &[]).await?;
        self.events.emit(
            "network.changed",
            Some(name.as_str()),
            format!(
                "network {name}: autostart {}",
                if on { "on" } else { "off" }
            ),
        );
        Ok(Outcome {
            changed: vec![name.to_string()],
            notes: Vec::new(),
        })
    }

    /// Makes the documents of a folder true, as at every start.
    ///
    /// # Errors
    /// When a document is wrong or cannot be made true.
    pub async fn apply_folder(&mut self, folder: &Path) -> Result<Vec<String>, Refusal> {
        let networks = crate::documents::read(folder).map_err(Refusal::Invalid)?;
        let request = ApplyRequest {
            networks,
            dry_run: false,
            only_new: false,
            start: true,
        };
        Ok(self.apply(request).await?.notes)
    }

    /// The default network of a state directory that was never used before.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn first_network(&mut self) -> Result<Vec<String>, Refusal> {
        let Some(mark) = self.first_start()? else {
            return Ok(Vec::new());
        };
        self.look(&Scope::All).await;
        let mut notes = Vec::new();
        if self.world.networks.is_empty() {
            let doc = NetworkDoc {
                name: "default".to_owned(),
                // By a domain the host resolves guests too. `.internal` is for private use (ICANN, July 2024).
                domain: Some(DomainDoc {
                    name: "default.internal".to_owned(),
                    local_only: None,
                }),
                ..NetworkDoc::default()
            };
            let request = ApplyRequest {
                networks: vec![doc],
                dry_run: false,
                only_new: true,
                start: true,
            };
            notes = self.apply(request).await?.notes;
        }
        self.persist(vec![mark]).await.map_err(Refusal::Failed)?;
        Ok(notes)
    }
}

/// What becomes of one network.
struct Change {
    name: NetworkName,
    action: Action,
}

fn settle_one(
    doc: &NetworkDoc,
    world: &World,
    taken: &vnet_core::host::Taken,
) -> Result<Network, Refusal> {
    Ok(doc.settle(&admit::fill(doc, world, taken)?)?)
}

/// Says which of several documents a refusal is about.
fn place(i: usize, doc: &NetworkDoc, request: &ApplyRequest, refusal: Refusal) -> Refusal {
    let Refusal::Invalid(text) = &refusal else {
        return refusal;
    };
    if request.networks.len() == 1 {
        return refusal;
    }
    let lines = text
        .lines()
        .map(|l| format!("network[{i}] ({}): {l}", doc.name));
    Refusal::Invalid(lines.collect::<Vec<_>>().join("\n"))
}

fn keeps_its_identity(old: Option<&Network>, new: &Network) -> Result<(), Refusal> {
    let Some(old) = old else { return Ok(()) };
    if old.uuid != new.uuid {
        return Err(Refusal::Invalid(format!(
            "uuid: network `{}` is {}: a network keeps its uuid; leave it out",
            old.name, old.uuid
        )));
    }
    if old.bridge.name != new.bridge.name || old.owns_bridge() != new.owns_bridge() {
        return Err(Refusal::Invalid(format!(
            "bridge: the guests of `{}` are on {}; a running network keeps its bridge. To move it, delete it and create it anew",
            old.name, old.bridge.name
        )));
    }
    Ok(())
}

/// What was chosen for the person who asked, where it is not the familiar default.
fn choices(doc: &NetworkDoc, network: &Network, action: Action) -> Vec<String> {
    let mut notes = Vec::new();
    if action != Action::Created || doc.name != "default" {
        return notes;
    }
    let familiar = |s: &&Subnet4| s.gateway().octets() == [192, 168, 122, 1];
    let subnet = network.subnets4.first().filter(|s| !familiar(s));
    if let (Some(subnet), true) = (subnet, doc.open_subnets() > 0) {
        notes.push(format!(
            "192.168.122.0/24 is in use on this host: network default is {}",
            subnet.prefix()
        ));
    }
    if doc.bridge.is_none() && network.bridge.name.as_str() != "virbr0" {
        notes.push(format!(
            "virbr0 is in use on this host: network default is on {}",
            network.bridge.name
        ));
    }
    notes
}

/// Every address a port was given must stay a guest address of its network.
fn ports_still_fit(world: &World, name: &NetworkName) -> Result<(), Refusal> {
    let Some(network) = world.networks.get(name) else {
        return Ok(());
    };
    for port in world.ports_of(name) {
        for address in &port.ipv4 {
            let fits = network
                .subnet4_of(*address)
                .is_some_and(|s| s.is_guest_address(*address));
            if !fits {
                return Err(Refusal::Conflict(format!(
                    "port `{}` has the address {address}, which would no longer be a guest's: keep its subnet, or detach the port first",
                    port.key
                )));
            }
        }
    }
    Ok(())
}

/// A network as the store keeps it.
pub(super) fn keep(network: &Network) -> Result<Op, Refusal> {
    let json =
        serde_json::to_vec(&NetworkDoc::of(network)).map_err(|e| Refusal::Failed(e.to_string()))?;
    Ok(put(Table::Networks, &network.name, json))
}

/// What whoever names it is told.
pub(super) fn no_such_network(name: &str) -> Refusal {
    Refusal::NotFound(format!(
        "network `{}` does not exist: `vnet network list` shows those that do",
        name.escape_debug()
    ))
}
