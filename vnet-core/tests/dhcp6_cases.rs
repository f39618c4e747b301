//! Traces of DHCPv6 by clause of the RFCs: `tests/cases/dhcp6/*.txt`. `UPDATE=1` writes what the server says into them.
//!
//! ```text
//! # RFC 8415 section 18.3.1: what the case is about
//! toml ... end                                      the network (again: the network after a change)
//! host box                                          the host's own name
//! port web 52:54:00:00:00:09 fd00:5::9 guard        a port of it
//! + 3600                                            so many seconds pass
//! restart                                           the server forgets what is not on disk
//! > 52:54:00:00:00:01 solicit ia=1:fd00:5::7 oro=23 a message; more words: duid=HEX rapid server name=web
//!                                                   to=ADDRESS (not the group) src=ADDRESS pd=1 ta=1 raw=HEX, and
//!                                                   arch=N vendor=TEXT user=TEXT (network boot)
//!                                                   relay=LINK/PEER[/MAC][/hops=N][/id=TEXT], the client's first;
//!                                                   xN at the end: so many of them, each with another two digits for `*`;
//!                                                   ids at the end: who the reply says that both are
//! < advertise to fe80::1 ia 1 fd00:5::7 3600        what follows, as the server decided
//! ```
//! Replies are also read by dhcproto, which nobody here wrote.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test's own set-up is small and must not fail"
)]

mod replay;
mod stage;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use dhcproto::{Decodable as _, Decoder, v6 as peer};
use vnet_core::dhcp::v6::{Message, Reply, SERVERS, Scope, Sender, Server, Verdict};
use vnet_core::lease::{Change, LeaseRecord};
use vnet_core::types::Mac;

use replay::replay;
use stage::Stage;

#[test]
fn cases() {
    replay("dhcp6", 8, |said| Case::default().play(said));
}

#[derive(Default)]
struct Case {
    stage: Stage,
    server: Option<Server>,
    /// What the disk would hold.
    disk: BTreeMap<IpAddr, LeaseRecord>,
}

impl Case {
    fn play(mut self, text: &str) -> String {
        stage::play(text, |line, document| {
            match line.split_whitespace().next() {
                Some("toml") => self.network(document),
                Some("host") => self.stage.world.host = Some(line[4..].trim().parse().unwrap()),
                Some("port") => self.port(line),
                Some("+") => return self.pass(line),
                Some("restart") => self.restart(),
                Some(">") => return self.messages(line),
                Some(_) | None => panic!("what is `{line}`?"),
            }
            Vec::new()
        })
    }

    fn server(&mut self) -> &mut Server {
        self.server
            .as_mut()
            .expect("a case begins with its network")
    }

    fn network(&mut self, document: &str) {
        self.stage.network(document, Mac([2; 6]));
        self.configure();
    }

    fn port(&mut self, line: &str) {
        self.stage.port(line);
        self.configure();
    }

    fn restart(&mut self) {
        self.server = None;
        self.configure();
    }

    fn configure(&mut self) {
        let scope = Scope::of(&self.stage.world, self.stage.name()).unwrap();
        let now = self.stage.time();
        match &mut self.server {
            Some(server) => server.configure(scope),
            None => self.server = Some(Server::new(scope, self.disk.values().cloned(), now)),
        }
    }

    fn pass(&mut self, line: &str) -> Vec<String> {
        self.stage.now += line[1..].trim().parse::<u64>().unwrap();
        let now = self.stage.time();
        self.server().desk_mut().expire(now);
        let ended = self.server().desk_mut().take_ended();
        let tell = |e: &vnet_core::lease::LeaseEvent| {
            format!("event {} {}", e.kind.word(), e.lease.address)
        };
        ended.iter().map(tell).collect()
    }

