//! Hostile input against the two doors: ring memory that a guest writes, and messages that a frontend sends.
//!
//! Each target takes bytes. The corpus under `corpus/` is replayed, and each of its files is mutated many times by a
//! seeded generator. `FUZZ_ROUNDS=100000 cargo test --release --test fuzz` hunts longer; `UPDATE=1` writes the seeds.
//! A failure prints the bytes that cause it: put them into the corpus.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use virtio_net_backend::device::{Device, Features, Frame, Memory, QueueState, Sent, Settings};
use virtio_net_backend::transport::vhost_user::Session;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 0x1_0000;
/// The same, as messages have it.
const LEN: u64 = 0x1_0000;
const SIZE: u16 = 16;

fn settings(own_control_queue: bool) -> Settings {
    Settings {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: Some(1500),
        queue_pairs: 1,
        own_control_queue,
        withheld: Features::default(),
    }
}

fn ring_at(base: u64) -> QueueState {
    QueueState {
        size: SIZE,
        desc_table: base,
        avail_ring: base + 0x100,
        used_ring: base + 0x180,
        ..QueueState::default()
    }
}

/// Eight bytes of features, then guest memory: rings at 0 (receive), 0x400 (transmit), 0x800 (control). How many frames
/// were sent.
fn ring(input: &[u8]) -> usize {
    let (features, image) = input.split_at(input.len().min(8));
    let mut bits = [0; 8];
    bits[..features.len()].copy_from_slice(features);
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let image = &image[..image.len().min(MEMORY)];
    map.write_slice(image, GuestAddress(0)).expect("fits");
    let mut device = Device::new(&settings(true));
    let features = Features::from_bits(u64::from_le_bytes(bits) & device.offered().bits());
    device.accept(features).expect("a subset");
    device.set_memory(Memory::new(map));
    for (index, base) in [(0, 0), (1, 0x400), (2, 0x800)] {
        device
            .start_queue(index, ring_at(base))
            .expect("a valid place");
    }
    let mut moved = 0;
    let frames = [vec![0u8; 12 + 60], vec![0u8; 12 + 9000]];
    for _ in 0..4 {
        let mut sent = Vec::new();
        let mut count = 0;
        if let Some(tx) = device.tx(0) {
            let turn = tx.turn(64, |frame| {
                assert!(frame.len() <= 65_600, "a frame longer than any");
                frame.copy_to(&mut sent);
                count += 1;
                if count % 7 == 0 {
                    Sent::Busy
                } else {
                    Sent::Done
                }
            });
            assert!(count <= 64, "more frames than the budget");
            moved += count;
            tx.ring().publish();
            if turn.is_err() || tx.ring().arm().is_err() {
                device.stop_queue(1);
            }
        }
        if let Some(rx) = device.rx(0) {
            let pushed = frames
                .iter()
                .map(|frame| rx.push(&Frame::new(frame).expect("whole")))
                .collect::<Result<Vec<_>, _>>();
            rx.ring().publish();
            if pushed.is_err() || rx.ring().arm().is_err() {
                device.stop_queue(0);
            }
        }
        if device.serve_control().is_err() {
            device.stop_queue(2);
        }
    }
    moved
}

/// A row of messages: code, flags, kind of fd, length of payload, payload. How often a ring was seen running.
fn messages(input: &[u8]) -> usize {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let mut session = Session::new(ours, &settings(false)).expect("session");
    let mut rest = input;
    let mut running = 0;
    for _ in 0..64 {
        let Some((&[code, flags, kind, len], after)) = rest.split_first_chunk::<4>() else {
            break;
        };
        let payload = &after[..usize::from(len).min(after.len())];
        rest = &after[payload.len()..];
        let mut bytes = u32::from(code).to_le_bytes().to_vec();
        bytes.extend(u32::from(flags).to_le_bytes());
        bytes.extend(u32::from(len).to_le_bytes());
        bytes.extend(payload);
        if !send(&theirs, &bytes, fd(kind)) {
            break;
        }
        let served = session.serve(|_| ());
        for queue in 0..session.queues() {
            let enabled = session.is_enabled(queue);
            running += usize::from(enabled);
            if let Some(tx) = session.device().tx(queue / 2).filter(|_| queue % 2 == 1) {
                let turn = tx.turn(64, |_| Sent::Done);
                tx.ring().publish();
                if turn.is_err() {
                    session.fail(queue);
                }
            } else if let Some(rx) = session.device().rx(queue / 2).filter(|_| enabled) {
                let pushed = rx.push(&Frame::new(&[0; 80]).expect("whole"));
                rx.ring().publish();
                if pushed.is_err() {
                    session.fail(queue);
                }
            }
        }
        if served.is_err() {
            break;
        }
        drain(&theirs);
    }
    running
}

