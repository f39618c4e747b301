//! The device against a driver laid out by hand, well-behaved and not.

use std::sync::Arc;

use super::header::HEADER_LEN;
use super::mock::{Driver, INDIRECT, MEMORY, NEXT, WRITE, memory};
use super::*;

const RX: u64 = 0x1000;
const TX: u64 = 0x8000;
const DATA: u64 = 0x1_0000;
const NET: Features = Features::from_bits(
    Features::VERSION_1.bits()
        | Features::MRG_RXBUF.bits()
        | Features::CSUM.bits()
        | Features::HOST_TSO4.bits()
        | Features::INDIRECT_DESC.bits(),
);

fn settings() -> Settings {
    Settings {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
        queue_pairs: 1,
        own_control_queue: false,
        withheld: Features::default(),
    }
}

/// A device with one pair running, and its driver's two rings.
fn device(features: Features, size: u16) -> (Device, Driver, Driver) {
    let memory = memory();
    let mut device = Device::new(&settings());
    device.accept(features).expect("offered");
    device.set_memory(Arc::clone(&memory));
    let rx = Driver::new(&memory, RX, size);
    let tx = Driver::new(&memory, TX, size);
    device.start_queue(0, rx.setup()).expect("rx starts");
    device.start_queue(1, tx.setup()).expect("tx starts");
    (device, rx, tx)
}

/// All frames that a turn yields, header included.
fn turn(device: &mut Device) -> Result<Vec<Vec<u8>>, Fault> {
    let mut frames = Vec::new();
    let tx = device.tx(0).expect("runs");
    tx.turn(usize::MAX, |frame| {
        let mut bytes = Vec::new();
        frame.copy_to(&mut bytes);
        frames.push(bytes);
        Sent::Done
    })?;
    tx.ring().publish();
    Ok(frames)
}

fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame[10] = 1;
    frame.extend((0..len).map(|i| u8::try_from(i % 251).expect("small")));
    frame
}

#[test]
fn a_frame_is_read_however_it_is_cut() {
    let (mut device, _, mut tx) = device(NET, 16);
    let whole = frame(1000);
    tx.write(DATA, &whole);
    let cuts: [&[u32]; 4] = [&[1012], &[12, 1000], &[5, 7, 100, 900], &[200, 300, 0, 512]];
    for cut in cuts {
        let mut at = DATA;
        let buffers: Vec<_> = cut
            .iter()
            .map(|len| {
                let buffer = (at, *len, 0);
                at += u64::from(*len);
                buffer
            })
            .collect();
        tx.chain(0, &buffers);
        assert_eq!(
            turn(&mut device).expect("no fault"),
            std::slice::from_ref(&whole),
            "{cut:?}"
        );
        assert_eq!(tx.used(), [(0, 0)]);
    }
}

#[test]
fn an_indirect_table_is_a_chain_too() {
    let (mut device, _, mut tx) = device(NET, 16);
    let whole = frame(700);
    tx.write(DATA, &whole);
    let table = 0x2_0001;
    tx.descriptor(table, 0, (DATA, 12, NEXT, 2));
    tx.descriptor(table, 2, (DATA + 12, 300, NEXT, 1));
    tx.descriptor(table, 1, (DATA + 312, 400, 0, 0));
    tx.chain(3, &[(table, 48, INDIRECT)]);
    assert_eq!(turn(&mut device).expect("no fault"), [whole]);
    assert_eq!(tx.used(), [(3, 0)]);
}

#[test]
fn a_legacy_header_is_two_bytes_shorter_both_ways() {
    let (mut device, mut rx, mut tx) = device(Features::ANY_LAYOUT, 16);
    let whole = frame(100);
    tx.write(DATA, &[0; 10]);
    tx.write(DATA + 10, &whole[12..]);
    tx.chain(0, &[(DATA, 110, 0)]);
    assert_eq!(
        turn(&mut device).expect("no fault"),
        std::slice::from_ref(&whole)
    );
    rx.chain(0, &[(DATA + 0x1000, 2000, WRITE)]);
    let queue = device.rx(0).expect("runs");
    assert_eq!(
        queue.push(&Frame::new(&whole).expect("whole")),
        Ok(Received::Done)
    );
    queue.ring().publish();
    assert_eq!(rx.used(), [(0, 110)]);
    assert_eq!(rx.read(DATA + 0x1000 + 10, 100), whole[12..]);
}

