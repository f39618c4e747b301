//! The firewall and a real kernel: what compiles is taken by nft, read back equal, and changed by elements.

#[path = "../../vnet-core/tests/firewall_case/mod.rs"]
mod firewall_case;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use firewall_case::{cases, many, nth_port, world};
use tests::{Ns, tool};
use vnet_core::firewall::batch::batch;
use vnet_core::firewall::{Change, Frame, Ruleset, compile};
use vnet_core::host::Kernel;
use vnet_core::host::nft::{Nft, NftError};
use vnet_core::host::nft_watch::NftWatch;

/// Runs on a thread of the namespace, with a runtime of its own.
fn inside<T: Send>(
    ns: &Ns,
    action: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    ns.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(action())
    })?
}

async fn observed(nft: &Nft) -> anyhow::Result<Ruleset> {
    Ok(nft.observe().await?.unwrap_or_default())
}

fn compiled_cases() -> Vec<(String, Ruleset)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vnet-core/tests/cases/firewall");
    let all: Vec<_> = cases(&folder)
        .into_iter()
        .map(|(name, path)| {
            let text = std::fs::read_to_string(path.join("world.toml")).expect("a world");
            (name, compile(&world(&text)))
        })
        .collect();
    assert!(all.len() >= 8, "only {} cases were found", all.len());
    all
}

#[test]
fn what_is_applied_is_what_is_observed() -> anyhow::Result<()> {
    if !tool::ready("firewall::what_is_applied_is_what_is_observed", &["nft"]) {
        return Ok(());
    }
    let ns = Ns::new("fw")?;
    ns.sh("nft add table inet other")?;
    inside(&ns, async || {
        let mut nft = Nft::new();
        for (name, desired) in compiled_cases() {
            let change = observed(&nft).await?.change_to(&desired);
            nft.apply(&change).await?;
            let seen = observed(&nft).await?;
            assert_eq!(
                seen, desired,
                "case {name}:\n{seen}\nbut should be\n{desired}"
            );
            // The text form says the same: the kernel prints equal rules for both.
            if !desired.is_absent() {
                let json = listing(&ns)?;
                let text = ns.scratch().write("ruleset.nft", &desired.to_string())?;
                ns.sh("nft delete table inet vnet; nft delete table bridge vnet")?;
                ns.sh(&format!("nft -f {}", text.display()))?;
                assert_eq!(listing(&ns)?, json, "case {name}");
                let untagged = observed(&nft).await?;
                assert!(
                    matches!(untagged.frame(), Frame::Broken(_)),
                    "rules without a tag are not ours"
                );
                nft.apply(&untagged.change_to(&desired)).await?;
            }
        }
        nft.apply(&Change::Whole(Ruleset::default())).await?;
        assert_eq!(nft.observe().await?, None);
        anyhow::Ok(())
    })?;
    assert_eq!(
        ns.sh("nft list tables")?.trim(),
        "table inet other",
        "foreign tables stay"
    );
    Ok(())
}

