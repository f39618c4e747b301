//! What a driver in a guest can do: leave anything in ring memory, send any frame, set any register.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::settings;
use crate::device::header::HEADER_LEN;
use crate::device::{Device, Features, Frame, Memory, NetHeader, QueueState, Sent};
use crate::switch::{Egress, Guard, Port, Switch, Time};
use crate::transport::finish::Finisher;
use crate::transport::mmio::{self, Nic, snapshot::Snapshot};
use vnet_core::types::Mac;

const MEMORY: usize = 0x1_0000;
const SIZE: u16 = 16;

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
pub(super) fn ring(input: &[u8]) -> usize {
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

/// A frame behind its header, as a guarded port sends it: through a switch, and finished for drivers that can take little.
/// How often it was handed over.
pub(super) fn frame(bytes: &[u8]) -> usize {
    let Some((raw, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return 0;
    };
    let features = Features::from_bits(u64::MAX);
    let Ok(header) = NetHeader::checked(raw, rest.len(), features) else {
        return 0;
    };
    let linear = [&header.encode()[..], rest].concat();
    let Some(frame) = Frame::new(&linear) else {
        return 0;
    };
    let now = Time::from_nanos(1);
    let mut switch = Switch::new(16, 1);
    let guard = Guard::new([Mac(settings(false).mac)]);
    let guarded = Port {
        guard: Some(guard.allow([10, 0, 0, 9].into(), 32)),
        ..Port::default()
    };
    let (own, other) = (
        switch.attach(now, guarded),
        switch.attach(now, Port::default()),
    );
    let (own, other) = own.zip(other).expect("room for two");
    for from in [own, other] {
        let whole = switch.ingress(now, from, rest);
        let by_head = switch.ingress_head(now, from, frame.head(), frame.len());
        // The second may find what the first has taught.
        let drops = |egress| matches!(egress, Egress::Drop(_));
        assert_eq!(drops(whole), drops(by_head));
    }
    let mut handed = 0;
    let little = [
        Features::default(),
        Features::GUEST_CSUM,
        Features::GUEST_CSUM.with(Features::GUEST_TSO4),
    ];
    for features in little {
        let left = Finisher::default().finish(&frame, features, |finished| {
            handed += 1;
            let header = finished.header().expect("a header of ours");
            assert!(header.fits(features) && finished.len() <= frame.len());
            true
        });
        assert!(left.is_err() || left == Ok(0), "all of it goes");
    }
    handed
}

/// Deeds of a driver: what, where, and four bytes. How many of its frames were taken.
pub(super) fn mmio(input: &[u8]) -> usize {
    const MOST: usize = 256;
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let memory = Memory::new(map);
    let nic = Nic::new(&settings(true), memory.clone()).expect("a card");
    let mut taken = 0;
    let (deeds, _) = input.as_chunks::<8>();
    for [what, len, at @ .., a, b, c, d] in deeds.iter().take(MOST) {
        let (at, value) = (u16::from_le_bytes(*at), [*a, *b, *c, *d]);
        let register = u64::from(at) % mmio::SIZE;
        match what % 8 {
            0 | 1 => nic.write(register, &value),
            2 => nic.write(register, &value[..usize::from(len % 5)]),
            3 => nic.read(register, &mut vec![0; usize::from(len % 16)]),
            4 => drop(memory.map().write_slice(&value, GuestAddress(at.into()))),
            5 => {
                taken += nic.path().take(64, |_| Sent::Done);
                let _ = nic.path().arm();
            }
            6 => {
                let linear = vec![0; HEADER_LEN + 60 + usize::from(at)];
                nic.path().give(&Frame::new(&linear).expect("whole"));
            }
            _ => {
                let kept = nic.save();
                assert!(nic.restore(&kept).is_ok());
                assert_eq!(nic.save(), kept);
            }
        }
    }
    // Whatever it did, a reset makes it good.
    let status = 0x70;
    nic.write(status, &[0; 4]);
    let mut after = [0xff; 4];
    nic.read(status, &mut after);
    assert_eq!(after, [0; 4]);
    taken
}

/// A card's state, from a file that may come from anywhere: it is taken on as it is, or not at all.
pub(super) fn snapshot(text: &[u8]) -> usize {
    let Ok(snapshot) = serde_json::from_slice::<Snapshot>(text) else {
        return 0;
    };
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let nic = Nic::new(&settings(true), Memory::new(map)).expect("a card");
    if nic.restore(&snapshot).is_ok() {
        nic.path().take(64, |_| Sent::Done);
        nic.path().give(&Frame::new(&[0; 80]).expect("whole"));
        let _ = nic.path().arm();
    }
    1
}
