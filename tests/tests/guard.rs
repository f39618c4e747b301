//! What a port may send, tried with forged frames: each test holds the guest's end of real taps on a real bridge, and
//! writes into them what no honest guest would.
//!
//! Nothing is timed: behind each frame goes an honest one, and when that has arrived, what was before it has arrived
//! or never will.

#[path = "../../vnet-core/tests/firewall_case/mod.rs"]
mod firewall_case;
mod lab;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context as _;
use firewall_case::world;
use lab::Lab;
use tests::{Ns, tool, wait_for};
use tun_tap::{Iface, Mode};
use vnet_core::types::Mac;

const WORLD: &str = r#"
[[network]]
name = "held"
bridge.name = "vb-held"
publish = [{ guest = "mirror", ports = "8080:80" }]
subnet = [{ address = "10.1.0.1/24" }, { address = "fd01::1/64", dhcp.mode = "stateful" }]
[[network]]
name = "roam"
bridge.name = "vb-roam"
subnet = [{ address = "10.2.0.1/24" }, { address = "fd02::1/64", dhcp.mode = "slaac" }]
[[port]]
key = "held/evil"
interface = "p-evil"
mac = "52:54:00:00:00:0a"
ipv4 = ["10.1.0.10"]
ipv6 = ["fd01::10"]
[[port]]
key = "held/victim"
interface = "p-victim"
mac = "52:54:00:00:00:0b"
ipv4 = ["10.1.0.11"]
ipv6 = ["fd01::11"]
[[port]]
key = "held/router"
interface = "p-router"
mac = "52:54:00:00:00:0c"
ipv4 = ["10.1.0.12"]
ipv6 = ["fd01::12"]
guard = false
[[port]]
key = "held/mirror"
interface = "p-mirror"
mac = "52:54:00:00:00:0d"
ipv4 = ["10.1.0.13"]
[[port]]
key = "roam/evil"
interface = "r-evil"
mac = "52:54:00:00:00:0a"
ipv4 = ["10.2.0.10"]
[[port]]
key = "roam/victim"
interface = "r-victim"
mac = "52:54:00:00:00:0b"
ipv4 = ["10.2.0.11"]
ipv6 = ["fd02::11"]
[[port]]
key = "bridge:br0/free"
interface = "h-free"
mac = "52:54:00:00:00:0f"
[[port]]
key = "bridge:br0/other"
interface = "h-other"
mac = "52:54:00:00:00:10"
"#;

const EVIL: Mac = Mac([0x52, 0x54, 0, 0, 0, 0xa]);
const VICTIM: Mac = Mac([0x52, 0x54, 0, 0, 0, 0xb]);
const ROUTER: Mac = Mac([0x52, 0x54, 0, 0, 0, 0xc]);
const MIRROR: Mac = Mac([0x52, 0x54, 0, 0, 0, 0xd]);
const STRANGER: Mac = Mac([0x52, 0x54, 0, 0, 0, 0xee]);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The guest's end of a tap.
struct Tap {
    iface: Arc<Iface>,
    frames: mpsc::Receiver<Vec<u8>>,
}

/// A lab whose guests are we.
struct Taps<'h> {
    lab: Lab<'h>,
    serial: u16,
}

impl<'h> Taps<'h> {
    fn new(host: &'h Ns) -> anyhow::Result<Self> {
        let lab = Lab::plain(host, world(WORLD))?;
        host.sh("ip link add br0 type bridge && ip link set br0 up")?;
        lab::break_a_rule(host)?;
        Ok(Self { lab, serial: 0 })
    }

