//! The DNS service alone, in a namespace of its own: no daemon, no firewall; guests are namespaces on its bridges.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use vnet_core::config::{Fill, native};
use vnet_core::dns::{Change, NameChange, Zone};
use vnet_core::model::World;
use vnet_core::serve::dns::{Dns, Setup, Stats};
use vnet_core::types::{IfName, Mac, NetworkName};

use crate::Ns;

/// A host with the DNS service, and its networks.
pub struct DnsHost {
    /// The host's namespace.
    pub ns: Ns,
    /// The service, living in it.
    pub dns: Dns,
    /// What it was told.
    pub world: World,
    resolv_conf: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl DnsHost {
    /// A host whose resolv.conf says this.
    pub fn new(label: &str, resolv_conf: &str) -> anyhow::Result<Self> {
        Self::trusting(label, resolv_conf, None)
    }

    /// The same, with certificates of its own to trust.
    pub fn trusting(
        label: &str,
        resolv_conf: &str,
        authorities: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        Self::with(Ns::new(label)?, resolv_conf, authorities, None)
    }

    /// The same in a namespace that is there, where something else may live already.
    pub fn with(
        ns: Ns,
        resolv_conf: &str,
        authorities: Option<PathBuf>,
        bus: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let path = ns.scratch().write("resolv.conf", resolv_conf)?;
        let dns = ns.enter(|| {
            Dns::start(Setup {
                resolv_conf: path.clone(),
                authorities,
                bus,
                cache: None,
            })
        })??;
        Ok(Self {
            ns,
            dns,
            world: World::default(),
            resolv_conf: path,
            runtime: tokio::runtime::Builder::new_current_thread().build()?,
        })
    }

    /// Makes the bridge of a network, then serves the network. The errors are the service's.
    pub fn network(&mut self, toml: &str) -> anyhow::Result<Vec<(NetworkName, String)>> {
        let docs = native::from_toml(toml).map_err(|e| anyhow!("{e}"))?;
        let mut wanted = Vec::new();
        for doc in &docs {
            let serial = u8::try_from(self.world.networks.len() + 1)?;
            let known = self
                .world
                .networks
                .values()
                .find(|n| n.name.as_str() == doc.name);
            let bridge = match known {
                Some(network) => network.bridge.name.clone(),
                None => format!("br{serial}").parse::<IfName>()?,
            };
            let fill = Fill {
                uuid: "5b1c0d4e-0d4e-4b1c-8d4e-5b1c0d4e0d4e".parse()?,
                bridge,
                mac: Mac::virtual_machine([0, 0, serial]),
                subnets: Vec::new(),
            };
            let network = doc.settle(&fill).map_err(|e| anyhow!("{e}"))?;
            let bridge = network.bridge.name.clone();
            if self
                .world
                .networks
                .insert(network.name.clone(), network.clone())
                .is_none()
            {
                self.ns.ip(&format!("link add {bridge} type bridge"))?;
                self.ns.ip(&format!("link set {bridge} up"))?;
                for subnet in &network.subnets4 {
                    self.ns
                        .ip(&format!("addr add {} dev {bridge}", subnet.address))?;
                }
                for subnet in &network.subnets6 {
                    self.ns
                        .ip(&format!("addr add {} dev {bridge} nodad", subnet.address))?;
                }
            }
            self.world.active.insert(network.name.clone());
            wanted.push((network.name, bridge));
        }
        let wanted = wanted
            .into_iter()
            .map(|(name, bridge)| (name.clone(), Zone::of(&self.world, &name), bridge))
            .collect();
        Ok(self.runtime.block_on(self.dns.configure(wanted)))
    }

    /// Stops serving a network.
    pub fn stop(&mut self, network: &str) -> anyhow::Result<()> {
        let name: NetworkName = network.parse()?;
        let bridge = self.world.networks.get(&name).context("no such network")?;
        let wanted = vec![(name, None, bridge.bridge.name.clone())];
        self.runtime.block_on(self.dns.configure(wanted));
        Ok(())
    }

    /// A lease comes or goes.
    pub fn lease(
        &self,
        network: &str,
        name: &str,
        address: &str,
        change: Change,
    ) -> anyhow::Result<()> {
        let change = NameChange {
            name: name.parse()?,
            address: address.parse::<IpAddr>()?,
            change,
        };
        self.dns.names(network.parse()?, vec![change]);
        Ok(())
    }

    /// A guest on a bridge, with its address (and no route but the bridge).
    pub fn guest(&self, bridge: &str, label: &str, address: &str) -> anyhow::Result<Ns> {
        let guest = Ns::new(label)?;
        let end: String = format!("v{label}").chars().take(15).collect();
        self.ns.link(&end, &guest, "eth0")?;
        self.ns.ip(&format!("link set {end} master {bridge}"))?;
        guest.ip(&format!("addr add {address} dev eth0"))?;
        Ok(guest)
    }

    /// Another resolv.conf, in place.
    pub fn resolv_conf(&self, content: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(&self.resolv_conf, content)?)
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.runtime.block_on(self.dns.stats())
    }
}