    /// One message, or so many like it, of which only the answers are counted.
    fn messages(&mut self, line: &str) -> Vec<String> {
        let (like, count) = line.rsplit_once(' ').unwrap();
        let Some(count) = count.strip_prefix('x').and_then(|n| n.parse::<u32>().ok()) else {
            return self.message(line);
        };
        let mut counts = BTreeMap::<String, u32>::new();
        for n in 0..count {
            let said = self.message(&like.replace('*', &format!("{n:02x}")));
            let last = said.last().unwrap();
            let mut words = last.split_whitespace();
            let word = match words.next().unwrap() {
                "ignored" => last.clone(),
                kind if last.contains("status 2") => format!("{kind} without an address"),
                kind => kind.to_owned(),
            };
            *counts.entry(word).or_default() += 1;
        }
        let told = |(word, n)| format!("{n} times {word}");
        counts.into_iter().map(told).collect()
    }

    fn message(&mut self, line: &str) -> Vec<String> {
        let (from, bytes) = spoken(line);
        let Ok(message) = Message::parse(&bytes) else {
            return vec!["malformed".to_owned()];
        };
        let now = self.stage.time();
        match self.server().handle(now, &from, &message) {
            Verdict::Ignore(reason) => vec![format!("ignored {}", reason.word())],
            Verdict::Reply(reply) if line.ends_with(" ids") => vec![told(&reply), ids(&reply)],
            Verdict::Reply(reply) => vec![told(&reply)],
            Verdict::Commit {
                records,
                events,
                then,
            } => {
                let mut says: Vec<String> = records.iter().map(|r| self.keep(r)).collect();
                says.extend(events.iter().map(|e| {
                    let name = e.lease.hostname.as_ref().map(|n| format!(" {n}"));
                    let (kind, address) = (e.kind.word(), e.lease.address);
                    format!("event {kind} {address}{}", name.unwrap_or_default())
                }));
                says.push(told(&then));
                says
            }
        }
    }

    fn keep(&mut self, change: &Change) -> String {
        match change {
            Change::Put(record) => {
                let key = LeaseRecord::key(&record.network, record.address);
                let read = LeaseRecord::from_bytes(&key, &record.to_bytes()).unwrap();
                assert_eq!(&read, record, "what the disk gives back");
                self.disk.insert(record.address, read);
                format!("disk {:?} {}", record.state, record.address)
            }
            Change::Delete(_, address) => {
                self.disk.remove(address);
                format!("disk forgets {address}")
            }
        }
    }
}

fn option(code: u16, data: &[u8]) -> Vec<u8> {
    let mut out = code.to_be_bytes().to_vec();
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
    out
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |d: &[u8]| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

/// A line of a trace as the message it stands for.
fn spoken(line: &str) -> (Sender, Vec<u8>) {
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    let mac: Mac = words[0].parse().unwrap();
    let names = [
        "solicit",
        "advertise",
        "request",
        "confirm",
        "renew",
        "rebind",
        "reply",
        "release",
        "decline",
        "reconfigure",
        "information-request",
    ];
    let kind = names.iter().position(|n| *n == words[1]).unwrap() as u8 + 1;
    let mut bytes = vec![kind, 1, 2, 3];
    let mut duid = vec![0, 3, 0, 1];
    duid.extend(mac.0);
    let mut from = Sender {
        mac: Some(mac),
        address: mac.link_local(),
        to: SERVERS,
    };
    let mut relays = Vec::new();
    for word in &words[2..] {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "duid" => duid = unhex(value),
            "ia" | "pd" => {
                let (id, addresses) = value.split_once(':').unwrap_or((value, ""));
                let mut data = id.parse::<u32>().unwrap().to_be_bytes().to_vec();
                data.extend([0; 8]);
                for address in addresses.split(',').filter(|a| !a.is_empty()) {
                    let mut one = address.parse::<Ipv6Addr>().unwrap().octets().to_vec();
                    one.extend([0; 8]);
                    data.extend(option(5, &one));
                }
                bytes.extend(option(if key == "ia" { 3 } else { 25 }, &data));
            }
            "ta" => bytes.extend(option(4, &value.parse::<u32>().unwrap().to_be_bytes())),
            "oro" => {
                let codes = value.split(',').map(|c| c.parse::<u16>().unwrap());
                let codes: Vec<u8> = codes.flat_map(u16::to_be_bytes).collect();
                bytes.extend(option(6, &codes));
            }
            "rapid" => bytes.extend(option(14, &[])),
            "server" if value.is_empty() => {
                let mut ours = vec![0, 4];
                ours.extend([0; 16]);
                bytes.extend(option(2, &ours));
            }
            "server" => bytes.extend(option(2, &unhex(value))),
            "name" => {
                let mut data = vec![0, value.len() as u8];
                data.extend(value.as_bytes());
                bytes.extend(option(39, &data));
            }
            "relay" => relays.push(value),
            "to" => from.to = value.parse().unwrap(),
            "src" => from.address = value.parse().unwrap(),
            "raw" => bytes.extend(unhex(value)),
            "arch" => bytes.extend(option(61, &value.parse::<u16>().unwrap().to_be_bytes())),
            "user" | "vendor" => {
                // EDK2 says 343, Intel's number.
                let mut data = vec![0, 0, 1, 0x57];
                data.truncate(if key == "vendor" { 4 } else { 0 });
                data.extend((value.len() as u16).to_be_bytes());
                data.extend(value.as_bytes());
                bytes.extend(option(if key == "vendor" { 16 } else { 15 }, &data));
            }
            "ids" => {}
            _ => panic!("what is `{word}`?"),
        }
    }
    if !duid.is_empty() {
        bytes.extend(option(1, &duid));
    }
    (from, relayed(bytes, &relays))
}

