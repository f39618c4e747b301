//! The subnets of a network: their gateways, what DHCP hands out in them, and to whom.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::Ipv4Addr;

use super::subnet6::{dhcp6, gateway6};
use super::{Fill, boot};
use crate::config::check::Check;
use crate::config::native::{DhcpDoc, NetworkDoc, OptionDoc, RangeDoc, ReservationDoc};
use crate::model::{Circuit, Dhcp4, DhcpOption, DhcpRange4, Reservation4, Subnet4, Subnet6};
use crate::types::{Invalid, IpNet, Ipv4Net, LeaseTime, Mac, PortName, Range4};

pub(super) fn subnets(
    doc: &NetworkDoc,
    fill: &Fill,
    check: &mut Check,
) -> (Vec<Subnet4>, Vec<Subnet6>) {
    let (mut v4, mut v6) = (Vec::<Subnet4>::new(), Vec::<Subnet6>::new());
    let mut chosen = fill.subnets.iter();
    let mut given = Given::default();
    if doc.implies_subnet() {
        match chosen.next() {
            Some(address) => v4.push(Subnet4 {
                address: *address,
                dhcp: Some(whole_subnet(*address)),
            }),
            None => check.wrong(
                "subnet",
                "no free subnet is left: give one, like address = \"10.50.0.1/24\"",
            ),
        }
    }
    for (i, subnet) in doc.subnet.iter().enumerate() {
        let at = format!("subnet[{i}]");
        let here = format!("{at}.address");
        if subnet.address == "auto" {
            match chosen.next() {
                Some(address) => {
                    let dhcp = match &subnet.dhcp {
                        Some(dhcp) => dhcp4(&at, *address, dhcp, &mut given, check),
                        None => Some(whole_subnet(*address)),
                    };
                    v4.push(Subnet4 {
                        address: *address,
                        dhcp,
                    });
                }
                None => check.wrong(here, "no free subnet is left: give one, like 10.50.0.1/24"),
            }
            continue;
        }
        let form = "a gateway address with a prefix, like 10.50.0.1/24";
        let doc = subnet.dhcp.as_ref();
        match check.form::<IpNet>(&here, &subnet.address, form) {
            Some(IpNet::V4(address)) => v4.extend(gateway4(&here, address, check).then(|| {
                let dhcp = doc.and_then(|d| dhcp4(&at, address, d, &mut given, check));
                Subnet4 { address, dhcp }
            })),
            Some(IpNet::V6(address)) => v6.extend(gateway6(&here, address, check).then(|| {
                let dhcp = dhcp6(&at, address, doc, check);
                Subnet6 { address, dhcp }
            })),
            None => {}
        }
    }
    disjoint(&v4, &v6, check);
    (v4, v6)
}

fn disjoint(v4: &[Subnet4], v6: &[Subnet6], check: &mut Check) {
    let nets: Vec<IpNet> = v4
        .iter()
        .map(|s| IpNet::V4(s.prefix()))
        .chain(v6.iter().map(|s| IpNet::V6(s.prefix())))
        .collect();
    for (i, a) in nets.iter().enumerate() {
        for b in &nets[i + 1..] {
            if a.contains(b) || b.contains(a) {
                check.wrong(
                    "subnet",
                    format!("{a} and {b} overlap: give each subnet its own addresses"),
                );
            }
        }
    }
}

/// What reservations of the whole document already gave away.
#[derive(Default)]
struct Given {
    ips: BTreeSet<Ipv4Addr>,
    circuits: BTreeSet<Circuit>,
    names: BTreeSet<PortName>,
    macs: BTreeSet<Mac>,
    ids: BTreeSet<Vec<u8>>,
}

