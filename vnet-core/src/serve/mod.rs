//! The shells that listen on gateways: sockets and timers here, decisions in the pure floors below.

mod bridged;
mod dhcp4;
mod dhcp6;
pub mod dns;
pub mod files;
pub mod leases;
mod pace;
mod packet;
mod ra;
pub mod tftp;

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;

use socket2::{Domain, Protocol, Socket, Type};

/// A UDP socket that hears nothing: it holds the membership of a group on one interface, and a port if it is not 0.
fn join(group: Ipv6Addr, index: u32, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    packet::deafen(&socket.as_fd())?;
    socket.set_only_v6(true)?;
    socket.set_reuse_address(true)?;
    socket.bind_device_by_index_v6(std::num::NonZeroU32::new(index))?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.join_multicast_v6(&group, index)?;
    Ok(socket.into())
}
