//! Addresses on our bridges; the messages of `RTM_*ADDR`.

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::worker::{Failure, PROTOCOL, Worker};
use crate::types::{IfName, IpNet};

impl Worker {
    /// Gives a link an address that bears our protocol number; one that is there already becomes ours.
    pub(super) fn add_address(&mut self, dev: &IfName, address: IpNet) -> Result<(), Failure> {
        let mut message = self.address(dev, address)?;
        message
            .attributes
            .push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
        if let IpNet::V4(net) = address
            && net.prefix_len() < 31
        {
            message
                .attributes
                .push(AddressAttribute::Broadcast(net.broadcast()));
        }
        if let IpNet::V6(_) = address {
            // Ours by definition: without asking around first it serves at once, on an empty bridge too.
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        Ok(self.socket.command(Message::NewAddress(message), flags)?)
    }

    /// Takes an address away; one that is gone is fine.
    pub(super) fn remove_address(&mut self, dev: &IfName, address: IpNet) -> Result<(), Failure> {
        let message = self.address(dev, address)?;
        match self.socket.command(Message::DelAddress(message), 0) {
            Err(refusal) if refusal.is(libc::EADDRNOTAVAIL) => Ok(()),
            other => Ok(other?),
        }
    }

    fn address(&mut self, dev: &IfName, address: IpNet) -> Result<AddressMessage, Failure> {
        let mut message = AddressMessage::default();
        message.header.index = self.index(dev)?;
        message.header.prefix_len = address.prefix_len();
        message.header.family = match address {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        message
            .attributes
            .push(AddressAttribute::Address(address.addr()));
        message
            .attributes
            .push(AddressAttribute::Local(address.addr()));
        Ok(message)
    }
}
