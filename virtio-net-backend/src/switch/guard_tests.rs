//! The guard's verdicts as a table: a frame, and what becomes of it.

use super::{
    Reason::{
        self, GuardArp, GuardHidden, GuardIp4, GuardIp6, GuardMac, GuardNd, GuardProtocol,
        GuardServer, GuardVlan,
    },
    guard::{Guard, Owned},
};
use std::net::{Ipv4Addr, Ipv6Addr};
use vnet_core::types::Mac;

const MINE: Mac = Mac([0x52, 0x54, 0, 0xaa, 0xbb, 1]);
const OTHER: Mac = Mac([0x52, 0x54, 0, 0xaa, 0xbb, 2]);
const LINK_LOCAL: &str = "fe80::5054:ff:feaa:bb01";

fn guard() -> Guard {
    Guard::new([MINE])
        .allow([10, 1, 0, 10].into(), 32)
        .allow([10, 2, 0, 77].into(), 24)
        .allow("fd00::10".parse().unwrap(), 128)
}

fn ether(source: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &source.0, &kind.to_be_bytes(), payload].concat()
}

fn arp(ether_source: Mac, sender: Mac, address: &str) -> Vec<u8> {
    let address: Ipv4Addr = address.parse().unwrap();
    ether(
        ether_source,
        0x806,
        &[
            &[0, 1, 8, 0, 6, 4, 0, 1][..],
            &sender.0,
            &address.octets(),
            &[0; 6],
            &[10, 1, 0, 1],
        ]
        .concat(),
    )
}

fn ip4(source: &str, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let source: Ipv4Addr = source.parse().unwrap();
    let mut header = vec![0x45, 0, 0, 0, 0, 0];
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend([255, 255, 255, 255]);
    header.extend(payload);
    ether(MINE, 0x800, &header)
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    [
        source.to_be_bytes(),
        destination.to_be_bytes(),
        [0, 8],
        [0, 0],
    ]
    .concat()
}

fn ip6(source: &str, extensions: &[u8], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let source: Ipv6Addr = source.parse().unwrap();
    let mut header = vec![
        0x60,
        0,
        0,
        0,
        0,
        0,
        *extensions.first().unwrap_or(&protocol),
        64,
    ];
    header.extend(source.octets());
    header.extend([0xff; 16]);
    for (at, extension) in extensions.iter().enumerate() {
        let next = *extensions.get(at + 1).unwrap_or(&protocol);
        header.extend(if *extension == 44 {
            [next, 0, 0, 1, 0, 0, 0, 9]
        } else {
            [next, 0, 1, 4, 0, 0, 0, 0]
        });
    }
    header.extend(payload);
    ether(MINE, 0x86dd, &header)
}

fn nd(kind: u8, target: &str) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
}

fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    [&frame[..12], &tag.to_be_bytes(), &[0, 0], &frame[12..]].concat()
}

fn check(guard: &Guard, frame: &[u8]) -> Result<(), Reason> {
    guard.check(frame, &Owned::default())
}

type Row<'a> = (&'a str, Vec<u8>, Result<(), Reason>);

fn assert_verdicts(rows: &[Row]) {
    for (name, frame, verdict) in rows {
        assert_eq!(check(&guard(), frame), *verdict, "{name}");
    }
}

