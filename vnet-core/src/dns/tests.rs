//! What traces cannot say (those are in `tests/cases/dns`): messages that are none, forgeries, loops, greed, and checks of
//! signatures. Read and written by another implementation (hickory-proto). Stored messages that are none: `crate::fuzz`.

mod checking;
mod upstreams;

use std::net::SocketAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;

use super::*;
use crate::config::{Fill, native};
use crate::model::World;
use crate::types::{Mac, NetworkName};

const WORLD: &str = r#"
[[network]]
name = "lab"
bridge.name = "br1"
domain = { name = "lab.test" }
subnet = [{ address = "10.94.1.1/24" }, { address = "fd94:1::1/64" }]
[network.dns]
rebind_protection = true
host = [{ ip = "10.94.1.9", names = ["web", "www.lab.test"] }, { ip = "10.94.1.8", names = ["a.b.c.lab.test", "out.example"] }]
record = [
  { name = "_http._tcp", type = "SRV", value = "0 5 80 web" },
  { name = "*.apps", type = "A", value = "10.94.1.7" },
  { name = "own.apps", type = "TXT", value = "mine" },
  { name = "own.apps.lab.test", type = "TXT", value = "mine" },
  { name = "*.apps.lab.test", type = "TXT", value = "all of them" },
  { name = "ftp", type = "CNAME", value = "www" },
  { name = "lab.test", type = "MX", value = "10 web" },
  { name = "shop", type = "HTTPS", value = "1 web alpn=h2 port=8443" },
]
upstream = [{ address = "192.0.2.53" }, { address = "192.0.2.54", domain = "corp.test" }]
[[network]]
name = "open"
bridge.name = "br2"
domain = { name = "open.test", local_only = false }
forward.mode = "open"
subnet = [{ address = "10.94.2.1/26" }]
[network.dns]
host = [{ ip = "10.94.2.9", names = ["web"] }]
[[network]]
name = "alone"
bridge.name = "br3"
domain = { name = "alone.test" }
forward.mode = "isolated"
subnet = [{ address = "10.94.3.1/24" }]
[network.dns]
host = [{ ip = "10.94.3.9", names = ["web"] }]
[[network]]
name = "safe"
bridge.name = "br5"
domain = { name = "safe.test" }
subnet = [{ address = "10.94.5.1/24" }]
[network.dns]
dnssec = "validate"
record = [{ name = "cdn", type = "CNAME", value = "www.example." }]
upstream = [{ address = "192.0.2.53" }, { address = "192.0.2.54", domain = "corp.test" }]
[[network]]
name = "bare"
bridge.name = "br4"
subnet = [{ address = "10.94.4.1/24" }]
[network.dns]
host = [{ ip = "10.94.4.9", names = ["web"] }]
"#;

fn world() -> World {
    let mut world = World::default();
    for doc in native::from_toml(WORLD).unwrap() {
        let fill = Fill {
            uuid: uuid::Uuid::nil(),
            bridge: "br0".parse().unwrap(),
            mac: Mac::virtual_machine([0, 0, 1]),
            subnets: Vec::new(),
        };
        let network = doc.settle(&fill).unwrap();
        world.active.insert(network.name.clone());
        world.networks.insert(network.name.clone(), network);
    }
    world
}

/// A resolver with its clock and its dice.
struct Host {
    resolver: Resolver,
    now: u64,
    seed: u64,
}

impl Host {
    fn new() -> Self {
        let world = world();
        let mut directory = Directory::new(Some("box".parse().unwrap()));
        for name in world.networks.keys() {
            directory.put(Zone::of(&world, name).unwrap());
        }
        Self {
            resolver: Resolver::new(directory, Limits::default()),
            now: 1_000,
            seed: 1,
        }
    }

    fn network(name: &str) -> NetworkName {
        name.parse().unwrap()
    }

    fn from(&self, network: &str, client: &str) -> From {
        From {
            network: self
                .resolver
                .directory()
                .id(&Self::network(network))
                .unwrap(),
            address: client.parse().unwrap(),
            host: false,
        }
    }

