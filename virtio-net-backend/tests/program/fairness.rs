//! What one guest's turn may cost the others: the data plane without its loop, turn by turn, its work counted.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_net_backend::device::Settings;
use virtio_net_backend::process::middle::Middle;
use virtio_net_backend::process::network::{BUDGET, Network};
use virtio_net_backend::process::port::{Door, Port};
use virtio_net_backend::switch::{self, Limit, Rate, Switch, Time};
use virtio_net_backend::transport::vhost_user::Session;

use crate::frontend::{Frontend, Line, message, send, trace};
use crate::replay::{CLOUD_HYPERVISOR, frame};

const SET_FEATURES: u32 = 2;
/// Checksums and large packets toward the driver. Who does not take them costs software work.
const RECEIVE_OFFLOADS: u64 = 1 << 1 | 0b1111 << 7;
const HEADER: usize = 12;
/// A frame that must be cut carries so little in each segment.
const SMALLEST: u16 = 48;

/// A switch and its guests, `a` first; each takes no offloads.
pub(crate) struct Lab {
    pub(crate) network: Network,
    pub(crate) guests: Vec<Frontend>,
    now: u64,
}

impl Lab {
    pub(crate) fn new(ports: Vec<switch::Port>) -> Self {
        let mut lab = Self {
            network: Network::new(Middle::Switch(Box::new(Switch::new(64, 7))), None),
            guests: Vec::new(),
            now: 1,
        };
        for port in ports {
            lab.plug(port);
        }
        lab
    }

    fn plug(&mut self, port: switch::Port) {
        let lines = trace(CLOUD_HYPERVISOR);
        let lines = lines.iter().take_while(|line| **line != Line::Frames);
        let lines: Vec<Line> = lines.map(plain).collect();
        self.plug_with(port, 1, &lines);
        self.guests.last_mut().expect("plugged").post();
    }

    /// A guest of so many queue pairs, whose VMM says this. It has posted nothing.
    pub(crate) fn plug_with(&mut self, port: switch::Port, queue_pairs: u16, lines: &[Line]) {
        let Middle::Switch(switch) = self.network.middle() else {
            panic!("a switch");
        };
        let index = switch.attach(Time::default(), port).expect("a place");
        let number = u16::try_from(index.index()).expect("small");
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let settings = Settings {
            mac: [0x52, 0x54, 0, 0, 0, 0xc1],
            mtu: None,
            queue_pairs,
            own_control_queue: false,
            withheld: virtio_net_backend::device::Features::default(),
        };
        let mut port = Port::new(number.to_string(), settings, Door::Connect("none".into()));
        port.open(theirs).expect("opened");
        self.network.insert(number, port);
        let mut guest = Frontend::new(ours);
        for line in lines {
            guest.replay(line);
            let port = self.network.port(number).expect("there");
            let session = port.session.as_mut().expect("open");
            session.serve(|_| ()).expect("served");
        }
        self.guests.push(guest);
    }

    /// One turn, all ports awake.
    pub(crate) fn turn(&mut self) -> usize {
        for number in 0..u16::try_from(self.guests.len()).expect("few") {
            self.network.wake(number);
        }
        self.now += 1000;
        self.network.turn(Time::from_nanos(self.now))
    }

    fn sent(&mut self, number: u16) -> u64 {
        self.network.port(number).expect("there").counters.tx_frames
    }

    /// What a port was given, or would have been had it had room.
    fn given(&mut self, number: u16) -> u64 {
        let counters = self.network.port(number).expect("there").counters;
        counters.rx_frames + counters.rx_no_buffers
    }

    /// Turns until `victim` has sent as much as it has, which is at most that many.
    fn until_sent(&mut self, victim: u16, frames: u64) -> u32 {
        for turn in 1..1000 {
            self.turn();
            if self.sent(victim) == frames {
                return turn;
            }
        }
        panic!("starved: {} of {frames}", self.sent(victim));
    }
}

/// A driver that takes nothing unfinished.
pub(crate) fn plain(line: &Line) -> Line {
    match line {
        Line::Says(SET_FEATURES, flags, payload) => {
            let features = u64::from_le_bytes(*payload.first_chunk().expect("whole"));
            let features = features & !RECEIVE_OFFLOADS;
            Line::Says(SET_FEATURES, *flags, features.to_le_bytes().to_vec())
        }
        Line::Says(..) | Line::Hears(..) | Line::Frames => line.clone(),
    }
}

/// A large TCP packet that says it is to be cut into as many segments as can be.
fn cut_small(from: u8, to: u8) -> Vec<u8> {
    let payload = 65_000u16;
    let size = SMALLEST.to_le_bytes();
    // Needs a checksum; TCP over IPv4; headers of 54 bytes, segments of SMALLEST; the sum begins at 34, its place is 16.
    let mut packet = vec![1, 1, 54, 0, size[0], size[1], 34, 0, 16, 0, 0, 0];
    packet.extend([2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0]);
    packet.extend([0x45, 0]);
    packet.extend((payload + 40).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, from, 10, 0, 0, to]);
    packet.extend([
        0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 64, 0, 0, 0, 0,
    ]);
    packet.resize(HEADER + 54 + usize::from(payload), 0);
    packet
}

