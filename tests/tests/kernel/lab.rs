//! The words these tests are written in: documents, ports, and a kernel in a namespace.

use anyhow::ensure;
use tests::Ns;
use uuid::Uuid;
use vnet_core::config::{Fill, native};
use vnet_core::host::Kernel;
use vnet_core::model::{Home, Network, Port, PortKey, PortKind, Qos, World};
use vnet_core::plan::{self, Host as _, HostState, Scope};
use vnet_core::types::IfName;

pub(crate) fn name(text: &str) -> IfName {
    text.parse().expect("an interface name")
}

/// A started network out of a document; the number makes its uuid and MAC.
pub(crate) fn network(number: u8, document: &str) -> Network {
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

pub(crate) fn lab() -> Network {
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

pub(crate) fn port(network: &str, label: &str, kind: PortKind, interface: &str) -> Port {
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
        asked6: Vec::new(),
        guard: true,
        isolated: false,
        queues: 1,
        qos: Qos::default(),
    }
}

/// A tap `tap-LABEL` of the network `lab`.
pub(crate) fn tap(label: &str) -> Port {
    port(
        "lab",
        label,
        PortKind::Tap { owner: None },
        &format!("tap-{label}"),
    )
}

pub(crate) fn world(
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
pub(crate) struct Lab {
    pub(crate) ns: Ns,
    pub(crate) kernel: Kernel,
    pub(crate) runtime: tokio::runtime::Runtime,
}

impl Lab {
    pub(crate) fn new(label: &str) -> anyhow::Result<Self> {
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

    /// Waits for something on a thread of the namespace, where programs are started too.
    pub(crate) fn wait<T: Send>(
        &mut self,
        work: impl AsyncFnOnce(&mut Kernel) -> T + Send,
    ) -> anyhow::Result<T> {
        let (runtime, kernel) = (&self.runtime, &mut self.kernel);
        self.ns.enter(move || runtime.block_on(work(kernel)))
    }

    pub(crate) fn observe(&mut self) -> anyhow::Result<HostState> {
        Ok(self.wait(async |kernel| kernel.observe(&Scope::All).await)??)
    }

    pub(crate) fn execute(
        &mut self,
        plan: plan::Plan,
    ) -> anyhow::Result<Result<plan::Done, plan::RolledBack>> {
        self.wait(async |kernel| plan::execute(plan, kernel).await)
    }

    pub(crate) fn plan(&mut self, world: &World) -> anyhow::Result<plan::Plan> {
        let observed = self.observe()?;
        Ok(plan::diff(&observed, &plan::desired(world))?)
    }

    pub(crate) fn reach(&mut self, world: &World) -> anyhow::Result<plan::Done> {
        let plan = self.plan(world)?;
        Ok(self.execute(plan)??)
    }

    /// Reaches a world, and finds nothing more to do.
    pub(crate) fn settle(&mut self, world: &World) -> anyhow::Result<plan::Done> {
        let done = self.reach(world)?;
        let again = self.plan(world)?;
        ensure!(again.is_empty(), "a second plan is not empty:\n{again}");
        Ok(done)
    }

    pub(crate) fn cat(&self, sysctl: &str) -> anyhow::Result<String> {
        Ok(self
            .ns
            .sh(&format!("cat /proc/sys/{sysctl}"))?
            .trim()
            .to_owned())
    }
}