    fn handle(&mut self, from: &From, way: Way, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let seed = &mut self.seed;
        self.resolver
            .handle(self.now, &mut || dice(seed), from, way, message, &mut out);
        out
    }

    /// Asks as a guest of a network; the reply as text, or `later`, or `silence`.
    fn ask(&mut self, network: &str, question: &str) -> String {
        let from = self.from(network, "10.94.1.50");
        let way = Way::Udp(0, SocketAddr::new(from.address, 4000));
        let reply = self.handle(&from, way, &query(question));
        if reply.is_empty() {
            "later".to_owned()
        } else {
            text(&reply)
        }
    }

    /// What goes to upstreams, as `address id question`.
    fn sent(&mut self) -> Vec<(SocketAddr, ServerId, u8, Vec<u8>)> {
        std::iter::from_fn(|| self.resolver.effect())
            .map(|effect| match effect {
                Effect::Send {
                    server,
                    address,
                    lane,
                    link: _,
                    message,
                } => (address, server, lane, message),
                Effect::Stream { .. } | Effect::Check(_) => panic!("only datagrams were expected"),
            })
            .collect()
    }

    fn receive(&mut self, server: ServerId, lane: u8, message: &[u8]) -> Vec<String> {
        let seed = &mut self.seed;
        self.resolver
            .receive(self.now, &mut || dice(seed), server, lane, message);
        self.replies()
    }

    fn wait(&mut self, ms: u64) -> Vec<String> {
        let end = self.now + ms;
        while let Some(due) = self.resolver.due().filter(|due| *due <= end) {
            self.now = due;
            let seed = &mut self.seed;
            self.resolver.tick(due, &mut || dice(seed));
        }
        self.now = end;
        self.replies()
    }

    fn replies(&mut self) -> Vec<String> {
        self.resolver
            .replies()
            .map(|(_, reply)| text(&reply))
            .collect()
    }
}

fn dice(seed: &mut u64) -> u64 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *seed ^ *seed >> 29
}

/// `NAME TYPE [+do] [+edns=SIZE] [+norec] [+cd]`
fn query(question: &str) -> Vec<u8> {
    let mut words = question.split(' ');
    let name = Name::from_ascii(words.next().unwrap()).unwrap();
    let kind: RecordType = words.next().unwrap_or("A").parse().unwrap();
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name, kind));
    for word in words {
        let edns = message.edns.get_or_insert_with(Edns::new);
        edns.set_max_payload(1232);
        match word.split_once('=') {
            Some(("+edns", size)) => _ = edns.set_max_payload(size.parse().unwrap()),
            None if word == "+do" => _ = edns.set_dnssec_ok(true),
            None if word == "+v1" => _ = edns.set_version(1),
            None if word == "+cd" => {
                message.edns = None;
                message.metadata.checking_disabled = true;
            }
            None if word == "+norec" => {
                message.edns = None;
                message.metadata.recursion_desired = false;
            }
            _ => panic!("{word}"),
        }
    }
    message.to_vec().unwrap()
}

/// `CODE flags | answers | authority`, as the other implementation reads it.
fn text(reply: &[u8]) -> String {
    // What an upstream garbled inside a record is passed on as it came: the asker sees that it is garbled.
    let Ok(message) = Message::from_vec(reply) else {
        return "garbled".to_owned();
    };
    let meta = &message.metadata;
    let flags = [
        (meta.authoritative, " aa"),
        (meta.truncation, " tc"),
        (meta.recursion_available, " ra"),
        (meta.authentic_data, " ad"),
        (message.edns.is_some(), " edns"),
    ];
    let flags: String = flags.into_iter().filter(|f| f.0).map(|f| f.1).collect();
    let records = |list: &[hickory_proto::rr::Record]| {
        let all = list
            .iter()
            .map(|r| format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data));
        all.collect::<Vec<_>>().join("; ")
    };
    let code = format!("{:?}", meta.response_code);
    format!(
        "{code}{flags} | {} | {}",
        records(&message.answers),
        records(&message.authorities)
    )
}

