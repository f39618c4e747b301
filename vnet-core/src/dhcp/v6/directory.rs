//! Whose a reservation is, and whose a name: found at once, however many a network has. Built once for a scope.

use std::collections::BTreeMap;

use super::Scope;
use super::server::Guest;
use crate::dhcp::Owner;
use crate::model::Reservation6;
use crate::types::{Mac, PortName};

#[derive(Debug, Clone, Default)]
pub(super) struct Directory {
    subnets: Vec<Hosts>,
    /// Names that are a port's or a reservation's of either family, and of whom: a guest may have one of each.
    names: BTreeMap<PortName, Vec<Owner>>,
}

/// The reservations of one subnet, by their places in the list.
#[derive(Debug, Clone, Default)]
struct Hosts {
    by_mac: BTreeMap<Mac, usize>,
    by_duid: BTreeMap<Vec<u8>, usize>,
}

impl Directory {
    pub(super) fn of(scope: &Scope) -> Self {
        let mut names = BTreeMap::<PortName, Vec<Owner>>::new();
        let mut own = |name: &PortName, owner| names.entry(name.clone()).or_default().push(owner);
        for (mac, member) in &scope.members {
            own(&member.name, Owner::new(Some(*mac), None, None));
        }
        for (name, owner) in &scope.reserved {
            own(name, owner.clone());
        }
        let mut subnets = Vec::new();
        for subnet in &scope.subnets {
            let mut hosts = Hosts::default();
            for (at, host) in subnet.hosts.iter().enumerate() {
                // The first wins, as in the document.
                if let Some(mac) = host.mac {
                    hosts.by_mac.entry(mac).or_insert(at);
                }
                if let Some(duid) = &host.duid {
                    hosts.by_duid.entry(duid.clone()).or_insert(at);
                }
                if let Some(name) = &host.name {
                    own(name, Owner::new(host.mac, None, host.duid.clone()));
                }
            }
            subnets.push(hosts);
        }
        Self { subnets, names }
    }

    /// The reservation of a guest in a subnet.
    pub(super) fn host<'a>(
        &self,
        scope: &'a Scope,
        at: usize,
        guest: &Guest,
    ) -> Option<&'a Reservation6> {
        let hosts = self.subnets.get(at)?;
        let by_mac = guest.mac.and_then(|mac| hosts.by_mac.get(&mac));
        let by_duid = hosts.by_duid.get(&guest.duid);
        let place = by_mac.into_iter().chain(by_duid).min()?;
        scope.subnets.get(at)?.hosts.get(*place)
    }

    /// Whether a name is a port's or a reservation's of somebody with another MAC or DUID.
    pub(super) fn is_anothers(&self, name: &PortName, guest: &Guest) -> bool {
        let is_guests = |owner: &Owner| owner.is(guest.mac, None, Some(&guest.duid));
        let owners = self.names.get(name);
        owners.is_some_and(|owners| !owners.iter().all(is_guests))
    }
}
