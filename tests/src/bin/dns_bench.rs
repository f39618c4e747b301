//! The DNS table of `make bench`: this service and dnsmasq, side by side, with the same clients, alternating.
//!
//! Everything runs in namespaces. CPU is what the server alone spent (our thread; dnsmasq's process), to the nanosecond
//! of the scheduler's own books, so that a busy machine changes the rate but hardly the cost of a query.
//!
//! The clients of most rows are in the server's namespace: its cost, and not that of the way to the guest, which is
//! delivered on the sender's account and is the same for both. One row is measured from a guest's side, through the
//! bridge and its port. dnsmasq has a cache large enough for what is asked again, and none where each name is asked
//! once: with a cache that is full it searches all of it for every new name.

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
/// Addresses of the clients beside the servers: dnsmasq's, ours.
const CLIENTS: [&str; 2] = ["10.94.2.250", "10.94.1.250"];

/// What one run of dnsperf showed.
#[derive(Clone, Copy)]
struct Run {
    micros: f64,
    rate: f64,
    lost: u64,
}

/// Both sides, and where their clients are.
struct Bench {
    host: DnsHost,
    guests: [Ns; 2],
    dnsmasq: Proc,
    forgetful: Proc,
    _upstream: Upstream,
}

/// What is asked, and from where.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    Local,
    LocalFromGuest,
    Cached,
    Uncached,
}

impl Load {
    const fn words(self) -> &'static str {
        match self {
            Self::Local => "1,000 local names",
            Self::LocalFromGuest => "the same from a guest, through the bridge",
            Self::Cached => "1,000 cached names of others",
            Self::Uncached => "names of others, each once, 100 clients",
        }
    }

    /// What is to be reached; the row from the guest is told, and has no mark of its own.
    const fn wanted(self) -> &'static str {
        match self {
            Self::Local => "1.5",
            Self::LocalFromGuest => "-",
            Self::Cached => "1.3",
            Self::Uncached => "1.0",
        }
    }
}

fn main() -> anyhow::Result<()> {
    let bench = Bench::new()?;
    let mut table = String::from(
        "| queries | dnsmasq: us CPU, per CPU second, lost | netd: us CPU, per CPU second, lost | ratio | wanted |\n\
         |---|---|---|---|---|\n",
    );
    for load in [
        Load::Local,
        Load::LocalFromGuest,
        Load::Cached,
        Load::Uncached,
    ] {
        let mut runs: [Vec<Run>; 2] = Default::default();
        for round in 0..ROUNDS {
            for (peer, runs) in runs.iter_mut().enumerate() {
                runs.push(bench.run(load, round, peer == 1)?);
            }
        }
        let [theirs, ours] = runs.map(|runs| median(&runs));
        writeln!(
            table,
            "| {} | {} | {} | {:.2} | {} |",
            load.words(),
            cell(theirs),
            cell(ours),
            theirs.micros / ours.micros,
            load.wanted()
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
        let dnsmasq = dnsmasq(&host, "10.94.2.1", &["--cache-size=10000", &hosts])?;
        let forgetful = dnsmasq_without_cache(&host)?;
        // Clients beside the servers, but not the gateways themselves.
        for (bridge, address) in ["br2", "br1"].iter().zip(CLIENTS) {
            host.ns.ip(&format!("addr add {address}/32 dev {bridge}"))?;
        }
        Ok(Self {
            guests: [
                host.guest("br2", "theirs", "10.94.2.50/24")?,
                host.guest("br1", "ours", "10.94.1.50/24")?,
            ],
            host,
            dnsmasq,
            forgetful,
            _upstream: upstream,
        })
    }

    fn run(&self, load: Load, round: usize, ours: bool) -> anyhow::Result<Run> {
        let at = match (ours, load) {
            (true, _) => "10.94.1.1",
            (false, Load::Uncached) => "10.94.3.1",
            (false, _) => "10.94.2.1",
        };
        let peer = usize::from(ours);
        let (client, source) = match load {
            Load::LocalFromGuest => (&self.guests[peer], String::new()),
            Load::Local | Load::Cached | Load::Uncached => {
                (&self.host.ns, format!("-a {}", CLIENTS[peer]))
            }
        };
        let queries = queries(load, round);
        let file = client.scratch().write("queries", &queries)?;
        let perf = |amount: &str| {
            client.sh(&format!(
                "dnsperf -s {at} {source} -d {} -t 5 {amount}",
                file.display()
            ))
        };
        if load == Load::Cached {
            perf("-n 1 -q 50")?;
        }
        let before = self.cpu(load, ours)?;
        let amount = match load {
            Load::Uncached => "-n 1 -c 100 -q 100",
            Load::Local | Load::LocalFromGuest | Load::Cached => "-l 3 -c 10 -q 100",
        };
        let said = perf(amount)?;
        let spent = self.cpu(load, ours)? - before;
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
    fn cpu(&self, load: Load, ours: bool) -> anyhow::Result<f64> {
        let book = match (ours, load) {
            (true, _) => our_thread()?,
            (false, Load::Uncached) => format!("/proc/{}/schedstat", self.forgetful.id()),
            (false, _) => format!("/proc/{}/schedstat", self.dnsmasq.id()),
        };
        let text = fs::read_to_string(&book).with_context(|| book)?;
        let nanos = text.split_whitespace().next().context("no time")?;
        Ok(nanos.parse::<f64>()? / 1e9)
    }
}

fn queries(load: Load, round: usize) -> String {
    let lines = |count: usize, name: &dyn Fn(usize) -> String| {
        (0..count).map(|i| format!("{} A\n", name(i))).collect()
    };
    match load {
        Load::Local | Load::LocalFromGuest => lines(NAMES, &|i| format!("n{i}.lab.test")),
        Load::Cached => lines(NAMES, &|i| format!("n{i}.example")),
        Load::Uncached => lines(UNIQUE, &|i| format!("u{round}-{i}.example")),
    }
}

fn dnsmasq(host: &DnsHost, address: &str, options: &[&str]) -> anyhow::Result<Proc> {
    let listen = format!("--listen-address={address}");
    let fixed = [
        "dnsmasq",
        "-k",
        "-C",
        "/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--server=10.94.70.53",
        "--local-ttl=10",
        "--log-facility=-",
        "--pid-file=",
        &listen,
    ];
    let dnsmasq = host.ns.spawn(&[&fixed, options].concat())?;
    dnsmasq.wait_log("started", Duration::from_secs(10))?;
    Ok(dnsmasq)
}

/// One that keeps nothing, on an address of its own.
fn dnsmasq_without_cache(host: &DnsHost) -> anyhow::Result<Proc> {
    host.ns.ip("addr add 10.94.3.1/32 dev br2")?;
    dnsmasq(host, "10.94.3.1", &["--cache-size=0"])
}

/// The scheduler's book of our DNS thread.
fn our_thread() -> anyhow::Result<String> {
    for task in fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm"))?.trim() == "dns" {
            return Ok(path.join("schedstat").display().to_string());
        }
    }
    anyhow::bail!("the DNS thread is gone")
}
