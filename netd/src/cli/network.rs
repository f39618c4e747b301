use std::path::PathBuf;
use std::process::Command;

use clap::Subcommand;
use serde::Serialize;
use vnet_core::config::native::{
    BridgeDoc, DhcpDoc, DomainDoc, ForwardDoc, NetworkDoc, RangeDoc, SubnetDoc, from_toml,
};

use super::output::{Out, line, note, pairs, segment, table, yes};
use super::{Client, Failure, Format, apply};
use crate::wire::{ApplyRequest, NetworkView, Outcome};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Every network
    #[command(visible_alias = "ls")]
    List,
    /// One network, whole (-o toml: as a document to edit and apply)
    Show {
        /// Its name.
        name: String,
    },
    /// Create a network and start it; a name is enough
    Create(Create),
    /// Change a running network in your editor; guests stay connected
    Edit {
        /// Its name.
        name: String,
    },
    /// Make the networks of a file or folder true
    Apply(apply::Args),
    /// Start a network: its ports come back with it
    Start {
        /// Its name.
        name: String,
    },
    /// Stop a network; ports and leases are kept for its next start
    Stop {
        /// Its name.
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        /// Every network.
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Stop and start
    Restart {
        /// Its name.
        name: String,
    },
    /// Stop a network and forget it, its ports and its leases
    #[command(visible_alias = "rm")]
    Delete {
        /// Its name.
        name: String,
    },
    /// Start with the daemon, or not
    Autostart {
        /// Its name.
        name: String,
        /// Do not start it with the daemon.
        #[arg(long)]
        off: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    /// Its name; not needed with a file.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// A document with the network.
    #[arg(short, long, conflicts_with_all = ["name", "subnet", "mode", "domain", "bridge", "no_dhcp"])]
    file: Option<PathBuf>,
    /// The gateway's address and prefix, like 10.50.0.1/24 (may be given more than once); a free one when left out.
    #[arg(short, long)]
    subnet: Vec<String>,
    /// nat, routed, isolated, open, or bridge (join a bridge of the host, given by --bridge).
    #[arg(short, long, default_value = "nat")]
    mode: String,
    /// The DNS domain of its guests.
    #[arg(short, long)]
    domain: Option<String>,
    /// The bridge's name; a free one when left out.
    #[arg(short, long)]
    bridge: Option<String>,
    /// No DHCP.
    #[arg(long)]
    no_dhcp: bool,
    /// Do not start it.
    #[arg(long)]
    no_start: bool,
}

pub(super) fn run(verb: Verb, client: &Client, out: &Out) -> Result<(), Failure> {
    match verb {
        Verb::List => list(client, out),
        Verb::Show { name } => show(&name, client, out),
        Verb::Create(create) => create.run(client, out),
        Verb::Edit { name } => edit(&name, client, out),
        Verb::Apply(args) => apply::run(&args, client, out),
        Verb::Start { name } => order(&name, "start", "started", client, out),
        Verb::Stop {
            name: Some(name), ..
        } => order(&name, "stop", "stopped", client, out),
        Verb::Stop { name: None, .. } => stop_all(client, out),
        Verb::Restart { name } => order(&name, "restart", "restarted", client, out),
        Verb::Delete { name } => {
            let done: Outcome = client.delete(&path(&name, ""))?;
            tell(&done, &format!("Network {name} deleted"), out)
        }
        Verb::Autostart { name, off } => autostart(&name, !off, client, out),
    }
}

fn path(name: &str, verb: &str) -> String {
    let slash = if verb.is_empty() { "" } else { "/" };
    format!("/v1/networks/{}{slash}{verb}", segment(name))
}

fn tell(done: &Outcome, text: &str, out: &Out) -> Result<(), Failure> {
    done.notes.iter().for_each(|n| note(n));
    out.show(done, || text.to_owned())
}

fn order(name: &str, verb: &str, past: &str, client: &Client, out: &Out) -> Result<(), Failure> {
    let done: Outcome = client.post(&path(name, verb), &())?;
    let text = if done.changed.is_empty() {
        format!("Network {name} was {past} already")
    } else {
        format!("Network {name} {past}")
    };
    tell(&done, &text, out)
}

fn stop_all(client: &Client, out: &Out) -> Result<(), Failure> {
    let done: Outcome = client.post("/v1/stop-all", &())?;
    let text = match done.changed.as_slice() {
        [] => "No network was running".to_owned(),
        names => format!("Stopped {}", names.join(", ")),
    };
    tell(&done, &text, out)
}

fn autostart(name: &str, on: bool, client: &Client, out: &Out) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Body {
        on: bool,
    }
    let done: Outcome = client.post(&path(name, "autostart"), &Body { on })?;
    let how = if on { "starts" } else { "does not start" };
    tell(&done, &format!("Network {name} {how} with the daemon"), out)
}