impl Given {
    fn once(&mut self, at: &str, host: &Reservation4, check: &mut Check) {
        if host.ip.is_some_and(|ip| !self.ips.insert(ip)) {
            check.wrong(
                format!("{at}.ip"),
                "another reservation already has this address",
            );
        }
        if host
            .name
            .clone()
            .is_some_and(|name| !self.names.insert(name))
        {
            check.wrong(
                format!("{at}.name"),
                "another reservation already has this name",
            );
        }
        if !host.circuit.is_anywhere() && !self.circuits.insert(host.circuit.clone()) {
            check.wrong(at, "another reservation already has this circuit");
        }
        if host.mac.is_some_and(|mac| !self.macs.insert(mac)) {
            check.wrong(
                format!("{at}.mac"),
                "another reservation already has this MAC",
            );
        }
        if host
            .client_id
            .clone()
            .is_some_and(|id| !self.ids.insert(id))
        {
            check.wrong(
                format!("{at}.client_id"),
                "another reservation already has this client identifier",
            );
        }
    }
}

fn gateway4(at: &str, address: Ipv4Net, check: &mut Check) -> bool {
    let len = address.prefix_len();
    let first = address.addr();
    let rule = if !(8..=30).contains(&len) {
        Some(format!(
            "a prefix of /{len} does not fit a network of guests: use /8 to /30"
        ))
    } else if first == address.network() {
        let next = Ipv4Addr::from(u32::from(first) + 1);
        Some(format!(
            "{first} is the network's own address: write the gateway's, like {next}/{len}"
        ))
    } else if first == address.broadcast() {
        Some(format!(
            "{first} is the broadcast address of {}: choose another for the gateway",
            address.trunc()
        ))
    } else if first.is_loopback()
        || first.is_multicast()
        || first.is_unspecified()
        || first.octets()[0] >= 240
    {
        Some(format!(
            "{first} can be no host's address: use a private range like 10.50.0.1/24"
        ))
    } else {
        None
    };
    let fits = rule.is_none();
    if let Some(rule) = rule {
        check.wrong(at, rule);
    }
    fits
}

/// DHCP that hands out every guest address.
fn whole_subnet(address: Ipv4Net) -> Dhcp4 {
    Dhcp4 {
        ranges: guest_ranges(address),
        hosts: Vec::new(),
        lease_time: LeaseTime::HOUR,
        options: Vec::new(),
        always: Vec::new(),
        boot: None,
        relays: Vec::new(),
    }
}

fn guest_ranges(address: Ipv4Net) -> Vec<DhcpRange4> {
    let (first, last) = (
        u32::from(address.network()) + 1,
        u32::from(address.broadcast()) - 1,
    );
    let gateway = u32::from(address.addr());
    [(first, gateway - 1), (gateway + 1, last)]
        .into_iter()
        .filter_map(|(a, b)| Range4::new(a.into(), b.into()).ok())
        .map(DhcpRange4::from)
        .collect()
}

fn dhcp4(
    at: &str,
    address: Ipv4Net,
    doc: &DhcpDoc,
    given: &mut Given,
    check: &mut Check,
) -> Option<Dhcp4> {
    for (field, is) in [
        ("mode", doc.mode.is_some()),
        ("routes", !doc.routes.is_empty()),
        ("pref64", doc.pref64.is_some()),
    ] {
        if is {
            check.wrong(
                format!("{at}.dhcp.{field}"),
                format!("only IPv6 subnets have a `{field}`: leave it out"),
            );
        }
    }
    let subnet = Subnet4 {
        address,
        dhcp: None,
    };
    let mut hosts = Vec::new();
    for (i, host) in doc.host.iter().enumerate() {
        let here = format!("{at}.dhcp.host[{i}]");
        if let Some(host) = reservation4(&here, &subnet, host, check) {
            given.once(&here, &host, check);
            hosts.push(host);
        }
    }
    Some(Dhcp4 {
        ranges: ranges4(at, &subnet, doc, check),
        hosts,
        lease_time: lease_time(at, doc, check),
        options: options(&format!("{at}.dhcp.options"), &doc.options, check),
        always: always(at, doc, check),
        boot: doc
            .boot
            .as_ref()
            .map(|doc| boot::boot(&format!("{at}.dhcp.boot"), doc, check)),
        relays: relays(at, doc, check),
    })
}

fn always(at: &str, doc: &DhcpDoc, check: &mut Check) -> Vec<u8> {
    let keys = doc.always.iter().enumerate();
    let code = |(i, key): (usize, &String)| {
        check.take(format!("{at}.dhcp.always[{i}]"), DhcpOption::code_of(key))
    };
    keys.filter_map(code).collect()
}

