//! The subnets of a network: their gateways, what DHCP hands out in them, and to whom.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Fill, boot};
use crate::config::check::Check;
use crate::config::native::{DhcpDoc, NetworkDoc, OptionDoc, ReservationDoc};
use crate::model::{
    Dhcp4, Dhcp6, DhcpOption, DhcpOption6, RaMode, Reservation4, Reservation6, Subnet4, Subnet6,
};
use crate::types::{Invalid, IpNet, Ipv4Net, Ipv6Net, LeaseTime, Mac, PortName, Range4};

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
    names: BTreeSet<PortName>,
    macs: BTreeSet<Mac>,
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
        if host.mac.is_some_and(|mac| !self.macs.insert(mac)) {
            check.wrong(
                format!("{at}.mac"),
                "another reservation already has this MAC",
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

fn gateway6(at: &str, address: Ipv6Net, check: &mut Check) -> bool {
    let (len, first) = (address.prefix_len(), address.addr());
    let rule = if !(16..=126).contains(&len) {
        Some(format!(
            "a prefix of /{len} does not fit a network of guests: use /16 to /126, best /64"
        ))
    } else if first == address.network() {
        Some("the address with all host bits clear is every router's: write the gateway's, like fd00::1/64".to_owned())
    } else if first.is_loopback() || first.is_multicast() || first.is_unicast_link_local() {
        Some(format!(
            "{first} can be no subnet's address: use a unique local one like fd00:50::1/64"
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
        boot: None,
    }
}

fn guest_ranges(address: Ipv4Net) -> Vec<Range4> {
    let (first, last) = (
        u32::from(address.network()) + 1,
        u32::from(address.broadcast()) - 1,
    );
    let gateway = u32::from(address.addr());
    [(first, gateway - 1), (gateway + 1, last)]
        .into_iter()
        .filter_map(|(a, b)| Range4::new(a.into(), b.into()).ok())
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
    let mut ranges = Vec::<Range4>::new();
    for (i, text) in doc.ranges.iter().flatten().enumerate() {
        let here = format!("{at}.dhcp.ranges[{i}]");
        let Some(range) = check.parse::<Range4>(&here, text) else {
            continue;
        };
        if !subnet.address.contains(&range.start()) || !subnet.address.contains(&range.end()) {
            check.wrong(
                here,
                format!("{range} is not inside the subnet {}", subnet.prefix()),
            );
        } else if let Some(edge) = edge(subnet.prefix(), &range) {
            check.wrong(here, edge);
        } else if let Some(other) = ranges.iter().find(|r| r.overlaps(&range)) {
            check.wrong(
                here,
                format!("{range} overlaps {other}: give each range its own addresses"),
            );
        } else {
            ranges.push(range);
        }
    }
    if doc.ranges.is_none() {
        ranges = guest_ranges(address);
    }
    let mut hosts = Vec::new();
    for (i, host) in doc.host.iter().enumerate() {
        let here = format!("{at}.dhcp.host[{i}]");
        if let Some(host) = reservation4(&here, &subnet, host, check) {
            given.once(&here, &host, check);
            hosts.push(host);
        }
    }
    Some(Dhcp4 {
        ranges,
        hosts,
        lease_time: lease_time(at, doc, check),
        options: options(&format!("{at}.dhcp.options"), &doc.options, check),
        boot: doc
            .boot
            .as_ref()
            .map(|doc| boot::boot(&format!("{at}.dhcp.boot"), doc, check)),
    })
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

fn lease_time(at: &str, doc: &DhcpDoc, check: &mut Check) -> LeaseTime {
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

fn options6(
    at: &str,
    doc: &std::collections::BTreeMap<String, OptionDoc>,
    check: &mut Check,
) -> Vec<DhcpOption6> {
    let mut options = Vec::<DhcpOption6>::new();
    for (key, value) in doc {
        let here = format!("{at}.{key}");
        if let Some(option) = check.take(&here, DhcpOption6::parse(key, &spelled(value))) {
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

fn spelled(value: &OptionDoc) -> Vec<String> {
    match value {
        OptionDoc::Number(n) => vec![n.to_string()],
        OptionDoc::One(text) => vec![text.clone()],
        OptionDoc::Many(texts) => texts.clone(),
    }
}

fn hex(at: impl Display, text: Option<&str>, check: &mut Check) -> Option<Vec<u8>> {
    let bad = "is not bytes in hexadecimal, like 01:52:54:00:00:00:01";
    let text = text?;
    let bytes = crate::model::unhex(text).filter(|b| (2..=128).contains(&b.len()));
    check.take(
        at,
        bytes.ok_or_else(|| Invalid::new(format!("`{}` {bad}", text.escape_debug()))),
    )
}

fn unicast_mac(at: impl Display, text: Option<&str>, check: &mut Check) -> Option<Mac> {
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
    if doc.mac.is_none() && doc.client_id.is_none() && doc.name.is_none() {
        check.wrong(
            at,
            "says for nobody: give a `mac`, a `client_id` or a `name`",
        );
    }
    if doc.ip.is_none() && doc.name.is_none() {
        check.wrong(at, "gives nothing: add an `ip` or a `name`");
    }
    Some(Reservation4 {
        mac,
        client_id,
        name,
        ip,
        lease_time: check.maybe(format!("{at}.lease_time"), doc.lease_time.as_deref()),
        options: options(&format!("{at}.options"), &doc.options, check),
    })
}

fn dhcp6(at: &str, address: Ipv6Net, doc: Option<&DhcpDoc>, check: &mut Check) -> Dhcp6 {
    let empty = DhcpDoc::default();
    let doc = doc.unwrap_or(&empty);
    let mode = match &doc.mode {
        Some(text) => check.word(format!("{at}.dhcp.mode"), text, &RaMode::ALL, RaMode::word),
        None if address.prefix_len() == 64 => Some(RaMode::Slaac),
        None => Some(RaMode::Stateful),
    };
    let mode = mode.unwrap_or(RaMode::Slaac);
    if doc.boot.is_some() {
        check.wrong(
            format!("{at}.dhcp.boot"),
            "is IPv4's: leave it out here, or give `boot-file` as an option",
        );
    }
    if mode != RaMode::Stateful && address.prefix_len() != 64 {
        check.wrong(format!("{at}.dhcp.mode"), format!("guests can make their own addresses only in a /64: use a /64, or mode `stateful` with /{}", address.prefix_len()));
    }
    if mode == RaMode::Slaac && !doc.options.is_empty() {
        check.wrong(
            format!("{at}.dhcp.options"),
            "nobody asks for options with mode `slaac`: use `stateless`",
        );
    }
    let mut ranges = Vec::new();
    for (i, text) in doc.ranges.iter().flatten().enumerate() {
        ranges.extend(range6(
            &format!("{at}.dhcp.ranges[{i}]"),
            address,
            text,
            check,
        ));
    }
    if doc.ranges.is_none() && matches!(mode, RaMode::Stateful | RaMode::Both) {
        ranges.push(guest_range6(address));
    }
    let mut hosts = Vec::new();
    for (i, host) in doc.host.iter().enumerate() {
        hosts.extend(reservation6(
            &format!("{at}.dhcp.host[{i}]"),
            address,
            host,
            check,
        ));
    }
    Dhcp6 {
        mode,
        ranges,
        hosts,
        lease_time: lease_time(at, doc, check),
        options: options6(&format!("{at}.dhcp.options"), &doc.options, check),
        routes: routes6(at, doc, check),
        pref64: pref64(at, doc, check),
    }
}

fn routes6(at: &str, doc: &DhcpDoc, check: &mut Check) -> Vec<Ipv6Net> {
    let form = "a prefix, like fd00:9::/48";
    let mut routes = Vec::new();
    for (i, text) in doc.routes.iter().enumerate() {
        let net = check.form::<Ipv6Net>(format!("{at}.dhcp.routes[{i}]"), text, form);
        routes.extend(net.map(|n| n.trunc()));
    }
    if routes.len() > 32 {
        check.wrong(
            format!("{at}.dhcp.routes"),
            "more than 32 routes do not fit an advertisement",
        );
    }
    routes
}

fn pref64(at: &str, doc: &DhcpDoc, check: &mut Check) -> Option<Ipv6Net> {
    let at = format!("{at}.dhcp.pref64");
    let form = "a translator's prefix, like 64:ff9b::/96";
    let net = check.form::<Ipv6Net>(&at, doc.pref64.as_deref()?, form)?;
    if ![32, 40, 48, 56, 64, 96].contains(&net.prefix_len()) {
        check.wrong(
            at,
            "a translator's prefix is a /96, /64, /56, /48, /40 or /32 (RFC 6052)",
        );
    }
    Some(net.trunc())
}

/// A /112's worth above the gateway's network (`::1000` to `::ffff`), or what a smaller subnet has.
fn guest_range6(address: Ipv6Net) -> (Ipv6Addr, Ipv6Addr) {
    let base = u128::from(address.network());
    let last = u128::from(address.broadcast());
    let (first, end) = if last - base > 0xffff {
        (base + 0x1000, base + 0xffff)
    } else {
        (base + 1, last)
    };
    (first.into(), end.into())
}

fn range6(
    at: &str,
    address: Ipv6Net,
    text: &str,
    check: &mut Check,
) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let (a, b) = text.split_once('-').unwrap_or((text, text));
    let form = "a range of addresses, like fd00::1000-fd00::1fff";
    let (a, b) = (
        check.form::<Ipv6Addr>(at, a, form)?,
        check.form::<Ipv6Addr>(at, b, form)?,
    );
    if a > b {
        check.wrong(
            at,
            format!("the range {a}-{b} ends before it starts: swap the two addresses"),
        );
    } else if !address.contains(&a) || !address.contains(&b) {
        check.wrong(
            at,
            format!("{a}-{b} is not inside the subnet {}", address.trunc()),
        );
    } else {
        return Some((a, b));
    }
    None
}

fn reservation6(
    at: &str,
    address: Ipv6Net,
    doc: &ReservationDoc,
    check: &mut Check,
) -> Option<Reservation6> {
    for (field, is) in [
        ("client_id", doc.client_id.is_some()),
        ("options", !doc.options.is_empty()),
        ("lease_time", doc.lease_time.is_some()),
    ] {
        if is {
            check.wrong(format!("{at}.{field}"), "is IPv4's: leave it out here");
        }
    }
    let mac = unicast_mac(format!("{at}.mac"), doc.mac.as_deref(), check);
    let duid = hex(format!("{at}.duid"), doc.duid.as_deref(), check);
    let name = check.maybe(format!("{at}.name"), doc.name.as_deref());
    if doc.mac.is_none() && doc.duid.is_none() {
        check.wrong(at, "says for nobody: give a `mac` or a `duid`");
    }
    let Some(text) = &doc.ip else {
        check.wrong(at, "gives nothing: add an `ip`");
        return None;
    };
    let ip = check.form::<Ipv6Addr>(format!("{at}.ip"), text, "an IPv6 address")?;
    if !address.contains(&ip) || ip == address.addr() {
        check.wrong(
            format!("{at}.ip"),
            format!(
                "{ip} is not a guest address of the subnet {}",
                address.trunc()
            ),
        );
    }
    Some(Reservation6 {
        mac,
        duid,
        name,
        ip,
    })
}
