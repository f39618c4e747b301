use std::path::{Path, PathBuf};

use vnet_core::config::native::NetworkDoc;

use super::output::{Out, note};
use super::{Client, Failure};
use crate::documents;
use crate::wire::{Action, ApplyReply, ApplyRequest};

/// Make the networks of a file or folder true: new ones are created, running ones changed in place.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A TOML or JSON file, a folder of them, or `-` for standard input.
    #[arg(short, long)]
    file: PathBuf,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &Args, client: &Client, out: &Out) -> Result<(), Failure> {
    let request = ApplyRequest {
        networks: read(&args.file)?,
        dry_run: args.dry_run,
        only_new: false,
        start: true,
    };
    send(&request, client, out)
}

/// Sends networks to be made true and tells what became of them.
pub(super) fn send(request: &ApplyRequest, client: &Client, out: &Out) -> Result<(), Failure> {
    let reply: ApplyReply = client.post("/v1/apply", request)?;
    reply.notes.iter().for_each(|n| note(n));
    out.show(&reply, || describe(&reply, request.dry_run))
}

fn describe(reply: &ApplyReply, dry_run: bool) -> String {
    let word = |action| match (action, dry_run) {
        (Action::Created, false) => "created",
        (Action::Changed, false) => "changed",
        (Action::Unchanged, _) => "unchanged",
        (Action::Created, true) => "would be created",
        (Action::Changed, true) => "would be changed",
    };
    let mut lines = Vec::new();
    match reply.networks.as_slice() {
        many if many.len() > 12 => {
            for action in [Action::Created, Action::Changed, Action::Unchanged] {
                let count = many.iter().filter(|n| n.action == action).count();
                if count > 0 {
                    lines.push(format!("{count} networks {}", word(action)));
                }
            }
        }
        few => lines.extend(
            few.iter()
                .map(|n| format!("Network {} {}", n.name, word(n.action))),
        ),
    }
    if dry_run {
        lines.extend(reply.steps.iter().map(|step| format!("  {step}")));
    }
    lines.join("\n")
}

/// Every network of a file, a folder or standard input.
pub(super) fn read(path: &Path) -> Result<Vec<NetworkDoc>, Failure> {
    documents::read(path).map_err(Failure::Usage)
}
