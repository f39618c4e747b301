//! The doors by which bytes of strangers come in, a function each: it takes any bytes at all, holds what must be true of
//! whatever comes of them, and says how much it understood, so that a corpus that means nothing any more is noticed.
//!
//! `cargo test` feeds them what is in `corpus/NAME`, its beginnings and changed copies of it; libFuzzer (`make fuzz`,
//! `tests/fuzz`) starts from the same files. Not part of the library: there are only its own tests and feature `fuzz`.

mod http;

#[cfg(test)]
mod tests;

use crate::api;

/// A door.
pub type Door = fn(&[u8]) -> usize;

/// All of them, by the names of their folders in `corpus/`.
pub const DOORS: &[(&str, Door)] = &[
    ("api", http::request),
    ("fd-sock", api::fuzz_fd),
    ("http", http::connection),
];
