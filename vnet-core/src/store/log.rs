//! The leases' table: a log, one row a commit, keyed by a number that only grows.
//!
//! A table keyed by address would be simpler, but addresses are spread by hash: a commit of twenty leases would touch
//! twenty leaf pages and copy each of them. Appending touches the last page only, whatever the leases are. What a
//! later row says of an address outdates the earlier; the oldest rows are swept, a few with each commit, as soon as
//! more than half of the log is outdated: what still counts in them moves to the row of that commit.
//!
//! ```text
//!   row 17: put a, put b     row 18: put c     row 19: put a, delete b     row 20: ...
//!   ^ swept first: nothing in it counts any more
//! ```
//! Which row counts for an address is known in memory only, and learnt from the file when it is opened.

use std::collections::BTreeMap;
use std::net::IpAddr;

use redb::{
    Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction,
};

use super::Op;
use crate::lease::{Bad, LeaseRecord};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("lease_log");

/// Outdated entries that are not worth a sweep.
const SLACK: usize = 4096;
/// Entries of one row: more (a network with all its leases is deleted) take several.
const ROW: usize = 1024;
/// The length that says "deleted".
const GONE: u16 = u16::MAX;

/// What is known of the log without reading it.
#[derive(Debug, Default)]
pub(super) struct Log {
    live: Live,
    /// Entries in all rows, outdated and "deleted" ones too.
    entries: usize,
    /// The number of the next row.
    next: u64,
}

/// The row that counts, by network and address. Trees and no hash table: one of those moves all that it holds when it
/// grows, which at thirty thousand leases kept everybody waiting for 13 ms.
#[derive(Debug, Default)]
struct Live {
    rows: BTreeMap<Vec<u8>, BTreeMap<IpAddr, u64>>,
    len: usize,
}

/// What a transaction does to the log; it is so once the transaction is on disk.
#[derive(Debug)]
pub(super) struct Staged {
    /// In order: network, address, and the row that counts from now on (none: deleted).
    changes: Vec<(Vec<u8>, IpAddr, Option<u64>)>,
    swept: usize,
    next: u64,
}

/// What one entry of a row says: this key has this value, or none any more.
struct Entry<'a> {
    key: &'a [u8],
    value: Option<&'a [u8]>,
}

impl Log {
    /// Learns which rows count.
    pub(super) fn open(database: &Database) -> Result<Self, redb::Error> {
        let mut log = Self::default();
        replay(database, |row, entry| {
            log.entries += 1;
            log.next = row + 1;
            let row = entry.value.is_some().then_some(row);
            let (network, address) = split(entry.key)?;
            log.live.set(network, address, row);
            Ok(())
        })?;
        Ok(log)
    }

    /// Appends what is said about leases, and sweeps if it is time.
    pub(super) fn write(
        &self,
        transaction: &WriteTransaction,
        ops: &[Op],
    ) -> Result<Option<Staged>, redb::Error> {
        let said: Vec<_> = ops.iter().filter_map(entry_of).collect();
        if said.is_empty() {
            return Ok(None);
        }
        let mut rows = transaction.open_table(LOG)?;
        let (mut fresh, mut swept) = (Vec::new(), 0);
        // Twice what is added: so the sweep is faster than what makes it necessary.
        while self.entries > 2 * self.live.len + SLACK && swept < 2 * said.len() {
            let Some((row, bytes)) = rows.pop_first()? else {
                break;
            };
            let row = row.value();
            for entry in entries(bytes.value()) {
                let entry = entry?;
                swept += 1;
                if let Some(value) = entry.value
                    && self.live.row_of(entry.key)? == Some(row)
                {
                    fresh.push((entry.key.to_vec(), Some(value.to_vec())));
                }
            }
        }
        // Last, so that it is the last word.
        fresh.extend(said);
        let mut staged = Staged {
            changes: Vec::with_capacity(fresh.len()),
            swept,
            next: self.next,
        };
        let mut bytes = Vec::with_capacity(96 * fresh.len().min(ROW));
        for chunk in fresh.chunks(ROW) {
            bytes.clear();
            for (key, value) in chunk {
                put(&mut bytes, key, value.as_deref());
                let row = value.is_some().then_some(staged.next);
                let (network, address) = split(key)?;
                staged.changes.push((network.to_vec(), address, row));
            }
            rows.insert(staged.next, bytes.as_slice())?;
            staged.next += 1;
        }
        Ok(Some(staged))
    }

