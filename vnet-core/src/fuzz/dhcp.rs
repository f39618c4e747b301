//! What guests say to get an address and to boot: frames, and the messages in them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use dhcproto::v4 as peer;
use dhcproto::{Decodable as _, Decoder};

use crate::dhcp::ra::Solicitation;
use crate::dhcp::{v4, v6};
use crate::lease::Time;
use crate::tftp::Packet;
use crate::types::Mac;

const LAB: &str = r#"
name = "lab"
domain.name = "lab.test"
[[subnet]]
address = "10.0.0.1/24"
[subnet.dhcp]
relays = ["10.0.0.2"]
[[subnet.dhcp.host]]
circuit_id = "eth1/7"
ip = "10.0.0.77"
[subnet.dhcp.boot]
file = "undionly.kpxe"
[[subnet.dhcp.boot.rule]]
user_class = "iPXE"
file = "http://10.0.0.1/a-name-so-long-that-the-fixed-field-does-not-hold-it/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
[[subnet]]
address = "fd00:50::1/64"
[subnet.dhcp]
mode = "both"
"#;

const OURS: Mac = Mac([2; 6]);
const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 0x0a]);

static SCOPES: LazyLock<(v4::Scope, v6::Scope)> = LazyLock::new(|| {
    let world = super::world(LAB);
    let name = "lab".parse().expect("a name");
    let four = v4::Scope::of(&world, &name).expect("it has DHCP");
    (four, v6::Scope::of(&world, &name).expect("and DHCPv6"))
});

/// A DHCPv4 message of a guest's, said three times: what the server remembers of it must do no harm either.
pub(super) fn four(bytes: &[u8]) -> usize {
    let from = v4::Sender {
        mac: Some(GUEST),
        ..v4::Sender::default()
    };
    hear_four(&from, bytes).len()
}

/// The replies to a message, each read by an independent reader.
fn hear_four(from: &v4::Sender, bytes: &[u8]) -> Vec<v4::Reply> {
    let Ok(message) = v4::Message::parse(bytes) else {
        return Vec::new();
    };
    assert!(message.hlen <= 16);
    let mut server = v4::Server::new(SCOPES.0.clone(), [], Time(0));
    let mut replies = Vec::new();
    for now in [1, 1, 2] {
        replies.extend(match server.handle(Time(now), from, &message) {
            v4::Verdict::Ignore(_) => None,
            v4::Verdict::Reply(reply) => Some(reply),
            v4::Verdict::Probe { then, .. } | v4::Verdict::Commit { then, .. } => then,
        });
    }
    for v4::Reply { bytes, .. } in &replies {
        assert!((300..=1472).contains(&bytes.len()), "{}", bytes.len());
        let read = peer::Message::decode(&mut Decoder::new(bytes)).expect("a DHCP message");
        assert_eq!(read.opcode(), peer::Opcode::BootReply);
        assert!(read.opts().msg_type().is_some());
    }
    replies
}

/// A frame on a bridge, whose checksum the kernel vouches for or not.
pub(super) fn four_frame(frame: &[u8]) -> usize {
    let Some(datagram) = v4::Datagram::parse(frame, true) else {
        assert_eq!(v4::Datagram::parse(frame, false), None);
        return 0;
    };
    let unchecked = v4::Datagram::parse(frame, false);
    assert!(unchecked.is_none_or(|unchecked| unchecked == datagram));
    assert_eq!(
        frame.get(6..12),
        datagram.from.mac.as_ref().map(|mac| &mac.0[..])
    );
    for reply in hear_four(&datagram.from, datagram.payload) {
        let sent = v4::frame(&reply, OURS, GUEST);
        let heard = v4::Datagram::parse(&sent, false);
        // Only what goes to a relay goes to a server's port.
        if let v4::Destination::Relay(relay) = reply.to {
            let heard = heard.expect("a whole datagram");
            assert_eq!(heard.payload, reply.bytes);
            assert_eq!((heard.from.mac, heard.from.to), (Some(OURS), Some(relay)));
        } else {
            assert_eq!(heard, None);
        }
    }
    1
}

/// What may be an answer to the question who has an address.
pub(super) fn arp(frame: &[u8]) -> usize {
    let Some((address, mac)) = v4::arp_answer(frame) else {
        return 0;
    };
    assert_eq!(frame.get(22..28), Some(&mac.0[..]));
    let mut server = v4::Server::new(SCOPES.0.clone(), [], Time(0));
    for address in [address, Ipv4Addr::new(10, 0, 0, 9)] {
        let _ = server.conflict(Time(1), address, mac);
    }
    1
}

/// A DHCPv6 message of a guest's, or of a relay's.
pub(super) fn six(bytes: &[u8]) -> usize {
    let from = v6::Sender {
        mac: Some(GUEST),
        address: Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe00, 0x0a),
        to: v6::SERVERS,
    };
    hear_six(&from, bytes).len()
}

fn hear_six(from: &v6::Sender, bytes: &[u8]) -> Vec<v6::Reply> {
    let Ok(message) = v6::Message::parse(bytes) else {
        return Vec::new();
    };
    let mut server = v6::Server::new(SCOPES.1.clone(), [], Time(0));
    let mut replies = Vec::new();
    for now in [1, 1, 2] {
        replies.extend(match server.handle(Time(now), from, &message) {
            v6::Verdict::Ignore(_) => None,
            v6::Verdict::Reply(reply) => Some(reply),
            v6::Verdict::Commit { then, .. } => Some(then),
        });
    }
    for v6::Reply { bytes, .. } in &replies {
        // Whole options to the end, behind the head of a message or of a relay's.
        let head = if bytes.first() == Some(&13) { 34 } else { 4 };
        let mut rest = bytes.get(head..).expect("a head");
        while let [_, _, a, b, after @ ..] = rest {
            let len = usize::from(u16::from_be_bytes([*a, *b]));
            rest = after.get(len..).expect("an option that runs out");
        }
        assert!(rest.is_empty());
    }
    replies
}

/// The same for IPv6.
pub(super) fn six_frame(frame: &[u8]) -> usize {
    let Some(datagram) = v6::Datagram::parse(frame, true) else {
        assert_eq!(v6::Datagram::parse(frame, false), None);
        return 0;
    };
    let unchecked = v6::Datagram::parse(frame, false);
    assert!(unchecked.is_none_or(|unchecked| unchecked == datagram));
    for reply in hear_six(&datagram.from, datagram.payload) {
        let sent = v6::frame(&reply, OURS, GUEST);
        let heard = v6::Datagram::parse(&sent, false);
        assert!(heard.is_none_or(|heard| heard.payload == reply.bytes));
    }
    1
}

/// What may be a router solicitation.
pub(super) fn nd(frame: &[u8]) -> usize {
    let Some(solicitation) = Solicitation::parse(frame, true) else {
        assert!(Solicitation::parse(frame, false).is_none());
        return 0;
    };
    assert_eq!(frame.get(6..12), Some(&solicitation.mac.0[..]));
    1
}

/// A datagram to the TFTP server.
pub(super) fn tftp(bytes: &[u8]) -> usize {
    match Packet::parse(bytes) {
        Ok(Packet::Read { file, wishes, .. }) => {
            assert!(!file.is_empty());
            let block = wishes.block.is_none_or(|b| (8..=65464).contains(&b));
            assert!(block && wishes.window.is_none_or(|window| window > 0));
            1
        }
        Ok(Packet::Ack(_) | Packet::Error) => 0,
        Err(refused) => {
            // An error is told with a code and a text.
            assert!(refused.reply().is_none_or(|reply| reply.len() >= 5));
            0
        }
    }
}
