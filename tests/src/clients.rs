//! The DHCP clients that real machines run, each in a namespace with files of its own.
//!
//! They configure the interface by small scripts of ours: address and default route, never the machine's resolv.conf.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

use crate::process::{PATIENCE, Proc};
use crate::{Ns, Scratch, tool, wait_for};

/// What a client learnt, under the names that its script is given (`router`, `dns`, `lease`, ...).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub ip: Ipv4Addr,
    /// Everything, the address too.
    pub values: BTreeMap<String, String>,
}

impl Lease {
    /// One value; empty if it was not given.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    fn parse(env: &str, prefix: &str, address: &str) -> Option<Self> {
        let lines = env
            .lines()
            .filter_map(|line| line.strip_prefix(prefix)?.split_once('='));
        let values: BTreeMap<_, _> = lines
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Some(Self {
            ip: values.get(address)?.parse().ok()?,
            values,
        })
    }
}

/// busybox' client, the one of small guests and of Alpine.
#[derive(Debug)]
pub struct Udhcpc<'n> {
    ns: &'n Ns,
    interface: String,
    scratch: Scratch,
    args: Vec<String>,
}

impl<'n> Udhcpc<'n> {
    /// A client for an interface of the namespace.
    pub fn on(ns: &'n Ns, interface: &str) -> anyhow::Result<Self> {
        let scratch = Scratch::new("udhcpc")?;
        let lease = scratch.join("lease");
        scratch.script(
            "script",
            &UDHCPC.replace("@LEASE@", &lease.display().to_string()),
        )?;
        Ok(Self {
            ns,
            interface: interface.to_owned(),
            scratch,
            args: Vec::new(),
        })
    }

    /// The host name that it sends.
    #[must_use]
    pub fn hostname(self, name: &str) -> Self {
        let option = format!("hostname:{name}");
        self.args(&["-x", &option])
    }

    /// More arguments (`-r 10.0.0.5`, `-O mtu`, `-B`).
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Gets one lease and ends; the address stays on the interface.
    pub fn lease(&self) -> anyhow::Result<Lease> {
        let mut command = self.command()?;
        command.args(["-n", "-q"]);
        let _ = fs::remove_file(self.scratch.join("lease"));
        self.ns.run_command(command, PATIENCE)?.ok()?;
        self.current().context("udhcpc ended without a lease")
    }

    /// Starts it as a daemon that renews its lease; it releases the lease when told `SIGUSR2`, renews at `SIGUSR1`.
    pub fn start(&self) -> anyhow::Result<Proc> {
        self.ns.spawn_command(self.command()?)
    }

    /// The lease that it holds now.
    #[must_use]
    pub fn current(&self) -> Option<Lease> {
        Lease::parse(
            &fs::read_to_string(self.scratch.join("lease")).ok()?,
            "",
            "ip",
        )
    }

    /// Waits until a started client holds a lease.
    pub fn bound(&self) -> anyhow::Result<Lease> {
        wait_for("a lease of udhcpc", PATIENCE, || {
            self.current().ok_or("none")
        })
    }

    fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(tool::find("busybox").context("busybox is not installed")?);
        command.args([
            "udhcpc",
            "-f",
            "-i",
            &self.interface,
            "-t",
            "20",
            "-T",
            "1",
            "-A",
            "1",
            "-s",
        ]);
        command.arg(self.scratch.join("script")).args(&self.args);
        Ok(command)
    }
}

const UDHCPC: &str = r#"#!/bin/sh
case $1 in
deconfig) rm -f @LEASE@; ip -4 addr flush dev "$interface"; ip link set "$interface" up ;;
bound | renew)
	ip addr replace "$ip/${mask:-24}" broadcast + dev "$interface"
	for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; break; done
	env >@LEASE@.new && mv @LEASE@.new @LEASE@ ;;
esac
exit 0
"#;

/// ISC's client, the one of older Debian and Red Hat machines.
#[derive(Debug)]
pub struct Dhclient<'n> {
    ns: &'n Ns,
    interface: String,
    scratch: Scratch,
}