/// A plain frame as long as can be, to everybody.
fn broadcast(from: u8) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet.extend([0xff; 6]);
    packet.extend([2, 0, 0, 0, 0, from, 0x88, 0xb5]);
    packet.resize(HEADER + 60_000, 0);
    packet
}

/// A full turn's worth of small frames to the last guest.
fn small(guest: &mut Frontend, to: u8) -> u64 {
    let count = u16::try_from(BUDGET).expect("small");
    for slot in 0..count {
        guest.lay(slot, &frame(0xa, to, 0));
    }
    u64::from(count)
}

fn open(count: usize) -> Vec<switch::Port> {
    std::iter::repeat_with(switch::Port::default)
        .take(count)
        .collect()
}

/// The last guest's address is known, so that nothing is flooded to find it.
fn make_known(lab: &mut Lab, number: usize, address: u8) {
    lab.guests[number].lay(200, &frame(address, 0xee, 0));
    lab.turn();
    lab.turn();
}

#[test]
fn frames_that_must_be_cut_small_count_as_many() {
    let mut lab = Lab::new(open(3));
    make_known(&mut lab, 2, 0xc);
    let before = lab.given(2);
    for slot in 0..32 {
        lab.guests[0].lay_packet(slot, &cut_small(0xb, 0xc));
    }
    let frames = small(&mut lab.guests[1], 0xc);
    lab.until_sent(1, frames);
    let segments = 65_000u64.div_ceil(u64::from(SMALLEST));
    let theirs = lab.given(2) - before - frames;
    // Two frames were begun at most, whatever the order; the flood was 32.
    assert!(theirs <= 2 * segments, "{theirs} segments before {frames}");
    // Alone it is served, debt or not.
    lab.until_sent(0, 32);
}

#[test]
fn a_large_broadcast_counts_once_for_each_who_gets_it() {
    let mut lab = Lab::new(open(20));
    make_known(&mut lab, 19, 0xc);
    for slot in 0..64 {
        lab.guests[0].lay_packet(slot, &broadcast(0xb));
    }
    let frames = small(&mut lab.guests[1], 0xc);
    lab.until_sent(1, frames);
    let broadcasts = lab.sent(0);
    assert!(broadcasts <= 2, "{broadcasts} before {frames}");
    lab.until_sent(0, 64);
}

#[test]
fn chains_of_nothing_count_by_their_descriptors() {
    let mut lab = Lab::new(open(3));
    make_known(&mut lab, 2, 0xc);
    for slot in 0..64 {
        lab.guests[0].lay_nothing(slot, 1024);
    }
    let frames = small(&mut lab.guests[1], 0xc);
    lab.until_sent(1, frames);
    let malformed = |lab: &mut Lab| lab.network.port(0).expect("there").counters.tx_malformed;
    let chains = malformed(&mut lab);
    assert!(chains <= 4, "{chains} before {frames}");
    while malformed(&mut lab) < 64 {
        assert!(lab.turn() > 0, "stuck");
    }
}

#[test]
fn a_port_over_its_rate_loses_nothing_of_its_own_ring() {
    let limited = switch::Port {
        send: Limit {
            bytes: None,
            frames: Some(Rate {
                per_second: 1_000_000,
                burst: 3,
            }),
        },
        ..switch::Port::default()
    };
    let mut lab = Lab::new(vec![limited, switch::Port::default()]);
    let frames = small(&mut lab.guests[0], 0xc);
    lab.turn();
    assert_eq!(lab.sent(0), 3, "the burst, and the rest waits");
    // A frame a microsecond, which is a turn here.
    let turns = lab.until_sent(0, frames);
    assert!(u64::from(turns) >= frames - 4, "{turns} turns");
    assert_eq!(lab.given(1), frames);
}

#[test]
fn requests_that_cost_much_are_fewer_in_a_turn() {
    const SET_MEM_TABLE: u32 = 5;
    const FLOOD: usize = 32;
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let settings = Settings {
        mac: [0x52, 0x54, 0, 0, 0, 0xc1],
        mtu: None,
        queue_pairs: 1,
        own_control_queue: false,
        withheld: virtio_net_backend::device::Features::default(),
    };
    let mut session = Session::new(theirs, &settings).expect("a session");
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, 8 << 20).expect("length");
    // Eight regions, which are mapped, and those before them unmapped.
    let regions = (0..8u64).flat_map(|at| [at << 20, 1 << 20, at << 20, at << 20]);
    let table: Vec<u8> = [8, 0u32]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .chain(regions.flat_map(u64::to_le_bytes))
        .collect();
    for _ in 0..FLOOD {
        send(
            &ours,
            &message(SET_MEM_TABLE, 1, &table),
            &[file.as_fd(); 8],
        );
    }
    let mut turns = Vec::new();
    while turns.iter().sum::<usize>() < FLOOD {
        let mut handled = 0;
        session.serve(|_| handled += 1).expect("served");
        turns.push(handled);
    }
    assert!(turns.len() > 1, "{turns:?}");
    assert!(turns.iter().all(|handled| *handled > 0), "{turns:?}");
}
