//! From a document to a [`Network`]: every rule of a single network is here, each with its place and a sentence.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use uuid::Uuid;

use super::Problems;
use super::check::Check;
use super::native::{
    BridgeDoc, DhcpDoc, DnsDoc, ForwardDoc, HostDoc, NetworkDoc, OptionDoc, PublishDoc, RecordDoc,
    ReservationDoc, RouteDoc, UpstreamDoc,
};
use crate::model::{
    Bridge, Dhcp4, Dhcp6, DhcpOption, Dns, Forward, ForwardKind, HostAccess, HostRecord, Nat,
    Network, Publish, RaMode, Record, RecordData, Reservation4, Reservation6, Route4, Subnet4,
    Subnet6, Target, Upstream,
};
use crate::types::{
    DomainName, Invalid, IpNet, Ipv4Net, Ipv6Net, LeaseTime, Mac, Mtu, NetworkName, PortName,
    Range4,
};

/// What a document left open and its network must have: chosen by whoever knows the host.
#[derive(Debug, Clone)]
pub struct Fill {
    /// For a document without one.
    pub uuid: Uuid,
    /// For a document without a bridge name.
    pub bridge: crate::types::IfName,
    /// For a document without a bridge MAC.
    pub mac: Mac,
    /// For each `auto` subnet in turn: the gateway's address and prefix.
    pub subnets: Vec<Ipv4Net>,
}

impl NetworkDoc {
    /// How many subnets the document leaves to be chosen.
    #[must_use]
    pub fn open_subnets(&self) -> usize {
        if self.implies_subnet() {
            return 1;
        }
        self.subnet.iter().filter(|s| s.address == "auto").count()
    }

    /// A `nat` or `routed` network without a subnet gets one, with DHCP: what else would it be for.
    fn implies_subnet(&self) -> bool {
        let mode = self.forward.as_ref().map_or("nat", |f| f.mode.as_str());
        self.subnet.is_empty() && ["nat", "routed"].contains(&mode)
    }

    /// The network this document describes, with what it left open filled in.
    ///
    /// # Errors
    /// Every place that breaks a rule.
    pub fn settle(&self, fill: &Fill) -> Result<Network, Problems> {
        let mut check = Check::default();
        let network = settle(self, fill, &mut check);
        check.finish(network)
    }
}

fn settle(doc: &NetworkDoc, fill: &Fill, check: &mut Check) -> Option<Network> {
    let name = check.parse::<NetworkName>("name", &doc.name);
    let uuid = match &doc.uuid {
        Some(text) => check.form("uuid", text, "a UUID"),
        None => Some(fill.uuid),
    };
    let forward = forward(doc.forward.as_ref(), check);
    let kind = forward.as_ref().map(Forward::kind);
    let bridge = bridge(doc.bridge.as_ref(), kind, fill, check);
    let host_access = match (&doc.host_access, kind) {
        (Some(text), _) => check.word("host_access", text, &HostAccess::ALL, HostAccess::word),
        (None, kind) => kind.map(HostAccess::default_of),
    };
    let domain = doc
        .domain
        .as_ref()
        .and_then(|d| check.parse("domain.name", &d.name));
    let (subnets4, subnets6) = subnets(doc, fill, check);
    let dns = dns(doc.dns.as_ref(), kind, check);
    let routes = doc
        .route
        .iter()
        .enumerate()
        .filter_map(|(i, r)| route(i, r, &subnets4, check))
        .collect();
    let publish = publish(&doc.publish, &subnets4, check);
    refuse_what_a_host_bridge_cannot_have(doc, kind, check);
    Some(Network {
        name: name?,
        uuid: uuid?,
        bridge: bridge?,
        forward: forward?,
        host_access: host_access?,
        domain,
        local_only: doc
            .domain
            .as_ref()
            .and_then(|d| d.local_only)
            .unwrap_or(true),
        subnets4,
        subnets6,
        dns,
        routes,
        publish,
        isolate_ports: doc.isolate_ports.unwrap_or(false),
        autostart: doc.autostart.unwrap_or(true),
    })
}

fn refuse_what_a_host_bridge_cannot_have(
    doc: &NetworkDoc,
    kind: Option<ForwardKind>,
    check: &mut Check,
) {
    if kind != Some(ForwardKind::Bridge) {
        return;
    }
    let present = [
        ("subnet", !doc.subnet.is_empty()),
        ("domain", doc.domain.is_some()),
        ("dns", doc.dns.is_some()),
        ("route", !doc.route.is_empty()),
        ("publish", !doc.publish.is_empty()),
        ("host_access", doc.host_access.is_some()),
    ];
    for (field, _) in present.iter().filter(|(_, is)| *is) {
        check.wrong(
            field,
            "mode `bridge` joins a bridge of the host: it has no addresses, names or rules of ours",
        );
    }
}

