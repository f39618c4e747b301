//! TFTP of one subnet: a socket on the gateway's port 69, a thread that hears requests, and one for each transfer.
//!
//! A transfer is a few packets a millisecond, and files are read from a disk that may be slow: threads that wait are
//! the plain way, and there are never more than [`MOST`]. Each request opens the folder, which may have been replaced, and
//! its file *beneath* that by the kernel (`openat2`), so that neither `..` nor a link in it leads out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::tftp::{Act, Limits, Packet, Refused, Transfer, Wishes, as_text, data};
use crate::types::IfName;

/// Transfers at once, of all clients.
const MOST: usize = 64;
/// Transfers at once, of one client.
const MOST_OF_ONE: usize = 8;
/// The longest file that is sent as a text: it is made one in memory.
const LONGEST_TEXT: u64 = 1 << 20;
/// How long the listener waits for a bridge that is down.
const BREATH: Duration = Duration::from_millis(250);
/// What is left of an Ethernet frame for a block: IPv4, UDP and TFTP headers taken off.
const HEADERS: u16 = 32;

/// What is served where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Served {
    /// The bridge; nobody else is heard.
    pub bridge: IfName,
    /// The gateway's address.
    pub gateway: Ipv4Addr,
    /// The folder.
    pub folder: PathBuf,
    /// The bridge's MTU.
    pub mtu: u16,
}

/// A running server; it ends when this is dropped. Transfers on their way are finished.
#[derive(Debug)]
pub struct Tftp {
    server: Arc<Server>,
    socket: Arc<UdpSocket>,
    listener: Option<JoinHandle<()>>,
}

impl Drop for Tftp {
    fn drop(&mut self) {
        self.server.ended.store(true, Ordering::Relaxed);
        // Whoever hears wakes up, though the call says that there is no connection. The next server finds the port free.
        let _ = SockRef::from(&*self.socket).shutdown(Shutdown::Both);
        if let Some(listener) = self.listener.take() {
            listener.thread().unpark();
            let _ = listener.join();
        }
    }
}

impl Tftp {
    /// Opens the folder and the socket, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Which of them cannot be had, and why.
    pub fn start(served: Served) -> io::Result<Self> {
        opened(&served.folder)?;
        let socket = bound(&served, 69);
        let socket = Arc::new(socket.map_err(|e| told(&e, &format!("{}:69", served.gateway)))?);
        let server = Arc::new(Server {
            served: Mutex::new(served),
            ended: AtomicBool::new(false),
            running: Mutex::default(),
        });
        let (heard, ears) = (server.clone(), socket.clone());
        let listener = std::thread::Builder::new()
            .name("tftp".to_owned())
            .spawn(move || heard.listen(&ears))?;
        Ok(Self {
            server,
            socket,
            listener: Some(listener),
        })
    }

    /// Whether it is where this is to be served.
    #[must_use]
    pub fn is_at(&self, served: &Served) -> bool {
        let now = self.server.served();
        now.bridge == served.bridge && now.gateway == served.gateway
    }

    /// Serves another folder from now on, at the same place: the socket stays, so that no request is lost.
    ///
    /// # Errors
    /// When the folder cannot be opened now.
    pub fn serve(&self, served: Served) -> io::Result<()> {
        let opened = opened(&served.folder);
        *lock(&self.server.served) = served;
        opened.map(drop)
    }
}

#[derive(Debug)]
struct Server {
    served: Mutex<Served>,
    ended: AtomicBool,
    /// Transfers by client.
    running: Mutex<BTreeMap<IpAddr, usize>>,
}

impl Server {
    fn served(&self) -> Served {
        lock(&self.served).clone()
    }

    fn listen(self: &Arc<Self>, socket: &UdpSocket) {
        let mut buffer = [0; 1024];
        while !self.ended.load(Ordering::Relaxed) {
            let (len, client) = match socket.recv_from(&mut buffer) {
                Ok(heard) => heard,
                // The bridge is down. On one that is made anew somebody has to start again.
                Err(_) => {
                    std::thread::park_timeout(BREATH);
                    continue;
                }
            };
            if let Some(reply) = self
                .request(&buffer[..len], client)
                .err()
                .and_then(Refused::reply)
            {
                // A refusal that is lost is asked for again.
                let _ = socket.send_to(&reply, client);
            }
        }
    }

    fn request(self: &Arc<Self>, bytes: &[u8], client: SocketAddr) -> Result<(), Refused> {
        let Packet::Read {
            file: name,
            as_text,
            wishes,
        } = Packet::parse(bytes)?
        else {
            return Err(Refused::Nonsense);
        };
        let served = self.served();
        let refused = |error: io::Error, why| {
            tracing::debug!(%client, name, %error, "TFTP refused");
            why
        };
        let folder = opened(&served.folder).map_err(|e| refused(e, Refused::NoFolder))?;
        let file = open_beneath(&folder, name);
        let (file, size) = file.map_err(|e| refused(e, Refused::NotFound))?;
        if as_text && size > LONGEST_TEXT {
            return Err(Refused::TooLong);
        }
        let place = Place::take(self, client.ip())?;
        tracing::debug!(%client, name, size, as_text, "TFTP");
        let transfer = std::thread::Builder::new().name("tftp-file".to_owned());
        let begun = transfer.spawn(move || {
            let _place = place;
            // A client that went away is no error of ours.
            let _ = Content::of(file, size, as_text)
                .and_then(|content| transfer_to(client, &served, &content, &wishes));
        });
        begun.map(drop).map_err(|_| Refused::Busy)
    }
}

