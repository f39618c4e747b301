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
        (
            "api",
            &[
                "apply",
                "attach",
                "autostart",
                "look-up",
                "publish",
                "release",
                "status",
                "unpublish",
            ],
        ),
        (
            "fd-sock",
            &["bridge", "one-queue", "queues-16", "two-lines"],
        ),
        (
            "http",
            &[
                "chunked",
                "expect-continue",
                "get",
                "old",
                "pipelined",
                "post",
            ],
        ),
    ]);
}

/// A body that is longer than any document is not kept.
#[test]
fn a_body_has_its_limit() {
    let body = vec![b' '; 3 << 20];
    assert_eq!(
        super::http::request(&[b"POST /v1/apply\n", &body[..]].concat()),
        0
    );
}
