//! Clients over TCP (RFC 7766): many questions on one connection, answered as they get ready.
//!
//! A client costs what it reads: while its answers are not taken, or too many of its questions are open, nothing more of
//! it is read. Each turn takes a few of its messages, so that it holds up nobody.

use std::net::{TcpListener, TcpStream};

use rustix::event::epoll::EventFlags;
use tracing::trace;

use super::tcp::{Input, Output};
use super::worker::{Token, Worker};
use crate::dns::shares::{Holder, Share, Shares};
use crate::dns::slab::Slab;
use crate::dns::{Fate, From, Way};

/// Connections at a time, all and of one guest.
const MOST: (usize, usize) = (1024, 64);
/// How long a connection may go without a whole question and without taking its answers (RFC 7766 section 6.2.3: a few
/// seconds), in milliseconds. Single bytes are no life.
const IDLE: u64 = 10_000;
/// Unsent bytes after which nothing more is read.
const MOST_OUTPUT: usize = 64 << 10;
/// Questions of one connection in flight.
const MOST_PENDING: u32 = 128;
/// Messages of one connection in one turn.
const TURN: usize = 64;

/// All connections of clients.
pub(super) struct Clients {
    open: Slab<Client>,
    shares: Shares,
    generation: u64,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            open: Slab::default(),
            shares: Shares::new(MOST.0, MOST.1),
            generation: 0,
        }
    }
}

impl Clients {
    pub(super) fn is_empty(&self) -> bool {
        self.open.len() == 0
    }
}

struct Client {
    socket: TcpStream,
    input: Input,
    output: Output,
    from: From,
    share: Share,
    /// Tells it from another that had its slot.
    generation: u64,
    pending: u32,
    /// Whether it has said all that it will: it may still read.
    done: bool,
    /// When it last said or took something whole.
    last: u64,
    watched: EventFlags,
}

impl Client {
    fn may_ask(&self) -> bool {
        self.pending < MOST_PENDING && self.output.len() < MOST_OUTPUT
    }

    /// What to wait for: more only when what there is was taken; a writable socket also brings back what waits here.
    fn wants(&self) -> EventFlags {
        let whole = self.input.has_message();
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, !self.done && !whole && self.may_ask());
        let left = self.output.len() > 0 || whole && self.may_ask();
        flags.set(EventFlags::OUT, left);
        flags
    }

    fn is_over(&self) -> bool {
        self.done && self.pending == 0 && self.output.len() == 0 && !self.input.has_message()
    }

    fn is_idle(&self, now: u64) -> bool {
        now.saturating_sub(self.last) > IDLE && self.pending == 0
    }

    fn flush(&mut self, now: u64) -> std::io::Result<()> {
        let some = self.output.len() > 0;
        self.output.flush(&self.socket)?;
        if some && self.output.len() == 0 {
            self.last = now;
        }
        Ok(())
    }
}

impl Worker {
    /// A client connects.
    pub(super) fn on_accept(&mut self, index: usize) {
        let now = self.now();
        let Some(listener) = self.listeners.get(index) else {
            return;
        };
        let Some(Ok((socket, peer))) = listener.tcp.as_ref().map(TcpListener::accept) else {
            return;
        };
        let from = From {
            network: listener.network,
            address: peer.ip(),
            host: peer.ip() == listener.address,
        };
        let holder = Holder::of(self.resolver.directory(), from.network, from.address);
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        let Some(share) = self.clients.shares.take(&holder) else {
            trace!(%peer, "too many connections");
            return;
        };
        self.clients.generation += 1;
        let index = self.clients.open.insert(Client {
            socket,
            input: Input::default(),
            output: Output::default(),
            from,
            share,
            generation: self.clients.generation,
            pending: 0,
            done: false,
            last: now,
            watched: EventFlags::IN,
        });
        let client = self.clients.open.get(index);
        let watch = |c: &Client| self.watch(&c.socket, Token::Client(index), c.watched);
        if !matches!(client.map(watch), Some(Ok(()))) {
            self.close_client(index);
        }
        self.sweep_later();
    }

    /// Something moves on a client's connection.
    pub(super) fn on_client(&mut self, index: usize) {
        let Some(client) = self.clients.open.get_mut(index) else {
            return;
        };
        if !client.done && !client.input.has_message() && client.may_ask() {
            match client.input.fill(&client.socket) {
                Ok(open) => client.done = !open,
                Err(_) => return self.close_client(index),
            }
        }
        self.serve_client(index);
    }

    /// Answers what came, as far as the client takes answers.
    fn serve_client(&mut self, index: usize) {
        let now = self.now();
        for _ in 0..TURN {
            let Some(client) = self.clients.open.get_mut(index) else {
                return;
            };
            if client.output.len() >= MOST_OUTPUT && client.flush(now).is_err() {
                return self.close_client(index);
            }
            if !client.may_ask() {
                break;
            }
            let Some(message) = client.input.next() else {
                break;
            };
            client.last = now;
            let way = Way::Tcp(index, client.generation);
            let dice = &mut || self.random.next();
            let out = &mut self.replies[0];
            match (self.resolver).handle(now, dice, &client.from, way, &message, out) {
                Fate::Now => client.output.push(out),
                Fate::Later => client.pending += 1,
                // It does not speak DNS.
                Fate::Never => return self.close_client(index),
            }
        }
        self.settle_client(now, index);
    }

    /// An answer that a client waited for.
    pub(super) fn answer_client(&mut self, index: usize, generation: u64, message: &[u8]) {
        let client = self.clients.open.get_mut(index);
        if let Some(client) = client.filter(|c| c.generation == generation) {
            client.output.push(message);
            client.pending = client.pending.saturating_sub(1);
            self.serve_client(index);
        }
    }

    /// Sends what can be sent, and waits for what comes next.
    fn settle_client(&mut self, now: u64, index: usize) {
        let Some(client) = self.clients.open.get_mut(index) else {
            return;
        };
        if client.flush(now).is_err() || client.is_over() {
            return self.close_client(index);
        }
        let wants = client.wants();
        if wants == client.watched {
            return;
        }
        client.watched = wants;
        let client = self.clients.open.get(index);
        let again = client.map(|c| self.rewatch(&c.socket, Token::Client(index), wants));
        if !matches!(again, Some(Ok(()))) {
            self.close_client(index);
        }
    }

    fn close_client(&mut self, index: usize) {
        if let Some(client) = self.clients.open.remove(index) {
            self.clients.shares.give_back(client.share);
        }
    }

    pub(super) fn sweep_clients(&mut self, now: u64) {
        let all = self.clients.open.iter();
        let idle: Vec<usize> = all
            .filter(|(_, c)| c.is_idle(now))
            .map(|(i, _)| i)
            .collect();
        for index in idle {
            self.close_client(index);
        }
    }
}
