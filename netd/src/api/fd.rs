//! The hand-over of taps: a client writes one JSON line, the daemon answers with one JSON line and the descriptors.
//!
//! ```text
//! -> {"port":"default/web","queues":1}
//! <- {"interface":"vt-web","queues":1}      + SCM_RIGHTS: one descriptor a queue
//! <- {"error":"..."}                        or why not
//! ```

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use vnet_core::model::PortKey;

use super::Listening;
use crate::driver::{Command, Handle, Refusal};
use crate::privilege::Peer;

/// As many descriptors as one message may carry here.
const MOST: usize = 16;
/// The longest request. Names are shorter by far, and a refusal that quotes it is still [`READ_AT_ONCE`].
const LONGEST: u64 = 512;
/// As much of an answer as a client reads: it comes in one piece, with the descriptors.
const READ_AT_ONCE: usize = 4096;
/// A client that does not say what it wants is dropped.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct Ask {
    port: String,
    #[serde(default = "one")]
    queues: u16,
}

const fn one() -> u16 {
    1
}

#[derive(Serialize, Deserialize)]
struct Answer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default)]
    queues: usize,
}

/// The descriptors of a tap, one a queue.
pub type Fetched = Vec<OwnedFd>;

/// Hands taps over until the daemon ends.
///
/// # Errors
/// When the socket breaks.
pub async fn serve(socket: Listening, driver: Handle, group: Option<u32>) -> io::Result<()> {
    loop {
        let (stream, _) = socket.listener.accept().await?;
        let driver = driver.clone();
        tokio::spawn(async move {
            if let Err(error) = client(stream.into_std(), driver, group).await {
                tracing::debug!(%error, "a client of the descriptor socket went away");
            }
        });
    }
}

async fn client(
    stream: io::Result<UnixStream>,
    driver: Handle,
    group: Option<u32>,
) -> io::Result<()> {
    let stream = stream?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let reading = move || Ok::<_, io::Error>((read_line(&stream)?, stream));
    let (line, stream) = tokio::task::spawn_blocking(reading).await??;
    let opened = open(&line, &stream, &driver, group).await;
    tokio::task::spawn_blocking(move || send(&stream, opened)).await?
}

fn read_line(stream: impl Read) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST)).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// What a line asks for: a port, and how many queues of it.
fn parse(line: &[u8]) -> Result<(PortKey, u16), Refusal> {
    let ask: Ask = serde_json::from_slice(line)
        .map_err(|e| Refusal::Invalid(format!("this is no request for a tap: {e}")))?;
    let key = ask.port.parse()?;
    if ask.queues == 0 || usize::from(ask.queues) > MOST {
        return Err(Refusal::Invalid(format!(
            "a tap is opened with 1 to {MOST} queues, not {}",
            ask.queues
        )));
    }
    Ok((key, ask.queues))
}

async fn open(
    line: &[u8],
    stream: &UnixStream,
    driver: &Handle,
    group: Option<u32>,
) -> Result<Fetched, Refusal> {
    let peer = Peer::of(stream)
        .map_err(|e| Refusal::Failed(format!("the kernel does not tell who asks: {e}")))?;
    let (key, queues) = parse(line)?;
    let user = (!peer.may_write(group)).then_some(peer.uid);
    driver
        .ask(|reply| Command::OpenTap(key, queues, user, reply))
        .await
}

/// What is said of it, as a line.
fn answer(opened: &Result<Fetched, Refusal>) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Answer {
        error: opened.as_ref().err().map(Refusal::to_string),
        queues: opened.as_ref().map_or(0, Vec::len),
    })?;
    line.push(b'\n');
    Ok(line)
}

fn send(stream: &UnixStream, opened: Result<Fetched, Refusal>) -> io::Result<()> {
    let line = answer(&opened)?;
    let fds = opened.unwrap_or_default();
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    sendmsg(
        stream,
        &[IoSlice::new(&line)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Asks the daemon for a port's tap: the client's side, for `vnet` and for any program.
///
/// # Errors
/// What the daemon said, or that it does not answer.
pub fn fetch_tap(socket: &Path, port: &str, queues: u16) -> io::Result<Fetched> {
    let mut stream = UnixStream::connect(socket).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("the daemon does not answer on {}: {e}", socket.display()),
        )
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&Ask {
        port: port.to_owned(),
        queues,
    })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0u8; READ_AT_ONCE];
    let got = recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let answer: Answer = serde_json::from_slice(&bytes[..got.bytes])?;
    match answer.error {
        Some(error) => Err(io::Error::other(error)),
        None if fds.is_empty() => Err(io::Error::other("the daemon sent no descriptor")),
        None => Ok(fds),
    }
}

/// A request, of which the first line counts. What is understood is said again; a refusal fits what a client reads.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(bytes: &[u8]) -> usize {
    let line = read_line(bytes).expect("bytes can be read");
    match parse(&line) {
        Ok((key, queues)) => {
            let port = key.to_string();
            let again = serde_json::to_vec(&Ask { port, queues }).expect("it can be written");
            let again = parse(&again).ok();
            assert_eq!(again, Some((key, queues)));
            1
        }
        Err(refusal) => {
            let why = refusal.to_string();
            let line = answer(&Err(refusal)).expect("it can be written");
            assert!(line.len() <= READ_AT_ONCE, "{} bytes", line.len());
            let read: Answer = serde_json::from_slice(&line).expect("what we write is read");
            assert_eq!(read.error, Some(why));
            0
        }
    }
}