fn relays(at: &str, doc: &DhcpDoc, check: &mut Check) -> Vec<Ipv4Addr> {
    let form = "the relay's own IPv4 address, like 10.50.0.2";
    let nobodys = |a: &Ipv4Addr| a.is_unspecified() || a.is_broadcast() || a.is_multicast();
    relays_of(at, doc, form, nobodys, check)
}

/// The relays of a subnet of either family, but for addresses that no relay can have.
pub(super) fn relays_of<A: std::str::FromStr>(
    at: &str,
    doc: &DhcpDoc,
    form: &str,
    nobodys: impl Fn(&A) -> bool,
    check: &mut Check,
) -> Vec<A> {
    let mut relays = Vec::new();
    for (i, text) in doc.relays.iter().enumerate() {
        let at = format!("{at}.dhcp.relays[{i}]");
        match check.form::<A>(&at, text, form) {
            Some(relay) if nobodys(&relay) => check.wrong(
                at,
                format!("`{text}` can be no relay's address: give {form}"),
            ),
            relay => relays.extend(relay),
        }
    }
    relays
}

fn ranges4(at: &str, subnet: &Subnet4, doc: &DhcpDoc, check: &mut Check) -> Vec<DhcpRange4> {
    let Some(docs) = &doc.ranges else {
        return guest_ranges(subnet.address);
    };
    let mut ranges = Vec::<DhcpRange4>::new();
    for (i, doc) in docs.iter().enumerate() {
        let here = format!("{at}.dhcp.ranges[{i}]");
        let Some(range) = check.parse::<Range4>(&here, doc.text()) else {
            continue;
        };
        if !subnet.address.contains(&range.start()) || !subnet.address.contains(&range.end()) {
            check.wrong(
                here,
                format!("{range} is not inside the subnet {}", subnet.prefix()),
            );
        } else if let Some(edge) = edge(subnet.prefix(), &range) {
            check.wrong(here, edge);
        } else if let Some(other) = ranges.iter().find(|r| r.range.overlaps(&range)) {
            check.wrong(
                here,
                format!(
                    "{range} overlaps {}: give each range its own addresses",
                    other.range
                ),
            );
        } else {
            ranges.push(match doc {
                RangeDoc::Plain(_) => range.into(),
                RangeDoc::Special(own) => DhcpRange4 {
                    range,
                    lease_time: check
                        .maybe(format!("{here}.lease_time"), own.lease_time.as_deref()),
                    options: options(&format!("{here}.options"), &own.options, check),
                },
            });
        }
    }
    ranges
}

/// The two addresses of a subnet that no guest can have.
fn edge(net: Ipv4Net, range: &Range4) -> Option<String> {
    let (network, broadcast) = (net.network(), net.broadcast());
    if range.start() == network {
        let first = Ipv4Addr::from(u32::from(network) + 1);
        return Some(format!(
            "{network} is the network's own address: begin the range at {first}"
        ));
    }
    let last = Ipv4Addr::from(u32::from(broadcast) - 1);
    (range.end() == broadcast)
        .then(|| format!("{broadcast} is the broadcast address of {net}: end the range at {last}"))
}

pub(super) fn lease_time(at: &str, doc: &DhcpDoc, check: &mut Check) -> LeaseTime {
    check
        .maybe(format!("{at}.dhcp.lease_time"), doc.lease_time.as_deref())
        .unwrap_or(LeaseTime::HOUR)
}

fn options(
    at: &str,
    doc: &std::collections::BTreeMap<String, OptionDoc>,
    check: &mut Check,
) -> Vec<DhcpOption> {
    let mut options = Vec::<DhcpOption>::new();
    for (key, value) in doc {
        let values = spelled(value);
        let here = format!("{at}.{key}");
        if let Some(option) = check.take(&here, DhcpOption::parse(key, &values)) {
            if options.iter().any(|o| o.code == option.code) {
                check.wrong(
                    here,
                    format!(
                        "option {} is given twice, by name and by number",
                        option.code
                    ),
                );
            }
            options.push(option);
        }
    }
    options
}

