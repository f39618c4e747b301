//! A driver of one screen against the card, then drivers that mean harm.

use super::registers::{offset, status};
use super::*;
use crate::port::{Channel, FramePort};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 1 << 20;
const SIZE_OF_RING: u16 = 16;
const RX: u16 = 0;
const TX: u16 = 1;
const CONTROL: u16 = 2;
/// With a second pair, whose queues follow the first one's.
const QUEUES: usize = 4;

/// What the driver keeps, so that it can go on with another card over the same memory.
#[derive(Clone)]
struct Driver {
    nic: Nic,
    memory: Arc<Memory>,
    made: [u16; QUEUES],
    seen: [u16; QUEUES],
}

fn settings() -> Settings {
    Settings {
        mac: [0x52, 0x54, 0, 0, 0, 1],
        mtu: Some(1500),
        queue_pairs: 1,
        own_control_queue: true,
        withheld: Features::default(),
    }
}

fn memory() -> Arc<Memory> {
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    Memory::new(map)
}

/// Where ring `queue` has its table, its available and its used part, and its buffers of 2 KiB.
fn place(queue: u16) -> [u64; 4] {
    let base = 0x1_0000 * (1 + u64::from(queue));
    [base, base + 0x1000, base + 0x2000, base + 0x4000]
}

impl Driver {
    fn new(memory: &Arc<Memory>) -> Self {
        Self::of(&settings(), memory)
    }

    fn of(settings: &Settings, memory: &Arc<Memory>) -> Self {
        let nic = Nic::new(settings, Arc::clone(memory)).unwrap();
        Self {
            nic,
            memory: Arc::clone(memory),
            made: [0; QUEUES],
            seen: [0; QUEUES],
        }
    }

    fn running() -> Self {
        let mut driver = Self::new(&memory());
        driver.start();
        driver
    }

    fn get(&self, at: u64) -> u32 {
        let mut data = [0xee; 4];
        self.nic.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, at: u64, value: u32) {
        self.nic.write(at, &value.to_le_bytes());
    }

    fn set_features(&self, features: Features) {
        for half in [0, 1] {
            self.set(offset::DRIVER_FEATURES_SEL, half);
            self.set(
                offset::DRIVER_FEATURES,
                (features.bits() >> (32 * half)) as u32,
            );
        }
    }

    fn set_queue(&self, queue: u16) {
        self.set(offset::QUEUE_SEL, queue.into());
        self.set(offset::QUEUE_SIZE, SIZE_OF_RING.into());
        for (at, address) in [
            offset::QUEUE_DESC,
            offset::QUEUE_DRIVER,
            offset::QUEUE_DEVICE,
        ]
        .into_iter()
        .zip(place(queue))
        {
            self.set(at, address as u32);
            self.set(at + 4, (address >> 32) as u32);
        }
        self.set(offset::QUEUE_READY, 1);
    }

    fn start(&mut self) {
        self.start_with(Features::VERSION_1.with(Features::MAC));
    }

    fn start_with(&mut self, features: Features) {
        (self.made, self.seen) = ([0; QUEUES], [0; QUEUES]);
        self.set(offset::STATUS, 0);
        for queue in [RX, TX, CONTROL] {
            let [_, available, used, _] = place(queue);
            self.memory
                .map()
                .write_slice(&[0; 256], GuestAddress(available))
                .unwrap();
            self.memory
                .map()
                .write_slice(&[0; 256], GuestAddress(used))
                .unwrap();
        }
        self.set(offset::STATUS, 3);
        self.set_features(features);
        self.set(offset::STATUS, 3 | status::FEATURES_OK);
        assert_eq!(self.get(offset::STATUS), 3 | status::FEATURES_OK);
        self.set_queue(RX);
        self.set_queue(TX);
        if features.has(Features::CTRL_VQ) {
            self.set_queue(CONTROL);
        }
        self.set(offset::STATUS, 3 | status::FEATURES_OK | status::DRIVER_OK);
    }