/// The message as the last of the relays passes it on.
fn relayed(mut bytes: Vec<u8>, relays: &[&str]) -> Vec<u8> {
    for (at, relay) in relays.iter().enumerate() {
        let mut parts = relay.split('/');
        let mut out = vec![12, at as u8];
        for address in parts.by_ref().take(2) {
            out.extend(address.parse::<Ipv6Addr>().unwrap().octets());
        }
        let mut id = "eth7";
        for part in parts {
            match part.split_once('=') {
                Some(("hops", hops)) => out[1] = hops.parse().unwrap(),
                Some(("id", text)) => id = text,
                Some(_) => panic!("what is `{part}`?"),
                None => {
                    let mut data = vec![0, 1];
                    data.extend(part.parse::<Mac>().unwrap().0);
                    out.extend(option(79, &data));
                }
            }
        }
        if !id.is_empty() {
            out.extend(option(18, id.as_bytes()));
        }
        out.extend(option(9, &bytes));
        bytes = out;
    }
    bytes
}

fn walk(mut rest: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let [a, b, c, d, after @ ..] = rest {
        let (data, after) = after.split_at(usize::from(u16::from_be_bytes([*c, *d])));
        all.push((u16::from_be_bytes([*a, *b]), data));
        rest = after;
    }
    assert!(rest.is_empty(), "half an option");
    all
}

/// A reply in words.
fn told(reply: &Reply) -> String {
    let mut text = format!("{} to {}", reply.kind.word(), reply.to);
    let mut bytes = reply.bytes.as_slice();
    if let Some(from) = reply.from {
        let _ = write!(text, " from {from}");
    }
    assert_eq!(
        reply.port == 547,
        bytes[0] == 13,
        "a relay listens where servers do"
    );
    while bytes[0] == 13 {
        peer::RelayMessage::decode(&mut Decoder::new(bytes)).expect("a peer reads it");
        let options = walk(&bytes[34..]);
        let address =
            |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap());
        let (link, peer) = (address(2), address(18));
        let _ = write!(
            text,
            "\n<   relay hops {} link {link} peer {peer}",
            bytes[1]
        );
        for (code, data) in &options {
            match code {
                9 => {}
                18 => text.push_str(&format!(" interface {}", data.escape_ascii())),
                _ => text.push_str(&one(*code, data)),
            }
        }
        bytes = options.iter().find(|o| o.0 == 9).unwrap().1;
    }
    let message = peer::Message::decode(&mut Decoder::new(bytes)).expect("a peer reads it");
    assert_eq!(message.xid(), [1, 2, 3]);
    assert_eq!(message.opts().iter().count(), walk(&bytes[4..]).len());
    for (code, data) in walk(&bytes[4..]) {
        text.push_str(&one(code, data));
    }
    text
}

