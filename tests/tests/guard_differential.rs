//! The guard of the switch against the guard of the kernel: the same worlds, the same frames, the same verdicts.
//!
//! Each network of a world becomes a bridge with taps under the compiled ruleset, and a switch with ports under
//! [`Guard::of`]. A frame goes to all, and a listener that is no port of the world sees whether it came through.
//! Frames are put together at random from what guards look at; the seed is printed and taken from `GUARD_SEED`.
#![allow(
    clippy::cast_possible_truncation,
    reason = "lengths of frames that are made here"
)]

#[path = "../../vnet-core/tests/firewall_case/mod.rs"]
mod firewall_case;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use tests::{Ns, tool};
use tun_tap::{Iface, Mode};
use virtio_net_backend::switch::{Egress, Guard, Port, PortIndex, Switch, Time};
use vnet_core::firewall::{Hold, compile};
use vnet_core::model::{Port as WorldPort, World};

/// Addresses that are held, addresses that guests choose, and a bridge of the host where nothing is known.
const WORLD: &str = r#"
[[network]]
name = "held"
bridge.name = "vb-held"
[[network.subnet]]
address = "10.1.0.1/24"
[[network.subnet]]
address = "fd01::1/64"
dhcp.mode = "stateful"

[[network]]
name = "roam"
bridge.name = "vb-roam"
[[network.subnet]]
address = "10.2.0.1/24"
[[network.subnet]]
address = "fd02::1/64"
dhcp.mode = "slaac"

[[port]]
key = "held/a"
interface = "p-ha"
mac = "52:54:00:00:01:0a"
ipv4 = ["10.1.0.10"]
ipv6 = ["fd01::10"]

[[port]]
key = "held/b"
interface = "p-hb"
mac = "52:54:00:00:01:0b"
ipv4 = ["10.1.0.11", "10.1.0.12"]
ipv6 = ["fd01::11"]

[[port]]
key = "held/u"
interface = "p-hu"
mac = "52:54:00:00:01:0c"
guard = false

[[port]]
key = "roam/a"
interface = "p-ra"
mac = "52:54:00:00:02:0a"
ipv4 = ["10.2.0.10"]

[[port]]
key = "roam/b"
interface = "p-rb"
mac = "52:54:00:00:02:0b"
ipv4 = ["10.2.0.11"]
ipv6 = ["fd02::11"]

[[port]]
key = "roam/u"
interface = "p-ru"
mac = "52:54:00:00:02:0c"
guard = false

[[port]]
key = "bridge:vb-host/a"
interface = "p-na"
mac = "52:54:00:00:03:0a"

[[port]]
key = "bridge:vb-host/b"
interface = "p-nb"
mac = "52:54:00:00:03:0b"
ipv4 = ["192.0.2.9"]
ipv6 = ["2001:db8::9"]
"#;

const BRIDGES: [(&str, &str); 3] = [
    ("vb-held", "held/"),
    ("vb-roam", "roam/"),
    ("vb-host", "bridge:vb-host/"),
];
const FRAMES: usize = 3000;
const DEADLINE: Duration = Duration::from_secs(5);

/// A repeatable choice.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

/// The ports of one network.
fn neighbours<'w>(world: &'w World, home: &'w str) -> impl Iterator<Item = &'w WorldPort> {
    let ports = world.ports.values();
    ports.filter(move |port| port.key.to_string().starts_with(home))
}

/// What frames of one world are made of.
struct Parts {
    macs: Vec<[u8; 6]>,
    v4: Vec<[u8; 4]>,
    v6: Vec<[u8; 16]>,
}