    /// Makes one buffer available.
    fn make(&mut self, queue: u16, bytes: &[u8], writable: bool) {
        let [table, available, _, buffers] = place(queue);
        let (map, made) = (self.memory.map(), &mut self.made[usize::from(queue)]);
        let slot = u64::from(*made % SIZE_OF_RING);
        let buffer = buffers + slot * 2048;
        map.write_slice(bytes, GuestAddress(buffer)).unwrap();
        map.write_obj(buffer, GuestAddress(table + slot * 16))
            .unwrap();
        map.write_obj(bytes.len() as u32, GuestAddress(table + slot * 16 + 8))
            .unwrap();
        map.write_obj(
            if writable { 2u32 } else { 0 },
            GuestAddress(table + slot * 16 + 12),
        )
        .unwrap();
        map.write_obj(slot as u16, GuestAddress(available + 4 + slot * 2))
            .unwrap();
        *made = made.wrapping_add(1);
        map.write_obj(*made, GuestAddress(available + 2)).unwrap();
    }

    fn send(&mut self, byte: u8) {
        self.make(TX, &[&[0; 12][..], &[byte; 64]].concat(), false);
        self.set(offset::QUEUE_NOTIFY, TX.into());
    }

    fn used(&self, queue: u16) -> u16 {
        self.memory
            .map()
            .read_obj(GuestAddress(place(queue)[2] + 2))
            .unwrap()
    }

    /// The frames that have come since the last call.
    fn received(&mut self) -> Vec<Vec<u8>> {
        let [_, _, used, buffers] = place(RX);
        let mut frames = Vec::new();
        while self.seen[0] != self.used(RX) {
            let slot = u64::from(self.seen[0] % SIZE_OF_RING);
            let entry: [u32; 2] = [0, 4].map(|at| {
                self.memory
                    .map()
                    .read_obj(GuestAddress(used + 4 + slot * 8 + at))
                    .unwrap()
            });
            let mut bytes = vec![0; entry[1] as usize];
            self.memory
                .map()
                .read_slice(
                    &mut bytes,
                    GuestAddress(buffers + u64::from(entry[0]) * 2048),
                )
                .unwrap();
            frames.push(bytes.split_off(12));
            self.seen[0] = self.seen[0].wrapping_add(1);
        }
        frames
    }
}

/// A driver that rings only when it was asked to, as with EVENT_IDX, and what it says by its control queue.
impl Driver {
    fn word(&self, at: u64) -> u16 {
        self.memory.map().read_obj(GuestAddress(at)).unwrap()
    }

    /// Rings the doorbell where the device asked for that when `queue` had one buffer less.
    fn ring_if_asked(&self, queue: u16) -> bool {
        let asked = self.word(place(queue)[2] + 4 + 8 * u64::from(SIZE_OF_RING));
        let due = asked == self.made[usize::from(queue)].wrapping_sub(1);
        if due {
            self.set(offset::QUEUE_NOTIFY, queue.into());
        }
        due
    }

    /// A command: the answer is in the second descriptor.
    fn command(&mut self, bytes: &[u8]) {
        let [table, available, _, buffers] = place(CONTROL);
        let map = self.memory.map();
        let put = |at: u64, words: [u64; 2]| map.write_obj(words, GuestAddress(at)).unwrap();
        map.write_slice(bytes, GuestAddress(buffers)).unwrap();
        map.write_obj(9u8, GuestAddress(buffers + 0x1000)).unwrap();
        put(table, [buffers, bytes.len() as u64 | 1 << 32 | 1 << 48]);
        put(table + 16, [buffers + 0x1000, 1 | 2 << 32]);
        let made = &mut self.made[usize::from(CONTROL)];
        let slot = u64::from(*made % SIZE_OF_RING);
        map.write_obj(0u16, GuestAddress(available + 4 + 2 * slot))
            .unwrap();
        *made = made.wrapping_add(1);
        map.write_obj(*made, GuestAddress(available + 2)).unwrap();
    }

