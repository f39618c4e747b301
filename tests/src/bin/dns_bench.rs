//! The DNS table of `make bench`: this service and dnsmasq, side by side, with the same clients, alternating.
//!
//! Everything runs in namespaces. CPU is user and system time of the server alone (our thread; dnsmasq's process), so
//! that a busy machine changes the rate but hardly the cost of a query.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::dns::{DnsHost, Upstream};
use tests::{Ns, Proc};
use vnet_core::dns::{Change, NameChange};

const ROUNDS: usize = 5;
const NAMES: usize = 1_000;
const UNIQUE: usize = 40_000;

/// What one run of dnsperf showed.
#[derive(Clone, Copy)]
struct Run {
    micros: f64,
    rate: f64,
    lost: u64,
}

struct Bench {
    host: DnsHost,
    ours: Ns,
    theirs: Ns,
    dnsmasq: Proc,
    _upstream: Upstream,
}

fn main() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    let mut table = String::from(
        "| queries | dnsmasq: us CPU, per CPU second, lost | netd: us CPU, per CPU second, lost | ratio | wanted |\n\
         |---|---|---|---|---|\n",
    );
    for (what, wanted) in [("local", 1.5), ("cached", 1.3), ("uncached", 1.0)] {
        let mut runs: [Vec<Run>; 2] = Default::default();
        for round in 0..ROUNDS {
            for (peer, runs) in runs.iter_mut().enumerate() {
                runs.push(bench.run(what, round, peer == 1)?);
            }
        }
        let [theirs, ours] = runs.map(|runs| median(&runs));
        writeln!(
            table,
            "| {what} | {} | {} | {:.2} | {wanted} |",
            cell(theirs),
            cell(ours),
            theirs.micros / ours.micros
        )?;
    }
    print(&table);
    let stats = bench.host.stats();
    print(&format!("{:?}\n", stats.total));
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the table is what this program is for")]
fn print(text: &str) {
    print!("{text}");
}

fn cell(run: Run) -> String {
    format!(
        "{:.2}, {:.0} k (wall {:.0} k/s), {}",
        run.micros,
        1e3 / run.micros,
        run.rate / 1e3,
        run.lost
    )
}

/// The median by cost; what was lost is the sum, for none may be.
fn median(runs: &[Run]) -> Run {
    let mut sorted = runs.to_vec();
    sorted.sort_by(|a, b| a.micros.total_cmp(&b.micros));
    Run {
        lost: runs.iter().map(|r| r.lost).sum(),
        ..sorted[sorted.len() / 2]
    }
}

impl Bench {
    fn new() -> anyhow::Result<Self> {
        let mut host = DnsHost::new("benchhost", "nameserver 10.94.70.53\n")?;
        let options = ["--address=/example/192.0.2.80", "--local-ttl=3600"];
        let upstream = Upstream::quiet(&host, "up", "10.94.70.53", &options)?;
        let network = |name: &str, third: u8| {
            format!(
                "[[network]]\nname = \"{name}\"\ndomain.name = \"{name}.test\"\nsubnet = [{{ address = \"10.94.{third}.1/16\" }}]\n"
            )
            .replace("/16", "/24")
        };
        let errors = host.network(&(network("lab", 1) + &network("peer", 2)))?;
        ensure!(errors.is_empty(), "{errors:?}");
        host.stop("peer")?;
        let mut hosts = String::new();
        let mut changes = Vec::new();
        for i in 0..NAMES {
            let address = format!("10.94.{}.{}", 100 + i / 250, 1 + i % 250);
            writeln!(hosts, "{address} n{i}.lab.test")?;
            changes.push(NameChange {
                name: format!("n{i}").parse()?,
                address: address.parse()?,
                change: Change::Added,
            });
        }
        host.dns.names("lab".parse()?, changes);
        let hosts = host.ns.scratch().write("hosts", &hosts)?;
        let hosts = format!("--addn-hosts={}", hosts.display());
        let dnsmasq = host.ns.spawn(&[
            "dnsmasq",
            "-k",
            "-C",
            "/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--listen-address=10.94.2.1",
            "--server=10.94.70.53",
            "--cache-size=10000",
            "--dns-forward-max=10000",
            "--local-ttl=10",
            "--log-facility=-",
            "--pid-file=",
            &hosts,
        ])?;
        dnsmasq.wait_log("read", Duration::from_secs(10))?;
        Ok(Self {
            ours: host.guest("br1", "ours", "10.94.1.50/24")?,
            theirs: host.guest("br2", "theirs", "10.94.2.50/24")?,
            host,
            dnsmasq,
            _upstream: upstream,
        })
    }

    fn run(&self, what: &str, round: usize, ours: bool) -> anyhow::Result<Run> {
        let (guest, at) = if ours {
            (&self.ours, "10.94.1.1")
        } else {
            (&self.theirs, "10.94.2.1")
        };
        let queries = match what {
            "local" => (0..NAMES)
                .map(|i| format!("n{i}.lab.test A\n"))
                .collect::<String>(),
            "cached" => (0..NAMES).map(|i| format!("n{i}.example A\n")).collect(),
            _ => (0..UNIQUE)
                .map(|i| format!("u{round}-{i}.example A\n"))
                .collect(),
        };
        let file = guest.scratch().write("queries", &queries)?;
        let perf = |amount: &str| {
            guest.sh(&format!(
                "dnsperf -s {at} -d {} -t 5 {amount}",
                file.display()
            ))
        };
        if what == "cached" {
            perf("-n 1 -q 50")?;
        }
        let before = self.cpu(ours)?;
        let amount = match what {
            "uncached" => "-n 1 -c 100 -q 100",
            _ => "-l 3 -c 10 -q 100",
        };
        let said = perf(amount)?;
        let spent = self.cpu(ours)? - before;
        let number = |key: &str| {
            let line = said.lines().find(|l| l.trim_start().starts_with(key));
            let word = line.and_then(|l| l.split(':').nth(1)?.split_whitespace().next());
            word.and_then(|w| w.parse::<f64>().ok())
                .with_context(|| format!("no `{key}` in\n{said}"))
        };
        let completed = number("Queries completed")?;
        ensure!(completed > 0.0, "nothing was answered\n{said}");
        ensure!(
            said.contains("NOERROR") && !said.contains("SERVFAIL"),
            "not all answers are good\n{said}"
        );
        Ok(Run {
            micros: spent * 1e6 / completed,
            rate: number("Queries per second")?,
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a small count"
            )]
            lost: number("Queries lost")? as u64,
        })
    }

    /// Seconds of CPU that the server has used.
    fn cpu(&self, ours: bool) -> anyhow::Result<f64> {
        let stat = if ours {
            our_thread()?
        } else {
            format!("/proc/{}/stat", self.dnsmasq.id())
        };
        let text = fs::read_to_string(&stat)?;
        let after = text.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / 100.0)
    }
}

/// The stat file of our DNS thread.
fn our_thread() -> anyhow::Result<String> {
    for task in fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm"))?.trim() == "dns" {
            return Ok(path.join("stat").display().to_string());
        }
    }
    anyhow::bail!("the DNS thread is gone")
}
