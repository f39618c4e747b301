//! Our routes; the messages of `RTM_*ROUTE`.

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::worker::{Failure, PROTOCOL, Worker};
use crate::plan::Route;
use crate::types::IpNet;

impl Worker {
    /// Adds a route that bears our protocol number.
    pub(super) fn add_route(&mut self, route: &Route) -> Result<(), Failure> {
        let message = self.route(route)?;
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        Ok(self.socket.command(Message::NewRoute(message), flags)?)
    }

    /// Removes a route; one that is gone is fine.
    pub(super) fn remove_route(&mut self, route: &Route) -> Result<(), Failure> {
        let message = self.route(route)?;
        match self.socket.command(Message::DelRoute(message), 0) {
            Err(refusal) if refusal.is(libc::ESRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    fn route(&mut self, route: &Route) -> Result<RouteMessage, Failure> {
        let mut message = RouteMessage::default();
        let to = route.to.trunc();
        message.header.address_family = match to {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        message.header.destination_prefix_length = to.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Other(PROTOCOL);
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        let index = self.index(&route.dev)?;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::from(to.addr())),
            RouteAttribute::Gateway(RouteAddress::from(route.via)),
            RouteAttribute::Oif(index),
            RouteAttribute::Priority(route.metric),
        ];
        Ok(message)
    }
}
