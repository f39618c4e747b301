//! A guest with two queue pairs: what one of them does not take must not stop the other.

use virtio_net_backend::switch;

use crate::fairness::{Lab, plain};
use crate::frontend::{Frontend, Line, trace};
use crate::replay::CLOUD_HYPERVISOR;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const GET_QUEUE_NUM: u32 = 17;
const GET_CONFIG: u32 = 24;
/// What is said of one ring: size, addresses, base, kick, call, enabled.
const OF_RINGS: [u32; 6] = [8, 9, 10, 12, 13, 18];
const SET_VRING_ADDR: u32 = 9;
const MQ: u64 = 1 << 22;
/// How far the second pair's rings are from the first one's.
const APART: u64 = 0x10_0000;

/// The recorded VMM, had its guest a second pair.
fn of_two_pairs() -> Vec<Line> {
    let lines = trace(CLOUD_HYPERVISOR);
    let lines = lines.iter().take_while(|line| **line != Line::Frames);
    // What would be answered otherwise is not asked.
    let asked = [GET_FEATURES, GET_QUEUE_NUM, GET_CONFIG];
    let first: Vec<Line> = lines
        .filter(|line| !asked.contains(&kind(line)))
        .map(|line| with_pairs(&plain(line)))
        .collect();
    let of_rings = first.iter().filter(|line| OF_RINGS.contains(&kind(line)));
    let second: Vec<Line> = of_rings.map(second).collect();
    [first, second].concat()
}

fn kind(line: &Line) -> u32 {
    match line {
        Line::Says(kind, ..) => *kind,
        Line::Hears(bytes, _) => u32::from_le_bytes(*bytes.first_chunk().expect("whole")),
        Line::Frames => 0,
    }
}

fn with_pairs(line: &Line) -> Line {
    match line {
        Line::Says(SET_FEATURES, flags, payload) => {
            let features = u64::from_le_bytes(*payload.first_chunk().expect("whole")) | MQ;
            Line::Says(SET_FEATURES, *flags, features.to_le_bytes().to_vec())
        }
        Line::Says(..) | Line::Hears(..) | Line::Frames => line.clone(),
    }
}

/// The same word about the ring of the second pair.
fn second(line: &Line) -> Line {
    let Line::Says(kind, flags, payload) = line else {
        return line.clone();
    };
    let mut payload = payload.clone();
    payload[0] += 2;
    if *kind == SET_VRING_ADDR {
        for at in [8, 16, 24] {
            let address = u64::from_le_bytes(*payload[at..].first_chunk().expect("whole"));
            payload[at..at + 8].copy_from_slice(&(address + APART).to_le_bytes());
        }
    }
    Line::Says(*kind, *flags, payload)
}

/// A datagram of a flow, the last byte of which counts.
fn datagram(from: u8, to: u8, flow: u8, number: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0, 0x45];
    frame.resize(60, 0);
    frame[23] = 17;
    (frame[35], frame[37]) = (flow, flow);
    frame[59] = number;
    frame
}

/// The numbers of the frames that came by a pair.
fn numbers(guest: &mut Frontend, pair: usize) -> Vec<u8> {
    let frames = std::iter::from_fn(|| guest.come_by(pair));
    frames.map(|frame| frame[59]).collect()
}

/// A guest of two pairs and a sender. The guest sends flow `n` by pair `n`, so that what is sent to it comes by that.
fn lab() -> Lab {
    let mut lab = Lab::new(Vec::new());
    lab.plug_with(switch::Port::default(), 2, &of_two_pairs());
    lab.plug_with(switch::Port::default(), 2, &of_two_pairs());
    for pair in [0, 1] {
        let asks = datagram(0xa, 0xb, u8::try_from(pair).expect("small"), 0);
        lab.guests[0].lay_in(pair, 0, &asks);
    }
    lab.guests[1].post_to(0, 8);
    lab.guests[1].post_to(1, 8);
    lab.turn();
    lab
}

/// The sender sends frames of these flows, numbered in order.
fn send(lab: &mut Lab, flows: &[u8]) {
    for (number, flow) in (0..).zip(flows) {
        lab.guests[1].lay(number.into(), &datagram(0xb, 0xa, *flow, number));
    }
    lab.turn();
}

#[test]
fn a_pair_without_buffers_stops_its_own_frames_only() {
    let mut lab = lab();
    lab.guests[0].post_to(1, 16);
    send(&mut lab, &[0, 1, 0, 1, 1, 0]);
    assert_eq!(numbers(&mut lab.guests[0], 1), [1, 3, 4]);
    assert!(numbers(&mut lab.guests[0], 0).is_empty());
    lab.guests[0].post_to(0, 2);
    lab.turn();
    assert_eq!(numbers(&mut lab.guests[0], 0), [0, 2], "as they came");
    lab.guests[0].post_to(0, 2);
    lab.turn();
    assert_eq!(numbers(&mut lab.guests[0], 0), [5]);
    let lost = lab.network.port(0).expect("there").counters.rx_no_buffers;
    assert_eq!(lost, 0);
}

#[test]
fn frames_that_wait_for_a_pair_that_stops_go_by_another() {
    const SET_VRING_ENABLE: u32 = 18;
    let mut lab = lab();
    send(&mut lab, &[0, 0, 0]);
    lab.guests[0].replay(&Line::Says(SET_VRING_ENABLE, 1, vec![0; 8]));
    let port = lab.network.port(0).expect("there");
    let session = port.session.as_mut().expect("open");
    session.serve(|_| ()).expect("served");
    lab.guests[0].post_to(1, 16);
    lab.turn();
    assert_eq!(numbers(&mut lab.guests[0], 1), [0, 1, 2]);
}

#[test]
fn a_pair_that_takes_nothing_leaves_room_for_frames_of_the_other() {
    let mut lab = lab();
    for _ in 0..20 {
        send(&mut lab, &[0; 64]);
    }
    send(&mut lab, &[1; 30]);
    let lost = lab.network.port(0).expect("there").counters.rx_no_buffers;
    assert!(lost > 0, "the first pair's frames are bounded");
    lab.guests[0].post_to(1, 30);
    lab.turn();
    let all: Vec<u8> = (0..30).collect();
    assert_eq!(numbers(&mut lab.guests[0], 1), all);
}