#[test]
fn rfc1035_4_1_1_and_rfc6891_shapes() {
    let mut host = Host::new();
    let from = host.from("lab", "10.94.1.50");
    let way = Way::Udp(0, "10.94.1.50:4000".parse().unwrap());
    let good = query("web.lab.test. A");
    let mut changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        let reply = host.handle(&from, way, &bytes);
        if reply.is_empty() {
            "silence".to_owned()
        } else {
            format!(
                "{:?}",
                Message::from_vec(&reply).unwrap().metadata.response_code
            )
        }
    };
    assert_eq!(
        changed(&|b| b[2] |= 0x80),
        "silence",
        "an answer is never answered"
    );
    assert_eq!(changed(&|b| b.truncate(11)), "silence");
    assert_eq!(changed(&|b| b[2] |= 0x28), "NotImp", "another opcode");
    assert_eq!(changed(&|b| b[5] = 2), "FormErr", "two questions");
    assert_eq!(
        changed(&|b| b[12] = 0xc0),
        "FormErr",
        "a pointer in a question"
    );
    assert_eq!(changed(&|b| b.truncate(20)), "FormErr");
    assert_eq!(
        changed(&|b| b[11] = 1),
        "FormErr",
        "a record that is not there"
    );
    let class = good.len() - 1;
    assert_eq!(changed(&|b| b[class] = 3), "NotImp", "class CH");
    assert_eq!(host.ask("lab", "web. AXFR"), "NotImp |  | ");
    assert_eq!(
        host.ask("lab", "web. A +edns=4096"),
        "NoError aa ra edns | web. 10 A 10.94.1.9 | "
    );
    // Code 16 is BADVERS here; the other implementation shows the name it has in TSIG.
    assert_eq!(host.ask("lab", "web. A +v1"), "BADSIG edns |  | ");
    assert!(
        host.ask("lab", "web. ANY").contains("HINFO"),
        "RFC 8482 section 4.2"
    );
}

#[test]
fn rfc6891_7_what_is_not_answered_is_told_in_kind() {
    use hickory_proto::rr::{RData, Record};
    let mut host = Host::new();
    let from = host.from("lab", "10.94.1.50");
    let way = Way::Udp(0, "10.94.1.50:4000".parse().unwrap());
    let mut told = |kind: RecordType, change: &dyn Fn(&mut Message)| {
        let mut message = Message::from_vec(&query("lab.test. A +edns=1232")).unwrap();
        message.queries[0].set_query_type(kind);
        change(&mut message);
        let reply = host.handle(&from, way, &message.to_vec().unwrap());
        let read = Message::from_vec(&reply).unwrap();
        assert_eq!(read.metadata.op_code, message.metadata.op_code);
        assert_eq!(read.queries, message.queries, "{kind}");
        text(&reply)
    };
    let soa = RData::try_from_str(RecordType::SOA, "a. b. 1 2 3 4 5").unwrap();
    let soa = Record::from_rdata(Name::from_ascii("lab.test.").unwrap(), 0, soa);
    // RFC 1995 section 3.
    let since = |message: &mut Message| _ = message.add_authority(soa.clone());
    assert_eq!(told(RecordType::IXFR, &since), "NotImp edns |  | ");
    assert_eq!(told(RecordType::A, &since), "FormErr edns |  | ");
    let update = |message: &mut Message| message.metadata.op_code = OpCode::Update;
    assert_eq!(told(RecordType::SOA, &update), "NotImp edns |  | ");
}