/// The folder as it is now: it may be another one than at the last request, or the link to it may lead elsewhere.
fn opened(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = open(folder, flags, Mode::empty());
    opened.map_err(|e| told(&e.into(), &folder.display().to_string()))
}

/// A plain file beneath the folder that everybody may read.
fn open_beneath(folder: &OwnedFd, name: &str) -> io::Result<(File, u64)> {
    // Firmwares write a leading slash, or Windows' kind.
    let name = name.replace('\\', "/");
    let name = name.trim_start_matches('/');
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(folder, name, flags, Mode::empty(), beneath)?;
    let about = fstat(&file)?;
    let is_file = FileType::from_raw_mode(about.st_mode) == FileType::RegularFile;
    if !is_file || about.st_mode & 0o004 == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok((file.into(), u64::try_from(about.st_size).unwrap_or(0)))
}

fn transfer_to(
    client: SocketAddr,
    served: &Served,
    content: &Content,
    wishes: &Wishes,
) -> io::Result<()> {
    let socket = bound(served, 0)?;
    socket.connect(client)?;
    let limits = Limits {
        block: served.mtu.clamp(576, 9000) - HEADERS,
        window: 16,
        timeout: 10,
    };
    let (mut transfer, mut act) = Transfer::begin(content.size(), wishes, &limits);
    loop {
        match act {
            Act::Say(packet) => drop(socket.send(&packet)?),
            Act::Send(blocks) => {
                for block in blocks {
                    let (at, len) = transfer.place(block);
                    let bytes = content.read(at, len)?;
                    let number = u16::try_from(block & 0xffff).unwrap_or(0);
                    socket.send(&data(number, &bytes))?;
                }
            }
            Act::Wait => {}
            Act::End => return Ok(()),
        }
        act = hear(&socket, &mut transfer)?;
    }
}

/// What is sent.
enum Content {
    File(File, u64),
    Text(Vec<u8>),
}

impl Content {
    fn of(file: File, size: u64, is_text: bool) -> io::Result<Self> {
        let content = Self::File(file, size);
        match is_text {
            true => {
                let whole = content.read(0, usize::try_from(size).map_err(io::Error::other)?)?;
                Ok(Self::Text(as_text(&whole)))
            }
            false => Ok(content),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::File(_, size) => *size,
            Self::Text(text) => text.len() as u64,
        }
    }

    fn read(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self {
            Self::File(file, _) => file.read_exact_at(&mut bytes, at)?,
            Self::Text(text) => {
                let rest = usize::try_from(at).ok().and_then(|at| text.get(at..));
                rest.unwrap_or_default().read_exact(&mut bytes)?;
            }
        }
        Ok(bytes)
    }
}

/// Waits for the client's next word that means something.
fn hear(socket: &UdpSocket, transfer: &mut Transfer) -> io::Result<Act> {
    let patience = Duration::from_secs(u64::from(transfer.timeout()));
    let until = Instant::now() + patience;
    let mut buffer = [0; 1024];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(transfer.timed_out());
        }
        socket.set_read_timeout(Some(left))?;
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(e) if is_timeout(&e) => continue,
            Err(e) => return Err(e),
        };
        match Packet::parse(&buffer[..len]) {
            Ok(Packet::Ack(block)) => match transfer.acknowledged(block) {
                // Waiting goes on: chatter does not put the deadline off.
                Act::Wait => {}
                act @ (Act::Say(_) | Act::Send(_) | Act::End) => return Ok(act),
            },
            Ok(Packet::Error) => return Ok(Act::End),
            Ok(Packet::Read { .. }) | Err(_) => {}
        }
    }
}

/// A client's place among the transfers, given back on drop.
struct Place(Arc<Server>, IpAddr);

impl Place {
    fn take(server: &Arc<Server>, client: IpAddr) -> Result<Self, Refused> {
        let mut running = lock(&server.running);
        let all: usize = running.values().sum();
        let own = running.entry(client).or_insert(0);
        if all >= MOST || *own >= MOST_OF_ONE {
            return Err(Refused::Busy);
        }
        *own += 1;
        Ok(Self(server.clone(), client))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = lock(&self.0.running);
        if let Some(own) = running.get_mut(&self.1) {
            *own = own.saturating_sub(1);
        }
        running.retain(|_, own| *own > 0);
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn told(error: &io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn bound(served: &Served, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(served.bridge.as_str().as_bytes()))?;
    socket.set_freebind_v4(true)?;
    socket.bind(&SocketAddr::from((served.gateway, port)).into())?;
    Ok(socket.into())
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}
