//! Ethernet, IPv4 and UDP around a DHCP message. Frames, because a client without an address can only be reached by
//! its MAC, and because only the frame's source says who really sent a message.

use std::net::Ipv4Addr;

use super::{Destination, Reply, Sender};
use crate::types::Mac;

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// A datagram to port 67, taken out of its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Who sent the frame.
    pub from: Sender,
    /// The DHCP message.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Takes a frame apart. `None` for what is no whole UDP datagram to port 67, or is damaged; `checked` says that
    /// the kernel vouches for the UDP checksum (or that the sender left it to hardware that is not there).
    #[must_use]
    pub fn parse(frame: &'a [u8], checked: bool) -> Option<Self> {
        let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
        let source = Mac(*ethernet.get(6..12)?.first_chunk()?);
        if ethernet.get(12..14)? != [0x08, 0x00] {
            return None;
        }
        let first = *packet.first()?;
        let header = usize::from(first & 0x0f) * 4;
        let total = usize::from(u16_at(packet, 2)?);
        if first >> 4 != 4 || header < IP || total < header + UDP {
            return None;
        }
        // Not a fragment: DHCP fits a packet, and nothing reassembles here.
        if packet.get(9)? != &17 || u16_at(packet, 6)? & 0x3fff != 0 {
            return None;
        }
        let packet = packet.get(..total)?;
        if sum(&packet[..header], 0) != 0xffff {
            return None;
        }
        let datagram = &packet[header..];
        let len = usize::from(u16_at(datagram, 4)?);
        let datagram = datagram.get(..len)?;
        let payload = datagram.get(UDP..)?;
        if u16_at(datagram, 2)? != SERVER_PORT || source.is_group() {
            return None;
        }
        let unchecked = u16_at(datagram, 6)? == 0;
        if !checked && !unchecked && sum(datagram, pseudo(&packet[12..20], len)) != 0xffff {
            return None;
        }
        let address = |at: usize| Some(Ipv4Addr::from(*packet.get(at..)?.first_chunk::<4>()?));
        Some(Self {
            from: Sender {
                mac: Some(source),
                ip: address(12),
                to: address(16),
            },
            payload,
        })
    }
}

/// The frame that carries a reply; `via` is where the request's frame came from, which is where a relay's reply goes.
#[must_use]
pub fn frame(reply: &Reply, ours: Mac, via: Mac) -> Vec<u8> {
    let (mac, to, port) = match reply.to {
        Destination::Broadcast => (Mac::BROADCAST, Ipv4Addr::BROADCAST, CLIENT_PORT),
        Destination::Client(mac, address) => (mac, address, CLIENT_PORT),
        Destination::Relay(relay) => (via, relay, SERVER_PORT),
    };
    let udp_len = UDP + reply.bytes.len();
    let mut out = Vec::with_capacity(ETHERNET + IP + udp_len);
    out.extend_from_slice(&mac.0);
    out.extend_from_slice(&ours.0);
    out.extend_from_slice(&[0x08, 0x00]);
    let short = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    out.extend_from_slice(&[0x45, 0x10]);
    out.extend_from_slice(&short(IP + udp_len));
    out.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    out.extend_from_slice(&reply.from.octets());
    out.extend_from_slice(&to.octets());
    let check = !sum(&out[ETHERNET..], 0);
    out[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&check.to_be_bytes());
    out.extend_from_slice(&SERVER_PORT.to_be_bytes());
    out.extend_from_slice(&port.to_be_bytes());
    out.extend_from_slice(&short(udp_len));
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&reply.bytes);
    let datagram = ETHERNET + IP;
    let addresses = pseudo(&out[datagram - 8..datagram], udp_len);
    let check = match !sum(&out[datagram..], addresses) {
        0 => 0xffff,
        check => check,
    };
    out[datagram + 6..datagram + 8].copy_from_slice(&check.to_be_bytes());
    out
}

