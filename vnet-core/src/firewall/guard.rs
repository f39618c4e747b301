//! What a port may send: its own MAC, its own addresses, and nothing that only a server or router says.
//!
//! Base chains `vnet_guard` (before anything else sees a frame) and `vnet_reflect` of table `bridge vnet`.
//!
//! A guarded port is *held* to its addresses where all of them are known: IPv4 wherever the network has subnets. In IPv6
//! it *roams*: any address of fe80::/10, and of the prefixes from which guests make their own (SLAAC), that is not known
//! to be another's, since privacy addresses and stable-privacy identifiers (RFC 7217, RFC 8981) are the default of most
//! guests. In a prefix that DHCPv6 alone hands out it is held. What a guarded port owns, or the gateway, no other port
//! may claim, guarded or not.

use super::hold::{self, Free6, Hold};
use super::publish;
use super::rule::Field::{
    ArpAddress, ArpMac, DestinationMac, EtherType, Icmp6, Iif, Mark, Oif, Source4, Source6,
    SourceMac, Transport8,
};
use super::rule::{
    Action, At, Chain, Hook, Rule, TARGET_MODULUS, TARGET_SEED, Test, Value, is, not, one_of,
    udp_from, udp_to, values, word,
};
use super::ruleset::Ruleset;
use super::set::{SetName, Table};
use crate::model::{Port, PortKind, World};
use crate::types::IfName;
use std::net::Ipv6Addr;

/// The elements of every port.
pub(super) fn ports(rules: &mut Ruleset, world: &World) {
    for port in world.live_ports() {
        self::port(rules, world, port);
    }
    for network in world.running() {
        for address in hold::gateways6(network) {
            rules.add(SetName::Owned6, [address.into()]);
            rules.add(SetName::OwnedTarget6, [target_hash(address).into()]);
        }
    }
    for prefix in world.running().flat_map(hold::own_prefixes) {
        rules.add(SetName::Prefix6, [prefix.into()]);
    }
}

/// The elements of one of them.
pub(super) fn port(rules: &mut Ruleset, world: &World, port: &Port) {
    let hold = Hold::of(world, port);
    match port.kind {
        PortKind::Tap { .. } | PortKind::TapFd { .. } | PortKind::External => {
            known(rules, &port.interface, &hold);
            if port.guard {
                guarded(rules, &port.interface, &hold);
                owned(rules, &hold);
            }
            if publish::leads_to(world, port) {
                let name = || (&port.interface).into();
                rules.add(SetName::Reflect, [name(), name()]);
            }
        }
        // Its switch guards it. Here only others are kept from what it owns; it comes by the uplink.
        PortKind::VhostUser { .. } => {
            known(rules, &port.key.home.uplink(), &hold);
            if port.guard {
                owned(rules, &hold);
            }
        }
    }
}

/// Of unguarded ports as well: an address may be of several bridges, and is foreign to none of them.
fn known(rules: &mut Ruleset, interface: &IfName, hold: &Hold) {
    let name = || interface.into();
    for mac in &hold.macs {
        rules.add(SetName::PortMac, [name(), (*mac).into()]);
    }
    for address in hold.ipv4() {
        rules.add(SetName::Address4, [name(), address.into()]);
    }
    for address in hold.ipv6() {
        rules.add(SetName::Address6, [name(), address.into()]);
        rules.add(SetName::Target6, [name(), target_hash(address).into()]);
    }
}

fn guarded(rules: &mut Ruleset, interface: &IfName, hold: &Hold) {
    let name = || interface.into();
    rules.add(SetName::Guarded, [name()]);
    if hold.free4 {
        rules.add(SetName::Free4, [name()]);
    }
    match hold.free6 {
        Free6::None => {}
        Free6::Within(_) => {
            rules.add(SetName::Roaming6, [name()]);
            rules.add(SetName::Free6, [name()]);
        }
        Free6::Any => rules.add(SetName::Free6, [name()]),
    }
}

