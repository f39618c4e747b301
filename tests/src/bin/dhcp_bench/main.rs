//! The DHCP table of `make bench`: netd, Kea and dnsmasq under perfdhcp, alternating, each run with a fresh server.
//!
//! perfdhcp plays a relay with sixty thousand clients (`perfdhcp -4 -r RATE -R 60000 -p 5`). It runs single-threaded
//! for all of them: with two threads on two cores it takes three times as long an exchange. What its receive buffer loses
//! is counted apart (the namespace's UDP counters): it is no server's drop, but it is not taken off the drops either.
//! What else is set is set for all of them alike: this session's group of processes comes before the machine's others,
//! and perfdhcp, whose one core is full first, is spared what is no server's work (see `generator` and `Lab`).

mod generator;
mod peer;
mod run;
mod table;

use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use peer::{Lab, Peer};
use run::{Run, Times, measure};
use table::Row;

/// A rate is clean when less than this share of what was sent stays unanswered.
const CLEAN: f64 = 0.001;
/// Each figure is the median of so many runs, the servers taking turns.
const ROUNDS: usize = 3;
/// Offered rates, the same for all, until one is not clean; nobody who is clean at the first is asked for less.
const LADDER: &[u32] = &[
    300, 1000, 5000, 6500, 8000, 9000, 10_000, 12_500, 15_000, 16_000, 17_000, 18_000, 20_000,
];
/// Where each begins.
const FIRST: [(Peer, u32); 3] = [
    (Peer::Dnsmasq, 300),
    (Peer::Kea, 5000),
    (Peer::Netd, 10_000),
];
const TARGET: u32 = 15_000;
const BEYOND: [u32; 2] = [25_000, 40_000];
const PRESENT: u32 = 50_000;

fn main() -> anyhow::Result<()> {
    // Not a kernel with groups, or not root: then as it is.
    let _ = std::fs::write("/proc/self/autogroup", "-15");
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if let [server, rates @ ..] = &asked[..] {
        return some(server, rates);
    }
    let mut rows = Vec::new();
    let best = best_clean()?;
    let of = |peer| best.iter().find(|(p, _)| *p == peer).map_or(0, |(_, r)| *r);
    rows.push(Row {
        measure: "new leases a second, best clean rate offered".to_owned(),
        figures: Peer::ALL.map(|peer| format!("{}/s", of(peer))),
        reached: of(Peer::Netd) >= TARGET && of(Peer::Netd) >= 2 * of(Peer::Kea),
        reach: "15,000/s; twice Kea's".to_owned(),
    });
    rows.push(offered(TARGET)?);
    for rate in BEYOND {
        rows.push(offered(rate)?);
    }
    rows.push(present()?);
    rows.push(latency()?);
    table::print(&rows);
    Ok(())
}

/// Some runs of one server alone, with what an exchange took: `dhcp_bench netd 2000 15000`.
fn some(server: &str, rates: &[String]) -> anyhow::Result<()> {
    let peer = Peer::ALL.into_iter().find(|peer| peer.name() == server);
    let peer = peer.with_context(|| format!("no server `{server}`: dnsmasq, Kea or netd"))?;
    for rate in rates {
        for _ in 0..ROUNDS {
            let run = measure(&Lab::new(peer)?, rate.parse()?, true)?;
            let times = run.times.context("perfdhcp printed no times")?;
            table::progress(&format!("{server} at {rate}/s: {run}; {times}"));
        }
    }
    Ok(())
}

/// The best rate of each that is clean, and so is each below it.
fn best_clean() -> anyhow::Result<Vec<(Peer, u32)>> {
    let mut best: Vec<(Peer, u32)> = FIRST.iter().map(|(peer, _)| (*peer, 0)).collect();
    let mut climbing = FIRST.to_vec();
    for rate in LADDER {
        let here = climbing.iter().filter(|(_, first)| rate >= first);
        let here: Vec<Peer> = here.map(|(peer, _)| *peer).collect();
        for (peer, run) in median(&here, *rate)? {
            if run.lost() >= CLEAN {
                climbing.retain(|(other, _)| *other != peer);
            } else if let Some((_, clean)) = best.iter_mut().find(|(other, _)| *other == peer) {
                *clean = *rate;
            }
        }
    }
    Ok(best)
}