    fn open(&self, name: &str) -> anyhow::Result<Tap> {
        let iface = Arc::new(
            self.lab
                .host
                .enter(|| Iface::without_packet_info(name, Mode::Tap))??,
        );
        let (sender, frames) = mpsc::channel();
        let reader = Arc::clone(&iface);
        // Ends with the process: nothing wakes a reader of a tap but a frame.
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok(length) = reader.recv(&mut buffer) {
                let frame = buffer.get(..length).unwrap_or_default().to_vec();
                if sender.send(frame).is_err() {
                    return;
                }
            }
        });
        let tap = Tap { iface, frames };
        let bridge = if name.starts_with('r') {
            "vb-roam"
        } else {
            "vb-held"
        };
        self.lab
            .host
            .ip(&format!("link set {name} master {bridge} up"))?;
        // The bridge forwards for a port once its carrier is up.
        wait_for("a forwarding port", Duration::from_secs(10), || {
            let shown = self.lab.host.sh(&format!("bridge link show dev {name}"))?;
            anyhow::ensure!(shown.contains("state forwarding"), "{shown}");
            anyhow::Ok(())
        })?;
        Ok(tap)
    }

    /// Whether what is written into `from` comes out of `to`, where `honest` makes a frame that does.
    fn passes(
        &mut self,
        from: &Tap,
        to: &Tap,
        frame: &[u8],
        honest: impl Fn(u16) -> Vec<u8>,
    ) -> anyhow::Result<bool> {
        self.serial += 1;
        let marker = honest(self.serial);
        from.iface.send(frame)?;
        from.iface.send(&marker)?;
        let mut seen = false;
        loop {
            let got = to
                .frames
                .recv_timeout(Duration::from_secs(10))
                .context("the honest frame did not come")?;
            seen |= got == frame;
            if got == marker {
                return Ok(seen);
            }
        }
    }

    /// Every frame with what should become of it.
    fn check(
        &mut self,
        from: &Tap,
        to: &Tap,
        honest: impl Fn(u16) -> Vec<u8> + Copy,
        frames: Vec<(&str, bool, Vec<u8>)>,
    ) -> anyhow::Result<()> {
        let mut wrong = Vec::new();
        for (what, due, frame) in frames {
            if self.passes(from, to, &frame, honest)? != due {
                wrong.push(format!(
                    "{what}: {}",
                    if due { "was dropped" } else { "passed" }
                ));
            }
        }
        anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }
}

fn ether(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to.octets(), from.octets()].concat();
    frame.extend(kind.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The Internet checksum of even-sized parts.
fn checksum(bytes: &[u8]) -> u16 {
    let (pairs, _) = bytes.as_chunks::<2>();
    let sum: u32 = pairs
        .iter()
        .map(|pair| u32::from(u16::from_be_bytes(*pair)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default()
}

fn udp(from: u16, to: u16, serial: u16) -> Vec<u8> {
    // No checksum: IPv4 allows it, and nobody here looks at it in IPv6.
    [from, to, 16, 0, serial, 0, 0, 0]
        .map(u16::to_be_bytes)
        .concat()
}

fn ip4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len())
        .unwrap_or_default()
        .to_be_bytes();
    let mut header = vec![
        0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0,
    ];
    header.extend(from);
    header.extend(to);
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header.extend_from_slice(payload);
    header
}

fn udp4(mac: Mac, from: [u8; 4], ports: (u16, u16), serial: u16) -> Vec<u8> {
    let payload = udp(ports.0, ports.1, serial);
    ether(
        VICTIM,
        mac,
        0x0800,
        &ip4(from, [10, 1, 0, 11], 17, &payload),
    )
}

fn arp(mac: Mac, operation: u8, claims: (Mac, [u8; 4])) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(claims.0.octets());
    body.extend(claims.1);
    body.extend([0; 6]);
    body.extend([10, 1, 0, 11]);
    ether(Mac::BROADCAST, mac, 0x0806, &body)
}

fn ip6(mac: Mac, from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len())
        .unwrap_or_default()
        .to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, 255];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend_from_slice(payload);
    ether(VICTIM, mac, 0x86dd, &packet)
}

/// An ICMPv6 message of neighbour discovery. (The bridge does not look at its checksum.)
fn nd(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(target.octets());
    message
}

fn addr6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

fn tagged(kind: u16, id: u16, inner: &[u8]) -> Vec<u8> {
    let (addresses, rest) = inner.split_at(12);
    [addresses, &kind.to_be_bytes(), &id.to_be_bytes(), rest].concat()
}

const SOLICIT: u8 = 135;
const ADVERT: u8 = 136;
const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
const REDIRECT: u8 = 137;

fn ready(test: &str) -> bool {
    tool::ready(test, &["nft", "ip", "bridge"])
}

fn honest(serial: u16) -> Vec<u8> {
    udp4(EVIL, [10, 1, 0, 10], (1, 2), serial)
}