#[test]
fn ethernet_and_arp() {
    let own = ip4("10.1.0.10", 6, 0, &[0; 20]);
    assert_verdicts(&[
        ("own address", ip4("10.1.0.10", 6, 0, &[0; 20]), Ok(())),
        (
            "a foreign MAC",
            ether(OTHER, 0x88b5, &[0; 46]),
            Err(GuardMac),
        ),
        (
            "another protocol",
            ether(MINE, 0x88b5, &[0; 46]),
            Err(GuardProtocol),
        ),
        ("RARP", ether(MINE, 0x8035, &[0; 46]), Ok(())),
        ("no header", vec![0; 9], Err(GuardMac)),
        ("tagged, own address", tagged(&own, 0x8100), Err(GuardVlan)),
        ("service tag", tagged(&own, 0x88a8), Err(GuardVlan)),
        (
            "priority tag round a forged ARP",
            tagged(&arp(MINE, MINE, "10.1.0.11"), 0x8100),
            Err(GuardVlan),
        ),
        ("ARP, own", arp(MINE, MINE, "10.1.0.10"), Ok(())),
        ("ARP probe", arp(MINE, MINE, "0.0.0.0"), Ok(())),
        (
            "ARP, foreign address",
            arp(MINE, MINE, "10.1.0.1"),
            Err(GuardArp),
        ),
        (
            "ARP, foreign sender MAC",
            arp(MINE, OTHER, "10.1.0.10"),
            Err(GuardArp),
        ),
        (
            "ARP, foreign Ethernet source",
            arp(OTHER, MINE, "10.1.0.10"),
            Err(GuardMac),
        ),
        (
            "ARP cut short",
            arp(MINE, MINE, "10.1.0.10")[..30].to_vec(),
            Err(GuardHidden),
        ),
        (
            "ARP of another hardware type",
            ether(
                MINE,
                0x806,
                &[0, 6, 8, 0, 6, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            Err(GuardArp),
        ),
    ]);
}

#[test]
fn ip4_verdicts() {
    assert_verdicts(&[
        (
            "an address of the own prefix",
            ip4("10.2.0.200", 6, 0, &[0; 20]),
            Ok(()),
        ),
        (
            "a foreign address",
            ip4("10.1.0.11", 6, 0, &[0; 20]),
            Err(GuardIp4),
        ),
        (
            "just outside the prefix",
            ip4("10.2.1.0", 6, 0, &[0; 20]),
            Err(GuardIp4),
        ),
        ("DHCP discover", ip4("0.0.0.0", 17, 0, &udp(68, 67)), Ok(())),
        (
            "DHCP request, renewing",
            ip4("10.1.0.10", 17, 0, &udp(68, 67)),
            Ok(()),
        ),
        (
            "from nowhere, not DHCP",
            ip4("0.0.0.0", 17, 0, &udp(68, 53)),
            Err(GuardIp4),
        ),
        (
            "from nowhere, TCP to port 67",
            ip4("0.0.0.0", 6, 0, &[&udp(68, 67)[..], &[0; 12]].concat()),
            Err(GuardIp4),
        ),
        (
            "DHCP offer",
            ip4("10.1.0.10", 17, 0, &udp(67, 68)),
            Err(GuardServer),
        ),
        (
            "DHCP offer from an odd port",
            ip4("10.1.0.10", 17, 0, &udp(1067, 68)),
            Err(GuardServer),
        ),
        (
            "DHCP offer, first fragment",
            ip4("10.1.0.10", 17, 0x2000, &udp(67, 68)),
            Err(GuardServer),
        ),
        (
            "later fragment, own address",
            ip4("10.1.0.10", 17, 0x2003, &udp(67, 68)),
            Ok(()),
        ),
        (
            "later fragment, foreign address",
            ip4("10.1.0.12", 17, 0x2003, &[0; 8]),
            Err(GuardIp4),
        ),
        (
            "UDP without its ports",
            ip4("10.1.0.10", 17, 0, &[0; 3]),
            Err(GuardHidden),
        ),
        (
            "IPv4 that says it is version 6",
            ether(MINE, 0x800, &[0x65; 40]),
            Err(GuardHidden),
        ),
        (
            "IPv4 header of 12 bytes",
            ether(MINE, 0x800, &[0x43; 40]),
            Err(GuardHidden),
        ),
        (
            "IPv4 options beyond the end",
            ether(MINE, 0x800, &[0x4f; 40]),
            Err(GuardHidden),
        ),
    ]);
}

#[test]
fn ip6_verdicts() {
    assert_verdicts(&[
        ("IPv6, own", ip6("fd00::10", &[], 6, &[0; 20]), Ok(())),
        (
            "IPv6, link-local of the MAC",
            ip6(LINK_LOCAL, &[], 6, &[0; 20]),
            Ok(()),
        ),
        (
            "IPv6, another link-local",
            ip6("fe80::5054:ff:feaa:bb02", &[], 6, &[0; 20]),
            Err(GuardIp6),
        ),
        (
            "IPv6, foreign",
            ip6("fd00::11", &[], 6, &[0; 20]),
            Err(GuardIp6),
        ),
        (
            "unspecified, UDP",
            ip6("::", &[], 17, &udp(546, 547)),
            Err(GuardIp6),
        ),
        (
            "DHCPv6 solicit",
            ip6(LINK_LOCAL, &[], 17, &udp(546, 547)),
            Ok(()),
        ),
        (
            "DHCPv6 reply",
            ip6(LINK_LOCAL, &[], 17, &udp(547, 546)),
            Err(GuardServer),
        ),
        (
            "DHCPv6 reply from an odd port",
            ip6(LINK_LOCAL, &[], 17, &udp(1547, 546)),
            Err(GuardServer),
        ),
        (
            "extension headers without end",
            ip6("fd00::10", &[60; 12], 6, &[0; 20]),
            Err(GuardHidden),
        ),
        (
            "extension header beyond the end",
            ip6("fd00::10", &[60], 6, &[])[..55].to_vec(),
            Err(GuardHidden),
        ),
        (
            "IPv6 cut short",
            ether(MINE, 0x86dd, &[0x60; 30]),
            Err(GuardHidden),
        ),
    ]);
}

#[test]
fn icmp6_verdicts() {
    assert_verdicts(&[
        ("DAD", ip6("::", &[], 58, &nd(135, "fd00::10")), Ok(())),
        (
            "router solicitation without an address",
            ip6("::", &[], 58, &[133, 0, 0, 0, 0, 0, 0, 0]),
            Ok(()),
        ),
        (
            "DAD for another's",
            ip6("::", &[], 58, &nd(135, "fd00::1")),
            Err(GuardNd),
        ),
        (
            "MLDv2 report while joining",
            ip6("::", &[0], 58, &nd(143, "::")),
            Ok(()),
        ),
        (
            "unspecified, echo",
            ip6("::", &[], 58, &nd(128, "::")),
            Err(GuardIp6),
        ),
        (
            "unspecified, advertisement",
            ip6("::", &[], 58, &nd(136, "fd00::10")),
            Err(GuardIp6),
        ),
        (
            "neighbour solicitation",
            ip6(LINK_LOCAL, &[], 58, &nd(135, "fd00::1")),
            Ok(()),
        ),
        (
            "own advertisement",
            ip6("fd00::10", &[], 58, &nd(136, "fd00::10")),
            Ok(()),
        ),
        (
            "own link-local advertised",
            ip6(LINK_LOCAL, &[], 58, &nd(136, LINK_LOCAL)),
            Ok(()),
        ),
        (
            "advertisement for another",
            ip6(LINK_LOCAL, &[], 58, &nd(136, "fd00::1")),
            Err(GuardNd),
        ),
        (
            "advertisement cut short",
            ip6(LINK_LOCAL, &[], 58, &nd(136, "fd00::10")[..20]),
            Err(GuardHidden),
        ),
        (
            "router solicitation",
            ip6(LINK_LOCAL, &[], 58, &[133, 0, 0, 0, 0, 0, 0, 0]),
            Ok(()),
        ),
        (
            "router advertisement",
            ip6(LINK_LOCAL, &[], 58, &nd(134, "::")),
            Err(GuardServer),
        ),
        (
            "router advertisement behind options (RFC 7113)",
            ip6(LINK_LOCAL, &[0, 60, 43], 58, &nd(134, "::")),
            Err(GuardServer),
        ),
        (
            "router advertisement in a first fragment",
            ip6(LINK_LOCAL, &[44, 60], 58, &nd(134, "::")),
            Err(GuardServer),
        ),
        (
            "redirect",
            ip6(LINK_LOCAL, &[], 58, &nd(137, "::")),
            Err(GuardServer),
        ),
    ]);
}

#[test]
fn a_prefix_length_of_nought_is_everything_and_one_too_long_is_one_address() {
    let any = Guard::new([MINE]).allow(Ipv4Addr::UNSPECIFIED.into(), 0);
    assert_eq!(check(&any, &ip4("192.0.2.1", 6, 0, &[0; 20])), Ok(()));
    let one = Guard::new([MINE]).allow([10, 0, 0, 1].into(), 255);
    assert_eq!(check(&one, &ip4("10.0.0.1", 6, 0, &[0; 20])), Ok(()));
    assert_eq!(
        check(&one, &ip4("10.0.0.2", 6, 0, &[0; 20])),
        Err(Reason::GuardIp4)
    );
}

#[test]
fn a_guard_of_two_macs_has_two_link_locals() {
    let guard = Guard::new([MINE, OTHER]);
    assert_eq!(check(&guard, &ip6(LINK_LOCAL, &[], 6, &[0; 20])), Ok(()));
    assert_eq!(
        check(&guard, &ip6("fe80::5054:ff:feaa:bb02", &[], 6, &[0; 20])),
        Ok(())
    );
}

/// Another port, whose addresses are known.
fn owner() -> Guard {
    Guard::new([OTHER])
        .allow([10, 1, 0, 11].into(), 32)
        .allow("fd00::11".parse().unwrap(), 128)
}

#[test]
fn a_port_that_roams_may_use_what_is_nobody_elses() {
    let prefix = ("fd00::".parse().unwrap(), 64);
    let roamer = Guard::new([MINE]).roam4().roam6([prefix]);
    let owner = owner();
    let owned = Owned::by([&roamer, &owner].into_iter());
    let rows: &[Row] = &[
        ("any address", ip4("192.0.2.1", 6, 0, &[0; 20]), Ok(())),
        (
            "no address, not DHCP",
            ip4("0.0.0.0", 6, 0, &[0; 20]),
            Ok(()),
        ),
        ("another's", ip4("10.1.0.11", 6, 0, &[0; 20]), Err(GuardIp4)),
        ("ARP for any", arp(MINE, MINE, "192.0.2.1"), Ok(())),
        (
            "ARP for another's",
            arp(MINE, MINE, "10.1.0.11"),
            Err(GuardArp),
        ),
        (
            "DHCP offer",
            ip4("192.0.2.1", 17, 0, &udp(67, 68)),
            Err(GuardServer),
        ),
        (
            "privacy address",
            ip6("fd00::dead", &[], 6, &[0; 20]),
            Ok(()),
        ),
        (
            "stable-privacy link-local",
            ip6("fe80::dead", &[], 6, &[0; 20]),
            Ok(()),
        ),
        (
            "outside the prefix",
            ip6("fd01::1", &[], 6, &[0; 20]),
            Err(GuardIp6),
        ),
        (
            "another's",
            ip6("fd00::11", &[], 6, &[0; 20]),
            Err(GuardIp6),
        ),
        (
            "unspecified, echo",
            ip6("::", &[], 58, &nd(128, "::")),
            Err(GuardIp6),
        ),
        (
            "DAD for a new one",
            ip6("::", &[], 58, &nd(135, "fd00::dead")),
            Ok(()),
        ),
        (
            "DAD for another's",
            ip6("::", &[], 58, &nd(135, "fd00::11")),
            Err(GuardNd),
        ),
        (
            "advertisement for another's",
            ip6("fd00::dead", &[], 58, &nd(136, "fd00::11")),
            Err(GuardNd),
        ),
        (
            "router advertisement",
            ip6("fe80::dead", &[], 58, &nd(134, "::")),
            Err(GuardServer),
        ),
    ];
    for (name, frame, verdict) in rows {
        assert_eq!(roamer.check(frame, &owned), *verdict, "{name}");
    }
    let free = Guard::new([MINE]).roam6([]);
    assert_eq!(
        free.check(&ip6("2001:db8::1", &[], 6, &[0; 20]), &owned),
        Ok(())
    );
}

#[test]
fn a_port_that_roams_is_not_the_gateway() {
    let prefix = ("fd00::".parse().unwrap(), 64);
    let gateway = ["fd00::1", "fe80::1"].map(|a| a.parse().unwrap());
    let roamer = Guard::new([MINE]).roam6([prefix]).bar6(gateway);
    let rows: &[Row] = &[
        (
            "the gateway's",
            ip6("fd00::1", &[], 6, &[0; 20]),
            Err(GuardIp6),
        ),
        (
            "advertisement for the default router",
            ip6("fd00::dead", &[], 58, &nd(136, "fe80::1")),
            Err(GuardNd),
        ),
    ];
    for (name, frame, verdict) in rows {
        assert_eq!(roamer.check(frame, &Owned::default()), *verdict, "{name}");
    }
}

#[test]
fn nobody_claims_what_a_guarded_port_owns() {
    let owned = Owned::by([owner()].iter());
    let rows: &[Row] = &[
        ("ARP for it", arp(MINE, MINE, "10.1.0.11"), Err(GuardArp)),
        ("ARP for another", arp(MINE, MINE, "10.1.0.12"), Ok(())),
        (
            "ARP cut short",
            arp(MINE, MINE, "10.1.0.11")[..28].to_vec(),
            Ok(()),
        ),
        (
            "advertisement",
            ip6("fe80::1", &[], 58, &nd(136, "fd00::11")),
            Err(GuardNd),
        ),
        (
            "advertisement behind options",
            ip6("fe80::1", &[0, 60], 58, &nd(136, "fd00::11")),
            Err(GuardNd),
        ),
        (
            "DAD",
            ip6("::", &[], 58, &nd(135, "fd00::11")),
            Err(GuardNd),
        ),
        (
            "asking for it",
            ip6("fe80::1", &[], 58, &nd(135, "fd00::11")),
            Ok(()),
        ),
        (
            "advertisement of another",
            ip6("fe80::1", &[], 58, &nd(136, "fd00::12")),
            Ok(()),
        ),
        ("anything else", ether(MINE, 0x88b5, &[0; 46]), Ok(())),
    ];
    for (name, frame, verdict) in rows {
        assert_eq!(owned.check(frame), *verdict, "{name}");
    }
}
