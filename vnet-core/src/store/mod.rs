//! What survives: documents (networks, ports) in a redb file, leases in a log beside it, and what networks take back of
//! their advertisements in a small file beside the leases.
//!
//! All are blocking. Each has one kind of owner and they share nothing: the driver keeps documents, rarely, and several
//! of them together or none; the leases' thread keeps leases, thousands a second, and somebody waits for each.

mod documents;
mod leases;
mod withdrawn;

use std::io;
use std::path::{Path, PathBuf};

pub use documents::{Op, Store, Table};
pub use leases::LeaseLog;
pub use withdrawn::Withdrawn;

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

impl StoreError {
    /// The person's version of what the system says of a file.
    fn of(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        if full.contains(&source.kind()) {
            Self::Full(path)
        } else {
            Self::Io { path, source }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    /// A directory of one test's own, gone at its end.
    pub(super) struct Scratch(pub(super) PathBuf);

    impl Scratch {
        pub(super) fn new(name: &str) -> Self {
            let name = format!("vnet-store-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(super) fn file(&self) -> PathBuf {
            self.0.join("state.redb")
        }

        pub(super) fn folder(&self) -> PathBuf {
            self.0.join("leases")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
