//! Many clients that nobody here wrote (smoltcp's), one server, a wire that loses, doubles and reorders frames, and a
//! disk that stops at the n-th write, on a virtual clock. The oracle: no address is held by two, and no acknowledged
//! lease is lost. Every run is a seed; a failure prints it.
#![allow(clippy::unwrap_used, reason = "a test's own set-up must not fail")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::dhcpv4;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress};
use uuid::Uuid;
use vnet_core::config::{Fill, native};
use vnet_core::dhcp::v4::{self, Datagram, Message, Scope, Server, Verdict};
use vnet_core::lease::{Change, LeaseRecord, Time};
use vnet_core::model::World;
use vnet_core::types::Mac;

const OURS: Mac = Mac([0x52, 0x54, 0, 0, 0, 0xfe]);
const BEGIN: u64 = 1_700_000_000_000;

const LAB: &str = r#"
name = "lab"
[[subnet]]
address = "10.0.0.1/24"
[subnet.dhcp]
ranges = ["10.0.0.10-10.0.0.45"]
lease_time = "2m"
"#;

/// Numbers from a seed (splitmix64): the only chance in the simulation.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn percent(&mut self, of: u64) -> bool {
        self.roll(100) < of
    }
}

/// How bad the world is.
#[derive(Clone, Copy)]
struct Weather {
    loss: u64,
    double: u64,
    /// Frames arrive after up to so many milliseconds, in any order.
    delay: u64,
    /// The server dies at about one in so many writes, before or after it is on disk.
    crash: Option<u64>,
    /// The server sends before it writes: what the oracle must catch.
    careless: bool,
}

