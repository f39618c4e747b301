//! Traces of DHCPv4 by clause of the RFCs: `tests/cases/dhcp/*.txt`. `UPDATE=1` writes what the server says into them.
//!
//! ```text
//! # RFC 2131 section 3.1: what the case is about
//! toml ... end                                   the network (again: the network after a change)
//! host box                                       the host's own name
//! port web 52:54:00:00:00:09 10.0.0.9 guard      a port of it
//! + 3600                                         so many seconds pass
//! > 52:54:00:00:00:01 discover 55=1,3 12="web"   a message: options by number (address, "text", 0xhex, bytes)
//! > 52:54:00:00:00:*  request 50=10.0.0.* x70     seventy messages, `*` from 1 up; what they get is counted
//! < offer to 10.0.0.7 at 52:54:00:00:00:01 ...   what follows, as the server decided
//! ```
//! Words of a message that are no option: `broadcast`, `ciaddr=`, `giaddr=`, `hlen=`, `htype=`, `file=`, `sname=`; of its
//! frame: `source=` (MAC), `ip=` and `to=` (addresses); `size` has the reply's length told. Fields of a reply are told where they are not zero, and what is in
//! an overloaded `file` or `sname`.
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
use std::net::{IpAddr, Ipv4Addr};

use dhcproto::{Decodable as _, Decoder, v4 as peer};
use vnet_core::dhcp::v4::{Destination, Message, Reply, Scope, Sender, Server, Verdict};
use vnet_core::lease::{Change, LeaseRecord};
use vnet_core::model::DhcpOption;
use vnet_core::types::Mac;

use replay::replay;
use stage::Stage;

#[test]
fn cases() {
    replay("dhcp", 10, |said| Case::default().play(said));
}