fn list(client: &Client, out: &Out) -> Result<(), Failure> {
    let all: Vec<NetworkView> = client.get("/v1/networks")?;
    out.show(&all, || {
        if all.is_empty() {
            return "No networks: `vnet network create NAME` makes one.".to_owned();
        }
        table(
            [
                "NAME",
                "STATE",
                "MODE",
                "BRIDGE",
                "ADDRESSES",
                "PORTS",
                "LEASES",
                "AUTOSTART",
            ],
            all.iter().map(|n| {
                [
                    n.name.clone(),
                    if n.running { "running" } else { "stopped" }.to_owned(),
                    n.mode.clone(),
                    n.bridge.clone(),
                    if n.addresses.is_empty() {
                        "-".to_owned()
                    } else {
                        n.addresses.join(" ")
                    },
                    n.ports.to_string(),
                    n.leases.to_string(),
                    yes(n.autostart),
                ]
            }),
        )
    })
}

fn show(name: &str, client: &Client, out: &Out) -> Result<(), Failure> {
    let network: NetworkView = client.get(&path(name, ""))?;
    if out.format == Format::Toml {
        return line(toml(&network.document)?.trim_end());
    }
    out.show(&network, || describe(&network))
}

fn toml(doc: &NetworkDoc) -> Result<String, Failure> {
    doc.to_toml().map_err(|e| Failure::Broken(e.to_string()))
}

fn describe(n: &NetworkView) -> String {
    let mut text = pairs(&[
        ("Name", n.name.clone()),
        ("UUID", n.uuid.clone()),
        (
            "State",
            if n.running { "running" } else { "stopped" }.to_owned(),
        ),
        ("Autostart", yes(n.autostart)),
        ("Mode", n.mode.clone()),
        ("Bridge", n.bridge.clone()),
        ("Addresses", n.addresses.join(" ")),
        ("DHCP", dhcp(&n.document)),
        ("Domain", n.domain.clone().unwrap_or_default()),
        ("Ports", n.ports.to_string()),
        ("Leases", n.leases.to_string()),
        (
            "Published",
            n.document
                .publish
                .iter()
                .map(|p| format!("{} to {}", p.ports, p.guest))
                .collect::<Vec<_>>()
                .join(", "),
        ),
    ]);
    n.warnings
        .iter()
        .for_each(|w| text.push_str(&format!("\n! {w}")));
    text
}

fn dhcp(doc: &NetworkDoc) -> String {
    let ranges = doc
        .subnet
        .iter()
        .filter_map(|s| s.dhcp.as_ref()?.ranges.as_ref());
    let texts = ranges.flatten().map(RangeDoc::text);
    texts.collect::<Vec<_>>().join(", ")
}

impl Create {
    fn run(self, client: &Client, out: &Out) -> Result<(), Failure> {
        let start = !self.no_start;
        let networks = match &self.file {
            Some(file) => apply::read(file)?,
            None => vec![self.document()],
        };
        let request = ApplyRequest {
            networks,
            dry_run: false,
            only_new: true,
            start,
        };
        apply::send(&request, client, out)
    }