fn bridge(
    doc: Option<&BridgeDoc>,
    kind: Option<ForwardKind>,
    fill: &Fill,
    check: &mut Check,
) -> Option<Bridge> {
    let empty = BridgeDoc::default();
    let doc = doc.unwrap_or(&empty);
    if kind == Some(ForwardKind::Bridge) {
        if doc.name.is_none() {
            check.wrong(
                "bridge.name",
                "mode `bridge` needs the name of a bridge that the host already has",
            );
        }
        for (field, is) in [
            ("mac", doc.mac.is_some()),
            ("mtu", doc.mtu.is_some()),
            ("stp", doc.stp.is_some()),
        ] {
            if is {
                check.wrong(
                    format!("bridge.{field}"),
                    "mode `bridge` leaves the host's bridge as it is",
                );
            }
        }
    }
    let name = match &doc.name {
        Some(text) => check.parse("bridge.name", text),
        None => Some(fill.bridge.clone()),
    };
    let mac = match &doc.mac {
        Some(text) => check.parse::<Mac>("bridge.mac", text).filter(|mac| {
            let fits = !mac.is_group() && !mac.is_zero();
            if !fits {
                check.wrong(
                    "bridge.mac",
                    format!(
                        "{mac} is no single host's address: clear the lowest bit of its first byte"
                    ),
                );
            }
            fits
        }),
        None => Some(fill.mac),
    };
    let mtu = doc
        .mtu
        .and_then(|bytes| check.take("bridge.mtu", Mtu::try_from(bytes)));
    Some(Bridge {
        name: name?,
        mac: mac?,
        mtu,
        stp: doc.stp.unwrap_or(false),
    })
}

fn forward(doc: Option<&ForwardDoc>, check: &mut Check) -> Option<Forward> {
    let Some(doc) = doc else {
        return Some(Forward::Nat(Nat::default()));
    };
    let kind = check.word(
        "forward.mode",
        &doc.mode,
        &ForwardKind::ALL,
        ForwardKind::word,
    )?;
    let takes_egress = matches!(kind, ForwardKind::Nat | ForwardKind::Routed);
    let is_nat = kind == ForwardKind::Nat;
    for (field, given, fits) in [
        ("egress", doc.egress.is_some(), takes_egress),
        ("addresses", doc.addresses.is_some(), is_nat),
        ("ports", doc.ports.is_some(), is_nat),
        ("ipv6", doc.ipv6.is_some(), is_nat),
    ] {
        if given && !fits {
            check.wrong(
                format!("forward.{field}"),
                format!("mode `{}` has no such setting", kind.word()),
            );
        }
    }
    let egress = check.maybe("forward.egress", doc.egress.as_deref());
    match kind {
        ForwardKind::Nat => Some(Forward::Nat(Nat {
            egress,
            addresses: check.maybe("forward.addresses", doc.addresses.as_deref()),
            ports: doc
                .ports
                .as_ref()
                .map_or(Some((1024, 65535)), |text| nat_ports(text, check))?,
            ipv6: doc.ipv6.unwrap_or(false),
        })),
        ForwardKind::Routed => Some(Forward::Routed { egress }),
        ForwardKind::Isolated => Some(Forward::Isolated),
        ForwardKind::Open => Some(Forward::Open),
        ForwardKind::Bridge => Some(Forward::Bridge),
    }
}

fn nat_ports(text: &str, check: &mut Check) -> Option<(u16, u16)> {
    let parsed = text.split_once('-').and_then(|(a, b)| {
        let (a, b) = (a.trim().parse::<u16>().ok()?, b.trim().parse::<u16>().ok()?);
        (a >= 1 && a <= b).then_some((a, b))
    });
    if parsed.is_none() {
        check.wrong(
            "forward.ports",
            format!(
                "`{}` is not a range of ports: write it like 1024-65535",
                text.escape_debug()
            ),
        );
    }
    parsed
}

