//! The usual places of a test: a host on an internet, and machines plugged into the host's networks.
//!
//! ```text
//!   internet                          host                     machines (namespaces that play guests)
//!   www.example.org 203.0.113.80      netd                     alice   bob
//!   name server     198.51.100.1 ---- 198.51.100.2 | bridge -----+-------+
//! ```

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::http::Web;
use crate::{Lease, Netd, Ns, Proc, Udhcpc, wait_for};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(15);

/// The router of the host, and its name server. The addresses are those kept for documentation (RFC 5737).
pub const GATEWAY: &str = "198.51.100.1";
/// The host's address outside.
pub const HOST: &str = "198.51.100.2";
/// A web server far away, `www.example.org`.
pub const WWW: &str = "203.0.113.80";

/// A host, and the internet that it is on.
#[derive(Debug)]
pub struct World {
    /// Where netd runs.
    pub host: Ns,
    /// Everything beyond.
    pub internet: Ns,
    www: Web,
    names: Proc,
}

impl World {
    /// Makes both. The internet routes nothing back to private addresses, as the real one.
    pub fn new() -> anyhow::Result<Self> {
        let (host, internet) = (Ns::new("host")?, Ns::new("internet")?);
        host.link("eth0", &internet, "uplink")?;
        host.ip(&format!("addr add {HOST}/24 dev eth0"))?;
        host.ip(&format!("route add default via {GATEWAY}"))?;
        host.resolv_conf(&format!("nameserver {GATEWAY}\n"))?;
        internet.ip(&format!("addr add {GATEWAY}/24 dev uplink"))?;
        internet.ip(&format!("addr add {WWW}/32 dev lo"))?;
        let www = Web::start(&internet, "www.example.org", &format!("{WWW}:80"))?;
        let record = format!("--host-record=www.example.org,{WWW}");
        let listen = format!("--listen-address={GATEWAY}");
        // -d: in the foreground and as who we are; a user namespace has nobody else.
        let fixed = [
            "dnsmasq",
            "-d",
            "-C",
            "/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--log-queries",
        ];
        let names = internet.spawn(&[&fixed[..], &[&listen, &record]].concat())?;
        names.wait_log("started", Duration::from_secs(10))?;
        Ok(Self {
            host,
            internet,
            www,
            names,
        })
    }

    /// What the internet's name server was asked.
    #[must_use]
    pub fn asked(&self) -> String {
        self.names.log()
    }

    /// Where the web server listens.
    #[must_use]
    pub fn www(&self) -> std::net::SocketAddr {
        self.www.address()
    }
}

/// A namespace that plays a guest: plugged into a network of netd by a veth pair (`--kind external`).
#[derive(Debug)]
pub struct Machine {
    /// Its insides; the card is `eth0`.
    pub ns: Ns,
    /// The port's name, and the host name it sends.
    pub name: String,
    /// Its MAC.
    pub mac: String,
    /// The host's end of the veth pair.
    pub interface: String,
    /// What `vnet port attach` answered.
    pub port: Value,
}