/// Who a reply says that both are.
fn ids(reply: &Reply) -> String {
    let options = walk(&reply.bytes[4..]);
    let of = |wanted: u16| -> String {
        let found = options.iter().find(|(code, _)| *code == wanted);
        let bytes = found.expect("an identifier").1;
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    };
    format!("  client {} server {}", of(1), of(2))
}

fn one(code: u16, data: &[u8]) -> String {
    let short = |at: usize| u16::from_be_bytes([data[at], data[at + 1]]);
    let long = |at: usize| u32::from_be_bytes(data[at..at + 4].try_into().unwrap());
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&data[at..at + 16]).unwrap());
    let inner = |from: usize| -> String {
        let options = walk(&data[from..]);
        options.iter().map(|(c, d)| one(*c, d)).collect()
    };
    match code {
        1 | 2 => String::new(),
        3 => format!(
            "\n<   ia {} t1 {} t2 {}{}",
            long(0),
            long(4),
            long(8),
            inner(12)
        ),
        4 => format!("\n<   ta {}{}", long(0), inner(4)),
        25 => format!("\n<   pd {}{}", long(0), inner(12)),
        5 => format!(" {} for {}/{}", address(0), long(16), long(20)),
        7 => format!(" preference {}", data[0]),
        13 => format!(
            " status {} \"{}\"",
            short(0),
            String::from_utf8_lossy(&data[2..])
        ),
        14 => " rapid".to_owned(),
        23 => format!(" dns {}", address(0)),
        32 => format!(" refresh {}", long(0)),
        39 => format!(" fqdn {} {}", data[0], data[1..].escape_ascii()),
        _ => format!(" {code}={}", data.escape_ascii()),
    }
}

proptest::proptest! {
    /// Whatever comes in, it is parsed or refused, and answered or not: never a panic, and never an answer that a
    /// peer cannot read.
    #[test]
    fn arbitrary_messages_cost_only_their_sender(
        flips in proptest::collection::vec((0usize..200, proptest::prelude::any::<u8>()), 0..8),
        cut in 0usize..240,
        which in 0usize..5,
    ) {
        let seeds = [
            "> 52:54:00:00:00:01 solicit ia=1:fd00:5::1234 ia=2 oro=23,24 rapid name=web pd=1 ta=1",
            "> 52:54:00:00:00:01 request server ia=1:fd00:5::1234",
            "> 52:54:00:00:00:01 release server ia=1:fd00:5::1000 ia=1:fd00:5::1000",
            "> 52:54:00:00:00:01 renew server ia=1:fd00:5::1000 relay=fd00:5::1/fe80::1/52:54:00:00:00:07",
            "> 52:54:00:00:00:01 information-request relay=::/fe80::1 relay=fd00:5::1/fe80::2",
        ];
        let mut case = Case::default();
        case.network("name = \"lab\"\n[[subnet]]\naddress = \"fd00:5::1/64\"\n[subnet.dhcp]\nmode = \"stateful\"\n");
        let (from, mut bytes) = spoken(seeds[which]);
        for (at, byte) in flips {
            if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
        }
        bytes.truncate(cut.max(1));
        if let Ok(message) = Message::parse(&bytes) {
            let now = case.stage.time();
            match case.server().handle(now, &from, &message) {
                Verdict::Ignore(_) => {}
                Verdict::Reply(reply) | Verdict::Commit { then: reply, .. } => {
                    proptest::prop_assert!(reply.bytes.len() < 4096);
                }
            }
        }
    }
}
