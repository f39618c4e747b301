//! The packet rules of a world, compiled whole.
//!
//! [`compile`] turns networks and ports into a [`Ruleset`]: two nftables tables, `inet vnet` for packets that are
//! routed and `bridge vnet` for frames that are switched. The rules are always the same; networks and ports are only
//! elements of sets and maps, so the ten thousandth port costs what the first did and changes no rule.
//!
//! ```text
//! World --compile--> Ruleset --change_to--> Change --render--> JSON for `nft -j -f -`   (host::nft runs it)
//!                       ^                         +--batch--> elements for the kernel itself (host::worker)
//!                       +------------------------- read back: elements exactly, rules by their tag
//! ```
//!
//! | where | what |
//! |---|---|
//! | `set` | *the* table of sets, and what an element is |
//! | `rule` | chains and rules as data |
//! | `ruleset` | the whole as one value, its text, its difference |
//! | `forward` | forward modes and access to the host |
//! | `publish` | address translation, both ways: published ports and the way out |
//! | `guard`, `hold` | what a port may send; what it is held to, for the kernel and for our switch |
//! | `read` | what nft prints, as a ruleset |
//! | `render` | nft's JSON (feature `host`) |
//! | `batch` | a change of elements as nf_tables takes it |
//!
//! Not here: running nft or watching the kernel (`host::nft`), sysctls and bridge flags (`plan`).

pub mod batch;
mod forward;
mod guard;
mod hold;
mod publish;
pub mod read;
#[cfg(feature = "host")]
pub mod render;
mod rule;
mod ruleset;
mod set;

pub use hold::{Free6, Hold};
pub use rule::{Action, At, Chain, Field, Hook, Place, Rule, Test, Value, With};
pub use ruleset::{Change, ElementChange, Frame, Ruleset};
pub use set::{Atom, Column, Element, Key, SetName, SetSpec, Table, Translation};

use crate::model::{Port, World};

/// The whole ruleset of the started networks and their ports; absent when there are none.
#[must_use]
pub fn compile(world: &World) -> Ruleset {
    if world.running().next().is_none() && world.live_ports().next().is_none() {
        return Ruleset::default();
    }
    let mut rules = Ruleset::empty();
    for network in world.running() {
        forward::network(&mut rules, network);
        publish::network(&mut rules, world, network);
    }
    guard::ports(&mut rules, world);
    rules
}

/// The elements of one port of a started network of ours, in tables that are otherwise empty.
#[must_use]
pub(crate) fn compile_port(world: &World, port: &Port) -> Ruleset {
    let mut rules = Ruleset::empty();
    guard::port(&mut rules, world, port);
    rules
}

/// Whether a port's place on the bridge needs hairpin mode, because a publication leads to it. The ruleset sees to it
/// that nothing but such packets is reflected.
#[must_use]
pub fn needs_hairpin(world: &World, port: &Port) -> bool {
    publish::leads_to(world, port)
}
