//! A switch and a DHCP server in one small program, without a VMM: its guests are taps, each a port of the switch.
//!
//! ```text
//! # cargo run -p examples --bin switch_and_dhcp -- tap-a tap-b
//! # ip link set tap-a netns A; ip netns exec A udhcpc -i tap-a     # and likewise tap-b: A and B can ping each other
//! ```
#![allow(clippy::print_stdout, reason = "a program speaks to its user")]

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use examples::gateway::{answer_dhcp, dhcp_server, wall_clock};
use examples::lan::wait_readable;
use tun_tap::{Iface, Mode};
use virtio_net_backend::switch::{Egress, Port, PortIndex, Switch, Time};

const NETWORK: &str = "name = 'taps'
forward = { mode = 'isolated' }
subnet = [{ address = '10.77.0.1/24', dhcp = { ranges = ['10.77.0.10-10.77.0.99'] } }]";

fn main() -> anyhow::Result<()> {
    let (start, mut buffer, mut taps) = (Instant::now(), [0; 65_536], Vec::new());
    let mut server = dhcp_server(NETWORK, wall_clock())?;
    // The seed is what guests cannot guess.
    let mut switch = Switch::new(1024, RandomState::new().hash_one(0));
    let mut attach = |port| switch.attach(Time::default(), port).context("a free port");
    let us = attach(Port::uplink())?;
    for name in std::env::args().skip(1) {
        let tap = Iface::without_packet_info(&name, Mode::Tap).context(name)?;
        taps.push((attach(Port::default())?, tap));
    }
    ensure!(!taps.is_empty(), "name the taps that shall be ports");
    println!("serving {} taps", taps.len());

    loop {
        let readable = wait_readable(taps.iter().map(|(_, tap)| tap), Duration::MAX);
        let now = Time::from_nanos(u64::try_from(start.elapsed().as_nanos())?);
        let readable = taps.iter().zip(readable).filter(|(_, is)| *is);
        for ((from, tap), _) in readable {
            let length = tap.recv(&mut buffer)?;
            let frame = &buffer[..length];
            let egress = switch.ingress(now, *from, frame);
            send(&taps, egress, frame);
            if egress.reaches(us)
                && let Some(answer) = answer_dhcp(&mut server, wall_clock(), frame)
            {
                send(&taps, switch.ingress(now, us, &answer), &answer);
            }
        }
    }
}

/// Sends a frame where the switch says. A tap that is down loses it, as a cable would.
fn send(taps: &[(PortIndex, Iface)], egress: Egress, frame: &[u8]) {
    for (_, tap) in taps.iter().filter(|(port, _)| egress.reaches(*port)) {
        let _ = tap.send(frame);
    }
}