    fn answer(&self) -> u8 {
        let at = GuestAddress(place(CONTROL)[3] + 0x1000);
        self.memory.map().read_obj(at).unwrap()
    }
}

/// Turns until there is nothing left to do.
fn settle<P: FramePort>(link: &mut Link<P>) {
    for _ in 0..100 {
        if link.turn().unwrap() == Next::Wait {
            return;
        }
    }
    panic!("it never waits");
}

fn sent_frame(byte: u8) -> Vec<u8> {
    [&[0; 12][..], &[byte; 64]].concat()
}

#[test]
fn a_driver_that_rings_when_it_is_asked_is_served_to_the_last_frame_and_command() {
    let mut driver = Driver::new(&memory());
    let features = Features::VERSION_1.with(Features::CTRL_VQ);
    driver.start_with(features.with(Features::EVENT_IDX));
    let (near, mut far) = Channel::pair();
    let mut link = Link::new(driver.nic.clone(), near);
    settle(&mut link);
    let mut into = [0; 128];
    for round in 1..=40 {
        driver.make(TX, &sent_frame(round), false);
        driver.command(&[9, 9]);
        assert!(driver.ring_if_asked(TX), "round {round}");
        assert!(driver.ring_if_asked(CONTROL), "round {round}");
        driver.make(RX, &[0; 1600], true);
        assert_eq!(
            far.send(&Frame::new(&sent_frame(round)).unwrap()),
            Sent::Done
        );
        assert!(driver.nic.doorbell().read().is_ok());
        settle(&mut link);
        assert_eq!(driver.answer(), 1, "nobody knows such a command");
        assert_eq!(far.receive(&mut into).unwrap(), Some(76));
        assert_eq!(into[12..76], [round; 64]);
        assert_eq!(driver.received(), [vec![round; 64]]);
    }
    assert_eq!(link.dropped(), 0);
}

/// A UDP datagram, with the header before it.
fn datagram(from: (u8, u8), to: (u8, u8)) -> Vec<u8> {
    let mut packet = vec![0; 12 + 60];
    let frame = &mut packet[12..];
    frame[12..15].copy_from_slice(&[8, 0, 0x45]);
    frame[23] = 17;
    (frame[29], frame[33]) = (from.0, to.0);
    (frame[35], frame[37]) = (from.1, to.1);
    packet
}

#[test]
fn an_answer_comes_by_the_pair_that_asked() {
    let settings = Settings {
        queue_pairs: 2,
        ..settings()
    };
    let mut driver = Driver::of(&settings, &memory());
    // A driver that takes the pairs as they are: all that run are in use.
    driver.start();
    let second = [RX, TX].map(|queue| queue + 2);
    second.iter().for_each(|queue| driver.set_queue(*queue));
    let (near, mut far) = Channel::pair();
    let mut link = Link::new(driver.nic.clone(), near);
    settle(&mut link);
    for round in 0..2 * SIZE_OF_RING {
        let pair = round / 2 % 2;
        let (asker, asked) = ((1, round as u8), (2, 53));
        driver.make(2 * pair + TX, &datagram(asker, asked), false);
        settle(&mut link);
        assert!(far.receive(&mut [0; 128]).unwrap().is_some());
        for queue in [RX, second[0]] {
            driver.make(queue, &[0; 1600], true);
        }
        let before = [RX, second[0]].map(|queue| driver.used(queue));
        far.send(&Frame::new(&datagram(asked, asker)).unwrap());
        settle(&mut link);
        let came = [RX, second[0]].map(|queue| driver.used(queue));
        let given = [came[0] - before[0], came[1] - before[1]];
        assert_eq!(given, [1 - pair, pair], "round {round}");
    }
}

