//! Offload, judged by a checksum and a parser of its own: 16-bit words added one by one, headers read by hand.

use super::offload::{
    Accepts, Kind, Large, Malformed, Partial, Pending, Segments, Work, finish_checksum,
};
use proptest::prelude::*;

/// RFC 1071 as the RFC says it; a packet whose checksum is right sums to 0xffff.
fn slow_sum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    words.fold(0u32, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    }) as u16
}

#[derive(Debug)]
struct Packet {
    v4: bool,
    tcp: bool,
    tag: bool,
    options: usize,
    tcp_options: usize,
    payload: Vec<u8>,
}

const FLAGS: u8 = 0x80 | 0x10 | 0x08 | 0x01;
const SEQUENCE: u32 = 0xffff_ff00;

impl Packet {
    fn network(&self) -> usize {
        if self.tag { 18 } else { 14 }
    }

    fn transport(&self) -> usize {
        self.network()
            + if self.v4 {
                20 + self.options * 4
            } else {
                40 + self.options * 8
            }
    }

    fn payload_at(&self) -> usize {
        self.transport()
            + if self.tcp {
                20 + self.tcp_options * 4
            } else {
                8
            }
    }

    fn kind(&self) -> Kind {
        match (self.tcp, self.v4) {
            (true, true) => Kind::Tcp4,
            (true, false) => Kind::Tcp6,
            (false, _) => Kind::Udp,
        }
    }

    /// As a guest would send it: lengths of the whole, transport checksum of the pseudo header only.
    fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1];
        if self.tag {
            out.extend([0x81, 0, 0, 7]);
        }
        let protocol = if self.tcp { 6 } else { 17 };
        let length = self.payload_at() - self.transport() + self.payload.len();
        if self.v4 {
            let total = (20 + self.options * 4 + length) as u16;
            out.extend([8, 0, 0x45 + self.options as u8, 0]);
            out.extend(total.to_be_bytes());
            out.extend([
                0xff, 0xfe, 0x40, 0, 64, protocol, 0xab, 0xcd, 10, 0, 0, 1, 10, 0, 0, 2,
            ]);
            out.extend(vec![1; self.options * 4]);
        } else {
            let total = (self.options * 8 + length) as u16;
            out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            out.extend(total.to_be_bytes());
            out.extend([if self.options > 0 { 60 } else { protocol }, 64]);
            out.extend([0xfd; 16].iter().chain(&[0xfe; 16]));
            for extension in 0..self.options {
                out.extend([
                    if extension + 1 < self.options {
                        60
                    } else {
                        protocol
                    },
                    0,
                    1,
                    4,
                    0,
                    0,
                    0,
                    0,
                ]);
            }
        }
        let pseudo = slow_sum(&[
            &self.addresses(&out),
            &[0, protocol],
            &(length as u16).to_be_bytes(),
        ]);
        if self.tcp {
            out.extend([0, 80, 0x30, 0x39]);
            out.extend(SEQUENCE.to_be_bytes());
            out.extend([0, 0, 0, 9, (5 + self.tcp_options as u8) << 4, FLAGS, 1, 0]);
            out.extend(pseudo.to_be_bytes());
            out.extend([0, 0]);
            out.extend(vec![1; self.tcp_options * 4]);
        } else {
            out.extend([0, 53, 0x30, 0x39]);
            out.extend((length as u16).to_be_bytes());
            out.extend(pseudo.to_be_bytes());
        }
        out.extend(&self.payload);
        out
    }

    fn addresses(&self, frame: &[u8]) -> Vec<u8> {
        let at = self.network();
        if self.v4 {
            frame[at + 12..at + 20].to_vec()
        } else {
            frame[at + 8..at + 40].to_vec()
        }
    }

    fn partial(&self) -> Partial {
        Partial {
            start: self.transport() as u16,
            offset: if self.tcp { 16 } else { 6 },
        }
    }

    fn assert_checksums(&self, frame: &[u8]) {
        let (network, transport) = (self.network(), self.transport());
        let protocol = if self.tcp { 6 } else { 17 };
        let length = ((frame.len() - transport) as u16).to_be_bytes();
        assert_eq!(
            slow_sum(&[
                &self.addresses(frame),
                &[0, protocol],
                &length,
                &frame[transport..]
            ]),
            0xffff,
            "transport checksum"
        );
        if !self.tcp {
            assert_ne!(
                frame[transport + 6..transport + 8],
                [0, 0],
                "UDP without a checksum"
            );
            assert_eq!(frame[transport + 4..transport + 6], length, "UDP length");
        }
        if self.v4 {
            assert_eq!(
                u16::from_be_bytes([frame[network + 2], frame[network + 3]]) as usize,
                frame.len() - network
            );
        } else {
            assert_eq!(
                u16::from_be_bytes([frame[network + 4], frame[network + 5]]) as usize,
                frame.len() - network - 40
            );
        }
    }
}

fn packets() -> impl Strategy<Value = Packet> {
    let payload = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        (1000usize..60_000, any::<u8>())
            .prop_map(|(n, x)| { (0..n).map(|i| (i as u8).wrapping_mul(x)).collect() })
    ];
    (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        0usize..4,
        0usize..10,
        payload,
    )
        .prop_map(|(v4, tcp, tag, options, tcp_options, payload)| Packet {
            v4,
            tcp,
            tag,
            options,
            tcp_options,
            payload,
        })
}

