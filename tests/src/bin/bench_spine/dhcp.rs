//! One DHCP client that is only a stopwatch: DISCOVER, OFFER, REQUEST, ACK, with a hardware address of its own choice.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};
use tests::Ns;

/// dnsmasq looks for three seconds whether somebody answers on the address.
const PATIENCE: Duration = Duration::from_secs(15);

const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;

/// How long an exchange takes from the DISCOVER to the ACK, on `eth0` of the namespace.
pub(crate) fn exchange(ns: &Ns, mac: [u8; 6]) -> anyhow::Result<Duration> {
    ns.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(b"eth0"))?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let socket = UdpSocket::from(socket);

        let begun = Instant::now();
        let offer = ask(&socket, mac, &message(mac, DISCOVER, &[]))?;
        let server = option(&offer, 54)
            .context("an OFFER without a server")?
            .to_vec();
        let wanted = [&[50, 4], &offer[16..20], &[54, 4], &server].concat();
        let ack = ask(&socket, mac, &message(mac, REQUEST, &wanted))?;
        anyhow::ensure!(option(&ack, 53) == Some(&[5]), "no ACK");
        Ok(begun.elapsed())
    })?
}

/// A message that asks for a broadcast reply, since the stopwatch has no address.
fn message(mac: [u8; 6], kind: u8, options: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 240];
    packet[..3].copy_from_slice(&[1, 1, 6]);
    packet[4..8].copy_from_slice(&mac[2..]);
    packet[10] = 0x80;
    packet[28..34].copy_from_slice(&mac);
    packet[236..240].copy_from_slice(&[99, 130, 83, 99]);
    packet.extend([53, 1, kind]);
    packet.extend(options);
    packet.push(255);
    packet.resize(packet.len().max(300), 0);
    packet
}

/// Sends and waits for the reply to this client.
fn ask(socket: &UdpSocket, mac: [u8; 6], packet: &[u8]) -> anyhow::Result<Vec<u8>> {
    socket.send_to(packet, "255.255.255.255:67")?;
    let mut reply = [0; 1500];
    loop {
        let count = socket
            .recv(&mut reply)
            .context("no answer to a DHCP message")?;
        if count > 240 && reply[0] == 2 && reply[28..34] == mac {
            return Ok(reply[..count].to_vec());
        }
    }
}

fn option(packet: &[u8], code: u8) -> Option<&[u8]> {
    let mut rest = packet.get(240..)?;
    loop {
        match rest {
            [0, more @ ..] => rest = more,
            [found, size, more @ ..] => {
                let (value, after) = more.split_at_checked(usize::from(*size))?;
                if *found == code {
                    return Some(value);
                }
                rest = after;
            }
            _ => return None,
        }
    }
}