impl Parts {
    /// Only of one network: the kernel's sets hold all, so it keeps an unguarded port from what is owned elsewhere, too.
    fn of(world: &World, home: &str) -> Self {
        let ports = || neighbours(world, home);
        let mut macs: Vec<_> = ports().map(|port| port.mac.octets()).collect();
        macs.push([0x02, 0, 0, 0, 0, 0x77]);
        let v4 = ports().flat_map(|port| &port.ipv4);
        let mut v4: Vec<_> = v4.map(Ipv4Addr::octets).collect();
        v4.extend([[0; 4], [10, 1, 0, 99], [10, 2, 0, 99], [198, 51, 100, 7]]);
        let v6 = ports().flat_map(|port| Hold::of(world, port).addresses);
        let v6 = v6.filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        });
        let mut v6: Vec<_> = v6.map(|address| address.octets()).collect();
        let more = ["::", "fe80::1234", "fd01::99", "fd02::99", "2001:db8::99"];
        v6.extend(more.map(|text| {
            text.parse::<std::net::Ipv6Addr>()
                .expect("an address")
                .octets()
        }));
        Self { macs, v4, v6 }
    }

    /// A whole, well-formed frame to everybody. `own` comes up more often than chance has it, or most frames would
    /// fail by their first address.
    fn frame(&self, dice: &mut Dice, own: &WorldPort) -> Vec<u8> {
        let mac = |dice: &mut Dice| {
            if dice.below(8) > 0 {
                own.mac.octets()
            } else {
                dice.of(&self.macs)
            }
        };
        let source = mac(dice);
        let (kind, payload) = match dice.below(10) {
            0..3 => {
                let sender = mac(dice);
                (0x0806u16, self.arp(dice, sender, own))
            }
            3..6 => (0x0800, self.ip4(dice, own)),
            6..9 => (0x86dd, self.ip6(dice, own)),
            _ => (
                dice.of(&[0x8035, 0x88b5, 0x8847, 0x8863, 0x0842]),
                vec![0; 46],
            ),
        };
        let tags: &[u8] = match dice.below(20) {
            0 => &[0x81, 0, 0, 5],
            1 => &[0x81, 0, 0, 0],
            2 => &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5],
            _ => &[],
        };
        [&[0xff; 6][..], &source, tags, &kind.to_be_bytes(), &payload].concat()
    }

    fn any4(&self, dice: &mut Dice, own: &WorldPort) -> [u8; 4] {
        match own.ipv4.first().filter(|_| dice.below(3) == 0) {
            Some(address) => address.octets(),
            None => dice.of(&self.v4),
        }
    }

    fn any6(&self, dice: &mut Dice, own: &WorldPort) -> [u8; 16] {
        match dice.below(6) {
            0 => own.mac.link_local().octets(),
            1 => [0; 16],
            2 => own.ipv6.first().map_or([0; 16], |address| address.octets()),
            _ => dice.of(&self.v6),
        }
    }

    fn arp(&self, dice: &mut Dice, sender: [u8; 6], own: &WorldPort) -> Vec<u8> {
        let operation = dice.of(&[1, 2]);
        let address = self.any4(dice, own);
        [
            &[0, 1, 8, 0, 6, 4, 0, operation][..],
            &sender,
            &address,
            &[0; 6],
            &[10, 1, 0, 1],
        ]
        .concat()
    }

    fn ip4(&self, dice: &mut Dice, own: &WorldPort) -> Vec<u8> {
        let (protocol, payload) = upper(dice, &[67, 68, 53, 1067], &[0; 8]);
        let options = dice.of(&[0usize, 0, 1]);
        // Whole, a first fragment, a later one.
        let fragment: u16 = dice.of(&[0, 0x4000, 0x2000, 0x2003]);
        let total = (20 + 4 * options + payload.len()) as u16;
        let mut header = vec![0x45 + options as u8, 0];
        header.extend(total.to_be_bytes());
        header.extend([0, 9]);
        header.extend(fragment.to_be_bytes());
        header.extend([64, if protocol == 58 { 1 } else { protocol }, 0, 0]);
        header.extend(self.any4(dice, own));
        header.extend([255; 4]);
        header.extend(vec![1; 4 * options]);
        let sum = header
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
            .sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        header[10..12].copy_from_slice(&(!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes());
        [header, payload].concat()
    }

    fn ip6(&self, dice: &mut Dice, own: &WorldPort) -> Vec<u8> {
        let kind = dice.of(&[128u8, 131, 133, 134, 135, 136, 136, 137, 143]);
        let icmp = [
            &[kind, 0, 0, 0, 0, 0, 0, 0][..],
            &self.any6(dice, own),
            &[0; 8],
        ]
        .concat();
        let (protocol, payload) = upper(dice, &[547, 546, 53, 1547], &icmp);
        let extensions: &[u8] = dice.of(&[&[][..], &[], &[0], &[60], &[0, 60], &[43], &[44]]);
        let mut next = extensions.iter().copied().chain([protocol]);
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(((8 * extensions.len() + payload.len()) as u16).to_be_bytes());
        packet.extend([next.next().unwrap_or(protocol), 64]);
        packet.extend(self.any6(dice, own));
        packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        for header in next {
            packet.extend([header, 0, 1, 4, 0, 0, 0, 0]);
        }
        [packet, payload].concat()
    }
}

