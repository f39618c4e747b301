//! What survives: networks, ports and leases in one redb file.
//!
//! Blocking, and safe to share: the driver and the leases thread each hold a [`Store`] (an `Arc` inside). One
//! [`Store::commit`] is one transaction with one `fdatasync`, so a caller batches. It knows no document's meaning.
//!
//! A write that fails (a full disk) leaves the file as it was, and the next call tries afresh: redb refuses every
//! call after an I/O error until the file is opened again, so that is what happens here.

mod log;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError};
use redb::{TableDefinition, TableError};

use self::log::Log;
use crate::lease::LeaseRecord;
use crate::types::NetworkName;

/// What we keep in memory of the file: leases and documents are small, and the kernel caches it anyway.
const CACHE_BYTES: usize = 16 << 20;

/// The documents' tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Networks by name.
    Networks,
    /// Ports by key.
    Ports,
    /// What else the daemon must remember.
    Meta,
}

impl Table {
    const fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        match self {
            Self::Networks => TableDefinition::new("networks"),
            Self::Ports => TableDefinition::new("ports"),
            Self::Meta => TableDefinition::new("meta"),
        }
    }
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Keep a document.
    PutDocument {
        /// In which table.
        table: Table,
        /// Under which key.
        key: String,
        /// Its text.
        json: Vec<u8>,
    },
    /// Forget a document; one that is not there is fine.
    DeleteDocument {
        /// In which table.
        table: Table,
        /// Under which key.
        key: String,
    },
    /// Keep a lease, in place of the one with its network and address.
    PutLease(LeaseRecord),
    /// Forget a lease; one that is not there is fine.
    DeleteLease {
        /// Its network.
        network: NetworkName,
        /// Its address.
        address: IpAddr,
    },
}

/// Why the store cannot do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file open.
    #[error("{0} is in use by another process: is another netd running with this state directory?")]
    Locked(PathBuf),
    /// The file's contents make no sense.
    #[error("{path} is damaged ({why}): move it away and start again, or restore a copy")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// There is no room.
    #[error("{0} cannot grow: the disk (or the quota) is full; free some space and try again")]
    Full(PathBuf),
    /// Anything else the system says.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The file that survives.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// `None` after an I/O error, until the next call opens the file again.
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    database: Database,
    log: Log,
}

impl Store {
    /// Opens the file, or makes it (mode 0600); its directory must exist.
    ///
    /// # Errors
    /// When it is in use, damaged, or the system refuses.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = open(path)?;
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            open: Mutex::new(Some(open)),
        })))
    }

    /// Does all of it, or nothing. It is on disk when this returns.
    ///
    /// # Errors
    /// When it could not be written; then nothing of it is.
    pub fn commit(&self, ops: &[Op]) -> Result<(), StoreError> {
        if ops.is_empty() {
            return Ok(());
        }
        self.with(|Open { database, log }| {
            let transaction = database.begin_write()?;
            for table in [Table::Networks, Table::Ports, Table::Meta] {
                write_documents(&transaction, table, ops)?;
            }
            let staged = log.write(&transaction, ops)?;
            transaction.commit()?;
            if let Some(staged) = staged {
                log.committed(staged);
            }
            Ok(())
        })
    }

    /// Every document of a table.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn documents(&self, table: Table) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.with(|open| {
            let reading = open.database.begin_read()?;
            let mut documents = BTreeMap::new();
            let table = match reading.open_table(table.definition()) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(documents),
                Err(error) => return Err(error.into()),
            };
            for row in table.iter()? {
                let (key, json) = row?;
                documents.insert(key.value().to_owned(), json.value().to_vec());
            }
            Ok(documents)
        })
    }

    /// Every lease, lapsed ones too, ordered by network and address.
    ///
    /// # Errors
    /// When the file cannot be read, or a record in it makes no sense.
    pub fn leases(&self) -> Result<Vec<LeaseRecord>, StoreError> {
        self.with(|open| log::leases(&open.database))
    }

    /// Runs one piece of work on the open file, opening it again if the last one left it broken.
    fn with<T>(
        &self,
        work: impl FnOnce(&mut Open) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let mut slot = self.lock();
        let mut opened = match slot.take() {
            Some(opened) => opened,
            None => open(&self.0.path)?,
        };
        let result = work(&mut opened);
        // A database that met an I/O error refuses everything from then on: let go of it.
        if !matches!(
            result,
            Err(redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed)
        ) {
            *slot = Some(opened);
        }
        result.map_err(|error| told(&self.0.path, error))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(path: &Path) -> Result<Open, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .and_then(|file| {
            file.set_permissions(PermissionsExt::from_mode(0o600))?;
            Ok(file)
        })
        .map_err(|error| told(path, redb::Error::Io(error)))?;
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_file(file)
        .map_err(|error| {
            if let DatabaseError::Storage(StorageError::Io(e)) = &error
                && e.kind() == io::ErrorKind::InvalidData
            {
                return StoreError::Corrupt {
                    path: path.to_owned(),
                    why: e.to_string(),
                };
            }
            told(path, error.into())
        })?;
    let log = Log::open(&database).map_err(|error| told(path, error))?;
    Ok(Open { database, log })
}

fn write_documents(
    transaction: &redb::WriteTransaction,
    of: Table,
    ops: &[Op],
) -> Result<(), redb::Error> {
    let mut open = None;
    for op in ops {
        let (table, key, json) = match op {
            Op::PutDocument { table, key, json } => (*table, key, Some(json)),
            Op::DeleteDocument { table, key } => (*table, key, None),
            Op::PutLease(_) | Op::DeleteLease { .. } => continue,
        };
        if table != of {
            continue;
        }
        let rows = match &mut open {
            Some(rows) => rows,
            None => open.insert(transaction.open_table(of.definition())?),
        };
        match json {
            Some(json) => drop(rows.insert(key.as_str(), json.as_slice())?),
            None => drop(rows.remove(key.as_str())?),
        }
    }
    Ok(())
}

/// The person's version of what redb says.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "redb's list of errors is open; whatever it adds is about the file's contents"
)]
fn told(path: &Path, error: redb::Error) -> StoreError {
    let path = path.to_owned();
    let text = error.to_string();
    match error {
        redb::Error::DatabaseAlreadyOpen => StoreError::Locked(path),
        redb::Error::Io(e)
            if matches!(
                e.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            StoreError::Full(path)
        }
        redb::Error::Io(source) => StoreError::Io { path, source },
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => StoreError::Io {
            path,
            source: io::Error::other(text),
        },
        _ => StoreError::Corrupt { path, why: text },
    }
}

#[cfg(test)]
mod tests;
