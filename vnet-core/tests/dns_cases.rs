//! Traces of DNS by clause of the RFCs: `tests/cases/dns/*.txt`. `UPDATE=1` writes what the resolver says into them.
//!
//! ```text
//! # RFC 2308 section 2: what the case is about
//! toml ... end                             the networks (again: the networks after a change)
//! host box                                 the host's own name (before the networks)
//! resolvers 192.0.2.1                      whom the host asks
//! link corp.example 192.0.2.7              whom it asks about names under a domain (alone: nobody any more)
//! lease lab mail 10.94.1.77 [owner|gone]   a name that a lease gives or takes; heard, silent: that an address has
//! relearn lab mail 10.94.1.77 ...          all names that its leases give now
//! + 60                                     so many seconds pass
//! > lab no.lab.test A +do                  a question of a guest of a network (`lab!host`: of the host itself)
//! < NXDomain aa ra | answers | authority   what it is told, at once or later, or
//! < asks 192.0.2.1 example.com A           what an upstream is asked instead
//! = example.com 300 A 192.0.2.9; ...       what that upstream says (first a code, if it is not `NoError`; `(records)`
//!                                          are of the authority; `mute`: it says nothing more)
//! ```
//! Everything is read and written by hickory-proto, which nobody here wrote.
#![allow(
    clippy::unwrap_used,
    reason = "a test's own set-up is small and must not fail"
)]

mod replay;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::NULL;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use vnet_core::config::{Fill, native};
use vnet_core::dns::{
    Change, Directory, Effect, From, Limits, NameChange, Resolver, ServerId, Target, Way, Zone,
};
use vnet_core::model::{Endpoint, World};
use vnet_core::types::{Mac, NetworkName};

use replay::replay;

#[test]
fn cases() {
    replay("dns", 10, |said| Case::default().play(said));
}

/// A question that an upstream has, or that is left to the checker of signatures.
struct Asked {
    server: ServerId,
    lane: u8,
    message: Vec<u8>,
}

struct Case {
    world: World,
    resolver: Resolver,
    resolvers: Vec<Target>,
    links: Vec<(String, Vec<Target>)>,
    asked: VecDeque<Asked>,
    now: u64,
    seed: u64,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            world: World::default(),
            resolver: Resolver::new(Directory::new(None), Limits::default()),
            resolvers: Vec::new(),
            links: Vec::new(),
            asked: VecDeque::new(),
            now: 1_000,
            seed: 1,
        }
    }
}

impl Case {
    fn play(mut self, text: &str) -> String {
        let (mut out, mut lines) = (String::new(), text.lines());
        while let Some(line) = lines.next() {
            if line.starts_with('<') {
                continue;
            }
            let _ = writeln!(out, "{line}");
            let words: Vec<&str> = line.split_whitespace().collect();
            let says = match words.first().copied() {
                Some("toml") => {
                    let document: Vec<&str> = lines.by_ref().take_while(|l| *l != "end").collect();
                    let document = document.join("\n");
                    let _ = writeln!(out, "{document}\nend");
                    self.networks(&document)
                }
                Some("host") => {
                    let directory = Directory::new(Some(words[1].parse().unwrap()));
                    self.resolver = Resolver::new(directory, Limits::default());
                    Vec::new()
                }
                Some("resolvers") => {
                    self.resolvers = words[1..].iter().copied().map(target).collect();
                    self.follow()
                }
                Some("link") => {
                    match words.get(1) {
                        Some(domain) => {
                            let to = words[2..].iter().copied().map(target).collect();
                            self.links.push(((*domain).to_owned(), to));
                        }
                        None => self.links.clear(),
                    }
                    self.follow()
                }
                Some("lease") => self.lease(&words),
                Some("relearn") => self.relearn(&words),
                Some("+") => self.pass(words[1]),
                Some(">") => self.ask(&words),
                Some("=") => self.answer(line[1..].trim()),
                Some(first) if !first.starts_with('#') => panic!("what is `{line}`?"),
                Some(_) | None => Vec::new(),
            };
            for say in says {
                let _ = writeln!(out, "< {}", say.trim_end());
            }
        }
        out
    }