impl<'n> Dhclient<'n> {
    /// A client for an interface of the namespace; `config` is the content of its dhclient.conf.
    pub fn on(ns: &'n Ns, interface: &str, config: &str) -> anyhow::Result<Self> {
        let scratch = Scratch::new("dhclient")?;
        let lease = scratch.join("lease");
        scratch.script(
            "script",
            &DHCLIENT.replace("@LEASE@", &lease.display().to_string()),
        )?;
        scratch.write("conf", config)?;
        Ok(Self {
            ns,
            interface: interface.to_owned(),
            scratch,
        })
    }

    /// Starts it in the foreground; it renews until it is dropped.
    pub fn start(&self) -> anyhow::Result<Proc> {
        let mut command = self.command();
        command.args(["-d", &self.interface]);
        self.ns.spawn_command(command)
    }

    /// Waits until a started client holds a lease. Values have dhclient's names without `new_` (`routers`, ...).
    pub fn bound(&self) -> anyhow::Result<Lease> {
        wait_for("a lease of dhclient", PATIENCE, || {
            self.current().ok_or("none")
        })
    }

    /// The lease that it holds now.
    #[must_use]
    pub fn current(&self) -> Option<Lease> {
        Lease::parse(
            &fs::read_to_string(self.scratch.join("lease")).ok()?,
            "new_",
            "ip_address",
        )
    }

    /// Ends a started client by `dhclient -r`: the lease is released.
    pub fn release(&self) -> anyhow::Result<()> {
        let mut command = self.command();
        command.args(["-r", &self.interface]);
        self.ns.run_command(command, PATIENCE)?.ok().map(drop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("dhclient");
        command
            .args(["-4", "-v", "-sf"])
            .arg(self.path("script"))
            .arg("-cf")
            .arg(self.path("conf"));
        command
            .arg("-lf")
            .arg(self.path("leases"))
            .arg("-pf")
            .arg(self.path("pid"));
        command
    }
}

const DHCLIENT: &str = r#"#!/bin/sh
case $reason in
PREINIT) ip link set "$interface" up ;;
BOUND | RENEW | REBIND | REBOOT)
	ip addr replace "$new_ip_address/$new_subnet_mask" broadcast + dev "$interface"
	for gateway in $new_routers; do ip route replace default via "$gateway" dev "$interface"; break; done
	env >@LEASE@.new && mv @LEASE@.new @LEASE@ ;;
EXPIRE | FAIL | RELEASE | STOP) rm -f @LEASE@; ip -4 addr flush dev "$interface" ;;
esac
exit 0
"#;

/// The file that a client's script leaves: `name=value` lines.
#[must_use]
pub fn value(text: &str, name: &str) -> String {
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_default().to_owned()
}

/// ISC's client in DHCPv6 mode: what it learnt, once it is bound.
pub fn dhclient6(ns: &Ns, config: &str) -> anyhow::Result<(Proc, String)> {
    // It gives up at once on an interface that has no link-local address yet.
    wait_for("a link-local address", PATIENCE, || {
        let all = ns.ip("-6 -o addr show dev eth0 scope link")?;
        let usable = all.contains("fe80:") && !all.contains("tentative");
        anyhow::ensure!(usable, "{all}");
        Ok(())
    })?;
    let files = ns.scratch();
    let learnt = files.join("learnt");
    let script = format!(
        "#!/bin/sh\ncase $reason in\nBOUND6|RENEW6|REBIND6) ip -6 addr replace $new_ip6_address/128 dev $interface\n\
         env >{0}.new; mv {0}.new {0};;\nesac\nexit 0\n",
        learnt.display()
    );
    let script = files.script("script", &script)?;
    let config = files.write("conf", config)?;
    let paths = [script, config, files.join("leases"), files.join("pid")];
    let [script, config, leases, pid] = paths.map(|p| p.display().to_string());
    let proc = ns.spawn(&[
        "dhclient", "-6", "-d", "-v", "-sf", &script, "-cf", &config, "-lf", &leases, "-pf", &pid,
        "eth0",
    ])?;
    let text = wait_for("a lease of dhclient -6", PATIENCE, || {
        std::fs::read_to_string(&learnt).with_context(|| proc.log())
    })?;
    Ok((proc, text))
}
