//! A web server of a few lines, to be reached (or not) through the networks under test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;

use crate::Ns;

/// Answers every request with `hello from NAME, you are ADDRESS`, so that a test can see who got through and as whom.
#[derive(Debug)]
pub struct Web {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    /// Listens on `address` in the namespace (`0.0.0.0:80`, `[::]:80`).
    pub fn start(ns: &Ns, name: &str, address: &str) -> anyhow::Result<Self> {
        let listener = ns
            .enter(|| TcpListener::bind(address))?
            .with_context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let ended = Arc::new(AtomicBool::new(false));
        let (name, flag) = (name.to_owned(), Arc::clone(&ended));
        let thread = thread::spawn(move || serve(&listener, &name, &flag));
        Ok(Self {
            address,
            ended,
            thread: Some(thread),
        })
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, name: &str, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, peer)) => {
                let name = name.to_owned();
                // A client that hangs up early is its own business.
                thread::spawn(move || answer(stream, peer, &name).ok());
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn answer(mut stream: TcpStream, peer: SocketAddr, name: &str) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let body = format!("hello from {name}, you are {}\n", peer.ip().to_canonical());
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\nContent-Type: text/plain\r\n\r\n{body}",
        body.len()
    )
}
