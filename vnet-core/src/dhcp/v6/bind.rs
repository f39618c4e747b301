//! Which address a client's association gets, and what becomes of it.

use std::net::{IpAddr, Ipv6Addr};

use super::server::{Guest, Server};
use crate::dhcp::Changes;
use crate::lease::{Change, Client, LeaseKind, LeaseRecord, LeaseState, Slot, Time};
use crate::model::{RaMode, Reservation6};
use crate::types::{LeaseTime, Mac, PortName};

/// How long nobody gets an address that was found in use.
const QUARANTINE_SECONDS: u64 = 600;

impl Server {
    /// The address for an association: its own by reservation or port, the one it has, the one it wants, a free one.
    /// `given` went to other associations of the same message.
    pub(super) fn choose(
        &self,
        guest: &Guest,
        client: &Client,
        wanted: &[Ipv6Addr],
        given: &[Ipv6Addr],
    ) -> Option<(usize, Ipv6Addr)> {
        let serving = || {
            let on_link = guest.link.iter().copied();
            on_link.filter(|at| self.scope.subnets[*at].has_addresses())
        };
        for at in serving() {
            let mut own = self.fixed(at, guest);
            let own = own.find(|a| !given.contains(a) && self.is_free_for_owner(*a, guest, client));
            if let Some(own) = own {
                return Some((at, own));
            }
        }
        let known = self.desk.book.addresses_of(client).iter();
        let known = known.filter_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        let mut known = known
            .chain(wanted.iter().copied())
            .filter(|address| !given.contains(address) && self.may_have(*address, guest, client));
        // Whoever has all that it may keeps what it has, and gets nothing more by wishing.
        let full = self.is_source_full(guest);
        if let Some(address) = known.find(|address| !full || self.is_had(*address)) {
            return Some((self.scope.subnet_of(address)?, address));
        }
        if full || self.is_held(guest) {
            return None;
        }
        let hash = hash_of(client, guest.mac);
        serving().find_map(|at| match self.desk.book.pools().get(at)?.choose(hash)? {
            IpAddr::V6(address) => Some((at, address)),
            IpAddr::V4(_) => None,
        })
    }

    /// Whether somebody has the address already, so that it was counted.
    fn is_had(&self, address: Ipv6Addr) -> bool {
        match self.desk.book.slot(IpAddr::V6(address)) {
            Some(Slot::Held(_) | Slot::Offered(_)) => true,
            Some(Slot::Lapsed(_) | Slot::Quarantined(_)) | None => false,
        }
    }

    /// Whether an address from the ranges is one that this client may have (again).
    fn may_have(&self, address: Ipv6Addr, guest: &Guest, client: &Client) -> bool {
        let Some(at) = self.scope.subnet_of(address) else {
            return false;
        };
        let subnet = &self.scope.subnets[at];
        let pool = self.desk.book.pools().get(at);
        guest.link.contains(&at)
            && subnet.has_addresses()
            && subnet.is_guest_address(address)
            && !self.is_held(guest)
            && !self.desk.book.is_excluded(IpAddr::V6(address))
            && pool.is_some_and(|pool| pool.contains(IpAddr::V6(address)))
            && self.is_free(address, guest, client)
    }

    /// Addresses that are this client's and nobody else's: a reservation's, then its port's.
    fn fixed(&self, at: usize, guest: &Guest) -> impl Iterator<Item = Ipv6Addr> {
        let subnet = &self.scope.subnets[at];
        let member = guest.mac.and_then(|mac| self.scope.members.get(&mac));
        let own = member.into_iter().flat_map(|m| &m.addresses);
        // Where guests make addresses too, the one that follows from the MAC is theirs to make.
        let derived = guest.mac.map(|mac| derived(subnet.prefix.network(), mac));
        let own = own.filter(move |a| subnet.mode == RaMode::Stateful || Some(**a) != derived);
        let own = own.filter(|a| subnet.prefix.contains(*a)).copied();
        self.host(at, guest).map(|h| h.ip).into_iter().chain(own)
    }

