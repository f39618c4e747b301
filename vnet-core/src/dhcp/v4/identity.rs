//! Who sent a message: as whom its lease is kept, under which name, and which reservation is its own.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Message, Reason, Scope, Sender, code};
use crate::dhcp::Owner;
use crate::lease::Client;
use crate::model::{Circuit, Reservation4};
use crate::types::{Mac, PortName};

/// Reservations by what they know their client by, for each subnet. Built once for a scope.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory {
    by_mac: BTreeMap<(usize, Mac), usize>,
    by_id: BTreeMap<(usize, Vec<u8>), usize>,
    by_circuit: BTreeMap<(usize, Circuit), usize>,
    by_name: BTreeMap<(usize, PortName), usize>,
    /// Names that are a port's or a reservation's of either family: no other guest gets them by asking.
    names: BTreeMap<PortName, Vec<Owner>>,
}

/// Everything that follows from who the client is.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    /// As whom the lease is kept.
    pub(super) client: Client,
    pub(super) mac: Option<Mac>,
    pub(super) client_id: Option<Vec<u8>>,
    /// The Ethernet source, which its addresses count against; nobody's, if a relay speaks that the document names.
    pub(super) source: Option<Mac>,
    /// Where a relay heard it.
    pub(super) circuit: Circuit,
    /// The name that it says it has.
    pub(super) said: Option<PortName>,
    /// A port of ours.
    pub(super) is_member: bool,
}

impl Directory {
    pub(super) fn of(scope: &Scope) -> Self {
        let mut directory = Self::default();
        let mut names = BTreeMap::<PortName, Vec<Owner>>::new();
        let mut own = |name: &PortName, owner| names.entry(name.clone()).or_default().push(owner);
        for (at, subnet) in scope.subnets.iter().enumerate() {
            for (index, host) in subnet.hosts.iter().enumerate() {
                // The first wins, as in the document; admission refuses two of one kind anyway.
                if let Some(mac) = host.mac {
                    directory.by_mac.entry((at, mac)).or_insert(index);
                }
                if let Some(id) = &host.client_id {
                    directory.by_id.entry((at, id.clone())).or_insert(index);
                }
                if !host.circuit.is_anywhere() {
                    let key = (at, host.circuit.clone());
                    directory.by_circuit.entry(key).or_insert(index);
                }
                let Some(name) = &host.name else { continue };
                if host.is_by_name() {
                    directory.by_name.entry((at, name.clone())).or_insert(index);
                } else {
                    let client_id = host.client_id.clone();
                    own(name, Owner::new(host.mac, client_id, None));
                }
            }
        }
        for (mac, member) in &scope.members {
            own(&member.name, Owner::new(Some(*mac), None, None));
        }
        for (name, owner) in &scope.reserved {
            own(name, owner.clone());
        }
        directory.names = names;
        directory
    }

    /// The reservation of a guest in a subnet.
    pub(super) fn host<'a>(
        &self,
        scope: &'a Scope,
        subnet: usize,
        guest: &Guest,
    ) -> Option<&'a Reservation4> {
        let by_id = || {
            let id = guest.client_id.as_ref()?;
            self.by_id.get(&(subnet, id.clone()))
        };
        let by_mac = || self.by_mac.get(&(subnet, guest.mac?));
        let by_name = || self.by_name.get(&(subnet, guest.said.clone()?));
        let by_circuit = || self.of_circuit(subnet, &guest.circuit);
        let index = by_mac()
            .or_else(by_id)
            .or_else(by_circuit)
            .or_else(by_name)?;
        scope.subnets.get(subnet)?.hosts.get(*index)
    }

    /// The reservation for a circuit: for both its names, or for one of them.
    fn of_circuit(&self, subnet: usize, at: &Circuit) -> Option<&usize> {
        if at.is_anywhere() || self.by_circuit.is_empty() {
            return None;
        }
        let only = |circuit_id: &Option<Vec<u8>>, remote_id: &Option<Vec<u8>>| Circuit {
            circuit_id: circuit_id.clone(),
            remote_id: remote_id.clone(),
        };
        let ways = [
            at.clone(),
            only(&at.circuit_id, &None),
            only(&None, &at.remote_id),
        ];
        ways.into_iter()
            .find_map(|way| self.by_circuit.get(&(subnet, way)))
    }

    /// The circuit that an address is kept for.
    pub(super) fn circuit_of(&self, scope: &Scope, address: Ipv4Addr) -> Circuit {
        let is_kept = |(at, index): (usize, usize)| {
            let host = scope.subnets.get(at).and_then(|s| s.hosts.get(index));
            host.is_some_and(|h| h.ip == Some(address))
        };
        let mut all = self.by_circuit.iter();
        let found = all.find(|((at, _), index)| is_kept((*at, **index)));
        found.map_or_else(Circuit::default, |((_, circuit), _)| circuit.clone())
    }

    /// Whether a name belongs to somebody else than this guest.
    pub(super) fn is_anothers(&self, name: &PortName, guest: &Guest) -> bool {
        let is_guests = |owner: &Owner| owner.is(guest.mac, guest.client_id.as_deref(), None);
        let owners = self.names.get(name);
        owners.is_some_and(|owners| !owners.iter().all(is_guests))
    }

    /// Whether the reservation is this guest's in any subnet: its MAC stands for it then.
    pub(super) fn knows_mac(&self, scope: &Scope, mac: Mac) -> bool {
        scope.members.contains_key(&mac)
            || (0..scope.subnets.len()).any(|at| self.by_mac.contains_key(&(at, mac)))
    }
}