    fn networks(&mut self, document: &str) -> Vec<String> {
        let documents = native::from_toml(document).unwrap();
        self.world.networks.clear();
        self.world.active.clear();
        for doc in documents {
            let fill = Fill {
                uuid: uuid::Uuid::nil(),
                bridge: "br0".parse().unwrap(),
                mac: Mac::virtual_machine([0, 0, 1]),
                subnets: Vec::new(),
            };
            let network = match doc.settle(&fill) {
                Ok(network) => network,
                Err(why) => {
                    return why
                        .to_string()
                        .lines()
                        .map(|l| format!("refused: {l}"))
                        .collect();
                }
            };
            self.world.active.insert(network.name.clone());
            self.world.networks.insert(network.name.clone(), network);
        }
        for name in self.world.networks.keys() {
            let zone = Zone::of(&self.world, name).unwrap();
            self.resolver.directory_mut().put(zone);
        }
        Vec::new()
    }

    fn follow(&mut self) -> Vec<String> {
        self.resolver
            .follow(self.resolvers.clone(), self.links.clone());
        Vec::new()
    }

    fn lease(&mut self, words: &[&str]) -> Vec<String> {
        let network: NetworkName = words[1].parse().unwrap();
        let change = NameChange {
            name: words[2].parse().unwrap(),
            address: words[3].parse().unwrap(),
            change: match words.get(4) {
                None => Change::Added,
                Some(&"owner") => Change::AddedByOwner,
                Some(&"gone") => Change::Removed,
                Some(&"heard") => Change::Heard,
                Some(&"silent") => Change::Silent,
                Some(word) => panic!("{word}"),
            },
        };
        self.resolver.change(&network, &change);
        Vec::new()
    }

    fn relearn(&mut self, words: &[&str]) -> Vec<String> {
        let names = words[2..].chunks(2).map(|pair| NameChange {
            name: pair[0].parse().unwrap(),
            address: pair[1].parse().unwrap(),
            change: Change::Added,
        });
        let names: Vec<_> = names.collect();
        let network: NetworkName = words[1].parse().unwrap();
        self.resolver.directory_mut().relearn(&network, &names);
        Vec::new()
    }

    fn pass(&mut self, seconds: &str) -> Vec<String> {
        let (whole, part) = seconds.split_once('.').unwrap_or((seconds, "0"));
        let (whole, part): (u64, u64) = (whole.parse().unwrap(), part.parse().unwrap());
        let end = self.now + whole * 1_000 + part * 100;
        let mut says = Vec::new();
        while let Some(due) = self.resolver.due().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            let (now, seed) = (self.now, &mut self.seed);
            self.resolver.tick(now, &mut || dice(seed));
            says.extend(self.outcome());
        }
        self.now = end;
        says
    }

    fn ask(&mut self, words: &[&str]) -> Vec<String> {
        let (network, host) = match words[1].split_once('!') {
            Some((network, _)) => (network, true),
            None => (words[1], false),
        };
        let name: NetworkName = network.parse().unwrap();
        let Some(network) = self.resolver.directory().id(&name) else {
            return vec!["no such network".to_owned()];
        };
        let from = From {
            network,
            address: "10.94.1.50".parse().unwrap(),
            host,
        };
        let way = match words.contains(&"+tcp") {
            true => Way::Tcp(0, 0),
            false => Way::Udp(0, SocketAddr::new(from.address, 4000)),
        };
        let message = query(&words[2..]);
        let mut out = Vec::new();
        let (now, seed) = (self.now, &mut self.seed);
        self.resolver
            .handle(now, &mut || dice(seed), &from, way, &message, &mut out);
        let mut says = self.outcome();
        if !out.is_empty() {
            assert_eq!(out[..2], message[..2], "the asker's number");
            says.insert(0, reply(&out));
        }
        says
    }

    fn answer(&mut self, text: &str) -> Vec<String> {
        let Some(asked) = self.asked.pop_front() else {
            return vec!["nobody was asked".to_owned()];
        };
        if text == "mute" {
            return Vec::new();
        }
        let message = said(&asked.message, text);
        let (now, seed) = (self.now, &mut self.seed);
        self.resolver
            .receive(now, &mut || dice(seed), asked.server, asked.lane, &message);
        self.outcome()
    }

    /// Replies to those who had to wait, and what upstreams are asked now.
    fn outcome(&mut self) -> Vec<String> {
        let mut says: Vec<String> = self.resolver.replies().map(|(_, r)| reply(&r)).collect();
        while let Some(effect) = self.resolver.effect() {
            match effect {
                Effect::Send {
                    server,
                    address,
                    lane,
                    message,
                    ..
                } => {
                    says.push(asks(address.ip(), &message));
                    self.asked.push_back(Asked {
                        server,
                        lane,
                        message,
                    });
                }
                Effect::Stream { endpoint, .. } => {
                    says.push(format!("asks {} over a connection", endpoint.address.ip()));
                }
                Effect::Check(question) => {
                    let name = vnet_core::dns::wire::text(&question.name);
                    let kind = RecordType::from(question.rtype);
                    says.push(format!("checks {name} {kind}"));
                }
            }
        }
        says
    }
}