fn fd(kind: u8) -> Option<OwnedFd> {
    match kind % 6 {
        1 => rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).ok(),
        2 | 3 => {
            let fd =
                rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
            rustix::fs::ftruncate(&fd, if kind % 6 == 2 { LEN } else { 100 }).expect("length");
            Some(fd)
        }
        4 => rustix::pipe::pipe().ok().map(|(_, writer)| writer),
        5 => UnixStream::pair().ok().map(|(one, _)| one.into()),
        _ => None,
    }
}

fn send(to: &UnixStream, bytes: &[u8], fd: Option<OwnedFd>) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_ref().map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(
        to,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )
    .is_ok()
}

fn drain(from: &UnixStream) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut bytes = [0; 4096];
    loop {
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut into = [std::io::IoSliceMut::new(&mut bytes)];
        let received = rustix::net::recvmsg(
            from,
            &mut into,
            &mut control,
            rustix::net::RecvFlags::DONTWAIT,
        );
        if !matches!(received, Ok(received) if received.bytes > 0) {
            return;
        }
    }
}

/// What a well-behaved driver leaves in memory, to be spoilt.
fn ring_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut memory = vec![0u8; 0x4000];
    let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
    let descriptor = |addr: u64, len: u32, flags: u16, next: u16| {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    };
    for i in 0..SIZE {
        put(
            usize::from(i) * 16,
            &descriptor(0x2000 + u64::from(i) * 0x200, 0x200, 2, 0),
        );
        put(0x104 + usize::from(i) * 2, &i.to_le_bytes());
    }
    put(0x102, &SIZE.to_le_bytes());
    put(0x400, &descriptor(0x1000, 12, 1, 1));
    put(0x410, &descriptor(0x1100, 100, 1, 2));
    put(0x420, &descriptor(0x1200, 1400, 0, 0));
    put(0x430, &descriptor(0x1800, 32, 4, 0));
    put(0x1800, &descriptor(0x1000, 12, 1, 1));
    put(0x1810, &descriptor(0x1100, 200, 0, 0));
    put(0x504, &[0, 0, 3, 0, 0, 0, 3, 0]);
    put(0x502, &4u16.to_le_bytes());
    put(0x800, &descriptor(0x1c00, 3, 1, 1));
    put(0x810, &descriptor(0x1c10, 1, 2, 0));
    put(0x902, &1u16.to_le_bytes());
    put(0x1c00, &[0, 0, 1]);
    let with = |features: u64| [&features.to_le_bytes()[..], &memory].concat();
    let mut looped = with(u64::MAX);
    looped[8 + 0x42e] = 0;
    looped[8 + 0x42c] = 1;
    let mut far = with(u64::MAX);
    far[8 + 0x427] = 0x80;
    vec![
        ("all-features", with(u64::MAX)),
        ("legacy", with(0)),
        ("no-events", with(!(1 << 29))),
        ("loop", looped),
        ("outside", far),
    ]
}

/// Where the frontend has guest memory mapped.
const USER: u64 = 0x7000_0000;

fn message(code: u8, kind: u8, words: &[u64]) -> Vec<u8> {
    let payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let len = u8::try_from(payload.len()).expect("short");
    [&[code, 1, kind, len][..], &payload].concat()
}

const fn pair(low: u64, high: u64) -> u64 {
    low | high << 32
}

/// All that sets one ring up.
fn set_up(index: u64, base: u64) -> Vec<u8> {
    let at = USER + base;
    [
        message(8, 0, &[pair(index, 16)]),
        message(10, 0, &[pair(index, 0)]),
        message(9, 0, &[index, at, at + 0x180, at + 0x100, 0]),
        message(12, 1, &[index]),
        message(13, 1, &[index]),
    ]
    .concat()
}

