//! Answers whose signatures are checked before anybody is told them (RFC 4035 section 5).
//!
//! ```text
//!  question ──▶ cache of what was checked ──▶ the answer
//!                  │ nothing there
//!                  ▼
//!              Effect::Check ──▶ the checker ──ask_for──▶ cache, upstreams (the answer itself, keys, delegations)
//!                                          ◀────────────
//!                  answer ◀──checked(outcome)──┘
//! ```
//! Who checks is not here (cryptography takes time, so it is done beside the thread that answers); here is who waits and
//! how long, what is kept, and how much may go on at once: the checker gets a few of each asker's at a time, the others
//! wait their turn. What is asked for a check is asked as if by who waits for it: loops and greed are told by the same
//! rules.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::super::answer::From;
use super::super::cache::Key;
use super::super::directory::{AnchorsId, GroupId};
use super::super::forwarder::{Declined, Dice, Effect, Outcome, Question, Waiter, Way};
use super::super::response::Response;
use super::super::shares::{Holder, Share, Shares};
use super::super::slab::Slab;
use super::super::wire::{HEADER, IN, Query, flag, put_opt, put_u16};
use super::{Asker, Resolver, declined};

/// Those that wait for checks at a time, all together and of one asker.
const MOST: (usize, usize) = (1_024, 256);
/// Checks that the checker has at a time, all together and of one asker. It has one thread for all.
const RUNNING: (usize, usize) = (128, 16);
/// How long somebody may be kept waiting (milliseconds), whatever the checker does.
const PATIENCE: u64 = 4_500;

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// It is as the zone says, or nobody says that the zone is signed.
    Proven {
        /// Whether it is signed.
        secure: bool,
        /// How long the signatures let it be kept, in seconds.
        ttl: u32,
        /// The answer, as [`Resolver::ask_for`] gave it.
        message: Vec<u8>,
    },
    /// It is not what the zone says; the reason is of [`crate::dns::wire::ede`].
    Bogus(u16),
    /// Nobody knows: what is needed to check was not to be had.
    Unknown,
}

/// All checks that go on.
#[derive(Debug)]
pub(super) struct Checks {
    open: Slab<Check>,
    by_key: HashMap<Box<[u8]>, usize>,
    shares: Shares,
    generation: u64,
    /// Those that the checker has, also when nobody waits for them any more.
    running: HashMap<u64, Share>,
    places: Shares,
    /// Those that wait for a place.
    queue: VecDeque<(Holder, Question)>,
    /// When each of them is over at the latest, in order.
    ends: VecDeque<(u64, u64)>,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            open: Slab::default(),
            by_key: HashMap::new(),
            shares: Shares::new(MOST.0, MOST.1),
            generation: 0,
            running: HashMap::new(),
            places: Shares::new(RUNNING.0, RUNNING.1),
            queue: VecDeque::new(),
            ends: VecDeque::new(),
        }
    }
}

#[derive(Debug)]
struct Check {
    key: Box<[u8]>,
    group: GroupId,
    /// Who asked first.
    from: From,
    generation: u64,
    waiters: Vec<(Waiter, Share)>,
}

impl Checks {
    fn get(&self, ticket: u64) -> Option<(usize, &Check)> {
        let slot = usize::try_from(ticket & 0xff_ffff).ok()?;
        let check = self.open.get(slot)?;
        (check.generation == ticket >> 24).then_some((slot, check))
    }

    fn wait(
        &mut self,
        key: &[u8],
        group: GroupId,
        waiter: Waiter,
    ) -> Result<Option<u64>, Declined> {
        let open = self.by_key.get(key).copied();
        if let Some(check) = open.and_then(|slot| self.open.get_mut(slot)) {
            // The host's own resolver asks what it was asked: it came back.
            if waiter.host {
                return Err(Declined::Loop);
            }
            let share = self.shares.take(&waiter.holder).ok_or(Declined::Busy)?;
            check.waiters.push((waiter, share));
            return Ok(None);
        }
        let share = self.shares.take(&waiter.holder).ok_or(Declined::Busy)?;
        self.generation += 1;
        let slot = self.open.insert(Check {
            key: key.into(),
            group,
            from: From {
                network: waiter.network,
                address: waiter.client,
                host: waiter.host,
            },
            generation: self.generation,
            waiters: vec![(waiter, share)],
        });
        self.by_key.insert(key.into(), slot);
        Ok(Some(self.generation << 24 | slot as u64 & 0xff_ffff))
    }

    fn end(&mut self, ticket: u64) -> Option<(Box<[u8]>, Vec<Waiter>)> {
        let (slot, _) = self.get(ticket)?;
        let check = self.open.remove(slot)?;
        self.by_key.remove(&check.key);
        if !self.running.contains_key(&ticket) {
            self.queue.retain(|(_, question)| question.ticket != ticket);
        }
        while let Some((_, first)) = self.ends.front()
            && self.get(*first).is_none()
        {
            self.ends.pop_front();
        }
        let waiters = check.waiters.into_iter().map(|(waiter, share)| {
            self.shares.give_back(share);
            waiter
        });
        Some((check.key, waiters.collect()))
    }

