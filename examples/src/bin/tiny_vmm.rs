//! A virtual machine monitor in one process: KVM, a virtio-net card, a switch and a DHCP server.
//!
//! ```text
//!   guest (examples/guest)          this process
//!   driver at CPL3  ── exits ──►  vCPU thread: registers of the card
//!        rings in memory  ◄────►  network thread: card ◄─► switch ◄─► gateway (DHCP, ARP, ping)
//! ```
//! Run it as anybody who may open /dev/kvm:
//!
//! ```text
//! $ cargo run --release -p examples --bin tiny_vmm -- --pings 3
//! the guest leased 10.0.2.2 (mask 255.255.255.0, router 10.0.2.1, server 10.0.2.1) for 3600 s; 3 of 3 pings answered
//! ```
//! With `--tap NAME` the card is plugged into a tap instead, and the guest is on netd's network with its lease from there:
//!
//! ```text
//! # vnet port attach default tiny --mac 52:54:00:00:00:01
//! # tiny_vmm --pings 3 --tap vn-tiny
//! ```
//! `--flood N` lets the guest then send N frames of 64 bytes, and says how fast they came through the switch.
//! The parts: `examples::vmm` the machine, `examples::lan` the network, `examples::gateway` the host's end of it,
//! `examples::plug` the tap in their place.
#![allow(clippy::print_stdout, reason = "a program speaks to its user")]

#[cfg(target_arch = "x86_64")]
fn main() -> anyhow::Result<()> {
    use examples::scenario;

    let (mut pings, mut flood) = (3, 0);
    let mut tap = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        match name.as_str() {
            "--pings" => pings = value.parse()?,
            "--flood" => flood = value.parse()?,
            "--tap" => tap = Some(value),
            other => anyhow::bail!("{other}: there are --pings N, --flood N and --tap NAME"),
        }
    }
    let outcome = match tap {
        Some(tap) => scenario::run_on_tap(pings, &tap)?,
        None => scenario::run(examples::vmm::Task { pings, flood })?,
    };
    println!("{outcome}");
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("the guest of this example is x86_64 code");
}
