//! What a decision costs. `cargo test --release -p virtio-net-backend --lib switch::bench -- --ignored --nocapture`

use super::{Egress, Guard, Port, Switch, Time};
use std::{hint::black_box, time::Instant};
use vnet_core::types::Mac;

fn frame(to: u32, from: u32) -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..2].copy_from_slice(&[0x52, 0x54]);
    frame[2..6].copy_from_slice(&to.to_be_bytes());
    frame[6..8].copy_from_slice(&[0x52, 0x54]);
    frame[8..12].copy_from_slice(&from.to_be_bytes());
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[23] = 17;
    frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
    frame
}

fn measure(name: &str, hosts: u32, guard: bool) {
    let mut switch = Switch::new(8192, 0x1357_9bdf_2468_ace1);
    let now = Time::from_nanos(1);
    let guarded =
        guard.then(|| Guard::new([Mac([0x52, 0x54, 0, 0, 0, 1])]).allow([10, 0, 0, 1].into(), 32));
    let a = switch
        .attach(
            now,
            Port {
                guard: guarded,
                addresses: u32::MAX,
                ..Port::default()
            },
        )
        .unwrap();
    let b = switch.attach(now, Port::uplink()).unwrap();
    for host in 0..hosts {
        switch.ingress(now, b, &frame(1, 1000 + host));
    }
    let frames: Vec<_> = (0..hosts)
        .map(|host| frame(1000 + host.wrapping_mul(7919) % hosts, 1))
        .collect();
    let rounds = 20_000_000 / hosts;
    let best = (0..5).map(|_| {
        let start = Instant::now();
        for round in 0..rounds {
            let now = Time::from_nanos(u64::from(round));
            for frame in &frames {
                let egress = switch.ingress(now, black_box(a), frame);
                assert!(matches!(egress, Egress::To(to) if to == b));
            }
        }
        start.elapsed().as_nanos() as f64 / f64::from(rounds * hosts)
    });
    println!("{name:<40} {:6.1} ns", best.fold(f64::INFINITY, f64::min));
}

#[test]
#[ignore = "a measurement, not a check"]
fn known_unicast_64_bytes() {
    measure("known unicast, 1 destination", 1, false);
    measure("known unicast, 64 destinations", 64, false);
    measure("known unicast, 4096 destinations", 4096, false);
    measure("known unicast, guarded UDP, 64", 64, true);
}
