//! From a [`Network`] back to its document: complete, so that it can be edited and applied again.

use std::collections::BTreeMap;

use super::native::{
    BootDoc, BootRuleDoc, BridgeDoc, DhcpDoc, DnsDoc, DomainDoc, ForwardDoc, HostDoc, NetworkDoc,
    OptionDoc, PublishDoc, RaDoc, RangeDoc, RecordDoc, ReservationDoc, RouteDoc, SpecialRangeDoc,
    SubnetDoc, UpstreamDoc,
};
use crate::model::{
    Arch, Boot, BootRule, Bridge, Dhcp4, DhcpOption, DhcpOption6, DhcpRange4, Dns, Dnssec, Forward,
    Network, Ra, Reservation4, Reservation6, Subnet4, Subnet6,
};
use crate::types::LeaseTime;

impl NetworkDoc {
    /// The document of a network, with everything it has.
    #[must_use]
    pub fn of(network: &Network) -> Self {
        let ours = network.owns_bridge();
        Self {
            name: network.name.to_string(),
            uuid: Some(network.uuid.to_string()),
            autostart: Some(network.autostart),
            isolate_ports: network.isolate_ports.then_some(true),
            host_access: ours.then(|| network.host_access.word().to_owned()),
            bridge: Some(bridge(&network.bridge, ours)),
            forward: Some(forward(&network.forward)),
            domain: network.domain.as_ref().map(|name| DomainDoc {
                name: name.to_string(),
                local_only: (!network.local_only).then_some(false),
            }),
            dns: ours.then(|| dns(&network.dns)),
            subnet: network
                .subnets4
                .iter()
                .map(subnet4)
                .chain(network.subnets6.iter().map(subnet6))
                .collect(),
            ra: ra(&network.ra),
            route: network
                .routes
                .iter()
                .map(|r| RouteDoc {
                    to: r.to.to_string(),
                    via: r.via.to_string(),
                    metric: Some(r.metric),
                })
                .collect(),
            publish: network
                .publish
                .iter()
                .map(|p| PublishDoc {
                    guest: p.target.to_string(),
                    ports: p.to_string(),
                })
                .collect(),
        }
    }
}

/// What is not as it is by itself.
fn ra(ra: &Ra) -> Option<RaDoc> {
    let usual = Ra::default();
    (*ra != usual).then(|| RaDoc {
        interval: (ra.interval != usual.interval).then_some(ra.interval),
        router_lifetime: ra.router_lifetime,
        preferred_lifetime: (ra.preferred_lifetime != usual.preferred_lifetime)
            .then_some(ra.preferred_lifetime),
        valid_lifetime: (ra.valid_lifetime != usual.valid_lifetime).then_some(ra.valid_lifetime),
        preference: (ra.preference != usual.preference).then(|| ra.preference.word().to_owned()),
    })
}

fn bridge(bridge: &Bridge, ours: bool) -> BridgeDoc {
    BridgeDoc {
        name: Some(bridge.name.to_string()),
        mac: ours.then(|| bridge.mac.to_string()),
        mtu: bridge.mtu.map(|m| u32::from(m.get())),
        stp: bridge.stp.then_some(true),
    }
}

fn forward(forward: &Forward) -> ForwardDoc {
    let mut doc = ForwardDoc {
        mode: forward.kind().word().to_owned(),
        egress: forward.egress().map(ToString::to_string),
        ..ForwardDoc::default()
    };
    if let Forward::Nat(nat) = forward {
        doc.addresses = nat.addresses.map(|a| a.to_string());
        doc.ports =
            (nat.ports != (1024, 65535)).then(|| format!("{}-{}", nat.ports.0, nat.ports.1));
        doc.ipv6 = nat.ipv6.then_some(true);
    }
    doc
}

