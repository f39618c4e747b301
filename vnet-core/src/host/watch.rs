//! What changes behind our back, as the kernel tells it.
//!
//! A watch says *where* to look, not what is wrong: the caller waits until it is quiet, observes that scope and calls
//! `diff`. Our own changes are told too; then the difference is empty.
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are not ours, and grow"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with, sockopt};

use super::socket::pieces;
use super::worker::PROTOCOL;
use crate::types::IfName;

/// Groups of rtnetlink that concern us: links, addresses, routes and the sysctls of interfaces, of both families.
const GROUPS: [u32; 7] = [1, 5, 7, 9, 11, 24, 25];
/// `RTM_NEWNETCONF`, which the crate does not read.
const NEW_NETCONF: u16 = 80;
/// A burst of 1,000 networks is some megabytes of messages.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Something changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drift {
    /// A link appeared, changed or went.
    Link(IfName),
    /// An address of a link appeared or went.
    Address(IfName),
    /// A route of ours by a link appeared or went.
    OurRoute(IfName),
    /// A route of somebody else's appeared: it may overlap a subnet of ours.
    ForeignRoute,
    /// A forwarding setting of the host or an interface.
    Forwarding,
    /// Messages were lost: look at everything.
    Resync,
}

/// A subscription to changes in the network namespace it was made in.
pub struct Watch {
    socket: TokioSocket,
    names: OwnedFd,
    pending: VecDeque<Drift>,
}

impl Watch {
    /// Subscribes. Must be called on a tokio runtime with I/O, before the first observation, so that nothing is missed.
    ///
    /// # Errors
    /// When the kernel has no rtnetlink.
    pub fn new() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let raw = socket.socket_mut();
        raw.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            raw.add_membership(group)?;
        }
        let inet = AddressFamily::INET;
        let names = socket_with(inet, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        // As much as the host's limit lets us; a burst beyond it costs a resync.
        if sockopt::set_socket_recv_buffer_size_force(&*raw, RECEIVE_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&*raw, RECEIVE_BUFFER)?;
        }
        Ok(Self {
            socket,
            names,
            pending: VecDeque::new(),
        })
    }

    /// The next change. Safe to drop and call again.
    pub async fn next(&mut self) -> Drift {
        loop {
            if let Some(drift) = self.pending.pop_front() {
                return drift;
            }
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => self.take(&datagram),
                // The socket's buffer ran over (ENOBUFS), or worse: either way we do not know.
                Err(_) => return Drift::Resync,
            }
        }
    }

    fn take(&mut self, datagram: &[u8]) {
        for piece in pieces(datagram) {
            if u16::from_ne_bytes([piece[4], piece[5]]) == NEW_NETCONF {
                self.push(Drift::Forwarding);
                continue;
            }
            let Ok(message) = NetlinkMessage::<Message>::deserialize(piece) else {
                continue;
            };
            if let Some(drift) = self.read(message.payload) {
                self.push(drift);
            }
        }
    }

    /// The same thing twice in a row is one thing.
    fn push(&mut self, drift: Drift) {
        if self.pending.back() != Some(&drift) {
            self.pending.push_back(drift);
        }
    }

    fn read(&self, payload: NetlinkPayload<Message>) -> Option<Drift> {
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => return Some(Drift::Resync),
            _ => return None,
        };
        match message {
            Message::NewLink(link) | Message::DelLink(link) => name_of(&link).map(Drift::Link),
            Message::NewAddress(a) | Message::DelAddress(a) => {
                self.name(a.header.index).map(Drift::Address)
            }
            Message::NewRoute(route) | Message::DelRoute(route) if ours(&route) => {
                self.name(link_of(&route)?).map(Drift::OurRoute)
            }
            Message::NewRoute(_) => Some(Drift::ForeignRoute),
            _ => None,
        }
    }

    /// A link that is gone is told by a message of its own.
    fn name(&self, index: u32) -> Option<IfName> {
        let name = netdevice::index_to_name(&self.names, index).ok()?;
        name.parse().ok()
    }
}

fn name_of(link: &LinkMessage) -> Option<IfName> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => name.parse().ok(),
            _ => None,
        })
}

fn link_of(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

fn ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(PROTOCOL)
}