#[test]
fn a_large_frame_is_merged_over_buffers_or_refused() {
    let whole = frame(5000);
    let sent = Frame::new(&whole).expect("whole");
    let (mut device, mut rx, _) = device(NET, 16);
    let queue = device.rx(0).expect("runs");
    rx.chain(0, &[(DATA, 2000, WRITE)]);
    rx.chain(
        1,
        &[(DATA + 0x1000, 100, WRITE), (DATA + 0x2000, 1900, WRITE)],
    );
    assert_eq!(queue.push(&sent), Ok(Received::NoBuffers));
    rx.chain(5, &[(DATA + 0x3000, 2000, WRITE)]);
    assert_eq!(queue.push(&sent), Ok(Received::Done));
    assert_eq!(rx.used(), [], "nothing is shown before it is published");
    queue.ring().publish();
    assert_eq!(rx.used(), [(0, 2000), (1, 2000), (5, 1012)]);
    assert_eq!(rx.read(DATA + 10, 2), 3u16.to_le_bytes());
    let mut got = rx.read(DATA + 12, 1988);
    got.extend(rx.read(DATA + 0x1000, 100));
    got.extend(rx.read(DATA + 0x2000, 1900));
    got.extend(rx.read(DATA + 0x3000, 1012));
    assert_eq!(got, whole[12..]);

    let (mut device, mut rx, _) = self::device(Features::VERSION_1, 16);
    rx.chain(0, &[(DATA, 2000, WRITE)]);
    assert_eq!(
        device.rx(0).expect("runs").push(&sent),
        Ok(Received::TooLong)
    );
}

#[test]
fn a_driver_is_woken_once_for_a_batch_and_only_when_it_asked() {
    let (mut device, _, mut tx) = device(NET.with(Features::EVENT_IDX), 16);
    tx.write(DATA, &frame(60));
    let burst = |device: &mut Device, tx: &mut Driver| {
        for i in 0..8 {
            tx.chain(i, &[(DATA, 72, 0)]);
        }
        let queue = device.tx(0).expect("runs");
        queue.turn(64, |_| Sent::Done).expect("no fault");
        let woken = queue.ring().publish();
        (woken, queue.ring().publish())
    };
    tx.set_used_event(3);
    assert_eq!(burst(&mut device, &mut tx), (true, false));
    assert_eq!(
        burst(&mut device, &mut tx),
        (false, false),
        "it did not ask again"
    );
    assert_eq!(device.tx(0).expect("runs").ring().arm(), Ok(false));
    assert_eq!(
        tx.avail_event(),
        16,
        "the next kick is wanted at the next chain"
    );
    tx.chain(0, &[(DATA, 72, 0)]);
    assert_eq!(
        device.tx(0).expect("runs").ring().arm(),
        Ok(true),
        "no sleep over a chain that is there"
    );
}

#[test]
fn without_event_indices_flags_turn_kicks_and_interrupts_off() {
    let (mut device, _, mut tx) = device(NET, 16);
    tx.write(DATA, &frame(60));
    let queue = device.tx(0).expect("runs");
    queue.ring().disarm();
    assert_eq!(tx.used_flags(), 1);
    assert_eq!(queue.ring().arm(), Ok(false));
    assert_eq!(tx.used_flags(), 0);
    tx.chain(0, &[(DATA, 72, 0)]);
    queue.turn(64, |_| Sent::Done).expect("no fault");
    assert!(queue.ring().publish());
    tx.write(tx.avail_at(), &1u16.to_le_bytes());
    tx.chain(1, &[(DATA, 72, 0)]);
    queue.turn(64, |_| Sent::Done).expect("no fault");
    assert!(!queue.ring().publish());
}

