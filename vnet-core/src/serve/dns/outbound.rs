//! Sockets to upstreams: a few per upstream, each on a port that the kernel chose, each connected, so that the kernel
//! turns away what comes from others and tells when nobody is there.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::dns::ServerId;
use crate::dns::slab::Slab;

/// Questions after which a socket gives way to one on another port.
const WORN: u32 = 256;
/// How long an idle or worn socket is still listened to (milliseconds).
const LINGER: u64 = 6_000;

/// One socket.
pub(super) struct Lane {
    pub(super) server: ServerId,
    pub(super) lane: u8,
    pub(super) socket: UdpSocket,
    sends: u32,
    last: u64,
}

/// Keeps a socket to a link: what is known there goes out there, whatever the routes of others say.
pub(super) fn keep_to(
    socket: impl std::ops::Deref<Target = socket2::Socket>,
    to: SocketAddr,
    link: Option<u32>,
) -> io::Result<()> {
    // A resolver on the host itself is reached by the loopback, whatever link it was named for.
    let Some(link) = link.filter(|_| !to.ip().is_loopback()) else {
        return Ok(());
    };
    let name = rustix::net::netdevice::index_to_name(&*socket, link)?;
    socket.bind_device(Some(name.as_bytes()))
}

/// All sockets to all upstreams.
#[derive(Default)]
pub(super) struct Outbound {
    lanes: Slab<Lane>,
    current: HashMap<(ServerId, u8), usize>,
}

impl Outbound {
    pub(super) fn get(&self, index: usize) -> Option<&Lane> {
        self.lanes.get(index)
    }

    /// Whether there is anything to sweep.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.len() == 0
    }

    /// The socket for a lane, and whether it is new (and has to be watched).
    pub(super) fn lane(
        &mut self,
        now: u64,
        server: ServerId,
        lane: u8,
        (address, link): (SocketAddr, Option<u32>),
    ) -> io::Result<(usize, bool)> {
        if let Some(index) = self.current.get(&(server, lane)).copied()
            && let Some(open) = self.lanes.get_mut(index)
            && open.sends < WORN
        {
            open.sends += 1;
            open.last = now;
            return Ok((index, false));
        }
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        keep_to(socket2::SockRef::from(&socket), address, link)?;
        socket.connect(address)?;
        let index = self.lanes.insert(Lane {
            server,
            lane,
            socket,
            sends: 1,
            last: now,
        });
        self.current.insert((server, lane), index);
        Ok((index, true))
    }

    /// Closes what nobody waits for any more.
    pub(super) fn sweep(&mut self, now: u64) {
        let old: Vec<usize> = self
            .lanes
            .iter()
            .filter(|(_, l)| now.saturating_sub(l.last) > LINGER)
            .map(|(i, _)| i)
            .collect();
        for index in old {
            if let Some(lane) = self.lanes.remove(index)
                && self.current.get(&(lane.server, lane.lane)) == Some(&index)
            {
                self.current.remove(&(lane.server, lane.lane));
            }
        }
    }
}
