//! The dirty log that a frontend shared (SET_LOG_BASE): mapped, and watched as guest memory is.

use std::sync::Arc;

use super::foreign::Foreign;
use super::lost_memory::Watched;
use super::memory_table::{BadTable, map_shared};
use crate::device::dirty::DirtyLog;

/// The log of a session.
#[derive(Debug)]
pub struct SharedLog {
    /// Dropped before the mapping.
    watched: Watched,
    log: Arc<DirtyLog>,
}

impl SharedLog {
    /// Maps what a frontend sent.
    ///
    /// # Errors
    /// When it is not memory of that length.
    pub fn map(fd: Foreign, offset: u64, size: u64) -> Result<Self, BadTable> {
        let (watched, region) = map_shared(fd, offset, size)?;
        let log = Arc::new(DirtyLog::new(region));
        Ok(Self { watched, log })
    }

    /// The log itself.
    #[must_use]
    pub fn log(&self) -> &Arc<DirtyLog> {
        &self.log
    }

    /// Whether its memory went away.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.watched.is_lost()
    }
}
