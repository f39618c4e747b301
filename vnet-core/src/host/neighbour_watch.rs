//! Who is heard on links, as it happens: changes of the kernel's table of neighbours.
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are not ours, and grow"
)]

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::neighbour::{Neighbour, address, parse};
use super::socket::pieces;
use crate::types::IfName;

/// `RTNLGRP_NEIGH`.
const GROUP: u32 = 3;

/// What was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Somebody has an address.
    Here(IfName, Neighbour),
    /// Nobody answers for an address any more.
    Gone(IfName, IpAddr),
    /// The kernel keeps an address in mind no longer, whether it is there or not.
    Forgotten(IfName, IpAddr),
    /// Messages were lost: ask for the whole table.
    Resync,
}

/// A subscription in the network namespace it was made in.
pub struct NeighbourWatch {
    socket: TokioSocket,
    names: OwnedFd,
    pending: VecDeque<Heard>,
}

impl NeighbourWatch {
    /// Subscribes. Must be called on a tokio runtime with I/O.
    ///
    /// # Errors
    /// When the kernel has no rtnetlink.
    pub fn new() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let raw = socket.socket_mut();
        raw.bind(&SocketAddr::new(0, 0))?;
        raw.add_membership(GROUP)?;
        let inet = AddressFamily::INET;
        let names = socket_with(inet, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        Ok(Self {
            socket,
            names,
            pending: VecDeque::new(),
        })
    }

    /// The next thing heard. Safe to drop and call again.
    pub async fn next(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.pending.pop_front() {
                return heard;
            }
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => {
                    let heard: Vec<Heard> =
                        pieces(&datagram).filter_map(|p| self.read(p)).collect();
                    self.pending.extend(heard);
                }
                Err(_) => return Heard::Resync,
            }
        }
    }

    fn read(&self, piece: &[u8]) -> Option<Heard> {
        let (message, forgotten) = match NetlinkMessage::<Message>::deserialize(piece).ok()?.payload
        {
            NetlinkPayload::InnerMessage(Message::NewNeighbour(message)) => (message, false),
            NetlinkPayload::InnerMessage(Message::DelNeighbour(message)) => (message, true),
            NetlinkPayload::Overrun(_) => return Some(Heard::Resync),
            _ => return None,
        };
        let index = message.header.ifindex;
        let dev = netdevice::index_to_name(&self.names, index).ok()?;
        let dev = dev.parse().ok()?;
        if forgotten {
            return Some(Heard::Forgotten(dev, address(&message)?));
        }
        match message.header.state {
            // The kernel has forgotten the MAC by then.
            NeighbourState::Failed => Some(Heard::Gone(dev, address(&message)?)),
            NeighbourState::Reachable | NeighbourState::Stale => {
                Some(Heard::Here(dev, parse(&message)?))
            }
            _ => None,
        }
    }
}
