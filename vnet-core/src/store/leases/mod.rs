//! The leases' log: a folder of files with rows, one row a commit, numbered without gaps.
//!
//! Leases have no place in the documents' database: an ACK waits for them, and a commit there writes seven pages where a
//! row is one. What a later row says of an address outdates the earlier. As soon as more than half of the log is
//! outdated, each commit sweeps a few of the oldest rows: what still counts in them moves to the commit's own row, whose
//! floor says that nothing before it is needed. A file below the floor is used again.
//!
//! ```text
//!   file 3: [ old rows | row 41: put a, put b | row 42: put c ]     file 5: [ row 43: put a, delete b | row 44 | zeros ]
//!                        ^ floor: swept next                                                                   ^ end
//! ```
//! Which row counts for an address is known in memory only, and learnt when the folder is opened. A crash can tear the
//! last row, of which nobody was told; anything else that is missing is damage, and said so.

mod segment;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use rustix::fs::{FlockOperation, flock};

use self::segment::Segment;
use super::StoreError;
use crate::lease::row::{Draft, Entry, Row};
use crate::lease::{Bad, Change, LeaseRecord};

/// What a log is like on a disk; tests have smaller ones.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// How much room for rows a file has.
    room: u64,
    /// Outdated entries that are not worth a sweep.
    slack: usize,
}

const SIZES: Sizes = Sizes {
    room: 1 << 20,
    slack: 4096,
};

/// The leases that survive. It has one owner, and a commit is one write to the disk.
#[derive(Debug)]
pub struct LeaseLog {
    folder: PathBuf,
    sizes: Sizes,
    /// Locked while we live.
    _lock: File,
    /// From the one with the floor to the one that is written.
    files: VecDeque<Segment>,
    /// For when the last one is full.
    spare: Option<Segment>,
    /// The next spare one, while it is made.
    coming: Option<JoinHandle<Result<Segment, StoreError>>>,
    next_name: u32,
    live: Live,
    /// Entries in all rows from the floor on, outdated and "deleted" ones too.
    entries: usize,
    /// The number of the next row.
    next: u64,
    floor: Place,
}

/// A row: its number, which of the files it is in, and where.
#[derive(Debug, Clone, Copy)]
struct Place {
    row: u64,
    file: usize,
    at: u64,
}

/// What one file of a folder that is being opened has.
struct Part<'a> {
    path: PathBuf,
    /// Each with its place.
    rows: Vec<(u64, Row<'a>)>,
    /// The highest number of a row that is there, and not among them.
    behind: Option<u64>,
}

impl<'a> Part<'a> {
    fn of((segment, bytes): &'a mut (Segment, Vec<u8>)) -> Self {
        Self {
            path: segment.path().to_owned(),
            rows: segment.rows(bytes),
            behind: segment.highest_behind(bytes),
        }
    }
}

/// The row that counts, by network and address. Trees and no hash table: one of those moves all that it holds when it
/// grows, which at thirty thousand leases kept everybody waiting for 13 ms.
#[derive(Debug, Default)]
struct Live {
    rows: BTreeMap<Vec<u8>, BTreeMap<IpAddr, u64>>,
    len: usize,
}

/// What a commit does; it is so once its row is on disk.
#[derive(Debug)]
struct Staged {
    draft: Draft,
    /// In order: network, address, and whether it has a value from now on.
    said: Vec<(Vec<u8>, IpAddr, bool)>,
    swept: usize,
    floor: Place,
}

impl LeaseLog {
    /// Opens the folder, or makes it (mode 0700); what it is in must exist. Every lease there, lapsed ones too, ordered
    /// by network and address.
    ///
    /// # Errors
    /// When it is in use, damaged, or the system refuses.
    pub fn open(folder: &Path) -> Result<(Self, Vec<LeaseRecord>), StoreError> {
        Self::sized(folder, SIZES)
    }

    fn sized(folder: &Path, sizes: Sizes) -> Result<(Self, Vec<LeaseRecord>), StoreError> {
        let lock = lock(folder)?;
        Segment::forget_unfinished(folder);
        let mut log = Self {
            folder: folder.to_owned(),
            sizes,
            _lock: lock,
            files: VecDeque::new(),
            spare: None,
            coming: None,
            next_name: 0,
            live: Live::default(),
            entries: 0,
            next: 0,
            floor: Place {
                row: 0,
                file: 0,
                at: Segment::start(),
            },
        };
        let leases = log.load()?;
        log.prepare();
        Ok((log, leases))
    }

