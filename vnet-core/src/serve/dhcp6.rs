//! DHCPv6 of one network: its server and its socket. Frames in, what is to be sent and committed out.

use std::io;
use std::net::UdpSocket;

use super::bridged::Bridged;
use super::leases::Turn;
use super::packet::{Inbox, PacketSocket};
use crate::dhcp::v6::{
    Datagram, Message, Reason, SERVER_PORT, SERVERS, SITE_SERVERS, Scope, Server, Verdict, frame,
};
use crate::lease::{LeaseRecord, Time};
use crate::types::{IfName, Mac, NetworkName};

/// Batches read from one network before the others have their turn.
const BATCHES: usize = 8;

/// DHCPv6 of one network.
#[derive(Debug)]
pub(super) struct Dhcp6 {
    pub(super) server: Server,
    network: NetworkName,
    /// Beside the packets: a socket that holds port 547, and the membership of the servers' group that a snooping
    /// bridge wants to see.
    pub(super) sockets: Bridged<Option<UdpSocket>>,
}

impl Dhcp6 {
    pub(super) fn new(network: NetworkName, records: Vec<LeaseRecord>, now: Time) -> Self {
        Self {
            server: Server::new(Scope::silent(network.clone()), records, now),
            network,
            sockets: Bridged::default(),
        }
    }

    /// Serves this from now on; with `None` nothing, but what is known stays.
    pub(super) fn configure(&mut self, scope: Option<Scope>, bridge: IfName) {
        self.sockets.want(scope.is_some().then_some(bridge));
        let silent = || Scope::silent(self.network.clone());
        self.server.configure(scope.unwrap_or_else(silent));
    }

    /// Opens what should be open: `Ok(true)` if there is a new socket.
    pub(super) fn open(&mut self) -> io::Result<bool> {
        self.sockets.open(|bridge, index| {
            // Frames come in all the same: the worst is a port-unreachable that clients ignore.
            let group = super::join(SERVERS, index, SERVER_PORT);
            let group = group.and_then(|socket| {
                socket.join_multicast_v6(&SITE_SERVERS, index)?;
                Ok(socket)
            });
            let group = group.inspect_err(
                |error| tracing::debug!(%bridge, %error, "port 547 is somebody else's"),
            );
            Ok((PacketSocket::dhcp6(bridge)?, group.ok()))
        })
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
    let Ok(message) = Message::parse(datagram.payload) else {
        return server.count_ignored(Reason::Malformed);
    };
    let to = datagram.from.mac.unwrap_or(Mac::BROADCAST);
    let verdict = server.handle(now, &datagram.from, &message);
    let kind = message.kind.word();
    match verdict {
        Verdict::Ignore(reason) => tracing::trace!(kind, source = %to, what = reason.word()),
        Verdict::Reply(reply) => {
            tracing::trace!(kind, source = %to, what = reply.kind.word());
            at_once.push(frame(&reply, ours, to));
        }
        Verdict::Commit {
            records,
            events,
            then,
        } => {
            tracing::trace!(kind, source = %to, what = then.kind.word(), "commit");
            turn.promise(records, events, Some(frame(&then, ours, to)));
        }
    }
}
