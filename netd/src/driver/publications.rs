//! The verbs of published ports.

use vnet_core::model::{Circuit, Protocol, Publish, Reservation4, Target, World};
use vnet_core::types::NetworkName;

use super::networks::keep;
use super::{Driver, Refusal};
use crate::wire::{Outcome, PublishRequest, PublishView};

impl Driver {
    /// Publishes a guest's port.
    pub(super) async fn publish(
        &mut self,
        name: &NetworkName,
        request: &PublishRequest,
    ) -> Result<PublishView, Refusal> {
        let target: Target = request.guest.parse()?;
        let publish = Publish::new(target, &request.ports)?;
        let mut next = self.world.clone();
        self.pin(&mut next, name, &publish.target).await?;
        let network = next.networks.get_mut(name).ok_or_else(|| {
            Refusal::NotFound(format!(
                "network `{name}` does not exist: `vnet network list` shows those that do"
            ))
        })?;
        if let Target::Address(ip) = publish.target
            && !network
                .subnet4_of(ip)
                .is_some_and(|s| s.is_guest_address(ip))
        {
            return Err(Refusal::Invalid(format!(
                "{ip} is not a guest address of network `{name}`"
            )));
        }
        let same = |p: &Publish| (p.protocol, p.host_port) == (publish.protocol, publish.host_port);
        match network.publish.iter().find(|p| same(p)) {
            Some(old) if *old == publish => return Ok(show(&self.world, name, &publish)),
            Some(old) => {
                return Err(Refusal::Exists(format!(
                    "port {}/{} of the host already leads to `{}`: choose another, or `vnet unpublish {name} {}/{}` first",
                    old.host_port, old.protocol, old.target, old.host_port, old.protocol
                )));
            }
            None => network.publish.push(publish.clone()),
        }
        let network = network.clone();
        next.admits_network(&network)?;
        next.publishes_known_guests(name)?;
        self.commit(next, vec![keep(&network)?], std::slice::from_ref(name))
            .await?;
        self.events.emit(
            "port.published",
            Some(name.as_str()),
            format!("{publish} of the host leads to {}", publish.target),
        );
        Ok(show(&self.world, name, &publish))
    }

    /// A guest that is known only by a lease keeps its address from now on: a publication must not lead astray.
    async fn pin(
        &self,
        next: &mut World,
        name: &NetworkName,
        target: &Target,
    ) -> Result<(), Refusal> {
        let Target::Name(guest) = target else {
            return Ok(());
        };
        if next.guest_address(name, target).is_some() {
            return Ok(());
        }
        let leases = self.tools.leases.list().await;
        let Some(lease) = leases
            .iter()
            .find(|l| l.network == *name && l.hostname.as_ref() == Some(guest))
        else {
            return Ok(());
        };
        let (std::net::IpAddr::V4(ip), Some(mac)) = (lease.address, lease.mac) else {
            return Ok(());
        };
        let Some(network) = next.networks.get_mut(name) else {
            return Ok(());
        };
        let subnet = network
            .subnets4
            .iter_mut()
            .find(|s| s.address.contains(&ip));
        if let Some(dhcp) = subnet.and_then(|s| s.dhcp.as_mut()) {
            dhcp.hosts.retain(|h| h.mac != Some(mac));
            dhcp.hosts.push(Reservation4 {
                mac: Some(mac),
                client_id: None,
                circuit: Circuit::default(),
                name: Some(guest.clone()),
                ip: Some(ip),
                lease_time: None,
                options: Vec::new(),
            });
        }
        Ok(())
    }

    /// Takes a publication back.
    pub(super) async fn unpublish(
        &mut self,
        name: &NetworkName,
        port: u16,
        protocol: Protocol,
    ) -> Result<Outcome, Refusal> {
        let mut next = self.world.clone();
        let none = || {
            Refusal::NotFound(format!(
                "network `{name}` publishes nothing on {port}/{protocol}: `vnet publish` lists what is"
            ))
        };
        let network = next.networks.get_mut(name).ok_or_else(none)?;
        let before = network.publish.len();
        network
            .publish
            .retain(|p| (p.protocol, p.host_port) != (protocol, port));
        if network.publish.len() == before {
            return Err(none());
        }
        let ops = vec![keep(network)?];
        self.commit(next, ops, std::slice::from_ref(name)).await?;
        self.events.emit(
            "port.unpublished",
            Some(name.as_str()),
            format!("{port}/{protocol} of the host leads nowhere now"),
        );
        Ok(Outcome {
            changed: vec![format!("{port}/{protocol}")],
            notes: Vec::new(),
        })
    }

    pub(super) fn show_publications(&self, of: Option<&str>) -> Vec<PublishView> {
        let mine = self
            .world
            .networks
            .values()
            .filter(|n| of.is_none_or(|of| n.name.as_str() == of));
        mine.flat_map(|n| n.publish.iter().map(|p| show(&self.world, &n.name, p)))
            .collect()
    }
}

fn show(world: &World, name: &NetworkName, publish: &Publish) -> PublishView {
    PublishView {
        network: name.to_string(),
        guest: publish.target.to_string(),
        address: world.guest_address(name, &publish.target),
        host_port: publish.host_port,
        guest_port: publish.guest_port,
        protocol: publish.protocol.to_string(),
    }
}
