//! Names that reservations have, and whose they are. A guest has one name in both families, so each family's server, and
//! DNS, must know the other's reservations. And names that are nobody's to choose.

use crate::lease::{Client, LeaseRecord};
use crate::model::{Network, Reservation4, Reservation6, World};
use crate::types::{Mac, PortName};

/// What a reservation knows its guest by. Nothing at all: no guest of the other family can show that it is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    mac: Option<Mac>,
    /// DHCPv4's option 61, raw.
    client_id: Option<Vec<u8>>,
    duid: Option<Vec<u8>>,
}

/// A name that a reservation has, and whose it is.
pub type Reserved = (PortName, Owner);

/// The names that IPv4 reservations of a network have.
pub fn reserved4(network: &Network) -> impl Iterator<Item = Reserved> {
    let dhcp = network.subnets4.iter().filter_map(|s| s.dhcp.as_ref());
    let named = |host: &Reservation4| {
        let owner = Owner::new(host.mac, host.client_id.clone(), None);
        Some((host.name.clone()?, owner))
    };
    dhcp.flat_map(|d| &d.hosts).filter_map(named)
}

/// The names that IPv6 reservations of a network have.
pub fn reserved6(network: &Network) -> impl Iterator<Item = Reserved> {
    let hosts = network.subnets6.iter().flat_map(|s| &s.dhcp.hosts);
    let named = |host: &Reservation6| {
        let owner = Owner::new(host.mac, None, host.duid.clone());
        Some((host.name.clone()?, owner))
    };
    hosts.filter_map(named)
}

/// The names that no guest has by its own word.
pub(super) fn withheld(world: &World, network: &Network) -> impl Iterator<Item = Reserved> {
    let nobody = Owner::new(None, None, None);
    let names = world.withheld(network);
    names.map(move |name| (name, nobody.clone()))
}

impl Owner {
    pub(super) const fn new(
        mac: Option<Mac>,
        client_id: Option<Vec<u8>>,
        duid: Option<Vec<u8>>,
    ) -> Self {
        Self {
            mac,
            client_id,
            duid,
        }
    }

    /// Whether a guest that shows these is the one that is meant. An identifier made of a DUID stands for it.
    pub(super) fn is(
        &self,
        mac: Option<Mac>,
        client_id: Option<&[u8]>,
        duid: Option<&[u8]>,
    ) -> bool {
        let own_duid = self.client_id.as_deref().and_then(duid_in);
        let own_duid = self.duid.as_deref().or(own_duid);
        let duid = duid.or_else(|| client_id.and_then(duid_in));
        (self.mac.is_some() && self.mac == mac)
            || (self.client_id.is_some() && self.client_id.as_deref() == client_id)
            || (own_duid.is_some() && own_duid == duid)
    }

    /// Whether a lease is of the guest that is meant.
    #[must_use]
    pub fn has(&self, lease: &LeaseRecord) -> bool {
        let duid = match &lease.client {
            Client::Ia { duid, .. } => Some(duid.as_slice()),
            Client::Mac(_) | Client::Id(_) => None,
        };
        self.is(lease.mac, lease.client_id.as_deref(), duid)
    }
}

/// RFC 4361 section 6.1: a client identifier of type 255 is an association's number and a DUID.
fn duid_in(client_id: &[u8]) -> Option<&[u8]> {
    let (head, duid) = client_id.split_at_checked(5)?;
    (head[0] == 255 && !duid.is_empty()).then_some(duid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_known_in_the_other_family() {
        let mac = Some(Mac([2; 6]));
        let by_mac = Owner::new(mac, None, None);
        assert!(by_mac.is(mac, None, Some(&[0, 3])));
        assert!(!by_mac.is(Some(Mac([4; 6])), None, None) && !by_mac.is(None, None, None));
        let by_duid = Owner::new(None, None, Some(vec![0, 2, 7]));
        assert!(by_duid.is(mac, Some(&[255, 0, 0, 0, 1, 0, 2, 7]), None));
        assert!(!by_duid.is(mac, Some(&[1, 0, 0, 0, 1, 0, 2, 7]), None));
        let by_id = Owner::new(None, Some(vec![255, 0, 0, 0, 1, 0, 2, 7]), None);
        assert!(by_id.is(mac, None, Some(&[0, 2, 7])) && !by_id.is(mac, None, Some(&[0, 2, 8])));
        assert!(!Owner::new(None, None, None).is(mac, None, None));
    }
}
