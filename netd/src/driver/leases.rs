//! The verbs of leases, and the files that show them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vnet_core::lease::{Client, Time};
use vnet_core::model::{Circuit, Network, Reservation4, Reservation6, World};
use vnet_core::serve::files::Shown;
use vnet_core::serve::leases::Lease;
use vnet_core::types::{NetworkName, PortName};

use super::networks::keep;
use super::networks::no_such_network;
use super::{Driver, Refusal};
use crate::wire::{LeaseView, Outcome};

impl Driver {
    pub(super) async fn show_leases(&self, of: Option<&str>) -> Result<Vec<LeaseView>, Refusal> {
        if let Some(of) = of {
            // What is no name is no network's either.
            let name = of.parse().map_err(|_| no_such_network(of))?;
            self.known(&name)?;
        }
        let all = self.tools.leases.list().await;
        let mut mine: Vec<LeaseView> = all
            .iter()
            .filter(|l| of.is_none_or(|of| l.network.as_str() == of))
            .map(|lease| self.lease_view(lease))
            .collect();
        mine.sort_by(|a, b| (&a.network, a.address).cmp(&(&b.network, b.address)));
        Ok(mine)
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
        if self.is_reserved(&lease) {
            return Ok(Outcome::default());
        }
        let mut next = self.world.clone();
        let gone = || no_subnet(address);
        let network = next.networks.get_mut(name).ok_or_else(gone)?;
        let there = match address {
            IpAddr::V4(v4) => {
                let host = reservation(&self.world, &lease, v4)?;
                let subnet = network
                    .subnets4
                    .iter_mut()
                    .find(|s| s.address.contains(&v4));
                let hosts = &mut subnet.and_then(|s| s.dhcp.as_mut()).ok_or_else(gone)?.hosts;
                let other = hosts.iter().find(|h| is_for_the_same(h, &host));
                let other = other.map(|h| h.ip.map(IpAddr::V4));
                hosts.push(host);
                other
            }
            IpAddr::V6(v6) => {
                let host = reservation6(&self.world, &lease, v6)?;
                let subnet = network
                    .subnets6
                    .iter_mut()
                    .find(|s| s.address.contains(&v6));
                let hosts = &mut subnet.ok_or_else(gone)?.dhcp.hosts;
                let other = hosts.iter().find(|h| is_for_the_same6(h, &host));
                let other = other.map(|h| Some(h.ip.into()));
                hosts.push(host);
                other
            }
        };
        if let Some(other) = there {
            let ip = other.map_or_else(String::new, |ip| format!(" of {ip}"));
            return Err(Refusal::Conflict(format!(
                "the guest has a reservation{ip} already: change it with `vnet network edit {name}`"
            )));
        }
        let network = network.clone();
        next.admits_network(&network)?;
        let ops = vec![keep(&network)?];
        self.commit(next, ops, std::slice::from_ref(name)).await?;
        let who = lease
            .mac
            .map_or_else(|| "its guest".to_owned(), |m| m.to_string());
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
        let network = self.world.networks.get(&lease.network);
        let mut ports = self.world.ports_of(&lease.network);
        match lease.address {
            IpAddr::V4(address) => {
                let subnets = network.into_iter().flat_map(|n| &n.subnets4);
                let mut hosts = subnets
                    .filter_map(|s| s.dhcp.as_ref())
                    .flat_map(|d| &d.hosts);
                hosts.any(|h| h.ip == Some(address)) || ports.any(|p| p.ipv4.contains(&address))
            }
            IpAddr::V6(address) => {
                let subnets = network.into_iter().flat_map(|n| &n.subnets6);
                let mut hosts = subnets.flat_map(|s| &s.dhcp.hosts);
                hosts.any(|h| h.ip == address) || ports.any(|p| p.ipv6.contains(&address))
            }
        }
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
    Ok(Reservation4 {
        mac: lease.mac,
        client_id: lease.client_id.clone().filter(|_| lease.mac.is_none()),
        circuit: Circuit::default(),
        name: free_name(world, lease),
        ip: Some(ip),
        lease_time: None,
        options: Vec::new(),
    })
}

/// A lease of DHCPv6 as a reservation: for the MAC, where it is known, whatever identifier comes next time.
fn reservation6(world: &World, lease: &Lease, ip: Ipv6Addr) -> Result<Reservation6, Refusal> {
    let duid = match &lease.client {
        Client::Ia { duid, .. } => Some(duid.clone()),
        Client::Mac(_) | Client::Id(_) => None,
    };
    if lease.mac.is_none() && duid.is_none() {
        return Err(Refusal::Conflict(format!(
            "the guest of {ip} showed neither a MAC nor an identifier: there is nothing to know it by"
        )));
    }
    Ok(Reservation6 {
        mac: lease.mac,
        duid: duid.filter(|_| lease.mac.is_none()),
        name: free_name(world, lease),
        ip,
        lease_time: None,
        options: Vec::new(),
    })
}

/// The guest's name, unless it is already somebody's: then it stays theirs.
fn free_name(world: &World, lease: &Lease) -> Option<PortName> {
    let name = lease.hostname.clone()?;
    let network = world.networks.get(&lease.network)?;
    let v4 = network.subnets4.iter().filter_map(|s| s.dhcp.as_ref());
    let v4 = v4.flat_map(|d| &d.hosts);
    let v6 = network.subnets6.iter().flat_map(|s| &s.dhcp.hosts);
    // The same guest may have a reservation in the other family under its name.
    let mut others = v4
        .map(|h| (&h.name, h.mac))
        .chain(v6.map(|h| (&h.name, h.mac)));
    let is_anothers =
        others.any(|(n, mac)| n.as_ref() == Some(&name) && (mac.is_none() || mac != lease.mac));
    let is_ports = world.ports_of(&lease.network).any(|p| p.key.name == name);
    (!is_anothers && !is_ports).then_some(name)
}

fn is_for_the_same6(a: &Reservation6, b: &Reservation6) -> bool {
    (a.mac.is_some() && a.mac == b.mac) || (a.duid.is_some() && a.duid == b.duid)
}

fn is_for_the_same(a: &Reservation4, b: &Reservation4) -> bool {
    (a.mac.is_some() && a.mac == b.mac) || (a.client_id.is_some() && a.client_id == b.client_id)
}

fn no_subnet(address: IpAddr) -> Refusal {
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
