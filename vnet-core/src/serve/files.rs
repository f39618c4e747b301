//! The files that others read (`lease::interop`), replaced whole: a reader sees the old one or the new one.
//!
//! [`LeaseFiles`] keeps them fresh. It hears of leases as everybody does, after they are on disk and the guest was
//! told, and writes at most ten times a second. No ACK waits for a file: the thread is its own and the last in line, for
//! a file of sixty thousand leases is many milliseconds of work.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep_until};

use super::leases::clock::{self, Clock};
use super::leases::{LeaseEvent, LeaseKind, Leases};
use crate::lease::{LeaseRecord, interop};
use crate::types::{IfName, Mac, NetworkName, PortName};

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(100);
/// How nice the thread is: as nice as can be.
const NICE: i32 = 19;
/// How much longer than a write the next one waits: a file of sixty thousand leases is no reason to write all day.
const REST: u32 = 50;

/// What the files of one network follow from, leases apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The bridge that the files are named by.
    pub bridge: IfName,
    /// The guests, with their MACs.
    pub guests: BTreeMap<PortName, Vec<Mac>>,
}

/// The handle of the thread that keeps the files fresh; it ends with the handle.
#[derive(Debug, Clone)]
pub struct LeaseFiles(UnboundedSender<(NetworkName, Option<Shown>)>);

impl LeaseFiles {
    /// Starts the thread. The directory is made if it is not there.
    ///
    /// # Errors
    /// When one of them cannot be made.
    pub fn start(leases: Leases, directory: PathBuf) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(&directory)?;
        let (sender, receiver) = unbounded_channel();
        let runtime = Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new()
            .name("lease-files".to_owned())
            .spawn(move || {
                step_back();
                runtime.block_on(keep_fresh(leases, directory, receiver));
            })?;
        Ok(Self(sender))
    }

    /// What a network shows from now on; `None`: it is gone, and so are its files.
    pub fn tell(&self, network: NetworkName, shown: Option<Shown>) {
        // Without the thread there are no files to keep.
        let _ = self.0.send((network, shown));
    }
}

#[derive(Debug, Default)]
struct Page {
    shown: Option<Shown>,
    leases: BTreeMap<IpAddr, LeaseRecord>,
}

type Pages = BTreeMap<NetworkName, Page>;

async fn keep_fresh(
    leases: Leases,
    directory: PathBuf,
    mut told: UnboundedReceiver<(NetworkName, Option<Shown>)>,
) {
    let mut events = leases.subscribe();
    let (mut pages, mut stale) = (Pages::new(), BTreeSet::new());
    let mut next = Instant::now();
    relearn(&leases, &mut pages).await;
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(news) => {
                    if stale.is_empty() {
                        next = next.max(Instant::now() + GATHER);
                    }
                    for event in news.iter() {
                        learn(event, &mut pages, &mut stale);
                    }
                }
                Err(RecvError::Lagged(_)) => {
                    relearn(&leases, &mut pages).await;
                    stale.extend(pages.keys().cloned());
                }
                Err(RecvError::Closed) => return,
            },
            news = told.recv() => match news {
                Some((network, shown)) => {
                    forget_other(&directory, &network, shown.as_ref(), &mut pages);
                    if let Some(shown) = shown {
                        pages.entry(network.clone()).or_default().shown = Some(shown);
                        stale.insert(network);
                    }
                }
                None => return,
            },
            () = sleep_until(next), if !stale.is_empty() => {
                let begun = Instant::now();
                let texts = texts(&pages, &std::mem::take(&mut stale), leases.clock());
                if let Err(error) = write_all(&directory, &texts) {
                    tracing::warn!(%error, directory = %directory.display(), "lease files");
                }
                next = Instant::now() + GATHER.max(begun.elapsed() * REST);
            }
        }
    }
}

/// Lets every other thread go first.
fn step_back() {
    let us = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(us), NICE) {
        tracing::debug!(%error, "lease files are written at full priority");
    }
}

/// Everything that is held now: at the start, and when more happened than we could hear.
async fn relearn(leases: &Leases, pages: &mut Pages) {
    for page in pages.values_mut() {
        page.leases.clear();
    }
    for lease in leases.list().await {
        let page = pages.entry(lease.network.clone()).or_default();
        page.leases.insert(lease.address, lease);
    }
}

fn learn(event: &LeaseEvent, pages: &mut Pages, stale: &mut BTreeSet<NetworkName>) {
    let lease = &event.lease;
    if !stale.contains(&lease.network) {
        stale.insert(lease.network.clone());
    }
    let page = pages.entry(lease.network.clone()).or_default();
    match event.kind {
        LeaseKind::Granted | LeaseKind::Renewed => {
            page.leases.insert(lease.address, lease.clone());
        }
        LeaseKind::Released | LeaseKind::Expired | LeaseKind::Declined => {
            page.leases.remove(&lease.address);
        }
    }
}

/// A network that is gone, or is on another bridge now, leaves no files behind.
fn forget_other(directory: &Path, network: &NetworkName, now: Option<&Shown>, pages: &mut Pages) {
    let before = pages.get(network).and_then(|page| page.shown.as_ref());
    if let Some(before) = before
        && now.is_none_or(|now| now.bridge != before.bridge)
    {
        for kind in ["status", "macs"] {
            // Not there is as good as removed.
            let _ = fs::remove_file(directory.join(format!("{}.{kind}", before.bridge)));
        }
    }
    if now.is_none() {
        pages.remove(network);
    }
}

/// The files of these networks: name and content.
fn texts(pages: &Pages, of: &BTreeSet<NetworkName>, clock: Clock) -> Vec<(String, String)> {
    let (now, wall) = (clock.now(), clock::wall());
    let pages = of.iter().filter_map(|name| pages.get(name));
    pages
        .filter_map(|page| Some((page.shown.as_ref()?, &page.leases)))
        .flat_map(|(shown, leases)| {
            let status = interop::status(leases.values(), now, wall);
            let macs = interop::macs(&shown.guests);
            [
                (format!("{}.status", shown.bridge), status),
                (format!("{}.macs", shown.bridge), macs),
            ]
        })
        .collect()
}

fn write_all(directory: &Path, texts: &[(String, String)]) -> io::Result<()> {
    texts
        .iter()
        .try_for_each(|(name, text)| replace(directory, name, text))
}

fn replace(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let fresh = directory.join(format!(".{name}.new"));
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o644);
    let written = options.open(&fresh).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        fs::rename(&fresh, directory.join(name))
    });
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let directory = std::env::temp_dir().join(format!("vnet-files-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        replace(&directory, "virbr0.macs", "[{}]").unwrap();
        replace(&directory, "virbr0.macs", "[]").unwrap();
        replace(&directory, "virbr0.status", "[]").unwrap();
        let mut names: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["virbr0.macs", "virbr0.status"]);
        assert_eq!(
            fs::read_to_string(directory.join("virbr0.macs")).unwrap(),
            "[]"
        );
        fs::remove_dir_all(&directory).unwrap();
        assert!(replace(&directory, "virbr0.status", "[]").is_err());
    }
}
