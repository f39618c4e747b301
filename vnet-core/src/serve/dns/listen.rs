//! One gateway address: a UDP and a TCP socket, bound to the address and to the bridge, so that neither another
//! resolver on 0.0.0.0:53 nor a packet from elsewhere can get between.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::types::IfName;

/// The well-known port.
const PORT: u16 = 53;
/// Room for a burst of queries while the thread is elsewhere.
const RECEIVE_ROOM: usize = 1 << 20;
const BACKLOG: i32 = 128;

/// The two sockets of an address.
pub(super) fn bind(address: IpAddr, bridge: &IfName) -> io::Result<(UdpSocket, TcpListener)> {
    let udp = open(address, bridge, Type::DGRAM)?;
    // As far as the system's limit allows; a smaller room only drops earlier.
    let _ = udp.set_recv_buffer_size(RECEIVE_ROOM);
    let tcp = open(address, bridge, Type::STREAM)?;
    tcp.listen(BACKLOG)?;
    Ok((udp.into(), tcp.into()))
}

fn open(address: IpAddr, bridge: &IfName, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::DGRAM {
        Protocol::UDP
    } else {
        Protocol::TCP
    };
    let socket = Socket::new(
        Domain::for_address((address, PORT).into()),
        kind,
        Some(protocol),
    )?;
    socket.set_nonblocking(true)?;
    // A restarted daemon must not wait for the old one's connections to fade. For UDP it would let others steal.
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    // The address may not be on the bridge yet, or (IPv6) still be tentative.
    match address {
        IpAddr::V4(_) => socket.set_freebind_v4(true)?,
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.bind_device(Some(bridge.as_str().as_bytes()))?;
    socket.bind(&SocketAddr::new(address, PORT).into())?;
    Ok(socket)
}
