//! Connections to upstreams: one to each, kept while it is used, with many questions in flight. Plain upstreams are asked
//! by one when a datagram was not enough; of secure ones (DNS over TLS, RFC 7858; over HTTPS, RFC 8484) certificates are
//! always checked, and there is no way back to plain text (RFC 8310's strict profile).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tracing::{debug, warn};

use super::channel::{Carrier, Channel, Framing, Waiting};
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
/// On how many connections that break a question may be: a plain upstream may close after each answer.
const MOST_BROKEN: (u8, u8) = (8, 1);

/// All connections to upstreams.
pub(super) struct Channels {
    authorities: Option<PathBuf>,
    configs: Option<[Arc<ClientConfig>; 2]>,
    open: Slab<Channel>,
    by_server: HashMap<ServerId, usize>,
}

impl Channels {
    /// `authorities` is a file of certificates in place of the system's.
    pub(super) fn new(authorities: Option<PathBuf>) -> Self {
        Self {
            authorities,
            configs: None,
            open: Slab::default(),
            by_server: HashMap::new(),
        }
    }

    /// Whether there is nothing to sweep.
    pub(super) fn is_empty(&self) -> bool {
        self.open.len() == 0
    }

    fn open(&mut self, now: u64, server: ServerId, target: &Target) -> io::Result<usize> {
        let spoken = self.spoken(target)?;
        let socket = tcp::connect(target.endpoint.address, target.link)?;
        // Small questions that wait for nothing.
        let _ = socket.set_nodelay(true);
        let channel = Channel::new(now, server, target.clone(), socket, spoken);
        let index = self.open.insert(channel);
        self.by_server.insert(server, index);
        Ok(index)
    }

    fn spoken(&mut self, target: &Target) -> io::Result<(Carrier, Framing)> {
        let endpoint = &target.endpoint;
        let address = endpoint.address.ip();
        let shown = |name: &Option<DomainName>| match name {
            Some(name) => ServerName::try_from(name.to_string()).map_err(io::Error::other),
            None => Ok(ServerName::from(address)),
        };
        let (config, name, framing) = match &endpoint.transport {
            Transport::Plain => return Ok((Carrier::Plain, Framing::lengths())),
            Transport::Tls { name } => {
                let [tls, _] = self.configs()?;
                (tls, shown(name)?, Framing::lengths())
            }
            Transport::Https { name, path } => {
                let authority = match name {
                    Some(name) if endpoint.address.port() == 443 => name.to_string(),
                    Some(name) => format!("{name}:{}", endpoint.address.port()),
                    None => endpoint.address.to_string(),
                };
                let [_, https] = self.configs()?;
                let session = Session::new(authority, path.clone());
                (https, shown(name)?, Framing::Http(Box::new(session)))
            }
        };
        let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
        // It is bounded by the number of questions; a question cut in the middle would spoil those behind it.
        tls.set_buffer_limit(None);
        Ok((Carrier::Tls(Box::new(tls)), framing))
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

impl Worker {
    /// Asks an upstream over its connection.
    pub(super) fn ask_channel(
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
            broken: 0,
        };
        self.ask_on(now, server, endpoint, vec![waiting]);
    }

    fn ask_on(&mut self, now: u64, server: ServerId, endpoint: &Target, questions: Vec<Waiting>) {
        let standing = self.channels.by_server.get(&server).copied();
        let channels = &self.channels.open;
        let standing = standing.filter(|i| channels.get(*i).is_some_and(|c| !c.is_closing()));
        let index = match standing {
            Some(index) => Ok(index),
            None => self.channels.open(now, server, endpoint).and_then(|index| {
                self.sweep_later();
                let channel = self.channels.open.get(index);
                let channel = channel.ok_or(io::ErrorKind::NotFound)?;
                self.watch(&channel.socket, Token::Channel(index), channel.flags)?;
                Ok(index)
            }),
        };
        match index {
            Ok(index) => {
                if let Some(channel) = self.channels.open.get_mut(index) {
                    questions.into_iter().for_each(|w| channel.ask(w));
                }
                self.settle_channel(now, index);
            }
            Err(error) => {
                warn!(endpoint = %endpoint.endpoint, %error, "an upstream cannot be asked by a connection");
                self.not_there(now, server, endpoint, &questions);
            }
        }
    }

    /// An upstream cannot be connected to. A plain one still takes datagrams.
    fn not_there(&mut self, now: u64, server: ServerId, target: &Target, left: &[Waiting]) {
        if target.endpoint.is_secure() {
            let dice = &mut || self.random.next();
            return self.resolver.unreachable(now, dice, server);
        }
        self.give_up(now, server, left);
    }

    fn give_up(&mut self, now: u64, server: ServerId, left: &[Waiting]) {
        for waiting in left {
            let dice = &mut || self.random.next();
            self.resolver
                .stream_answer(now, dice, server, waiting.ticket, None);
        }
    }

    /// Something moves on a connection to an upstream.
    pub(super) fn on_channel(&mut self, index: usize) {
        let now = self.now();
        let Some(channel) = self.channels.open.get_mut(index) else {
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
                self.settle_channel(now, index);
            }
            Err(error) => self.break_channel(now, index, &error),
        }
    }

