//! The plan against the real kernel: made, adopted, changed, repaired, rolled back; nothing of anybody else's touched.

mod figures;
mod lab;

use std::num::NonZeroU16;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::wait_for;
use vnet_core::host::watch::{Drift, Watch};
use vnet_core::host::{self, Kernel};
use vnet_core::model::{Home, Owner, PortKind, World};
use vnet_core::plan::{self, Host, HostState, Scope, Step, StepError};

use lab::{Lab, name, network, port, tap, world};

#[test]
fn a_network_is_made_adopted_and_taken_down() -> anyhow::Result<()> {
    let mut lab = Lab::new("made")?;
    let before = lab.observe()?;
    let tap = port(
        "lab",
        "web",
        PortKind::Tap {
            owner: Some(Owner { uid: 65534 }),
        },
        "tap-web",
    );
    let full = world([lab::lab()], [tap]);
    let done = lab.settle(&full)?;

    let link = lab.ns.ip("-d link show vbt1")?;
    for part in [
        "52:54:00:ff:00:01",
        "stp_state 0",
        "forward_delay 0",
        "UP",
        "alias netd:",
    ] {
        ensure!(link.contains(part), "no `{part}` in {link}");
    }
    let tap = lab.ns.ip("-d link show tap-web")?;
    for part in [
        "master vbt1",
        "vnet_hdr on",
        "persist on",
        "user nobody",
        "alias netd:port:lab/web",
    ] {
        ensure!(tap.contains(part), "no `{part}` in {tap}");
    }
    ensure!(
        lab.ns
            .ip("route")?
            .contains("10.60.0.0/16 via 10.50.0.9 dev vbt1 proto 118")
    );
    // The gateway's address answers at once, on an empty bridge too.
    let addresses = lab.ns.ip("-6 addr show vbt1 scope global")?;
    ensure!(
        addresses.contains("fd50::1/64") && !addresses.contains("tentative"),
        "{addresses}"
    );
    ensure!(lab.cat("net/ipv4/ip_forward")? == "1");
    ensure!(lab.cat("net/ipv6/conf/vbt1/accept_ra")? == "0");
    ensure!(lab.cat("net/ipv6/conf/tap-web/disable_ipv6")? == "1");

    // A daemon that starts anew finds all of it by its marks, and has nothing to do.
    lab.kernel = lab.ns.enter(Kernel::new)??;
    ensure!(lab.plan(&full)?.is_empty());

    // And the host gets back what it had.
    let mut remembered = plan::Remembered::default();
    ensure!(remembered.learn(&done));
    let observed = lab.observe()?;
    let mut nothing = plan::desired(&World::default());
    remembered.complete(&mut nothing, &observed);
    let plan = plan::diff(&observed, &nothing)?;
    let done = lab.execute(plan)??;
    remembered.learn(&done);
    ensure!(remembered.0.is_empty(), "still remembers {remembered:?}");
    let after = lab.observe()?;
    ensure!(before == after, "before:\n{before}after:\n{after}");
    Ok(())
}

/// A kernel that refuses the step after `left` more, and is real in everything else.
struct Failing {
    kernel: Kernel,
    left: Option<usize>,
}

impl Host for Failing {
    async fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        match self.left {
            Some(0) => {
                self.left = None;
                return Err(StepError("told to fail".to_owned()));
            }
            Some(left) => self.left = Some(left - 1),
            None => {}
        }
        self.kernel.apply(step).await
    }

    async fn observe(&mut self, scope: &Scope) -> Result<HostState, StepError> {
        self.kernel.observe(scope).await
    }
}

