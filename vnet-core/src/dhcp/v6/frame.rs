//! A datagram to the server out of its frame, and a reply into one.

use std::net::Ipv6Addr;

use super::{Reply, Sender};
use crate::dhcp::ip6::{Envelope, Packet, UDP, seal};
use crate::types::Mac;

/// Where servers and relays listen.
pub const SERVER_PORT: u16 = 547;
/// Where clients listen.
pub(super) const CLIENT_PORT: u16 = 546;
/// `All_DHCP_Relay_Agents_and_Servers`.
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// `All_DHCP_Servers`, to which relays write (RFC 8415 section 7.1).
pub const SITE_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3);

/// A datagram to port 547, taken out of its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Who sent it.
    pub from: Sender,
    /// The message.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Takes a frame apart; `checked` says that the kernel vouches for the checksum.
    #[must_use]
    pub fn parse(frame: &'a [u8], checked: bool) -> Option<Self> {
        let packet = Packet::parse(frame, UDP, checked)?;
        let (head, rest) = packet.bytes.split_first_chunk::<8>()?;
        let len = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let to_us = u16::from_be_bytes([head[2], head[3]]) == SERVER_PORT;
        let payload = rest.get(..len.checked_sub(8)?)?;
        let envelope = packet.envelope;
        // RFC 8415 section 18.4: no client is without an address here.
        if !to_us || envelope.from.is_unspecified() {
            return None;
        }
        Some(Self {
            from: Sender {
                mac: Some(envelope.from_mac),
                address: envelope.from,
                to: envelope.to,
            },
            payload,
        })
    }
}

/// The frame that carries a reply to where the message's frame came from.
#[must_use]
pub fn frame(reply: &Reply, ours: Mac, to_mac: Mac) -> Vec<u8> {
    let envelope = Envelope {
        from_mac: ours,
        to_mac,
        from: reply.from.unwrap_or_else(|| ours.link_local()),
        to: reply.to,
        hops: 64,
    };
    let len = u16::try_from(8 + reply.bytes.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(usize::from(len));
    bytes.extend_from_slice(&SERVER_PORT.to_be_bytes());
    bytes.extend_from_slice(&reply.port.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&reply.bytes);
    seal(&envelope, UDP, bytes, 6)
}