proptest! {
    #[test]
    fn a_finished_checksum_is_right(packet in packets()) {
        let mut frame = packet.bytes();
        prop_assert_eq!(finish_checksum(&mut frame, packet.partial()), Ok(()));
        packet.assert_checksums(&frame);
    }

    #[test]
    fn segments_are_whole_packets_that_add_up(packet in packets(), size in 48u16..9000) {
        let frame = packet.bytes();
        let segments = Segments::new(&frame, Large { kind: packet.kind(), size });
        if !packet.tcp && packet.payload.len().div_ceil(size.into()) > 128 {
            prop_assert_eq!(segments.err(), Some(Malformed));
            return Ok(());
        }
        let mut segments = segments.expect("a good packet");
        let (count, mut seen, mut out, mut payload) = (segments.count(), 0, Vec::new(), Vec::new());
        while segments.next_into(&mut out) {
            seen += 1;
            packet.assert_checksums(&out);
            if packet.v4 {
                let header = &out[packet.network()..packet.transport()];
                prop_assert_eq!(slow_sum(&[header]), 0xffff, "IPv4 header checksum");
                prop_assert_eq!(u16::from_be_bytes([header[4], header[5]]), 0xfffeu16.wrapping_add(seen - 1));
            }
            if packet.tcp {
                let tcp = &out[packet.transport()..];
                prop_assert_eq!(u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]), SEQUENCE.wrapping_add(payload.len() as u32));
                let end = if usize::from(seen) == count { 0x09 } else { 0 };
                let start = if seen == 1 { 0x80 } else { 0 };
                prop_assert_eq!(tcp[13], 0x10 | end | start, "FIN and PSH at the end, CWR at the beginning");
            }
            let piece = &out[packet.payload_at()..];
            prop_assert!(piece.len() == usize::from(size) || usize::from(seen) == count && piece.len() < usize::from(size));
            payload.extend_from_slice(piece);
        }
        prop_assert_eq!(usize::from(seen), count);
        prop_assert_eq!(payload, packet.payload);
    }

    #[test]
    fn no_bytes_and_no_header_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300), ethertype in prop_oneof![Just(0x800u16), Just(0x86dd), Just(0x8100), any::<u16>()],
        start: u16, offset: u16, size: u16, kind in prop_oneof![Just(Kind::Tcp4), Just(Kind::Tcp6), Just(Kind::Udp)], version: bool,
    ) {
        let mut frame = bytes;
        if frame.len() > 24 {
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            (frame[14], frame[20], frame[23]) = if version { (0x45, 0, 6) } else { (0x60, 6, 0) };
        }
        if let Ok(mut segments) = Segments::new(&frame, Large { kind, size }) {
            let (mut out, mut turns) = (Vec::new(), 0);
            while segments.next_into(&mut out) { turns += 1; }
            prop_assert_eq!(turns, segments.count());
        }
        let length = frame.len();
        let fits = usize::from(start) + usize::from(offset) + 2 <= length;
        prop_assert_eq!(finish_checksum(&mut frame, Partial { start, offset }).is_ok(), fits);
    }
}

#[test]
fn a_segment_size_that_multiplies_a_frame_is_refused() {
    let packet = Packet {
        v4: true,
        tcp: true,
        tag: false,
        options: 0,
        tcp_options: 0,
        payload: vec![0; 60_000],
    };
    for size in [0, 1, 47] {
        assert_eq!(
            Segments::new(
                &packet.bytes(),
                Large {
                    kind: Kind::Tcp4,
                    size
                }
            )
            .err(),
            Some(Malformed)
        );
    }
    assert_eq!(
        Segments::new(
            &packet.bytes(),
            Large {
                kind: Kind::Tcp6,
                size: 1460
            }
        )
        .err(),
        Some(Malformed),
        "wrong family"
    );
    assert_eq!(
        Segments::new(
            &packet.bytes(),
            Large {
                kind: Kind::Udp,
                size: 1460
            }
        )
        .err(),
        Some(Malformed),
        "wrong protocol"
    );
}

#[test]
fn a_receiver_gets_what_it_takes() {
    let checksum = Some(Partial {
        start: 34,
        offset: 16,
    });
    let large = Large {
        kind: Kind::Tcp4,
        size: 1460,
    };
    let pending = Pending {
        checksum,
        large: Some(large),
    };
    let all = Accepts {
        checksum: true,
        tcp4: true,
        tcp6: true,
        udp: true,
    };
    assert_eq!(pending.work(all), Work::Nothing);
    assert_eq!(
        pending.work(Accepts { tcp4: false, ..all }),
        Work::Segment(large)
    );
    assert_eq!(
        pending.work(Accepts {
            checksum: false,
            ..all
        }),
        Work::Segment(large)
    );
    assert_eq!(
        Pending {
            large: None,
            checksum
        }
        .work(Accepts::default()),
        Work::Checksum(Partial {
            start: 34,
            offset: 16
        })
    );
    assert_eq!(
        Pending {
            large: None,
            checksum
        }
        .work(all),
        Work::Nothing
    );
    assert_eq!(Pending::default().work(Accepts::default()), Work::Nothing);
}
