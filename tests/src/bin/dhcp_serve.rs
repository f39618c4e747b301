//! The DHCP service alone: one network of a TOML file, served on the bridge that the document names until killed.
//! What tests and benches run where a whole daemon would only be in the way.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use uuid::Uuid;
use vnet_core::config::{Fill, native};
use vnet_core::dhcp::{ra, v4, v6};
use vnet_core::model::World;
use vnet_core::serve::leases::{Leases, Wanted};
use vnet_core::types::Mac;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (Some(folder), Some(document)) = (args.next(), args.next()) else {
        bail!("usage: dhcp_serve LEASES NETWORK.toml");
    };
    let document = native::from_toml(&fs::read_to_string(document)?)?;
    let document = document.first().context("no network in the document")?;
    let network = document.settle(&Fill {
        uuid: Uuid::nil(),
        bridge: "br0".parse()?,
        mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
        subnets: Vec::new(),
    })?;
    let (name, bridge) = (network.name.clone(), network.bridge.name.clone());
    let subnets = network.subnets().collect();
    let mut world = World::default();
    world.active.insert(name.clone());
    world.networks.insert(name.clone(), network);

    let leases = Leases::start(Path::new(&folder))?;
    let wanted = Wanted {
        dhcp4: v4::Scope::of(&world, &name),
        dhcp6: v6::Scope::of(&world, &name),
        ra: ra::Scope::of(&world, &name),
        subnets: Some(subnets),
        network: name,
        bridge,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let failed = runtime.block_on(leases.configure(vec![wanted]));
    if let Some((network, why)) = failed.first() {
        bail!("{network}: {why}");
    }
    fs::write("/dev/stderr", "serving\n")?;
    loop {
        std::thread::park();
    }
}