    fn document(self) -> NetworkDoc {
        let with_dhcp = !self.no_dhcp;
        let dhcp = || with_dhcp.then(DhcpDoc::default);
        let mut subnet: Vec<_> = self
            .subnet
            .into_iter()
            .map(|address| SubnetDoc {
                address,
                dhcp: dhcp(),
            })
            .collect();
        let needs_one = ["nat", "routed", "isolated", "open"].contains(&self.mode.as_str());
        if subnet.is_empty() && needs_one {
            subnet.push(SubnetDoc {
                address: "auto".to_owned(),
                dhcp: dhcp(),
            });
        }
        NetworkDoc {
            name: self.name.unwrap_or_default(),
            bridge: self.bridge.map(|name| BridgeDoc {
                name: Some(name),
                ..BridgeDoc::default()
            }),
            forward: Some(ForwardDoc {
                mode: self.mode,
                ..ForwardDoc::default()
            }),
            domain: self.domain.map(|name| DomainDoc {
                name,
                local_only: None,
            }),
            subnet,
            ..NetworkDoc::default()
        }
    }
}

/// Opens the document in the user's editor until it is taken or given up. What was typed is never lost.
fn edit(name: &str, client: &Client, out: &Out) -> Result<(), Failure> {
    let network: NetworkView = client.get(&path(name, ""))?;
    let before = toml(&network.document)?;
    let file = Scratch::new(name, &before)?;
    loop {
        run_editor(&file.0)?;
        let after = std::fs::read_to_string(&file.0)?;
        if after == before {
            return line(&format!("Network {name} not changed"));
        }
        match try_edit(name, &after, client, out) {
            Ok(()) => return file.remove(),
            Err(Failure::NoDaemon { socket, why }) => {
                return Err(Failure::NoDaemon { socket, why });
            }
            Err(failure) => {
                super::output::error(&failure);
                if !ask("Edit again? [Y/n] ")? {
                    return Err(Failure::Refused(format!(
                        "network {name} not changed; your text is in {}",
                        file.0.display()
                    )));
                }
            }
        }
    }
}

fn try_edit(name: &str, text: &str, client: &Client, out: &Out) -> Result<(), Failure> {
    let docs = from_toml(text).map_err(|problems| Failure::Usage(problems.to_string()))?;
    if docs.len() != 1 || docs[0].name != name {
        return Err(Failure::Usage(format!(
            "the document must stay that of network `{name}`: a network keeps its name"
        )));
    }
    let request = ApplyRequest {
        networks: docs,
        dry_run: false,
        only_new: false,
        start: false,
    };
    apply::send(&request, client, out)
}

fn run_editor(file: &std::path::Path) -> Result<(), Failure> {
    let editor = ["VISUAL", "EDITOR"]
        .iter()
        .find_map(|v| std::env::var(v).ok())
        .unwrap_or_else(|| "vi".to_owned());
    let status = Command::new("sh")
        .arg("-c")
        .arg(format!("{editor} \"$1\""))
        .arg("sh")
        .arg(file)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::Broken(format!("the editor `{editor}` failed")))
    }
}

/// Asks on the terminal; without one the answer is no, so that a script ends.
fn ask(question: &str) -> Result<bool, Failure> {
    use std::io::{IsTerminal, Write};
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    std::io::stderr().write_all(question.as_bytes())?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(!answer.trim().eq_ignore_ascii_case("n"))
}

/// A file of our own in the temporary folder.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Result<Self, Failure> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let path = std::env::temp_dir().join(format!("vnet-{name}-{}.toml", std::process::id()));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        Ok(Self(path))
    }

    fn remove(self) -> Result<(), Failure> {
        Ok(std::fs::remove_file(self.0)?)
    }
}