/// The question "who has this address", asked by nobody (RFC 5227 section 2.1.1): it enters no ARP cache.
#[must_use]
pub fn arp_probe(address: Ipv4Addr, ours: Mac) -> Vec<u8> {
    let mut out = Vec::with_capacity(42);
    out.extend_from_slice(&Mac::BROADCAST.0);
    out.extend_from_slice(&ours.0);
    out.extend_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    out.extend_from_slice(&ours.0);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(&address.octets());
    out
}

/// Who says in an ARP answer that it has which address.
#[must_use]
pub fn arp_answer(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let arp = frame.get(ETHERNET..ETHERNET + 28)?;
    if frame.get(12..14)? != [0x08, 0x06] || arp[..8] != [0, 1, 0x08, 0, 6, 4, 0, 2] {
        return None;
    }
    let mac = Mac(*arp[8..].first_chunk()?);
    Some((Ipv4Addr::from(*arp[14..].first_chunk::<4>()?), mac))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The start of a UDP checksum: addresses, protocol, length.
fn pseudo(addresses: &[u8], len: usize) -> u32 {
    u32::from(sum(addresses, 0)) + 17 + u32::try_from(len).unwrap_or(0)
}

/// The Internet checksum's folded sum (RFC 1071).
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut total = u64::from(start);
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        total += u64::from(u16::from_be_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u64::from(*last) << 8;
    }
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dhcp::v4::MessageType;

    fn reply(bytes: Vec<u8>, to: Destination) -> Reply {
        Reply {
            kind: MessageType::Ack,
            from: Ipv4Addr::new(10, 0, 0, 1),
            to,
            bytes,
            left_out: Vec::new(),
        }
    }

    #[test]
    fn a_reply_to_a_relay_is_a_datagram_to_a_server() {
        let (ours, relay) = (Mac([2; 6]), Mac([4; 6]));
        for len in [0, 1, 300, 577] {
            let payload: Vec<u8> = (0..=250u8).cycle().take(len).collect();
            let address = Ipv4Addr::new(10, 9, 0, 7);
            let bytes = frame(
                &reply(payload.clone(), Destination::Relay(address)),
                ours,
                relay,
            );
            let parsed = Datagram::parse(&bytes, false).unwrap();
            assert_eq!(parsed.payload, payload);
            let from = Sender {
                mac: Some(ours),
                ip: Some(Ipv4Addr::new(10, 0, 0, 1)),
                to: Some(address),
            };
            assert_eq!(parsed.from, from);
            assert_eq!(bytes[..6], relay.0);
            let damaged = |at: usize| {
                let mut bytes = bytes.clone();
                bytes[at] ^= 0x10;
                Datagram::parse(&bytes, false).is_some()
            };
            assert!(!damaged(ETHERNET + 8), "IP header");
            assert!(!damaged(bytes.len() - 1), "payload");
        }
    }

    #[test]
    fn an_arp_question_is_no_answer() {
        let probe = arp_probe(Ipv4Addr::new(10, 0, 0, 9), Mac([2; 6]));
        assert_eq!(arp_answer(&probe), None);
        let mut answer = probe;
        answer[21] = 2;
        answer[28..32].copy_from_slice(&[10, 0, 0, 9]);
        let expected = Some((Ipv4Addr::new(10, 0, 0, 9), Mac([2; 6])));
        assert_eq!(arp_answer(&answer), expected);
        assert_eq!(arp_answer(&answer[..41]), None);
    }

    proptest! {
        #[test]
        fn no_frame_panics(bytes in prop::collection::vec(any::<u8>(), 0..120), checked: bool) {
            let mut ip = vec![0; 12];
            ip.extend([0x08, 0x00, 0x45]);
            ip.extend(&bytes);
            for frame in [&bytes, &ip] {
                let _ = Datagram::parse(frame, checked);
                let _ = arp_answer(frame);
            }
        }
    }
}