    /// Does all of it, or nothing. It is on disk when this returns.
    ///
    /// # Errors
    /// When it could not be written; then nothing of it counts.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let staged = self.stage(changes)?;
        let mut fresh = None;
        let len = staged.draft.len();
        let file = match self.files.back_mut() {
            Some(last) if last.has_room(len) => last,
            _ => fresh.insert(self.empty(len)?),
        };
        let row = staged.draft.seal(file.salt(), self.next, staged.floor.row);
        let done = row
            .ok_or_else(|| corrupt(file.path(), "a row of four gigabytes"))
            .and_then(|row| file.append(&row));
        if let Some(fresh) = fresh {
            match &done {
                Ok(()) => self.files.push_back(fresh),
                Err(_) => self.let_go(fresh),
            }
        }
        done?;
        for (network, address, has_value) in staged.said {
            self.entries += 1;
            let row = has_value.then_some(self.next);
            self.live.set(&network, address, row);
        }
        self.entries -= staged.swept;
        self.next += 1;
        self.floor = staged.floor;
        while self.floor.file > 0 {
            self.floor.file -= 1;
            if let Some(file) = self.files.pop_front() {
                self.let_go(file);
            }
        }
        Ok(())
    }

    /// Begins to make room for what will come, if there is not much left: whoever commits does not wait for that.
    pub fn prepare(&mut self) {
        let enough = self.files.back().is_some_and(|file| !file.is_half_full());
        if enough || self.spare.is_some() || self.coming.is_some() {
            return;
        }
        let (folder, name, room) = (self.folder.clone(), self.name(), self.sizes.room);
        let make = move || Segment::make(&folder, name, room);
        // Without a thread it is made when it is needed.
        self.coming = Builder::new()
            .name("leases-room".to_owned())
            .spawn(make)
            .ok();
    }

    /// What a commit will say, and how far it sweeps.
    fn stage(&self, changes: &[Change]) -> Result<Staged, StoreError> {
        let mut staged = Staged {
            draft: Draft::default(),
            said: Vec::with_capacity(changes.len()),
            swept: 0,
            floor: self.floor,
        };
        let outdated = self
            .entries
            .saturating_sub(2 * self.live.len + self.sizes.slack);
        // Twice what is added: so the sweep is faster than what makes it necessary.
        let most = outdated.min(2 * changes.len());
        while staged.swept < most && self.sweep(&mut staged)? {}
        // Last, so that it is the last word.
        for change in changes {
            staged.draft.change(change);
            staged.said.push(match change {
                Change::Put(lease) => (network_key(&lease.network), lease.address, true),
                Change::Delete(network, address) => (network_key(network), *address, false),
            });
        }
        Ok(staged)
    }

    /// Takes what still counts out of the oldest row; whether there was one.
    fn sweep(&self, staged: &mut Staged) -> Result<bool, StoreError> {
        let Some(file) = self.files.get(staged.floor.file) else {
            return Ok(false);
        };
        let Some(found) = file.read(staged.floor.at)? else {
            // The row that is being made may go there.
            if staged.floor.file + 1 == self.files.len() {
                return Ok(false);
            }
            staged.floor.file += 1;
            staged.floor.at = Segment::start();
            return Ok(true);
        };
        let row = Row::read(file.salt(), &found.bytes).map(|(row, _)| row);
        let row = row.filter(|row| row.number == staged.floor.row);
        let row =
            row.ok_or_else(|| corrupt(file.path(), "a row has changed since it was written"))?;
        for entry in row.entries() {
            staged.swept += 1;
            let (network, address) = split(file.path(), entry.key)?;
            if entry.value.is_some() && self.live.row_of(network, address) == Some(row.number) {
                staged.draft.say(entry);
                staged.said.push((network.to_vec(), address, true));
            }
        }
        staged.floor.row += 1;
        staged.floor.at = found.after;
        Ok(true)
    }

    /// A file with room for a row of that length.
    fn empty(&mut self, len: usize) -> Result<Segment, StoreError> {
        if let Some(Ok(Ok(made))) = self.coming.take().map(JoinHandle::join) {
            self.let_go(made);
        }
        match self.spare.take() {
            Some(spare) if spare.has_room(len) => Ok(spare),
            other => {
                self.spare = other;
                let room = self.sizes.room.max(len as u64);
                let name = self.name();
                Segment::make(&self.folder, name, room)
            }
        }
    }

    /// The name of the next file.
    fn name(&mut self) -> u32 {
        let name = self.next_name;
        self.next_name = name.wrapping_add(1);
        name
    }

    /// No row of that file is needed.
    fn let_go(&mut self, mut file: Segment) {
        if self.spare.is_none() {
            file.clear();
            self.spare = Some(file);
        } else {
            file.remove();
        }
    }

    /// Learns from the files which rows there are, and which of them count.
    fn load(&mut self) -> Result<Vec<LeaseRecord>, StoreError> {
        let mut read = Vec::new();
        for (name, path) in files(&self.folder)? {
            self.next_name = self.next_name.max(name.saturating_add(1));
            read.push(Segment::open(path)?);
        }
        let mut parts: Vec<_> = read.iter_mut().map(Part::of).collect();
        parts.sort_by_key(|part| part.rows.first().map(|(_, row)| row.number));
        let last = parts.iter().filter_map(|part| part.rows.last());
        let last = last.map(|(_, row)| *row).max_by_key(|row| row.number);
        let newest = last.map(|row| row.number);
        if let Some(part) = parts.iter().find(|part| part.behind > newest) {
            return Err(corrupt(
                &part.path,
                "rows in it are not as they were written",
            ));
        }
        let mut values = BTreeMap::new();
        let mut order = Vec::new();
        let floor = last.map_or(0, |row| row.floor);
        self.next = floor;
        for Part { path, rows, .. } in &parts {
            let mut rows = rows
                .iter()
                .filter(|(_, row)| row.number >= floor)
                .peekable();
            let Some((at, first)) = rows.peek().copied() else {
                continue;
            };
            if first.number != self.next {
                return Err(corrupt(path, "the rows before the ones in it are missing"));
            }
            if order.is_empty() {
                self.floor = Place {
                    row: floor,
                    file: 0,
                    at: *at,
                };
            }
            order.push(path.clone());
            for (_, row) in rows {
                self.learn(path, row, &mut values)?;
            }
        }
        let leases = values.iter().map(|(key, (path, value))| {
            LeaseRecord::from_bytes(key, value).map_err(|bad| unreadable(path, bad, key))
        });
        let leases = leases.collect::<Result<_, _>>()?;
        self.files_in(&order, read.into_iter().map(|(segment, _)| segment));
        Ok(leases)
    }

    /// Takes the files, those with rows that count in their order.
    fn files_in(&mut self, order: &[PathBuf], all: impl Iterator<Item = Segment>) {
        let mut kept = BTreeMap::new();
        for segment in all {
            match order.iter().position(|path| path == segment.path()) {
                Some(place) => drop(kept.insert(place, segment)),
                None => self.let_go(segment),
            }
        }
        self.files = kept.into_values().collect();
    }

    /// Takes in one row of the folder that is being opened.
    fn learn<'a>(
        &mut self,
        path: &'a Path,
        row: &Row<'a>,
        values: &mut BTreeMap<&'a [u8], (&'a Path, &'a [u8])>,
    ) -> Result<(), StoreError> {
        for Entry { key, value } in row.entries() {
            self.entries += 1;
            let (network, address) = split(path, key)?;
            self.live
                .set(network, address, value.is_some().then_some(row.number));
            match value {
                Some(value) => values.insert(key, (path, value)),
                None => values.remove(key),
            };
        }
        self.next = row.number + 1;
        Ok(())
    }
}

