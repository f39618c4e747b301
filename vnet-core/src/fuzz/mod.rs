//! The doors by which bytes of strangers come in, a function each: it takes any bytes at all, holds what must be true of
//! whatever comes of them, and says how much it understood, so that a corpus that means nothing any more is noticed.
//!
//! `cargo test` feeds them what is in `corpus/NAME`, its beginnings and changed copies of it; libFuzzer (`make fuzz`,
//! `tests/fuzz`) starts from the same files. Not part of the library: there are only its own tests and feature `fuzz`.

mod dhcp;
mod dns;
mod kept;

#[cfg(test)]
mod tests;

use uuid::Uuid;

use crate::config::{Fill, native};
use crate::model::World;
use crate::serve;
use crate::types::Mac;

/// A door.
pub type Door = fn(&[u8]) -> usize;

/// All of them, by the names of their folders in `corpus/`.
pub const DOORS: &[(&str, Door)] = &[
    ("arp", dhcp::arp),
    ("dbus", serve::dns::fuzz_dbus),
    ("dhcp4", dhcp::four),
    ("dhcp4-frame", dhcp::four_frame),
    ("dhcp6", dhcp::six),
    ("dhcp6-frame", dhcp::six_frame),
    ("dns", dns::messages),
    ("dnssec", serve::dns::fuzz_dnssec),
    ("documents", kept::documents),
    ("http2", dns::http2),
    ("lease", kept::lease),
    ("lease-log", kept::lease_log),
    ("nd", dhcp::nd),
    ("nft", kept::nft),
    ("resolv.conf", serve::dns::fuzz_resolv_conf),
    ("stream", serve::dns::fuzz_stream),
    ("tftp", dhcp::tftp),
    ("values", kept::values),
];

/// What a document leaves open.
fn fill() -> Fill {
    Fill {
        uuid: Uuid::nil(),
        bridge: "br0".parse().expect("a name"),
        mac: Mac::virtual_machine([0, 0, 1]),
        subnets: vec!["192.168.122.1/24".parse().expect("a prefix"); 4],
    }
}

/// The running networks of a document.
fn world(document: &str) -> World {
    let mut world = World::default();
    for doc in native::from_toml(document).expect("a document") {
        let network = doc.settle(&fill()).expect("a network");
        world.active.insert(network.name.clone());
        world.networks.insert(network.name.clone(), network);
    }
    world
}
