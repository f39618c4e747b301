//! The stored corpora: each file is once the shape of an attack (or of an honest sender's message, to be spoilt), and is
//! named after it. Nothing panics, and what is answered is well-formed.
//!
//! What `make fuzz` finds is stored here under such a name.

#[path = "../../../vnet-core/src/fuzz/tests/replay.rs"]
mod replay;

#[test]
fn no_bytes_do_harm() {
    replay::all();
}

/// Files that are named after something honest are understood.
#[test]
fn the_honest_are_heard() {
    replay::honest(&[
        ("control", &["add", "set", "rename", "stop"]),
        (
            "frame",
            &["tcp4-large", "tcp6-large", "udp-large", "checksum-partial"],
        ),
        ("messages", &["qemu-start", "slots"]),
        ("mmio", &["start-and-send"]),
        ("ring", &["all-features", "legacy", "no-events"]),
        ("snapshot", &["new", "running"]),
    ]);
}