#[test]
fn a_guarded_port_speaks_for_itself_only() -> anyhow::Result<()> {
    if !ready("guard::a_guarded_port_speaks_for_itself_only") {
        return Ok(());
    }
    let host = Ns::new("guard4")?;
    let mut taps = Taps::new(&host)?;
    let (evil, victim) = (taps.open("p-evil")?, taps.open("p-victim")?);
    let own = [10, 1, 0, 10];
    let frames = vec![
        ("IPv4 as itself", true, udp4(EVIL, own, (1, 2), 900)),
        ("ARP as itself", true, arp(EVIL, 1, (EVIL, own))),
        ("an ARP answer as itself", true, arp(EVIL, 2, (EVIL, own))),
        ("an ARP probe", true, arp(EVIL, 1, (EVIL, [0; 4]))),
        ("DHCP as a client", true, udp4(EVIL, [0; 4], (68, 67), 901)),
        (
            "RARP after a move",
            true,
            ether(Mac::BROADCAST, EVIL, 0x8035, &[0; 28]),
        ),
        (
            "the victim's address",
            false,
            udp4(EVIL, [10, 1, 0, 11], (1, 2), 902),
        ),
        (
            "the gateway's address",
            false,
            udp4(EVIL, [10, 1, 0, 1], (1, 2), 903),
        ),
        (
            "any address",
            false,
            udp4(EVIL, [192, 0, 2, 1], (1, 2), 904),
        ),
        (
            "no address, and not DHCP",
            false,
            udp4(EVIL, [0; 4], (1, 2), 905),
        ),
        ("the victim's MAC", false, udp4(VICTIM, own, (1, 2), 906)),
        ("any MAC", false, udp4(STRANGER, own, (1, 2), 907)),
        (
            "ARP for the victim",
            false,
            arp(EVIL, 2, (EVIL, [10, 1, 0, 11])),
        ),
        (
            "ARP for the gateway",
            false,
            arp(EVIL, 2, (EVIL, [10, 1, 0, 1])),
        ),
        (
            "ARP with another MAC inside",
            false,
            arp(EVIL, 2, (STRANGER, own)),
        ),
        (
            "ARP with another MAC outside",
            false,
            arp(STRANGER, 2, (EVIL, own)),
        ),
        ("DHCP as a server", false, udp4(EVIL, own, (67, 68), 908)),
    ];
    taps.check(&evil, &victim, honest, frames)
}

#[test]
fn nothing_slips_past_in_another_wrapping() -> anyhow::Result<()> {
    if !ready("guard::nothing_slips_past_in_another_wrapping") {
        return Ok(());
    }
    let host = Ns::new("guardv")?;
    let mut taps = Taps::new(&host)?;
    let (evil, victim) = (taps.open("p-evil")?, taps.open("p-victim")?);
    let forged = udp4(EVIL, [10, 1, 0, 11], (1, 2), 900);
    let advert = nd(ROUTER_ADVERT, addr6("::"));
    let local = EVIL.link_local();
    // An empty options header that is followed by ICMPv6.
    let options = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &advert].concat();
    let fragment = [&[58, 0, 0, 0, 0, 0, 0, 7][..], &advert].concat();
    let frames = vec![
        (
            "a forged packet with a VLAN tag",
            false,
            tagged(0x8100, 5, &forged),
        ),
        ("with a priority tag", false, tagged(0x8100, 0, &forged)),
        ("with a service tag", false, tagged(0x88a8, 5, &forged)),
        (
            "with two tags",
            false,
            tagged(0x88a8, 5, &tagged(0x8100, 6, &forged)),
        ),
        (
            "an honest packet with a VLAN tag",
            false,
            tagged(0x8100, 5, &honest(901)),
        ),
        (
            "a tagged ARP for the gateway",
            false,
            tagged(0x8100, 0, &arp(EVIL, 2, (EVIL, [10, 1, 0, 1]))),
        ),
        ("LLDP", false, ether(Mac::BROADCAST, EVIL, 0x88cc, &[0; 46])),
        (
            "spanning tree",
            false,
            ether(Mac([1, 0x80, 0xc2, 0, 0, 0]), EVIL, 38, &[0x42; 46]),
        ),
        ("LLC", false, ether(Mac::BROADCAST, EVIL, 46, &[0xaa; 46])),
        (
            "a router advertisement after a hop-by-hop header",
            false,
            ip6(EVIL, local, ALL_NODES, 0, &options),
        ),
        (
            "after destination options",
            false,
            ip6(EVIL, local, ALL_NODES, 60, &options),
        ),
        (
            "in a fragment of its own",
            false,
            ip6(EVIL, local, ALL_NODES, 44, &fragment),
        ),
    ];
    taps.check(&evil, &victim, honest, frames)
}