/// What nft prints, without our tags.
fn listing(ns: &Ns) -> anyhow::Result<String> {
    let print = |family| ns.sh(&format!("nft list table {family} vnet"));
    let text = print("inet")? + &print("bridge")?;
    let line = |line: &str| {
        line.split(" comment \"vnet ")
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    Ok(text.lines().map(line).collect::<Vec<_>>().join("\n"))
}

/// From each case to each other: what is changed by elements is what a whole load gives, whether nft changed them or
/// the kernel was told directly.
#[test]
fn incremental_is_whole() -> anyhow::Result<()> {
    if !tool::ready("firewall::incremental_is_whole", &["nft"]) {
        return Ok(());
    }
    let ns = Ns::new("fwinc")?;
    inside(&ns, async || {
        let mut kernel = Kernel::new()?;
        let all = compiled_cases();
        let mut now = Ruleset::default();
        let (mut by_nft, mut direct) = (0, BTreeSet::new());
        for (name, desired) in all.iter().chain(all.iter().rev()) {
            for change in by_set(now.change_to(desired)) {
                match (&change, batch(&change)) {
                    (Change::Elements(sets), Some(_)) => direct.extend(sets.iter().map(|c| c.set)),
                    (Change::Elements(_), None) => by_nft += 1,
                    (Change::None | Change::Whole(_), _) => {}
                }
                kernel.change_rules(&change).await?;
            }
            now = observed(kernel.nft()).await?;
            assert_eq!(&now, desired, "case {name}");
        }
        assert!(by_nft >= 4, "only {by_nft} changes were of prefixes");
        assert!(direct.len() >= 10, "only {direct:?} were changed directly");
        Ok(())
    })
}

/// A change of elements set by set.
fn by_set(change: Change) -> Vec<Change> {
    match change {
        Change::Elements(sets) => sets
            .into_iter()
            .map(|set| Change::Elements(vec![set]))
            .collect(),
        whole @ (Change::None | Change::Whole(_)) => vec![whole],
    }
}

/// Whatever others do to our tables shows, and is repaired as a whole or by elements.
#[test]
fn tampering_is_seen_and_repaired() -> anyhow::Result<()> {
    if !tool::ready("firewall::tampering_is_seen_and_repaired", &["nft"]) {
        return Ok(());
    }
    let ns = Ns::new("fwtamper")?;
    inside(&ns, async || {
        let mut kernel = Kernel::new()?;
        let desired = compile(&many(2, 4));
        kernel
            .change_rules(&Ruleset::default().change_to(&desired))
            .await?;
        for (tampering, whole) in [
            ("nft flush ruleset", true),
            ("nft delete table bridge vnet", true),
            ("nft flush chain inet vnet vnet_forward", true),
            ("nft insert rule inet vnet vnet_forward accept", true),
            ("nft add rule inet vnet vnet_input accept", true),
            ("nft add chain inet vnet theirs", true),
            ("nft add set inet vnet theirs '{ type ifname; }'", true),
            (
                "nft add chain inet vnet vnet_forward '{ policy drop; }'",
                true,
            ),
            (
                "nft delete rule inet vnet vnet_raw handle $(nft -a list chain inet vnet vnet_raw | sed -n 's/.*handle //p' | tail -1)",
                true,
            ),
            ("nft add element inet vnet vnet_bridges '{ eth0 }'", false),
            (
                "nft add element inet vnet vnet_source4 '{ vb0 . 192.0.2.0-192.0.2.5 }'",
                true,
            ),
            (
                "nft delete element bridge vnet vnet_guarded '{ vt1 }'",
                false,
            ),
            ("nft flush set bridge vnet vnet_port_mac", false),
        ] {
            ns.sh(tampering)?;
            let change = observed(kernel.nft()).await?.change_to(&desired);
            match change {
                Change::None => panic!("`{tampering}` was not seen"),
                Change::Elements(_) => assert!(!whole, "`{tampering}`: {change:?}"),
                Change::Whole(_) => assert!(whole, "`{tampering}` was repaired as a whole"),
            }
            kernel.change_rules(&change).await?;
            assert_eq!(
                observed(kernel.nft()).await?,
                desired,
                "after `{tampering}`"
            );
        }
        Ok(())
    })
}

#[test]
fn a_refusal_bears_the_words_of_nft_and_changes_nothing() -> anyhow::Result<()> {
    if !tool::ready(
        "firewall::a_refusal_bears_the_words_of_nft_and_changes_nothing",
        &["nft"],
    ) {
        return Ok(());
    }
    let ns = Ns::new("fwrefuse")?;
    inside(&ns, async || {
        let mut nft = Nft::new();
        let (one, two) = (compile(&many(1, 1)), compile(&many(1, 2)));
        nft.apply(&Ruleset::default().change_to(&one)).await?;
        nft.apply(&one.change_to(&two)).await?;
        // The kernel has `two`: taking away what is only in `two` works once.
        let change = two.change_to(&one);
        nft.apply(&change).await?;
        let Err(NftError::Refused(words)) = nft.apply(&change).await else {
            panic!("a second deletion was taken");
        };
        assert!(words.contains("No such file or directory"), "{words}");
        assert_eq!(observed(&nft).await?, one);
        // So it is where no nft is asked; and the addition of the same batch is not done either.
        let mut kernel = Kernel::new()?;
        let (Change::Elements(gone), Change::Elements(come)) = (change, one.change_to(&two)) else {
            panic!("a port is more than elements");
        };
        assert!(batch(&Change::Elements(gone.clone())).is_some());
        let both = Change::Elements(come.into_iter().chain(gone).collect());
        let refused = kernel.change_rules(&both).await.map_err(|e| e.to_string());
        let words = refused.expect_err("a second deletion was taken by the kernel");
        assert!(words.contains("No such file or directory"), "{words}");
        assert_eq!(observed(&nft).await?, one);
        kernel.change_rules(&one.change_to(&two)).await?;
        assert_eq!(observed(&nft).await?, two);
        Ok(())
    })
}

/// Ours are not told, others' are: also those that come right after ours, and not those that touch no table of ours.
#[test]
fn changes_by_others_are_told() -> anyhow::Result<()> {
    if !tool::ready("firewall::changes_by_others_are_told", &["nft"]) {
        return Ok(());
    }
    let ns = Ns::new("fwwatch")?;
    inside(&ns, async || {
        let mut kernel = Kernel::new()?;
        let mut watch = NftWatch::new(kernel.nft().ours())?;
        let (one, two) = (compile(&many(1, 1)), compile(&many(1, 2)));
        let soon = Duration::from_secs(5);
        for theirs in [
            "nft add element inet vnet vnet_bridges '{ eth0 }'",
            "nft flush ruleset",
        ] {
            let now = observed(kernel.nft()).await?;
            kernel.change_rules(&now.change_to(&one)).await?;
            let more = one.change_to(&two);
            assert!(batch(&more).is_some(), "a port is plain elements");
            kernel.change_rules(&more).await?;
            ns.sh("nft add table inet other; nft delete table inet other")?;
            // All that came so far is read before this ends, and nothing of it is told.
            let quiet = tokio::time::timeout(Duration::from_millis(300), watch.next()).await;
            assert!(
                quiet.is_err(),
                "our own change, or one that is not about us, was told"
            );
            ns.sh(theirs)?;
            tokio::time::timeout(soon, watch.next()).await?;
        }
        Ok(())
    })
}

/// What we accept, others may still drop: they are named, and our own chains and harmless ones are not.
#[test]
fn chains_of_others_that_drop_are_found() -> anyhow::Result<()> {
    if !tool::ready("firewall::chains_of_others_that_drop_are_found", &["nft"]) {
        return Ok(());
    }
    let ns = Ns::new("fwdrop")?;
    inside(&ns, async || {
        let mut nft = Nft::new();
        nft.apply(&Ruleset::default().change_to(&compile(&many(1, 1))))
            .await?;
        assert_eq!(nft.foreign_drop().await?, []);
        ns.sh(
            "nft add table ip filter && nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }' &&
             nft add chain ip filter INPUT '{ type filter hook input priority 0; policy drop; }' &&
             nft add table inet harmless && nft add chain inet harmless pass '{ type filter hook forward priority 0; }'",
        )?;
        let found: Vec<_> = nft
            .foreign_drop()
            .await?
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, ["chain FORWARD of table ip filter"]);
        Ok(())
    })
}

