//! Which gateway addresses are listened at: as wanted. Where something is in the way, whoever wants it is told, and asks
//! again.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};

use rustix::event::epoll::EventFlags;
use tracing::debug;

use super::worker::{Token, Worker};
use super::{Wanted, listen};
use crate::dns::NetworkId;
use crate::serve::packet::index_of;
use crate::types::{IfName, NetworkName};

/// A gateway address that is served.
pub(super) struct Listener {
    pub(super) network: NetworkId,
    pub(super) address: IpAddr,
    pub(super) udp: UdpSocket,
    /// Whether answers to one client may go down as one.
    pub(super) joins: Cell<bool>,
    /// `None` while another program has the port.
    pub(super) tcp: Option<TcpListener>,
}

/// A network's place in the kernel.
pub(super) struct Bound {
    bridge: IfName,
    /// The kernel's number of the bridge: sockets stay with that one, whatever is made under its name later.
    index: Option<u32>,
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
            index: None,
            listeners: BTreeMap::new(),
        });
        let index = index_of(&bridge).ok();
        let moved = bound.bridge != bridge || bound.index != index;
        let gone = |address: &IpAddr| moved || !gateways.contains(address);
        for listener in extract(&mut bound.listeners, gone) {
            self.close(listener);
        }
        bound.bridge = bridge;
        bound.index = index;
        for address in gateways {
            bound.listeners.entry(address).or_insert(None);
        }
        self.networks.insert(network.clone(), bound);
        let problem = self.bind(&network)?;
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
        let (bridge, all) = (bound.bridge.clone(), bound.listeners.clone());
        let mut problems = Vec::new();
        for (address, listener) in all {
            let listener = match listener {
                Some(listener) => Ok(listener),
                None => self.listen(id, address, &bridge),
            };
            match listener {
                Ok(listener) => {
                    if let Some(bound) = self.networks.get_mut(network) {
                        bound.listeners.insert(address, Some(listener));
                    }
                    if let Err(e) = self.listen_tcp(listener, &bridge) {
                        problems.push(explain(address, "tcp", &bridge, &e));
                    }
                }
                Err(e) => problems.push(explain(address, "udp", &bridge, &e)),
            }
        }
        if problems.is_empty() {
            return None;
        }
        Some(problems.join("; "))
    }

    fn listen(
        &mut self,
        network: NetworkId,
        address: IpAddr,
        bridge: &IfName,
    ) -> io::Result<usize> {
        let index = self.listeners.insert(Listener {
            network,
            address,
            udp: listen::udp(address, bridge)?,
            joins: Cell::new(true),
            tcp: None,
        });
        let watch = |l: &Listener| self.watch(&l.udp, Token::Udp(index), EventFlags::IN);
        self.listeners
            .get(index)
            .map_or(Ok(()), watch)
            .inspect_err(|_| self.close(index))?;
        debug!(%address, %bridge, "DNS is served");
        Ok(index)
    }

    fn listen_tcp(&mut self, index: usize, bridge: &IfName) -> io::Result<()> {
        let Some(listener) = self.listeners.get(index).filter(|l| l.tcp.is_none()) else {
            return Ok(());
        };
        let tcp = listen::tcp(listener.address, bridge)?;
        self.watch(&tcp, Token::Tcp(index), EventFlags::IN)?;
        if let Some(listener) = self.listeners.get_mut(index) {
            listener.tcp = Some(tcp);
        }
        Ok(())
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

/// What to tell the person whose network has no DNS, or only half.
fn explain(address: IpAddr, protocol: &str, bridge: &IfName, error: &io::Error) -> String {
    let without = match protocol {
        "tcp" => "large answers do not reach the guests of",
        _ => "there is no DNS for the guests of",
    };
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        format!(
            "{address} port 53/{protocol} is taken by another program (`ss -lnp sport = 53` names it): until it lets \
             go {without} {bridge}"
        )
    } else if kind == io::ErrorKind::PermissionDenied {
        format!(
            "no permission for {address} port 53/{protocol} (it takes CAP_NET_BIND_SERVICE and CAP_NET_RAW): {without} \
             {bridge}"
        )
    } else {
        format!("cannot listen at {address} port 53/{protocol}: {error}; {without} {bridge}")
    }
}