    #[cfg(test)]
    pub(super) const fn entries(&self) -> usize {
        self.entries
    }

    /// The transaction is on disk.
    pub(super) fn committed(&mut self, staged: Staged) {
        self.entries = self.entries - staged.swept + staged.changes.len();
        self.next = staged.next;
        for (network, address, row) in staged.changes {
            self.live.set(&network, address, row);
        }
    }
}

impl Live {
    fn row_of(&self, key: &[u8]) -> Result<Option<u64>, redb::Error> {
        let (network, address) = split(key)?;
        let rows = self.rows.get(network);
        Ok(rows.and_then(|rows| rows.get(&address).copied()))
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

/// Every lease, ordered by network and address.
pub(super) fn leases(database: &Database) -> Result<Vec<LeaseRecord>, redb::Error> {
    let mut last = BTreeMap::<Vec<u8>, Vec<u8>>::new();
    replay(database, |_, entry| {
        match entry.value {
            Some(value) => drop(last.insert(entry.key.to_vec(), value.to_vec())),
            None => drop(last.remove(entry.key)),
        }
        Ok(())
    })?;
    let lease = |(key, value): (&Vec<u8>, &Vec<u8>)| {
        LeaseRecord::from_bytes(key, value).map_err(|bad| corrupted(bad, key))
    };
    last.iter().map(lease).collect()
}

/// Every entry of every row, from the oldest on.
fn replay(
    database: &Database,
    mut take: impl FnMut(u64, Entry<'_>) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let reading = database.begin_read()?;
    let rows = match reading.open_table(LOG) {
        Ok(rows) => rows,
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for row in rows.iter()? {
        let (number, bytes) = row?;
        for entry in entries(bytes.value()) {
            take(number.value(), entry?)?;
        }
    }
    Ok(())
}

fn entry_of(op: &Op) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    match op {
        Op::PutLease(lease) => Some((
            LeaseRecord::key(&lease.network, lease.address),
            Some(lease.to_bytes()),
        )),
        Op::DeleteLease { network, address } => Some((LeaseRecord::key(network, *address), None)),
        Op::PutDocument { .. } | Op::DeleteDocument { .. } => None,
    }
}

fn split(key: &[u8]) -> Result<(&[u8], IpAddr), redb::Error> {
    LeaseRecord::split(key).map_err(|bad| corrupted(bad, key))
}

fn corrupted(bad: Bad, key: &[u8]) -> redb::Error {
    redb::Error::Corrupted(format!("{bad}, at {key:02x?}"))
}

/// The length of the key, the length of the value (or [`GONE`]), both.
fn put(out: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    // A key is a name and an address, a record a few bounded fields: both are far shorter than 64 KiB.
    let len = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(GONE - 1);
    out.extend_from_slice(&len(key).to_be_bytes());
    out.extend_from_slice(&value.map_or(GONE, len).to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value.unwrap_or_default());
}

fn entries(mut bytes: &[u8]) -> impl Iterator<Item = Result<Entry<'_>, redb::Error>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let entry = take_entry(&mut bytes);
        if entry.is_none() {
            bytes = &[];
        }
        let torn = || redb::Error::Corrupted("a row of the lease log is cut short".to_owned());
        Some(entry.ok_or_else(torn))
    })
}

fn take_entry<'a>(bytes: &mut &'a [u8]) -> Option<Entry<'a>> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let (key, value) = (
        u16::from_be_bytes([head[0], head[1]]),
        u16::from_be_bytes([head[2], head[3]]),
    );
    let (key, rest) = rest.split_at_checked(usize::from(key))?;
    if value == GONE {
        *bytes = rest;
        return Some(Entry { key, value: None });
    }
    let (value, rest) = rest.split_at_checked(usize::from(value))?;
    *bytes = rest;
    Some(Entry {
        key,
        value: Some(value),
    })
}