#[test]
fn a_port_that_takes_no_more_is_waited_for() {
    let mut driver = Driver::running();
    let (near, mut far) = Channel::pair();
    let mut link = Link::new(driver.nic.clone(), near);
    let mut sent = 0;
    while link.turn().unwrap() != Next::Blocked {
        driver.send(7);
        sent += 1;
        assert!(sent < 5000, "a channel without end");
    }
    let mut came = 0;
    while far.receive(&mut [0; 128]).unwrap().is_some() {
        came += 1;
    }
    assert_eq!(came, sent - 1);
    settle(&mut link);
    assert!(far.receive(&mut [0; 128]).unwrap().is_some());
}

#[test]
fn an_unfinished_frame_is_finished_for_a_driver_that_cannot() {
    let mut driver = Driver::running();
    let (near, mut far) = Channel::pair();
    let mut link = Link::new(driver.nic.clone(), near);
    let mut frame = sent_frame(0);
    // Checksum from byte 34 on, to be stored 6 bytes behind: a UDP header of zeroes.
    frame[0] = 1;
    frame[6] = 34;
    frame[8] = 6;
    frame[12 + 34] = 0x12;
    driver.make(RX, &[0; 1600], true);
    assert_eq!(far.send(&Frame::new(&frame).unwrap()), Sent::Done);
    settle(&mut link);
    let [got] = &driver.received()[..] else {
        panic!("one frame")
    };
    assert_eq!(got[40..42], [0xed, 0xff]);
}

#[test]
fn a_driver_sets_its_filter_and_its_offloads() {
    let mut driver = Driver::new(&memory());
    let features = Features::VERSION_1
        .with(Features::CTRL_VQ)
        .with(Features::CTRL_RX)
        .with(Features::CTRL_VLAN)
        .with(Features::CTRL_GUEST_OFFLOADS)
        .with(Features::GUEST_CSUM)
        .with(Features::GUEST_TSO4);
    driver.start_with(features);
    let mut tell = |command: &[u8]| {
        driver.command(command);
        driver.nic.path().take(64, |_| Sent::Done);
        assert_eq!(driver.answer(), 0, "{command:?}");
    };
    tell(&[0, 0, 0]);
    // One address of either kind.
    let table = |mac: [u8; 6]| [&1u32.to_le_bytes()[..], &mac].concat();
    let tables = [
        vec![1, 0],
        table([2, 0, 0, 0, 0, 7]),
        table([3, 0, 0, 0, 0, 8]),
    ]
    .concat();
    tell(&tables);
    tell(&[2, 0, 5, 0]);
    let csum = Features::GUEST_CSUM.bits().to_le_bytes();
    tell(&[&[5, 0][..], &csum].concat());
    let accepted = driver.nic.path().accepted();
    assert!(accepted.has(Features::GUEST_CSUM) && !accepted.has(Features::GUEST_TSO4));

    for _ in 0..8 {
        driver.make(RX, &[0; 1600], true);
    }
    let own = settings().mac;
    let cases: [([u8; 6], u8, bool); 8] = [
        (own, 0, true),
        ([2, 0, 0, 0, 0, 7], 0, true),
        ([2, 0, 0, 0, 0, 9], 0, false),
        ([3, 0, 0, 0, 0, 8], 0, true),
        ([3, 0, 0, 0, 0, 9], 0, false),
        ([0xff; 6], 0, true),
        (own, 5, true),
        (own, 6, false),
    ];
    for (to, vlan, wanted) in cases {
        let mut frame = sent_frame(0);
        frame[12..18].copy_from_slice(&to);
        if vlan > 0 {
            frame[24..28].copy_from_slice(&[0x81, 0, 0, vlan]);
        }
        let given = driver.nic.path().give(&Frame::new(&frame).unwrap());
        assert_eq!(given, Received::Done);
        assert_eq!(
            driver.received().len(),
            usize::from(wanted),
            "{to:?} {vlan}"
        );
    }
}

