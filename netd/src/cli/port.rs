use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::Subcommand;

use super::output::{Out, line, note, pairs, segment, table, yes};
use super::{Client, Failure, Format};
use crate::wire::{DeviceView, DhcpShare, Outcome, PortRequest, PortView};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a plug for a guest: its MAC, its address at once, and its VMM's arguments
    Attach(Attach),
    /// Take a plug away, with its lease and names
    Detach(Which),
    /// Every port
    #[command(visible_alias = "ls")]
    List {
        /// Only of this network.
        network: Option<String>,
    },
    /// One port (-o qemu, cloud-hypervisor, crosvm: only the arguments)
    Show(Which),
    /// Run a command with the tap as an open file: `vnet port open default web -- qemu-system-x86_64 -netdev tap,id=n0,fd={fd} ...`
    Open(Open),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: qemu-system-x86_64 -m 1G disk.img $(vnet port attach default web -o qemu)"
)]
pub(super) struct Attach {
    /// The network (leave it out with --bridge), then the port's name, which is also the guest's DNS name.
    #[arg(required = true, num_args = 1..=2, value_names = ["NETWORK", "NAME"])]
    place: Vec<String>,
    /// On a plain bridge of the host, instead of a network.
    #[arg(long)]
    bridge: Option<String>,
    /// tap (a persistent tap), tap-fd (fetched with `vnet port open`), external (an interface that exists), vhost-user.
    #[arg(short, long)]
    kind: Option<String>,
    /// The guest's MAC; chosen when left out.
    #[arg(long)]
    mac: Option<String>,
    /// The guest's address (may be given more than once); the next free one when left out.
    #[arg(long)]
    ip: Vec<String>,
    /// A user who may open it without being root.
    #[arg(long)]
    owner: Option<String>,
    /// The host's interface: which one (external), or how to name the tap.
    #[arg(long)]
    interface: Option<String>,
    /// Hold the guest to its MAC and addresses: on (when left out) or off (for routers inside guests).
    #[arg(long, value_parser = on_off)]
    guard: Option<bool>,
    /// Keep it from the other isolated ports: on or off (the network's setting when left out).
    #[arg(long, value_parser = on_off, num_args = 0..=1, default_missing_value = "on")]
    isolated: Option<bool>,
    /// How many queues the tap can have; the VMM must then open it with as many.
    #[arg(long)]
    queues: Option<u16>,
    /// The most that comes in to the guest: 100mbit, 1gbit or 100mbit,burst=256k (vhost-user only).
    #[arg(long, value_name = "RATE")]
    rate_in: Option<String>,
    /// The most that the guest sends out, likewise.
    #[arg(long, value_name = "RATE")]
    rate_out: Option<String>,
}

fn on_off(text: &str) -> Result<bool, String> {
    match text {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err("use on or off".to_owned()),
    }
}

/// Which port: NETWORK NAME, or NETWORK/NAME; `bridge:br0` stands for a plain bridge.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// NETWORK NAME, or NETWORK/NAME (`bridge:br0` as the network is a plain bridge).
    #[arg(required = true, num_args = 1..=2, value_names = ["NETWORK", "NAME"])]
    place: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Open {
    /// NETWORK and NAME.
    #[arg(required = true, num_args = 2, value_names = ["NETWORK", "NAME"])]
    place: Vec<String>,
    /// How many queues of the tap to open: {fd} is the first, {fds} all, joined by colons, {fd-list} by commas.
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// The command; {fd}, {fds} and {fd-list} in it are replaced.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(super) fn run(verb: Verb, client: &Client, out: &Out) -> Result<(), Failure> {
    match verb {
        Verb::Attach(attach) => {
            let request = attach.request()?;
            let port: PortView = client.post("/v1/ports", &request)?;
            show(&port, out)
        }
        Verb::Detach(which) => {
            let (home, name) = which.split()?;
            let done: Outcome = client.delete(&path(&home, &name))?;
            done.notes.iter().for_each(|n| note(n));
            out.show(&done, || {
                format!("Port {name} of {home} is gone, with its lease and names")
            })
        }
        Verb::List { network } => {
            let query = network.map_or_else(String::new, |n| format!("?network={}", segment(&n)));
            let ports: Vec<PortView> = client.get(&format!("/v1/ports{query}"))?;
            out.show(&ports, || rows(&ports))
        }
        Verb::Show(which) => {
            let (home, name) = which.split()?;
            show(&client.get(&path(&home, &name))?, out)
        }
        Verb::Open(open) => open.run(client),
    }
}

fn path(home: &str, name: &str) -> String {
    format!("/v1/ports/{}/{}", segment(home), segment(name))
}

impl Which {
    fn split(self) -> Result<(String, String), Failure> {
        match self.place.as_slice() {
            [home, name] => Ok((home.clone(), name.clone())),
            [both] => both
                .rsplit_once('/')
                .map(|(home, name)| (home.to_owned(), name.to_owned()))
                .ok_or_else(|| Failure::Usage("say which: NETWORK NAME".to_owned())),
            _ => Err(Failure::Usage("say which: NETWORK NAME".to_owned())),
        }
    }
}

impl Attach {
    fn request(self) -> Result<PortRequest, Failure> {
        let (network, name) = match (self.place.as_slice(), &self.bridge) {
            ([network, name], None) => (Some(network.clone()), name.clone()),
            ([name], Some(_)) => (None, name.clone()),
            ([_], None) => {
                return Err(Failure::Usage("say where and how it is called: `vnet port attach NETWORK NAME`, or `--bridge br0 NAME`".to_owned()));
            }
            _ => {
                return Err(Failure::Usage(
                    "a port is on a network or on a bridge: leave the network out with --bridge"
                        .to_owned(),
                ));
            }
        };
        Ok(PortRequest {
            network,
            bridge: self.bridge,
            name,
            kind: self.kind,
            mac: self.mac,
            ip: self.ip,
            owner: self.owner,
            interface: self.interface,
            guard: self.guard,
            isolated: self.isolated,
            queues: self.queues,
            rate_in: self.rate_in,
            rate_out: self.rate_out,
        })
    }
}