#[test]
fn ipv6_is_guarded_alike() -> anyhow::Result<()> {
    if !ready("guard::ipv6_is_guarded_alike") {
        return Ok(());
    }
    let host = Ns::new("guard6")?;
    let mut taps = Taps::new(&host)?;
    let (evil, victim) = (taps.open("p-evil")?, taps.open("p-victim")?);
    let (own, local, none) = (addr6("fd01::10"), EVIL.link_local(), addr6("::"));
    let (theirs, gateway) = (addr6("fd01::11"), addr6("fd01::1"));
    let data = |from| ip6(EVIL, from, theirs, 17, &udp(1, 2, 0));
    let say = |from, kind, target| ip6(EVIL, from, ALL_NODES, 58, &nd(kind, target));
    let frames = vec![
        ("IPv6 as itself", true, data(own)),
        ("link-local as itself", true, data(local)),
        // Guests choose link-local addresses as they like (RFC 7217), and ask for their others from them.
        ("any link-local", true, data(addr6("fe80::1234"))),
        ("a question as itself", true, say(own, SOLICIT, theirs)),
        ("an answer as itself", true, say(own, ADVERT, own)),
        ("its link-local address", true, say(local, ADVERT, local)),
        (
            "duplicate detection of its own",
            true,
            say(none, SOLICIT, own),
        ),
        ("of its link-local", true, say(none, SOLICIT, local)),
        ("asking for routers", true, say(none, ROUTER_SOLICIT, none)),
        (
            "DHCPv6 as a client",
            true,
            ip6(EVIL, local, addr6("ff02::1:2"), 17, &udp(546, 547, 0)),
        ),
        ("the victim's address", false, data(theirs)),
        ("the gateway's address", false, data(gateway)),
        ("any address", false, data(addr6("2001:db8::1"))),
        ("any of the subnet", false, data(addr6("fd01::99"))),
        ("the victim's link-local", false, data(VICTIM.link_local())),
        ("no address, and data", false, data(none)),
        ("an answer for the victim", false, say(own, ADVERT, theirs)),
        ("for the gateway", false, say(own, ADVERT, gateway)),
        (
            "for the victim's link-local",
            false,
            say(local, ADVERT, VICTIM.link_local()),
        ),
        (
            "duplicate detection of the victim's",
            false,
            say(none, SOLICIT, theirs),
        ),
        (
            "a router advertisement",
            false,
            say(local, ROUTER_ADVERT, none),
        ),
        ("a redirect", false, say(local, REDIRECT, none)),
        (
            "DHCPv6 as a server",
            false,
            ip6(EVIL, local, theirs, 17, &udp(547, 546, 0)),
        ),
    ];
    taps.check(&evil, &victim, honest, frames)
}

