//! IPv6 subnets: their gateways, how guests get addresses, and which are whose.

use std::net::Ipv6Addr;

use super::boot::boot6;
use super::subnet::{hex, lease_time, relays_of, spelled, unicast_mac};
use crate::config::check::Check;
use crate::config::native::{DhcpDoc, OptionDoc, RaDoc, RangeDoc, ReservationDoc};
use crate::model::{Dhcp6, DhcpOption6, Preference, Ra, RaMode, Reservation6, Subnet6};
use crate::types::Ipv6Net;

const NO_OPTIONS: &str = "nobody asks with mode `slaac` for other options than `dns-server`, `domain-search` and `captive-portal`: use `stateless`";

pub(super) fn gateway6(at: &str, address: Ipv6Net, check: &mut Check) -> bool {
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

pub(super) fn dhcp6(at: &str, address: Ipv6Net, doc: Option<&DhcpDoc>, check: &mut Check) -> Dhcp6 {
    let empty = DhcpDoc::default();
    let doc = doc.unwrap_or(&empty);
    let mode = match &doc.mode {
        Some(text) => check.word(format!("{at}.dhcp.mode"), text, &RaMode::ALL, RaMode::word),
        None if address.prefix_len() == 64 => Some(RaMode::Slaac),
        None => Some(RaMode::Stateful),
    };
    let mode = mode.unwrap_or(RaMode::Slaac);
    if doc.boot.is_some() && mode == RaMode::Slaac {
        let rule = "nobody asks what to boot with mode `slaac`: use `stateless`";
        check.wrong(format!("{at}.dhcp.boot"), rule);
    }
    if !doc.always.is_empty() {
        let rule = "only IPv4 subnets have an `always`: leave it out";
        check.wrong(format!("{at}.dhcp.always"), rule);
    }
    if mode != RaMode::Stateful && address.prefix_len() != 64 {
        check.wrong(format!("{at}.dhcp.mode"), format!("guests can make their own addresses only in a /64: use a /64, or mode `stateful` with /{}", address.prefix_len()));
    }
    let options = options6(&format!("{at}.dhcp.options"), &doc.options, check);
    // Some are advertised, too.
    if mode == RaMode::Slaac && !options.iter().all(DhcpOption6::is_advertised) {
        check.wrong(format!("{at}.dhcp.options"), NO_OPTIONS);
    }
    let here = format!("{at}.dhcp.lease_time");
    leases_nothing(&here, mode, doc.lease_time.is_some(), check);
    Dhcp6 {
        mode,
        ranges: ranges6(at, address, mode, doc, check),
        hosts: reservations6(at, address, mode, doc, check),
        lease_time: lease_time(at, doc, check),
        options,
        boot: doc
            .boot
            .as_ref()
            .map(|doc| boot6(&format!("{at}.dhcp.boot"), doc, check)),
        relays: relays6(at, doc, check),
        routes: routes6(at, doc, check),
        pref64: pref64(at, doc, check),
    }
}

fn ranges6(
    at: &str,
    address: Ipv6Net,
    mode: RaMode,
    doc: &DhcpDoc,
    check: &mut Check,
) -> Vec<(Ipv6Addr, Ipv6Addr)> {
    let Some(docs) = &doc.ranges else {
        let has_leases = matches!(mode, RaMode::Stateful | RaMode::Both);
        return has_leases
            .then(|| guest_range6(address))
            .into_iter()
            .collect();
    };
    let here = format!("{at}.dhcp.ranges");
    leases_nothing(&here, mode, !docs.is_empty(), check);
    let mut ranges = Vec::<(Ipv6Addr, Ipv6Addr)>::new();
    for (i, doc) in docs.iter().enumerate() {
        let here = format!("{here}[{i}]");
        if matches!(doc, RangeDoc::Special(_)) {
            let rule = "only IPv4 ranges have terms of their own: write the range as a text";
            check.wrong(&here, rule);
        }
        let Some((first, last)) = range6(&here, address, doc.text(), check) else {
            continue;
        };
        match ranges.iter().find(|(a, b)| first <= *b && *a <= last) {
            Some((a, b)) => check.wrong(
                here,
                format!("{first}-{last} overlaps {a}-{b}: give each range its own addresses"),
            ),
            None => ranges.push((first, last)),
        }
    }
    ranges
}

/// What only leases have, said where guests make their addresses.
fn leases_nothing(at: &str, mode: RaMode, said: bool, check: &mut Check) {
    if said && matches!(mode, RaMode::Slaac | RaMode::Stateless) {
        let word = mode.word();
        check.wrong(
            at,
            format!(
                "there are no leases with mode `{word}`: leave it out, or use `stateful` or `both`"
            ),
        );
    }
}

pub(in crate::config) fn ra(doc: Option<&RaDoc>, subnets: &[Subnet6], check: &mut Check) -> Ra {
    let Some(doc) = doc else {
        return Ra::default();
    };
    if subnets.is_empty() {
        check.wrong(
            "ra",
            "nothing is advertised without an IPv6 subnet: leave it out",
        );
    }
    let usual = Ra::default();
    let preference = doc.preference.as_deref().and_then(|text| {
        let all = &Preference::ALL;
        check.word("ra.preference", text, all, Preference::word)
    });
    let ra = Ra {
        interval: doc.interval.unwrap_or(usual.interval),
        router_lifetime: doc.router_lifetime,
        preferred_lifetime: doc.preferred_lifetime.unwrap_or(usual.preferred_lifetime),
        valid_lifetime: doc.valid_lifetime.unwrap_or(usual.valid_lifetime),
        preference: preference.unwrap_or(usual.preference),
    };
    if let Err((field, rule)) = ra.check() {
        check.wrong(format!("ra.{field}"), rule.0);
    }
    ra
}

fn relays6(at: &str, doc: &DhcpDoc, check: &mut Check) -> Vec<Ipv6Addr> {
    let form = "the relay's own IPv6 address, like fd00:50::2";
    let nobodys = |a: &Ipv6Addr| a.is_unspecified() || a.is_multicast();
    relays_of(at, doc, form, nobodys, check)
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

/// Each address is one guest's, and each guest has one. Another subnet may have another for it: it is asked for both.
fn reservations6(
    at: &str,
    address: Ipv6Net,
    mode: RaMode,
    doc: &DhcpDoc,
    check: &mut Check,
) -> Vec<Reservation6> {
    let mut hosts = Vec::<Reservation6>::new();
    for (i, host) in doc.host.iter().enumerate() {
        let here = format!("{at}.dhcp.host[{i}]");
        let Some(host) = reservation6(&here, address, mode, host, check) else {
            continue;
        };
        let mut once = |field: &str, what: &str, same: &dyn Fn(&Reservation6) -> bool| {
            if hosts.iter().any(same) {
                let rule = format!("another reservation of this subnet already has this {what}");
                check.wrong(format!("{here}.{field}"), rule);
            }
        };
        once("ip", "address", &|other| other.ip == host.ip);
        once("mac", "MAC", &|other| {
            host.mac.is_some() && other.mac == host.mac
        });
        once("duid", "DUID", &|other| {
            host.duid.is_some() && other.duid == host.duid
        });
        hosts.push(host);
    }
    hosts
}

fn reservation6(
    at: &str,
    address: Ipv6Net,
    mode: RaMode,
    doc: &ReservationDoc,
    check: &mut Check,
) -> Option<Reservation6> {
    for (field, is) in [
        ("client_id", doc.client_id.is_some()),
        ("circuit_id", doc.circuit_id.is_some()),
        ("remote_id", doc.remote_id.is_some()),
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
    let here = format!("{at}.lease_time");
    leases_nothing(&here, mode, doc.lease_time.is_some(), check);
    if mode == RaMode::Slaac && !doc.options.is_empty() {
        check.wrong(format!("{at}.options"), NO_OPTIONS);
    }
    Some(Reservation6 {
        mac,
        duid,
        name,
        ip,
        lease_time: check.maybe(here, doc.lease_time.as_deref()),
        options: options6(&format!("{at}.options"), &doc.options, check),
    })
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
