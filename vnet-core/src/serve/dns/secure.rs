//! Connections to secure upstreams (DNS over TLS, RFC 7858; over HTTPS, RFC 8484): one to each, kept, with many
//! questions in flight; certificates are always checked, and there is no way back to plain text (RFC 8310's strict
//! profile).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tracing::{debug, warn};

use super::tcp;
use super::worker::{Token, Worker};
use crate::dns::h2::Session;
use crate::dns::slab::Slab;
use crate::dns::{ServerId, Target};
use crate::model::Transport;
use crate::types::DomainName;

/// Where distributions keep the authorities they trust.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// How long a connection may be idle, and how long it may leave questions without a sign of life (milliseconds).
const IDLE: u64 = 30_000;
const PATIENCE: u64 = 2_000;
/// Questions in flight on one connection; more wait for their turn.
const MOST: usize = 256;
/// Bytes read in one turn, so that one upstream does not starve the rest.
const TURN: usize = 64 << 10;

/// All secure connections.
pub(super) struct Secure {
    authorities: Option<PathBuf>,
    configs: Option<[Arc<ClientConfig>; 2]>,
    channels: Slab<Channel>,
    by_server: HashMap<ServerId, usize>,
}

/// A question that waits for its answer.
struct Waiting {
    ticket: u64,
    message: Vec<u8>,
    since: u64,
    /// Whether it was asked on a connection that broke before.
    again: bool,
}

/// How messages lie on the connection.
enum Framing {
    /// With their length in front; the number counts them.
    Lengths { input: Vec<u8>, next: u16 },
    /// A stream each.
    Http(Session),
}

/// One connection.
struct Channel {
    server: ServerId,
    endpoint: Target,
    socket: TcpStream,
    tls: ClientConnection,
    framing: Framing,
    waiting: BTreeMap<u32, Waiting>,
    backlog: VecDeque<Waiting>,
    /// When it last said something.
    heard: u64,
    /// Whether it ever answered: then a question that it breaks off is asked once more.
    proven: bool,
    flags: EventFlags,
}

/// An answer, and whose it is.
type Answered = (u64, Option<Vec<u8>>);

impl Secure {
    /// `authorities` is a file of certificates in place of the system's.
    pub(super) fn new(authorities: Option<PathBuf>) -> Self {
        Self {
            authorities,
            configs: None,
            channels: Slab::default(),
            by_server: HashMap::new(),
        }
    }

    /// Whether there is nothing to sweep.
    pub(super) fn is_empty(&self) -> bool {
        self.channels.len() == 0
    }

    fn open(&mut self, now: u64, server: ServerId, target: &Target) -> io::Result<usize> {
        let [tls, https] = self.configs()?;
        let endpoint = &target.endpoint;
        let address = endpoint.address.ip();
        let shown = |name: &Option<DomainName>| match name {
            Some(name) => ServerName::try_from(name.to_string()).map_err(io::Error::other),
            None => Ok(ServerName::from(address)),
        };
        let (config, name, framing) = match &endpoint.transport {
            Transport::Plain => return Err(io::ErrorKind::Unsupported.into()),
            Transport::Tls { name } => {
                let input = Vec::new();
                (tls, shown(name)?, Framing::Lengths { input, next: 0 })
            }
            Transport::Https { name, path } => {
                let authority = match name {
                    Some(name) if endpoint.address.port() == 443 => name.to_string(),
                    Some(name) => format!("{name}:{}", endpoint.address.port()),
                    None => endpoint.address.to_string(),
                };
                let session = Session::new(authority, path.clone());
                (https, shown(name)?, Framing::Http(session))
            }
        };
        let socket = tcp::connect(endpoint.address, target.link)?;
        // Small questions that wait for nothing.
        let _ = socket.set_nodelay(true);
        let index = self.channels.insert(Channel {
            server,
            endpoint: target.clone(),
            socket,
            tls: ClientConnection::new(config, name).map_err(io::Error::other)?,
            framing,
            waiting: BTreeMap::new(),
            backlog: VecDeque::new(),
            heard: now,
            proven: false,
            flags: EventFlags::IN | EventFlags::OUT,
        });
        self.by_server.insert(server, index);
        Ok(index)
    }

    /// What both kinds of connection are made with; read when the first is.
    fn configs(&mut self) -> io::Result<[Arc<ClientConfig>; 2]> {
        if let Some(configs) = &self.configs {
            return Ok(configs.clone());
        }
        let mut roots = RootCertStore::empty();
        let file = match &self.authorities {
            Some(file) => Some(file.as_path()),
            None => AUTHORITIES.iter().map(Path::new).find(|f| f.is_file()),
        };
        let file = file.ok_or_else(|| io::Error::other("this host trusts no certificate"))?;
        for certificate in CertificateDer::pem_file_iter(file).map_err(io::Error::other)? {
            // One that cannot be used is as good as not there.
            let _ = roots.add(certificate.map_err(io::Error::other)?);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let mut tls = builder.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"dot".to_vec()];
        let mut https = tls.clone();
        https.alpn_protocols = vec![b"h2".to_vec()];
        let configs = [Arc::new(tls), Arc::new(https)];
        self.configs = Some(configs.clone());
        Ok(configs)
    }
}

