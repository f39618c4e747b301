//! Questions on their way to upstreams and back: whom to ask, when to ask somebody else, whom to believe.
//!
//! ```text
//!  ask ──▶ Send(first that is up) ──answer──▶ Done
//!            │ no answer in time: Send(next), still listening to the first
//!            │ truncated, and somebody came over TCP: Connect
//!            └ nobody within the deadline: Done without an answer
//! ```
//! An answer is believed only from the upstream and the socket that was asked, with the number and the question (in the
//! very case) that was sent. The same question from many askers is asked once. No sockets, no clock, no dice here:
//! time and randomness come in, effects go out.

mod asking;
mod question;
mod traffic;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::response::Response;
use super::servers::{ServerId, Servers};
use super::slab::Slab;
use asking::{Asking, Attempt, choose};
use question::{Belief, believe, compose, mangle};
pub(super) use traffic::{Declined, Done, Waiter};
pub use traffic::{Effect, Limits, Question, Way};

use super::wire::{HEADER, Query, flag, rcode, u16_at};

/// Sockets per upstream: an off-path forger has to guess the port of one of them too.
pub const LANES: u8 = 8;
/// How long an asker may be kept waiting (milliseconds): less than the five seconds that stub resolvers wait.
const DEADLINE: u64 = 4_500;
/// How long until a stale answer is better than none (RFC 8767 section 5: 1.8 seconds).
const STALE_AFTER: u64 = 1_800;
/// Repetitions of a question, over all upstreams.
const MOST_SENDS: u8 = 8;
/// How long a connection may take.
const TCP_WAIT: u64 = 2_000;

/// A source of randomness: the next 64 bits.
pub type Dice<'a> = &'a mut dyn FnMut() -> u64;

/// All questions in flight.
#[derive(Debug)]
pub(super) struct Forwarder {
    limits: Limits,
    pub(super) servers: Servers,
    asking: Slab<Asking>,
    by_key: HashMap<Box<[u8]>, usize>,
    by_message: HashMap<(ServerId, u8, u16), usize>,
    timers: BTreeSet<(u64, usize)>,
    clients: HashMap<IpAddr, u32>,
    generation: u64,
    pub(super) effects: VecDeque<Effect>,
    pub(super) done: Vec<Done>,
    pub(super) sent: u64,
    pub(super) timeouts: u64,
    pub(super) spoofed: u64,
}

