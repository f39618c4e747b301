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
mod late;
mod question;
mod sending;
mod traffic;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::response::Response;
use super::servers::{ServerId, Servers};
use super::shares::{Share, Shares};
use super::slab::Slab;
use asking::{Asking, Attempt, Manner, With};
use late::Late;
use question::{Belief, believe};
pub(super) use traffic::{Declined, Done, Outcome, Waiter};
pub use traffic::{Effect, Limits, Question, Way};

use super::wire::{HEADER, Query, flag, u16_at};

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
    late: Late,
    shares: Shares,
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
            late: Late::default(),
            shares: Shares::new(limits.in_flight, limits.per_client),
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
        if let Some(slot) = self.by_key.get(key).copied() {
            return self.join(slot, waiter);
        }
        if servers.is_empty() {
            return Err(Declined::Nobody);
        }
        // Questions that go on though who asked them was told something older.
        if self.asking.len() >= self.limits.in_flight {
            return Err(Declined::Busy);
        }
        let share = self.shares.take(&waiter.holder).ok_or(Declined::Busy)?;
        self.generation += 1;
        let slot = self.asking.insert(Asking {
            key: key.into(),
            servers: Arc::clone(servers),
            question: query.bytes[HEADER..query.question_end].into(),
            // RFC 6840 section 5.7: whether it is authentic is wanted by whoever asks next.
            flags: query.flags & flag::CD | flag::AD,
            dnssec_ok: query.dnssec_ok(),
            waiters: vec![(waiter, share)],
            attempts: Vec::with_capacity(1),
            tried: Vec::new(),
            sends: 0,
            due: now,
            stale_at: has_stale.then_some(now + STALE_AFTER),
            deadline: now + DEADLINE,
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
        let share = self.shares.take(&waiter.holder).ok_or(Declined::Busy)?;
        asking.waiters.push((waiter, share));
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
            if !self.late.expects(server, lane, id) {
                self.forged(now, server);
            }
            return;
        };
        let Some(asking) = self.asking.get_mut(slot) else {
            return;
        };
        let same = |a: &Attempt| !a.tcp && (a.server, a.lane, a.id) == (server, lane, id);
        let Some(at) = asking.attempts.iter().position(same) else {
            return;
        };
        let attempt = &asking.attempts[at];
        let (belief, manner) = (believe(message, &attempt.question), attempt.manner);
        match belief {
            Belief::No => self.forged(now, server),
            Belief::OtherCase if manner.case == With::Yes => {
                self.other_case(now, dice, slot, at, server);
            }
            Belief::Complaint(code) => self.complained(now, dice, slot, at, code),
            Belief::Yes | Belief::OtherCase => self.answered(now, dice, slot, at, message),
        }
    }

    /// A message that nobody who was asked sent, as far as we know.
    fn forged(&mut self, now: u64, server: ServerId) {
        self.spoofed += 1;
        if let Some(server) = self.servers.get_mut(server) {
            server.forged(now);
        }
    }

    /// The number is right and the case of the name is not. Of one who has kept it, that is a forgery, unless a connection
    /// brings the same; the others are asked again in plain case, to see whether they just cannot.
    fn other_case(&mut self, now: u64, dice: Dice<'_>, slot: usize, at: usize, id: ServerId) {
        let Some(manner) = self.asking.get(slot).map(|a| a.attempts[at].manner) else {
            return;
        };
        let keeps = self.servers.get(id).is_some_and(|s| s.case.is_shown(now));
        if keeps {
            self.forged(now, id);
            self.stream(now, dice, slot, id, manner);
            self.schedule(slot, now);
        } else {
            self.heard(now, slot, at);
            let case = With::Trial;
            self.again(now, dice, slot, at, Manner { case, ..manner });
        }
    }

    /// It was not understood, by one who shows no EDNS: perhaps it is understood without.
    fn complained(&mut self, now: u64, dice: Dice<'_>, slot: usize, at: usize, code: u8) {
        self.heard(now, slot, at);
        let Some(asking) = self.asking.get_mut(slot) else {
            return;
        };
        let manner = asking.attempts[at].manner;
        if manner.edns == With::Yes {
            let edns = With::Trial;
            return self.again(now, dice, slot, at, Manner { edns, ..manner });
        }
        asking.failure = Response::failure(&asking.question, code);
        self.drop_attempt(slot, at);
        self.next_or_fail(now, dice, slot);
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
        match message.map(|m| (m, believe(m, question))) {
            Some((message, Belief::Yes | Belief::OtherCase)) => {
                self.answered(now, dice, slot, at, message);
            }
            Some((_, Belief::Complaint(code))) => self.complained(now, dice, slot, at, code),
            Some((_, Belief::No)) | None => {
                if message.is_none()
                    && let Some(server) = self.servers.get_mut(server)
                {
                    server.no_connection();
                }
                self.drop_attempt(slot, at);
                self.next_or_fail(now, dice, slot);
            }
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
                let waiters = self.let_go(waiters);
                self.done.push(Done {
                    key,
                    waiters,
                    outcome: Outcome::Pending,
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
        self.heard(now, slot, at);
        let Some(asking) = self.asking.get_mut(slot) else {
            return;
        };
        let mut response = Response::parse(message);
        if !asking.dnssec_ok {
            response = response.and_then(Response::for_all);
        }
        if let Some(response) = &response {
            let wants_all = asking.waiters.iter().any(|(w, _)| w.way.is_wide());
            if response.truncated() && wants_all && !asking.attempts[at].tcp {
                return self.connect(now, slot, at);
            }
        }
        match response {
            Some(response) if !response.is_failure() => {
                self.learn(now, slot, at, &response);
                self.finish(slot, Some(response));
            }
            failure => {
                asking.failure = failure.filter(|f| !f.lame).or(asking.failure.take());
                self.drop_attempt(slot, at);
                self.next_or_fail(now, dice, slot);
            }
        }
    }

    /// What a good answer shows of an upstream.
    fn learn(&mut self, now: u64, slot: usize, at: usize, response: &Response) {
        let Some(attempt) = self.asking.get(slot).and_then(|a| a.attempts.get(at)) else {
            return;
        };
        let Some(server) = self.servers.get_mut(attempt.server) else {
            return;
        };
        match attempt.manner.edns {
            With::Yes if response.edns => server.edns.show(now),
            With::Trial => server.edns.lack(now),
            With::Yes | With::No => {}
        }
        match attempt.manner.case {
            With::Yes if !attempt.tcp && says_much(&attempt.question) => server.case.show(now),
            With::Trial => server.case.lack(now),
            With::Yes | With::No => {}
        }
    }

    fn is_secure(&self, server: ServerId) -> bool {
        self.servers
            .get(server)
            .is_some_and(|s| s.endpoint.is_secure())
    }

    fn heard(&mut self, now: u64, slot: usize, at: usize) {
        let attempt = self.asking.get(slot).and_then(|a| a.attempts.get(at));
        if let Some((server, sent)) = attempt.map(|a| (a.server, a.sent))
            && let Some(server) = self.servers.get_mut(server)
        {
            server.heard(now, sent);
        }
    }

    fn unindex(&mut self, slot: usize, at: usize) {
        let attempt = self.asking.get(slot).and_then(|a| a.attempts.get(at));
        if let Some(attempt) = attempt.filter(|a| !a.tcp) {
            self.late.remember(attempt.server, attempt.lane, attempt.id);
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
            self.late.remember(attempt.server, attempt.lane, attempt.id);
            self.by_message
                .remove(&(attempt.server, attempt.lane, attempt.id));
        }
        let waiters = self.let_go(asking.waiters);
        let outcome = match response.or(asking.failure) {
            Some(response) => Outcome::Said(Arc::new(response)),
            None => Outcome::Silence(asking.question),
        };
        self.done.push(Done {
            key: asking.key,
            waiters,
            outcome,
        });
    }

    fn let_go(&mut self, waiters: Vec<(Waiter, Share)>) -> Vec<Waiter> {
        let all = waiters.into_iter().map(|(waiter, share)| {
            self.shares.give_back(share);
            waiter
        });
        all.collect()
    }
}

/// Whether a name has so many letters that their case is no accident.
fn says_much(question: &[u8]) -> bool {
    let name = &question[..question.len().saturating_sub(4)];
    name.iter().filter(|b| b.is_ascii_alphabetic()).count() >= 6
}
