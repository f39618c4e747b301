//! Names of the addresses that guests make for themselves: nobody tells us of one, but the kernel knows whom it heard.
//!
//! An address counts for a port if it was heard from the port's MAC on its network's bridge, and lies in a subnet where
//! guests make their own. It is forgotten when nobody answers for it any more, with the port, or when the port has made
//! too many since. Guests that speak with one another are silent to the host, so it asks for those that it has not heard
//! for a while, and for those that the kernel keeps in mind no longer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use vnet_core::dns::{Change, NameChange};
use vnet_core::host::Neighbour;
use vnet_core::host::neighbour_watch::{Heard, NeighbourWatch};
use vnet_core::model::{Home, Network, PortKey, RaMode};
use vnet_core::types::{IfName, NetworkName};

use super::Driver;

/// Addresses that one port has names for: privacy addresses come and go daily.
const MOST: usize = 8;

/// How often those are asked for that were not heard since the last time.
pub(super) const ROUND: Duration = Duration::from_secs(300);

/// What was heard of each port, oldest first.
pub(super) type Known = BTreeMap<PortKey, Vec<Sighting>>;

/// An address that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sighting {
    address: Ipv6Addr,
    /// Whether it answered since the last round.
    lately: bool,
}

/// What the kernel hears, or nothing for ever if it does not tell.
pub(super) struct Ear(Option<NeighbourWatch>);

impl Ear {
    /// Listens from now on.
    pub(super) fn open(events: &super::Events) -> Self {
        Self(NeighbourWatch::new().map_or_else(
            |error| {
                let text = format!("addresses that guests make are not named: {error}");
                events.emit("drift.blind", None, text);
                None
            },
            Some,
        ))
    }

    pub(super) async fn next(&mut self) -> Heard {
        match &mut self.0 {
            Some(watch) => watch.next().await,
            None => std::future::pending().await,
        }
    }
}