/// One rate for those that come near it: what was answered.
fn offered(rate: u32) -> anyhow::Result<Row> {
    let runs = median(&[Peer::Kea, Peer::Netd], rate)?;
    let [(_, kea), (_, netd)] = &runs[..] else {
        anyhow::bail!("two servers, {} runs", runs.len());
    };
    let reached = if rate <= TARGET {
        netd.lost() < CLEAN
    } else {
        netd.answered >= f64::from(TARGET) * 0.9
    };
    Ok(Row {
        measure: format!("{rate}/s offered: answered, drops (of these perfdhcp's own)"),
        figures: ["-".to_owned(), kea.to_string(), netd.to_string()],
        reached,
        reach: if rate <= TARGET {
            "all, drops under 0.1 %".to_owned()
        } else {
            "flat".to_owned()
        },
    })
}

/// The rate past saturation with an empty store and with a full one, and what an exchange costs.
fn present() -> anyhow::Result<Row> {
    let run = |present| measure(&Lab::wide(Peer::Netd, present)?, BEYOND[0], false);
    let (empty, full) = (run(0)?, run(PRESENT)?);
    Ok(Row {
        measure: format!("{PRESENT} leases present, past saturation: answered (empty)"),
        figures: [
            "-".to_owned(),
            "-".to_owned(),
            format!("{:.0}/s ({:.0}/s)", full.answered, empty.answered),
        ],
        reached: full.answered >= 0.9 * empty.answered,
        reach: "within 10 % of empty".to_owned(),
    })
}

/// What an exchange takes: the run of each server that is neither the fastest nor the slowest.
fn latency() -> anyhow::Result<Row> {
    let rate = |peer| if peer == Peer::Dnsmasq { 400 } else { 2000 };
    let mut runs = Peer::ALL.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (peer, runs) in Peer::ALL.into_iter().zip(&mut runs) {
            let run = measure(&Lab::new(peer)?, rate(peer), true)?;
            let times = run.times.context("perfdhcp printed no times")?;
            table::progress(&format!("{} at {}/s: {times}", peer.name(), rate(peer)));
            runs.push(times);
        }
    }
    let middle = runs.map(|mut runs| {
        runs.sort_by(|a, b| a.whole().average.total_cmp(&b.whole().average));
        runs[ROUNDS / 2]
    });
    let [.., ours] = middle.map(Times::whole);
    Ok(Row {
        measure: format!(
            "2,000/s (dnsmasq: 400/s): average to the OFFER + to the ACK, p99 of both (a write and its fdatasync here: {:.2} ms)",
            disk()?
        ),
        figures: middle.map(|times| times.to_string()),
        reached: ours.average < 0.5 && ours.p99 < 5.0,
        reach: "under 0.5 ms / 5 ms".to_owned(),
    })
}

/// Milliseconds that this machine's disk takes for the least that is durable.
fn disk() -> anyhow::Result<f64> {
    let scratch = tests::Scratch::new("disk")?;
    let file = std::fs::File::create(scratch.join("file"))?;
    file.write_all_at(&vec![0; 1 << 20], 0)?;
    file.sync_all()?;
    let mut times = Vec::new();
    for at in 0..200 {
        let began = Instant::now();
        file.write_all_at(&[1; 4096], 4096 * at)?;
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(1));
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// The run of each server that lost neither least nor most.
fn median(peers: &[Peer], rate: u32) -> anyhow::Result<Vec<(Peer, Run)>> {
    let mut runs: Vec<(Peer, Vec<Run>)> = peers.iter().map(|peer| (*peer, Vec::new())).collect();
    for _ in 0..ROUNDS {
        for (peer, runs) in &mut runs {
            let run = measure(&Lab::new(*peer)?, rate, false)?;
            table::progress(&format!("{} at {rate}/s: {run}", peer.name()));
            runs.push(run);
        }
    }
    let middle = |mut runs: Vec<Run>| {
        runs.sort_by(|a, b| a.lost().total_cmp(&b.lost()));
        runs.swap_remove(runs.len() / 2)
    };
    Ok(runs.into_iter().map(|(p, r)| (p, middle(r))).collect())
}