    /// The next that the checker may have: the first whose asker has a place left.
    fn next(&mut self) -> Option<Question> {
        let mut place = None;
        let at = self.queue.iter().position(|(holder, _)| {
            place = self.places.take(holder);
            place.is_some()
        })?;
        let (_, question) = self.queue.remove(at)?;
        self.running.insert(question.ticket, place?);
        Some(question)
    }

    /// When the next check is over at the latest.
    pub(super) fn due(&self) -> Option<u64> {
        self.ends.front().map(|(end, _)| *end)
    }
}

impl Resolver {
    /// Answers with what was checked, now or when it is.
    pub(super) fn check(
        &mut self,
        now: u64,
        asker: &Asker<'_>,
        group: GroupId,
        anchors: AnchorsId,
        query: &Query<'_>,
        out: &mut Vec<u8>,
    ) {
        let key = Key::of(group, query).checked(anchors);
        if self.kept(now, asker, group, &key, query, out).is_ok() {
            return;
        }
        let counters = &mut self.counters[asker.from.network.index()];
        let waiter = asker.waiter(&self.directory, query);
        let holder = waiter.holder.clone();
        match self.checks.wait(key.as_bytes(), group, waiter) {
            Ok(ticket) => {
                counters.forwarded += 1;
                let Some(ticket) = ticket else { return };
                let question = Question {
                    ticket,
                    name: query.name.as_bytes().into(),
                    rtype: query.rtype,
                    group,
                    anchors,
                };
                self.checks.ends.push_back((now + PATIENCE, ticket));
                self.checks.queue.push_back((holder, question));
                self.hand_over();
            }
            Err(why) => declined(counters, why, query, out),
        }
    }

    /// Asks what has to be known for a check. The answer comes at once, or later among the replies with this part.
    pub fn ask_for(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        ticket: u64,
        part: u64,
        name: &[u8],
        rtype: u16,
    ) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let message = question(name, rtype);
        let (Some((_, check)), Ok(query)) = (self.checks.get(ticket), Query::parse(&message))
        else {
            return Some(out);
        };
        let from = check.from;
        let group = check.group;
        let asker = Asker {
            from: &from,
            way: Way::Check(part),
            private: true,
            aliased: None,
        };
        self.forward(now, dice, &asker, group, &query, &mut out);
        (!out.is_empty()).then_some(out)
    }

    fn hand_over(&mut self) {
        while let Some(question) = self.checks.next() {
            self.forwarder.effects.push_back(Effect::Check(question));
        }
    }

    /// The checker is done with a check. Each that was handed over has to come back, sooner or later.
    pub fn checked(&mut self, now: u64, ticket: u64, outcome: Checked) {
        self.settle_check(now, ticket, outcome);
        if let Some(place) = self.checks.running.remove(&ticket) {
            self.checks.places.give_back(place);
            self.hand_over();
        }
    }

    /// Who has waited long enough is told that there is no knowing: the checker may be busy, or gone.
    pub(super) fn give_up(&mut self, now: u64) {
        while self.checks.due().is_some_and(|end| end <= now) {
            if let Some((_, ticket)) = self.checks.ends.pop_front() {
                self.settle_check(now, ticket, Checked::Unknown);
            }
        }
    }

    fn settle_check(&mut self, now: u64, ticket: u64, outcome: Checked) {
        let Some((key, waiters)) = self.checks.end(ticket) else {
            return;
        };
        let Some(Ok(query)) = waiters.first().map(|w| Query::parse(&w.query)) else {
            return;
        };
        let response = match outcome {
            Checked::Proven {
                secure,
                ttl,
                message,
            } => {
                let proven = Response::proven(&message, secure, query.dnssec_ok(), query.rtype);
                proven.map(|mut proven| {
                    proven.ttl = proven.ttl.min(ttl);
                    proven
                })
            }
            Checked::Bogus(reason) => Response::bogus(&query, reason),
            Checked::Unknown => None,
        };
        let outcome = match response {
            Some(response) => Outcome::Said(Arc::new(response)),
            None => Outcome::Silence(query.bytes[HEADER..query.question_end].into()),
        };
        let answer = self.keep(now, &key, &outcome);
        for waiter in &waiters {
            self.tell(waiter, answer.as_ref());
        }
    }
}

/// A question for a check: all that the zone has, checked by nobody before us (RFC 6840 section 5.9).
fn question(name: &[u8], rtype: u16) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    put_u16(&mut message, 2, flag::RD | flag::CD);
    put_u16(&mut message, 4, 1);
    put_u16(&mut message, 10, 1);
    message.extend_from_slice(name);
    for word in [rtype, IN] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    put_opt(&mut message, true, 0);
    message
}
