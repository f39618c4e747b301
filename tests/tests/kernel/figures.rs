//! How long it takes. Prints, and asserts nothing about time: `cargo test --release -p tests --test kernel -- --ignored --nocapture`.
#![allow(clippy::print_stdout, reason = "figures are for people")]

use std::time::{Duration, Instant};

use anyhow::ensure;
use vnet_core::model::{Network, Port, PortKind, World};
use vnet_core::plan::{self, Scope};

use crate::lab::{Lab, network, port, world};

/// A bridge takes 1023 ports.
const BEFORE: u16 = 900;

fn nat(number: u16) -> Network {
    let [high, low] = number.to_be_bytes();
    let text = format!(
        "name = \"n{number}\"\n[bridge]\nname = \"fb{number}\"\n[[subnet]]\naddress = \"10.{high}.{low}.1/24\"\n"
    );
    let mut network = network(low, &text);
    network.uuid = uuid::Uuid::from_u128(number.into());
    network.bridge.mac.0[4] = high;
    network
}

fn taps(count: u16) -> impl Iterator<Item = Port> {
    (0..count).map(|number| {
        let mut port = port(
            "n0",
            &format!("p{number}"),
            PortKind::Tap { owner: None },
            &format!("ft{number}"),
        );
        let [high, low] = number.to_be_bytes();
        port.mac.0[4..].copy_from_slice(&[high, low]);
        port
    })
}

fn timed<T>(label: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let value = work();
    println!(
        "{label:<52} {:>9.3} ms",
        start.elapsed().as_secs_f64() * 1e3
    );
    value
}

#[test]
#[ignore = "prints figures"]
fn networks() -> anyhow::Result<()> {
    for count in [1, 100, 1000] {
        let mut lab = Lab::new("figures")?;
        let world = world((0..count).map(nat), []);
        let observed = lab.observe()?;
        let desired = timed(&format!("{count} networks: desired"), || {
            plan::desired(&world)
        });
        let plan = timed(&format!("{count} networks: diff"), || {
            plan::diff(&observed, &desired)
        })?;
        timed(&format!("{count} networks: execute"), || lab.execute(plan))??;
        let observed = timed(&format!("{count} networks: observe all"), || lab.observe())?;
        let again = timed(&format!("{count} networks: second diff"), || {
            plan::diff(&observed, &desired)
        })?;
        ensure!(again.is_empty(), "{again}");
        let down = plan::diff(&observed, &plan::desired(&World::default()))?;
        timed(&format!("{count} networks: take down"), || {
            lab.execute(down)
        })??;
    }
    Ok(())
}

#[test]
#[ignore = "prints figures"]
fn ports() -> anyhow::Result<()> {
    let mut lab = Lab::new("figures")?;
    let mut now = world([nat(0)], taps(BEFORE));
    let plan = lab.plan(&now)?;
    timed("900 taps: execute", || lab.execute(plan))??;
    let mut known = timed("900 taps: observe all", || lab.observe())?;
    let mut spent: Vec<Duration> = Vec::new();
    for number in BEFORE..BEFORE + 100 {
        let next = taps(number + 1).last().into_iter();
        now.ports.extend(next.map(|p| (p.key.clone(), p)));
        let start = Instant::now();
        let desired = plan::desired(&now);
        let plan = plan::diff(&known, &desired)?;
        let planned = start.elapsed();
        let names = plan.steps().filter_map(|s| s.link().cloned()).collect();
        lab.execute(plan)??;
        let scope = Scope::Links(names);
        let seen = lab.wait(async |kernel| plan::Host::observe(kernel, &scope).await)??;
        known.refresh(&scope, seen);
        // A look at some links does not list the firewall; its transactions are all or nothing.
        known.firewall.clone_from(&desired.firewall);
        spent.push(start.elapsed());
        if number == BEFORE {
            println!("one port with 900 there: desired and diff {planned:?}");
        }
        ensure!(plan::diff(&known, &desired)?.is_empty());
    }
    spent.sort();
    println!(
        "one port with 900 there: median {:?}, worst {:?}",
        spent[50], spent[99]
    );
    let down = plan::diff(&known, &plan::desired(&World::default()))?;
    timed("1000 taps: take down", || lab.execute(down))??;
    Ok(())
}
