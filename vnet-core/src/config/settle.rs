//! From a document to a [`Network`]: every rule of a single network is here, each with its place and a sentence.

mod boot;
mod subnet;
mod subnet6;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use uuid::Uuid;

use super::Problems;
use super::check::Check;
use super::native::{
    BridgeDoc, DnsDoc, ForwardDoc, HostDoc, NetworkDoc, PublishDoc, RecordDoc, RouteDoc,
    UpstreamDoc,
};
use crate::model::{
    Bridge, Dns, Dnssec, Forward, ForwardKind, HostAccess, HostRecord, Nat, Network, Publish,
    Record, RecordData, Route4, Subnet4, Target, Upstream,
};
use crate::types::{DomainName, Ipv4Net, Mac, Mtu, NetworkName};

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
    let (subnets4, subnets6) = subnet::subnets(doc, fill, check);
    if !subnets6.is_empty()
        && let Some(bridge) = &bridge
        && bridge.mtu.is_some_and(|mtu| mtu.get() < LEAST_IPV6)
    {
        let rule = format!("IPv6 needs an MTU of {LEAST_IPV6} at least: make it larger");
        check.wrong("bridge.mtu", rule);
    }
    let dns = dns(doc.dns.as_ref(), kind, check);
    let gateways = subnets4.iter().map(|s| IpAddr::V4(s.gateway()));
    let gateways = gateways.chain(subnets6.iter().map(|s| IpAddr::V6(s.gateway())));
    asks_others(&dns, &gateways.collect(), check);
    one_alias_alone(&dns, domain.as_ref(), check);
    one_lifetime_each(&dns, domain.as_ref(), check);
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
        ra: subnet6::ra(doc.ra.as_ref(), &subnets6, check),
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
        ("ra", doc.ra.is_some()),
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
    let trust_anchors = doc
        .trust_anchors
        .iter()
        .enumerate()
        .filter_map(|(i, a)| check.parse(format!("dns.trust_anchors[{i}]"), a))
        .collect();
    let by_mode = kind != Some(ForwardKind::Isolated) || !upstreams.is_empty();
    Dns {
        enabled: doc.enabled.unwrap_or(kind != Some(ForwardKind::Bridge)),
        forward: doc.forward.unwrap_or(by_mode),
        upstreams,
        rebind_protection: doc.rebind_protection.unwrap_or(false),
        private_reverse: doc.private_reverse.unwrap_or(false),
        dnssec: dnssec(doc.dnssec.as_deref(), check),
        trust_anchors,
        hosts,
        records,
    }
}

fn dnssec(word: Option<&str>, check: &mut Check) -> Dnssec {
    let word = word.unwrap_or(Dnssec::Off.word());
    Dnssec::from_word(word).unwrap_or_else(|| {
        let word = word.escape_debug();
        check.wrong(
            "dns.dnssec",
            format!("`{word}` is neither `off` nor `validate`"),
        );
        Dnssec::Off
    })
}

/// RFC 8200 section 5.
const LEAST_IPV6: u16 = 1280;

/// What can be known of an upstream without asking it: that nobody, or nobody else, is there.
fn asks_others(dns: &Dns, gateways: &BTreeSet<IpAddr>, check: &mut Check) {
    for (i, upstream) in dns.upstreams.iter().enumerate() {
        let address = upstream.server.address;
        let ip = address.ip();
        let rule = if gateways.contains(&ip) && address.port() == 53 {
            format!("{ip} is this network's own gateway, which would ask itself")
        } else if ip.is_unspecified() || ip.is_multicast() || address.port() == 0 {
            format!("nobody listens at {address}")
        } else if matches!(address, SocketAddr::V6(a) if a.ip().is_unicast_link_local() && a.scope_id() == 0)
        {
            format!("{ip} is another machine on each link: give an address that is not link-local")
        } else {
            continue;
        };
        check.wrong(format!("dns.upstream[{i}].address"), rule);
    }
}

/// A week: RFC 8767 section 4 has resolvers keep nothing for longer.
const LONGEST_TTL: u32 = 604_800;

fn record(i: usize, doc: &RecordDoc, check: &mut Check) -> Option<Record> {
    let at = format!("dns.record[{i}]");
    let name = check.parse(format!("{at}.name"), &doc.name);
    let kind = check.take(format!("{at}.type"), RecordData::check_kind(&doc.r#type));
    let data = kind.and_then(|()| {
        let data = RecordData::new(&doc.r#type, &doc.value);
        check.take(format!("{at}.value"), data)
    });
    if doc.ttl.is_some_and(|ttl| ttl > LONGEST_TTL) {
        check.wrong(
            format!("{at}.ttl"),
            format!("a record is kept for {LONGEST_TTL} s (a week) at most"),
        );
    }
    Some(Record {
        name: name?,
        data: data?,
        ttl: doc.ttl,
    })
}

/// RFC 2181 section 5.2: the records of one name and type are kept alike.
fn one_lifetime_each(dns: &Dns, domain: Option<&DomainName>, check: &mut Check) {
    let mut seen = BTreeMap::<(String, u16), (usize, Option<u32>)>::new();
    for (i, record) in dns.records.iter().enumerate() {
        let set = (record.name.in_domain(domain), record.data.code());
        let (first, ttl) = *seen.entry(set).or_insert((i, record.ttl));
        if ttl != record.ttl {
            check.wrong(
                format!("dns.record[{i}].ttl"),
                format!("dns.record[{first}] has the same name and type: give both the same ttl"),
            );
        }
    }
}

/// RFC 1034 section 3.6.2, RFC 2181 section 10.1: a name that is an alias has nothing else, and is one.
fn one_alias_alone(dns: &Dns, domain: Option<&DomainName>, check: &mut Check) {
    let names = dns.hosts.iter().flat_map(|h| &h.names);
    let hosts: BTreeSet<String> = names.map(|name| name.in_domain(domain)).collect();
    let mut seen = BTreeMap::<String, Vec<usize>>::new();
    for (i, record) in dns.records.iter().enumerate() {
        let owner = record.name.in_domain(domain);
        seen.entry(owner).or_default().push(i);
    }
    let is_alias = |i: &usize| dns.records[*i].data.kind() == "CNAME";
    for (owner, all) in seen {
        let Some(alias) = all.iter().copied().find(is_alias) else {
            continue;
        };
        let at = format!("dns.record[{alias}]");
        if domain.is_some_and(|d| d.as_str() == owner) {
            check.wrong(
                &at,
                format!("`{owner}` is the domain itself, which cannot be an alias"),
            );
        } else if hosts.contains(&owner) {
            check.wrong(
                &at,
                format!("`{owner}` has an address in dns.host: an alias has nothing else"),
            );
        } else if let Some(other) = all.iter().find(|i| **i != alias) {
            let rule = format!(
                "`{owner}` has dns.record[{other}] too: an alias has nothing else, and is one"
            );
            check.wrong(&at, rule);
        }
    }
}

fn upstream(i: usize, doc: &UpstreamDoc, check: &mut Check) -> Option<Upstream> {
    let at = format!("dns.upstream[{i}]");
    let server = check.parse(format!("{at}.address"), doc.address.trim());
    let domain = check.maybe(format!("{at}.domain"), doc.domain.as_deref());
    Some(Upstream {
        server: server?,
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