pub(super) fn spelled(value: &OptionDoc) -> Vec<String> {
    match value {
        OptionDoc::Number(n) => vec![n.to_string()],
        OptionDoc::One(text) => vec![text.clone()],
        OptionDoc::Many(texts) => texts.clone(),
    }
}

pub(super) fn hex(at: impl Display, text: Option<&str>, check: &mut Check) -> Option<Vec<u8>> {
    let bad = "is not bytes in hexadecimal, like 01:52:54:00:00:00:01";
    let text = text?;
    let bytes = crate::model::unhex(text).filter(|b| (2..=128).contains(&b.len()));
    check.take(
        at,
        bytes.ok_or_else(|| Invalid::new(format!("`{}` {bad}", text.escape_debug()))),
    )
}

/// What a relay says in option 82: a text, or bytes.
fn agent_bytes(at: String, text: Option<&str>, check: &mut Check) -> Option<Vec<u8>> {
    let text = text?;
    let bytes = match text.strip_prefix("0x") {
        Some(digits) => crate::model::unhex(digits),
        None => Some(text.as_bytes().to_vec()),
    };
    let bytes = bytes.filter(|b| (1..=255).contains(&b.len()));
    let bad = "is neither a text nor bytes like 0x0004: give what the relay sends";
    check.take(
        at,
        bytes.ok_or_else(|| Invalid::new(format!("`{}` {bad}", text.escape_debug()))),
    )
}

pub(super) fn unicast_mac(at: impl Display, text: Option<&str>, check: &mut Check) -> Option<Mac> {
    let mac = check.maybe::<Mac>(&at, text)?;
    if mac.is_group() || mac.is_zero() {
        check.wrong(at, format!("{mac} is no single guest's address"));
        return None;
    }
    Some(mac)
}

fn reservation4(
    at: &str,
    subnet: &Subnet4,
    doc: &ReservationDoc,
    check: &mut Check,
) -> Option<Reservation4> {
    if doc.duid.is_some() {
        check.wrong(
            format!("{at}.duid"),
            "a DUID is IPv6's: use `mac` or `client_id`",
        );
    }
    let mac = unicast_mac(format!("{at}.mac"), doc.mac.as_deref(), check);
    let client_id = hex(format!("{at}.client_id"), doc.client_id.as_deref(), check);
    let name = check.maybe(format!("{at}.name"), doc.name.as_deref());
    let ip = doc
        .ip
        .as_deref()
        .and_then(|text| check.form::<Ipv4Addr>(format!("{at}.ip"), text, "an IPv4 address"));
    if let Some(ip) = ip.filter(|ip| !subnet.is_guest_address(*ip)) {
        check.wrong(
            format!("{at}.ip"),
            format!(
                "{ip} is not a guest address of the subnet {}",
                subnet.prefix()
            ),
        );
    }
    let circuit = Circuit {
        circuit_id: agent_bytes(format!("{at}.circuit_id"), doc.circuit_id.as_deref(), check),
        remote_id: agent_bytes(format!("{at}.remote_id"), doc.remote_id.as_deref(), check),
    };
    let by_circuit = doc.circuit_id.is_some() || doc.remote_id.is_some();
    if by_circuit && (doc.mac.is_some() || doc.client_id.is_some()) {
        check.wrong(
            at,
            "is for a guest or for a relay's circuit, not for both: leave one out",
        );
    }
    if doc.mac.is_none() && doc.client_id.is_none() && doc.name.is_none() && !by_circuit {
        check.wrong(
            at,
            "says for nobody: give a `mac`, a `client_id`, a `circuit_id` or a `name`",
        );
    }
    if doc.ip.is_none() && doc.name.is_none() {
        check.wrong(at, "gives nothing: add an `ip` or a `name`");
    }
    Some(Reservation4 {
        mac,
        client_id,
        circuit,
        name,
        ip,
        lease_time: check.maybe(format!("{at}.lease_time"), doc.lease_time.as_deref()),
        options: options(&format!("{at}.options"), &doc.options, check),
    })
}