/// Not a bench and not a time limit: the figures are printed, and what must hold is that a port costs the same.
#[test]
fn ten_thousand_ports() -> anyhow::Result<()> {
    if !tool::ready("firewall::ten_thousand_ports", &["nft"]) {
        return Ok(());
    }
    let ns = Ns::new("fwmany")?;
    inside(&ns, async || {
        let mut nft = Nft::new();
        let mut world = many(50, 10_000);
        let full = compile(&world);
        let timed = Instant::now();
        nft.apply(&Ruleset::default().change_to(&full)).await?;
        let load = timed.elapsed();
        let timed = Instant::now();
        assert_eq!(observed(&nft).await?, full);
        let read = timed.elapsed();
        let (mut adds, mut now) = (Vec::new(), full.clone());
        for p in 10_000..10_020 {
            let port = nth_port(50, p);
            world.ports.insert(port.key.clone(), port);
            let next = compile(&world);
            let change = now.change_to(&next);
            let timed = Instant::now();
            nft.apply(&change).await?;
            adds.push(timed.elapsed());
            now = next;
        }
        let timed = Instant::now();
        nft.apply(&now.change_to(&full)).await?;
        let remove = timed.elapsed();
        assert_eq!(observed(&nft).await?, full);
        adds.sort();
        let median = adds.get(adds.len() / 2).copied().unwrap_or(Duration::MAX);
        println!(
            "10,000 ports: load {load:.1?}, read back {read:.1?}, add one {median:.1?}, remove twenty {remove:.1?}"
        );
        Ok(())
    })
}