#[test]
fn a_busy_sink_leaves_the_frame_for_the_next_turn() {
    let (mut device, _, mut tx) = device(NET, 16);
    let whole = frame(900);
    tx.write(DATA, &whole);
    tx.chain(0, &[(DATA, 912, 0)]);
    tx.chain(1, &[(DATA, 912, 0)]);
    let queue = device.tx(0).expect("runs");
    let turn = queue.turn(64, |_| Sent::Busy).expect("no fault");
    assert_eq!((turn.frames, turn.busy), (0, true));
    assert_eq!(
        queue.ring().arm(),
        Ok(true),
        "nobody kicks for a frame that was looked at already"
    );
    assert_eq!(device.queue_state(1).expect("runs").next_avail, 0);
    assert_eq!(
        self::turn(&mut device).expect("no fault"),
        [whole.clone(), whole]
    );
    assert_eq!(tx.used(), [(0, 0), (1, 0)]);
}

#[test]
fn a_sink_that_spends_the_credit_leaves_the_rest_whole_and_in_order() {
    let (mut device, _, mut tx) = device(NET, 64);
    let sent: Vec<_> = (0..20).map(|n| frame(700 + n)).collect();
    for (n, frame) in (0u16..).zip(&sent) {
        // Cut behind the copied head, so that both pieces of a tail must survive being copied twice.
        let at = DATA + 1024 * u64::from(n);
        tx.write(at, frame);
        let cut = 400;
        let rest = u32::try_from(frame.len()).expect("small") - cut;
        let buffers = [(at, cut, NEXT), (at + u64::from(cut), rest, 0)];
        tx.chain(2 * n, &buffers);
    }
    let mut seen = Vec::new();
    for _ in 0..30 {
        let queue = device.tx(0).expect("runs");
        let credit = Credit::new(8);
        let before = seen.len();
        let turn = queue.turn_within(&credit, |frame| {
            if seen.len() == before + 3 {
                return Sent::Busy;
            }
            let mut bytes = Vec::new();
            frame.copy_to(&mut bytes);
            seen.push(bytes);
            credit.spend(before % 4);
            Sent::Done
        });
        assert_eq!(turn.expect("no fault").frames, seen.len() - before);
        queue.ring().publish();
    }
    assert_eq!(seen, sent);
    assert_eq!(tx.used().len(), sent.len());
}

#[test]
fn buffers_are_used_in_the_order_in_which_they_were_made_available() {
    let (mut device, mut rx, mut tx) = device(NET.with(Features::IN_ORDER), 16);
    let heads = [9, 3, 12, 0, 6];
    let order = |used: Vec<(u32, u32)>| used.iter().map(|(head, _)| *head).collect::<Vec<_>>();
    for (at, head) in (0..).zip(heads) {
        tx.write(DATA + 0x1000 * at, &frame(60));
        tx.chain(head, &[(DATA + 0x1000 * at, 72, 0)]);
        rx.chain(head, &[(DATA + 0x1_0000 + 0x1000 * at, 2000, WRITE)]);
    }
    // One that is no frame among them, and a sink that is full before it and after it.
    tx.write(DATA + 0x2000, &[0xff; 12]);
    let queue = device.tx(0).expect("runs");
    for room in [1, 1, 9] {
        let mut left = room;
        let turn = queue.turn(64, |_| {
            left -= 1;
            if left < 0 { Sent::Busy } else { Sent::Done }
        });
        turn.expect("no fault");
    }
    queue.ring().publish();
    assert_eq!(order(tx.used()), heads.map(u32::from));
    // The second frame takes three of them.
    let queue = device.rx(0).expect("runs");
    for len in [60, 5000, 60] {
        let whole = frame(len);
        let given = queue.push(&Frame::new(&whole).expect("whole"));
        assert_eq!(given, Ok(Received::Done));
    }
    queue.ring().publish();
    assert_eq!(order(rx.used()), heads.map(u32::from));
}

#[test]
fn a_queue_goes_on_elsewhere_from_where_it_stopped() {
    let (mut device, _, mut tx) = device(NET, 16);
    tx.write(DATA, &frame(60));
    for i in 0..5 {
        tx.chain(i, &[(DATA, 72, 0)]);
    }
    let queue = device.tx(0).expect("runs");
    queue.turn(2, |_| Sent::Done).expect("no fault");
    queue.ring().publish();
    let state = device.stop_queue(1).expect("ran");
    assert_eq!((state.next_avail, state.next_used), (2, 2));
    device.start_queue(1, state).expect("starts");
    assert_eq!(turn(&mut device).expect("no fault").len(), 3);
    assert_eq!(tx.used().len(), 5);
}

