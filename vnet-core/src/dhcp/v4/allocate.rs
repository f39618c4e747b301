//! Which address: reservation, previous, asked for, hash, longest lapsed. And what the operator asks for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::identity::Guest;
use super::{Message, Reason, Server, code};
use crate::dhcp::Changes;
use crate::lease::{Client, Slot, Time};
use crate::types::{Mac, PortName};

/// Why a new port cannot have an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// The network serves no DHCP (or is not known here).
    #[error("the network has no DHCP: give the port its address, or the subnet some ranges")]
    NoDhcp,
    /// The address is not one that a guest of the network can have.
    #[error("{0} is not a guest's address in any subnet of the network")]
    Outside(Ipv4Addr),
    /// The address is somebody's.
    #[error("{0} is taken by {1}")]
    Taken(Ipv4Addr, String),
    /// Every address of every range is somebody's.
    #[error("no address is free: widen a range, or delete ports or leases")]
    Exhausted,
}

impl Server {
    /// Lays the pools out afresh: ours, the ports' and the reserved addresses are nobody's to choose.
    pub(super) fn lay_out(&mut self) {
        let mut excluded = BTreeSet::new();
        for subnet in &self.scope.subnets {
            let net = subnet.prefix;
            excluded.extend([subnet.gateway, net.network(), net.broadcast()]);
            excluded.extend(subnet.hosts.iter().filter_map(|h| h.ip));
        }
        for member in self.scope.members.values() {
            excluded.extend(&member.addresses);
        }
        excluded.extend(self.promised.values());
        let excluded = excluded.into_iter().map(IpAddr::V4).collect();
        self.desk.book.lay_out(self.scope.pools(), excluded);
    }

    /// The subnets that a message can be about: the relay's, or all of the link.
    pub(super) fn subnets_for(&self, message: &Message<'_>) -> Vec<usize> {
        // RFC 3527 (a relay names the client's link), RFC 3011 (the client names its subnet).
        let link = message
            .agent(code::agent::LINK)
            .and_then(|link| Some(Ipv4Addr::from(<[u8; 4]>::try_from(link).ok()?)))
            .or_else(|| message.address(code::SUBNET_SELECTION));
        let relay = Some(message.giaddr).filter(|a| *a != Ipv4Addr::UNSPECIFIED);
        match link.or(relay) {
            Some(address) => self.scope.subnet_of(address).into_iter().collect(),
            None => (0..self.scope.subnets.len()).collect(),
        }
    }

    /// The address to offer.
    pub(super) fn choose(
        &self,
        message: &Message<'_>,
        guest: &Guest,
        wanted: Option<Ipv4Addr>,
    ) -> Result<(usize, Ipv4Addr), Reason> {
        let subnets = self.subnets_for(message);
        if subnets.is_empty() {
            return Err(Reason::NoSubnet);
        }
        let free = |address: &Ipv4Addr| {
            self.desk
                .book
                .is_free_for(IpAddr::V4(*address), &guest.client)
        };
        for at in &subnets {
            if let Some(fixed) = self.fixed(*at, guest).filter(free) {
                return Ok((*at, fixed));
            }
        }
        let own = self.desk.book.addresses_of(&guest.client);
        for address in own {
            if let IpAddr::V4(v4) = address
                && let Ok(at) = self.may_have(message, guest, *v4)
            {
                self.is_within_share(guest, *v4)?;
                return Ok((at, *v4));
            }
        }
        if self.is_source_full(guest) {
            return Err(Reason::SourceLimit);
        }
        let asked = wanted.and_then(|address| {
            let at = self.scope.subnet_of(address)?;
            let fresh = subnets.contains(&at) && self.is_blank(at, address);
            fresh.then_some((at, address))
        });
        if let Some(found) = asked {
            return Ok(found);
        }
        let hash = hash_of(&guest.client);
        let chosen = subnets.iter().find_map(|at| self.pick(*at, hash));
        chosen.ok_or(Reason::Exhausted)
    }

