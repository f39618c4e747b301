//! The plan against the real kernel: made, adopted, changed, repaired, rolled back; nothing of anybody else's touched.

use std::collections::BTreeSet;

use anyhow::{Context as _, anyhow, ensure};
use tests::Ns;
use uuid::Uuid;
use vnet_core::config::{Fill, native};
use vnet_core::host::Kernel;
use vnet_core::model::{Home, Network, Owner, Port, PortKey, PortKind, World};
use vnet_core::plan::{self, Host, HostState, Scope};
use vnet_core::types::IfName;

fn name(text: &str) -> IfName {
    text.parse().expect("an interface name")
}

/// A started network out of a document; the number makes its uuid and MAC.
fn network(number: u8, document: &str) -> Network {
    let fill = Fill {
        uuid: Uuid::from_u128(number.into()),
        bridge: name(&format!("vbt{number}")),
        mac: vnet_core::types::Mac([0x52, 0x54, 0, 0xff, 0, number]),
        subnets: Vec::new(),
    };
    let docs = native::from_toml(document).expect("a document");
    docs.first()
        .expect("a network")
        .settle(&fill)
        .expect("valid")
}

fn lab() -> Network {
    network(
        1,
        r#"
        name = "lab"
        [[subnet]]
        address = "10.50.0.1/24"
        [[subnet]]
        address = "fd50::1/64"
        [[route]]
        to = "10.60.0.0/16"
        via = "10.50.0.9"
        "#,
    )
}

fn port(network: &str, label: &str, kind: PortKind, interface: &str) -> Port {
    Port {
        key: PortKey {
            home: Home::Network(network.parse().expect("a network name")),
            name: label.parse().expect("a port name"),
        },
        kind,
        interface: name(interface),
        mac: "52:54:00:00:00:01".parse().expect("a MAC"),
        ipv4: Vec::new(),
        ipv6: Vec::new(),
        guard: true,
        isolated: false,
        queues: 1,
    }
}

fn world(
    networks: impl IntoIterator<Item = Network>,
    ports: impl IntoIterator<Item = Port>,
) -> World {
    let mut world = World::default();
    for network in networks {
        world.active.insert(network.name.clone());
        world.networks.insert(network.name.clone(), network);
    }
    for port in ports {
        world.ports.insert(port.key.clone(), port);
    }
    world
}

/// The real kernel inside a namespace, driven from a test.
struct Lab {
    ns: Ns,
    kernel: Kernel,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new(label: &str) -> anyhow::Result<Self> {
        let ns = Ns::new(label)?;
        let kernel = ns.enter(Kernel::new)??;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            ns,
            kernel,
            runtime,
        })
    }

    fn observe(&mut self) -> anyhow::Result<HostState> {
        Ok(self.runtime.block_on(self.kernel.observe(&Scope::All))?)
    }

    fn plan(&mut self, world: &World) -> anyhow::Result<plan::Plan> {
        let observed = self.observe()?;
        Ok(plan::diff(&observed, &plan::desired(world))?)
    }

    fn reach(&mut self, world: &World) -> anyhow::Result<plan::Done> {
        let plan = self.plan(world)?;
        Ok(self
            .runtime
            .block_on(plan::execute(plan, &mut self.kernel))?)
    }

    /// Reaches a world, and finds nothing more to do.
    fn settle(&mut self, world: &World) -> anyhow::Result<plan::Done> {
        let done = self.reach(world)?;
        let again = self.plan(world)?;
        ensure!(again.is_empty(), "a second plan is not empty:\n{again}");
        Ok(done)
    }

    fn cat(&self, sysctl: &str) -> anyhow::Result<String> {
        Ok(self
            .ns
            .sh(&format!("cat /proc/sys/{sysctl}"))?
            .trim()
            .to_owned())
    }
}

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
    let full = world([self::lab()], [tap]);
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
    ensure!(!lab.ns.ip("-6 addr show vbt1")?.contains("tentative"));
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
    let done = lab.runtime.block_on(plan::execute(plan, &mut lab.kernel))?;
    remembered.learn(&done);
    ensure!(remembered.0.is_empty(), "still remembers {remembered:?}");
    let after = lab.observe()?;
    ensure!(before == after, "before:\n{before}after:\n{after}");
    Ok(())
}