/// Where guests make their own addresses they may, but not those that are known to be another's.
#[test]
fn a_roaming_port_takes_what_is_free() -> anyhow::Result<()> {
    if !ready("guard::a_roaming_port_takes_what_is_free") {
        return Ok(());
    }
    let host = Ns::new("guardr")?;
    let mut taps = Taps::new(&host)?;
    let (evil, victim) = (taps.open("r-evil")?, taps.open("r-victim")?);
    let (theirs, none) = (addr6("fd02::11"), addr6("::"));
    let eui64 = addr6("fd02::5054:ff:fe00:b");
    let (free, local) = (addr6("fd02::abcd:1234"), addr6("fe80::abcd:1234"));
    let data = |from| ip6(EVIL, from, theirs, 17, &udp(1, 2, 0));
    let say = |from, kind, target| ip6(EVIL, from, ALL_NODES, 58, &nd(kind, target));
    let frames = vec![
        ("an address of its own making", true, data(free)),
        ("a link-local one", true, data(local)),
        ("detection of it", true, say(none, SOLICIT, free)),
        ("an answer for it", true, say(free, ADVERT, free)),
        ("the gateway's address", false, data(addr6("fd02::1"))),
        (
            "an answer for the gateway",
            false,
            say(free, ADVERT, addr6("fd02::1")),
        ),
        (
            "detection of the gateway's",
            false,
            say(none, SOLICIT, addr6("fd02::1")),
        ),
        ("the victim's address", false, data(theirs)),
        ("what follows from the victim's MAC", false, data(eui64)),
        ("the victim's link-local", false, data(VICTIM.link_local())),
        ("outside the prefix", false, data(addr6("2001:db8::1"))),
        (
            "an address of another network",
            false,
            data(addr6("fd01::10")),
        ),
        ("an answer for the victim", false, say(free, ADVERT, theirs)),
        (
            "for the victim's link-local",
            false,
            say(free, ADVERT, VICTIM.link_local()),
        ),
        (
            "detection of the victim's",
            false,
            say(none, SOLICIT, eui64),
        ),
        (
            "a router advertisement",
            false,
            say(local, ROUTER_ADVERT, none),
        ),
    ];
    let honest = |serial| {
        ether(
            VICTIM,
            EVIL,
            0x0800,
            &ip4([10, 2, 0, 10], [10, 2, 0, 11], 17, &udp(1, 2, serial)),
        )
    };
    taps.check(&evil, &victim, honest, frames)
}

/// On a bridge of the host no address is known: any may be used, but those of guests that are known to be elsewhere.
#[test]
fn a_port_of_a_host_bridge_is_held_to_its_mac() -> anyhow::Result<()> {
    if !ready("guard::a_port_of_a_host_bridge_is_held_to_its_mac") {
        return Ok(());
    }
    let host = Ns::new("guardb")?;
    let mut taps = Taps::new(&host)?;
    let (free, other) = (taps.open("h-free")?, taps.open("h-other")?);
    let mac = Mac([0x52, 0x54, 0, 0, 0, 0xf]);
    let frames = vec![
        ("any address", true, udp4(mac, [192, 0, 2, 1], (1, 2), 900)),
        ("another", true, udp4(mac, [192, 0, 2, 2], (1, 2), 901)),
        ("ARP for it", true, arp(mac, 2, (mac, [192, 0, 2, 2]))),
        (
            "another MAC",
            false,
            udp4(STRANGER, [192, 0, 2, 1], (1, 2), 902),
        ),
        (
            "DHCP as a server",
            false,
            udp4(mac, [192, 0, 2, 1], (67, 68), 903),
        ),
        (
            "the address of a guest of ours",
            false,
            udp4(mac, [10, 1, 0, 10], (1, 2), 904),
        ),
        ("ARP for it", false, arp(mac, 2, (mac, [10, 1, 0, 10]))),
    ];
    taps.check(
        &free,
        &other,
        |serial| udp4(mac, [192, 0, 2, 1], (1, 2), serial),
        frames,
    )
}

/// The hash that the guard keeps in the mark for a moment leaves no trace.
#[test]
fn a_claim_leaves_no_mark() -> anyhow::Result<()> {
    if !ready("guard::a_claim_leaves_no_mark") {
        return Ok(());
    }
    let host = Ns::new("guardm")?;
    let mut taps = Taps::new(&host)?;
    let (evil, victim) = (taps.open("p-evil")?, taps.open("p-victim")?);
    host.sh(
        "nft add table bridge seen && nft add chain bridge seen later '{ type filter hook forward priority 0; }' &&
         nft add rule bridge seen later meta mark != 0 drop",
    )?;
    let own = addr6("fd01::10");
    let answer = ip6(EVIL, own, ALL_NODES, 58, &nd(ADVERT, own));
    taps.check(
        &evil,
        &victim,
        honest,
        vec![("an answer as itself", true, answer)],
    )
}