impl Channel {
    /// Puts a question on the connection, or behind those that wait for it.
    fn ask(&mut self, mut waiting: Waiting) {
        if self.waiting.len() >= MOST {
            return self.backlog.push_back(waiting);
        }
        let key = match &mut self.framing {
            Framing::Lengths { next, .. } => {
                while self.waiting.contains_key(&u32::from(*next)) {
                    *next = next.wrapping_add(1);
                }
                let key = *next;
                *next = next.wrapping_add(1);
                let mut framed = Vec::with_capacity(2 + waiting.message.len());
                let len = u16::try_from(waiting.message.len()).unwrap_or(0);
                framed.extend_from_slice(&len.to_be_bytes());
                framed.extend_from_slice(&waiting.message);
                framed[2..4].copy_from_slice(&key.to_be_bytes());
                // Into a buffer of its own: it is bounded by the number of questions.
                let _ = self.tls.writer().write_all(&framed);
                u32::from(key)
            }
            Framing::Http(session) => {
                let mut message = waiting.message.clone();
                // RFC 8484 section 4.1: the number 0, for the sake of caches.
                message[..2].fill(0);
                let Some(stream) = session.ask(&message) else {
                    return self.backlog.push_back(waiting);
                };
                let _ = self.tls.writer().write_all(&session.output());
                stream
            }
        };
        waiting.message.shrink_to_fit();
        self.waiting.insert(key, waiting);
    }

    /// Moves bytes both ways; the answers that came. An error is the end of the connection.
    fn pump(&mut self, now: u64) -> io::Result<Vec<Answered>> {
        let mut open = true;
        let mut plain = Vec::new();
        let mut total = 0;
        while open && total < TURN {
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => open = false,
                Ok(got) => total += got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::NotConnected => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            let state = self.tls.process_new_packets().map_err(io::Error::other)?;
            let before = plain.len();
            plain.resize(before + state.plaintext_bytes_to_read(), 0);
            self.tls.reader().read_exact(&mut plain[before..])?;
        }
        if total > 0 {
            self.heard = now;
        }
        let answered = self.take(&plain)?;
        self.proven |= !answered.is_empty();
        let waits = std::mem::take(&mut self.backlog);
        waits.into_iter().for_each(|waiting| self.ask(waiting));
        self.flush()?;
        // What came before the end is good all the same.
        if !open && answered.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answered)
    }

    fn take(&mut self, plain: &[u8]) -> io::Result<Vec<Answered>> {
        let mut ended: Vec<(u32, Option<Vec<u8>>)> = Vec::new();
        match &mut self.framing {
            Framing::Lengths { input, .. } => {
                input.extend_from_slice(plain);
                while let Some(message) = tcp::cut(input) {
                    if let Some(id) = message.first_chunk::<2>() {
                        ended.push((u16::from_be_bytes(*id).into(), Some(message)));
                    }
                }
            }
            Framing::Http(session) => {
                let spoken = self.tls.alpn_protocol();
                if !self.tls.is_handshaking() && spoken != Some(b"h2") {
                    return Err(io::Error::other("it does not speak HTTP/2"));
                }
                let broken = |_| io::Error::other("what it speaks is not HTTP/2");
                session.take(plain).map_err(broken)?;
                ended.extend(std::iter::from_fn(|| session.ended()));
                let _ = self.tls.writer().write_all(&session.output());
            }
        }
        let mut answered = Vec::new();
        for (key, message) in ended {
            let Some(waiting) = self.waiting.remove(&key) else {
                continue;
            };
            let id = waiting.message.first_chunk::<2>();
            let message = message.and_then(|mut message| {
                message.first_chunk_mut::<2>()?.copy_from_slice(id?);
                Some(message)
            });
            answered.push((waiting.ticket, message));
        }
        Ok(answered)
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::NotConnected => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Whether nothing new can be asked on it.
    fn is_closing(&self) -> bool {
        match &self.framing {
            Framing::Lengths { .. } => false,
            Framing::Http(session) => session.is_closing(),
        }
    }

    fn is_stuck(&self, now: u64) -> bool {
        let oldest = self.waiting.values().map(|w| w.since).min();
        oldest.is_some_and(|since| now.saturating_sub(since.max(self.heard)) > PATIENCE)
    }

    fn is_idle(&self, now: u64) -> bool {
        self.waiting.is_empty() && (self.is_closing() || now.saturating_sub(self.heard) > IDLE)
    }
}

