//! Packets in and out: clients on gateways, upstreams beyond.

use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::event::epoll::EventFlags;
use tracing::{debug, trace};

use super::mmsg::{self, Address};
use super::tcp::{self, Connection, Role, Stream};
use super::worker::{Token, Worker};
use crate::dns::{Effect, From, ServerId, Target, Way};

/// Batches a socket may take in one turn, so that a flooded network does not starve the others.
const TURNS: usize = 4;
/// Connections at a time, all and of one client.
const MOST_CONNECTIONS: (usize, usize) = (1024, 64);
/// How long a connection may be idle (RFC 7766 section 6.2.3: a few seconds), in milliseconds.
const IDLE: u64 = 10_000;

impl Worker {
    /// Queries on a gateway's UDP socket.
    pub(super) fn on_udp(&mut self, index: usize) {
        let now = self.now();
        let Some(listener) = self.listeners.get(index) else {
            return;
        };
        for _ in 0..TURNS {
            let got = match self.batch.receive(&listener.udp) {
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) => {
                    debug!(error = %e, address = %listener.address, "no query could be received");
                    return;
                }
            };
            self.busy += got;
            let mut ready: Vec<(Option<Address>, &[u8])> = Vec::with_capacity(got);
            for (i, out) in self.replies.iter_mut().take(got).enumerate() {
                let (bytes, address) = self.batch.message(i);
                let Some(client) = address.socket() else {
                    continue;
                };
                let from = From {
                    network: listener.network,
                    address: client.ip(),
                    host: client.ip() == listener.address,
                };
                let dice = &mut || self.random.next();
                self.resolver
                    .handle(now, dice, &from, Way::Udp(index, client), bytes, out);
                if !out.is_empty() {
                    ready.push((Some(address), out));
                }
            }
            if let Err(e) = mmsg::send(&listener.udp, &ready) {
                debug!(error = %e, address = %listener.address, "an answer could not be sent");
            }
            if got < mmsg::BATCH {
                return;
            }
        }
    }

    /// Answers on a socket to an upstream.
    pub(super) fn on_upstream(&mut self, index: usize) {
        let now = self.now();
        let Some(lane) = self.outbound.get(index) else {
            return;
        };
        let (server, number) = (lane.server, lane.lane);
        match self.batch.receive(&lane.socket) {
            Ok(got) => {
                for i in 0..got {
                    let (bytes, _) = self.batch.message(i);
                    let dice = &mut || self.random.next();
                    self.resolver.receive(now, dice, server, number, bytes);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => {
                debug!(error = %e, "an upstream is not there");
                self.resolver
                    .unreachable(now, &mut || self.random.next(), server);
            }
        }
    }

    /// A client connects.
    pub(super) fn on_accept(&mut self, index: usize) {
        let now = self.now();
        let Some(listener) = self.listeners.get(index) else {
            return;
        };
        let Some(Ok((socket, from))) = listener.tcp.as_ref().map(TcpListener::accept) else {
            return;
        };
        let (network, host) = (listener.network, from.ip() == listener.address);
        let same =
            |c: &Connection| matches!(&c.role, Role::Client { from: f, .. } if f.ip() == from.ip());
        let full = self.connections.len() >= MOST_CONNECTIONS.0;
        if full || self.connections.iter().filter(|(_, c)| same(c)).count() >= MOST_CONNECTIONS.1 {
            trace!(%from, "too many connections");
            return;
        }
        if socket.set_nonblocking(true).is_ok() {
            let role = Role::Client {
                network,
                from,
                host,
                pending: 0,
            };
            self.open(Stream::new(socket, now), role);
        }
    }

    /// Something moves on a connection.
    pub(super) fn on_connection(&mut self, index: usize) {
        let now = self.now();
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let open = connection.stream.fill(now);
        while let Some(message) = self
            .connections
            .get_mut(index)
            .and_then(|c| c.stream.next())
        {
            if !self.on_message(now, index, &message) {
                return self.close_connection(index);
            }
        }
        match open {
            Ok(true) => self.flush(index),
            // A client that sent all it had may still read; but one that is gone is gone.
            Ok(false) => {
                self.flush(index);
                self.close_connection(index);
            }
            Err(_) => self.close_connection(index),
        }
    }

    /// A whole message came; false ends the connection.
    fn on_message(&mut self, now: u64, index: usize, message: &[u8]) -> bool {
        let Some(connection) = self.connections.get_mut(index) else {
            return false;
        };
        let generation = connection.generation;
        if !connection.begin() {
            return false;
        }
        match &connection.role {
            Role::Upstream { server, ticket } => {
                let (server, ticket) = (*server, *ticket);
                let dice = &mut || self.random.next();
                self.resolver
                    .stream_answer(now, dice, server, ticket, Some(message));
                false
            }
            Role::Client {
                network,
                from,
                host,
                ..
            } => {
                let from = From {
                    network: *network,
                    address: from.ip(),
                    host: *host,
                };
                let mut out = Vec::new();
                let way = Way::Tcp(index, generation);
                let dice = &mut || self.random.next();
                self.resolver
                    .handle(now, dice, &from, way, message, &mut out);
                if !out.is_empty() {
                    connection.stream.push(&out);
                    connection.end();
                }
                true
            }
        }
    }

    /// Sends what the resolver decided: questions to upstreams, and answers to those who waited.
    pub(super) fn carry_out(&mut self) {
        let now = self.now();
        // Each round may bring new effects (an upstream that is not there); their number is bounded by the
        // forwarder's own bounds, and what is left waits for the next turn.
        for _ in 0..4 {
            let sent = self.send_questions(now);
            self.send_answers();
            if !sent {
                return;
            }
        }
    }

    fn send_questions(&mut self, now: u64) -> bool {
        let mut outgoing: Vec<(usize, Vec<u8>)> = Vec::new();
        while let Some(effect) = self.resolver.effect() {
            match effect {
                Effect::Send {
                    server,
                    address,
                    lane,
                    link,
                    message,
                } => match self.outbound.lane(now, server, lane, (address, link)) {
                    Ok((index, fresh)) => {
                        if fresh {
                            self.watch_lane(index);
                        }
                        outgoing.push((index, message));
                    }
                    Err(e) => {
                        debug!(error = %e, %address, "an upstream cannot be reached");
                        self.resolver
                            .unreachable(now, &mut || self.random.next(), server);
                    }
                },
                Effect::Stream {
                    server,
                    endpoint,
                    link,
                    ticket,
                    message,
                } if endpoint.is_secure() => {
                    let target = Target { endpoint, link };
                    self.ask_secure(now, server, &target, ticket, message);
                }
                Effect::Stream {
                    server,
                    endpoint,
                    link,
                    ticket,
                    message,
                } => {
                    let to = (endpoint.address, link);
                    self.connect(now, server, to, ticket, &message);
                }
                Effect::Check(question) => self.check(now, question),
            }
        }
        let some = !outgoing.is_empty();
        outgoing.sort_by_key(|(index, _)| *index);
        for same in outgoing.chunk_by(|a, b| a.0 == b.0) {
            let Some(lane) = self.outbound.get(same[0].0) else {
                continue;
            };
            let messages: Vec<_> = same.iter().map(|(_, m)| (None, m.as_slice())).collect();
            let server = lane.server;
            if let Err(e) = mmsg::send(&lane.socket, &messages) {
                debug!(error = %e, "an upstream is not there");
                self.resolver
                    .unreachable(now, &mut || self.random.next(), server);
            }
        }
        some
    }

    fn watch_lane(&mut self, index: usize) {
        self.sweep_later();
        if let Some(lane) = self.outbound.get(index)
            && let Err(e) = self.watch(&lane.socket, Token::Upstream(index), EventFlags::IN)
        {
            debug!(error = %e, "a socket to an upstream cannot be watched");
        }
    }

    fn connect(
        &mut self,
        now: u64,
        server: ServerId,
        (address, link): (SocketAddr, Option<u32>),
        ticket: u64,
        message: &[u8],
    ) {
        match tcp::connect(address, link) {
            Ok(socket) => {
                let mut stream = Stream::new(socket, now);
                stream.push(message);
                self.open(stream, Role::Upstream { server, ticket });
            }
            Err(_) => {
                let dice = &mut || self.random.next();
                self.resolver.stream_answer(now, dice, server, ticket, None);
            }
        }
    }

    fn send_answers(&mut self) {
        let mut answers: Vec<(Way, Vec<u8>)> = self.resolver.replies().collect();
        answers.sort_by_key(|(way, _)| match way {
            Way::Udp(listener, _) => (0, *listener),
            Way::Tcp(connection, _) => (1, *connection),
            Way::Check(_) => (2, 0),
        });
        let key = |way: &Way| match way {
            Way::Udp(listener, _) => Some(*listener),
            Way::Tcp(..) | Way::Check(_) => None,
        };
        for same in answers.chunk_by(|a, b| key(&a.0).is_some() && key(&a.0) == key(&b.0)) {
            match same[0].0 {
                Way::Udp(index, _) => {
                    let Some(listener) = self.listeners.get(index) else {
                        continue;
                    };
                    let to = |way: &Way| match way {
                        Way::Udp(_, to) => Some(Address::of(*to)),
                        Way::Tcp(..) | Way::Check(_) => None,
                    };
                    let messages: Vec<_> = same
                        .iter()
                        .map(|(way, m)| (to(way), m.as_slice()))
                        .collect();
                    if let Err(e) = mmsg::send(&listener.udp, &messages) {
                        debug!(error = %e, address = %listener.address, "an answer could not be sent");
                    }
                }
                Way::Tcp(index, generation) => {
                    let connection = self.connections.get_mut(index);
                    if let Some(connection) = connection.filter(|c| c.generation == generation) {
                        connection.stream.push(&same[0].1);
                        connection.end();
                        self.flush(index);
                    }
                }
                Way::Check(part) => self.tell_checker(part, same[0].1.clone()),
            }
        }
    }

    fn open(&mut self, stream: Stream, role: Role) {
        self.generation += 1;
        let writing = matches!(role, Role::Upstream { .. });
        let index = self.connections.insert(Connection {
            stream,
            role,
            generation: self.generation,
            writing,
        });
        let flags = if writing {
            EventFlags::IN | EventFlags::OUT
        } else {
            EventFlags::IN
        };
        let watched = self
            .connections
            .get(index)
            .map(|c| self.watch(c.stream.socket(), Token::Connection(index), flags));
        if !matches!(watched, Some(Ok(()))) {
            self.close_connection(index);
        }
        self.sweep_later();
    }

    fn flush(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let Ok(more) = connection.stream.flush() else {
            return self.close_connection(index);
        };
        if more == connection.writing {
            return;
        }
        connection.writing = more;
        let flags = if more {
            EventFlags::IN | EventFlags::OUT
        } else {
            EventFlags::IN
        };
        let again = self
            .connections
            .get(index)
            .map(|c| self.rewatch(c.stream.socket(), Token::Connection(index), flags));
        if !matches!(again, Some(Ok(()))) {
            self.close_connection(index);
        }
    }

    fn close_connection(&mut self, index: usize) {
        if let Some(Connection {
            role: Role::Upstream { server, ticket },
            ..
        }) = self.connections.remove(index)
        {
            // A ticket that was answered is no ticket any more.
            let now = self.now();
            let dice = &mut || self.random.next();
            self.resolver.stream_answer(now, dice, server, ticket, None);
        }
    }

    pub(super) fn sweep_connections(&mut self, now: u64) {
        let idle = |c: &Connection| now.saturating_sub(c.stream.last) > IDLE;
        let idle: Vec<usize> = self
            .connections
            .iter()
            .filter(|(_, c)| idle(c))
            .map(|(i, _)| i)
            .collect();
        for index in idle {
            self.close_connection(index);
        }
    }
}