impl Machine {
    /// Attaches a new machine to a network. `more` are further arguments of `vnet port attach`.
    pub fn plug(netd: &Netd, network: &str, name: &str, more: &[&str]) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let mac = format!(
            "52:54:00:ee:00:{:02x}",
            COUNT.fetch_add(1, Ordering::Relaxed) & 0xff
        );
        let interface = format!("p-{name}");
        let ns = Ns::new(name)?;
        netd.ns().link(&interface, &ns, "eth0")?;
        ns.ip(&format!("link set eth0 address {mac}"))?;
        let fixed = [
            "port",
            "attach",
            network,
            name,
            "--kind",
            "external",
            "--interface",
            &interface,
        ];
        let mac_given = if more.contains(&"--mac") {
            &[][..]
        } else {
            &["--mac", &mac]
        };
        let port = netd.json(&[&fixed[..], mac_given, more].concat())?;
        Ok(Self {
            ns,
            name: name.to_owned(),
            mac,
            interface,
            port,
        })
    }

    /// The address that netd keeps for it.
    pub fn address(&self) -> anyhow::Result<Ipv4Addr> {
        let first = self.port["addresses"].get(0).and_then(Value::as_str);
        Ok(first
            .with_context(|| format!("no address in {}", self.port))?
            .parse()?)
    }

    /// Asks for a lease with udhcpc, and keeps the address.
    pub fn lease(&self) -> anyhow::Result<Lease> {
        self.client()?.lease()
    }

    /// A udhcpc for its card that sends its name.
    pub fn client(&self) -> anyhow::Result<Udhcpc<'_>> {
        Ok(Udhcpc::on(&self.ns, "eth0")?.hostname(&self.name))
    }

    /// One ping; whether it was answered.
    pub fn pings(&self, target: &str) -> anyhow::Result<bool> {
        Ok(self
            .ns
            .run(&["ping", "-c", "1", "-W", "1", target])?
            .success())
    }

    /// Waits until a ping is answered.
    pub fn reaches(&self, target: &str) -> anyhow::Result<()> {
        reaches(&self.ns, target)
    }

    /// Waits until the network's name server answers this, and nothing else.
    pub fn finds(&self, server: &str, what: &[&str], wanted: &str) -> anyhow::Result<()> {
        finds(&self.ns, server, what, wanted)
    }

    /// Fetches a page of a [`Web`]; an error when nothing answers.
    pub fn fetch(&self, url: &str) -> anyhow::Result<String> {
        fetch(&self.ns, url)
    }

    /// Asks the network's name server; the answers, one a line.
    pub fn dig(&self, server: &str, what: &[&str]) -> anyhow::Result<String> {
        dig(&self.ns, server, what)
    }
}

fn dig(ns: &Ns, server: &str, what: &[&str]) -> anyhow::Result<String> {
    let at = format!("@{server}");
    let fixed = ["dig", "+short", "+tries=2", "+time=2", &at];
    let ran = ns.run(&[&fixed[..], what].concat())?;
    Ok(ran.ok()?.trim().to_owned())
}

/// Waits until a name server answers this, and nothing else: a route to it, or the name, may be on its way.
pub fn finds(ns: &Ns, server: &str, what: &[&str], wanted: &str) -> anyhow::Result<()> {
    wait_for(&format!("{what:?} to be `{wanted}`"), PATIENCE, || {
        let got = dig(ns, server, what)?;
        anyhow::ensure!(got == wanted, "`{got}`");
        Ok(())
    })
}

/// Waits until a ping out of a namespace is answered.
pub fn reaches(ns: &Ns, target: &str) -> anyhow::Result<()> {
    wait_for(&format!("a ping to {target}"), PATIENCE, || {
        let ran = ns.run(&["ping", "-c", "1", "-W", "1", target])?;
        anyhow::ensure!(ran.success(), "no answer");
        Ok(())
    })
}

/// Fetches a page in a namespace, without waiting long for nobody.
pub fn fetch(ns: &Ns, url: &str) -> anyhow::Result<String> {
    ns.run(&[
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "--connect-timeout",
        "3",
        "--max-time",
        "6",
        url,
    ])?
    .ok()
}

/// Pings that are counted: every one must be answered, whatever is done meanwhile.
#[derive(Debug)]
pub struct Stream(Proc);

impl Stream {
    /// `count` pings from a namespace, a hundred a second.
    pub fn start(ns: &Ns, target: &str, count: u32) -> anyhow::Result<Self> {
        let process = ns.spawn(&["ping", "-i", "0.01", "-c", &count.to_string(), target])?;
        process.wait_log("icmp_seq=3 ", Duration::from_secs(5))?;
        Ok(Self(process))
    }

    /// Is it still pinging? What was done before this is true was done under traffic.
    pub fn runs(&mut self) -> bool {
        self.0.ended().is_none()
    }

    /// Waits for its end; an error if a packet was lost.
    pub fn unharmed(mut self) -> anyhow::Result<()> {
        self.0.wait(Duration::from_secs(60))?;
        let log = self.0.log();
        let summary = log
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .context("no summary")?;
        anyhow::ensure!(
            summary.contains(" 0% packet loss") && !summary.contains("duplicate"),
            "{summary}"
        );
        Ok(())
    }
}