#[test]
fn what_a_driver_must_not_do_breaks_its_ring_and_nothing_else() {
    let broken = |fault, lay: &dyn Fn(&mut Driver)| {
        let (mut device, _, mut tx) = device(NET, 16);
        lay(&mut tx);
        assert_eq!(turn(&mut device), Err(fault));
    };
    broken(Fault::IndexJump, &|tx| tx.set_avail(17));
    broken(Fault::IndexJump, &|tx| tx.set_avail(0x8000));
    broken(Fault::DescriptorNumber, &|tx| tx.offer(16));
    broken(Fault::DescriptorNumber, &|tx| {
        tx.descriptor(TX, 0, (DATA, 10, NEXT, 999));
        tx.offer(0);
    });
    broken(Fault::ChainTooLong, &|tx| {
        tx.descriptor(TX, 0, (DATA, 10, NEXT, 1));
        tx.descriptor(TX, 1, (DATA, 10, NEXT, 0));
        tx.offer(0);
    });
    broken(Fault::OutsideMemory, &|tx| {
        tx.chain(0, &[(MEMORY - 10, 11, 0)])
    });
    broken(Fault::OutsideMemory, &|tx| {
        tx.chain(0, &[(u64::MAX - 1, 64, 0)])
    });
    broken(Fault::OutsideMemory, &|tx| {
        tx.chain(0, &[(DATA, u32::MAX, 0)])
    });
    broken(Fault::IndirectTable, &|tx| {
        tx.chain(0, &[(DATA, 40, INDIRECT)])
    });
    broken(Fault::IndirectTable, &|tx| {
        tx.chain(0, &[(DATA, 0, INDIRECT)])
    });
    broken(Fault::IndirectTable, &|tx| {
        tx.chain(0, &[(MEMORY, 16, INDIRECT)])
    });
    broken(Fault::IndirectTable, &|tx| {
        tx.chain(0, &[(DATA, 0xffff_fff0, INDIRECT)])
    });
    broken(Fault::IndirectTable, &|tx| {
        tx.descriptor(DATA, 0, (DATA, 16, INDIRECT, 0));
        tx.chain(0, &[(DATA, 16, INDIRECT)]);
    });
    broken(Fault::ChainTooLong, &|tx| {
        tx.descriptor(DATA, 0, (DATA, 16, NEXT, 0));
        tx.chain(0, &[(DATA, 16, INDIRECT)]);
    });
    let (mut device, mut rx, _) = device(NET, 16);
    rx.chain(0, &[(DATA, 2000, 0)]);
    let whole = frame(60);
    assert_eq!(
        device
            .rx(0)
            .expect("runs")
            .push(&Frame::new(&whole).expect("whole")),
        Err(Fault::Direction)
    );
}

#[test]
fn what_is_no_frame_is_given_back_unsent() {
    let (mut device, _, mut tx) = device(NET, 16);
    tx.write(DATA, &frame(60));
    let mut bad = frame(60);
    bad[0] = 1;
    bad[6] = 0xff;
    tx.write(DATA + 0x1000, &bad);
    tx.chain(0, &[(DATA, 11, 0)]);
    tx.chain(1, &[(DATA, 25, 0)]);
    tx.chain(2, &[(DATA, 0x2_0000, 0)]);
    tx.chain(3, &[(DATA + 0x1000, 72, 0)]);
    tx.chain(4, &[(DATA, 72, WRITE)]);
    tx.chain(5, &[(DATA, 72, 0)]);
    let queue = device.tx(0).expect("runs");
    let turn = queue.turn(64, |_| Sent::Done).expect("no fault");
    assert_eq!((turn.malformed, turn.frames), (5, 1));
    queue.ring().publish();
    assert_eq!(tx.used().len(), 6);
}

