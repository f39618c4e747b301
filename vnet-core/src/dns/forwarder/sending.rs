//! Questions on their way out: whom, in which manner, by datagram or by connection, and when again.

use super::super::servers::{Server, ServerId};
use super::asking::{Attempt, Manner, With, choose};
use super::question::{compose, mangle};
use super::{Dice, Effect, Forwarder, LANES, MOST_SENDS, TCP_WAIT};

impl Forwarder {
    /// Asks the next upstream; when all were asked, starts over while there is time.
    pub(super) fn next(&mut self, now: u64, dice: Dice<'_>, slot: usize) {
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
    pub(super) fn next_or_fail(&mut self, now: u64, dice: Dice<'_>, slot: usize) {
        let Some(asking) = self.asking.get(slot) else {
            return;
        };
        let untried = asking.servers.iter().any(|s| !asking.tried.contains(s));
        if untried && asking.sends < MOST_SENDS {
            self.next(now, dice, slot);
        } else if asking.attempts.is_empty() {
            self.finish(slot, None);
        }
    }

    /// Asks the same upstream again, in another manner.
    pub(super) fn again(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        slot: usize,
        at: usize,
        manner: Manner,
    ) {
        let attempt = self.asking.get(slot).and_then(|a| a.attempts.get(at));
        let Some((server, tcp)) = attempt.map(|a| (a.server, a.tcp)) else {
            return;
        };
        self.drop_attempt(slot, at);
        if tcp {
            self.stream(now, dice, slot, server, manner);
        } else {
            self.datagram(now, dice, slot, server, manner);
        }
        self.schedule(slot, now);
    }

    fn send(&mut self, now: u64, dice: Dice<'_>, slot: usize, to: ServerId) {
        let Some(server) = self.servers.get(to) else {
            return;
        };
        let manner = Manner::with(server, now);
        if server.endpoint.is_secure() || server.is_attacked(now) {
            self.stream(now, dice, slot, to, manner);
        } else {
            self.datagram(now, dice, slot, to, manner);
        }
    }

    fn datagram(&mut self, now: u64, dice: Dice<'_>, slot: usize, to: ServerId, manner: Manner) {
        let (Some(asking), Some(server)) = (self.asking.get_mut(slot), self.servers.get(to)) else {
            return;
        };
        let mut question = asking.question.clone();
        if manner.case == With::Yes {
            mangle(&mut question, dice);
        }
        let roll = dice();
        let lane = u8::try_from((roll >> 32) % u64::from(LANES)).unwrap_or(0);
        let mut number = u16::try_from(roll & 0xffff).unwrap_or(0);
        while self.by_message.contains_key(&(to, lane, number)) {
            number = number.wrapping_add(1);
        }
        let message = compose(number, asking.flags, &question, asking.edns(manner), false);
        self.by_message.insert((to, lane, number), slot);
        asking.attempts.push(Attempt {
            server: to,
            lane,
            id: number,
            question,
            sent: now,
            tcp: false,
            manner,
        });
        asking.tried.push(to);
        asking.sends += 1;
        self.sent += 1;
        self.effects.push_back(Effect::Send {
            server: to,
            address: server.endpoint.address,
            lane,
            link: server.link,
            message,
        });
    }

    /// The same question over TCP, in place of the datagram whose answer was cut.
    pub(super) fn connect(&mut self, now: u64, slot: usize, at: usize) {
        self.unindex(slot, at);
        let Some(asking) = self.asking.get_mut(slot) else {
            return;
        };
        let attempt = &mut asking.attempts[at];
        (attempt.tcp, attempt.sent) = (true, now);
        let (id, to, manner) = (attempt.id, attempt.server, attempt.manner);
        let question = attempt.question.clone();
        let Some(server) = self.servers.get(to) else {
            return;
        };
        let message = compose(id, asking.flags, &question, asking.edns(manner), false);
        self.effects.push_back(Effect::Stream {
            server: to,
            endpoint: server.endpoint.clone(),
            link: server.link,
            ticket: asking.ticket(slot),
            message,
        });
        self.schedule(slot, now);
    }

    /// The question over a connection. One is enough: the connection loses nothing, and the shell makes another when it
    /// breaks.
    pub(super) fn stream(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        slot: usize,
        to: ServerId,
        manner: Manner,
    ) {
        let (Some(asking), Some(server)) = (self.asking.get_mut(slot), self.servers.get(to)) else {
            return;
        };
        asking.tried.push(to);
        if asking.attempts.iter().any(|a| a.server == to && a.tcp) {
            return;
        }
        let id = u16::try_from(dice() & 0xffff).unwrap_or(0);
        let question = asking.question.clone();
        let padded = server.endpoint.is_secure();
        let message = compose(id, asking.flags, &question, asking.edns(manner), padded);
        asking.attempts.push(Attempt {
            server: to,
            lane: 0,
            id,
            question,
            sent: now,
            tcp: true,
            manner,
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

    /// Sets the clock of a question: the patience with whom was asked last, longer with each repetition.
    pub(super) fn schedule(&mut self, slot: usize, now: u64) {
        let Some(asking) = self.asking.get_mut(slot) else {
            return;
        };
        let patience = asking.attempts.last().map_or(TCP_WAIT, |attempt| {
            let server = self.servers.get(attempt.server);
            let patience = server.map_or(TCP_WAIT, Server::patience);
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
}