/// A protocol and its bytes: UDP between those ports, TCP, or ICMP.
fn upper(dice: &mut Dice, ports: &[u16], icmp: &[u8]) -> (u8, Vec<u8>) {
    match dice.below(5) {
        0 | 1 => {
            let (from, to) = (dice.of(ports), dice.of(ports));
            (
                17,
                [
                    &from.to_be_bytes()[..],
                    &to.to_be_bytes(),
                    &[0, 16, 0, 0],
                    &[0; 8],
                ]
                .concat(),
            )
        }
        2 => (
            6,
            [&[0, 67, 0, 68][..], &[0; 8], &[0x50, 2, 0, 0, 0, 0, 0, 0]].concat(),
        ),
        _ => (58, icmp.to_vec()),
    }
}

/// One bridge under the kernel's guard: a tap for each port, one that speaks marks, one that listens.
struct Kernel {
    taps: BTreeMap<String, Iface>,
    marker: Iface,
    heard: mpsc::Receiver<Vec<u8>>,
    marks: u32,
}

fn tap(ns: &Ns, bridge: &str, name: &str) -> anyhow::Result<Iface> {
    let tap = ns.enter(|| Iface::without_packet_info(name, Mode::Tap))??;
    ns.ip(&format!("link set {name} master {bridge} up"))?;
    Ok(tap)
}

impl Kernel {
    fn new(ns: &Ns, world: &World, bridge: &str, home: &str) -> anyhow::Result<Self> {
        ns.ip(&format!(
            "link add {bridge} type bridge mcast_snooping 0 stp_state 0"
        ))?;
        ns.ip(&format!("link set {bridge} up"))?;
        let taps = neighbours(world, home).map(|port| {
            let name = port.interface.to_string();
            Ok((port.key.to_string(), tap(ns, bridge, &name)?))
        });
        let suffix = bridge.trim_start_matches("vb-");
        Ok(Self {
            taps: taps.collect::<anyhow::Result<_>>()?,
            marker: tap(ns, bridge, &format!("m-{suffix}"))?,
            heard: listen(tap(ns, bridge, &format!("l-{suffix}"))?),
            marks: 0,
        })
    }

    /// Whether the frame comes through. A mark goes after it: what has not come before the mark does not come.
    fn passes(&mut self, port: &str, frame: &[u8]) -> anyhow::Result<bool> {
        self.taps[port].send(frame)?;
        let mark = self.mark()?;
        let mut passed = false;
        loop {
            let heard = self.heard.recv_timeout(DEADLINE);
            let heard = heard.context("waiting for a mark")?;
            if heard == mark {
                return Ok(passed);
            }
            passed |= heard == frame;
        }
    }

    fn mark(&mut self) -> io::Result<Vec<u8>> {
        self.marks += 1;
        let mut mark = [
            &[0xff; 6][..],
            &[2, 0, 0, 0, 0, 0x99],
            &[0x88, 0xb6],
            &self.marks.to_be_bytes(),
        ]
        .concat();
        mark.resize(60, 0);
        self.marker.send(&mark)?;
        Ok(mark)
    }

