//! A switch and a DHCP server in one small program, without a VMM: its guests are taps, each a port of the switch.
//!
//! ```text
//! # cargo run -p examples --bin switch_and_dhcp -- tap-a tap-b
//! # ip link set tap-a netns A; ip netns exec A udhcpc -i tap-a     # and likewise tap-b: A and B can ping each other
//! ```
//! Reading a tap blocks, so each has a thread for that; all decisions are made in one place, in the loop below.
#![allow(clippy::print_stdout, reason = "a program speaks to its user")]

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, mpsc};
use std::time::Instant;
use std::{env, thread};

use anyhow::{Context as _, ensure};
use examples::gateway::{answer_dhcp, dhcp_server, wall_clock};
use examples::lan::reaches;
use tun_tap::{Iface, Mode};
use virtio_net_backend::switch::{Port, Switch, Time};

const NETWORK: &str = r#"
name = "taps"
[forward]
mode = "isolated"
[[subnet]]
address = "10.77.0.1/24"
[subnet.dhcp]
ranges = ["10.77.0.10-10.77.0.99"]
"#;

fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let mut server = dhcp_server(NETWORK, wall_clock())?;
    // The seed is what guests cannot guess.
    let mut switch = Switch::new(1024, RandomState::new().hash_one(0));
    let mut attach = |port| switch.attach(Time::default(), port).context("a free port");
    let us = attach(Port::uplink())?;
    let (frames, arrived) = mpsc::channel();
    let mut taps = Vec::new();
    for name in env::args().skip(1) {
        let tap = Arc::new(Iface::without_packet_info(&name, Mode::Tap).context(name)?);
        let port = attach(Port::default())?;
        taps.push((port, Arc::clone(&tap)));
        let frames = frames.clone();
        thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(length) = tap.recv(&mut buffer) {
                if frames.send((port, buffer[..length].to_vec())).is_err() {
                    return;
                }
            }
        });
    }
    ensure!(!taps.is_empty(), "name the taps that shall be ports");
    drop(frames);
    println!("serving {} taps", taps.len());

    for (from, frame) in arrived {
        let now = Time::from_nanos(u64::try_from(start.elapsed().as_nanos())?);
        let mut waiting = vec![(from, frame)];
        while let Some((from, frame)) = waiting.pop() {
            let egress = switch.ingress(now, from, &frame);
            for (_, tap) in taps.iter().filter(|(port, _)| reaches(egress, *port)) {
                // A tap that is down loses the frame, as a cable would.
                let _ = tap.send(&frame);
            }
            if reaches(egress, us) {
                let answer = answer_dhcp(&mut server, wall_clock(), &frame);
                waiting.extend(answer.map(|answer| (us, answer)));
            }
        }
    }
    Ok(())
}