#[test]
fn a_failure_at_any_step_leaves_the_kernel_as_it_was() -> anyhow::Result<()> {
    let mut lab = Lab::new("fail")?;
    lab.ns.ip("link add veth0 type veth peer name veth1")?;
    let nic = port("lab", "nic", PortKind::External, "veth0");
    lab.settle(&world([lab::lab()], [tap("old"), nic]))?;

    // One network goes with its tap, another comes; the lent interface and the mode change.
    let other = network(
        2,
        "name = \"other\"\n[bridge]\nstp = true\n[[subnet]]\naddress = \"10.51.0.1/24\"\n",
    );
    let mut changed = network(
        1,
        "name = \"lab\"\n[bridge]\nmtu = 9000\n[[subnet]]\naddress = \"10.50.0.1/16\"\n",
    );
    changed.uuid = lab::lab().uuid;
    let mut isolated = tap("new");
    isolated.isolated = true;
    let next = world([changed, other], [isolated]);

    let before = lab.observe()?;
    let plan = plan::diff(&before, &plan::desired(&next))?;
    ensure!(plan.len() > 10, "a plan worth failing:\n{plan}");
    for step in 0..plan.len() {
        let plan_again = plan.clone();
        let failed = lab.wait(async |kernel| {
            let mut failing = Failing {
                kernel: kernel.clone(),
                left: Some(step),
            };
            plan::execute(plan_again, &mut failing).await
        })?;
        let failed = failed.err().context("it was told to fail")?;
        ensure!(failed.left.is_empty(), "step {step}: {failed}");
        let after = lab.observe()?;
        ensure!(
            before == after,
            "step {step} of\n{plan}left\n{after}instead of\n{before}"
        );
    }
    lab.settle(&next)?;
    Ok(())
}

#[test]
fn what_stands_in_the_way_is_told_and_nothing_is_changed() -> anyhow::Result<()> {
    let mut lab = Lab::new("way")?;
    lab.ns.ip("link add eth0 type veth peer name eth1")?;
    for end in ["eth0", "eth1"] {
        lab.ns.ip(&format!("link set {end} up"))?;
    }
    lab.ns.ip("addr add 192.0.2.1/24 dev eth0")?;
    // Somebody's route has the destination and the metric of ours.
    lab.ns.ip("route add 10.60.0.0/16 via 192.0.2.9 metric 1")?;
    let before = lab.observe()?;
    let error = lab
        .reach(&world([lab::lab()], []))
        .err()
        .context("a route was in the way")?;
    ensure!(
        error
            .to_string()
            .contains("route 10.60.0.0/16 via 10.50.0.9"),
        "{error:#}"
    );
    ensure!(error.to_string().contains("File exists"), "{error:#}");
    ensure!(lab.observe()? == before);
    lab.ns.ip("route del 10.60.0.0/16 metric 1")?;

    // Between the plan and its execution somebody takes the name.
    let plan = lab.plan(&world([lab::lab()], [tap("web")]))?;
    lab.ns.ip("link add tap-web type veth peer name other")?;
    let before = lab.observe()?;
    let failed = lab.execute(plan)?;
    let failed = failed.err().context("the name was taken")?;
    ensure!(failed.to_string().contains("tap-web"), "{failed}");
    ensure!(lab.observe()? == before);

    // Seen at once, it is a conflict that says what to do.
    let conflict = plan::diff(&before, &plan::desired(&world([lab::lab()], [tap("web")])));
    let conflict = conflict.err().context("a conflict")?;
    ensure!(
        conflict.to_string().contains("netd did not make it"),
        "{conflict}"
    );
    Ok(())
}