impl Driver {
    /// Names an address that was heard, or forgets one that is silent.
    pub(super) async fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Here(dev, neighbour) => self.is_here(&dev, &neighbour),
            Heard::Gone(dev, address) => self.is_gone(&dev, address),
            Heard::Forgotten(dev, address) => {
                if let Some((_, address)) = self.is_known(&dev, address) {
                    self.ask_for(&dev, vec![address]).await;
                }
            }
            Heard::Resync => self.listen_again().await,
        }
    }

    /// Looks at the whole table of every network where guests make addresses.
    pub(super) async fn listen_again(&mut self) {
        let bridges: Vec<IfName> = self
            .world
            .running()
            .filter(|n| n.subnets6.iter().any(|s| is_autonomous(s.dhcp.mode)))
            .map(|n| n.bridge.name.clone())
            .collect();
        for bridge in bridges {
            // A bridge that is just going has no neighbours.
            let table = self.tools.kernel.neighbours(&bridge).await;
            for neighbour in table.unwrap_or_default() {
                self.is_here(&bridge, &neighbour);
            }
        }
    }

    /// Asks for those that were not heard for a while: who answers is heard, who does not is gone.
    pub(super) async fn ask_around(&mut self) {
        let mut silent = BTreeMap::<IfName, Vec<Ipv6Addr>>::new();
        for (key, address) in next_round(&mut self.heard) {
            let network = key
                .home
                .network()
                .filter(|n| self.world.active.contains(*n));
            if let Some(network) = network.and_then(|n| self.world.networks.get(n)) {
                let bridge = network.bridge.name.clone();
                silent.entry(bridge).or_default().push(address);
            }
        }
        for (bridge, addresses) in silent {
            self.ask_for(&bridge, addresses).await;
        }
    }

    async fn ask_for(&self, dev: &IfName, addresses: Vec<Ipv6Addr>) {
        // A bridge that is just going has nobody to ask.
        if let Err(error) = self.tools.kernel.ask_for(dev, addresses).await {
            tracing::debug!(%dev, %error, "guests' addresses are not asked for");
        }
    }

    fn is_here(&mut self, dev: &IfName, neighbour: &Neighbour) {
        let Some((key, address)) = self.whose(dev, neighbour) else {
            return;
        };
        let lately = neighbour.reachable;
        let known = self.heard.entry(key.clone()).or_default();
        if let Some(sighting) = known.iter_mut().find(|s| s.address == address) {
            sighting.lately |= lately;
            return;
        }
        known.push(Sighting { address, lately });
        let oldest = (known.len() > MOST).then(|| known.remove(0).address);
        self.say(&key, address, Change::Heard);
        if let Some(oldest) = oldest {
            self.say(&key, oldest, Change::Silent);
        }
    }

    /// Whose MAC it had is not told any more.
    fn is_gone(&mut self, dev: &IfName, address: IpAddr) {
        let Some((key, address)) = self.is_known(dev, address) else {
            return;
        };
        if let Some(known) = self.heard.get_mut(&key) {
            known.retain(|s| s.address != address);
        }
        self.say(&key, address, Change::Silent);
    }

    /// The port that an address was heard of.
    fn is_known(&self, dev: &IfName, address: IpAddr) -> Option<(PortKey, Ipv6Addr)> {
        let IpAddr::V6(address) = address else {
            return None;
        };
        let network = self.world.running().find(|n| n.bridge.name == *dev)?;
        let of_it = |key: &PortKey| key.home.network() == Some(&network.name);
        let mut known = self.heard.iter().filter(|(key, _)| of_it(key));
        let (key, _) = known.find(|(_, known)| known.iter().any(|s| s.address == address))?;
        Some((key.clone(), address))
    }

    /// The port that an address is of.
    fn whose(&self, dev: &IfName, neighbour: &Neighbour) -> Option<(PortKey, Ipv6Addr)> {
        let IpAddr::V6(address) = neighbour.ip else {
            return None;
        };
        let network = self.world.running().find(|n| n.bridge.name == *dev)?;
        let mut ports = self.world.ports_of(&network.name);
        let port = ports.find(|p| p.mac == neighbour.mac)?;
        makes_its_own(network, address).then(|| (port.key.clone(), address))
    }

    fn say(&self, key: &PortKey, address: Ipv6Addr, change: Change) {
        let Home::Network(network) = &key.home else {
            return;
        };
        let news = NameChange {
            name: key.name.clone(),
            address: IpAddr::V6(address),
            change,
        };
        self.tools.dns.names(network.clone(), vec![news]);
    }

    /// After a change of these networks: forgets the addresses of ports and prefixes that are gone, and says the others
    /// again to a DNS that may be new.
    pub(super) fn recall(&mut self, networks: &[NetworkName]) {
        let concerns = |key: &PortKey| key.home.network().is_some_and(|n| networks.contains(n));
        let keys: Vec<PortKey> = self.heard.keys().filter(|k| concerns(k)).cloned().collect();
        for key in keys {
            let all = self.heard.remove(&key).unwrap_or_default();
            let network = key.home.network().and_then(|n| self.world.networks.get(n));
            let lives = self.world.ports.contains_key(&key);
            let stays =
                |s: &Sighting| lives && network.is_some_and(|n| makes_its_own(n, s.address));
            let (kept, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(stays);
            for sighting in gone {
                self.say(&key, sighting.address, Change::Silent);
            }
            for sighting in &kept {
                self.say(&key, sighting.address, Change::Heard);
            }
            if !kept.is_empty() {
                self.heard.insert(key, kept);
            }
        }
    }
}

/// Those that were not heard since the last round; the next one begins.
fn next_round(known: &mut Known) -> Vec<(PortKey, Ipv6Addr)> {
    let mut silent = Vec::new();
    for (key, sightings) in known {
        for sighting in sightings {
            if !std::mem::take(&mut sighting.lately) {
                silent.push((key.clone(), sighting.address));
            }
        }
    }
    silent
}

fn makes_its_own(network: &Network, address: Ipv6Addr) -> bool {
    let mut subnets = network.subnets6.iter();
    subnets.any(|s| {
        is_autonomous(s.dhcp.mode) && s.address.contains(&address) && s.gateway() != address
    })
}

const fn is_autonomous(mode: RaMode) -> bool {
    match mode {
        RaMode::Slaac | RaMode::Stateless | RaMode::Both => true,
        RaMode::Stateful => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_did_not_answer_for_a_round_is_asked_for() {
        let key: PortKey = "six/web".parse().unwrap();
        let of = |last: u16, lately| Sighting {
            address: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last),
            lately,
        };
        let mut known = Known::from([(key.clone(), vec![of(1, true), of(2, false)])]);
        let silent = |address| (key.clone(), address);
        assert_eq!(next_round(&mut known), [silent(of(2, false).address)]);
        // Since then one answered, and the other did not.
        known.insert(key.clone(), vec![of(1, false), of(2, true)]);
        assert_eq!(next_round(&mut known), [silent(of(1, false).address)]);
        assert_eq!(next_round(&mut known).len(), 2);
    }
}
