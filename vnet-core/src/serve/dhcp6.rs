//! DHCPv6 of one network: its server and its socket. Frames in, what is to be sent and committed out.

use std::io;
use std::net::UdpSocket;

use super::leases::Turn;
use super::packet::{Inbox, PacketSocket, index_of};
use crate::dhcp::v6::{
    Datagram, Message, Reason, SERVER_PORT, SERVERS, Scope, Server, Verdict, frame,
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
    bridge: Option<IfName>,
    link: Option<Link>,
}

/// The sockets on its bridge.
#[derive(Debug)]
struct Link {
    packets: PacketSocket,
    /// Holds port 547, and the membership of the servers' group that a snooping bridge wants to see.
    _group: Option<UdpSocket>,
    /// A socket said that its interface is down or gone.
    doubtful: bool,
}

impl Dhcp6 {
    pub(super) fn new(network: NetworkName, records: Vec<LeaseRecord>, now: Time) -> Self {
        Self {
            server: Server::new(Scope::silent(network.clone()), records, now),
            network,
            bridge: None,
            link: None,
        }
    }

    /// Serves this from now on; with `None` nothing, but what is known stays.
    pub(super) fn configure(&mut self, scope: Option<Scope>, bridge: IfName) {
        self.bridge = scope.is_some().then_some(bridge);
        if self.bridge.is_none() {
            self.link = None;
        }
        let silent = || Scope::silent(self.network.clone());
        self.server.configure(scope.unwrap_or_else(silent));
    }

    /// Opens what should be open: `Ok(true)` if there is a new socket. A bridge that is not there is no error.
    pub(super) fn open(&mut self) -> io::Result<bool> {
        let Some(bridge) = &self.bridge else {
            return Ok(false);
        };
        let index = match index_of(bridge) {
            Ok(index) => index,
            Err(e) if super::is_missing(&e) => {
                self.link = None;
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        if let Some(link) = &mut self.link
            && link.packets.index() == index
        {
            link.doubtful = false;
            return Ok(false);
        }
        self.link = None;
        let group = super::join(SERVERS, index, SERVER_PORT);
        self.link = Some(Link {
            packets: PacketSocket::dhcp6(bridge)?,
            // Frames come in all the same: the worst is a port-unreachable that clients ignore.
            _group: group
                .inspect_err(
                    |error| tracing::debug!(%bridge, %error, "port 547 is somebody else's"),
                )
                .ok(),
            doubtful: false,
        });
        Ok(true)
    }

    pub(super) fn packets(&self) -> Option<&PacketSocket> {
        self.link.as_ref().map(|link| &link.packets)
    }

    /// Whether a bridge that should be there is not, or may have been made anew.
    pub(super) fn should_look_again(&self) -> bool {
        self.bridge.is_some() && self.link.as_ref().is_none_or(|link| link.doubtful)
    }

    /// Reads what waits, and puts what follows into the turn. What more there is waits for the next one.
    pub(super) fn read(&mut self, now: Time, inbox: &mut Inbox, turn: &mut Turn) {
        let Some(link) = &mut self.link else {
            return;
        };
        let ours = link.packets.mac();
        let mut at_once = Vec::new();
        for _ in 0..BATCHES {
            match link.packets.receive(inbox) {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => {
                    link.doubtful = true;
                    break;
                }
            }
            for (bytes, checked) in inbox.frames() {
                let Some(datagram) = Datagram::parse(bytes, checked) else {
                    self.server.count_ignored(Reason::Malformed);
                    continue;
                };
                one(&mut self.server, now, &datagram, ours, &mut at_once, turn);
            }
        }
        link.packets.send(&at_once);
    }

    pub(super) fn expire(&mut self, now: Time, turn: &mut Turn) {
        self.server.expire(now);
        turn.events.extend(self.server.take_ended());
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
