//! DHCPv4 of one network: its server and its sockets. Frames in, what is to be sent and committed out.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::bridged::Bridged;
use super::leases::Turn;
use super::packet::{Inbox, PacketSocket, deafen};
use crate::dhcp::v4::{Datagram, Message, Reason, Reply, Scope, Sender, Server, Verdict};
use crate::dhcp::v4::{arp_answer, arp_probe, frame};
use crate::lease::{LeaseRecord, Time};
use crate::types::{IfName, Mac, NetworkName};

/// Batches read from one network before the others have their turn (and what was read is committed).
const BATCHES: usize = 8;

/// DHCPv4 of one network.
#[derive(Debug)]
pub(super) struct Dhcp4 {
    pub(super) server: Server,
    pub(super) sockets: Bridged<Aside>,
}

/// What it has on its bridge beside the socket that hears messages.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) arp: PacketSocket,
    /// Ports 67 of our addresses, held so that the kernel does not answer "port unreachable" to unicast requests.
    ports: Vec<UdpSocket>,
}

impl Dhcp4 {
    pub(super) fn new(network: NetworkName, records: Vec<LeaseRecord>, now: Time) -> Self {
        Self {
            server: Server::new(Scope::silent(network), records, now),
            sockets: Bridged::default(),
        }
    }

    /// Serves this from now on; with `None` nothing, but what is known stays, for the ports that come before the
    /// next start.
    pub(super) fn configure(&mut self, scope: Option<Scope>, bridge: IfName) {
        self.sockets.want(scope.is_some().then_some(bridge));
        if let Some(scope) = scope {
            self.server.configure(scope);
        }
    }

    /// Opens what should be open: `Ok(true)` if there are new sockets.
    pub(super) fn open(&mut self) -> io::Result<bool> {
        let is_new = self.sockets.open(|bridge, _| {
            let arp = PacketSocket::arp(bridge)?;
            let ports = Vec::new();
            Ok((PacketSocket::dhcp(bridge)?, Aside { arp, ports }))
        })?;
        if let Some(aside) = self.sockets.extra_mut() {
            let ours = self.server.scope().addresses.iter().map(|a| a.addr());
            aside.hold_ports(ours.collect());
        }
        Ok(is_new)
    }

    /// Reads what waits, and puts what follows into the turn. What more there is waits for the next one.
    pub(super) fn read(&mut self, now: Time, inbox: &mut Inbox, turn: &mut Turn) {
        let server = &mut self.server;
        self.sockets.read(
            BATCHES,
            inbox,
            |bytes, checked, ours, at_once| match Datagram::parse(bytes, checked) {
                Some(datagram) => one(server, now, &datagram, ours, at_once, turn),
                None => server.count_ignored(Reason::Malformed),
            },
        );
    }

    /// Reads answers to our ARP questions.
    pub(super) fn read_arp(&mut self, now: Time, inbox: &mut Inbox, turn: &mut Turn) {
        let Some(aside) = self.sockets.extra() else {
            return;
        };
        while matches!(aside.arp.receive(inbox), Ok(1..)) {
            for (bytes, _) in inbox.frames() {
                let Some((address, mac)) = arp_answer(bytes) else {
                    continue;
                };
                let verdict = self.server.conflict(now, address, mac);
                if let Verdict::Commit {
                    records, events, ..
                } = verdict
                {
                    turn.promise(records, events, None);
                }
            }
        }
    }
}

impl Aside {
    fn hold_ports(&mut self, ours: Vec<Ipv4Addr>) {
        let held = |socket: &UdpSocket| match socket.local_addr() {
            Ok(address) => Some(address.ip()),
            Err(_) => None,
        };
        self.ports
            .retain(|s| held(s).is_some_and(|ip| ours.iter().any(|a| IpAddr::V4(*a) == ip)));
        for address in ours {
            let known = self.ports.iter().any(|s| held(s) == Some(address.into()));
            if known {
                continue;
            }
            match hold(address) {
                Ok(socket) => self.ports.push(socket),
                // Frames come in all the same: the worst is a port-unreachable that clients ignore.
                Err(e) => tracing::debug!(%address, error = %e, "port 67 is somebody else's"),
            }
        }
    }
}

/// A UDP socket that owns a port and hears nothing.
fn hold(address: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    deafen(&socket.as_fd())?;
    socket.set_reuse_address(true)?;
    socket.set_freebind_v4(true)?;
    socket.bind(&SocketAddr::from((address, 67)).into())?;
    Ok(socket.into())
}

/// One datagram: what may go at once goes to `at_once`, what waits for the disk into the turn.
fn one(
    server: &mut Server,
    now: Time,
    datagram: &Datagram<'_>,
    ours: Mac,
    at_once: &mut Vec<Vec<u8>>,
    turn: &mut Turn,
) {
    let message = match Message::parse(datagram.payload) {
        Ok(message) => message,
        Err(why) => {
            tracing::trace!(?why, "not a DHCP message");
            return server.count_ignored(Reason::Malformed);
        }
    };
    let via = datagram.from.mac.unwrap_or(Mac::BROADCAST);
    let packed = |reply: &Reply| {
        if !reply.left_out.is_empty() {
            tracing::debug!(options = ?reply.left_out, %via, "no room for what the client asked for");
        }
        frame(reply, ours, via)
    };
    let verdict = server.handle(now, &datagram.from, &message);
    trace(&message, &datagram.from, &verdict);
    match verdict {
        Verdict::Ignore(_) => {}
        Verdict::Reply(reply) => at_once.push(packed(&reply)),
        Verdict::Probe { address, then } => {
            at_once.push(arp_probe(address, ours));
            at_once.extend(then.as_ref().map(packed));
        }
        Verdict::Commit {
            records,
            events,
            then,
        } => turn.promise(records, events, then.as_ref().map(packed)),
    }
}

fn trace(message: &Message<'_>, from: &Sender, verdict: &Verdict) {
    if !tracing::enabled!(tracing::Level::TRACE) {
        return;
    }
    let what = match verdict {
        Verdict::Ignore(reason) => reason.word(),
        Verdict::Reply(reply)
        | Verdict::Probe {
            then: Some(reply), ..
        } => reply.kind.word(),
        Verdict::Probe { then: None, .. } => "probe",
        Verdict::Commit {
            then: Some(reply), ..
        } => reply.kind.word(),
        Verdict::Commit { then: None, .. } => "commit",
    };
    let source = from.mac.map(|m| m.to_string());
    tracing::trace!(kind = message.kind.word(), xid = message.xid, source, what);
}
