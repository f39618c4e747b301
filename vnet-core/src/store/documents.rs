//! The documents: networks, ports and what else the daemon must remember, in one redb file.
//!
//! Safe to share (an `Arc` inside). One [`Store::commit`] is one transaction with one `fdatasync`. It knows no document's
//! meaning.
//!
//! A write that fails (a full disk) leaves the file as it was, and the next call tries afresh: redb refuses every
//! call after an I/O error until the file is opened again, so that is what happens here.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError};
use redb::{TableDefinition, TableError};

use super::StoreError;

/// What we keep in memory of the file: documents are small, and the kernel caches it anyway.
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
    Put {
        /// In which table.
        table: Table,
        /// Under which key.
        key: String,
        /// Its text.
        json: Vec<u8>,
    },
    /// Forget a document; one that is not there is fine.
    Delete {
        /// In which table.
        table: Table,
        /// Under which key.
        key: String,
    },
}

/// The file that survives.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// `None` after an I/O error, until the next call opens the file again.
    open: Mutex<Option<Database>>,
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
        self.with(|database| {
            let transaction = database.begin_write()?;
            for table in [Table::Networks, Table::Ports, Table::Meta] {
                write_documents(&transaction, table, ops)?;
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Every document of a table.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn documents(&self, table: Table) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
        self.with(|database| {
            let reading = database.begin_read()?;
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

    /// Runs one piece of work on the open file, opening it again if the last one left it broken.
    fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let mut slot = self.lock();
        let opened = match slot.take() {
            Some(opened) => opened,
            None => open(&self.0.path)?,
        };
        let result = work(&opened);
        // A database that met an I/O error refuses everything from then on: let go of it.
        if !matches!(
            result,
            Err(redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed)
        ) {
            *slot = Some(opened);
        }
        result.map_err(|error| told(&self.0.path, error))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Database>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(path: &Path) -> Result<Database, StoreError> {
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
    Builder::new()
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
        })
}

fn write_documents(
    transaction: &redb::WriteTransaction,
    of: Table,
    ops: &[Op],
) -> Result<(), redb::Error> {
    let mut open = None;
    for op in ops {
        let (table, key, json) = match op {
            Op::Put { table, key, json } => (*table, key, Some(json)),
            Op::Delete { table, key } => (*table, key, None),
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
    let text = error.to_string();
    match error {
        redb::Error::DatabaseAlreadyOpen => StoreError::Locked(path.to_owned()),
        redb::Error::Io(source) => StoreError::of(path, source),
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => StoreError::Io {
            path: path.to_owned(),
            source: io::Error::other(text),
        },
        _ => StoreError::Corrupt {
            path: path.to_owned(),
            why: text,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::tests::Scratch;

    fn document(key: &str, json: &str) -> Op {
        Op::Put {
            table: Table::Networks,
            key: key.to_owned(),
            json: json.as_bytes().to_vec(),
        }
    }

    #[test]
    fn what_is_committed_is_there_after_opening_again() {
        let scratch = Scratch::new("again");
        let store = Store::open(&scratch.file()).unwrap();
        assert!(store.documents(Table::Networks).unwrap().is_empty());
        store
            .commit(&[document("a", "1"), document("b", "2")])
            .unwrap();
        let unlisted = Op::Delete {
            table: Table::Networks,
            key: "a".to_owned(),
        };
        store.commit(&[unlisted]).unwrap();
        drop(store);

        let store = Store::open(&scratch.file()).unwrap();
        let documents = store.documents(Table::Networks).unwrap();
        assert_eq!(
            documents.into_iter().collect::<Vec<_>>(),
            [("b".to_owned(), b"2".to_vec())]
        );
        assert!(store.documents(Table::Ports).unwrap().is_empty());
    }

    #[test]
    fn only_root_reads_it_and_only_one_process_has_it() {
        let scratch = Scratch::new("lock");
        let _store = Store::open(&scratch.file()).unwrap();
        let mode = fs::metadata(scratch.file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = Store::open(&scratch.file()).unwrap_err();
        assert!(matches!(second, StoreError::Locked(_)), "{second}");
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let scratch = Scratch::new("damaged");
        let junk = vec![0x5a; 8192];
        fs::write(scratch.file(), &junk).unwrap();
        let error = Store::open(&scratch.file()).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        assert_eq!(fs::read(scratch.file()).unwrap(), junk);
    }

    #[test]
    fn a_missing_directory_is_an_error_not_a_panic() {
        let error = Store::open(Path::new("/nonexistent/dir/state.redb")).unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
    }
}
