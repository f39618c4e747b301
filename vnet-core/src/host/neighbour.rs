//! Who has been heard on a link: the kernel's table of neighbours.
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are not ours, and grow"
)]

use std::net::{IpAddr, Ipv6Addr};

use rtnetlink::packet_core::NLM_F_CREATE;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::worker::{Failure, Worker};
use crate::types::{IfName, Mac};

/// A neighbour that the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Its address.
    pub ip: IpAddr,
    /// Its MAC.
    pub mac: Mac,
    /// Whether it has answered lately.
    pub reachable: bool,
}

impl Worker {
    /// The neighbours on one link whose MAC is known.
    pub(super) fn neighbours(&mut self, dev: &IfName) -> Result<Vec<Neighbour>, Failure> {
        let index = self.index(dev)?;
        // Filtering by link takes an attribute that the crate cannot say for neighbours, so the rest is dropped here.
        let answers = self
            .socket
            .dump(&Message::GetNeighbour(NeighbourMessage::default()))?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                Message::NewNeighbour(message) if message.header.ifindex == index => parse(message),
                _ => None,
            })
            .collect())
    }

    /// Has the kernel ask whether these are there, as if something were to be sent to them; whom it heard just now it
    /// believes.
    pub(super) fn ask_for(&mut self, dev: &IfName, addresses: &[Ipv6Addr]) -> Result<(), Failure> {
        let index = self.index(dev)?;
        for address in addresses {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Inet6;
            message.header.ifindex = index;
            message.header.flags = NeighbourFlags::Use;
            let to = NeighbourAddress::Inet6(*address);
            message.attributes = vec![NeighbourAttribute::Destination(to)];
            self.socket
                .command(Message::NewNeighbour(message), NLM_F_CREATE)?;
        }
        Ok(())
    }
}

/// Whom a message is about.
pub(super) fn address(message: &NeighbourMessage) -> Option<IpAddr> {
    let mut all = message.attributes.iter();
    all.find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some((*v4).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    })
}

/// A neighbour with its MAC; one that never answered has none.
pub(super) fn parse(message: &NeighbourMessage) -> Option<Neighbour> {
    let mut all = message.attributes.iter();
    let mac = all.find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => Some(bytes.as_slice().try_into().ok()?),
        _ => None,
    });
    Some(Neighbour {
        ip: address(message)?,
        mac: Mac(mac?),
        reachable: message.header.state == NeighbourState::Reachable,
    })
}