fn target(address: &str) -> Target {
    let address: IpAddr = address.parse().unwrap();
    Target::from(Endpoint::from(SocketAddr::new(address, 53)))
}

fn dice(seed: &mut u64) -> u64 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *seed ^ *seed >> 29
}

/// `NAME TYPE [+do] [+edns=SIZE] [+norec] [+cd] [+ad] [+v1] [+tcp] [+ecs]`
fn query(words: &[&str]) -> Vec<u8> {
    let mut name = Name::from_ascii(words[0]).unwrap();
    name.set_fqdn(true);
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name, kind(words.get(1).unwrap_or(&"A"))));
    for word in words.iter().skip(2) {
        match word.split_once('=').unwrap_or((word, "1232")) {
            ("+edns", size) => {
                let edns = message.edns.get_or_insert_with(Edns::new);
                edns.set_max_payload(size.parse().unwrap());
            }
            ("+do", _) => {
                message
                    .edns
                    .get_or_insert_with(Edns::new)
                    .set_dnssec_ok(true);
            }
            ("+v1", _) => {
                message.edns.get_or_insert_with(Edns::new).set_version(1);
            }
            ("+ecs", _) => {
                let edns = message.edns.get_or_insert_with(Edns::new);
                edns.options_mut().insert(client_subnet());
            }
            ("+cd", _) => message.metadata.checking_disabled = true,
            ("+ad", _) => message.metadata.authentic_data = true,
            ("+norec", _) => message.metadata.recursion_desired = false,
            ("+tcp", _) => {}
            _ => panic!("{word}"),
        }
    }
    message.to_vec().unwrap()
}

/// 192.0.2.0/24 (RFC 7871 section 6).
fn client_subnet() -> EdnsOption {
    EdnsOption::Unknown(8, vec![0, 1, 24, 0, 192, 0, 2])
}

fn has_client_subnet(edns: &Edns) -> bool {
    edns.option(EdnsCode::Subnet).is_some()
}

fn kind(word: &str) -> RecordType {
    let number = word
        .strip_prefix("TYPE")
        .and_then(|n| n.parse::<u16>().ok());
    number.map_or_else(|| word.parse().unwrap(), RecordType::from)
}

/// `CODE flags | answers | authority`, as the other implementation reads it.
fn reply(bytes: &[u8]) -> String {
    // What an upstream garbled inside a record is passed on as it came: the asker sees that it is garbled.
    let Ok(message) = Message::from_vec(bytes) else {
        return "garbled".to_owned();
    };
    let meta = &message.metadata;
    let flags = [
        (meta.authoritative, " aa"),
        (meta.truncation, " tc"),
        (meta.recursion_available, " ra"),
        (meta.authentic_data, " ad"),
        (meta.checking_disabled, " cd"),
    ];
    let mut text = code(meta.response_code);
    text.extend(flags.into_iter().filter(|f| f.0).map(|f| f.1));
    if let Some(edns) = &message.edns {
        let _ = write!(text, " edns={}", edns.max_payload());
        if edns.flags().dnssec_ok {
            text.push_str(" do");
        }
        if has_client_subnet(edns) {
            text.push_str(" ecs");
        }
        if let Some(EdnsOption::Unknown(_, data)) = edns.option(EdnsCode::Unknown(15)) {
            let _ = write!(text, " ede={}", u16::from_be_bytes([data[0], data[1]]));
        }
    }
    let shown = |r: &Record| {
        let data = r.data.to_string();
        let data = Some(data).filter(|_| r.record_type() != RecordType::RRSIG);
        let data = data.map(|data| format!(" {data}")).unwrap_or_default();
        format!("{} {} {}{data}", r.name, r.ttl, r.record_type())
    };
    let list = |records: &[Record]| records.iter().map(shown).collect::<Vec<_>>().join("; ");
    let _ = write!(
        text,
        " | {} | {}",
        list(&message.answers),
        list(&message.authorities)
    );
    text
}