impl Worker {
    /// Asks a secure upstream.
    pub(super) fn ask_secure(
        &mut self,
        now: u64,
        server: ServerId,
        endpoint: &Target,
        ticket: u64,
        message: Vec<u8>,
    ) {
        let waiting = Waiting {
            ticket,
            message,
            since: now,
            again: false,
        };
        self.ask_on(now, server, endpoint, vec![waiting]);
    }

    fn ask_on(&mut self, now: u64, server: ServerId, endpoint: &Target, questions: Vec<Waiting>) {
        let standing = self.secure.by_server.get(&server).copied();
        let channels = &self.secure.channels;
        let standing = standing.filter(|i| channels.get(*i).is_some_and(|c| !c.is_closing()));
        let index = match standing {
            Some(index) => Ok(index),
            None => self.secure.open(now, server, endpoint).and_then(|index| {
                self.sweep_later();
                let channel = self.secure.channels.get(index);
                let channel = channel.ok_or(io::ErrorKind::NotFound)?;
                self.watch(&channel.socket, Token::Secure(index), channel.flags)?;
                Ok(index)
            }),
        };
        match index {
            Ok(index) => {
                if let Some(channel) = self.secure.channels.get_mut(index) {
                    questions.into_iter().for_each(|w| channel.ask(w));
                }
                self.settle_secure(now, index);
            }
            Err(error) => {
                warn!(endpoint = %endpoint.endpoint, %error, "a secure upstream cannot be asked");
                self.resolver
                    .unreachable(now, &mut || self.random.next(), server);
            }
        }
    }

    /// Something moves on a secure connection.
    pub(super) fn on_secure(&mut self, index: usize) {
        let now = self.now();
        let Some(channel) = self.secure.channels.get_mut(index) else {
            return;
        };
        let server = channel.server;
        match channel.pump(now) {
            Ok(answered) => {
                for (ticket, message) in answered {
                    let dice = &mut || self.random.next();
                    self.resolver
                        .stream_answer(now, dice, server, ticket, message.as_deref());
                }
                self.settle_secure(now, index);
            }
            Err(error) => self.break_secure(now, index, &error),
        }
    }

    /// Sends what can be sent, and watches for what cannot.
    fn settle_secure(&mut self, now: u64, index: usize) {
        let Some(channel) = self.secure.channels.get_mut(index) else {
            return;
        };
        if let Err(error) = channel.flush() {
            return self.break_secure(now, index, &error);
        }
        let mut flags = EventFlags::IN;
        flags.set(EventFlags::OUT, channel.tls.wants_write());
        if flags == channel.flags {
            return;
        }
        channel.flags = flags;
        let again = self
            .secure
            .channels
            .get(index)
            .map(|c| self.rewatch(&c.socket, Token::Secure(index), flags));
        if let Some(Err(error)) = again {
            self.break_secure(now, index, &error);
        }
    }

    /// A connection is over. What it left is asked once more where it had worked before (a server may close whenever it
    /// is idle, and its word may cross ours); else its upstream is not there.
    fn break_secure(&mut self, now: u64, index: usize, error: &io::Error) {
        let Some(channel) = self.secure.channels.remove(index) else {
            return;
        };
        if self.secure.by_server.get(&channel.server) == Some(&index) {
            self.secure.by_server.remove(&channel.server);
        }
        let left: Vec<Waiting> = channel
            .waiting
            .into_values()
            .chain(channel.backlog)
            .collect();
        if left.is_empty() {
            return;
        }
        debug!(endpoint = %channel.endpoint.endpoint, %error, left = left.len(), "a secure connection broke");
        if !channel.proven {
            warn!(endpoint = %channel.endpoint.endpoint, %error, "a secure upstream does not answer");
            self.resolver
                .unreachable(now, &mut || self.random.next(), channel.server);
            return;
        }
        let (given_up, again): (Vec<Waiting>, Vec<Waiting>) =
            left.into_iter().partition(|w| w.again);
        for waiting in given_up {
            let dice = &mut || self.random.next();
            self.resolver
                .stream_answer(now, dice, channel.server, waiting.ticket, None);
        }
        if again.is_empty() {
            return;
        }
        let again = again.into_iter().map(|waiting| Waiting {
            since: now,
            again: true,
            ..waiting
        });
        self.ask_on(now, channel.server, &channel.endpoint, again.collect());
    }

    /// Ends connections that are idle, and those that are stuck.
    pub(super) fn sweep_secure(&mut self, now: u64) {
        let all = self.secure.channels.iter();
        let over = all.filter(|(_, c)| c.is_idle(now) || c.is_stuck(now));
        let over: Vec<usize> = over.map(|(index, _)| index).collect();
        for index in over {
            self.break_secure(now, index, &io::ErrorKind::TimedOut.into());
        }
    }
}