impl Forwarder {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            servers: Servers::default(),
            asking: Slab::default(),
            by_key: HashMap::new(),
            by_message: HashMap::new(),
            timers: BTreeSet::new(),
            clients: HashMap::new(),
            generation: 0,
            effects: VecDeque::new(),
            done: Vec::new(),
            sent: 0,
            timeouts: 0,
            spoofed: 0,
        }
    }

    /// When [`Forwarder::tick`] has something to do.
    pub(super) fn due(&self) -> Option<u64> {
        self.timers.first().map(|(due, _)| *due)
    }

    /// Asks a question, or joins it to the same one in flight. `has_stale` gives up early, on a stale answer.
    #[allow(
        clippy::too_many_arguments,
        reason = "they are the question, each of them"
    )]
    pub(super) fn ask(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        servers: &Arc<[ServerId]>,
        key: &[u8],
        query: &Query<'_>,
        waiter: Waiter,
        has_stale: bool,
    ) -> Result<(), Declined> {
        let load = self.clients.get(&waiter.client).copied().unwrap_or(0);
        if load >= self.limits.per_client {
            return Err(Declined::Busy);
        }
        let tcp = waiter.way.is_wide();
        if let Some(slot) = self.by_key.get(key).copied() {
            return self.join(slot, waiter);
        }
        if servers.is_empty() {
            return Err(Declined::Nobody);
        }
        // The last eighth is for those who have little in flight.
        let full = self.asking.len() >= self.limits.in_flight;
        if full || load > 0 && self.asking.len() >= self.limits.in_flight / 8 * 7 {
            return Err(Declined::Busy);
        }
        *self.clients.entry(waiter.client).or_default() += 1;
        self.generation += 1;
        let slot = self.asking.insert(Asking {
            key: key.into(),
            servers: Arc::clone(servers),
            question: query.bytes[HEADER..query.question_end].into(),
            flags: query.flags & (flag::CD | flag::AD),
            dnssec_ok: query.dnssec_ok(),
            waiters: vec![waiter],
            attempts: Vec::with_capacity(1),
            tried: Vec::new(),
            sends: 0,
            due: now,
            stale_at: has_stale.then_some(now + STALE_AFTER),
            deadline: now + DEADLINE + if tcp { TCP_WAIT } else { 0 },
            failure: None,
            generation: self.generation,
        });
        self.by_key.insert(key.into(), slot);
        self.next(now, dice, slot);
        Ok(())
    }

    fn join(&mut self, slot: usize, waiter: Waiter) -> Result<(), Declined> {
        let Some(asking) = self.asking.get_mut(slot) else {
            return Err(Declined::Busy);
        };
        let servers = &self.servers;
        let asked = |a: &Attempt| {
            servers
                .get(a.server)
                .is_some_and(|s| s.endpoint.address.ip() == waiter.client)
        };
        if waiter.host || asking.attempts.iter().any(asked) {
            return Err(Declined::Loop);
        }
        *self.clients.entry(waiter.client).or_default() += 1;
        asking.waiters.push(waiter);
        Ok(())
    }

    /// A datagram from an upstream's socket.
    pub(super) fn receive(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        server: ServerId,
        lane: u8,
        message: &[u8],
    ) {
        let id = u16_at(message, 0).unwrap_or(0);
        let Some(slot) = self.by_message.get(&(server, lane, id)).copied() else {
            self.spoofed += 1;
            return;
        };
        let Some(asking) = self.asking.get_mut(slot) else {
            return;
        };
        let same = |a: &Attempt| !a.tcp && (a.server, a.lane, a.id) == (server, lane, id);
        let Some(at) = asking.attempts.iter().position(same) else {
            return;
        };
        let mut belief = believe(message, &asking.attempts[at].question);
        if belief == Belief::OtherCase && self.servers.get(server).is_some_and(|s| s.no_case) {
            belief = Belief::Yes;
        }
        match belief {
            Belief::No => self.spoofed += 1,
            Belief::OtherCase => {
                self.heard(now, slot, at);
                if let Some(server) = self.servers.get_mut(server) {
                    server.no_case = true;
                }
                self.again(now, dice, slot, at);
            }
            Belief::NoEdns => {
                self.heard(now, slot, at);
                let first = self
                    .servers
                    .get_mut(server)
                    .is_some_and(|s| !std::mem::replace(&mut s.no_edns, true));
                if first {
                    self.again(now, dice, slot, at);
                } else {
                    self.drop_attempt(slot, at);
                    self.next_or_fail(now, dice, slot);
                }
            }
            Belief::Yes => {
                self.heard(now, slot, at);
                self.answered(now, dice, slot, at, message);
            }
        }
    }

    /// The answer of a connection, or that there is none.
    pub(super) fn stream_answer(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        server: ServerId,
        ticket: u64,
        message: Option<&[u8]>,
    ) {
        let slot = usize::try_from(ticket & 0xff_ffff).unwrap_or(usize::MAX);
        let Some(asking) = self
            .asking
            .get(slot)
            .filter(|a| a.generation & 0xff_ffff_ffff == ticket >> 24)
        else {
            return;
        };
        let its = |a: &Attempt| {
            a.tcp && a.server == server && message.is_none_or(|m| u16_at(m, 0) == Some(a.id))
        };
        let Some(at) = asking.attempts.iter().position(its) else {
            return;
        };
        let question = &asking.attempts[at].question;
        // Who answers on a connection is known: the case is no proof that is needed.
        let good = |m: &&[u8]| matches!(believe(m, question), Belief::Yes | Belief::OtherCase);
        if let Some(message) = message.filter(good) {
            self.heard(now, slot, at);
            self.answered(now, dice, slot, at, message);
        } else {
            self.drop_attempt(slot, at);
            self.next_or_fail(now, dice, slot);
        }
    }

    /// The kernel says that nobody is at an upstream's port: whatever waits for it asks the next.
    pub(super) fn unreachable(&mut self, now: u64, dice: Dice<'_>, server: ServerId) {
        if let Some(server) = self.servers.get_mut(server) {
            server.unreachable(now);
        }
        let secure = self.is_secure(server);
        let waits = |a: &Asking| {
            a.attempts
                .iter()
                .position(|a| a.server == server && a.tcp == secure)
        };
        let all: Vec<(usize, usize)> = self
            .asking
            .iter()
            .filter_map(|(slot, a)| waits(a).map(|at| (slot, at)))
            .collect();
        for (slot, at) in all {
            self.drop_attempt(slot, at);
            self.next_or_fail(now, dice, slot);
        }
    }

    /// What is due is done.
    pub(super) fn tick(&mut self, now: u64, dice: Dice<'_>) {
        while let Some((due, slot)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.timers.remove(&(due, slot));
            let Some(asking) = self.asking.get_mut(slot) else {
                continue;
            };
            if now >= asking.deadline {
                self.finish(slot, None);
                continue;
            }
            if asking.stale_at.is_some_and(|at| at <= now) {
                asking.stale_at = None;
                let waiters = std::mem::take(&mut asking.waiters);
                let key = asking.key.clone();
                self.let_go(&waiters);
                self.done.push(Done {
                    key,
                    waiters,
                    response: None,
                });
                self.schedule(slot, now);
                continue;
            }
            let last = asking.attempts.last().map_or(now, |a| a.sent);
            for attempt in asking.attempts.iter().filter(|a| a.sent == last) {
                if let Some(server) = self.servers.get_mut(attempt.server) {
                    self.timeouts += 1;
                    server.silent(now, attempt.sent);
                }
            }
            self.next(now, dice, slot);
        }
    }

    /// A whole, believable answer.
    fn answered(&mut self, now: u64, dice: Dice<'_>, slot: usize, at: usize, message: &[u8]) {
        let Some(asking) = self.asking.get(slot) else {
            return;
        };
        let Some(response) = Response::parse(message) else {
            self.drop_attempt(slot, at);
            return self.next_or_fail(now, dice, slot);
        };
        let wants_all = asking.waiters.iter().any(|w| w.way.is_wide());
        if response.truncated() && wants_all && !asking.attempts[at].tcp {
            return self.connect(now, slot, at);
        }
        match response.code() {
            rcode::NO_ERROR | rcode::NX_DOMAIN => self.finish(slot, Some(response)),
            _ => {
                if let Some(asking) = self.asking.get_mut(slot) {
                    asking.failure = Some(response);
                }
                self.drop_attempt(slot, at);
                self.next_or_fail(now, dice, slot);
            }
        }
    }

    /// Asks the next upstream; when all were asked, starts over while there is time.
    fn next(&mut self, now: u64, dice: Dice<'_>, slot: usize) {
        let Some(asking) = self.asking.get_mut(slot) else {
            return;
        };
        if asking.sends < MOST_SENDS {
            let mut choice = choose(&self.servers, now, asking);
            if choice.is_none() {
                asking.tried.clear();
                choice = choose(&self.servers, now, asking);
            }
            let (probe, server) = choice.unwrap_or((None, asking.servers[0]));
            if let Some(probe) = probe {
                if let Some(server) = self.servers.get_mut(probe) {
                    server.probed(now);
                }
                self.send(now, dice, slot, probe);
            }
            self.send(now, dice, slot, server);
        }
        self.schedule(slot, now);
    }

    /// Asks an upstream that was not asked yet, or gives up when none is left that may still answer.
    fn next_or_fail(&mut self, now: u64, dice: Dice<'_>, slot: usize) {
        let Some(asking) = self.asking.get(slot) else {
            return;
        };
        let untried = asking.servers.iter().any(|s| !asking.tried.contains(s));
        if untried && asking.sends < MOST_SENDS {
            self.next(now, dice, slot);
        } else if asking.attempts.is_empty() {
            let failure = self.asking.get_mut(slot).and_then(|a| a.failure.take());
            self.finish(slot, failure);
        }
    }

    /// Asks the same upstream again, in a way that it can stand.
    fn again(&mut self, now: u64, dice: Dice<'_>, slot: usize, at: usize) {
        let Some(server) = self.asking.get(slot).map(|a| a.attempts[at].server) else {
            return;
        };
        self.drop_attempt(slot, at);
        self.send(now, dice, slot, server);
        self.schedule(slot, now);
    }

    fn is_secure(&self, server: ServerId) -> bool {
        self.servers
            .get(server)
            .is_some_and(|s| s.endpoint.is_secure())
    }

    fn send(&mut self, now: u64, dice: Dice<'_>, slot: usize, id: ServerId) {
        if self.is_secure(id) {
            return self.stream(now, dice, slot, id);
        }
        let (Some(asking), Some(server)) = (self.asking.get_mut(slot), self.servers.get(id)) else {
            return;
        };
        let mut question = asking.question.clone();
        if !server.no_case {
            mangle(&mut question, dice);
        }
        let roll = dice();
        let lane = u8::try_from((roll >> 32) % u64::from(LANES)).unwrap_or(0);
        let mut number = u16::try_from(roll & 0xffff).unwrap_or(0);
        while self.by_message.contains_key(&(id, lane, number)) {
            number = number.wrapping_add(1);
        }
        let message = compose(number, asking.flags, &question, asking.edns(server), false);
        self.by_message.insert((id, lane, number), slot);
        asking.attempts.push(Attempt {
            server: id,
            lane,
            id: number,
            question,
            sent: now,
            tcp: false,
        });
        asking.tried.push(id);
        asking.sends += 1;
        self.sent += 1;
        let address = server.endpoint.address;
        self.effects.push_back(Effect::Send {
            server: id,
            address,
            lane,
            link: server.link,
            message,
        });
    }

    /// The same question over TCP, in place of the datagram whose answer was cut.
    fn connect(&mut self, now: u64, slot: usize, at: usize) {
        self.unindex(slot, at);
        let Some(asking) = self.asking.get_mut(slot) else {
            return;
        };
        let attempt = &mut asking.attempts[at];
        (attempt.tcp, attempt.sent) = (true, now);
        let (id, to, question) = (attempt.id, attempt.server, attempt.question.clone());
        let Some(server) = self.servers.get(to) else {
            return;
        };
        let message = compose(id, asking.flags, &question, asking.edns(server), false);
        self.effects.push_back(Effect::Stream {
            server: to,
            endpoint: server.endpoint.clone(),
            link: server.link,
            ticket: asking.ticket(slot),
            message,
        });
        self.schedule(slot, now);
    }

    /// The question over a secure connection. One is enough: the connection loses nothing, and the shell makes another
    /// when it breaks.
    fn stream(&mut self, now: u64, dice: Dice<'_>, slot: usize, to: ServerId) {
        let (Some(asking), Some(server)) = (self.asking.get_mut(slot), self.servers.get(to)) else {
            return;
        };
        asking.tried.push(to);
        if asking.attempts.iter().any(|a| a.server == to) {
            return;
        }
        let id = u16::try_from(dice() & 0xffff).unwrap_or(0);
        let question = asking.question.clone();
        let message = compose(id, asking.flags, &question, asking.edns(server), true);
        asking.attempts.push(Attempt {
            server: to,
            lane: 0,
            id,
            question,
            sent: now,
            tcp: true,
        });
        asking.sends += 1;
        self.sent += 1;
        self.effects.push_back(Effect::Stream {
            server: to,
            endpoint: server.endpoint.clone(),
            link: server.link,
            ticket: asking.ticket(slot),
            message,
        });
    }

    fn heard(&mut self, now: u64, slot: usize, at: usize) {
        let attempt = self.asking.get(slot).and_then(|a| a.attempts.get(at));
        if let Some((server, sent)) = attempt.map(|a| (a.server, a.sent))
            && let Some(server) = self.servers.get_mut(server)
        {
            server.heard(now, sent);
        }
    }

    /// Sets the clock of a question: the patience with whom was asked last, longer with each repetition.
    fn schedule(&mut self, slot: usize, now: u64) {
        let Some(asking) = self.asking.get_mut(slot) else {
            return;
        };
        let patience = asking.attempts.last().map_or(TCP_WAIT, |attempt| {
            let server = self.servers.get(attempt.server);
            let patience = server.map_or(TCP_WAIT, super::servers::Server::patience);
            if attempt.tcp && !server.is_some_and(|s| s.endpoint.is_secure()) {
                TCP_WAIT
            } else {
                patience << (asking.sends.saturating_sub(1) / 2).min(3)
            }
        });
        self.timers.remove(&(asking.due, slot));
        asking.due = (now + patience)
            .min(asking.deadline)
            .min(asking.stale_at.unwrap_or(u64::MAX))
            .max(now + 1);
        self.timers.insert((asking.due, slot));
    }

    fn unindex(&mut self, slot: usize, at: usize) {
        let attempt = self.asking.get(slot).and_then(|a| a.attempts.get(at));
        if let Some(attempt) = attempt.filter(|a| !a.tcp) {
            self.by_message
                .remove(&(attempt.server, attempt.lane, attempt.id));
        }
    }

    fn drop_attempt(&mut self, slot: usize, at: usize) {
        self.unindex(slot, at);
        if let Some(asking) = self.asking.get_mut(slot) {
            asking.attempts.remove(at);
        }
    }

    fn finish(&mut self, slot: usize, response: Option<Response>) {
        let Some(asking) = self.asking.remove(slot) else {
            return;
        };
        self.timers.remove(&(asking.due, slot));
        self.by_key.remove(&asking.key);
        for attempt in asking.attempts.iter().filter(|a| !a.tcp) {
            self.by_message
                .remove(&(attempt.server, attempt.lane, attempt.id));
        }
        self.let_go(&asking.waiters);
        self.done.push(Done {
            key: asking.key,
            waiters: asking.waiters,
            response: response.or(asking.failure).map(Arc::new),
        });
    }

    fn let_go(&mut self, waiters: &[Waiter]) {
        for waiter in waiters {
            if let Some(count) = self.clients.get_mut(&waiter.client) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.clients.remove(&waiter.client);
                }
            }
        }
    }
}