/// Subnets of ours never overlap, so an address of theirs has one owner.
fn owned(rules: &mut Ruleset, hold: &Hold) {
    for mac in &hold.macs {
        rules.add(SetName::OwnedMac, [(*mac).into()]);
    }
    for address in hold.ipv4().filter(|_| !hold.yields4) {
        rules.add(SetName::Owned4, [address.into()]);
    }
    for address in hold.ipv6().filter(|_| !hold.yields6) {
        rules.add(SetName::Owned6, [address.into()]);
        rules.add(SetName::OwnedTarget6, [target_hash(address).into()]);
    }
}

/// The chains, the same in every ruleset.
pub(super) fn chains() -> Vec<Chain> {
    let chain = |name, hook, rules| Chain {
        table: Table::Bridge,
        name,
        hook,
        rules,
    };
    let filter = |at| {
        Some(Hook {
            nat: false,
            at,
            priority: -300,
        })
    };
    vec![
        chain("vnet_claim6", None, claim6()),
        chain("vnet_guard_arp", None, guard_arp()),
        chain("vnet_guard_ip4", None, guard_ip4()),
        chain("vnet_guard_ip6", None, guard_ip6()),
        chain("vnet_guard", filter(At::Prerouting), guard()),
        chain("vnet_reflect", filter(At::Forward), reflect()),
    ]
}

fn guard() -> Vec<Rule> {
    let known = ["arp", "ip", "ip6"].map(Value::Word).into_iter();
    // RARP: how a VMM announces a guest that has moved.
    let known = values(EtherType, known.chain([Value::Word("0x8035")]).collect());
    let unknown = Test { not: true, ..known };
    let claim = Action::Jump("vnet_claim6");
    // In this order: with the address first, nft would have it match tagged frames, which are of another LAN.
    let detect = [word(Icmp6, "nd-neighbor-solicit"), word(Source6, "::")];
    let kind = |ether, chain| Rule::new([word(EtherType, ether)], Action::Jump(chain));
    vec![
        // Whoever it comes from: nobody claims what a guarded port owns.
        drop([
            is(&[SourceMac], SetName::OwnedMac),
            not(&[Iif, SourceMac], SetName::PortMac),
        ]),
        drop([
            is(&[ArpAddress], SetName::Owned4),
            not(&[Iif, ArpAddress], SetName::Address4),
        ]),
        Rule::new([word(Icmp6, "nd-neighbor-advert")], claim),
        Rule::new(detect, claim),
        accept([not(&[Iif], SetName::Guarded)]),
        drop([not(&[Iif, SourceMac], SetName::PortMac)]),
        // Only what can be checked below: a tagged frame, for one, has the tag's type and goes no further.
        drop([unknown]),
        kind("arp", "vnet_guard_arp"),
        kind("ip", "vnet_guard_ip4"),
        kind("ip6", "vnet_guard_ip6"),
    ]
}

/// Speaking for an address in IPv6, or asking whether it is free. nft has no name for the field, and cannot compare a
/// nameless one with a set of addresses: the frame's mark carries its hash.
fn claim6() -> Vec<Rule> {
    let foreign = || not(&[Iif, Mark], SetName::Target6);
    vec![
        Rule::new([], Action::MarkTarget),
        drop([is(&[Mark], SetName::OwnedTarget6), foreign()]),
        drop([
            is(&[Iif], SetName::Guarded),
            not(&[Iif], SetName::Free6),
            foreign(),
        ]),
        Rule::new([], Action::ClearMark),
    ]
}

fn guard_arp() -> Vec<Rule> {
    vec![
        drop([not(&[Iif, ArpMac], SetName::PortMac)]),
        // A probe (RFC 5227) claims nothing.
        accept([word(ArpAddress, "0.0.0.0")]),
        accept([is(&[Iif, ArpAddress], SetName::Address4)]),
        drop([not(&[Iif], SetName::Free4)]),
    ]
}

