//! The stored corpora: each file is once the shape of an attack (or of an honest sender's message, to be spoilt), and is
//! named after it. Nothing panics, and what is answered is well-formed.
//!
//! What `make fuzz` finds is stored here under such a name.

mod replay;

use proptest::prelude::*;

use super::dhcp;
use crate::dhcp::ra::Solicitation;
use replay::file;

#[test]
fn no_bytes_do_harm() {
    replay::all();
}

/// Files that are named after something honest are understood.
#[test]
fn the_honest_are_heard() {
    replay::honest(&[
        ("arp", &["answer", "padded", "gratuitous-answer"]),
        (
            "dhcp4",
            &["discover", "boot-classes", "overload-both", "pieces-joined"],
        ),
        (
            "dhcp4-frame",
            &[
                "discover",
                "ip-options",
                "padded",
                "relayed",
                "renewal",
                "no-checksum",
            ],
        ),
        (
            "dhcp6",
            &["solicit", "solicit-rapid", "information", "relayed"],
        ),
        ("dhcp6-frame", &["solicit", "relayed", "padded"]),
        ("dnssec", &["address", "alias", "wildcard", "no-such-name"]),
        ("documents", &["everything", "json", "two-networks"]),
        (
            "lease",
            &[
                "mac",
                "identifier",
                "association",
                "named",
                "released",
                "declined",
                "empty-identifier",
            ],
        ),
        (
            "lease-log",
            &["one-lease", "three-leases", "put-and-deleted", "whole-row"],
        ),
        ("nft", &["whole"]),
    ]);
}

#[test]
fn rfc4861_6_1_1_a_rule_each() {
    let whole = |name: &str| Solicitation::parse(&file("nd", name), false).is_some();
    for name in [
        "solicitation",
        "solicitation-bare",
        "unspecified",
        "trailing",
    ] {
        assert!(whole(name), "{name}");
    }
    for name in [
        "unspecified-with-link-layer",
        "hops-254",
        "option-length-0",
        "option-beyond",
        "option-half",
        "code-1",
        "advertisement",
        "short",
        "bad-checksum",
        "length-lies",
    ] {
        assert!(!whole(name), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_options_after_an_honest_head(kind in 0u8..10, options in prop::collection::vec(any::<u8>(), 0..600)) {
        let head = file("dhcp4", "discover");
        let bytes = [&head[..240], &[53, 1, kind], options.as_slice()].concat();
        dhcp::four(&bytes);
    }
}