impl Drop for LeaseLog {
    /// Whoever opens the folder next finds no file that is only half there.
    fn drop(&mut self) {
        if let Some(coming) = self.coming.take() {
            // It panics no more than we do.
            let _ = coming.join();
        }
    }
}

impl Live {
    fn row_of(&self, network: &[u8], address: IpAddr) -> Option<u64> {
        self.rows.get(network)?.get(&address).copied()
    }

    fn set(&mut self, network: &[u8], address: IpAddr, row: Option<u64>) {
        let rows = match self.rows.get_mut(network) {
            Some(rows) => rows,
            None => self.rows.entry(network.to_vec()).or_default(),
        };
        let before = match row {
            Some(row) => rows.insert(address, row),
            None => rows.remove(&address),
        };
        self.len = self.len + usize::from(row.is_some()) - usize::from(before.is_some());
        if rows.is_empty() {
            self.rows.remove(network);
        }
    }
}

/// The folder, made if it is not there, and nobody else's.
fn lock(folder: &Path) -> Result<File, StoreError> {
    let open = || {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        File::open(folder)
    };
    let lock = open().map_err(|error| StoreError::of(folder, error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(folder.to_owned())),
        Err(error) => Err(StoreError::of(folder, error.into())),
    }
}

/// The files of a log: their names are numbers. Anything else there is somebody else's.
fn files(folder: &Path) -> Result<BTreeMap<u32, PathBuf>, StoreError> {
    let list = || {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str().and_then(|n| n.parse().ok()) {
                files.insert(name, entry.path());
            }
        }
        Ok(files)
    };
    list().map_err(|error| StoreError::of(folder, error))
}

fn network_key(network: &crate::types::NetworkName) -> Vec<u8> {
    network.as_str().as_bytes().to_vec()
}

fn split<'a>(path: &Path, key: &'a [u8]) -> Result<(&'a [u8], IpAddr), StoreError> {
    LeaseRecord::split(key).map_err(|bad| unreadable(path, bad, key))
}

fn unreadable(path: &Path, bad: Bad, key: &[u8]) -> StoreError {
    corrupt(path, &format!("{bad}, at {key:02x?}"))
}

fn corrupt(path: &Path, why: &str) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests;
