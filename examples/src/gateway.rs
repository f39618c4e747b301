//! The host's end of an example network: it leases addresses, answers ARP, and can be pinged. Frames in, frames out.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use vnet_core::config::{Fill, native};
use vnet_core::dhcp::v4::{Datagram, Message, Scope, Server, Verdict, frame};
use vnet_core::lease::Time;
use vnet_core::model::World;
use vnet_core::types::Mac;

use crate::lan::Host;

/// Our MAC address, whatever the network.
pub const MAC: Mac = Mac([0x52, 0x54, 0, 0xff, 0xff, 1]);

/// The gateway of one network.
#[derive(Debug)]
pub struct Gateway {
    address: Ipv4Addr,
    server: Server,
    start: Time,
    /// Frames that were for us and for which there was nothing to do: a flood.
    pub discarded: u64,
    /// When the first and the last of those came.
    pub discarded_between: (Duration, Duration),
}

/// A DHCP server for the network that this document (TOML, as for `vnet apply -f`) describes.
///
/// # Errors
/// When the document is wrong, or describes a network without DHCP.
pub fn dhcp_server(document: &str, now: Time) -> anyhow::Result<Server> {
    let fill = Fill {
        uuid: uuid(),
        bridge: "none".parse()?,
        mac: MAC,
        subnets: Vec::new(),
    };
    let document = native::from_toml(document)?
        .pop()
        .context("an empty document")?;
    let network = document.settle(&fill)?;
    let name = network.name.clone();
    let networks = BTreeMap::from([(name.clone(), network)]);
    let world = World {
        networks,
        ..World::default()
    };
    let scope = Scope::of(&world, &name).context("a network without DHCP")?;
    Ok(Server::new(scope, [], now))
}

/// The frame that answers a frame, if it is for a DHCP server and deserves an answer.
pub fn answer_dhcp(server: &mut Server, now: Time, request: &[u8]) -> Option<Vec<u8>> {
    let datagram = Datagram::parse(request, false)?;
    let message = Message::parse(datagram.payload).ok()?;
    let reply = match server.handle(now, &datagram.from, &message) {
        Verdict::Ignore(_) => None,
        // We know who is here, so there is nobody to probe for.
        Verdict::Reply(reply) => Some(reply),
        Verdict::Probe { then, .. } => then,
        // A server that outlives its process puts `records` on disk here, before it answers.
        Verdict::Commit { then, .. } => then,
    };
    Some(frame(&reply?, MAC, datagram.from.mac?))
}

/// The time, as leases count it.
#[must_use]
pub fn wall_clock() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time::from_secs(since.as_secs())
}

impl Gateway {
    /// The gateway of the network that a document describes.
    ///
    /// # Errors
    /// As for [`dhcp_server`].
    pub fn new(document: &str) -> anyhow::Result<Self> {
        let start = wall_clock();
        let server = dhcp_server(document, start)?;
        let address = server
            .scope()
            .subnets
            .first()
            .context("a network without a subnet")?
            .gateway;
        let discarded_between = (Duration::ZERO, Duration::ZERO);
        Ok(Self {
            address,
            server,
            start,
            discarded: 0,
            discarded_between,
        })
    }
}

impl Host for Gateway {
    fn receive(&mut self, now: Duration, request: &[u8], answers: &mut Vec<Vec<u8>>) {
        let answer = match (request.get(12..14), request.get(23)) {
            (Some([8, 6]), _) => answer_arp(request, self.address),
            (Some([8, 0]), Some(&1)) => answer_ping(request, self.address),
            (Some([8, 0]), Some(&17)) if request.get(36..38) == Some(&[0, 67]) => {
                let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
                answer_dhcp(&mut self.server, self.start.plus_millis(millis), request)
            }
            _ => {
                if self.discarded == 0 {
                    self.discarded_between.0 = now;
                }
                self.discarded += 1;
                self.discarded_between.1 = now;
                None
            }
        };
        answers.extend(answer);
    }
}

/// "I have it": RFC 826.
fn answer_arp(request: &[u8], ours: Ipv4Addr) -> Option<Vec<u8>> {
    let asks =
        request.get(14..22)? == [0, 1, 8, 0, 6, 4, 0, 1] && request.get(38..42)? == ours.octets();
    let asker = request.get(22..32)?;
    let operation = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    asks.then(|| {
        [
            &asker[..6],
            &MAC.octets(),
            &operation,
            &MAC.octets(),
            &ours.octets(),
            asker,
        ]
        .concat()
    })
}

/// The same packet back: RFC 792. Echo request (8) and reply (0) differ in one byte, and so do their checksums.
fn answer_ping(request: &[u8], ours: Ipv4Addr) -> Option<Vec<u8>> {
    if request.get(14)? != &0x45 || request.get(30..34)? != ours.octets() || request.get(34)? != &8
    {
        return None;
    }
    let mut answer = [&request[6..12], &MAC.octets(), &request[12..]].concat();
    answer[26..30].copy_from_slice(&request[30..34]);
    answer[30..34].copy_from_slice(&request[26..30]);
    answer[34] = 0;
    let sum = u32::from(u16::from_be_bytes([*answer.get(36)?, *answer.get(37)?])) + 0x0800;
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(u16::MAX);
    answer[36..38].copy_from_slice(&sum.to_be_bytes());
    Some(answer)
}

/// Nobody will ask for the identity of an example.
fn uuid() -> uuid::Uuid {
    uuid::Uuid::nil()
}