/// All that the driver has sent, by the byte that fills it.
fn taken(nic: &Nic) -> Vec<u8> {
    let mut bytes = Vec::new();
    nic.path().take(64, |frame| {
        assert_eq!(frame.len(), 64);
        bytes.push(frame.head()[63]);
        Sent::Done
    });
    bytes
}

fn give(nic: &Nic, bytes: &[u8]) -> Vec<Received> {
    let mut path = nic.path();
    bytes
        .iter()
        .map(|byte| path.give(&Frame::new(&[&[0; 12][..], &[*byte; 64]].concat()).unwrap()))
        .collect()
}

fn is_raised(nic: &Nic) -> bool {
    nic.interrupt().read().is_ok()
}

#[test]
fn a_driver_finds_what_the_standard_says() {
    let driver = Driver::new(&memory());
    assert_eq!([0, 4, 8].map(|at| driver.get(at)), [0x7472_6976, 2, 1]);
    assert_eq!(driver.get(offset::STATUS), 0);
    assert_eq!(driver.get(offset::SHM_LEN), u32::MAX);
    let offered = [0, 1].map(|half| {
        driver.set(offset::DEVICE_FEATURES_SEL, half);
        u64::from(driver.get(offset::DEVICE_FEATURES))
    });
    let offered = Features::from_bits(offered[1] << 32 | offered[0]);
    assert!(offered.has(Features::VERSION_1.with(Features::MAC).with(Features::MTU)));
    driver.set(offset::DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.get(offset::DEVICE_FEATURES), 0);
    let mut mac = [0; 6];
    driver.nic.read(offset::CONFIG, &mut mac);
    assert_eq!(mac, settings().mac);
    for (queue, size) in [(0, 1024), (2, 1024), (3, 0), (u32::MAX, 0)] {
        driver.set(offset::QUEUE_SEL, queue);
        assert_eq!(driver.get(offset::QUEUE_SIZE_MAX), size, "queue {queue}");
    }
    let mut odd = [1; 3];
    driver.nic.read(0, &mut odd);
    assert_eq!(odd, [0; 3]);
}

#[test]
fn features_are_refused_when_they_were_not_offered_or_too_old() {
    let driver = Driver::new(&memory());
    for features in [
        Features::MAC,
        Features::VERSION_1.with(Features::MQ),
        Features::VERSION_1.with(Features::from_bits(1 << 63)),
    ] {
        driver.set(offset::STATUS, 0);
        driver.set_features(features);
        driver.set(offset::STATUS, 3 | status::FEATURES_OK);
        assert_eq!(driver.get(offset::STATUS), 3, "{features:?}");
    }
    driver.set_features(Features::VERSION_1);
    driver.set(offset::STATUS, 3 | status::FEATURES_OK);
    driver.set_features(Features::from_bits(u64::MAX));
    assert_eq!(
        driver.nic.path().accepted(),
        Features::VERSION_1,
        "the choice is final"
    );
}

#[test]
fn frames_go_both_ways_and_a_burst_costs_one_interrupt() {
    let mut driver = Driver::running();
    for byte in 1..=5 {
        driver.send(byte);
    }
    assert!(driver.nic.doorbell().read().is_ok());
    assert_eq!(taken(&driver.nic), [1, 2, 3, 4, 5]);
    assert_eq!(driver.used(TX), 5);
    assert!(is_raised(&driver.nic) && !is_raised(&driver.nic));
    assert_eq!(driver.get(offset::INTERRUPT_STATUS), 1);
    driver.set(offset::INTERRUPT_ACK, 1);
    assert_eq!(driver.get(offset::INTERRUPT_STATUS), 0);

    assert_eq!(give(&driver.nic, &[9]), [Received::NoBuffers]);
    for _ in 0..2 {
        driver.make(RX, &[0; 1600], true);
    }
    assert_eq!(
        give(&driver.nic, &[7, 8, 9]),
        [Received::Done, Received::Done, Received::NoBuffers]
    );
    assert_eq!(driver.received(), [vec![7; 64], vec![8; 64]]);
    assert!(is_raised(&driver.nic) && !is_raised(&driver.nic));
}

