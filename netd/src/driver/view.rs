//! The world as it is shown.

use std::net::IpAddr;

use vnet_core::config::native::NetworkDoc;
use vnet_core::model::{Network, Port, PortKind};
use vnet_core::serve::leases::{Lease, Stats};
use vnet_core::types::NetworkName;

use super::{Driver, Refusal};
use crate::wire::{DhcpShare, NetworkView, PortView, Status};

impl Driver {
    pub(super) async fn status(&self) -> Status {
        let warnings = self.warnings.all();
        let mut warnings: Vec<String> = warnings
            .map(|(name, text)| format!("network {name}: {text}"))
            .collect();
        warnings.extend(self.droppers().await);
        warnings.extend(self.greedy().await);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.started.elapsed().as_secs(),
            networks_running: self.world.active.len(),
            networks: self.world.networks.len(),
            ports: self.world.ports.len(),
            leases: self.tools.leases.list().await.len(),
            repairs: self.repairs,
            warnings,
        }
    }

    /// Ports that DHCP had to refuse something.
    async fn greedy(&self) -> Vec<String> {
        let stats = self.tools.leases.stats().await;
        let ports = self.world.ports.values();
        let told = ports.filter_map(|port| {
            let share = share_of(&stats, port)?;
            let refused = share.refusals();
            (!refused.is_empty()).then(|| {
                format!(
                    "port {}: its guest wants more of DHCP than its share: {}",
                    port.key,
                    refused.join(", ")
                )
            })
        });
        told.collect()
    }

    /// Chains of others that drop our guests' packets: what one table accepts, the next may still drop.
    async fn droppers(&self) -> Vec<String> {
        let forwards = self.world.running().any(|n| n.forward.needs_forwarding());
        if !forwards {
            return Vec::new();
        }
        let found = self.tools.kernel.nft().foreign_drop().await;
        let say = |chain| {
            format!(
                "{chain} drops forwarded packets that it does not know: guests may not get out. Accept them there by \
                 their bridge, for input and output (Docker: in its chain DOCKER-USER)"
            )
        };
        found.unwrap_or_default().into_iter().map(say).collect()
    }

    pub(super) async fn show_networks(&self) -> Vec<NetworkView> {
        let leases = self.tools.leases.list().await;
        self.world
            .networks
            .values()
            .map(|n| self.network_view(n, &leases))
            .collect()
    }

    pub(super) async fn show_network(&self, name: &NetworkName) -> Result<NetworkView, Refusal> {
        let network = self.world.networks.get(name).ok_or_else(|| {
            Refusal::NotFound(format!(
                "network `{name}` does not exist: `vnet network list` shows those that do"
            ))
        })?;
        Ok(self.network_view(network, &self.tools.leases.list().await))
    }

    fn network_view(&self, network: &Network, leases: &[Lease]) -> NetworkView {
        let v4 = network.subnets4.iter().map(|s| s.address.to_string());
        let v6 = network.subnets6.iter().map(|s| s.address.to_string());
        NetworkView {
            name: network.name.to_string(),
            uuid: network.uuid.to_string(),
            running: self.world.active.contains(&network.name),
            autostart: network.autostart,
            mode: network.forward.kind().word().to_owned(),
            bridge: network.bridge.name.to_string(),
            addresses: v4.chain(v6).collect(),
            domain: network.domain.as_ref().map(ToString::to_string),
            ports: self.world.ports_of(&network.name).count(),
            leases: leases.iter().filter(|l| l.network == network.name).count(),
            warnings: self.warnings.of(&network.name),
            document: NetworkDoc::of(network),
        }
    }

    pub(super) fn port_view(&self, port: &Port) -> PortView {
        let network = port
            .key
            .home
            .network()
            .and_then(|n| self.world.networks.get(n));
        let domain = network.and_then(|n| n.domain.as_ref());
        let dns_name = network.filter(|n| n.owns_bridge()).map(|_| match domain {
            Some(domain) => format!("{}.{domain}", port.key.name),
            None => port.key.name.to_string(),
        });
        let v4 = port.ipv4.iter().copied().map(IpAddr::V4);
        let v6 = port.ipv6.iter().copied().map(IpAddr::V6);
        let socket = self.vhost_socket(port);
        PortView {
            port: port.key.to_string(),
            network: port.key.home.to_string(),
            name: port.key.name.to_string(),
            kind: port.kind.word().to_owned(),
            interface: port.interface.to_string(),
            mac: port.mac.to_string(),
            addresses: v4.chain(v6).collect(),
            dns_name,
            guard: port.guard,
            isolated: port.isolated,
            rate_in: port.qos.inward.map(|rate| rate.to_string()),
            rate_out: port.qos.outward.map(|rate| rate.to_string()),
            live: port
                .key
                .home
                .network()
                .is_none_or(|n| self.world.active.contains(n)),
            dhcp: None,
            device: None,
            qemu: qemu(port, socket.as_deref()),
            cloud_hypervisor: cloud_hypervisor(port, socket.as_deref()),
            crosvm: crosvm(port, socket.as_deref()),
            socket,
        }
    }
}