#[test]
fn a_ring_must_lie_in_memory_and_be_aligned() {
    let memory = memory();
    let mut device = Device::new(&settings());
    let good = Driver::new(&memory, TX, 16).setup();
    assert_eq!(device.start_queue(1, good), Err(Refused::NoMemory));
    device.set_memory(memory);
    for bad in [
        QueueState { size: 0, ..good },
        QueueState { size: 15, ..good },
        QueueState { size: 2048, ..good },
        QueueState {
            desc_table: good.desc_table + 8,
            ..good
        },
        QueueState {
            used_ring: MEMORY - 8,
            ..good
        },
        QueueState {
            avail_ring: u64::MAX - 3,
            ..good
        },
    ] {
        assert_eq!(
            device.start_queue(1, bad),
            Err(Refused::Ring(Fault::Setup)),
            "{bad:?}"
        );
    }
    assert_eq!(device.start_queue(7, good), Err(Refused::NoSuchQueue(7)));
    assert_eq!(device.start_queue(1, good), Ok(()));
}

#[test]
fn writes_are_logged_for_a_migration() {
    let (mut device, mut rx, _) = device(NET, 16);
    let log = Arc::new(dirty::DirtyLog::new(
        vm_memory::MmapRegion::new(4096).expect("mapping"),
    ));
    device.set_log(Some(Arc::clone(&log)));
    device
        .ring(0)
        .expect("runs")
        .set_log_used(Some(rx.used_at()));
    rx.chain(0, &[(0x3_0ff0, 2000, WRITE)]);
    let whole = frame(500);
    let queue = device.rx(0).expect("runs");
    queue
        .push(&Frame::new(&whole).expect("whole"))
        .expect("no fault");
    queue.ring().publish();
    let marked: Vec<u64> = (0..MEMORY >> 12)
        .filter(|page| log.is_marked(*page))
        .collect();
    assert_eq!(marked, [rx.used_at() >> 12, 0x30, 0x31]);
}

#[test]
fn a_used_ring_may_be_said_to_be_logged_anywhere() {
    for features in [NET, NET.with(Features::EVENT_IDX)] {
        for at in [u64::MAX, u64::MAX - 1, u64::MAX - 5, 1 << 63] {
            let (mut device, mut rx, _) = device(features, 16);
            let log = Arc::new(dirty::DirtyLog::new(
                vm_memory::MmapRegion::new(4096).expect("mapping"),
            ));
            device.set_log(Some(Arc::clone(&log)));
            rx.chain(0, &[(0x3_0000, 2000, WRITE)]);
            let whole = frame(500);
            let queue = device.rx(0).expect("runs");
            queue.ring().set_log_used(Some(at));
            queue.ring().disarm();
            let given = queue.push(&Frame::new(&whole).expect("whole"));
            assert_eq!(given, Ok(Received::Done), "{at:#x}");
            queue.ring().publish();
            assert_eq!(queue.ring().arm(), Ok(false), "{at:#x}");
            assert_eq!(rx.used(), [(0, 512)]);
            let marked = (0..MEMORY >> 12).filter(|page| log.is_marked(*page));
            assert_eq!(marked.collect::<Vec<_>>(), [0x30], "{at:#x}");
        }
    }
}

#[test]
fn what_was_not_written_is_not_logged_however_long_the_buffer() {
    let (mut device, mut rx, _) = device(NET, 16);
    let log = Arc::new(dirty::DirtyLog::new(
        vm_memory::MmapRegion::new(4096).expect("mapping"),
    ));
    device.set_log(Some(Arc::clone(&log)));
    rx.chain(
        0,
        &[(0x4_0000, 0x4_0000, WRITE), (0x8_0000, 0x4_0000, WRITE)],
    );
    rx.chain(2, &[(0xc_0000, 1000, WRITE)]);
    rx.chain(3, &[(0x10_0000, 0x4_0000, WRITE)]);
    let queue = device.rx(0).expect("runs");
    for len in [500, 6000] {
        let whole = frame(len);
        let given = queue.push(&Frame::new(&whole).expect("whole"));
        assert_eq!(given, Ok(Received::Done));
    }
    queue.ring().publish();
    let marked: Vec<u64> = (0..MEMORY >> 12)
        .filter(|page| log.is_marked(*page))
        .collect();
    assert_eq!(marked, [0x40, 0xc0, 0x100, 0x101]);
}

