//! Bytes and fds of one connection. Never blocks: what is not there yet is read at the next event.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::foreign::Foreign;
use super::message::{HEADER_LEN, Header, MAX_TABLE_REGIONS, Malformed};

/// A whole message.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The fds that came with it.
    pub fds: VecDeque<Foreign>,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The frontend closed it.
    #[error("the frontend closed the connection")]
    Closed,
    /// The frontend sent what is no message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
}

/// One connection to a frontend.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    header: Option<Header>,
    buffer: Vec<u8>,
    fds: VecDeque<Foreign>,
}

impl Wire {
    /// Takes a connected socket.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            header: None,
            buffer: Vec::new(),
            fds: VecDeque::new(),
        })
    }

    /// The next whole message, or `None` until more bytes come.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn receive(&mut self) -> Result<Option<Message>, Broken> {
        loop {
            let wanted = self
                .header
                .map_or(HEADER_LEN, |header| header.size as usize);
            if self.buffer.len() < wanted && !self.fill(wanted)? {
                return Ok(None);
            }
            match self.header.take() {
                None => {
                    let raw = self.buffer.first_chunk().ok_or(Broken::Closed)?;
                    self.header = Some(Header::parse(raw)?);
                    self.buffer.clear();
                }
                Some(header) => {
                    return Ok(Some(Message {
                        header,
                        payload: std::mem::take(&mut self.buffer),
                        fds: std::mem::take(&mut self.fds),
                    }));
                }
            }
        }
    }

    /// Whether nothing of a message was read that is not whole yet.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        self.header.is_none() && self.buffer.is_empty() && self.fds.is_empty()
    }

    /// Whether the frontend closed its end; it may have said something before, which is still to be read.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let mut end = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let found = poll(&mut end, Some(&Timespec::default()));
        found.is_ok_and(|count| count > 0)
    }

    /// Ends the connection for the frontend too, whoever else has this socket open.
    pub fn shut_down(&self) {
        // It may be closed already.
        drop(self.stream.shutdown(std::net::Shutdown::Both));
    }

    /// Sends a reply, with an fd where one belongs to it. A frontend that does not read its replies loses the
    /// connection: they are short and the socket holds many.
    ///
    /// # Errors
    /// When the socket fails or is full.
    pub fn send(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send_with_fd(self.stream.as_fd(), bytes, fd)
    }

    /// Reads until the buffer has `wanted` bytes; false when the socket is empty before that.
    fn fill(&mut self, wanted: usize) -> Result<bool, Broken> {
        while self.buffer.len() < wanted {
            let have = self.buffer.len();
            self.buffer.resize(wanted, 0);
            let received = self.receive_into(have);
            self.buffer
                .truncate(have + *received.as_ref().unwrap_or(&0));
            match received {
                Ok(0) => return Err(Broken::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn receive_into(&mut self, from: usize) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TABLE_REGIONS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut self.buffer[from..])];
        let received = recvmsg(
            &self.stream,
            &mut into,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                // A peer that sends more than a message may hold loses them.
                let room = MAX_TABLE_REGIONS - self.fds.len().min(MAX_TABLE_REGIONS);
                self.fds.extend(fds.map(Foreign::from).take(room));
            }
        }
        Ok(received.bytes)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Sends bytes with at most one fd, without waiting.
pub(super) fn send_with_fd(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WouldBlock.into())
    }
}
