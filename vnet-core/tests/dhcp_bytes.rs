//! Bytes that no honest client sends: the corpus (`corpus/dhcp4`, each file once the shape of an attack) and whatever
//! proptest makes of it. Nothing panics, and what is answered is a message that an independent reader takes.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be read here fails the test"
)]

use std::fs;
use std::path::Path;

use dhcproto::v4 as peer;
use dhcproto::{Decodable as _, Decoder};
use proptest::prelude::*;
use uuid::Uuid;
use vnet_core::config::{Fill, native};
use vnet_core::dhcp::v4::{Message, Scope, Sender, Server, Verdict};
use vnet_core::lease::Time;
use vnet_core::model::World;
use vnet_core::types::Mac;

const LAB: &str = r#"
name = "lab"
[domain]
name = "lab.test"
[[subnet]]
address = "10.0.0.1/24"
[subnet.dhcp.boot]
file = "undionly.kpxe"
[[subnet.dhcp.boot.rule]]
user_class = "iPXE"
file = "http://10.0.0.1/a-name-so-long-that-the-fixed-field-does-not-hold-it/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
"#;

fn server() -> Server {
    let fill = Fill {
        uuid: Uuid::nil(),
        bridge: "br0".parse().unwrap(),
        mac: Mac([2; 6]),
        subnets: Vec::new(),
    };
    let network = native::from_toml(LAB).unwrap()[0].settle(&fill).unwrap();
    let mut world = World::default();
    let name = network.name.clone();
    world.networks.insert(name.clone(), network);
    Server::new(Scope::of(&world, &name).unwrap(), [], Time(0))
}

/// What the server says to bytes, once they are a message.
fn say(server: &mut Server, bytes: &[u8]) -> Option<Vec<u8>> {
    let message = Message::parse(bytes).ok()?;
    assert!(message.hlen <= 16);
    let from = Sender {
        mac: Some(Mac([0x52, 0x54, 0, 0, 0, 0x0a])),
        ..Sender::default()
    };
    match server.handle(Time(1), &from, &message) {
        Verdict::Ignore(_) => None,
        Verdict::Reply(reply) | Verdict::Probe { then: reply, .. } => Some(reply.bytes),
        Verdict::Commit { then, .. } => then.map(|reply| reply.bytes),
    }
}

fn checked(bytes: &[u8]) {
    if let Some(reply) = say(&mut server(), bytes) {
        assert!((300..=1472).contains(&reply.len()), "{}", reply.len());
        let read = peer::Message::decode(&mut Decoder::new(&reply)).unwrap();
        assert_eq!(read.opcode(), peer::Opcode::BootReply);
        assert!(read.opts().msg_type().is_some());
    }
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/dhcp4");
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut all: Vec<_> = entries
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn the_corpus_is_answered_or_not_but_never_fatal() {
    let all = corpus();
    assert!(all.len() >= 20, "{} files", all.len());
    for (name, bytes) in &all {
        checked(bytes);
        let answered = say(&mut server(), bytes).is_some();
        let honest = ["discover", "boot-classes", "overload-both", "pieces-joined"];
        if honest.contains(&name.as_str()) {
            assert!(answered, "{name}");
        }
        for cut in 0..bytes.len() {
            checked(&bytes[..cut]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn changed_bytes_of_the_corpus(which: prop::sample::Index, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12)) {
        let all = corpus();
        let mut bytes = which.get(&all).1.clone();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        checked(&bytes);
    }

    #[test]
    fn any_options_after_an_honest_head(kind in 0u8..10, options in prop::collection::vec(any::<u8>(), 0..600)) {
        let head = corpus().into_iter().find(|(name, _)| name == "discover").unwrap().1;
        let bytes = [&head[..240], &[53, 1, kind], options.as_slice()].concat();
        checked(&bytes);
    }
}