/// The conversation of a frontend that behaves, in QEMU's order.
fn message_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let hello = [
        message(1, 0, &[]),
        message(15, 0, &[]),
        message(16, 0, &[0x1b03f]),
        message(17, 0, &[]),
        message(3, 0, &[]),
    ]
    .concat();
    let table = message(5, 2, &[1, 0, LEN, USER, 0]);
    let features = message(2, 0, &[0x1_7020_bb83]);
    let enable = [message(18, 0, &[pair(0, 1)]), message(18, 0, &[pair(1, 1)])].concat();
    let start = [
        &hello[..],
        &enable,
        &features,
        &table,
        &set_up(0, 0),
        &set_up(1, 0x400),
    ]
    .concat();
    let migrate = [
        message(6, 2, &[0x1000, 0]),
        message(2, 0, &[0x1_7420_bb83]),
        message(
            9,
            0,
            &[pair(1, 1), USER + 0x400, USER + 0x580, USER + 0x500, 0x580],
        ),
        message(39, 0, &[0]),
        message(11, 0, &[0]),
        message(11, 0, &[1]),
    ]
    .concat();
    let slots = [
        message(37, 2, &[0, 0, LEN, USER, 0]),
        set_up(1, 0x400),
        message(38, 0, &[0, 0, LEN, USER, 0]),
    ]
    .concat();
    let inflight = [
        message(31, 0, &[0, 0, 0x10_0002]),
        message(32, 2, &[0x1000, 0, 0x10_0002]),
        message(24, 0, &[pair(0, 4), 0]),
    ]
    .concat();
    vec![
        ("qemu-start", start.clone()),
        ("migrate", [&start[..], &migrate].concat()),
        ("slots", [&hello[..], &features, &enable, &slots].concat()),
        (
            "inflight",
            [&hello[..], &inflight, &table, &set_up(0, 0)].concat(),
        ),
        (
            "wrong-fds",
            [
                message(5, 4, &[1, 0, LEN, USER, 0]),
                message(12, 5, &[0]),
                message(13, 4, &[0]),
            ]
            .concat(),
        ),
    ]
}

/// A seeded generator (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ z >> 31) >> 1).expect("63 bits") % below.max(1)
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        const TELLING: [u8; 8] = [0, 1, 2, 4, 0x7f, 0x80, 0xfe, 0xff];
        for _ in 0..=self.roll(8) {
            let at = self.roll(bytes.len().min(0xa00));
            match self.roll(6) {
                0 => bytes[at] ^= 1 << self.roll(8),
                1 => bytes[at] = TELLING[self.roll(TELLING.len())],
                2 => bytes[at] = u8::try_from(self.roll(256)).expect("a byte"),
                3 => {
                    let len = self.roll(16).min(bytes.len() - at);
                    let from = self.roll(bytes.len() - len);
                    bytes.copy_within(from..from + len, at);
                }
                4 => bytes.insert(at, u8::try_from(self.roll(256)).expect("a byte")),
                _ => {
                    bytes.remove(at);
                }
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
    }
}

fn hunt(name: &str, seeds: Vec<(&'static str, Vec<u8>)>, target: fn(&[u8]) -> usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(&folder).expect("folder");
        for (seed, bytes) in seeds {
            std::fs::write(folder.join(seed), bytes).expect("written");
        }
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("corpus")
        .map(|file| file.expect("entry").path())
        .collect();
    files.sort();
    assert!(files.len() >= 5, "the corpus is gone");
    let rounds = std::env::var("FUZZ_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(200u64);
    for (number, file) in (0u64..).zip(files) {
        let seed = std::fs::read(&file).expect("readable");
        target(&seed);
        for round in 0..rounds {
            let mut bytes = seed.clone();
            Dice(number << 32 | round).mutate(&mut bytes);
            let outcome = std::panic::catch_unwind(|| target(&bytes));
            assert!(
                outcome.is_ok(),
                "{} in round {round}: {bytes:02x?}",
                file.display()
            );
        }
    }
}

#[test]
fn no_ring_that_a_guest_can_write_does_harm() {
    hunt("ring", ring_seeds(), ring);
}

#[test]
fn no_message_that_a_frontend_can_send_does_harm() {
    hunt("messages", message_seeds(), messages);
}

#[test]
fn the_seeds_are_alive() {
    let seed = |seeds: Vec<(&str, Vec<u8>)>, name| {
        seeds
            .into_iter()
            .find(|(seed, _)| *seed == name)
            .expect("a seed")
            .1
    };
    assert!(
        ring(&seed(ring_seeds(), "all-features")) > 0,
        "no frame is sent"
    );
    assert!(
        messages(&seed(message_seeds(), "qemu-start")) > 0,
        "no ring starts"
    );
    assert!(
        messages(&seed(message_seeds(), "slots")) > 0,
        "no ring starts on a memory slot"
    );
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn nor_do_bytes_without_any_order(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..0xc00)) {
        ring(&bytes);
        messages(&bytes);
    }
}