/// Code 16 is BADVERS here; the other implementation shows the name it has in TSIG.
fn code(code: ResponseCode) -> String {
    if code == ResponseCode::BADSIG {
        return "BadVers".to_owned();
    }
    format!("{code:?}")
}

fn asks(server: IpAddr, message: &[u8]) -> String {
    let message = Message::from_vec(message).unwrap();
    let question = &message.queries[0];
    let mut name = question.name().to_lowercase();
    name.set_fqdn(false);
    let meta = &message.metadata;
    let mut text = format!("asks {server} {name} {}", question.query_type());
    let flags = [
        (!meta.recursion_desired, " norec"),
        (meta.checking_disabled, " cd"),
        (meta.authentic_data, " ad"),
        (message.edns.is_none(), " without edns"),
        (
            message.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok),
            " do",
        ),
        (message.edns.as_ref().is_some_and(has_client_subnet), " ecs"),
    ];
    text.extend(flags.into_iter().filter(|f| f.0).map(|f| f.1));
    text
}

/// `[CODE] RECORD; RECORD; (RECORD of the authority)`, with `tc`, `noedns`, `ecs` and `ad` as words before.
fn said(question: &[u8], text: &str) -> Vec<u8> {
    let asked = Message::from_vec(question).unwrap();
    let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.add_query(asked.queries[0].clone());
    reply.edns = asked.edns.clone();
    let mut rest = text;
    loop {
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "NXDomain" => reply.metadata.response_code = ResponseCode::NXDomain,
            "ServFail" => reply.metadata.response_code = ResponseCode::ServFail,
            "Refused" => reply.metadata.response_code = ResponseCode::Refused,
            "FormErr" => reply.metadata.response_code = ResponseCode::FormErr,
            "NoError" => {}
            "noedns" => reply.edns = None,
            "ecs" => {
                let edns = reply.edns.get_or_insert_with(Edns::new);
                edns.options_mut().insert(client_subnet());
            }
            "tc" => reply.metadata.truncation = true,
            "ad" => reply.metadata.authentic_data = true,
            _ => break,
        }
        rest = after;
    }
    for text in rest.split(';').map(str::trim).filter(|t| !t.is_empty()) {
        match text.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
            Some(text) => reply.add_authority(record(text)),
            None => reply.add_answer(record(text)),
        };
    }
    reply.to_vec().unwrap()
}

/// A signature over addresses, by whom it does not matter (RFC 4034 section 3.1).
fn signature() -> Vec<u8> {
    let head = [0, 1, 13, 2, 0, 0, 1, 44, 0x70, 0, 0, 0, 0x60, 0, 0, 0, 0, 7];
    [&head[..], b"\x07example\x03com\0", &[9; 64]].concat()
}

fn record(text: &str) -> Record {
    let words: Vec<&str> = text.splitn(4, ' ').collect();
    let mut name = Name::from_ascii(words[0]).unwrap();
    name.set_fqdn(true);
    let data = match words[2].strip_prefix("TYPE") {
        None if words[2] == "RRSIG" => RData::Unknown {
            code: RecordType::RRSIG,
            rdata: NULL::with(signature()),
        },
        Some(_) => RData::Unknown {
            code: kind(words[2]),
            rdata: NULL::with(words[3].as_bytes().to_vec()),
        },
        None => RData::try_from_str(kind(words[2]), words[3]).unwrap(),
    };
    Record::from_rdata(name, words[1].parse().unwrap(), data)
}