    /// Whether the guard lets the guest use only its own addresses.
    fn is_held(&self, guest: &Guest) -> bool {
        let member = guest.mac.and_then(|mac| self.scope.members.get(&mac));
        member.is_some_and(|m| m.guard) && !self.scope.roaming
    }

    /// The reservation of a client in a subnet.
    pub(super) fn host(&self, at: usize, guest: &Guest) -> Option<&Reservation6> {
        self.directory.host(&self.scope, at, guest)
    }

    /// Whether the owner of an address can have it: nobody else is offered it, so an offer is the owner's.
    fn is_free_for_owner(&self, address: Ipv6Addr, guest: &Guest, client: &Client) -> bool {
        let offered = matches!(
            self.desk.book.slot(IpAddr::V6(address)),
            Some(Slot::Offered(_))
        );
        offered || self.is_free(address, guest, client)
    }

    /// Whether nobody but this client has a right to an address now. A client is its MAC, where that is known: boot
    /// ROM, installer and system have different identifiers.
    fn is_free(&self, address: Ipv6Addr, guest: &Guest, client: &Client) -> bool {
        match self.desk.book.slot(IpAddr::V6(address)) {
            None | Some(Slot::Lapsed(_)) => true,
            Some(Slot::Held(record)) => is_same(record, guest, client),
            Some(Slot::Offered(offer)) => {
                offer.client == *client || (offer.via.is_some() && offer.via == guest.mac)
            }
            Some(Slot::Quarantined(_)) => false,
        }
    }

    /// Whether the address is held by this very association.
    pub(super) fn holds(&self, address: Ipv6Addr, guest: &Guest, client: &Client) -> bool {
        match self.desk.book.slot(IpAddr::V6(address)) {
            Some(Slot::Held(record)) => record.client == *client && is_same(record, guest, client),
            Some(Slot::Offered(_) | Slot::Lapsed(_) | Slot::Quarantined(_)) | None => false,
        }
    }

    /// Writes a lease in.
    pub(super) fn grant(
        &mut self,
        now: Time,
        guest: &Guest,
        client: Client,
        (at, address): (usize, Ipv6Addr),
        changes: &mut Changes,
    ) {
        let before = match self.desk.book.slot(IpAddr::V6(address)) {
            Some(Slot::Held(record)) if record.client == client => Some(record.clone()),
            Some(Slot::Held(_) | Slot::Offered(_) | Slot::Lapsed(_) | Slot::Quarantined(_))
            | None => None,
        };
        self.give_up_others(now, guest, &client, address, changes);
        let seconds = self.lease_time(at, guest).secs();
        let mut record = self.record(now, guest, client, address);
        record.hostname = self.name_for(guest, &[at]);
        record.granted = before.as_ref().map_or(now, |r| r.granted);
        record.expires = match seconds {
            u32::MAX => Time::NEVER,
            seconds => now.plus_secs(u64::from(seconds)),
        };
        let same_name = before.as_ref().map(|r| &r.hostname) == Some(&record.hostname);
        if let Some(before) = before.filter(|_| !same_name) {
            changes.tell(LeaseKind::Released, before);
        }
        let kind = match same_name {
            true => LeaseKind::Renewed,
            false => LeaseKind::Granted,
        };
        self.desk.book.grant(record.clone());
        changes.records.push(Change::Put(record.clone()));
        changes.tell(kind, record);
    }

    /// An association has one address: what else it held is free again.
    fn give_up_others(
        &mut self,
        now: Time,
        guest: &Guest,
        client: &Client,
        keep: Ipv6Addr,
        changes: &mut Changes,
    ) {
        let others = self.desk.book.addresses_of(client).to_vec();
        let others = others.into_iter().filter(|a| *a != IpAddr::V6(keep));
        let is_own = |r: &LeaseRecord| r.client == *client && is_same(r, guest, client);
        self.desk.give_up(now, others, is_own, changes);
    }

