use super::*;
use crate::dhcp::ip6::{ICMP, Packet, seal};

const BRIDGE: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 9]);

fn scope() -> Scope {
    Scope {
        network: "lab".parse().unwrap(),
        is_router: true,
        managed: false,
        other: true,
        prefixes: vec![("fd00:5::/64".parse().unwrap(), true)],
        resolvers: vec!["fd00:5::1".parse().unwrap()],
        domain: Some("lab.test".parse().unwrap()),
        mtu: Some(1400),
        routes: vec!["fd00:9::/48".parse().unwrap()],
        pref64: Some("64:ff9b::/96".parse().unwrap()),
    }
}

fn solicit(from: Ipv6Addr, hops: u8, options: &[u8]) -> Vec<u8> {
    let to: Ipv6Addr = "ff02::2".parse().unwrap();
    let envelope = Envelope {
        from_mac: GUEST,
        to_mac: multicast_mac(to),
        from,
        to,
        hops,
    };
    let mut bytes = vec![133, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(options);
    seal(&envelope, ICMP, bytes, 2)
}

fn at(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

/// Type, length in bytes and contents of each option of an advertisement's frame.
fn options(frame: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let packet = Packet::parse(frame, ICMP, false).expect("the checksum is right");
    let (mut rest, mut all) = (&packet.bytes[16..], Vec::new());
    while let [kind, len, ..] = rest {
        let (option, after) = rest.split_at(usize::from(*len) * 8);
        all.push((*kind, option[2..].to_vec()));
        rest = after;
    }
    all
}

#[test]
fn an_advertisement_says_it_all() {
    let mut server = Advertiser::default();
    assert_eq!(server.configure(at(10), Some(scope())), None);
    let frame = server.poll(at(10), 7).unwrap().frame(BRIDGE);
    let packet = Packet::parse(&frame, ICMP, false).unwrap();
    assert_eq!(packet.envelope.from, BRIDGE.link_local());
    assert_eq!(packet.envelope.to, ALL_NODES);
    assert_eq!(packet.envelope.to_mac, Mac([0x33, 0x33, 0, 0, 0, 1]));
    assert_eq!(packet.envelope.hops, 255);
    let head = &packet.bytes[..16];
    assert_eq!(head[..2], [134, 0]);
    assert_eq!(head[4..8], [64, 0x40, 0x07, 0x08]);
    let options = options(&frame);
    let kinds: Vec<u8> = options.iter().map(|o| o.0).collect();
    assert_eq!(kinds, [5, 3, 24, 25, 31, 38, 1]);
    let prefix = &options[1].1;
    assert_eq!(prefix[..2], [64, 0xc0]);
    assert_eq!(prefix[2..10], [0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40]);
    assert_eq!(options[2].1[..2], [48, 0]);
    assert_eq!(options[4].1[6..16], *b"\x03lab\x04test\0");
    // 225 units of eight seconds, and 0 for a /96.
    assert_eq!(options[5].1[..2], (225u16 << 3).to_be_bytes());
    assert_eq!(options[6].1, BRIDGE.0);
}

#[test]
fn three_in_a_hurry_and_then_slowly() {
    let mut server = Advertiser::default();
    server.configure(at(0), Some(scope()));
    let mut times = Vec::new();
    for _ in 0..5 {
        let due = server.next_due().unwrap();
        assert_eq!(
            server.poll(Time(due.0.saturating_sub(1)), 0).is_some(),
            times.is_empty()
        );
        if times.is_empty() {
            times.push(0);
            continue;
        }
        assert!(server.poll(due, u64::MAX).is_some());
        times.push(due.secs());
    }
    assert_eq!(times[..3], [0, 16, 32]);
    assert!((200..=600).contains(&(times[3] - times[2])));
}

#[test]
fn a_solicitation_is_answered_at_once_and_a_flood_is_not() {
    let mut server = Advertiser::default();
    let from = Solicitation {
        mac: GUEST,
        address: GUEST.link_local(),
    };
    assert_eq!(server.solicited(at(1), &from), Err(Reason::Silent));
    server.configure(at(1), Some(scope()));
    let answer = server.solicited(at(1), &from).unwrap().unwrap();
    assert_eq!((answer.to_mac, answer.to), (GUEST, GUEST.link_local()));
    let answered = (0..1000).filter(|_| server.solicited(at(1), &from).is_ok());
    assert!(answered.count() < 200);
}

#[test]
fn nobody_gets_multicasts_faster_than_three_seconds_apart() {
    let mut server = Advertiser::default();
    server.configure(at(100), Some(scope()));
    assert!(server.poll(at(100), 0).is_some());
    let nameless = Solicitation {
        mac: GUEST,
        address: Ipv6Addr::UNSPECIFIED,
    };
    assert_eq!(server.solicited(at(101), &nameless), Ok(None));
    assert_eq!(server.next_due(), Some(at(103)));
    assert!(server.poll(at(103), 0).is_some());
}

#[test]
fn a_removed_prefix_is_deprecated_for_two_hours() {
    let mut server = Advertiser::default();
    server.configure(at(0), Some(scope()));
    let mut moved = scope();
    moved.prefixes = vec![("fd00:6::/64".parse().unwrap(), true)];
    assert_eq!(server.configure(at(1000), Some(moved.clone())), None);
    let lifetimes = |server: &mut Advertiser, now: u64| -> Vec<(u8, u32, u32)> {
        let frame = server.poll(at(now), 0).unwrap().frame(BRIDGE);
        let prefixes = options(&frame).into_iter().filter(|o| o.0 == 3);
        let number = |b: &[u8]| u32::from_be_bytes(b.try_into().unwrap());
        prefixes
            .map(|(_, o)| (o[17], number(&o[2..6]), number(&o[6..10])))
            .collect()
    };
    assert_eq!(
        lifetimes(&mut server, 1000),
        [(6, 86_400, 14_400), (5, 7200, 0)]
    );
    assert_eq!(
        lifetimes(&mut server, 4600),
        [(6, 86_400, 14_400), (5, 3600, 0)]
    );
    // It comes back, and is an ordinary one.
    moved.prefixes.push(("fd00:5::/64".parse().unwrap(), true));
    server.configure(at(5000), Some(moved));
    assert_eq!(lifetimes(&mut server, 5000).len(), 2);
    assert_eq!(lifetimes(&mut server, 50_000).len(), 2);
}

#[test]
fn the_farewell_takes_everything_back() {
    let mut server = Advertiser::default();
    server.configure(at(0), Some(scope()));
    let frame = server.configure(at(9), None).unwrap().frame(BRIDGE);
    let packet = Packet::parse(&frame, ICMP, false).unwrap();
    assert_eq!(packet.bytes[6..8], [0, 0], "no router");
    let prefix = options(&frame).into_iter().find(|o| o.0 == 3).unwrap();
    assert_eq!(prefix.1[6..10], [0; 4], "no preferred lifetime");
    assert_eq!(server.next_due(), None);
    assert_eq!(server.configure(at(10), None), None);
}

/// RFC 4861 section 6.1.1, clause by clause.
#[test]
fn what_is_no_solicitation() {
    let own = GUEST.link_local();
    let source = [1, 1, 0x52, 0x54, 0, 0, 0, 9];
    let parse = |frame: &[u8]| Solicitation::parse(frame, false);
    assert!(parse(&solicit(own, 255, &source)).is_some());
    assert!(parse(&solicit(Ipv6Addr::UNSPECIFIED, 255, &[])).is_some());
    for (bad, why) in [
        (solicit(own, 254, &[]), "passed a router"),
        (
            solicit(own, 255, &[1, 0, 0, 0, 0, 0, 0, 0]),
            "an empty option",
        ),
        (
            solicit(own, 255, &[1, 2, 0, 0, 0, 0, 0, 0]),
            "half an option",
        ),
        (solicit(own, 255, &[1]), "a rest"),
        (
            solicit(Ipv6Addr::UNSPECIFIED, 255, &source),
            "nobody's address",
        ),
        (solicit(ALL_NODES, 255, &[]), "from a group"),
    ] {
        assert_eq!(parse(&bad), None, "{why}");
    }
    let mut damaged = solicit(own, 255, &source);
    damaged[60] ^= 1;
    assert_eq!(parse(&damaged), None);
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        flips in proptest::collection::vec((0usize..80, proptest::prelude::any::<u8>()), 0..12),
        cut in 0usize..80,
    ) {
        let mut frame = solicit(GUEST.link_local(), 255, &[1, 1, 0x52, 0x54, 0, 0, 0, 9]);
        for (at, byte) in flips {
            if let Some(slot) = frame.get_mut(at) {
                *slot = byte;
            }
        }
        frame.truncate(cut);
        let _ = Solicitation::parse(&frame, true);
        let _ = Solicitation::parse(&frame, false);
    }
}
