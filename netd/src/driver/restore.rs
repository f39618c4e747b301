//! From the store at start. What the kernel still has is adopted; what it lacks is made; nothing is cut.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vnet_core::config::Fill;
use vnet_core::config::native::NetworkDoc;
use vnet_core::host::own_name;
use vnet_core::model::{Network, Port, World};
use vnet_core::plan::{self, Scope, Subject};
use vnet_core::store::{Op, Table};
use vnet_core::types::NetworkName;

use super::change::put;
use super::warnings::Source;
use super::{Driver, Refusal};

const ACTIVE: &str = "active";
const REMEMBERED: &str = "sysctls";
const INITIALISED: &str = "initialised";

/// Which networks run, and since which boot: after a reboot the kernel has nothing and `autostart` decides.
#[derive(Serialize, Deserialize)]
struct Active {
    boot: String,
    networks: BTreeSet<NetworkName>,
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

impl Driver {
    /// Reads everything, then makes the kernel true to it.
    pub(super) async fn load(&mut self) -> Result<(), Refusal> {
        let read = |table| {
            self.tools
                .store
                .documents(table)
                .map_err(|e| Refusal::Failed(e.to_string()))
        };
        let (networks, ports, meta) = (
            read(Table::Networks)?,
            read(Table::Ports)?,
            read(Table::Meta)?,
        );
        self.forget_leases_of_none(&networks).await;
        let mut world = World {
            host: own_name(),
            ..World::default()
        };
        for (key, json) in networks {
            match network(&json) {
                Ok(network) => drop(world.networks.insert(network.name.clone(), network)),
                Err(why) => self.events.emit(
                    "store.unreadable",
                    Some(&key),
                    format!("network `{key}` cannot be read and is left alone: {why}"),
                ),
            }
        }
        for (key, json) in ports {
            match serde_json::from_slice::<Port>(&json) {
                Ok(port) => drop(world.ports.insert(port.key.clone(), port)),
                Err(why) => self.events.emit(
                    "store.unreadable",
                    None,
                    format!("port `{key}` cannot be read and is left alone: {why}"),
                ),
            }
        }
        world.active = active(&meta, &world);
        if let Some(json) = meta.get(REMEMBERED) {
            self.remembered.0 = serde_json::from_slice(json).unwrap_or_default();
        }
        self.adopt(world).await
    }

    /// A network goes first, its leases after it: a crash between leaves leases that are nobody's.
    async fn forget_leases_of_none(&self, networks: &BTreeMap<String, Vec<u8>>) {
        for stats in self.tools.leases.stats().await {
            if !networks.contains_key(stats.network.as_str()) {
                tracing::info!(network = %stats.network, "its leases are forgotten: there is no such network");
                self.tools.leases.drop_network(stats.network).await;
            }
        }
    }

    async fn adopt(&mut self, mut world: World) -> Result<(), Refusal> {
        self.look(&Scope::All).await;
        let desired = loop {
            let mut desired = plan::desired(&world);
            self.remembered.complete(&mut desired, &self.observed);
            let (plan, conflicts) = plan::settle(&self.observed, &desired);
            if let Some(stuck) = self.give_up(&mut world, &conflicts) {
                tracing::warn!(network = %stuck, "not started: something is in its way");
                continue;
            }
            let done = plan::execute(plan, &mut self.tools.kernel)
                .await
                .map_err(|back| {
                    Refusal::Failed(format!(
                        "the kernel refuses what was running before: {back}"
                    ))
                })?;
            self.remembered.learn(&done);
            break desired;
        };
        self.desired = desired;
        self.look(&Scope::All).await;
        let mut ops: Vec<Op> = self.active_op(&world).into_iter().collect();
        ops.push(self.remembered_op());
        self.persist(ops).await.map_err(Refusal::Failed)?;
        self.world = world;
        let all: Vec<NetworkName> = self.world.active.iter().cloned().collect();
        self.tell_services(&all).await;
        self.serve_vhost(&World::default());
        for name in &all {
            self.events.emit(
                "network.adopted",
                Some(name.as_str()),
                format!("network {name} is up"),
            );
        }
        Ok(())
    }

    /// Takes a network out of the running that the host stands in the way of, and says so.
    fn give_up(&mut self, world: &mut World, conflicts: &[plan::Conflict]) -> Option<NetworkName> {
        for conflict in conflicts {
            let name = match &conflict.subject {
                Subject::Network(uuid) => world
                    .networks
                    .values()
                    .find(|n| n.uuid == *uuid)
                    .map(|n| n.name.clone()),
                Subject::Port(_) | Subject::Uplink(_) | Subject::HostBridge => None,
            };
            self.events.emit(
                "conflict",
                name.as_ref().map(NetworkName::as_str),
                conflict.to_string(),
            );
            if let Some(name) = name.filter(|name| world.active.remove(name)) {
                let text = vec![conflict.to_string()];
                self.warnings.say(&name, Source::Host, text);
                return Some(name);
            }
        }
        None
    }

    /// Whether this state directory was never used before; from now on it was.
    pub(super) fn first_start(&self) -> Result<Option<Op>, Refusal> {
        let meta = self
            .tools
            .store
            .documents(Table::Meta)
            .map_err(|e| Refusal::Failed(e.to_string()))?;
        Ok((!meta.contains_key(INITIALISED))
            .then(|| put(Table::Meta, INITIALISED, b"true".to_vec())))
    }

    /// Which networks run, to be kept, if that changes.
    pub(super) fn active_op(&self, next: &World) -> Option<Op> {
        if next.active == self.world.active {
            return None;
        }
        let active = Active {
            boot: boot_id(),
            networks: next.active.clone(),
        };
        Some(put(Table::Meta, ACTIVE, serde_json::to_vec(&active).ok()?))
    }

    /// What the host's own settings were.
    pub(super) fn remembered_op(&self) -> Op {
        put(
            Table::Meta,
            REMEMBERED,
            serde_json::to_vec(&self.remembered.0).unwrap_or_default(),
        )
    }
}

/// A stored document is complete: nothing of the fill is ever used.
fn network(json: &[u8]) -> Result<Network, String> {
    let doc: NetworkDoc = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let fill = Fill {
        uuid: uuid::Uuid::nil(),
        bridge: "vnet-none"
            .parse()
            .map_err(|e: vnet_core::types::Invalid| e.0)?,
        mac: vnet_core::types::Mac([0x52, 0x54, 0, 0, 0, 0]),
        subnets: Vec::new(),
    };
    doc.settle(&fill).map_err(|problems| problems.to_string())
}

fn active(meta: &BTreeMap<String, Vec<u8>>, world: &World) -> BTreeSet<NetworkName> {
    let known = meta
        .get(ACTIVE)
        .and_then(|json| serde_json::from_slice::<Active>(json).ok());
    match known {
        Some(active) if active.boot == boot_id() => active
            .networks
            .into_iter()
            .filter(|name| world.networks.contains_key(name))
            .collect(),
        Some(_) | None => world
            .networks
            .values()
            .filter(|n| n.autostart)
            .map(|n| n.name.clone())
            .collect(),
    }
}