fn guard_ip4() -> Vec<Rule> {
    let [udp, whole, client] = with_header(udp_from(&[68]));
    let [_, server] = udp_to(&[67]);
    vec![
        drop(with_header(udp_from(&[67]))),
        // A client is spoken to by a server or a relay, whatever port they send from.
        drop(with_header(udp_to(&[68]))),
        accept([word(Source4, "0.0.0.0"), udp, whole, client, server]),
        accept([is(&[Iif, Source4], SetName::Address4)]),
        drop([not(&[Iif], SetName::Free4)]),
        drop([is(&[Source4], SetName::Owned4)]),
    ]
}

fn guard_ip6() -> Vec<Rule> {
    let from_nobody = [
        "nd-neighbor-solicit",
        "nd-router-solicit",
        "mld2-listener-report",
    ];
    let link_local = values(Source6, vec![Value::Prefix("fe80::", 10)]);
    let beyond = Test {
        not: true,
        ..link_local
    };
    vec![
        drop([one_of(Icmp6, &["nd-router-advert", "nd-redirect"])]),
        drop(with_header(udp_from(&[547]))),
        drop(with_header(udp_to(&[546]))),
        accept([word(Source6, "::"), one_of(Icmp6, &from_nobody)]),
        accept([is(&[Iif, Source6], SetName::Address6)]),
        drop([not(&[Iif], SetName::Free6)]),
        drop([is(&[Source6], SetName::Owned6)]),
        drop([
            is(&[Iif], SetName::Roaming6),
            beyond,
            not(&[Source6], SetName::Prefix6),
        ]),
    ]
}

/// A port in hairpin mode gets back only what is for its own MAC: never its own broadcasts, which would look to
/// duplicate address detection like another guest with its address.
fn reflect() -> Vec<Rule> {
    let own = not(&[Oif, DestinationMac], SetName::PortMac);
    vec![drop([is(&[Iif, Oif], SetName::Reflect), own])]
}

/// Not in a later fragment, whose payload says nothing. The kernel's fast path for short fields reads ports out of it
/// all the same; a field of eight bytes goes the long way, which looks at the offset of the fragment and ends the rule.
fn with_header([udp, port]: [Test; 2]) -> [Test; 3] {
    let header = values(Transport8, vec![Value::Number(0)]);
    [
        udp,
        Test {
            not: true,
            ..header
        },
        port,
    ]
}

fn drop<const N: usize>(tests: [Test; N]) -> Rule {
    Rule::new(tests, Action::Drop)
}

fn accept<const N: usize>(tests: [Test; N]) -> Rule {
    Rule::new(tests, Action::Accept)
}

/// What `jhash @th,64,128 mod M seed S` makes of an address in the kernel.
fn target_hash(address: Ipv6Addr) -> u32 {
    let hash = jhash16(address.octets(), TARGET_SEED);
    let scaled = (u64::from(hash) * u64::from(TARGET_MODULUS)) >> 32;
    u32::try_from(scaled).expect("the product of two u32 shifted by 32 fits")
}

/// Bob Jenkins' lookup3 over sixteen bytes, as the kernel computes it: words in the machine's byte order.
fn jhash16(bytes: [u8; 16], seed: u32) -> u32 {
    let (words, _) = bytes.as_chunks::<4>();
    let [w0, w1, w2, w3] = [0, 1, 2, 3].map(|i| u32::from_ne_bytes(words[i]));
    let start = 0xdead_beef_u32.wrapping_add(16).wrapping_add(seed);
    let (a, b, c) = (
        start.wrapping_add(w0),
        start.wrapping_add(w1),
        start.wrapping_add(w2),
    );
    let (a, b, c) = mix(a, b, c);
    last(a.wrapping_add(w3), b, c)
}

const fn mix(mut a: u32, mut b: u32, mut c: u32) -> (u32, u32, u32) {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    (a, b, c)
}

const fn last(mut a: u32, mut b: u32, mut c: u32) -> u32 {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}