/// The other direction: whoever it comes from, nobody enters as if it were a guarded guest.
#[test]
fn nobody_claims_what_a_guarded_port_owns() -> anyhow::Result<()> {
    if !ready("guard::nobody_claims_what_a_guarded_port_owns") {
        return Ok(());
    }
    let host = Ns::new("guardo")?;
    let mut taps = Taps::new(&host)?;
    let (router, victim, evil) = (
        taps.open("p-router")?,
        taps.open("p-victim")?,
        taps.open("p-evil")?,
    );
    let (own, theirs) = (addr6("fd01::12"), addr6("fd01::11"));
    let say = |kind, target| ip6(ROUTER, own, ALL_NODES, 58, &nd(kind, target));
    let frames = vec![
        (
            "a router's packet of elsewhere",
            true,
            udp4(ROUTER, [192, 0, 2, 1], (1, 2), 900),
        ),
        (
            "another MAC behind it",
            true,
            udp4(STRANGER, [10, 1, 0, 99], (1, 2), 901),
        ),
        (
            "a server's answer",
            true,
            udp4(ROUTER, [10, 1, 0, 12], (67, 68), 902),
        ),
        (
            "a router advertisement",
            true,
            say(ROUTER_ADVERT, addr6("::")),
        ),
        (
            "ARP for an address behind it",
            true,
            arp(ROUTER, 2, (ROUTER, [10, 1, 0, 99])),
        ),
        (
            "an answer for an address behind it",
            true,
            say(ADVERT, addr6("fd01::99")),
        ),
        (
            "ARP for a guarded guest",
            false,
            arp(ROUTER, 2, (ROUTER, [10, 1, 0, 11])),
        ),
        (
            "the MAC of a guarded guest",
            false,
            udp4(VICTIM, [10, 1, 0, 12], (1, 2), 903),
        ),
        ("an answer for a guarded guest", false, say(ADVERT, theirs)),
    ];
    let honest = |serial| udp4(ROUTER, [10, 1, 0, 12], (1, 2), serial);
    // Seen from two sides: the one it pretends to be, and a third.
    taps.check(
        &router,
        &evil,
        |serial| {
            ether(
                EVIL,
                ROUTER,
                0x0800,
                &ip4([10, 1, 0, 12], [10, 1, 0, 10], 17, &udp(1, 2, serial)),
            )
        },
        vec![(
            "ARP for a guarded guest, to a third",
            false,
            arp(ROUTER, 2, (ROUTER, [10, 1, 0, 11])),
        )],
    )?;
    taps.check(&router, &victim, honest, frames)
}

/// A publishing guest's port reflects (hairpin mode) what is turned around for it, and nothing else: its own
/// broadcasts, coming back, would look like another guest with its addresses.
#[test]
fn a_hairpin_port_reflects_only_what_is_for_it() -> anyhow::Result<()> {
    if !ready("guard::a_hairpin_port_reflects_only_what_is_for_it") {
        return Ok(());
    }
    let host = Ns::new("guardh")?;
    let mut taps = Taps::new(&host)?;
    let mirror = taps.open("p-mirror")?;
    taps.lab
        .host
        .sh("bridge link set dev p-mirror hairpin on")?;
    let own = [10, 1, 0, 13];
    let to = |mac, serial| {
        ether(
            mac,
            MIRROR,
            0x0800,
            &ip4(own, [10, 1, 0, 99], 17, &udp(1, 2, serial)),
        )
    };
    let local = MIRROR.link_local();
    let detect = ip6(
        MIRROR,
        addr6("::"),
        addr6("ff02::1:ff00:d"),
        58,
        &nd(SOLICIT, local),
    );
    let mut multicast = detect.clone();
    multicast[..6].copy_from_slice(&[0x33, 0x33, 0xff, 0, 0, 0xd]);
    let frames = vec![
        ("what is for it", true, to(MIRROR, 900)),
        ("its broadcast", false, arp(MIRROR, 1, (MIRROR, own))),
        ("its duplicate detection", false, multicast),
        (
            "what is for a MAC that nobody knows",
            false,
            to(STRANGER, 901),
        ),
    ];
    // First it must be known where its MAC is.
    let learn = arp(MIRROR, 1, (MIRROR, own));
    mirror.iface.send(&learn)?;
    taps.check(&mirror, &mirror, |serial| to(MIRROR, serial), frames)
}

/// The addresses above, as the model counts them.
#[test]
fn the_world_is_what_the_frames_assume() {
    let world = world(WORLD);
    let evil = world
        .ports
        .values()
        .find(|port| port.interface.as_str() == "p-evil")
        .expect("the port");
    assert_eq!(
        (evil.mac, evil.ipv4[0]),
        (EVIL, Ipv4Addr::new(10, 1, 0, 10))
    );
}
