//! What a frontend says: vhost-user messages, with fds beside them.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::settings;
use crate::device::{Frame, Sent};
use crate::transport::vhost_user::Session;

/// How much memory a frontend shares.
const LEN: u64 = 0x1_0000;

/// A row of messages: code, flags, kind of fd, length of payload, payload. How often a ring was seen running.
pub(super) fn messages(input: &[u8]) -> usize {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let mut session = Session::new(ours, &settings(false)).expect("session");
    let mut rest = input;
    let mut running = 0;
    for _ in 0..64 {
        let Some((&[code, flags, kind, len], after)) = rest.split_first_chunk::<4>() else {
            break;
        };
        let payload = &after[..usize::from(len).min(after.len())];
        rest = &after[payload.len()..];
        let mut bytes = u32::from(code).to_le_bytes().to_vec();
        bytes.extend(u32::from(flags).to_le_bytes());
        bytes.extend(u32::from(len).to_le_bytes());
        bytes.extend(payload);
        if !send(&theirs, &bytes, fd(kind)) {
            break;
        }
        let served = session.serve(|_| ());
        for queue in 0..session.queues() {
            let enabled = session.is_enabled(queue);
            running += usize::from(enabled);
            if let Some(tx) = session.device().tx(queue / 2).filter(|_| queue % 2 == 1) {
                let turn = tx.turn(64, |_| Sent::Done);
                tx.ring().publish();
                if turn.is_err() {
                    session.fail(queue);
                }
            } else if let Some(rx) = session.device().rx(queue / 2).filter(|_| enabled) {
                let pushed = rx.push(&Frame::new(&[0; 80]).expect("whole"));
                rx.ring().publish();
                if pushed.is_err() {
                    session.fail(queue);
                }
            }
        }
        if served.is_err() {
            break;
        }
        drain(&theirs);
    }
    running
}

pub(crate) fn fd(kind: u8) -> Option<OwnedFd> {
    match kind % 6 {
        1 => rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).ok(),
        2 | 3 => {
            let fd =
                rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
            rustix::fs::ftruncate(&fd, if kind % 6 == 2 { LEN } else { 100 }).expect("length");
            Some(fd)
        }
        4 => rustix::pipe::pipe().ok().map(|(_, writer)| writer),
        5 => UnixStream::pair().ok().map(|(one, _)| one.into()),
        _ => None,
    }
}

fn send(to: &UnixStream, bytes: &[u8], fd: Option<OwnedFd>) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_ref().map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(
        to,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )
    .is_ok()
}

fn drain(from: &UnixStream) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut bytes = [0; 4096];
    loop {
        let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut into = [std::io::IoSliceMut::new(&mut bytes)];
        let received = rustix::net::recvmsg(
            from,
            &mut into,
            &mut control,
            rustix::net::RecvFlags::DONTWAIT,
        );
        if !matches!(received, Ok(received) if received.bytes > 0) {
            return;
        }
    }
}
