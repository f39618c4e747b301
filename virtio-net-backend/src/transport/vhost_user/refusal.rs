//! Why a frontend's request was not obeyed.

use std::io;

use super::memory_table::BadTable;
use super::message::Malformed;
use crate::device::Refused;

/// Why a request was not obeyed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not one.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The device said no.
    #[error(transparent)]
    Device(#[from] Refused),
    /// Memory that cannot be used.
    #[error(transparent)]
    Memory(#[from] BadTable),
    /// An fd is missing, too many, or of the wrong kind.
    #[error("fd: {0}")]
    Fd(io::Error),
    /// A value out of range.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// A ring whose parts are not in guest memory.
    #[error("ring {0} is outside guest memory")]
    RingOutside(u16),
}
