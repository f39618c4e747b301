//! Which gateway addresses are listened at: as wanted, and again and again where something is in the way.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use tracing::{debug, info, warn};

use super::Wanted;
use super::worker::{Token, Worker};
use crate::dns::NetworkId;
use crate::types::{IfName, NetworkName};

/// How long until a gateway address that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// A gateway address that is served.
pub(super) struct Listener {
    pub(super) network: NetworkId,
    pub(super) address: IpAddr,
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

/// A network's place in the kernel.
pub(super) struct Bound {
    bridge: IfName,
    /// Each gateway address with its listener, or without if it could not be bound.
    listeners: BTreeMap<IpAddr, Option<usize>>,
}

impl Worker {
    /// Serves one network as wanted; the error says what cannot be served yet.
    pub(super) fn configure(
        &mut self,
        (network, zone, bridge): Wanted,
    ) -> Option<(NetworkName, String)> {
        let Some(zone) = zone else {
            self.forget(&network);
            return None;
        };
        let gateways = zone.gateways().to_vec();
        self.resolver.directory_mut().put(zone);
        let mut bound = self.networks.remove(&network).unwrap_or_else(|| Bound {
            bridge: bridge.clone(),
            listeners: BTreeMap::new(),
        });
        let moved = bound.bridge != bridge;
        let gone = |address: &IpAddr| moved || !gateways.contains(address);
        for listener in extract(&mut bound.listeners, gone) {
            self.close(listener);
        }
        bound.bridge = bridge;
        for address in gateways {
            bound.listeners.entry(address).or_insert(None);
        }
        self.networks.insert(network.clone(), bound);
        let problem = self.bind(&network)?;
        warn!(%network, problem, "DNS is not served on every gateway; it is tried again");
        Some((network, problem))
    }

    fn forget(&mut self, network: &NetworkName) {
        self.resolver.directory_mut().remove(network);
        let bound = self.networks.remove(network);
        for listener in bound
            .into_iter()
            .flat_map(|b| b.listeners.into_values())
            .flatten()
        {
            self.close(listener);
        }
    }

    fn close(&mut self, listener: usize) {
        // Closing the sockets takes them out of the epoll: nobody else holds them.
        drop(self.listeners.remove(listener));
    }

    /// Binds what is not bound yet; the sentence says what could not be.
    fn bind(&mut self, network: &NetworkName) -> Option<String> {
        let id = self.resolver.directory().id(network)?;
        let bound = self.networks.get(network)?;
        let bridge = bound.bridge.clone();
        let missing: Vec<IpAddr> = bound
            .listeners
            .iter()
            .filter_map(|(address, listener)| listener.is_none().then_some(*address))
            .collect();
        let mut problems = Vec::new();
        for address in missing {
            match self.listen(id, address, &bridge) {
                Ok(listener) => {
                    if let Some(bound) = self.networks.get_mut(network) {
                        bound.listeners.insert(address, Some(listener));
                    }
                }
                Err(e) => problems.push(explain(address, &bridge, &e)),
            }
        }
        if problems.is_empty() {
            return None;
        }
        self.retry_at.get_or_insert(Instant::now() + RETRY);
        Some(problems.join("; "))
    }

    fn listen(
        &mut self,
        network: NetworkId,
        address: IpAddr,
        bridge: &IfName,
    ) -> io::Result<usize> {
        let (udp, tcp) = super::listen::bind(address, bridge)?;
        let index = self.listeners.insert(Listener {
            network,
            address,
            udp,
            tcp,
        });
        let watched = self.listeners.get(index).map_or(Ok(()), |l| {
            self.watch(&l.udp, Token::Udp(index), epoll::EventFlags::IN)?;
            self.watch(&l.tcp, Token::Tcp(index), epoll::EventFlags::IN)
        });
        watched.inspect_err(|_| self.close(index))?;
        debug!(%address, %bridge, "DNS is served");
        Ok(index)
    }

    /// Tries again what could not be bound, when it is time.
    pub(super) fn retry(&mut self, now: Instant) {
        if self.retry_at.is_none_or(|at| at > now) {
            return;
        }
        self.retry_at = None;
        let waiting = |bound: &Bound| bound.listeners.values().any(Option::is_none);
        let all = self.networks.iter().filter(|(_, bound)| waiting(bound));
        let all: Vec<NetworkName> = all.map(|(name, _)| name.clone()).collect();
        for network in all {
            if self.bind(&network).is_none() {
                info!(%network, "DNS is served on every gateway now");
            }
        }
    }
}

/// Takes out the listeners of addresses that are gone.
fn extract(
    listeners: &mut BTreeMap<IpAddr, Option<usize>>,
    gone: impl Fn(&IpAddr) -> bool,
) -> Vec<usize> {
    let mut closed = Vec::new();
    listeners.retain(|address, listener| {
        let gone = gone(address);
        if gone {
            closed.extend(*listener);
        }
        !gone
    });
    closed
}

/// What to tell the person whose network has no DNS.
fn explain(address: IpAddr, bridge: &IfName, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{address} port 53 is taken by another program (`ss -lnp sport = 53` names it): guests get no DNS from \
             {bridge} until it lets go"
        ),
        io::ErrorKind::PermissionDenied => {
            format!(
                "no permission to listen on {address} port 53 (CAP_NET_BIND_SERVICE and CAP_NET_RAW)"
            )
        }
        _ => format!("cannot listen on {address} port 53 of {bridge}: {error}"),
    }
}