pub(super) fn share_of(stats: &[Stats], port: &Port) -> Option<DhcpShare> {
    let network = port.key.home.network()?;
    let share = stats
        .iter()
        .find(|s| s.network == *network)?
        .shares
        .get(&port.mac)?;
    Some(DhcpShare {
        addresses: share.addresses,
        over_rate: share.over_rate,
        over_pool: share.over_pool,
        forged: share.forged,
    })
}

/// The memory of a vhost-user guest must be shared, and its size is what `-m` says, which is not ours to know. The lines of two ports go together: each
/// has a memory of its own name, of which the machine takes the last.
fn qemu(port: &Port, socket: Option<&str>) -> String {
    let (name, mac, interface) = (&port.key.name, port.mac, &port.interface);
    let queues = if port.queues > 1 {
        format!(",queues={}", port.queues)
    } else {
        String::new()
    };
    let mq = if port.queues > 1 {
        format!(",mq=on,vectors={}", 2 * port.queues + 2)
    } else {
        String::new()
    };
    let device = format!("-device virtio-net-pci,netdev={name},mac={mac}{mq}");
    match (&port.kind, socket) {
        (PortKind::Tap { .. }, _) => {
            format!(
                "-netdev tap,id={name},ifname={interface},script=no,downscript=no{queues} {device}"
            )
        }
        (PortKind::TapFd { .. }, _) if port.queues > 1 => {
            format!("-netdev tap,id={name},fds={{fds}} {device}")
        }
        (PortKind::TapFd { .. }, _) => format!("-netdev tap,id={name},fd={{fd}} {device}"),
        (PortKind::VhostUser { .. }, Some(socket)) => format!(
            "-chardev socket,id=c-{name},path={socket},reconnect=1 -netdev vhost-user,id={name},chardev=c-{name}{queues} {device} -object memory-backend-memfd,id=m-{name},size=1G,share=on -machine memory-backend=m-{name}"
        ),
        (PortKind::VhostUser { .. } | PortKind::External, _) => String::new(),
    }
}

fn cloud_hypervisor(port: &Port, socket: Option<&str>) -> String {
    let (mac, interface) = (port.mac, &port.interface);
    let queues = if port.queues > 1 {
        format!(",num_queues={}", 2 * port.queues)
    } else {
        String::new()
    };
    match (&port.kind, socket) {
        (PortKind::Tap { .. }, _) => format!("--net tap={interface},mac={mac}{queues}"),
        (PortKind::TapFd { .. }, _) if port.queues > 1 => {
            format!("--net fd=[{{fd-list}}],mac={mac}{queues}")
        }
        (PortKind::TapFd { .. }, _) => format!("--net fd={{fd}},mac={mac}"),
        (PortKind::VhostUser { .. }, Some(socket)) => {
            format!(
                "--memory size=1G,shared=on --net vhost_user=true,socket={socket},mac={mac}{queues}"
            )
        }
        (PortKind::VhostUser { .. } | PortKind::External, _) => String::new(),
    }
}

fn crosvm(port: &Port, socket: Option<&str>) -> String {
    let (mac, interface) = (port.mac, &port.interface);
    let pairs = if port.queues > 1 {
        format!(",vq-pairs={}", port.queues)
    } else {
        String::new()
    };
    match (&port.kind, socket) {
        (PortKind::Tap { .. }, _) => format!("--net tap-name={interface},mac={mac}{pairs}"),
        (PortKind::TapFd { .. }, _) => format!("--net tap-fd={{fd}},mac={mac}"),
        (PortKind::VhostUser { .. }, Some(socket)) => format!("--vhost-user net,socket={socket}"),
        (PortKind::VhostUser { .. } | PortKind::External, _) => String::new(),
    }
}