fn dns(dns: &Dns) -> DnsDoc {
    DnsDoc {
        enabled: (!dns.enabled).then_some(false),
        forward: Some(dns.forward),
        rebind_protection: dns.rebind_protection.then_some(true),
        private_reverse: dns.private_reverse.then_some(true),
        dnssec: (dns.dnssec != Dnssec::Off).then(|| dns.dnssec.word().to_owned()),
        trust_anchors: dns.trust_anchors.iter().map(ToString::to_string).collect(),
        upstream: dns
            .upstreams
            .iter()
            .map(|u| UpstreamDoc {
                address: u.server.to_string(),
                domain: u.domain.as_ref().map(ToString::to_string),
            })
            .collect(),
        host: dns
            .hosts
            .iter()
            .map(|h| HostDoc {
                ip: h.ip.to_string(),
                names: h.names.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        record: dns
            .records
            .iter()
            .map(|r| RecordDoc {
                name: r.name.to_string(),
                r#type: r.data.kind(),
                value: r.data.value().to_owned(),
                ttl: r.ttl,
            })
            .collect(),
    }
}

fn subnet4(subnet: &Subnet4) -> SubnetDoc {
    let dhcp = |dhcp: &Dhcp4| DhcpDoc {
        mode: None,
        ranges: Some(dhcp.ranges.iter().map(range4).collect()),
        lease_time: (dhcp.lease_time != LeaseTime::HOUR).then(|| dhcp.lease_time.to_string()),
        options: options(dhcp.options.iter().map(DhcpOption::spell)),
        always: dhcp
            .always
            .iter()
            .map(|code| DhcpOption::name_of(*code))
            .collect(),
        relays: dhcp.relays.iter().map(ToString::to_string).collect(),
        routes: Vec::new(),
        pref64: None,
        boot: dhcp.boot.as_ref().map(boot),
        host: dhcp.hosts.iter().map(reservation4).collect(),
    };
    SubnetDoc {
        address: subnet.address.to_string(),
        dhcp: subnet.dhcp.as_ref().map(dhcp),
    }
}

fn boot(boot: &Boot) -> BootDoc {
    let rule = |rule: &BootRule| BootRuleDoc {
        arch: Arch::spell(&rule.arch),
        vendor_class: rule.vendor_class.clone(),
        user_class: rule.user_class.clone(),
        file: rule.file.clone(),
        server: rule.server.map(|a| a.to_string()),
    };
    BootDoc {
        tftp: boot.tftp.as_ref().map(|path| path.display().to_string()),
        server: boot.server.map(|a| a.to_string()),
        file: boot.file.clone(),
        rule: boot.rules.iter().map(rule).collect(),
    }
}

fn subnet6(subnet: &Subnet6) -> SubnetDoc {
    let dhcp = &subnet.dhcp;
    SubnetDoc {
        address: subnet.address.to_string(),
        dhcp: Some(DhcpDoc {
            mode: Some(dhcp.mode.word().to_owned()),
            ranges: Some(
                dhcp.ranges
                    .iter()
                    .map(|(a, b)| RangeDoc::Plain(format!("{a}-{b}")))
                    .collect(),
            ),
            lease_time: (dhcp.lease_time != LeaseTime::HOUR).then(|| dhcp.lease_time.to_string()),
            options: options(dhcp.options.iter().map(DhcpOption6::spell)),
            relays: dhcp.relays.iter().map(ToString::to_string).collect(),
            always: Vec::new(),
            routes: dhcp.routes.iter().map(ToString::to_string).collect(),
            pref64: dhcp.pref64.map(|net| net.to_string()),
            boot: dhcp.boot.as_ref().map(boot),
            host: dhcp.hosts.iter().map(reservation6).collect(),
        }),
    }
}

fn options(options: impl Iterator<Item = (String, Vec<String>)>) -> BTreeMap<String, OptionDoc> {
    let doc = |mut values: Vec<String>| match values.len() {
        1 => OptionDoc::One(values.remove(0)),
        _ => OptionDoc::Many(values),
    };
    options.map(|(key, values)| (key, doc(values))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

fn range4(range: &DhcpRange4) -> RangeDoc {
    let text = range.range.to_string();
    if range.lease_time.is_none() && range.options.is_empty() {
        return RangeDoc::Plain(text);
    }
    RangeDoc::Special(SpecialRangeDoc {
        range: text,
        lease_time: range.lease_time.map(|t| t.to_string()),
        options: options(range.options.iter().map(DhcpOption::spell)),
    })
}

/// What a relay says, as a text where it is one.
fn agent_text(bytes: &[u8]) -> String {
    let plain = |text: &&str| {
        let visible = |c: char| c.is_ascii_graphic() || c == ' ';
        text.chars().all(visible) && !text.starts_with("0x")
    };
    match std::str::from_utf8(bytes).ok().filter(plain) {
        Some(text) => text.to_owned(),
        None => format!("0x{}", hex(bytes).replace(':', "")),
    }
}

fn reservation4(host: &Reservation4) -> ReservationDoc {
    ReservationDoc {
        mac: host.mac.map(|m| m.to_string()),
        client_id: host.client_id.as_deref().map(hex),
        circuit_id: host.circuit.circuit_id.as_deref().map(agent_text),
        remote_id: host.circuit.remote_id.as_deref().map(agent_text),
        duid: None,
        ip: host.ip.map(|ip| ip.to_string()),
        name: host.name.as_ref().map(ToString::to_string),
        lease_time: host.lease_time.map(|t| t.to_string()),
        options: options(host.options.iter().map(DhcpOption::spell)),
    }
}

fn reservation6(host: &Reservation6) -> ReservationDoc {
    ReservationDoc {
        mac: host.mac.map(|m| m.to_string()),
        duid: host.duid.as_deref().map(hex),
        ip: Some(host.ip.to_string()),
        name: host.name.as_ref().map(ToString::to_string),
        lease_time: host.lease_time.map(|t| t.to_string()),
        options: options(host.options.iter().map(DhcpOption6::spell)),
        ..ReservationDoc::default()
    }
}
