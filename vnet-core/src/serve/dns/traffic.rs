//! Datagrams in and out, of clients on gateways and of upstreams beyond; and what the resolver wants done.

use std::io;

use rustix::event::epoll::EventFlags;
use tracing::debug;

use super::mmsg::{self, Address, Letter};
use super::worker::{Token, Worker};
use crate::dns::{Effect, From, Target, Way};

/// Batches a socket may take in one turn, so that a flooded network does not starve the others.
const TURNS: usize = 4;

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
            let mut ready: Vec<Letter<'_>> = Vec::with_capacity(got);
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
            if let Err(e) = mmsg::send_joined(&listener.udp, &mut ready, &listener.joins) {
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
                } => {
                    let target = Target { endpoint, link };
                    self.ask_channel(now, server, &target, ticket, message);
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
                    let letters = same.iter().map(|(way, m)| (to(way), m.as_slice()));
                    let mut letters: Vec<Letter<'_>> = letters.collect();
                    let sent = mmsg::send_joined(&listener.udp, &mut letters, &listener.joins);
                    if let Err(e) = sent {
                        debug!(error = %e, address = %listener.address, "an answer could not be sent");
                    }
                }
                Way::Tcp(index, generation) => {
                    self.answer_client(index, generation, &same[0].1);
                }
                Way::Check(part) => self.tell_checker(part, same[0].1.clone()),
            }
        }
    }
}