    /// Sends what can be sent, and watches for what cannot.
    fn settle_channel(&mut self, now: u64, index: usize) {
        let Some(channel) = self.channels.open.get_mut(index) else {
            return;
        };
        if let Err(error) = channel.flush() {
            return self.break_channel(now, index, &error);
        }
        let mut flags = EventFlags::IN;
        flags.set(EventFlags::OUT, channel.wants_write());
        if flags == channel.flags {
            return;
        }
        channel.flags = flags;
        let again = self
            .channels
            .open
            .get(index)
            .map(|c| self.rewatch(&c.socket, Token::Channel(index), flags));
        if let Some(Err(error)) = again {
            self.break_channel(now, index, &error);
        }
    }

    /// A connection is over. What it left is asked once more where it had worked before (a server may close whenever it
    /// is idle, and its word may cross ours); else its upstream is not there.
    fn break_channel(&mut self, now: u64, index: usize, error: &io::Error) {
        let Some(channel) = self.channels.open.remove(index) else {
            return;
        };
        if self.channels.by_server.get(&channel.server) == Some(&index) {
            self.channels.by_server.remove(&channel.server);
        }
        let (server, target) = (channel.server, channel.endpoint.clone());
        let most = if channel.is_plain() {
            MOST_BROKEN.0
        } else {
            MOST_BROKEN.1
        };
        let proven = channel.proven;
        let left = channel.into_left();
        if left.is_empty() {
            return;
        }
        debug!(endpoint = %target.endpoint, %error, left = left.len(), "a connection to an upstream broke");
        if !proven {
            warn!(endpoint = %target.endpoint, %error, "an upstream does not answer by its connection");
            return self.not_there(now, server, &target, &left);
        }
        let (given_up, again): (Vec<Waiting>, Vec<Waiting>) =
            left.into_iter().partition(|w| w.broken >= most);
        self.give_up(now, server, &given_up);
        if again.is_empty() {
            return;
        }
        let again = again.into_iter().map(|waiting| Waiting {
            since: now,
            broken: waiting.broken + 1,
            ..waiting
        });
        self.ask_on(now, server, &target, again.collect());
    }

    /// Ends connections that are idle, and those that are stuck.
    pub(super) fn sweep_channels(&mut self, now: u64) {
        let indexes: Vec<usize> = self.channels.open.iter().map(|(index, _)| index).collect();
        for index in indexes {
            let Some(channel) = self.channels.open.get_mut(index) else {
                continue;
            };
            channel.forget_late(now);
            if channel.is_over(now) {
                self.break_channel(now, index, &io::ErrorKind::TimedOut.into());
            }
        }
    }
}