    /// A client found its address in use: nobody gets it for a while, unless it is its own, for which there is no
    /// other.
    pub(super) fn decline(
        &mut self,
        now: Time,
        guest: &Guest,
        client: Client,
        address: Ipv6Addr,
        changes: &mut Changes,
    ) {
        let at = self.scope.subnet_of(address);
        if at.is_some_and(|at| self.fixed(at, guest).any(|own| own == address)) {
            let released = self.desk.release(now, address.into());
            return changes.extend(released);
        }
        let mut record = self.record(now, guest, client, address);
        record.state = LeaseState::Declined;
        record.expires = now.plus_secs(QUARANTINE_SECONDS);
        // Whose name must go with the address is what the old record says.
        if let Some(Slot::Held(old)) = self.desk.book.slot(IpAddr::V6(address)) {
            record.hostname.clone_from(&old.hostname);
        }
        self.desk.quarantine(record, changes);
    }

    fn record(&self, now: Time, guest: &Guest, client: Client, address: Ipv6Addr) -> LeaseRecord {
        LeaseRecord {
            network: self.scope.network.clone(),
            address: IpAddr::V6(address),
            state: LeaseState::Held,
            client,
            mac: guest.mac,
            client_id: None,
            via: guest.via.filter(|via| Some(*via) != guest.mac),
            hostname: None,
            granted: now,
            expires: now,
        }
    }

    /// How long a client's lease in a subnet lasts.
    pub(super) fn lease_time(&self, at: usize, guest: &Guest) -> LeaseTime {
        let own = self.host(at, guest).and_then(|host| host.lease_time);
        own.unwrap_or(self.scope.subnets[at].lease_time)
    }

    /// A port's name, a reservation's in these subnets, or what the client says, unless that is somebody else's.
    pub(super) fn name_for(&self, guest: &Guest, subnets: &[usize]) -> Option<PortName> {
        if let Some(member) = guest.mac.and_then(|mac| self.scope.members.get(&mac)) {
            return Some(member.name.clone());
        }
        let mut hosts = subnets.iter().filter_map(|at| self.host(*at, guest));
        if let Some(name) = hosts.find_map(|host| host.name.clone()) {
            return Some(name);
        }
        let (_, said) = guest.said.clone()?;
        let holder = self.desk.book.holder_of(&said);
        let is_ours = |held: IpAddr| {
            let record = self.desk.book.slot(held).and_then(Slot::record);
            record.is_some_and(|r| match (&r.client, r.mac, guest.mac) {
                (_, Some(a), Some(b)) => a == b,
                (Client::Ia { duid, .. }, ..) => *duid == guest.duid,
                (Client::Mac(_) | Client::Id(_), ..) => false,
            })
        };
        let taken = self.directory.is_anothers(&said, guest);
        (!taken && holder.is_none_or(is_ours)).then_some(said)
    }
}

/// Machines cloned from one image have one identifier: their leases are told apart by their MACs.
fn is_same(record: &LeaseRecord, guest: &Guest, client: &Client) -> bool {
    match (record.mac, guest.mac) {
        (Some(a), Some(b)) => a == b,
        (None, _) | (_, None) => record.client == *client,
    }
}

/// The address that a guest makes from its MAC.
fn derived(prefix: Ipv6Addr, mac: Mac) -> Ipv6Addr {
    let identifier = mac.link_local().to_bits() & u128::from(u64::MAX);
    (prefix.to_bits() | identifier).into()
}

/// FNV-1a: the same client begins its search at the same place, in every process and version.
fn hash_of(client: &Client, mac: Option<Mac>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match client {
        Client::Mac(mac) => add(&mac.0),
        Client::Id(id) => add(id),
        Client::Ia { duid, iaid } => {
            add(duid);
            add(&iaid.to_be_bytes());
        }
    }
    add(mac.as_ref().map_or(&[][..], |mac| &mac.0));
    hash
}