/// `dig ARGS` as a guest: one try, a short wait.
pub fn dig(guest: &Ns, args: &str) -> anyhow::Result<String> {
    guest.sh(&format!("dig +tries=1 +time=3 {args}"))
}

/// `dig +short ARGS`, without the final line feed.
pub fn short(guest: &Ns, args: &str) -> anyhow::Result<String> {
    Ok(dig(guest, &format!("+short {args}"))?.trim_end().to_owned())
}

/// An upstream of dnsmasq's: a namespace beyond the host, and what it was asked.
pub struct Upstream {
    /// Where it runs.
    pub ns: Ns,
    server: Option<crate::Proc>,
    address: String,
    options: Vec<String>,
    starts: u32,
}

impl Upstream {
    /// A dnsmasq at `address`, reached from the host over a link of its own.
    pub fn new(
        host: &DnsHost,
        label: &str,
        address: &str,
        options: &[&str],
    ) -> anyhow::Result<Self> {
        Self::quiet(
            host,
            label,
            address,
            &[options, &["--log-queries"]].concat(),
        )
    }

    /// The same without a log of what it was asked, for speed.
    pub fn quiet(
        host: &DnsHost,
        label: &str,
        address: &str,
        options: &[&str],
    ) -> anyhow::Result<Self> {
        let ns = Ns::new(label)?;
        let end: String = format!("u{label}").chars().take(15).collect();
        host.ns.link(&end, &ns, "eth0")?;
        let (prefix, _) = address.rsplit_once('.').context("an IPv4 address")?;
        host.ns.ip(&format!("addr add {prefix}.254/24 dev {end}"))?;
        ns.ip(&format!("addr add {address}/24 dev eth0"))?;
        let mut upstream = Self {
            ns,
            server: None,
            address: address.to_owned(),
            options: options.iter().map(ToString::to_string).collect(),
            starts: 0,
        };
        upstream.start()?;
        Ok(upstream)
    }

    /// Starts it (again).
    pub fn start(&mut self) -> anyhow::Result<()> {
        let listen = format!("--listen-address={}", self.address);
        let mut argv = vec![
            "dnsmasq",
            "-k",
            "-C",
            "/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--cache-size=0",
            "--log-facility=-",
            &listen,
        ];
        argv.extend(self.options.iter().map(String::as_str));
        let server = self.ns.spawn(&argv)?;
        server.wait_log("started", std::time::Duration::from_secs(10))?;
        self.starts += 1;
        self.server = Some(server);
        Ok(())
    }

    /// Stops it: its port is closed.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// How often the log holds a text (a name that was asked).
    #[must_use]
    pub fn asked(&self, text: &str) -> usize {
        let log = self
            .server
            .as_ref()
            .map(crate::Proc::log)
            .unwrap_or_default();
        log.to_ascii_lowercase().matches(text).count()
    }
}
