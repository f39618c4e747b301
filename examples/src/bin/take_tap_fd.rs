//! A program without any privilege that takes a port of netd as an open tap, and is a guest on it for a moment.
//!
//! ```text
//! # vnet port attach default box --kind tap-fd --owner alice
//! alice$ take_tap_fd /run/netd default/box 192.168.122.1
//! box (52:54:00:1b:36:e4) asked by vn-box: 192.168.122.1 is at 52:54:00:a0:11:07
//! ```
//! Two sockets, both open to everybody; the kernel tells netd who asks, and it decides:
//! `netd.sock` speaks HTTP and JSON (the address of the card is asked there), `fd.sock` one line of JSON each way with
//! the descriptor beside the answer (SCM_RIGHTS).
#![allow(clippy::print_stdout, reason = "a program speaks to its user")]

use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use virtio_net_backend::device::{Frame, header::HEADER_LEN};
use virtio_net_backend::port::{FramePort as _, Tap};
use vnet_core::dhcp::v4::{arp_answer, arp_probe};
use vnet_core::types::Mac;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run, port, gateway] = &arguments[..] else {
        bail!("usage: take_tap_fd RUN-DIR NETWORK/PORT ADDRESS-TO-ASK-FOR");
    };
    let run = Path::new(run);
    let gateway: Ipv4Addr = gateway.parse()?;

    let card = get(&run.join("netd.sock"), &format!("/v1/ports/{port}"))?;
    let text = |key: &str| {
        card[key]
            .as_str()
            .with_context(|| format!("no {key} in {card}"))
    };
    let (name, interface, mac) = (
        text("name")?,
        text("interface")?,
        text("mac")?.parse::<Mac>()?,
    );
    let mut tap = Tap::from_fd(take(&run.join("fd.sock"), port)?, interface)?;

    let question = [&[0; HEADER_LEN][..], &arp_probe(gateway, mac)].concat();
    let question = Frame::new(&question).context("a frame is longer than its header")?;
    let mut buffer = [0; 2048];
    for _ in 0..50 {
        // The bridge may need a moment to see that somebody has plugged in: a lost question is asked again.
        tap.send(&question);
        sleep(Duration::from_millis(100));
        while let Some(length) = tap.receive(&mut buffer)? {
            if let Some((address, at)) = buffer.get(HEADER_LEN..length).and_then(arp_answer)
                && address == gateway
            {
                println!("{name} ({mac}) asked by {interface}: {address} is at {at}");
                return Ok(());
            }
        }
    }
    bail!("nobody says to be {gateway}")
}

/// What the API answers to a GET: HTTP/1.1 by hand, for who has no client at hand.
fn get(socket: &Path, path: &str) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: netd\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without an end of its head")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{path}: {body}");
    }
    Ok(serde_json::from_str(body)?)
}

/// The tap of a port.
fn take(socket: &Path, port: &str) -> anyhow::Result<OwnedFd> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    writeln!(stream, "{}", json!({ "port": port, "queues": 1 }))?;
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let answer: Value = serde_json::from_slice(&bytes[..got.bytes])?;
    if let Some(error) = answer["error"].as_str() {
        bail!("netd says: {error}");
    }
    let fds = control.drain().filter_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            fds.next()
        } else {
            None
        }
    });
    fds.last().context("netd sent no descriptor")
}
