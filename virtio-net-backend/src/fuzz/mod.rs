//! The doors by which bytes of strangers come in, a function each: it takes any bytes at all, holds what must be true of
//! whatever comes of them, and says how much it understood, so that a corpus that means nothing any more is noticed.
//!
//! `cargo test` feeds them what is in `corpus/NAME`, its beginnings and changed copies of it; libFuzzer (`make fuzz`,
//! `tests/fuzz`) starts from the same files. Not part of the library: there are only its own tests and feature `fuzz`.

mod driver;
pub(crate) mod frontend;

#[cfg(test)]
mod tests;

use crate::device::{Features, Settings};
use crate::process::control;

/// A door.
pub type Door = fn(&[u8]) -> usize;

/// All of them, by the names of their folders in `corpus/`.
pub const DOORS: &[(&str, Door)] = &[
    ("control", control::fuzz),
    ("frame", driver::frame),
    ("messages", frontend::messages),
    ("mmio", driver::mmio),
    ("ring", driver::ring),
    ("snapshot", driver::snapshot),
];

fn settings(own_control_queue: bool) -> Settings {
    Settings {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: Some(1500),
        queue_pairs: 1,
        own_control_queue,
        withheld: Features::default(),
    }
}
