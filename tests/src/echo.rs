//! A stream of bytes to a guest and back, over two TCP connections that live from the beginning to the end. Every byte is
//! checked where it comes back: what a card did to the guest's memory shows, be it a page lost in a migration.
//!
//! ```text
//!   this process :7000 ---> nc | cat | nc ---> :7001 this process
//! ```

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context as _, anyhow, ensure};

use crate::process::PATIENCE;
use crate::{Guest, Ns, wait_for};

/// What the n-th eight bytes are: no page is like another, none is empty.
fn word(n: u64) -> [u8; 8] {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes()
}

/// The stream, until it is dropped.
#[derive(Debug)]
pub struct Echo {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes that came back as they were sent.
    returned: AtomicU64,
    /// Why no more will come.
    ended: OnceLock<String>,
    connections: OnceLock<[TcpStream; 2]>,
}

impl Echo {
    /// Listens at an address of the namespace, and has the guest connect to it.
    pub fn start(ns: &Ns, address: &str, guest: &Guest) -> anyhow::Result<Self> {
        Self::through("cat", ns, address, guest)
    }

    /// The same with a guest that takes its time: half a megabyte always waits in buffers that only its card has touched.
    pub fn lazy(ns: &Ns, address: &str, guest: &Guest) -> anyhow::Result<Self> {
        guest.run("echo 1048576 1048576 1048576 >/proc/sys/net/ipv4/tcp_rmem")?;
        let slowly = "while dd bs=64k count=1 2>/dev/null; do usleep 30000; done";
        Self::through(slowly, ns, address, guest)
    }

    fn through(what: &str, ns: &Ns, address: &str, guest: &Guest) -> anyhow::Result<Self> {
        let listen = |port| TcpListener::bind((address, port));
        let [out, back] =
            ns.enter(|| Ok::<_, std::io::Error>([listen(7000)?, listen(7001)?]))??;
        guest.run(&format!(
            "nc {address} 7000 </dev/null 2>/tmp/in | {what} | nc {address} 7001 >/dev/null 2>/tmp/out &"
        ))?;
        let shared = Arc::new(Shared::default());
        let accepted = |listener: &TcpListener| {
            listener.set_nonblocking(true)?;
            let (stream, _) = wait_for("the guest", PATIENCE, || listener.accept())?;
            stream.set_nonblocking(false)?;
            anyhow::Ok(stream)
        };
        let (out, back) = (accepted(&out)?, accepted(&back)?);
        let both = [out.try_clone()?, back.try_clone()?];
        shared.connections.get_or_init(|| both);
        let (sender, receiver) = (Arc::clone(&shared), Arc::clone(&shared));
        thread::spawn(move || sender.note("sending", send(out)));
        thread::spawn(move || receiver.note("receiving", receive(back, &receiver.returned)));
        Ok(Self { shared })
    }

    /// Waits until so many more bytes have come back as they were.
    pub fn go_on(&self, bytes: u64) -> anyhow::Result<()> {
        let begun = self.returned();
        wait_for("more of the stream", PATIENCE, || {
            let ended = self.shared.ended.get();
            // A byte that is wrong stays so: there is nothing to wait for.
            if let Some(why) = ended {
                return Ok(Err(anyhow!("{why}, after {} bytes", self.returned())));
            }
            let more = self.returned() - begun;
            if more < bytes {
                Err(format!("{more} of {bytes} bytes"))
            } else {
                Ok(Ok(()))
            }
        })?
    }

    /// Bytes that came back so far.
    #[must_use]
    pub fn returned(&self) -> u64 {
        self.shared.returned.load(Ordering::Relaxed)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        for connection in self.shared.connections.get().into_iter().flatten() {
            // Its threads end with it.
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Shared {
    fn note(&self, what: &str, ended: anyhow::Result<()>) {
        let why = ended
            .err()
            .map_or_else(|| "the guest closed it".to_owned(), |e| format!("{e:#}"));
        self.ended.get_or_init(|| format!("{what}: {why}"));
    }
}

fn send(mut to: impl Write) -> anyhow::Result<()> {
    let mut block = Vec::with_capacity(1 << 16);
    let mut next = 0;
    loop {
        block.clear();
        block.extend((next..next + (1 << 13)).flat_map(word));
        next += 1 << 13;
        to.write_all(&block).context("the connection")?;
    }
}

fn receive(mut from: impl Read, returned: &AtomicU64) -> anyhow::Result<()> {
    let (mut block, mut at) = (vec![0; 1 << 16], 0_u64);
    loop {
        let read = from.read(&mut block).context("the connection")?;
        if read == 0 {
            return Ok(());
        }
        for byte in &block[..read] {
            let wanted = word(at / 8)[(at % 8) as usize];
            ensure!(
                *byte == wanted,
                "byte {at} is {byte:#x}, it was {wanted:#x}"
            );
            at += 1;
        }
        returned.store(at, Ordering::Relaxed);
    }
}
