//! The firewall, without a kernel: worlds and the rulesets they compile to (`cases/firewall/NAME/`, `UPDATE=1`
//! rewrites), and the laws of change.

mod firewall_case;

use std::path::Path;

use firewall_case::{cases, many, nth_port, world};
use proptest::prelude::*;
use vnet_core::firewall::{Change, Frame, Ruleset, SetName, compile};
use vnet_core::model::World;

fn all() -> Vec<(String, World, std::path::PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/firewall");
    let read = |(name, path): (String, std::path::PathBuf)| {
        let text = std::fs::read_to_string(path.join("world.toml")).expect("a world");
        (name, world(&text), path)
    };
    cases(&folder).into_iter().map(read).collect()
}

#[test]
fn worlds_compile_to_these_rulesets() {
    let all = all();
    assert!(all.len() >= 8, "only {} cases were found", all.len());
    for (name, world, path) in all {
        let golden = path.join("ruleset.nft");
        let compiled = compile(&world).to_string();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&golden, &compiled).expect("the golden file");
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(
            compiled,
            expected,
            "case {name}: UPDATE=1 rewrites {}",
            golden.display()
        );
    }
}

#[test]
fn the_number_of_rules_depends_on_nothing() {
    let one = compile(&many(1, 1)).rule_count();
    assert!(one > 30, "{one} rules: is anything there?");
    for (networks, ports) in [(1, 200), (20, 20), (300, 1000)] {
        assert_eq!(compile(&many(networks, ports)).rule_count(), one);
    }
}

/// Attaching is elements, few, and only additions; so is detaching the other way.
#[test]
fn a_port_is_a_handful_of_elements() {
    let before = many(10, 1000);
    let mut after = before.clone();
    let port = nth_port(10, 1000);
    after.ports.insert(port.key.clone(), port);
    let (before, after) = (compile(&before), compile(&after));
    let Change::Elements(changes) = before.change_to(&after) else {
        panic!("not a change of elements");
    };
    assert!(
        changes
            .iter()
            .all(|c| c.remove.is_empty() && c.add.len() == 1),
        "{changes:?}"
    );
    assert!(changes.len() <= 12, "{} sets", changes.len());
    // None of them makes nft read a whole set before it adds.
    assert!(
        changes.iter().all(|c| !c.set.spec().interval()),
        "{changes:?}"
    );
    let Change::Elements(back) = after.change_to(&before) else {
        panic!("not a change of elements");
    };
    assert!(back.iter().all(|c| c.add.is_empty()));
}

#[test]
fn a_broken_frame_is_replaced_as_a_whole() {
    let desired = compile(&many(1, 1));
    let absent = Ruleset::default();
    assert_eq!(absent.frame(), &Frame::Absent);
    assert_eq!(absent.change_to(&desired), Change::Whole(desired.clone()));
    assert_eq!(desired.change_to(&absent), Change::Whole(absent));
    assert_eq!(desired.change_to(&desired), Change::None);
}

#[test]
fn stopped_networks_and_their_ports_are_nowhere() {
    let mut world = many(2, 4);
    world.active.retain(|name| name.as_str() == "n0");
    let text = compile(&world).to_string();
    assert!(
        text.contains("\"vb0\"") && !text.contains("\"vb1\""),
        "{text}"
    );
    assert!(
        text.contains("\"vt0\"") && !text.contains("\"vt1\""),
        "{text}"
    );
    world.active.clear();
    assert!(compile(&world).is_absent());
}

proptest! {
    /// Whatever is there, what the difference says leads to what is wanted, and then there is no difference.
    #[test]
    fn a_change_leads_to_what_is_desired(a in 0usize..64, b in 0usize..64) {
        let cases = all();
        let some = |bits: usize| {
            let mut world = cases[bits % cases.len()].1.clone();
            let keep = |i: usize| bits >> (i % 6) & 1 == 1;
            let names: Vec<_> = world.active.iter().cloned().collect();
            world.active = names.into_iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, n)| n).collect();
            let ports = std::mem::take(&mut world.ports);
            world.ports = ports.into_iter().enumerate().filter(|(i, _)| keep(i + 1)).map(|(_, p)| p).collect();
            compile(&world)
        };
        let (from, to) = (some(a), some(b));
        let change = from.change_to(&to);
        prop_assert_eq!(&from.clone().after(&change), &to);
        prop_assert_eq!(to.change_to(&to), Change::None);
        let back = to.change_to(&from);
        prop_assert_eq!(to.clone().after(&back), from);
    }
}

/// A set that nothing fills is dead weight, or a mode that no case has.
#[test]
fn every_set_is_filled_by_some_case() {
    let all = all();
    let compiled: Vec<_> = all.iter().map(|(_, world, _)| compile(world)).collect();
    for set in SetName::FIXED {
        let filled = compiled.iter().any(|r| r.elements(set).next().is_some());
        assert!(filled, "no case fills {}", set.name());
    }
}