#[test]
fn a_running_network_changes_without_its_ports_leaving() -> anyhow::Result<()> {
    let mut lab = Lab::new("live")?;
    let mut wide = tap("wide");
    wide.queues = 4;
    let ports = [tap("web"), wide];
    lab.settle(&world([lab::lab()], ports.clone()))?;
    let queues = NonZeroU16::new(2).context("two")?;
    let held = lab
        .ns
        .enter(|| host::tap::open(&name("tap-wide"), true, queues))??;
    ensure!(held.len() == 2);
    ensure!(lab.ns.ip("link show tap-wide")?.contains("LOWER_UP"));
    let index = |lab: &Lab| {
        lab.ns
            .sh("cat /sys/class/net/tap-wide/ifindex /sys/class/net/vbt1/ifindex")
    };
    let numbers = index(&lab)?;

    let documents = [
        "name = \"lab\"\n[bridge]\nmtu = 9000\n[forward]\nmode = \"isolated\"\n[[subnet]]\naddress = \"10.50.0.1/24\"\n",
        "name = \"lab\"\n[bridge]\nstp = true\nmtu = 1400\n[[subnet]]\naddress = \"10.50.0.1/16\"\n[[subnet]]\naddress = \"10.70.0.1/24\"\n[[route]]\nto = \"10.60.0.0/16\"\nvia = \"10.70.0.9\"\n",
        "name = \"lab\"\n[forward]\nmode = \"routed\"\n[[subnet]]\naddress = \"10.70.0.1/24\"\n[[subnet]]\naddress = \"fd70::1/64\"\n[[route]]\nto = \"10.60.0.0/16\"\nvia = \"10.70.0.9\"\n[[publish]]\nguest = \"10.70.0.9\"\nports = \"8080:80\"\n",
    ];
    for document in documents {
        let plan = lab.plan(&world([network(1, document)], ports.clone()))?;
        for step in plan.steps() {
            ensure!(!matches!(step, Step::Delete(_) | Step::Create(_)), "{step}");
            ensure!(!step.to_string().contains("off vbt1"), "{step}");
        }
        lab.settle(&world([network(1, document)], ports.clone()))?;
        ensure!(index(&lab)? == numbers);
        ensure!(lab.ns.ip("link show tap-wide")?.contains("LOWER_UP"));
    }
    ensure!(lab.cat("net/ipv4/conf/vbt1/route_localnet")? == "1");

    // A stopped network keeps its ports' taps, down and off the bridge; a start puts them back, guests and all.
    let mut stopped = world([network(1, documents[2])], ports.clone());
    stopped.active.clear();
    lab.settle(&stopped)?;
    let tap = lab.ns.ip("link show tap-wide")?;
    ensure!(!tap.contains("master") && !tap.contains("UP"), "{tap}");
    ensure!(lab.ns.ip("link show vbt1").is_err());
    lab.settle(&world([network(1, documents[2])], ports))?;
    let tap = lab.ns.ip("link show tap-wide")?;
    ensure!(
        tap.contains("master vbt1") && tap.contains("LOWER_UP"),
        "{tap}"
    );
    drop(held);
    // A program that another test starts at this moment holds a copy until it runs.
    wait_for("no carrier", Duration::from_secs(10), || {
        let tap = lab.ns.ip("link show tap-wide")?;
        ensure!(tap.contains("NO-CARRIER"), "{tap}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn drift_is_seen_and_repaired() -> anyhow::Result<()> {
    let mut lab = Lab::new("drift")?;
    let full = world([lab::lab()], [tap("web")]);
    lab.settle(&full)?;
    let good = lab.observe()?;
    let guard = lab.runtime.handle().clone();
    let mut watch = lab.ns.enter(move || {
        let _runtime = guard.enter();
        Watch::new()
    })??;
    let damage = [
        (
            "addr del 10.50.0.1/24 dev vbt1",
            Drift::Address(name("vbt1")),
        ),
        ("addr del fd50::1/64 dev vbt1", Drift::Address(name("vbt1"))),
        ("route del 10.60.0.0/16", Drift::OurRoute(name("vbt1"))),
        ("link set vbt1 down", Drift::Link(name("vbt1"))),
        ("link set vbt1 mtu 1400", Drift::Link(name("vbt1"))),
        ("link set tap-web nomaster", Drift::Link(name("tap-web"))),
        ("link del tap-web", Drift::Link(name("tap-web"))),
        ("link del vbt1", Drift::Link(name("vbt1"))),
    ];
    for (command, told) in damage {
        lab.ns.ip(command)?;
        let seen = lab.runtime.block_on(async {
            let all = async { while watch.next().await != told {} };
            tokio::time::timeout(Duration::from_secs(10), all).await
        });
        ensure!(seen.is_ok(), "`ip {command}` was not told as {told:?}");
        ensure!(lab.observe()? != good, "`ip {command}` did no harm");
        // The kernel takes routes with addresses, so it may need a second look; never a third.
        lab.reach(&full)?;
        lab.settle(&full)?;
        let is = lab.observe()?;
        ensure!(is == good, "after `ip {command}`:\n{is}instead of\n{good}");
    }
    lab.ns.sh("echo 0 > /proc/sys/net/ipv4/ip_forward")?;
    let seen = lab.runtime.block_on(async {
        let all = async { while watch.next().await != Drift::Forwarding {} };
        tokio::time::timeout(Duration::from_secs(10), all).await
    });
    ensure!(seen.is_ok(), "forwarding was switched off unseen");
    lab.settle(&full)?;
    ensure!(lab.cat("net/ipv4/ip_forward")? == "1");
    Ok(())
}

#[test]
fn what_is_not_ours_is_left_alone() -> anyhow::Result<()> {
    let mut lab = Lab::new("foreign")?;
    // A bridge without a MAC of its own takes its ports' lowest: a tap must not change it.
    lab.ns.ip("link add br0 type bridge")?;
    lab.ns.ip("link set br0 up")?;
    lab.ns.ip("link add nic0 type veth peer name nic1")?;
    lab.ns.ip("link set nic1 up")?;
    lab.ns.ip("link set nic0 master br0 up")?;
    lab.ns.ip("link add veth0 type veth peer name veth1")?;
    lab.ns.ip("link set veth0 up")?;
    lab.ns.ip("link set veth0 alias uplink_of_alice")?;
    lab.ns.ip("link add theirs type veth peer name theirs1")?;
    let foreign = |lab: &Lab| {
        lab.ns
            .sh("ip -br link show br0; ip link show veth0; ip addr show theirs")
    };
    let before = foreign(&lab)?;

    let nic = port("lab", "nic", PortKind::External, "veth0");
    let mut plain = tap("plain");
    plain.key.home = Home::Bridge(name("br0"));
    let full = world([lab::lab()], [nic, plain]);
    lab.settle(&full)?;
    ensure!(lab.ns.ip("link show veth0")?.contains("master vbt1"));
    ensure!(
        lab.ns
            .ip("link show veth0")?
            .contains("alias uplink_of_alice")
    );
    ensure!(lab.ns.ip("link show tap-plain")?.contains("master br0"));

    // An address, a route and a port that others add to our bridge survive our changes.
    lab.ns.ip("addr add 198.51.100.1/24 dev vbt1")?;
    lab.ns.ip("route add 203.0.113.0/24 dev vbt1")?;
    lab.ns.ip("link set theirs master vbt1")?;
    ensure!(lab.plan(&full)?.is_empty(), "a stranger's things are drift");
    let wider = network(
        1,
        "name = \"lab\"\n[[subnet]]\naddress = \"10.50.0.1/16\"\n",
    );
    let mut next = full.clone();
    next.networks.insert(wider.name.clone(), wider);
    lab.settle(&next)?;
    ensure!(lab.ns.ip("addr show vbt1")?.contains("198.51.100.1/24"));
    ensure!(lab.ns.ip("route")?.contains("203.0.113.0/24 dev vbt1"));
    ensure!(lab.ns.ip("link show theirs")?.contains("master vbt1"));

    lab.settle(&World::default())?;
    let after = foreign(&lab)?;
    ensure!(before == after, "before:\n{before}after:\n{after}");
    Ok(())
}

#[test]
fn uplinks_keep_their_advertisements() -> anyhow::Result<()> {
    let mut lab = Lab::new("uplink")?;
    lab.ns.ip("link add eth0 type veth peer name eth1")?;
    let done = lab.settle(&world([lab::lab()], []))?;
    ensure!(lab.cat("net/ipv6/conf/all/forwarding")? == "1");
    ensure!(lab.cat("net/ipv6/conf/eth0/accept_ra")? == "2");
    let mut remembered = plan::Remembered::default();
    remembered.learn(&done);

    // An uplink that comes later is helped too, and all of them get their value back.
    lab.ns.ip("link add eth2 type veth peer name eth3")?;
    for (world, eth2) in [(world([lab::lab()], []), "2"), (World::default(), "1")] {
        let observed = lab.observe()?;
        let mut desired = plan::desired(&world);
        remembered.complete(&mut desired, &observed);
        let plan = plan::diff(&observed, &desired)?;
        let done = lab.execute(plan)??;
        remembered.learn(&done);
        ensure!(lab.cat("net/ipv6/conf/eth2/accept_ra")? == eth2);
    }
    ensure!(lab.cat("net/ipv6/conf/eth0/accept_ra")? == "1");
    ensure!(lab.cat("net/ipv6/conf/all/forwarding")? == "0");
    ensure!(lab.cat("net/ipv4/ip_forward")? == "0");
    Ok(())
}

#[test]
fn the_survey_sees_what_is_taken() -> anyhow::Result<()> {
    let mut lab = Lab::new("survey")?;
    lab.settle(&world([lab::lab()], []))?;
    lab.ns.ip("link add eth0 type veth peer name eth1")?;
    lab.ns.ip("link set eth0 up")?;
    lab.ns.ip("link property add dev eth0 altname virbr0")?;
    lab.ns.ip("addr add 192.168.122.7/30 dev eth0")?;
    lab.ns.ip("route add 172.16.0.0/12 via 192.168.122.6")?;
    lab.ns.ip("route add default via 192.168.122.6")?;
    lab.ns.ip("route add 0.0.0.0/1 via 192.168.122.6")?;
    lab.ns.ip("route add blackhole 10.99.0.0/16")?;
    let taken = lab.wait(async |kernel| kernel.survey().await)??;
    for (subnet, why) in [
        (
            "192.168.122.1/24",
            Some("address 192.168.122.7/30 of interface `eth0`"),
        ),
        (
            "172.20.1.1/24",
            Some("a route to 172.16.0.0/12 by interface `eth0`"),
        ),
        ("10.99.1.1/24", Some("a route to 10.99.0.0/16")),
        // Ours, and free.
        ("10.50.0.1/24", None),
        ("192.168.123.1/24", None),
    ] {
        let told = taken.overlap(&subnet.parse()?).map(|o| o.to_string());
        ensure!(told.as_deref() == why, "{subnet}: {told:?}");
    }
    ensure!(taken.has_interface(&name("eth0")) && taken.has_interface(&name("virbr0")));
    ensure!(!taken.has_interface(&name("vbt1")));
    Ok(())
}

#[test]
fn a_part_of_the_host_can_be_looked_at() -> anyhow::Result<()> {
    let mut lab = Lab::new("scope")?;
    lab.settle(&world([lab::lab()], [tap("web")]))?;
    let all = lab.observe()?;
    // The firewall is looked at only with everything.
    let links = HostState {
        firewall: None,
        ..all.clone()
    };
    let names = [name("vbt1"), name("tap-web"), name("nowhere")];
    let scope = Scope::Links(names.into());
    let part = lab.wait(async |kernel| kernel.observe(&scope).await)??;
    ensure!(part == links, "{part}is not\n{links}");

    // What is known stays true by looking only where something changed.
    let mut known = all.clone();
    lab.ns.ip("link del tap-web")?;
    let scope = Scope::Links([name("tap-web")].into());
    let seen = lab.wait(async |kernel| kernel.observe(&scope).await)??;
    known.refresh(&scope, seen);
    ensure!(known == lab.observe()?);
    Ok(())
}

#[test]
fn a_tap_that_nobody_keeps_is_gone() -> anyhow::Result<()> {
    let lab = Lab::new("tap")?;
    let options = plan::TapOptions::default();
    let tap = lab
        .ns
        .enter(|| host::tap::NewTap::create(&name("t0"), options))??;
    ensure!(lab.ns.ip("link show t0").is_ok());
    let again = lab
        .ns
        .enter(|| host::tap::NewTap::create(&name("t0"), options))?;
    ensure!(again.is_err_and(|e| e.to_string().contains("in use")));
    drop(tap);
    wait_for("the tap is gone", Duration::from_secs(10), || {
        ensure!(lab.ns.ip("link show t0").is_err(), "it is there");
        Ok(())
    })?;
    let one = NonZeroU16::new(1).context("one")?;
    ensure!(
        lab.ns
            .enter(|| host::tap::open(&name("t0"), false, one))?
            .is_err()
    );
    ensure!(lab.ns.ip("link show t0").is_err(), "opening made a tap");
    Ok(())
}
