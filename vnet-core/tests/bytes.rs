//! Bytes that no honest guest sends, over IPv6 and TFTP: stored corpora, each file once the shape of an attack, all their
//! beginnings, and many small changes to each. Nothing panics, and what is answered is well-formed.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be read here fails the test"
)]

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;

use uuid::Uuid;
use vnet_core::config::{Fill, native};
use vnet_core::dhcp::ra::Solicitation;
use vnet_core::dhcp::v6::{Datagram, Message, Scope, Sender, Server, Verdict};
use vnet_core::lease::Time;
use vnet_core::model::World;
use vnet_core::tftp::Packet;
use vnet_core::types::Mac;

/// Changed copies of each file.
const CHANGES: u64 = 300;

fn corpus(kind: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(kind);
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    all.sort();
    assert!(all.len() >= 15, "the corpus of {kind} is gone");
    all
}

/// Each file, its beginnings, and changed copies, always the same.
fn feed(kind: &str, mut take: impl FnMut(&[u8])) {
    for (name, bytes) in corpus(kind) {
        for cut in 0..=bytes.len() {
            take(&bytes[..cut]);
        }
        let mut dice = name.bytes().fold(1u64, |acc, b| {
            acc.wrapping_mul(31).wrapping_add(u64::from(b))
        });
        for _ in 0..CHANGES {
            let mut changed = bytes.clone();
            for _ in 0..4 {
                dice = dice
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let [with, at @ ..] = (dice >> 24).to_be_bytes();
                let at = at.iter().fold(0usize, |acc, b| acc << 8 | usize::from(*b));
                let len = changed.len().max(1);
                if let Some(byte) = changed.get_mut(at % len) {
                    *byte = if with & 1 == 0 {
                        with ^ *byte
                    } else {
                        at.to_be_bytes()[7]
                    };
                }
            }
            take(&changed);
        }
    }
}

fn server() -> Server {
    let document = "name = \"lab\"\ndomain.name = \"lab.test\"\n[[subnet]]\naddress = \"10.0.0.1/24\"\n[[subnet]]\n\
                    address = \"fd00:50::1/64\"\n[subnet.dhcp]\nmode = \"both\"\n";
    let fill = Fill {
        uuid: Uuid::nil(),
        bridge: "br0".parse().unwrap(),
        mac: Mac([2; 6]),
        subnets: Vec::new(),
    };
    let network = native::from_toml(document).unwrap()[0]
        .settle(&fill)
        .unwrap();
    let mut world = World::default();
    let name = network.name.clone();
    world.networks.insert(name.clone(), network);
    Server::new(Scope::of(&world, &name).unwrap(), [], Time(0))
}

#[test]
fn dhcpv6_messages() {
    let mut server = server();
    let mut stations = 0;
    let mut answered = 0;
    let address: Ipv6Addr = "fe80::5054:ff:fe00:1".parse().unwrap();
    feed("dhcp6", |bytes| {
        let Ok(message) = Message::parse(bytes) else {
            return;
        };
        // Each from a station of its own: one alone has its share and no more.
        stations += 1;
        let [_, a, b, c] = u32::to_be_bytes(stations);
        let from = Sender {
            mac: Some(Mac([0x52, 0x54, 0, a, b, c])),
            address,
            to: vnet_core::dhcp::v6::SERVERS,
        };
        let reply = match server.handle(Time(1), &from, &message) {
            Verdict::Ignore(_) => None,
            Verdict::Reply(reply) => Some(reply),
            Verdict::Commit { then, .. } => Some(then),
        };
        if let Some(reply) = reply {
            answered += 1;
            // Whole options to the end, as our own reader wants them: a reply is no request, so only its form counts.
            let options = reply.bytes.get(4..).unwrap();
            let relayed = reply.bytes[0] == 13;
            let mut rest = if relayed { &reply.bytes[34..] } else { options };
            while let [_, _, a, b, after @ ..] = rest {
                let len = usize::from(u16::from_be_bytes([*a, *b]));
                rest = after.get(len..).expect("an option that runs out");
            }
            assert!(rest.is_empty());
        }
    });
    assert!(answered > 100, "{answered}");
}

#[test]
fn router_solicitations() {
    let mut good = 0;
    feed("nd", |frame| {
        for checked in [false, true] {
            if let Some(solicitation) = Solicitation::parse(frame, checked) {
                good += 1;
                assert_eq!(solicitation.mac.0, frame[6..12]);
            }
            let _ = Datagram::parse(frame, checked);
        }
    });
    assert!(good > 10, "{good}");
    let whole = |name: &str| {
        let frame = corpus("nd").into_iter().find(|(n, _)| n == name).unwrap().1;
        Solicitation::parse(&frame, false).is_some()
    };
    for name in [
        "solicitation",
        "solicitation-bare",
        "unspecified",
        "trailing",
    ] {
        assert!(whole(name), "{name}");
    }
    // RFC 4861 section 6.1.1, one rule each.
    for name in [
        "unspecified-with-link-layer",
        "hops-254",
        "option-length-0",
        "option-beyond",
        "option-half",
        "code-1",
        "advertisement",
        "short",
        "bad-checksum",
        "length-lies",
    ] {
        assert!(!whole(name), "{name}");
    }
}

#[test]
fn tftp_requests() {
    let mut read = 0;
    feed("tftp", |bytes| match Packet::parse(bytes) {
        Ok(Packet::Read { file, wishes }) => {
            read += 1;
            assert!(!file.is_empty());
            assert!(
                wishes
                    .block
                    .is_none_or(|block| (8..=65464).contains(&block))
            );
            assert!(wishes.window.is_none_or(|window| window > 0));
        }
        Ok(Packet::Ack(_) | Packet::Error) | Err(_) => {}
    });
    assert!(read > 100, "{read}");
}