#[test]
fn nothing_runs_before_the_driver_says_so_or_after_it_stops() {
    let mut driver = Driver::new(&memory());
    driver.set(offset::STATUS, 3);
    driver.set_features(Features::VERSION_1);
    driver.set(offset::STATUS, 3 | status::FEATURES_OK);
    driver.set_queue(TX);
    driver.send(1);
    assert!(taken(&driver.nic).is_empty());
    driver.set(offset::STATUS, status::DRIVER_OK);
    assert_eq!(taken(&driver.nic), [1]);
    driver.set(offset::QUEUE_SEL, TX.into());
    driver.set(offset::QUEUE_READY, 0);
    assert_eq!(driver.get(offset::QUEUE_READY), 0);
    driver.send(2);
    assert!(taken(&driver.nic).is_empty());
}

#[test]
fn one_queue_is_reset_alone() {
    let mut driver = Driver::new(&memory());
    driver.set_features(Features::VERSION_1.with(Features::RING_RESET));
    driver.set(offset::STATUS, 3 | status::FEATURES_OK);
    driver.set_queue(TX);
    driver.set(offset::STATUS, status::DRIVER_OK);
    driver.send(1);
    assert_eq!(taken(&driver.nic), [1]);
    driver.set(offset::QUEUE_RESET, 1);
    assert_eq!(
        (
            driver.get(offset::QUEUE_RESET),
            driver.get(offset::QUEUE_READY)
        ),
        (0, 0)
    );
    let [_, available, used, _] = place(TX);
    for ring in [available, used] {
        driver
            .memory
            .map()
            .write_slice(&[0; 64], GuestAddress(ring))
            .unwrap();
    }
    driver.made = [0; QUEUES];
    driver.set_queue(TX);
    driver.send(2);
    assert_eq!(taken(&driver.nic), [2]);
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_gets_well_by_it() {
    let mut driver = Driver::running();
    driver
        .memory
        .map()
        .write_obj(500u16, GuestAddress(place(TX)[1] + 2))
        .unwrap();
    assert!(taken(&driver.nic).is_empty());
    assert_eq!(
        driver.get(offset::STATUS) & status::NEEDS_RESET,
        status::NEEDS_RESET
    );
    assert_eq!(driver.get(offset::INTERRUPT_STATUS), 2);
    assert_eq!(driver.nic.fault(), Some(Fault::IndexJump));
    assert!(is_raised(&driver.nic));
    driver.set(offset::STATUS, 15);
    assert!(taken(&driver.nic).is_empty(), "only a reset helps");
    driver.start();
    assert_eq!(driver.nic.fault(), None);
    driver.send(4);
    assert_eq!(taken(&driver.nic), [4]);

    driver.set(offset::STATUS, 0);
    driver.set_features(Features::VERSION_1);
    driver.set(offset::STATUS, 3 | status::FEATURES_OK);
    driver.set(offset::QUEUE_SEL, 1);
    driver.set(offset::QUEUE_DESC + 4, 7);
    driver.set_queue(RX);
    driver.set(offset::QUEUE_SEL, 1);
    driver.set(offset::QUEUE_READY, 1);
    driver.set(offset::STATUS, status::DRIVER_OK);
    assert_eq!(
        driver.get(offset::STATUS) & status::NEEDS_RESET,
        status::NEEDS_RESET,
        "a ring outside memory"
    );
}

#[test]
fn the_link_and_an_announcement_are_told_by_a_config_interrupt() {
    let driver = Driver::new(&memory());
    driver.set_features(
        Features::VERSION_1
            .with(Features::STATUS)
            .with(Features::CTRL_VQ)
            .with(Features::GUEST_ANNOUNCE),
    );
    driver.set(offset::STATUS, 3 | status::FEATURES_OK);
    let before = driver.get(offset::GENERATION);
    driver.nic.set_link(false);
    assert_eq!(
        (
            driver.get(offset::INTERRUPT_STATUS),
            driver.get(offset::CONFIG + 4) >> 16
        ),
        (2, 0)
    );
    assert!(driver.nic.announce());
    assert_eq!(driver.get(offset::CONFIG + 4) >> 16, 2);
    assert_ne!(driver.get(offset::GENERATION), before);
    driver.set(offset::STATUS, 0);
    assert!(
        !driver.nic.announce(),
        "this driver did not say that it can"
    );
}

#[test]
fn a_saved_card_goes_on_where_it_was() {
    let mut driver = Driver::running();
    for byte in 1..=20 {
        driver.send(byte);
        if byte <= 12 {
            assert_eq!(taken(&driver.nic), [byte]);
        }
        driver.make(RX, &[0; 1600], true);
        if byte <= 18 {
            assert_eq!(give(&driver.nic, &[byte]), [Received::Done]);
        }
    }
    // A sink that was busy has seen frame 13 and left it in the ring.
    driver.nic.path().take(64, |frame| {
        assert_eq!(frame.head()[0], 13);
        Sent::Busy
    });
    assert_eq!(driver.received().len(), 18);
    let text = serde_json::to_string(&driver.nic.save()).unwrap();

    let nic = Nic::new(&settings(), Arc::clone(&driver.memory)).unwrap();
    nic.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(nic.save(), driver.nic.save());
    assert!(
        nic.doorbell().read().is_ok(),
        "what waits is looked at without a kick"
    );
    assert!(
        is_raised(&nic),
        "an interrupt that was pending is raised again"
    );
    driver.nic = nic;
    assert_eq!(taken(&driver.nic), [13, 14, 15, 16, 17, 18, 19, 20]);
    assert_eq!(
        give(&driver.nic, &[51, 52, 53]),
        [Received::Done, Received::Done, Received::NoBuffers]
    );
    assert_eq!(driver.received(), [vec![51; 64], vec![52; 64]]);
}

#[test]
fn an_address_that_a_driver_chose_is_saved_with_it_and_goes_with_it() {
    let chosen = [2, 0, 0, 0, 0, 7];
    let mut driver = Driver::new(&memory());
    let features = Features::VERSION_1
        .with(Features::MAC)
        .with(Features::CTRL_VQ)
        .with(Features::CTRL_MAC_ADDR);
    driver.start_with(features);
    driver.command(&[&[1, 1], &chosen[..]].concat());
    driver.nic.path().take(64, |_| Sent::Done);
    assert_eq!(driver.answer(), 0);
    assert_eq!(mac(&driver.nic), chosen);
    let saved = driver.nic.save();
    driver.start();
    assert_eq!(mac(&driver.nic), settings().mac, "of the next driver");

    let nic = Nic::new(&settings(), Arc::clone(&driver.memory)).unwrap();
    nic.restore(&saved).unwrap();
    assert_eq!(mac(&nic), chosen);
    nic.write(offset::STATUS, &[0; 4]);
    assert_eq!(mac(&nic), settings().mac);
}

fn mac(nic: &Nic) -> [u8; 6] {
    let mut mac = [0; 6];
    nic.read(offset::CONFIG, &mut mac);
    mac
}

#[test]
fn a_card_with_other_settings_refuses_the_state() {
    let driver = Driver::running();
    let other = Nic::new(
        &Settings {
            queue_pairs: 2,
            ..settings()
        },
        memory(),
    )
    .unwrap();
    assert!(other.restore(&driver.nic.save()).is_err());
    let poorer = Nic::new(
        &Settings {
            withheld: Features::MAC,
            ..settings()
        },
        memory(),
    )
    .unwrap();
    assert_eq!(
        poorer.restore(&driver.nic.save()),
        Err(Refused::NotOffered(Features::MAC))
    );
    let mut status = [0xff; 4];
    poorer.read(offset::STATUS, &mut status);
    assert_eq!(status, [0; 4], "it is as new");
}

/// Values that registers might choke on, and any other.
fn values() -> impl Strategy<Value = u32> {
    prop_oneof![
        0u32..20,
        Just(u32::MAX),
        Just(MEMORY as u32 - 8),
        (0u32..64).prop_map(|page| page << 12),
        any::<u32>()
    ]
}

#[derive(Clone, Debug)]
enum Deed {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Scribble(u64, u64),
    Take,
    Give,
    SaveAndRestore,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let at =
        prop_oneof![8 => (0u64..0x44).prop_map(|word| word * 4), 1 => 0..SIZE, 1 => any::<u64>()];
    let deed = prop_oneof![
        10 => (at.clone(), values()).prop_map(|(at, value)| Deed::Write(at, value.to_le_bytes().to_vec())),
        1 => (at.clone(), proptest::collection::vec(any::<u8>(), 0..9)).prop_map(|(at, data)| Deed::Write(at, data)),
        1 => (at, 0usize..9).prop_map(|(at, length)| Deed::Read(at, length)),
        6 => (0..MEMORY / 8, any::<u64>()).prop_map(|(word, value)| Deed::Scribble(word * 8, value)),
        6 => (0u64..0x3000, 0u64..600).prop_map(|(at, value)| Deed::Scribble(0x2_0000 + at / 8 * 8, value << 16)),
        2 => Just(Deed::Take),
        2 => Just(Deed::Give),
        1 => Just(Deed::SaveAndRestore),
    ];
    proptest::collection::vec(deed, 1..150)
}

proptest! {
    /// Nothing that a driver does to registers and memory panics, or outlives a reset.
    #[test]
    fn a_hostile_driver_harms_itself_only(deeds in deeds(), begun: bool) {
        let mut driver = Driver::new(&memory());
        if begun {
            driver.start();
        }
        for deed in deeds {
            match deed {
                Deed::Write(at, data) => driver.nic.write(at, &data),
                Deed::Read(at, length) => driver.nic.read(at, &mut vec![0; length]),
                Deed::Scribble(at, value) => driver.memory.map().write_obj(value, GuestAddress(at)).unwrap(),
                Deed::Take => { driver.nic.path().take(64, |_| Sent::Done); let _ = driver.nic.path().arm(); }
                Deed::Give => { give(&driver.nic, &[1, 2, 3]); }
                Deed::SaveAndRestore => { let _ = driver.nic.restore(&driver.nic.save()); }
            }
        }
        driver.start();
        driver.send(7);
        prop_assert_eq!(taken(&driver.nic), [7]);
    }

    /// A snapshot with any number in any place is taken on or refused.
    #[test]
    fn a_forged_snapshot_is_refused_or_harmless(at: proptest::sample::Index, value in prop_oneof![0u64..20, Just(65_535), Just(u64::from(u32::MAX)), any::<u64>()]) {
        let driver = Driver::running();
        let text = serde_json::to_string(&driver.nic.save()).unwrap();
        let digits: Vec<_> = text.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).filter(|at| !text.as_bytes()[at - 1].is_ascii_digit()).collect();
        let start = *at.get(&digits);
        let end = start + text[start..].find(|c: char| !c.is_ascii_digit()).unwrap();
        let forged = format!("{}{value}{}", &text[..start], &text[end..]);
        if let Ok(snapshot) = serde_json::from_str::<Snapshot>(&forged) {
            let _ = driver.nic.restore(&snapshot);
            taken(&driver.nic);
            give(&driver.nic, &[1]);
        }
    }
}