fn subnets(doc: &NetworkDoc, fill: &Fill, check: &mut Check) -> (Vec<Subnet4>, Vec<Subnet6>) {
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
    if doc.mode.is_some() {
        check.wrong(
            format!("{at}.dhcp.mode"),
            "only IPv6 subnets have a mode: leave it out",
        );
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
    })
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
        let values = match value {
            OptionDoc::Number(n) => vec![n.to_string()],
            OptionDoc::One(text) => vec![text.clone()],
            OptionDoc::Many(texts) => texts.clone(),
        };
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
    if mode != RaMode::Stateful && address.prefix_len() != 64 {
        check.wrong(format!("{at}.dhcp.mode"), format!("guests can make their own addresses only in a /64: use a /64, or mode `stateful` with /{}", address.prefix_len()));
    }
    if !doc.options.is_empty() {
        check.wrong(
            format!("{at}.dhcp.options"),
            "options by name are IPv4's: DNS and search domains follow from the network",
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
    }
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

fn dns(doc: Option<&DnsDoc>, kind: Option<ForwardKind>, check: &mut Check) -> Dns {
    let empty = DnsDoc::default();
    let doc = doc.unwrap_or(&empty);
    let upstreams: Vec<_> = doc
        .upstream
        .iter()
        .enumerate()
        .filter_map(|(i, u)| upstream(i, u, check))
        .collect();
    let hosts = doc
        .host
        .iter()
        .enumerate()
        .filter_map(|(i, h)| host_record(i, h, check))
        .collect();
    let records = doc
        .record
        .iter()
        .enumerate()
        .filter_map(|(i, r)| record(i, r, check))
        .collect();
    let by_mode = kind != Some(ForwardKind::Isolated) || !upstreams.is_empty();
    Dns {
        enabled: doc.enabled.unwrap_or(kind != Some(ForwardKind::Bridge)),
        forward: doc.forward.unwrap_or(by_mode),
        upstreams,
        rebind_protection: doc.rebind_protection.unwrap_or(false),
        hosts,
        records,
    }
}

fn record(i: usize, doc: &RecordDoc, check: &mut Check) -> Option<Record> {
    let at = format!("dns.record[{i}]");
    let name = check.parse(format!("{at}.name"), &doc.name);
    let data = check.take(
        format!("{at}.value"),
        RecordData::new(&doc.r#type, &doc.value),
    );
    Some(Record {
        name: name?,
        data: data?,
    })
}

fn upstream(i: usize, doc: &UpstreamDoc, check: &mut Check) -> Option<Upstream> {
    let at = format!("dns.upstream[{i}]");
    let address = match doc.address.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, 53)),
        Err(_) => check.form(
            format!("{at}.address"),
            &doc.address,
            "a resolver's address, like 9.9.9.9 or 9.9.9.9:53",
        ),
    };
    let domain = check.maybe(format!("{at}.domain"), doc.domain.as_deref());
    Some(Upstream {
        address: address?,
        domain,
    })
}

fn host_record(i: usize, doc: &HostDoc, check: &mut Check) -> Option<HostRecord> {
    let at = format!("dns.host[{i}]");
    if doc.names.is_empty() {
        check.wrong(format!("{at}.names"), "needs at least one name");
    }
    let mut names = Vec::<DomainName>::new();
    for (n, name) in doc.names.iter().enumerate() {
        names.extend(check.parse::<DomainName>(format!("{at}.names[{n}]"), name));
    }
    Some(HostRecord {
        ip: check.form(format!("{at}.ip"), &doc.ip, "an IP address")?,
        names,
    })
}

fn route(i: usize, doc: &RouteDoc, subnets: &[Subnet4], check: &mut Check) -> Option<Route4> {
    let at = format!("route[{i}]");
    let to: Ipv4Net = check.form(format!("{at}.to"), &doc.to, "a prefix, like 10.9.0.0/16")?;
    let via: Ipv4Addr = check.form(format!("{at}.via"), &doc.via, "an IPv4 address")?;
    if to != to.trunc() {
        check.wrong(
            format!("{at}.to"),
            format!("{to} has host bits set: write {}", to.trunc()),
        );
    }
    if !subnets.iter().any(|s| s.is_guest_address(via)) {
        check.wrong(
            format!("{at}.via"),
            format!("{via} is not a guest address of any subnet of this network"),
        );
    }
    Some(Route4 {
        to,
        via,
        metric: doc.metric.unwrap_or(1),
    })
}

fn publish(docs: &[PublishDoc], subnets: &[Subnet4], check: &mut Check) -> Vec<Publish> {
    let mut taken = BTreeSet::new();
    let mut all = Vec::new();
    for (i, doc) in docs.iter().enumerate() {
        let at = format!("publish[{i}]");
        let Some(target) = check.parse::<Target>(format!("{at}.guest"), &doc.guest) else {
            continue;
        };
        if let Target::Address(ip) = target
            && !subnets.iter().any(|s| s.is_guest_address(ip))
        {
            check.wrong(
                format!("{at}.guest"),
                format!("{ip} is not a guest address of any subnet of this network"),
            );
        }
        let here = format!("{at}.ports");
        let Some(publish) = check.take(&here, Publish::new(target, &doc.ports)) else {
            continue;
        };
        if !taken.insert((publish.protocol, publish.host_port)) {
            check.wrong(
                here,
                format!(
                    "port {}/{} of the host is published twice",
                    publish.host_port, publish.protocol
                ),
            );
        }
        all.push(publish);
    }
    all
}
