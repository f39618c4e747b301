//! The servers, each on a bridge in a namespace of its own, with the clients' namespace behind one port of it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::{Ns, Proc, daemon::binary};
use vnet_core::lease::{Change, Client, LeaseRecord, LeaseState, Time};
use vnet_core::store::LeaseLog;
use vnet_core::types::Mac;

/// The server's address.
pub(crate) const SERVER: &str = "10.60.0.1";
const CLIENTS: &str = "10.60.0.2";
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Dnsmasq,
    Kea,
    Netd,
}

impl Peer {
    pub(crate) const ALL: [Self; 3] = [Self::Dnsmasq, Self::Kea, Self::Netd];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Dnsmasq => "dnsmasq",
            Self::Kea => "Kea",
            Self::Netd => "netd",
        }
    }
}

/// A server that answers, and whoever asks it.
pub(crate) struct Lab {
    _server: Proc,
    pub(crate) clients: Ns,
    _host: Ns,
}

impl Lab {
    /// A server with a /16 and nothing in its store.
    pub(crate) fn new(peer: Peer) -> anyhow::Result<Self> {
        Self::start(peer, 16, 0)
    }

    /// One with twice the room, and leases of other clients in its store (netd only).
    pub(crate) fn wide(peer: Peer, present: u32) -> anyhow::Result<Self> {
        Self::start(peer, 15, present)
    }

    fn start(peer: Peer, prefix: u8, present: u32) -> anyhow::Result<Self> {
        let (host, clients) = (Ns::new("server")?, Ns::new("clients")?);
        // Where br_netfilter is loaded, as for Docker, every bridged frame goes through iptables too, and that is a tenth
        // of perfdhcp's one core. Elsewhere there is no such switch.
        host.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0 2>/dev/null || true")?;
        host.link("p0", &clients, "eth0")?;
        clients.ip(&format!("addr add {CLIENTS}/{prefix} dev eth0"))?;
        let server = match peer {
            Peer::Netd => netd(&host, prefix, present)?,
            Peer::Kea | Peer::Dnsmasq => {
                host.ip("link add br0 type bridge")?;
                host.ip(&format!("addr add {SERVER}/{prefix} dev br0"))?;
                host.ip("link set br0 up")?;
                match peer {
                    Peer::Kea => kea(&host)?,
                    Peer::Dnsmasq | Peer::Netd => dnsmasq(&host)?,
                }
            }
        };
        host.ip("link set p0 master br0")?;
        clients.sh(&format!(
            "for i in 1 2 3 4 5; do ping -c1 -W1 {SERVER} && exit; done; exit 1"
        ))?;
        Ok(Self {
            _server: server,
            clients,
            _host: host,
        })
    }
}

fn netd(host: &Ns, prefix: u8, present: u32) -> anyhow::Result<Proc> {
    let last = if prefix == 16 { 60 } else { 61 };
    let document = format!(
        "name = \"lab\"\nforward = {{ mode = \"open\" }}\nbridge = {{ name = \"br0\" }}\n\
         [[subnet]]\naddress = \"{SERVER}/{prefix}\"\n\
         [subnet.dhcp]\nranges = [\"10.60.1.0-10.{last}.255.250\"]\n\
         relays = [\"{CLIENTS}\"]\n"
    );
    let scratch = host.scratch();
    for folder in ["state", "networks"] {
        fs::create_dir(scratch.join(folder))?;
    }
    fs::write(scratch.join("networks/lab.toml"), document)?;
    fill(&scratch.join("state/leases"), present)?;
    let mut command = Command::new(binary("netd")?);
    command.arg("--state-dir").arg(scratch.join("state"));
    command.arg("--run-dir").arg(scratch.join("run"));
    command.arg("--config").arg(scratch.join("networks"));
    command.arg("--no-default").env("RUST_LOG", "warn");
    let server = host.spawn_command(command)?;
    server.wait_log("network lab:", PATIENCE)?;
    Ok(server)
}

/// Leases of clients that perfdhcp does not play.
fn fill(folder: &Path, present: u32) -> anyhow::Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let now = Time::from_secs(now.as_secs());
    let first = u32::from(Ipv4Addr::new(10, 60, 1, 0));
    let lease = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        let mac = Mac([2, 0, 0, a, b, c]);
        Ok(Change::Put(LeaseRecord {
            network: "lab".parse()?,
            address: Ipv4Addr::from(first + n).into(),
            state: LeaseState::Held,
            client: Client::Mac(mac),
            mac: Some(mac),
            client_id: None,
            via: None,
            hostname: None,
            granted: now,
            expires: now.plus_secs(3600),
        }))
    };
    let changes: anyhow::Result<Vec<Change>> = (0..present).map(lease).collect();
    let (mut log, _) = LeaseLog::open(folder)?;
    Ok(log.commit(&changes?)?)
}

fn kea(host: &Ns) -> anyhow::Result<Proc> {
    let scratch = host.scratch();
    let leases = scratch.join("kea-leases4.csv");
    let config = serde_json::json!({ "Dhcp4": {
        "interfaces-config": { "interfaces": ["br0"] },
        "lease-database": { "type": "memfile", "persist": true, "name": leases },
        "valid-lifetime": 3600,
        "subnet4": [{
            "id": 1, "subnet": "10.60.0.0/16",
            "pools": [{ "pool": "10.60.1.0 - 10.60.255.250" }],
            "option-data": [{ "name": "routers", "data": SERVER }, { "name": "domain-name-servers", "data": SERVER }],
        }],
        "loggers": [{ "name": "kea-dhcp4", "severity": "INFO", "output_options": [{ "output": "stdout", "flush": true }] },
                    { "name": "kea-dhcp4.leases", "severity": "WARN", "output_options": [{ "output": "stdout" }] }],
    }});
    let file = scratch.write("kea.json", &config.to_string())?;
    let mut command = Command::new("kea-dhcp4");
    command.arg("-c").arg(file);
    command.env("KEA_PIDFILE_DIR", scratch.path());
    command.env("KEA_LOCKFILE_DIR", scratch.path());
    let server = host.spawn_command(command)?;
    server.wait_log("DHCP4_STARTED", PATIENCE)?;
    Ok(server)
}

fn dnsmasq(host: &Ns) -> anyhow::Result<Proc> {
    let leases = host.scratch().join("dnsmasq.leases");
    let server = host.spawn(&[
        "dnsmasq",
        "-d",
        "-C",
        "/dev/null",
        "--port=0",
        "--interface=br0",
        "--bind-interfaces",
        "--no-ping",
        "--dhcp-authoritative",
        "--quiet-dhcp",
        "--dhcp-lease-max=70000",
        "--dhcp-range=10.60.1.0,10.60.255.250,255.255.0.0,1h",
        &format!("--dhcp-leasefile={}", leases.display()),
    ])?;
    server.wait_log("started", PATIENCE)?;
    Ok(server)
}
