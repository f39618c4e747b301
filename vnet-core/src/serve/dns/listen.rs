//! One gateway address: a UDP and a TCP socket, bound to the address and to the bridge, so that no packet from elsewhere
//! gets in. For UDP another resolver on 0.0.0.0:53 is no obstacle; for TCP the kernel allows no listener beside one on
//! all addresses, so it is tried again until it can be had, and UDP works meanwhile.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::types::IfName;

/// The well-known port.
const PORT: u16 = 53;
/// Room for a burst of queries while the thread is elsewhere.
const RECEIVE_ROOM: usize = 1 << 20;
const BACKLOG: i32 = 128;

/// The socket for datagrams.
pub(super) fn udp(address: IpAddr, bridge: &IfName) -> io::Result<UdpSocket> {
    let udp = open(address, bridge, Type::DGRAM)?;
    // As far as the system's limit allows; a smaller room only drops earlier.
    let _ = udp.set_recv_buffer_size(RECEIVE_ROOM);
    Ok(udp.into())
}

/// The socket for connections.
pub(super) fn tcp(address: IpAddr, bridge: &IfName) -> io::Result<TcpListener> {
    let tcp = open(address, bridge, Type::STREAM)?;
    tcp.listen(BACKLOG)?;
    Ok(tcp.into())
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
    // Beside a resolver on 0.0.0.0:53 (that says the same of itself, as they all do) and after a restart while old
    // connections fade. Datagrams for the bridge come to us all the same: the device makes ours the better match.
    socket.set_reuse_address(true)?;
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