#[derive(Default)]
struct Case {
    stage: Stage,
    server: Option<Server>,
    xid: u32,
    /// Whether replies are told with their length.
    sizes: bool,
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
                Some("arp") => return self.arp(line),
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
        ended
            .iter()
            .map(|e| format!("event {} {}", e.kind.word(), e.lease.address))
            .collect()
    }

    fn arp(&mut self, line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let now = self.stage.time();
        let verdict =
            self.server()
                .conflict(now, words[1].parse().unwrap(), words[2].parse().unwrap());
        self.tell(&verdict)
    }

    /// One message, or as many as `x70` says: then only how many got what.
    fn messages(&mut self, line: &str) -> Vec<String> {
        let count = line.rsplit_once(" x").and_then(|(line, count)| {
            let count = count.parse::<u32>().ok()?;
            Some((line, count))
        });
        let Some((line, count)) = count else {
            return self.message(line);
        };
        let mut tally = BTreeMap::<String, u32>::new();
        for n in 1..=count {
            let each = |word: &str| match word.contains(':') {
                true => word.replace('*', &format!("{n:02x}")),
                false => word.replace('*', &n.to_string()),
            };
            let line: Vec<String> = line.split(' ').map(each).collect();
            for say in self.message(&line.join(" ")) {
                let words: Vec<&str> = say.split_whitespace().collect();
                let told = match words[..] {
                    ["disk" | "event" | "arp", ..] => continue,
                    ["ignored", ..] => say.clone(),
                    ["nak", ..] => say.rsplit("; ").next().unwrap().replace("because", "nak,"),
                    _ => words[0].to_owned(),
                };
                *tally.entry(told).or_default() += 1;
            }
        }
        tally
            .iter()
            .map(|(told, n)| format!("{n} times {told}"))
            .collect()
    }

    fn message(&mut self, line: &str) -> Vec<String> {
        self.xid += 1;
        let (from, bytes) = spoken(line, self.xid);
        let message = match Message::parse(&bytes) {
            Ok(message) => message,
            Err(why) => return vec![format!("malformed {why:?}")],
        };
        let now = self.stage.time();
        let verdict = self.server().handle(now, &from, &message);
        self.sizes = line.split(' ').any(|word| word == "size");
        self.tell(&verdict)
    }

    fn tell(&mut self, verdict: &Verdict) -> Vec<String> {
        match verdict {
            Verdict::Ignore(reason) => vec![format!("ignored {}", reason.word())],
            Verdict::Reply(reply) => vec![self.reply(reply)],
            Verdict::Probe { address, then } => {
                let asked = format!("arp who has {address}");
                let said = then.as_ref().map(|reply| self.reply(reply));
                std::iter::once(asked).chain(said).collect()
            }
            Verdict::Commit {
                records,
                events,
                then,
            } => {
                let mut says = Vec::new();
                for record in records {
                    says.push(self.keep(record));
                }
                says.extend(events.iter().map(|e| {
                    let name = e.lease.hostname.as_ref().map(|n| format!(" {n}"));
                    format!(
                        "event {} {}{}",
                        e.kind.word(),
                        e.lease.address,
                        name.unwrap_or_default()
                    )
                }));
                says.extend(then.as_ref().map(|reply| self.reply(reply)));
                says
            }
        }
    }

    fn keep(&mut self, change: &Change) -> String {
        match change {
            Change::Put(record) => {
                self.disk.insert(record.address, record.clone());
                let end = record.expires.as_unix();
                let left = end.map(|e| e.saturating_sub(stage::BEGIN + self.stage.now));
                let left = left.map_or("ever".to_owned(), |l| format!("{l} s"));
                format!("disk {} {:?} for {left}", record.address, record.state).to_lowercase()
            }
            Change::Delete(_, address) => {
                self.disk.remove(address);
                format!("disk {address} forgotten")
            }
        }
    }

    fn reply(&self, reply: &Reply) -> String {
        assert!(reply.bytes.len() >= 300, "BOOTP's minimum");
        let independent = peer::Message::decode(&mut Decoder::new(&reply.bytes)).unwrap();
        assert_eq!(independent.xid(), self.xid);
        let kind = independent.opts().msg_type().unwrap();
        assert_eq!(format!("{kind:?}").to_lowercase(), reply.kind.word());
        let mut text = format!("{} to ", reply.kind.word());
        let _ = match reply.to {
            Destination::Broadcast => write!(text, "everybody"),
            Destination::Client(mac, ip) => write!(text, "{ip} at {mac}"),
            Destination::Relay(relay) => write!(text, "relay {relay}"),
        };
        for (field, address) in [
            ("yiaddr", independent.yiaddr()),
            ("ciaddr", independent.ciaddr()),
            ("siaddr", independent.siaddr()),
            ("giaddr", independent.giaddr()),
        ] {
            if !address.is_unspecified() {
                let _ = write!(text, " {field}={address}");
            }
        }
        if independent.flags().broadcast() {
            text.push_str(" broadcast");
        }
        let all = options(&reply.bytes[240..]);
        let overload = all.iter().find(|(code, _)| *code == 52);
        let overload = overload.map_or(0, |(_, data)| data[0]);
        let fields = [(1, "file", 108..236), (2, "sname", 44..108)];
        for (bit, name, at) in &fields {
            let field = reply.bytes[at.clone()].split(|b| *b == 0).next().unwrap();
            if overload & bit == 0 && !field.is_empty() {
                let _ = write!(text, " {name}={}", String::from_utf8_lossy(field));
            }
        }
        let server = all.iter().find(|(code, _)| *code == 54).unwrap();
        if server.1 != reply.from.octets() {
            let _ = write!(text, " from {}", reply.from);
        }
        for (code, data) in all {
            let _ = match code {
                53 => Ok(()),
                _ => write!(text, "; {}", spell(code, data)),
            };
        }
        for (bit, name, at) in fields {
            if overload & bit != 0 {
                let _ = write!(text, "; in {name}:");
                for (code, data) in options(&reply.bytes[at]) {
                    let _ = write!(text, " {}", spell(code, data));
                }
            }
        }
        if !reply.left_out.is_empty() {
            let _ = write!(text, "; no room for {:?}", reply.left_out);
        }
        if self.sizes {
            let _ = write!(text, "; {} bytes", reply.bytes.len());
        }
        text
    }
}