/// The upstream's answer to a message: these records.
fn answer(message: &[u8], records: &[&str]) -> Vec<u8> {
    use hickory_proto::rr::{RData, Record};
    let asked = Message::from_vec(message).unwrap();
    let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.add_query(asked.queries[0].clone());
    for record in records {
        let words: Vec<&str> = record.splitn(4, ' ').collect();
        let kind: RecordType = words[2].parse().unwrap();
        let data = RData::try_from_str(kind, words[3]).unwrap();
        let record = Record::from_rdata(
            Name::from_ascii(words[0]).unwrap(),
            words[1].parse().unwrap(),
            data,
        );
        if kind == RecordType::SOA {
            reply.metadata.response_code = hickory_proto::op::ResponseCode::NXDomain;
            reply.add_authority(record);
        } else {
            reply.add_answer(record);
        }
    }
    reply.edns = asked.edns.clone();
    reply.to_vec().unwrap()
}

#[test]
fn rfc5452_9_only_the_true_answer_is_believed() {
    let mut host = Host::new();
    host.ask("lab", "example.com. A");
    let (_, server, lane, message) = host.sent().remove(0);
    let good = answer(&message, &["example.com. 300 A 192.0.2.1"]);
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    let mut other_name = good.clone();
    other_name[13] ^= 1;
    let mut no_answer = good.clone();
    no_answer[2] &= 0x7f;
    for bad in [&other_id, &other_name, &no_answer, &good[..10].to_vec()] {
        assert_eq!(host.receive(server, lane, bad), Vec::<String>::new());
    }
    assert_eq!(
        host.receive(server, lane + 1, &good),
        Vec::<String>::new(),
        "another socket"
    );
    assert_eq!(host.resolver.stats(host.now).upstream_spoofed, 5);
    assert_eq!(host.receive(server, lane, &good).len(), 1);
}

#[test]
fn a_server_that_folds_case_is_asked_again_without() {
    let mut host = Host::new();
    host.ask("lab", "example.com. A");
    let (_, server, lane, message) = host.sent().remove(0);
    let folded = answer(&message, &["example.com. 300 A 192.0.2.1"]).to_ascii_lowercase();
    assert_eq!(host.receive(server, lane, &folded), Vec::<String>::new());
    let (_, server, lane, message) = host.sent().remove(0);
    let reply = answer(&message, &["example.com. 300 A 192.0.2.1"]);
    assert_eq!(host.receive(server, lane, &reply).len(), 1);
}

#[test]
fn a_question_that_comes_back_is_a_loop() {
    let mut host = Host::new();
    host.ask("lab", "example.com. A");
    let from = host.from("lab", "192.0.2.53");
    let way = Way::Udp(0, "192.0.2.53:53".parse().unwrap());
    assert!(text(&host.handle(&from, way, &query("example.com. A"))).starts_with("Refused"));
}

#[test]
fn one_asker_cannot_take_all() {
    let mut host = Host::new();
    let most = Limits::default().per_client;
    for i in 0..most {
        assert_eq!(host.ask("lab", &format!("n{i}.example. A")), "later");
    }
    assert!(
        host.ask("lab", "one-more.example. A")
            .starts_with("Refused")
    );
    let from = host.from("lab", "10.94.1.51");
    let way = Way::Udp(0, "10.94.1.51:4000".parse().unwrap());
    assert!(
        host.handle(&from, way, &query("mine.example. A"))
            .is_empty(),
        "another is served"
    );
    assert_eq!(host.resolver.stats(host.now).total.limited, 1);
}

