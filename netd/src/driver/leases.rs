//! The verbs of leases, and the files that show them.

use std::net::{IpAddr, Ipv4Addr};

use vnet_core::lease::Time;
use vnet_core::model::{Circuit, Network, Reservation4, World};
use vnet_core::serve::files::Shown;
use vnet_core::serve::leases::Lease;
use vnet_core::types::{NetworkName, PortName};

use super::networks::keep;
use super::{Driver, Refusal};
use crate::wire::{LeaseView, Outcome};

impl Driver {
    pub(super) async fn show_leases(&self, of: Option<&str>) -> Vec<LeaseView> {
        let all = self.tools.leases.list().await;
        let mut mine: Vec<LeaseView> = all
            .iter()
            .filter(|l| of.is_none_or(|of| l.network.as_str() == of))
            .map(|lease| self.lease_view(lease))
            .collect();
        mine.sort_by(|a, b| (&a.network, a.address).cmp(&(&b.network, b.address)));
        mine
    }

    pub(super) async fn show_lease(
        &self,
        network: &NetworkName,
        address: IpAddr,
    ) -> Result<LeaseView, Refusal> {
        let lease = self.held(network, address).await?;
        Ok(self.lease_view(&lease))
    }

    /// Ends a lease: its address is free at once.
    pub(super) async fn release(
        &mut self,
        network: &NetworkName,
        address: IpAddr,
    ) -> Result<Outcome, Refusal> {
        self.held(network, address).await?;
        self.tools.leases.release(network.clone(), address).await;
        Ok(done(address))
    }

    /// Makes a lease a reservation of the network's document: the guest has this address from now on.
    pub(super) async fn reserve(
        &mut self,
        name: &NetworkName,
        address: IpAddr,
    ) -> Result<Outcome, Refusal> {
        let lease = self.held(name, address).await?;
        let IpAddr::V4(v4) = address else {
            return Err(Refusal::Invalid(format!(
                "{address} is IPv6: write the reservation with `vnet network edit {name}`"
            )));
        };
        if self.is_reserved(&lease) {
            return Ok(Outcome::default());
        }
        let host = reservation(&self.world, &lease, v4)?;
        let mut next = self.world.clone();
        let network = next.networks.get_mut(name).ok_or_else(|| no_subnet(v4))?;
        let subnets = &mut network.subnets4;
        let subnet = subnets.iter_mut().find(|s| s.address.contains(&v4));
        let dhcp = subnet.and_then(|s| s.dhcp.as_mut());
        let hosts = &mut dhcp.ok_or_else(|| no_subnet(v4))?.hosts;
        if let Some(other) = hosts.iter().find(|h| is_for_the_same(h, &host)) {
            let ip = other.ip.map_or_else(String::new, |ip| format!(" of {ip}"));
            return Err(Refusal::Conflict(format!(
                "the guest has a reservation{ip} already: change it with `vnet network edit {name}`"
            )));
        }
        hosts.push(host);
        let network = network.clone();
        next.admits_network(&network)?;
        let ops = vec![keep(&network)?];
        self.commit(next, ops, std::slice::from_ref(name)).await?;
        let who = lease.mac.map_or_else(String::new, |m| m.to_string());
        self.events.emit(
            "lease.reserved",
            Some(name.as_str()),
            format!("{address} is kept for {who} from now on"),
        );
        Ok(done(address))
    }

    async fn held(&self, network: &NetworkName, address: IpAddr) -> Result<Lease, Refusal> {
        let held = self.tools.leases.list().await;
        let mut held = held.into_iter();
        let found = held.find(|l| l.network == *network && l.address == address);
        found.ok_or_else(|| {
            Refusal::NotFound(format!(
                "nobody has a lease for {address} on `{network}`: `vnet lease list` shows who has"
            ))
        })
    }

    fn is_reserved(&self, lease: &Lease) -> bool {
        let IpAddr::V4(address) = lease.address else {
            return false;
        };
        let network = self.world.networks.get(&lease.network);
        let mut hosts = network
            .into_iter()
            .flat_map(|n| &n.subnets4)
            .filter_map(|s| s.dhcp.as_ref())
            .flat_map(|d| &d.hosts);
        let mut ports = self.world.ports_of(&lease.network);
        hosts.any(|h| h.ip == Some(address)) || ports.any(|p| p.ipv4.contains(&address))
    }

    fn lease_view(&self, lease: &Lease) -> LeaseView {
        LeaseView {
            network: lease.network.to_string(),
            address: lease.address,
            mac: lease.mac.map(|m| m.to_string()),
            hostname: lease.hostname.as_ref().map(ToString::to_string),
            client_id: lease.client_id.as_deref().map(hex),
            granted: lease.granted.secs(),
            expires: (lease.expires != Time::NEVER).then(|| lease.expires.secs()),
            reserved: self.is_reserved(lease),
        }
    }

    /// What the files of these networks follow from.
    pub(super) fn tell_files(&self, networks: &[NetworkName]) {
        for name in networks {
            let network = self.world.networks.get(name);
            let shown = network
                .filter(|n| n.owns_bridge())
                .map(|n| shown(n, &self.world));
            self.tools.files.tell(name.clone(), shown);
        }
    }
}

fn shown(network: &Network, world: &World) -> Shown {
    let guests = world
        .ports_of(&network.name)
        .map(|port| (port.key.name.clone(), vec![port.mac]));
    Shown {
        bridge: network.bridge.name.clone(),
        guests: guests.collect(),
    }
}

fn reservation(world: &World, lease: &Lease, ip: Ipv4Addr) -> Result<Reservation4, Refusal> {
    if lease.mac.is_none() && lease.client_id.is_none() {
        return Err(Refusal::Conflict(format!(
            "the guest of {ip} showed neither a MAC nor an identifier: there is nothing to know it by"
        )));
    }
    // A name that is already somebody's stays theirs.
    let is_free = |name: &PortName| {
        let network = world.networks.get(&lease.network);
        let subnets = network.into_iter().flat_map(|n| &n.subnets4);
        let mut hosts = subnets
            .filter_map(|s| s.dhcp.as_ref())
            .flat_map(|d| &d.hosts);
        let mut ports = world.ports_of(&lease.network);
        !hosts.any(|h| h.name.as_ref() == Some(name)) && !ports.any(|p| p.key.name == *name)
    };
    Ok(Reservation4 {
        mac: lease.mac,
        client_id: lease.client_id.clone().filter(|_| lease.mac.is_none()),
        circuit: Circuit::default(),
        name: lease.hostname.clone().filter(is_free),
        ip: Some(ip),
        lease_time: None,
        options: Vec::new(),
    })
}

fn is_for_the_same(a: &Reservation4, b: &Reservation4) -> bool {
    (a.mac.is_some() && a.mac == b.mac) || (a.client_id.is_some() && a.client_id == b.client_id)
}

fn no_subnet(address: Ipv4Addr) -> Refusal {
    Refusal::Conflict(format!("{address} is in no subnet with DHCP any more"))
}

fn done(address: IpAddr) -> Outcome {
    Outcome {
        changed: vec![address.to_string()],
        notes: Vec::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    bytes.join(":")
}