    /// Whether the client may have exactly this address; a few words for the NAK if not.
    pub(super) fn may_have(
        &self,
        message: &Message<'_>,
        guest: &Guest,
        address: Ipv4Addr,
    ) -> Result<usize, &'static str> {
        let at = self
            .scope
            .subnet_of(address)
            .filter(|at| self.subnets_for(message).contains(at))
            .ok_or("wrong network")?;
        if !self.scope.subnets[at].is_guest_address(address) {
            return Err("not an address for clients");
        }
        let fixed = self.fixed(at, guest);
        let free = |a: Ipv4Addr| self.desk.book.is_free_for(IpAddr::V4(a), &guest.client);
        match fixed {
            Some(own) if own == address => {}
            // Its own address is another one, and it can have it.
            Some(own) if free(own) => return Err("another address is reserved for you"),
            Some(_) | None if self.is_anothers(address, guest) => return Err("address reserved"),
            Some(_) | None => {}
        }
        if !free(address) {
            return Err("address in use");
        }
        // A lease outlives its range until it ends; what one only had before is given again only out of a range.
        let held = matches!(
            self.desk.book.slot(IpAddr::V4(address)),
            Some(Slot::Held(_))
        );
        let in_pool = self.desk.book.pools()[at].contains(IpAddr::V4(address));
        if fixed == Some(address) || held || in_pool {
            return Ok(at);
        }
        Err("address not available")
    }

    /// Whether the guest's source may have one more, if the address is not its client's already.
    pub(super) fn is_within_share(&self, guest: &Guest, address: Ipv4Addr) -> Result<(), Reason> {
        let is_own = self.is_theirs(address, guest) || self.is_fixed_for(address, guest);
        if !is_own && self.is_source_full(guest) {
            return Err(Reason::SourceLimit);
        }
        Ok(())
    }

    /// The address that belongs to the guest in a subnet: its port's, its reservation's, a promised one.
    fn fixed(&self, subnet: usize, guest: &Guest) -> Option<Ipv4Addr> {
        let inside = |a: &Ipv4Addr| self.scope.subnets[subnet].prefix.contains(a);
        let member = guest.mac.and_then(|mac| self.scope.members.get(&mac));
        let own = member.and_then(|m| m.addresses.iter().copied().find(inside));
        own.or_else(|| {
            let host = self.directory.host(&self.scope, subnet, guest)?;
            host.ip
        })
        .or_else(|| {
            let promised = self.promised.get(&guest.mac?).copied();
            promised.filter(inside)
        })
    }

    pub(super) fn is_fixed_for(&self, address: Ipv4Addr, guest: &Guest) -> bool {
        let at = self.scope.subnet_of(address);
        at.is_some_and(|at| self.fixed(at, guest) == Some(address))
    }

    /// Whether an address is reserved, and not for this guest.
    fn is_anothers(&self, address: Ipv4Addr, guest: &Guest) -> bool {
        self.desk.book.is_excluded(IpAddr::V4(address)) && !self.is_fixed_for(address, guest)
    }

    /// Whether the client holds the address, or was offered it.
    pub(super) fn is_theirs(&self, address: Ipv4Addr, guest: &Guest) -> bool {
        match self.desk.book.slot(IpAddr::V4(address)) {
            Some(Slot::Held(record)) => record.client == guest.client,
            Some(Slot::Offered(offer)) => offer.client == guest.client,
            Some(Slot::Lapsed(_) | Slot::Quarantined(_)) | None => false,
        }
    }

    fn is_blank(&self, subnet: usize, address: Ipv4Addr) -> bool {
        let address = IpAddr::V4(address);
        self.desk.book.pools()[subnet].contains(address)
            && self.desk.book.slot(address).is_none()
            && !self.desk.book.is_excluded(address)
    }

    fn pick(&self, subnet: usize, hash: u64) -> Option<(usize, Ipv4Addr)> {
        match self.desk.book.pools().get(subnet)?.choose(hash)? {
            IpAddr::V4(address) => Some((subnet, address)),
            IpAddr::V6(_) => None,
        }
    }

    /// An address for a port that is about to be: reserved, wanted, previous, or chosen. It is kept for that MAC
    /// until the next [`Server::configure`], whose scope has the port.
    ///
    /// # Errors
    /// Why there is none.
    pub fn reserve(
        &mut self,
        now: Time,
        mac: Mac,
        wanted: Option<Ipv4Addr>,
        name: Option<&PortName>,
    ) -> Result<Ipv4Addr, ReserveError> {
        self.desk.expire(now);
        let address = self.reservable(mac, wanted, name)?;
        self.promised.insert(mac, address);
        self.lay_out();
        Ok(address)
    }

    fn reservable(
        &self,
        mac: Mac,
        wanted: Option<Ipv4Addr>,
        name: Option<&PortName>,
    ) -> Result<Ipv4Addr, ReserveError> {
        if self.scope.subnets.is_empty() {
            // Without DHCP nobody else gives addresses out: what is wanted is nobody's.
            return wanted.ok_or(ReserveError::NoDhcp);
        }
        if let Some(wanted) = wanted {
            return self.grantable(wanted, mac, name).map(|()| wanted);
        }
        let hosts = || self.scope.subnets.iter().flat_map(|s| &s.hosts);
        let by_mac = hosts().filter(|h| h.mac == Some(mac));
        let by_name =
            hosts().filter(|h| h.mac.is_none() && name.is_some() && h.name.as_ref() == name);
        let reserved = by_mac.chain(by_name).filter_map(|h| h.ip);
        let client = Client::Mac(mac);
        let previous = self
            .desk
            .book
            .addresses_of(&client)
            .iter()
            .filter_map(|a| match a {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            })
            .filter(|a| {
                let held = matches!(self.desk.book.slot(IpAddr::V4(*a)), Some(Slot::Held(_)));
                let mut pools = self.desk.book.pools().iter();
                held || pools.any(|pool| pool.contains(IpAddr::V4(*a)))
            });
        let mut known = reserved.chain(previous);
        if let Some(found) = known.find(|a| self.grantable(*a, mac, name).is_ok()) {
            return Ok(found);
        }
        let hash = hash_of(&client);
        let mut subnets = 0..self.scope.subnets.len();
        let chosen = subnets.find_map(|at| self.pick(at, hash));
        chosen
            .map(|(_, address)| address)
            .ok_or(ReserveError::Exhausted)
    }

    /// Whether a port of that MAC can have exactly this address.
    fn grantable(
        &self,
        address: Ipv4Addr,
        mac: Mac,
        name: Option<&PortName>,
    ) -> Result<(), ReserveError> {
        let at = self.scope.subnet_of(address);
        let at = at.filter(|at| self.scope.subnets[*at].is_guest_address(address));
        let at = at.ok_or(ReserveError::Outside(address))?;
        let taken = |by: String| Err(ReserveError::Taken(address, by));
        for (other, member) in self.scope.members.iter().filter(|(m, _)| **m != mac) {
            if member.addresses.contains(&address) {
                return taken(format!("port `{}` ({other})", member.name));
            }
        }
        let promised = |(m, a): (&Mac, &Ipv4Addr)| *m != mac && *a == address;
        if self.promised.iter().any(promised) {
            return taken("a port that is being attached".to_owned());
        }
        let host = self.scope.subnets[at]
            .hosts
            .iter()
            .find(|h| h.ip == Some(address));
        if let Some(host) = host
            && host.mac != Some(mac)
            && (host.mac.is_some() || name.is_none() || host.name.as_ref() != name)
        {
            return taken("a reservation".to_owned());
        }
        match self.desk.book.slot(IpAddr::V4(address)) {
            Some(Slot::Held(lease)) if lease.mac != Some(mac) => {
                let who = lease.mac.map_or_else(String::new, |m| format!(" of {m}"));
                taken(format!("the lease{who}"))
            }
            Some(Slot::Quarantined(_)) => taken("a station that answers for it".to_owned()),
            Some(Slot::Held(_) | Slot::Offered(_) | Slot::Lapsed(_)) | None => Ok(()),
        }
    }

    /// Forgets everything about a MAC, because its port is gone.
    pub fn forget(&mut self, now: Time, mac: Mac) -> Changes {
        self.promised.remove(&mac);
        self.desk.forget(now, mac)
    }
}

/// Where in the pool a client's address is looked for first: the same place each time (FNV-1a, then a finish that
/// spreads neighbours apart).
fn hash_of(client: &Client) -> u64 {
    let bytes: &[u8] = match client {
        Client::Mac(mac) => &mac.0,
        Client::Id(id) => id,
        Client::Ia { duid, .. } => duid,
    };
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
