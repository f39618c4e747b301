//! The upstreams themselves: how fast each is, whether it lives, and what it cannot stand.

use std::collections::HashMap;

use crate::model::Endpoint;

/// An upstream by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(test, derive(Default))]
pub struct ServerId(pub(in crate::dns) u32);

/// An upstream as it is found: where, how it is spoken to, and by which link of the host, if it is known only there (two
/// links may each have a resolver at one address).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Where it listens, and how it is spoken to.
    pub endpoint: Endpoint,
    /// The number of the link.
    pub link: Option<u32>,
}

impl From<Endpoint> for Target {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            link: None,
        }
    }
}

/// Silences in a row after which an upstream counts as down.
const PATIENCE: u32 = 2;
/// How long an upstream that is down is spared, at first and at most (milliseconds).
const REST: (u64, u64) = (2_000, 30_000);
/// How long an answer may take before somebody else is asked too: unknown, least, most (milliseconds).
const WAIT: (u64, u64, u64) = (400, 200, 1_000);

/// How long it is remembered that an upstream can do something, and that it cannot (milliseconds).
const REMEMBERED: (u64, u64) = (3_600_000, 900_000);
/// Messages with numbers nobody gave within so many milliseconds that make an attack, and for how long an upstream is
/// asked by connections then (RFC 5452 section 9.3: nobody forges those from aside).
const FORGERIES: (u32, u64, u64) = (64, 10_000, 60_000);

/// Whether an upstream can do something, as far as it was seen. What it showed is proof; that it lacks something may be
/// the doing of whoever serves a name, so it is learnt only of those who never showed it, and for a while.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ability {
    shown: Option<u64>,
    lacking: Option<u64>,
}

impl Ability {
    pub(super) const fn show(&mut self, now: u64) {
        (self.shown, self.lacking) = (Some(now), None);
    }

    pub(super) fn lack(&mut self, now: u64) {
        if !self.is_shown(now) {
            self.lacking = Some(now);
        }
    }

    pub(super) fn is_shown(&self, now: u64) -> bool {
        (self.shown).is_some_and(|at| now.saturating_sub(at) < REMEMBERED.0)
    }

    pub(super) fn is_lacking(&self, now: u64) -> bool {
        (self.lacking).is_some_and(|at| now.saturating_sub(at) < REMEMBERED.1)
    }
}

/// What is known of one upstream.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) endpoint: Endpoint,
    pub(super) link: Option<u32>,
    /// Smoothed time to answer in milliseconds; 0 is unknown.
    smoothed: u64,
    silences: u32,
    /// Until when it is spared.
    down_until: u64,
    last_heard: Option<u64>,
    /// Whether it works with EDNS (RFC 6891 section 6.2.2).
    pub(super) edns: Ability,
    /// Whether it keeps the case of the question.
    pub(super) case: Ability,
    /// Forgeries since.
    forged: (u32, u64),
    attacked_until: u64,
}

/// How an upstream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Up,
    /// Its rest is over: worth a try beside a better one.
    Probing,
    Down,
}

impl Server {
    pub(super) const fn standing(&self, now: u64) -> Standing {
        if self.silences < PATIENCE {
            Standing::Up
        } else if now >= self.down_until {
            Standing::Probing
        } else {
            Standing::Down
        }
    }

    /// How long to wait for it before another is asked.
    pub(super) fn patience(&self) -> u64 {
        match self.smoothed {
            0 => WAIT.0,
            smoothed => (4 * smoothed).clamp(WAIT.1, WAIT.2),
        }
    }

    /// How long it takes to answer, if it ever did.
    pub(super) fn took(&self) -> Option<u64> {
        self.last_heard.map(|_| self.smoothed)
    }

    /// It answered something that was sent at `sent`.
    pub(super) fn heard(&mut self, now: u64, sent: u64) {
        let took = now.saturating_sub(sent).max(1);
        self.smoothed = if self.smoothed == 0 {
            took
        } else {
            (7 * self.smoothed + took) / 8
        };
        self.silences = 0;
        self.last_heard = Some(now);
    }

    /// It did not answer what was sent at `sent`. A slow name is not a dead server: that it answered others since is
    /// proof of life.
    pub(super) fn silent(&mut self, now: u64, sent: u64) {
        if self.last_heard.is_none_or(|heard| heard < sent) {
            self.fail(now, 1);
        }
    }

    /// The kernel says that nobody is there.
    pub(super) fn unreachable(&mut self, now: u64) {
        self.fail(now, PATIENCE);
    }

    /// A message came from its address with a number that nobody gave.
    pub(super) fn forged(&mut self, now: u64) {
        let (count, since) = &mut self.forged;
        if now.saturating_sub(*since) > FORGERIES.1 {
            (*count, *since) = (0, now);
        }
        *count += 1;
        if *count >= FORGERIES.0 {
            self.attacked_until = now + FORGERIES.2;
        }
    }

    /// Whether somebody forges its answers.
    pub(super) const fn is_attacked(&self, now: u64) -> bool {
        now < self.attacked_until
    }

    /// It cannot be asked by a connection: a forger may not take it from us altogether.
    pub(super) const fn no_connection(&mut self) {
        (self.forged, self.attacked_until) = ((0, 0), 0);
    }

    /// A probe was sent: the next one only after another rest.
    pub(super) fn probed(&mut self, now: u64) {
        self.down_until = now + self.rest();
    }

    fn fail(&mut self, now: u64, count: u32) {
        self.silences = self.silences.saturating_add(count);
        if self.silences >= PATIENCE {
            self.down_until = now + self.rest();
        }
    }

    fn rest(&self) -> u64 {
        let doublings = self.silences.saturating_sub(PATIENCE).min(4);
        (REST.0 << doublings).min(REST.1)
    }
}

/// All upstreams of all networks; one that several networks name is one.
#[derive(Debug, Default)]
pub(super) struct Servers {
    all: Vec<Server>,
    by_target: HashMap<Target, ServerId>,
}

impl Servers {
    pub(super) fn intern(&mut self, target: &Target) -> ServerId {
        if let Some(id) = self.by_target.get(target) {
            return *id;
        }
        let id = ServerId(u32::try_from(self.all.len()).unwrap_or(u32::MAX));
        self.by_target.insert(target.clone(), id);
        self.all.push(Server {
            endpoint: target.endpoint.clone(),
            link: target.link,
            smoothed: 0,
            silences: 0,
            down_until: 0,
            last_heard: None,
            edns: Ability::default(),
            case: Ability::default(),
            forged: (0, 0),
            attacked_until: 0,
        });
        id
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ServerId> + use<> {
        (0..u32::try_from(self.all.len()).unwrap_or(u32::MAX)).map(ServerId)
    }

    pub(super) fn get(&self, id: ServerId) -> Option<&Server> {
        self.all.get(id.0 as usize)
    }

    pub(super) fn get_mut(&mut self, id: ServerId) -> Option<&mut Server> {
        self.all.get_mut(id.0 as usize)
    }

    /// Whether there is nobody worth waiting for.
    pub(super) fn all_down(&self, now: u64, ids: &[ServerId]) -> bool {
        ids.iter()
            .all(|id| self.standing(now, *id) == Standing::Down)
    }

    pub(super) fn standing(&self, now: u64, id: ServerId) -> Standing {
        self.get(id).map_or(Standing::Down, |s| s.standing(now))
    }
}