/// What QEMU's line cannot know.
const MEMORY: &str =
    "the guest's memory is 1 GiB in this line: give QEMU -m 1G, or change size= to what -m says";

fn show(port: &PortView, out: &Out) -> Result<(), Failure> {
    match out.format {
        Format::Qemu => {
            if port.socket.is_some() {
                note(MEMORY);
            }
            line(&port.qemu)
        }
        Format::CloudHypervisor => line(&port.cloud_hypervisor),
        Format::Crosvm => line(&port.crosvm),
        Format::Table | Format::Json | Format::Toml => out.show(port, || describe(port)),
    }
}

fn describe(port: &PortView) -> String {
    let addresses: Vec<_> = port.addresses.iter().map(ToString::to_string).collect();
    pairs(&[
        ("Port", port.port.clone()),
        ("Kind", port.kind.clone()),
        ("Interface", port.interface.clone()),
        ("MAC", port.mac.clone()),
        ("Address", addresses.join(" ")),
        ("DNS name", port.dns_name.clone().unwrap_or_default()),
        ("Guard", if port.guard { "on" } else { "off" }.to_owned()),
        ("Isolated", yes(port.isolated)),
        ("Rate in", port.rate_in.clone().unwrap_or_default()),
        ("Rate out", port.rate_out.clone().unwrap_or_default()),
        (
            "State",
            if port.live {
                "live"
            } else {
                "waits for its network to start"
            }
            .to_owned(),
        ),
        ("DHCP", port.dhcp.as_ref().map_or_else(String::new, dhcp)),
        ("Socket", port.socket.clone().unwrap_or_default()),
        (
            "Device",
            port.device.as_ref().map_or_else(String::new, device),
        ),
        (
            "Counted",
            port.device
                .as_ref()
                .map_or_else(String::new, |d| counted(&d.counters)),
        ),
        (
            "Dropped",
            port.device
                .as_ref()
                .map_or_else(String::new, |d| counted(&d.drops)),
        ),
        ("QEMU", port.qemu.clone()),
        (
            "Memory",
            port.socket
                .as_ref()
                .map_or_else(String::new, |_| MEMORY.to_owned()),
        ),
        ("cloud-hypervisor", port.cloud_hypervisor.clone()),
        ("crosvm", port.crosvm.clone()),
    ])
}

fn device(device: &DeviceView) -> String {
    let state = match (device.connected, device.running) {
        (false, _) => "no VMM is connected",
        (true, false) => "a VMM is connected, its guest takes no frames",
        (true, true) => "running",
    };
    let link = (!device.link).then(|| "its cable is pulled".to_owned());
    let stopped = device.stopped.iter();
    let stopped = stopped.map(|(queue, why)| format!("queue {queue} stopped: {why}"));
    let all: Vec<_> = [state.to_owned()]
        .into_iter()
        .chain(link)
        .chain(stopped)
        .collect();
    all.join("; ")
}

fn counted(counters: &BTreeMap<String, u64>) -> String {
    let all: Vec<_> = counters
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    all.join(", ")
}

fn dhcp(share: &DhcpShare) -> String {
    let addresses = match share.addresses {
        1 => "1 address".to_owned(),
        n => format!("{n} addresses"),
    };
    let refused = share.refusals();
    if refused.is_empty() {
        return addresses;
    }
    format!("{addresses}; refused {}", refused.join(", "))
}

fn rows(ports: &[PortView]) -> String {
    if ports.is_empty() {
        return "No ports: `vnet port attach NETWORK NAME` makes one.".to_owned();
    }
    table(
        [
            "PORT",
            "KIND",
            "INTERFACE",
            "MAC",
            "ADDRESS",
            "GUARD",
            "STATE",
        ],
        ports.iter().map(|p| {
            let addresses: Vec<_> = p.addresses.iter().map(ToString::to_string).collect();
            [
                p.port.clone(),
                p.kind.clone(),
                p.interface.clone(),
                p.mac.clone(),
                if addresses.is_empty() {
                    "-".to_owned()
                } else {
                    addresses.join(" ")
                },
                if p.guard { "on" } else { "off" }.to_owned(),
                if p.live { "live" } else { "waiting" }.to_owned(),
            ]
        }),
    )
}

impl Open {
    /// Fetches the tap and becomes the command, which inherits it.
    fn run(self, client: &Client) -> Result<(), Failure> {
        let key = format!("{}/{}", self.place[0], self.place[1]);
        let fds = crate::api::fetch_tap(&client.fd_socket(), &key, self.queues)
            .map_err(|e| Failure::Refused(e.to_string()))?;
        for fd in &fds {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
                .map_err(|e| Failure::Broken(e.to_string()))?;
        }
        let numbers: Vec<_> = fds
            .iter()
            .map(|fd: &OwnedFd| fd.as_raw_fd().to_string())
            .collect();
        let fill = |word: &String| {
            word.replace("{fds}", &numbers.join(":"))
                .replace("{fd-list}", &numbers.join(","))
                .replace("{fd}", &numbers[0])
        };
        let words: Vec<_> = self.command.iter().map(fill).collect();
        let error = Command::new(&words[0]).args(&words[1..]).exec();
        Err(Failure::Broken(format!(
            "`{}` cannot be run: {error}",
            words[0]
        )))
    }
}
