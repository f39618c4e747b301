//! The data plane beside its peers: `bench_dataplane [T1 T3 T4 S1 S2 G1 G2 I1 K1 K2] [--rounds N]`.
//!
//! Peers and we take turns inside one run, and ratios are what to keep: on a shared machine all figures move together.
//! Load comes from DPDK's testpmd (virtio_user) on core 0, the backend runs on core 1. Needs root; what is missing is
//! said and skipped.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

mod cores;
mod guests;
mod kvm;
mod load;
mod ovs;
mod rings;
mod table;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let mut rounds = 3;
    let mut wanted = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--rounds" {
            rounds = arguments.next().context("--rounds N")?.parse()?;
        } else {
            let known: Vec<_> = BENCHES.iter().map(|(id, _)| *id).collect();
            anyhow::ensure!(
                known.contains(&argument.as_str()),
                "there is no bench {argument}; there are {}",
                known.join(", ")
            );
            wanted.push(argument);
        }
    }
    load::raise_priority();
    table::title();
    for (id, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|name| name == id) {
            match bench(rounds) {
                Ok(()) => {}
                Err(error) => table::skipped(id, &format!("{error:#}")),
            }
        }
    }
    Ok(())
}

type Bench = fn(usize) -> anyhow::Result<()>;

const BENCHES: &[(&str, Bench)] = &[
    ("T1", rings::guest_to_tap),
    ("T3", rings::closed_loop),
    ("T4", rings::flood),
    ("S1", |rounds| rings::switch(rounds, 64)),
    ("S2", |rounds| rings::switch(rounds, 1500)),
    ("G1", guests::guest_to_host),
    ("G2", guests::guest_to_guest),
    ("I1", guests::idle),
    ("K1", kvm::example_vmm),
    ("K2", guests::silence),
];