    /// Ports come up in their own time: waits until each is heard.
    fn wait_until_it_forwards(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            let mark = self.mark()?;
            let wait = Duration::from_millis(5);
            while let Ok(heard) = self.heard.recv_timeout(wait) {
                if heard == mark {
                    return Ok(());
                }
            }
        }
        bail!("the bridge forwards nothing")
    }
}

/// What comes out of a tap. The thread ends with the process: nothing wakes a reader of a tap but a frame.
fn listen(tap: Iface) -> mpsc::Receiver<Vec<u8>> {
    let (sender, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok(length) = tap.recv(&mut buffer) {
            let frame = buffer.get(..length).unwrap_or_default().to_vec();
            if sender.send(frame).is_err() {
                return;
            }
        }
    });
    heard
}

/// The same network as a switch.
struct Ours {
    switch: Switch,
    ports: BTreeMap<String, PortIndex>,
    listener: PortIndex,
}

impl Ours {
    fn new(world: &World, home: &str) -> anyhow::Result<Self> {
        let mut switch = Switch::new(1024, 1);
        let now = Time::default();
        let mut ports = BTreeMap::new();
        for port in neighbours(world, home) {
            let guard = port.guard.then(|| Guard::of(&Hold::of(world, port)));
            let index = switch
                .attach(
                    now,
                    Port {
                        guard,
                        ..Port::default()
                    },
                )
                .context("a port")?;
            ports.insert(port.key.to_string(), index);
        }
        let listener = switch.attach(now, Port::uplink()).context("a port")?;
        Ok(Self {
            switch,
            ports,
            listener,
        })
    }

    fn judge(&mut self, port: &str, frame: &[u8]) -> Egress {
        self.switch
            .ingress(Time::default(), self.ports[port], frame)
    }

    fn passes(&self, egress: Egress) -> bool {
        egress.reaches(self.listener)
    }
}

fn seed() -> u64 {
    let given = std::env::var("GUARD_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    given.unwrap_or(now.as_nanos() as u64) | 1
}

#[test]
fn switch_and_kernel_agree() -> anyhow::Result<()> {
    if !tool::ready(
        "guard_differential::switch_and_kernel_agree",
        &["nft", "ip"],
    ) {
        return Ok(());
    }
    let world = firewall_case::world(WORLD);
    let ns = Ns::new("guard")?;
    ns.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")?;
    ns.sh("for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done")?;
    let text = ns
        .scratch()
        .write("ruleset.nft", &compile(&world).to_string())?;
    ns.sh(&format!("nft -f {}", text.display()))?;

    let seed = seed();
    println!("GUARD_SEED={seed}");
    let mut dice = Dice(seed);
    let (mut passed, mut differ) = (0, Vec::new());
    for (bridge, home) in BRIDGES {
        let mut kernel = Kernel::new(&ns, &world, bridge, home)?;
        let mut ours = Ours::new(&world, home)?;
        let parts = Parts::of(&world, home);
        kernel.wait_until_it_forwards()?;
        for port in neighbours(&world, home) {
            let key = port.key.to_string();
            for _ in 0..FRAMES {
                let frame = parts.frame(&mut dice, port);
                let theirs = kernel.passes(&key, &frame)?;
                let egress = ours.judge(&key, &frame);
                passed += usize::from(theirs);
                if theirs != ours.passes(egress) {
                    differ.push(format!(
                        "{key}: kernel {theirs}, switch {egress:?}: {}",
                        hex(&frame)
                    ));
                }
            }
        }
    }
    let all = FRAMES * world.ports.len();
    assert!(
        passed > all / 10 && passed < all * 9 / 10,
        "{passed} of {all} passed: the frames say little"
    );
    assert!(
        differ.is_empty(),
        "seed {seed}: {} of {all} differ\n{}",
        differ.len(),
        differ[..differ.len().min(20)].join("\n")
    );
    println!("{all} frames, {passed} passed both guards, none differed");
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
