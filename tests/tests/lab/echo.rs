//! Servers that answer with whom they saw, and keep what reached them; clients that ask them.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tests::Ns;

/// Where TCP and UDP are answered.
pub(crate) const PORT: u16 = 7777;

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was answered; for TCP and UDP: as whom the other side saw us.
    From(Option<IpAddr>),
    /// It was refused: the client knew at once.
    Refused,
    /// Nothing came.
    Silence,
}

/// The servers of one node.
pub(crate) struct Echo {
    seen: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Sockets on each address (so that UDP answers from where it was asked).
    pub(crate) fn start(ns: &Ns, addresses: &[IpAddr]) -> anyhow::Result<Self> {
        Self::at(ns, addresses, PORT)
    }

    /// The same at another port.
    pub(crate) fn at(ns: &Ns, addresses: &[IpAddr], port: u16) -> anyhow::Result<Self> {
        let sockets = ns.enter(|| -> io::Result<_> {
            let mut tcp = Vec::new();
            let mut udp = Vec::new();
            for address in addresses {
                tcp.push(TcpListener::bind((*address, port))?);
                udp.push(UdpSocket::bind((*address, port))?);
            }
            Ok((tcp, udp))
        })??;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (end, stop) = rustix::pipe::pipe()?;
        let keep = Arc::clone(&seen);
        let thread = std::thread::spawn(move || serve(&sockets.0, &sockets.1, &end, &keep));
        Ok(Self {
            seen,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Who was seen so far: each connection and each datagram.
    pub(crate) fn seen(&self) -> Vec<SocketAddr> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // The other end of the pipe sees its end.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(tcp: &[TcpListener], udp: &[UdpSocket], stop: &OwnedFd, seen: &Mutex<Vec<SocketAddr>>) {
    let note = |peer| {
        seen.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(peer)
    };
    loop {
        let stopper = [stop.as_fd()].into_iter();
        let all = stopper
            .chain(tcp.iter().map(|s| s.as_fd()))
            .chain(udp.iter().map(|s| s.as_fd()));
        let mut fds: Vec<_> = all
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        if poll(&mut fds, None).is_err() {
            return;
        }
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let (stopped, rest) = ready.split_at(1);
        if stopped == [true] {
            return;
        }
        let (tcp_ready, udp_ready) = rest.split_at(tcp.len());
        for (listener, _) in tcp.iter().zip(tcp_ready).filter(|(_, ready)| **ready) {
            if let Ok((mut stream, peer)) = listener.accept() {
                note(peer);
                let _ = stream.write_all(peer.ip().to_string().as_bytes());
            }
        }
        for (socket, _) in udp.iter().zip(udp_ready).filter(|(_, ready)| **ready) {
            let mut buffer = [0; 64];
            if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                note(peer);
                let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
            }
        }
    }
}

fn refused(error: &io::Error) -> Answer {
    let silent = [ErrorKind::TimedOut, ErrorKind::WouldBlock];
    if silent.contains(&error.kind()) {
        return Answer::Silence;
    }
    Answer::Refused
}

fn read(text: &[u8]) -> Answer {
    match std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
    {
        Some(address) => Answer::From(Some(address)),
        None => Answer::Silence,
    }
}

pub(super) fn tcp(to: SocketAddr, patience: Duration) -> Answer {
    let mut stream = match TcpStream::connect_timeout(&to, patience) {
        Ok(stream) => stream,
        Err(error) => return refused(&error),
    };
    let mut text = Vec::new();
    let result = stream
        .set_read_timeout(Some(patience))
        .and_then(|()| stream.read_to_end(&mut text));
    match result {
        Ok(_) => read(&text),
        Err(error) => refused(&error),
    }
}

pub(super) fn udp(to: SocketAddr, patience: Duration) -> Answer {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => IpAddr::from([0; 4]),
        SocketAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let ask = || -> io::Result<Answer> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(patience))?;
        socket.send(b"who am I?")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(buffer.get(..length).map_or(Answer::Silence, read))
    };
    ask().unwrap_or_else(|error| refused(&error))
}
