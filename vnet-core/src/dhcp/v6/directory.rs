//! Whose a reservation is, and whose a name: found at once, however many a network has. Built once for a scope.

use std::collections::BTreeMap;

use super::Scope;
use super::server::Guest;
use crate::model::Reservation6;
use crate::types::{Mac, PortName};

#[derive(Debug, Clone, Default)]
pub(super) struct Directory {
    subnets: Vec<Hosts>,
    /// Names that are a port's or a reservation's, and of whom: a guest may have one of each.
    names: BTreeMap<PortName, Vec<Owner>>,
}

/// The reservations of one subnet, by their places in the list.
#[derive(Debug, Clone, Default)]
struct Hosts {
    by_mac: BTreeMap<Mac, usize>,
    by_duid: BTreeMap<Vec<u8>, usize>,
}

#[derive(Debug, Clone)]
struct Owner {
    mac: Option<Mac>,
    duid: Option<Vec<u8>>,
}

impl Directory {
    pub(super) fn of(scope: &Scope) -> Self {
        let mut names = BTreeMap::<PortName, Vec<Owner>>::new();
        let mut own = |name: &PortName, mac: Option<Mac>, duid: Option<Vec<u8>>| {
            let owners = names.entry(name.clone()).or_default();
            owners.push(Owner { mac, duid });
        };
        for (mac, member) in &scope.members {
            own(&member.name, Some(*mac), None);
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
                    own(name, host.mac, host.duid.clone());
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
        let is_guests = |owner: &Owner| {
            (owner.mac.is_some() && owner.mac == guest.mac)
                || owner.duid.as_ref() == Some(&guest.duid)
        };
        let owners = self.names.get(name);
        owners.is_some_and(|owners| !owners.iter().all(is_guests))
    }
}