/// The options of one field of the reply in their order.
fn options(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut at, mut found) = (0, Vec::<(u8, Vec<u8>)>::new());
    while bytes[at] != 255 {
        let (code, len) = (bytes[at], usize::from(bytes[at + 1]));
        let data = &bytes[at + 2..at + 2 + len];
        match found.last_mut() {
            Some((last, joined)) if *last == code => joined.extend_from_slice(data),
            _ => found.push((code, data.to_vec())),
        }
        at += 2 + len;
    }
    found
}

fn spell(code: u8, data: Vec<u8>) -> String {
    let number = || u32::from_be_bytes(data[..].try_into().unwrap());
    match code {
        51 => format!("lease {}", number()),
        54 => format!("server {}", Ipv4Addr::from(number())),
        56 => format!("because {}", String::from_utf8_lossy(&data)),
        119 => search(&data),
        _ => DhcpOption { code, data }.to_string(),
    }
}

/// A search list, as the peer reads it.
fn search(data: &[u8]) -> String {
    let bytes = [&[119, data.len() as u8], data].concat();
    let read = peer::DhcpOption::decode(&mut Decoder::new(&bytes)).unwrap();
    let peer::DhcpOption::DomainSearch(names) = read else {
        panic!("{read:?}");
    };
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    format!("domain-search {}", names.join(" "))
}

/// A message as a line describes it, and who sent its frame.
fn spoken(line: &str, xid: u32) -> (Sender, Vec<u8>) {
    let mut words = line[1..].split_whitespace();
    let mac: Mac = words.next().unwrap().parse().unwrap();
    let kind = words.next().unwrap();
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    bytes[28..34].copy_from_slice(&mac.0);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    let kinds = [
        "discover", "offer", "request", "decline", "ack", "nak", "release", "inform",
    ];
    let number = kinds
        .iter()
        .position(|k| *k == kind)
        .expect("a kind of message") as u8
        + 1;
    bytes.extend([53, 1, number]);
    let mut from = Sender {
        mac: Some(mac),
        ..Sender::default()
    };
    for word in words {
        match word.split_once('=') {
            None if word == "broadcast" => bytes[10] = 0x80,
            None if word == "size" => {}
            Some(("ciaddr", ip)) => put_ip(&mut bytes, 12, ip),
            Some(("giaddr", ip)) => put_ip(&mut bytes, 24, ip),
            Some(("source", mac)) => from.mac = Some(mac.parse().unwrap()),
            Some(("to", ip)) => from.to = Some(ip.parse().unwrap()),
            Some(("ip", ip)) => from.ip = Some(ip.parse().unwrap()),
            Some(("hlen", n)) => bytes[2] = n.parse().unwrap(),
            Some(("htype", n)) => bytes[1] = n.parse().unwrap(),
            Some(("sname", value)) => {
                let value = data(value);
                bytes[44..44 + value.len()].copy_from_slice(&value);
            }
            Some(("file", value)) => {
                let value = data(value);
                bytes[108..108 + value.len()].copy_from_slice(&value);
            }
            Some((code, value)) => {
                let (value, code) = (data(value), code.parse().unwrap());
                if value.is_empty() {
                    bytes.extend([code, 0]);
                }
                for piece in value.chunks(255) {
                    bytes.extend([code, piece.len() as u8]);
                    bytes.extend(piece);
                }
            }
            None => panic!("what is `{word}`?"),
        }
    }
    bytes.push(255);
    (from, bytes)
}

fn put_ip(bytes: &mut [u8], at: usize, ip: &str) {
    bytes[at..at + 4].copy_from_slice(&ip.parse::<Ipv4Addr>().unwrap().octets());
}

fn data(text: &str) -> Vec<u8> {
    if let Some(text) = text.strip_prefix('"') {
        return text.trim_end_matches('"').as_bytes().to_vec();
    }
    if let Some(hex) = text.strip_prefix("0x") {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        return (0..hex.len()).step_by(2).map(byte).collect();
    }
    match text.parse::<Ipv4Addr>() {
        Ok(ip) => ip.octets().to_vec(),
        Err(_) if text.is_empty() => Vec::new(),
        Err(_) => text.split(',').map(|b| b.parse().unwrap()).collect(),
    }
}