impl Guest {
    /// Who sent this message, or why it is not to be believed.
    pub(super) fn of(
        scope: &Scope,
        directory: &Directory,
        from: &Sender,
        message: &Message<'_>,
    ) -> Result<Self, Reason> {
        let mac = message.mac();
        let relayed = message.giaddr != Ipv4Addr::UNSPECIFIED;
        check_source(scope, from, mac, relayed)?;
        let client_id = message
            .option(code::CLIENT_ID)
            .filter(|id| (2..=255).contains(&id.len()))
            .map(<[u8]>::to_vec);
        let client = match (&client_id, mac) {
            // A port is one guest whatever runs in it: boot ROM, installer and system send different identifiers.
            (_, Some(mac)) if directory.knows_mac(scope, mac) => Client::Mac(mac),
            // RFC 2132 section 9.14: this identifier is the hardware address, with its type before it.
            (Some(id), Some(mac)) if id.split_first() == Some((&1, mac.0.as_slice())) => {
                Client::Mac(mac)
            }
            // RFC 2131 section 4.2: the identifier, if there is one, else the hardware address.
            (Some(id), _) => Client::Id(id.clone()),
            (None, Some(mac)) => Client::Mac(mac),
            (None, None) => Client::Id(hardware_id(message).ok_or(Reason::NoIdentity)?),
        };
        Ok(Self {
            client,
            mac,
            client_id,
            source: from.mac.filter(|_| !scope.is_relay(message.giaddr)),
            circuit: Circuit {
                circuit_id: message.agent(code::agent::CIRCUIT).map(<[u8]>::to_vec),
                remote_id: message.agent(code::agent::REMOTE).map(<[u8]>::to_vec),
            },
            said: said_name(message),
            is_member: mac.is_some_and(|mac| scope.members.contains_key(&mac)),
        })
    }
}

/// A guarded port's frames prove their source: it speaks for itself only. And nobody else speaks for a port.
fn check_source(
    scope: &Scope,
    from: &Sender,
    mac: Option<Mac>,
    relayed: bool,
) -> Result<(), Reason> {
    let Some(source) = from.mac else {
        return Ok(());
    };
    let guarded = scope.members.get(&source).is_some_and(|m| m.guard);
    if guarded && relayed {
        return Err(Reason::ForgedRelay);
    }
    let for_guarded = mac
        .and_then(|mac| scope.members.get(&mac))
        .is_some_and(|m| m.guard);
    if !relayed && mac != Some(source) && (guarded || for_guarded) {
        return Err(Reason::ForgedSource);
    }
    Ok(())
}

/// Another kind of hardware: its type and address, as RFC 2132 section 9.14 spells such an identifier.
fn hardware_id(message: &Message<'_>) -> Option<Vec<u8>> {
    let address = message.chaddr.get(..usize::from(message.hlen))?;
    // An Ethernet address that is nobody's own (a group's, none) is no identity.
    if message.htype == 1 || address.iter().all(|b| *b == 0) {
        return None;
    }
    let mut id = vec![message.htype];
    id.extend_from_slice(address);
    Some(id)
}

/// The first label of the name that the client sends in option 81 or 12, if it can be a host's.
fn said_name(message: &Message<'_>) -> Option<PortName> {
    let fqdn = message.option(code::FQDN).and_then(fqdn_name);
    let plain = || {
        let text = std::str::from_utf8(message.option(code::HOST_NAME)?).ok()?;
        first_label(text.trim_end_matches('\0'))
    };
    fqdn.or_else(plain)
}

/// RFC 4702 section 2: flags, two old result codes, and the name in DNS encoding (E) or the old ASCII.
fn fqdn_name(data: &[u8]) -> Option<PortName> {
    let (head, name) = data.split_at_checked(3)?;
    if head[0] & super::reply::FQDN_E == 0 {
        return first_label(std::str::from_utf8(name).ok()?);
    }
    let (len, rest) = name.split_first()?;
    let label = rest.get(..usize::from(*len))?;
    std::str::from_utf8(label).ok()?.parse().ok()
}

fn first_label(text: &str) -> Option<PortName> {
    text.split('.').next()?.parse().ok()
}