#[test]
fn a_driver_that_does_not_know_verified_checksums_is_not_told_of_them() {
    for (features, told) in [
        (NET, 0),
        (NET.with(Features::GUEST_CSUM), 2),
        (Features::ANY_LAYOUT, 0),
    ] {
        let (mut device, mut rx, _) = device(features, 16);
        let mut whole = frame(3000);
        whole[0] = 2;
        let (header, mergeable) = (features.header_len(), features.has(Features::MRG_RXBUF));
        rx.chain(0, &[(DATA, 4000, WRITE)]);
        rx.chain(1, &[(DATA + 0x2000, 2000, WRITE)]);
        rx.chain(2, &[(DATA + 0x4000, 2000, WRITE)]);
        let queue = device.rx(0).expect("runs");
        for _ in 0..1 + usize::from(mergeable) {
            let given = queue.push(&Frame::new(&whole).expect("whole"));
            assert_eq!(given, Ok(Received::Done));
        }
        assert_eq!(rx.read(DATA, 1), [told], "{features:?}");
        assert_eq!(
            rx.read(DATA + header as u64, 3000),
            whole[HEADER_LEN..],
            "{features:?}"
        );
        if mergeable {
            assert_eq!(rx.read(DATA + 0x2000, 1), [told], "in several buffers");
        }
    }
}

#[test]
fn a_ring_that_stops_leaves_nothing_in_flight() {
    let memory = Arc::new(vm_memory::MmapRegion::new(4096).expect("mapping"));
    let record = || inflight::Inflight::new(Arc::clone(&memory), 0, 16).expect("fits");
    let (mut device, mut rx, mut tx) = device(NET, 16);
    tx.write(DATA, &frame(60));
    for queue in [0, 1] {
        let ring = device.ring(queue).expect("runs");
        ring.set_inflight(record());
        for head in 0..5 {
            if queue == 0 {
                rx.chain(head, &[(DATA + 0x1000, 2048, WRITE)]);
            } else {
                tx.chain(head, &[(DATA, 72, 0)]);
            }
        }
        if queue == 0 {
            let whole = frame(60);
            let given = device
                .rx(0)
                .expect("runs")
                .push(&Frame::new(&whole).expect("whole"));
            assert_eq!(given, Ok(Received::Done));
        } else {
            let turn = device.tx(0).expect("runs").turn(64, |_| Sent::Busy);
            assert!(turn.expect("no fault").busy);
        }
        device.ring(queue).expect("runs").publish();
        let state = device.stop_queue(queue).expect("ran");
        assert_eq!(state.next_avail, 1 - queue, "what was not used is back");
        assert!(record().recover(1 - queue).is_empty(), "queue {queue}");
    }
}

/// Ring work a frame: from one driver's transmit ring to another's receive ring. Run with --release --ignored.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_frame_from_ring_to_ring() {
    let (mut device, mut rx, mut tx) = device(NET.with(Features::EVENT_IDX), 256);
    for len in [60usize, 1500] {
        tx.write(DATA, &frame(len));
        let buffer = |i: u16| DATA + 0x1_0000 + u64::from(i) * 2048;
        let rounds = 20_000u32;
        let mut spent = std::time::Duration::ZERO;
        for round in 0..rounds {
            for i in 0..32 {
                tx.chain(
                    (round % 8) as u16 * 32 + i,
                    &[(DATA, u32::try_from(len).expect("short") + 12, 0)],
                );
                rx.chain((round % 8) as u16 * 32 + i, &[(buffer(i), 2048, WRITE)]);
            }
            let began = std::time::Instant::now();
            let mut receive = device.rx[0].take().expect("runs");
            let sent = device.tx(0).expect("runs");
            sent.turn(32, |frame| {
                receive.push(frame).expect("no fault");
                Sent::Done
            })
            .expect("no fault");
            sent.ring().publish();
            receive.ring().publish();
            spent += began.elapsed();
            device.rx[0] = Some(receive);
        }
        eprintln!(
            "{len} bytes: {} ns a frame, both rings",
            spent.as_nanos() / u128::from(rounds) / 32
        );
    }
}
