//! The one place that runs `nft`: changes of rules go in as JSON on its standard input, one transaction a call, and its
//! own words come back in the error. Only our two tables are ever changed or read back. Changes of plain elements take
//! no nft: [`crate::firewall::batch`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::firewall::{Change, Ruleset, Table, read, render};

/// How many of our own processes are remembered: more than can be under way.
const REMEMBERED: usize = 64;

/// What went wrong with nft.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no nft.
    #[error(
        "the program `nft` was not found: install nftables (Debian, Ubuntu: `apt install nftables`)"
    )]
    Missing,
    /// It could not be run.
    #[error("`nft` could not be run: {0}")]
    Run(#[from] io::Error),
    /// It refused; nothing was changed.
    #[error("`nft` refused, and nothing was changed: {0}")]
    Refused(String),
    /// It printed what we do not understand.
    #[error("`nft` printed what is not JSON: {0}")]
    Strange(#[from] serde_json::Error),
}

/// Which processes and threads change the firewall for us, so that [`super::nft_watch`] knows our changes from those of others.
#[derive(Debug, Clone, Default)]
pub struct Ours(Arc<Mutex<VecDeque<i32>>>);

impl Ours {
    /// Whether that one is ours.
    #[must_use]
    pub fn contains(&self, pid: i32) -> bool {
        let pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pids.contains(&pid)
    }

    pub(super) fn remember(&self, pid: i32) {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pids.contains(&pid) {
            return;
        }
        if pids.len() == REMEMBERED {
            pids.pop_front();
        }
        pids.push_back(pid);
    }
}

/// The nftables of the network namespace that the calling thread is in.
#[derive(Debug, Clone, Default)]
pub struct Nft {
    ours: Ours,
}

impl Nft {
    /// Runs nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Those that make our changes.
    #[must_use]
    pub fn ours(&self) -> Ours {
        self.ours.clone()
    }

    /// Makes a change, in one transaction.
    ///
    /// # Errors
    /// When nft is missing or refuses; then nothing was changed.
    pub async fn apply(&mut self, change: &Change) -> Result<(), NftError> {
        let Some(document) = render::render(change) else {
            return Ok(());
        };
        let document = serde_json::to_vec(&document)?;
        let output = self.run(&["-j", "-f", "-"], &document).await?;
        match output.status.success() {
            true => Ok(()),
            false => Err(NftError::Refused(words(&output))),
        }
    }

    /// What our tables hold; `None` when there are none.
    ///
    /// # Errors
    /// When nft is missing or refuses to list.
    pub async fn observe(&self) -> Result<Option<Ruleset>, NftError> {
        let mut listings = BTreeMap::new();
        for table in Table::ALL {
            let argv = ["-j", "list", "table", table.family(), Table::NAME];
            let output = self.run(&argv, &[]).await?;
            if output.status.success() {
                listings.insert(table, serde_json::from_slice::<Value>(&output.stdout)?);
            } else if !words(&output).contains("No such file or directory") {
                return Err(NftError::Refused(words(&output)));
            }
        }
        Ok(Some(read::read(&listings)).filter(|ruleset| !ruleset.is_absent()))
    }

    /// Base chains of others on the forward hook that drop what no rule accepts: what we accept they may still drop.
    ///
    /// # Errors
    /// When nft is missing or refuses to list.
    pub async fn foreign_drop(&self) -> Result<Vec<ForeignDrop>, NftError> {
        let output = self.run(&["-j", "list", "chains"], &[]).await?;
        if !output.status.success() {
            return Err(NftError::Refused(words(&output)));
        }
        Ok(foreign_drops(&serde_json::from_slice(&output.stdout)?))
    }

    async fn run(&self, argv: &[&str], input: &[u8]) -> Result<Output, NftError> {
        let mut child = spawn(argv)?;
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            self.ours.remember(pid);
        }
        let stdin = child.stdin.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // nft that ends early says why on its standard error.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        Ok(output?)
    }
}

/// A daemon's PATH often lacks the folders of the superuser.
fn spawn(argv: &[&str]) -> Result<tokio::process::Child, NftError> {
    for program in ["nft", "/usr/sbin/nft", "/sbin/nft"] {
        let mut command = Command::new(program);
        command.args(argv).kill_on_drop(true);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return Ok(other?),
        }
    }
    Err(NftError::Missing)
}

/// What nft said, on one line, without the parts that point into our JSON.
fn words(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.filter(|line| !line.chars().all(|c| c == '^' || c == '~' || c == ' '));
    let mut lines: Vec<_> = lines
        .map(|line| {
            line.trim_start_matches("internal:0:0-0: ")
                .trim_start_matches("Error: ")
        })
        .collect();
    lines.dedup();
    lines.truncate(4);
    match lines.is_empty() {
        true => output.status.to_string(),
        false => lines.join("; "),
    }
}

/// A base chain that is not ours, hangs on the forward hook and drops by default.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForeignDrop {
    /// The table's family: `ip`, `ip6`, `inet`.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
}

impl std::fmt::Display for ForeignDrop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "chain {} of table {} {}",
            self.chain, self.family, self.table
        )
    }
}

fn foreign_drops(listing: &Value) -> Vec<ForeignDrop> {
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let chains = objects.filter_map(|object| object.get("chain"));
    let word = |chain: &Value, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    let drops = chains.filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop");
    let mut found: Vec<_> = drops
        .map(|chain| ForeignDrop {
            family: word(chain, "family"),
            table: word(chain, "table"),
            chain: word(chain, "name"),
        })
        .filter(|drop| ["ip", "ip6", "inet"].contains(&drop.family.as_str()))
        .filter(|drop| drop.table != Table::NAME)
        .collect();
    found.sort();
    found
}