/// A guest that makes its addresses has as many as it likes.
#[test]
fn all_addresses_of_a_guest_are_one_asker() {
    let asked = |host: &mut Host, client: &str, name: &str| {
        let from = host.from("lab", client);
        let way = Way::Udp(0, SocketAddr::new(from.address, 4000));
        let reply = host.handle(&from, way, &query(&format!("{name}.example. A")));
        if reply.is_empty() {
            "later".to_owned()
        } else {
            text(&reply)
        }
    };
    let heard = |host: &mut Host, name: &str, address: &str| {
        let change = NameChange {
            name: name.parse().unwrap(),
            address: address.parse().unwrap(),
            change: Change::Added,
        };
        host.resolver.change(&Host::network("lab"), &change);
    };
    let most = Limits::default().per_client;
    // Nobody knows whose they are: one for all of them.
    let mut host = Host::new();
    for i in 0..most {
        assert_eq!(
            asked(&mut host, &format!("fd94:1::1:{i:x}"), &format!("n{i}")),
            "later"
        );
    }
    assert!(asked(&mut host, "fd94:1::2:1", "more").starts_with("Refused"));
    assert_eq!(asked(&mut host, "fd94:2::2:1", "elsewhere"), "later");
    assert_eq!(asked(&mut host, "10.94.1.51", "other"), "later");
    // Whose they are is known: of whom they are.
    heard(&mut host, "mail", "fd94:1::2:1");
    assert_eq!(asked(&mut host, "fd94:1::2:1", "more"), "later");
    let mut host = Host::new();
    for last in 60..80 {
        heard(&mut host, "mail", &format!("10.94.1.{last}"));
        heard(&mut host, "mail", &format!("fd94:1::3:{last}"));
    }
    for i in 0..most {
        let client = match i % 2 {
            0 => format!("10.94.1.{}", 60 + i % 20),
            _ => format!("fd94:1::3:{}", 60 + i % 20),
        };
        assert_eq!(
            asked(&mut host, &client, &format!("n{i}")),
            "later",
            "{client}"
        );
    }
    assert!(asked(&mut host, "10.94.1.60", "more").starts_with("Refused"));
    assert_eq!(asked(&mut host, "fd94:1::4:1", "other"), "later");
}

#[test]
fn the_cache_stays_within_its_bytes() {
    let world = world();
    let mut directory = Directory::new(None);
    directory.put(Zone::of(&world, &Host::network("lab")).unwrap());
    let limits = Limits {
        cache: 64 << 10,
        ..Limits::default()
    };
    let mut host = Host {
        resolver: Resolver::new(directory, limits),
        now: 0,
        seed: 1,
    };
    for i in 0..2_000 {
        host.ask("lab", &format!("n{i}.example. A"));
        let (_, server, lane, message) = host.sent().remove(0);
        host.receive(
            server,
            lane,
            &answer(&message, &[&format!("n{i}.example. 600 A 192.0.2.1")]),
        );
        assert!(host.resolver.stats(host.now).cache_bytes <= 64 << 10);
    }
    assert!(
        host.ask("lab", "n1999.example. A").contains("192.0.2.1"),
        "the newest is there"
    );
    assert_eq!(
        host.ask("lab", "n0.example. A"),
        "later",
        "the oldest is gone"
    );
    assert!(host.resolver.stats(host.now).cache_entries > 100);
}

proptest! {
    #[test]
    fn no_message_breaks_anything(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..60, at in 0usize..60, with: u8) {
        let mut host = Host::new();
        let from = host.from("lab", "10.94.1.50");
        let way = Way::Udp(0, "10.94.1.50:4000".parse().unwrap());
        host.handle(&from, way, &bytes);
        let mut near = query("web.lab.test. A +do");
        if let Some(byte) = near.get_mut(at) {
            *byte = with;
        }
        near.truncate(near.len().saturating_sub(cut));
        let reply = host.handle(&from, way, &near);
        if !reply.is_empty() {
            prop_assert!(Message::from_vec(&reply).is_ok());
            prop_assert_eq!(&reply[..2], &near[..2]);
        }
        // As an answer of an upstream's.
        host.ask("lab", "example.com. A");
        if let Some((_, server, lane, message)) = host.sent().pop() {
            let mut reply = answer(&message, &["example.com. 300 CNAME x.example.com.", "x.example.com. 5 A 192.0.2.1"]);
            if let Some(byte) = reply.get_mut(at) {
                *byte = with;
            }
            reply.truncate(reply.len().saturating_sub(cut));
            host.receive(server, lane, &bytes);
            host.receive(server, lane, &reply);
            host.wait(10_000);
            prop_assert_eq!(host.resolver.due(), None);
        }
    }
}