/// A client's network card.
#[derive(Default)]
struct Card {
    inbox: Vec<Vec<u8>>,
    outbox: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = (!self.inbox.is_empty()).then(|| self.inbox.remove(0))?;
        Some((Received(frame), Sending(&mut self.outbox)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

struct Client {
    mac: Mac,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    /// What it believes to hold, and until when the server promised it.
    holds: Option<Ipv4Addr>,
}

impl Client {
    fn new(number: u8, seed: u64, now: Instant) -> Self {
        let mac = Mac([0x52, 0x54, 0, 0, 1, number]);
        let address = HardwareAddress::Ethernet(EthernetAddress(mac.0));
        let mut config = Config::new(address);
        config.random_seed = seed ^ u64::from(number);
        let mut card = Card::default();
        let interface = Interface::new(config, &mut card, now);
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = sockets.add(dhcpv4::Socket::new());
        Self {
            mac,
            card,
            interface,
            sockets,
            dhcp,
            holds: None,
        }
    }

    /// Does what is due, if anything is.
    fn poll(&mut self, now: Instant) {
        let due = self.interface.poll_at(now, &self.sockets);
        if self.card.inbox.is_empty() && due.is_none_or(|at| at > now) {
            return;
        }
        self.interface.poll(now, &mut self.card, &mut self.sockets);
        let socket = self.sockets.get_mut::<dhcpv4::Socket<'_>>(self.dhcp);
        while let Some(event) = socket.poll() {
            self.holds = match event {
                dhcpv4::Event::Configured(config) => Some(config.address.address()),
                dhcpv4::Event::Deconfigured => None,
            };
        }
    }

    fn reboot(&mut self) {
        self.sockets
            .get_mut::<dhcpv4::Socket<'_>>(self.dhcp)
            .reset();
        self.card.inbox.clear();
        self.holds = None;
    }
}

/// Something on the wire: when it arrives, an order for equal times, for whom.
type InFlight = Reverse<(u64, u64, Option<usize>, Vec<u8>)>;

struct Lan {
    dice: Dice,
    weather: Weather,
    now: u64,
    clients: Vec<Client>,
    wire: BinaryHeap<InFlight>,
    sent: u64,
    server: Server,
    disk: BTreeMap<IpAddr, LeaseRecord>,
    /// Every ACK that left the server: the address, whose, until when.
    promises: Vec<(Ipv4Addr, Mac, Time)>,
    crashes: u64,
    acks: u64,
}

fn scope() -> Scope {
    let fill = Fill {
        uuid: Uuid::nil(),
        bridge: "br0".parse().unwrap(),
        mac: OURS,
        subnets: Vec::new(),
    };
    let network = native::from_toml(LAB).unwrap()[0].settle(&fill).unwrap();
    let name = network.name.clone();
    let mut world = World::default();
    world.networks.insert(name.clone(), network);
    Scope::of(&world, &name).unwrap()
}

impl Lan {
    fn new(seed: u64, clients: u8, weather: Weather) -> Self {
        Self {
            dice: Dice(seed),
            weather,
            now: 0,
            clients: (0..clients)
                .map(|n| Client::new(n, seed, Instant::from_millis(0)))
                .collect(),
            wire: BinaryHeap::new(),
            sent: 0,
            server: Server::new(scope(), [], Time(BEGIN)),
            disk: BTreeMap::new(),
            promises: Vec::new(),
            crashes: 0,
            acks: 0,
        }
    }

    fn time(&self) -> Time {
        Time(BEGIN + self.now)
    }

    fn run(&mut self, millis: u64) -> Result<(), String> {
        let end = self.now + millis;
        while self.now < end {
            self.now += 20;
            while self
                .wire
                .peek()
                .is_some_and(|Reverse((at, ..))| *at <= self.now)
            {
                let Some(Reverse((_, _, to, frame))) = self.wire.pop() else {
                    break;
                };
                match to {
                    Some(client) => self.clients[client].card.inbox.push(frame),
                    None => self.serve(&frame)?,
                }
            }
            let now = Instant::from_millis(i64::try_from(self.now).unwrap());
            for client in 0..self.clients.len() {
                self.clients[client].poll(now);
                for frame in std::mem::take(&mut self.clients[client].card.outbox) {
                    self.send(None, frame);
                }
                if self.dice.roll(30_000) == 0 {
                    self.clients[client].reboot();
                }
            }
            self.no_address_twice()?;
        }
        Ok(())
    }

    fn send(&mut self, to: Option<usize>, frame: Vec<u8>) {
        let copies = 1 + u64::from(self.dice.percent(self.weather.double));
        for _ in 0..copies {
            if !self.dice.percent(self.weather.loss) {
                self.sent += 1;
                let at = self.now + self.dice.roll(self.weather.delay + 1);
                self.wire.push(Reverse((at, self.sent, to, frame.clone())));
            }
        }
    }

    /// What the shell does: decide, write, and only then send.
    fn serve(&mut self, frame: &[u8]) -> Result<(), String> {
        let Some(datagram) = Datagram::parse(frame, false) else {
            return Ok(());
        };
        let message = Message::parse(datagram.payload).map_err(|e| format!("{e:?}"))?;
        let now = self.time();
        let verdict = self.server.handle(now, &datagram.from, &message);
        let via = datagram.from.mac.unwrap();
        match verdict {
            Verdict::Ignore(_) => {}
            Verdict::Reply(reply)
            | Verdict::Probe {
                then: Some(reply), ..
            } => self.answer(&reply, via),
            Verdict::Probe { then: None, .. } => {}
            Verdict::Commit { records, then, .. } => {
                let dies = self.weather.crash.is_some_and(|n| self.dice.roll(n) == 0);
                let written = !dies || self.dice.percent(50);
                let sends_first = self.weather.careless;
                if let (Some(reply), true) = (&then, sends_first) {
                    self.answer(reply, via);
                }
                if written {
                    self.write(records);
                }
                if dies {
                    return self.crash();
                }
                if let (Some(reply), false) = (&then, sends_first) {
                    self.answer(reply, via);
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, records: Vec<Change>) {
        for change in records {
            match change {
                // Through bytes, as on the real disk.
                Change::Put(record) => {
                    let key = LeaseRecord::key(&record.network, record.address);
                    let record = LeaseRecord::from_bytes(&key, &record.to_bytes()).unwrap();
                    self.disk.insert(record.address, record);
                }
                Change::Delete(_, address) => drop(self.disk.remove(&address)),
            }
        }
    }

    fn answer(&mut self, reply: &v4::Reply, via: Mac) {
        if reply.kind == v4::MessageType::Ack {
            self.acks += 1;
            let yiaddr = Ipv4Addr::from(<[u8; 4]>::try_from(&reply.bytes[16..20]).unwrap());
            let until = self.time().plus_secs(120);
            self.promises
                .retain(|(a, mac, _)| *a != yiaddr || *mac != via);
            self.promises.push((yiaddr, via, until));
        }
        let frame = v4::frame(reply, OURS, via);
        let to = Mac(frame[..6].try_into().unwrap());
        for client in 0..self.clients.len() {
            if to == self.clients[client].mac || to == Mac::BROADCAST {
                self.send(Some(client), frame.clone());
            }
        }
    }

    /// The server comes back with what the disk has, and every promise that still runs must be in it.
    fn crash(&mut self) -> Result<(), String> {
        self.crashes += 1;
        let now = self.time();
        self.server = Server::new(scope(), self.disk.values().cloned(), now);
        for (address, mac, until) in &self.promises {
            if *until <= now {
                continue;
            }
            let kept = self.disk.get(&IpAddr::V4(*address));
            let good = kept.is_some_and(|r| r.mac == Some(*mac) && r.expires >= *until);
            // Its client may have moved since, by a lease that the disk has.
            let moved = self
                .disk
                .values()
                .any(|r| r.mac == Some(*mac) && r.granted > Time(BEGIN));
            if !good && !moved {
                return Err(format!(
                    "the lease of {mac} for {address} is lost: {kept:?}"
                ));
            }
        }
        Ok(())
    }

    fn no_address_twice(&self) -> Result<(), String> {
        let mut seen = BTreeMap::new();
        for client in &self.clients {
            if let Some(address) = client.holds
                && let Some(other) = seen.insert(address, client.mac)
            {
                return Err(format!(
                    "at {} ms {address} is held by {other} and {}",
                    self.now, client.mac
                ));
            }
        }
        Ok(())
    }

    fn bound(&self) -> usize {
        self.clients.iter().filter(|c| c.holds.is_some()).count()
    }
}

const CALM: Weather = Weather {
    loss: 0,
    double: 0,
    delay: 0,
    crash: None,
    careless: false,
};
const STORM: Weather = Weather {
    loss: 15,
    double: 10,
    delay: 400,
    crash: Some(12),
    careless: false,
};

#[test]
fn every_client_gets_an_address_and_keeps_it() {
    let mut lan = Lan::new(1, 30, CALM);
    lan.run(20_000).unwrap();
    assert_eq!(lan.bound(), 30);
    let first: Vec<_> = lan.clients.iter().map(|c| c.holds).collect();
    lan.run(150_000).unwrap();
    assert_eq!(lan.bound(), 30);
    let last: Vec<_> = lan.clients.iter().map(|c| c.holds).collect();
    assert_eq!(first, last);
}

#[test]
fn storms_and_crashes_break_no_promise() {
    let (mut crashes, mut acks) = (0, 0);
    for seed in 0..6 {
        let mut lan = Lan::new(seed, 34, STORM);
        if let Err(why) = lan.run(100_000) {
            panic!("seed {seed}: {why}");
        }
        crashes += lan.crashes;
        acks += lan.acks;
    }
    assert!(
        crashes > 8 && acks > 150,
        "{crashes} crashes, {acks} acknowledgements: too calm"
    );
}

/// The oracle sees what it is there to see.
#[test]
fn a_server_that_sends_before_it_writes_is_caught() {
    let caught = (0..3).any(|seed| {
        let mut lan = Lan::new(
            seed,
            34,
            Weather {
                careless: true,
                ..STORM
            },
        );
        lan.run(100_000).is_err()
    });
    assert!(caught);
}
