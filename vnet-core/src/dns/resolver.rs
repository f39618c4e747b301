//! One query from its bytes to its answer: directory first, then cache, then upstreams. No sockets here.

mod checking;
mod explain;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::aliased::Aliased;
use super::answer::{Answer, Ask, From, Refusal};
use super::cache::{Cache, Key};
use super::directory::{Directory, GroupId, NameChange};
use super::forwarder::{Declined, Dice, Effect, Forwarder, Limits, Outcome, Waiter, Way};
use super::response::{Age, Private, Response};
use super::servers::{ServerId, Target};
use super::shares::Holder;
use super::wire::{self, NameBuf, Query, Reject, ede, flag, rcode};
use crate::types::NetworkName;
pub use checking::Checked;
use checking::Checks;
pub use explain::{Explained, UpstreamState, Whose};

/// Queries by what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Messages received.
    pub queries: u64,
    /// Answered from names we own.
    pub local: u64,
    /// Answered that the name does not exist, on our own authority.
    pub no_such_name: u64,
    /// Answered from the cache.
    pub cached: u64,
    /// Answered from the cache though too old, because no upstream answered.
    pub stale: u64,
    /// Asked upstream.
    pub forwarded: u64,
    /// Refused by rule.
    pub refused: u64,
    /// Not understood.
    pub malformed: u64,
    /// Refused because the asker has too much in flight.
    pub limited: u64,
    /// Not answered by any upstream.
    pub failed: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.queries += other.queries;
        self.local += other.local;
        self.no_such_name += other.no_such_name;
        self.cached += other.cached;
        self.stale += other.stale;
        self.forwarded += other.forwarded;
        self.refused += other.refused;
        self.malformed += other.malformed;
        self.limited += other.limited;
        self.failed += other.failed;
    }
}

/// What happened so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// All networks together.
    pub total: Counters,
    /// Each network.
    pub networks: BTreeMap<NetworkName, Counters>,
    /// Answers kept in the cache.
    pub cache_entries: u64,
    /// Bytes the cache holds.
    pub cache_bytes: u64,
    /// Bytes it may hold.
    pub cache_limit: u64,
    /// Questions that upstreams were asked, with repetitions.
    pub upstream_sent: u64,
    /// Upstreams that did not answer in time.
    pub upstream_timeouts: u64,
    /// Messages from upstreams that were no answer to anything asked.
    pub upstream_spoofed: u64,
    /// Every upstream that was asked since the start, and how it does.
    pub upstreams: Vec<UpstreamState>,
}

/// When a message gets its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is written.
    Now,
    /// It comes among [`Resolver::replies`].
    Later,
    /// It is no query: an answer to it could make a loop.
    Never,
}

/// Directory, cache and forwarder at work together.
#[derive(Debug)]
pub struct Resolver {
    directory: Directory,
    cache: Cache,
    forwarder: Forwarder,
    counters: Vec<Counters>,
    /// The upstreams of each group, by number.
    groups: Vec<Option<Arc<[ServerId]>>>,
    checks: Checks,
    host: Host,
    replies: Vec<(Way, Vec<u8>)>,
}

impl Resolver {
    /// A resolver that knows these names.
    #[must_use]
    pub fn new(directory: Directory, limits: Limits) -> Self {
        Self {
            directory,
            cache: Cache::new(limits.cache),
            forwarder: Forwarder::new(limits),
            counters: Vec::new(),
            groups: Vec::new(),
            checks: Checks::default(),
            host: Host::default(),
            replies: Vec::new(),
        }
    }

    /// The names.
    #[must_use]
    pub const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The names, to change them.
    pub fn directory_mut(&mut self) -> &mut Directory {
        // Whom to ask depends on what is served: our own gateways are never asked.
        self.groups.clear();
        &mut self.directory
    }

    /// A lease's name comes or goes.
    pub fn change(&mut self, network: &NetworkName, change: &NameChange) {
        self.directory.change(network, change);
    }

    /// Whom the host asks, in order, and whom about names under some domains. What others have said stays with those
    /// others: nobody is told what was true before.
    pub fn follow(&mut self, others: Vec<Target>, domains: Vec<(String, Vec<Target>)>) {
        let mut routes = Vec::new();
        for (domain, list) in domains {
            if let Some(name) = NameBuf::from_text(&domain) {
                routes.push((name, self.directory.intern(list)));
            }
        }
        routes.sort_by_key(|(name, _)| std::cmp::Reverse(name.as_bytes().len()));
        self.host = Host {
            others: self.directory.intern(others),
            routes,
        };
        self.groups.clear();
    }

    /// Adds what happened so far.
    #[must_use]
    pub fn stats(&self, now: u64) -> Stats {
        let mut stats = Stats {
            cache_entries: self.cache.len() as u64,
            cache_bytes: self.cache.bytes() as u64,
            cache_limit: self.cache.limit() as u64,
            upstreams: self.states(now),
            upstream_sent: self.forwarder.sent,
            upstream_timeouts: self.forwarder.timeouts,
            upstream_spoofed: self.forwarder.spoofed,
            ..Stats::default()
        };
        for (network, id) in self.directory.networks() {
            let counters = self.counters.get(id.index()).copied().unwrap_or_default();
            stats.total += counters;
            stats.networks.insert(network.clone(), counters);
        }
        stats
    }

    /// Takes a message; the reply is in `out`, which stays empty if there is none, or none yet.
    pub fn handle(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        from: &From,
        way: Way,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Fate {
        out.clear();
        if self.counters.len() <= from.network.index() {
            self.counters
                .resize(from.network.index() + 1, Counters::default());
        }
        let counters = &mut self.counters[from.network.index()];
        counters.queries += 1;
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(reject) => {
                counters.malformed += 1;
                return match reject {
                    Reject::Silent => Fate::Never,
                    Reject::Code(code) => {
                        wire::reject(out, message, code);
                        Fate::Now
                    }
                };
            }
        };
        match self.directory.answer(from, &query, limit(way, &query), out) {
            Answer::Local => counters.local += 1,
            Answer::NoSuchName => counters.no_such_name += 1,
            Answer::Refuse(refusal) => {
                counters.refused += 1;
                refuse(out, &query, refusal);
            }
            Answer::Forward(ask) => self.ask_others(now, dice, (from, way), ask, &query, out),
        }
        if out.is_empty() {
            Fate::Later
        } else {
            Fate::Now
        }
    }

    /// Asks others; `out` has what is ours of the reply.
    fn ask_others(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        (from, way): (&From, Way),
        ask: Ask,
        query: &Query<'_>,
        out: &mut Vec<u8>,
    ) {
        let name = ask.alias.as_deref().unwrap_or(query.name.as_bytes());
        let (group, inner) = self.whom(ask.group, name);
        if ask.only_links && !inner {
            self.counters[from.network.index()].no_such_name += 1;
            return;
        }
        let aliased = ask.alias.as_ref().map(|_| Aliased::new(query, out));
        let about = ask.alias.map(|name| Aliased::question(query, &name));
        let query = match about.as_deref().map(Query::parse) {
            Some(Ok(query)) => query,
            None => *query,
            Some(Err(_)) => return wire::bare(out, query, flag::RA, rcode::SERV_FAIL),
        };
        out.clear();
        let asker = Asker {
            from,
            way,
            private: ask.private || inner,
            aliased,
        };
        match ask.check.filter(|_| !inner) {
            None => self.forward(now, dice, &asker, group, &query, out),
            Some(anchors) => self.check(now, &asker, group, anchors, &query, out),
        }
        if let Some(aliased) = asker.aliased.filter(|_| !out.is_empty()) {
            aliased.complete(limit(way, &query), out);
        }
    }

    /// A datagram from an upstream.
    pub fn receive(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        server: ServerId,
        lane: u8,
        message: &[u8],
    ) {
        self.forwarder.receive(now, dice, server, lane, message);
        self.settle(now);
    }

    /// What a connection to an upstream brought for a ticket; `None` is that it will bring nothing.
    pub fn stream_answer(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        server: ServerId,
        ticket: u64,
        message: Option<&[u8]>,
    ) {
        self.forwarder
            .stream_answer(now, dice, server, ticket, message);
        self.settle(now);
    }

    /// The kernel says that nobody is at an upstream's port.
    pub fn unreachable(&mut self, now: u64, dice: Dice<'_>, server: ServerId) {
        self.forwarder.unreachable(now, dice, server);
        self.settle(now);
    }

    /// When [`Resolver::tick`] has something to do.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        let all = [self.forwarder.due(), self.checks.due()];
        all.into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: u64, dice: Dice<'_>) {
        self.forwarder.tick(now, dice);
        self.settle(now);
        self.give_up(now);
    }

    /// The next thing to send to an upstream.
    pub fn effect(&mut self) -> Option<Effect> {
        self.forwarder.effects.pop_front()
    }

    /// Replies to those who had to wait.
    pub fn replies(&mut self) -> std::vec::Drain<'_, (Way, Vec<u8>)> {
        self.replies.drain(..)
    }

    fn forward(
        &mut self,
        now: u64,
        dice: Dice<'_>,
        asker: &Asker<'_>,
        group: GroupId,
        query: &Query<'_>,
        out: &mut Vec<u8>,
    ) {
        let key = Key::of(group, query);
        let stale = match self.kept(now, asker, group, &key, query, out) {
            Ok(()) => return,
            Err(stale) => stale,
        };
        let servers = self.servers(group);
        let waiter = asker.waiter(&self.directory, query);
        let asked = self
            .forwarder
            .ask(now, dice, &servers, key.as_bytes(), query, waiter, stale);
        let mut uncounted = Counters::default();
        let counters = match asker.way {
            Way::Udp(..) | Way::Tcp(..) => &mut self.counters[asker.from.network.index()],
            Way::Check(_) => &mut uncounted,
        };
        match asked {
            Ok(()) => counters.forwarded += 1,
            Err(why) => declined(counters, why, query, out),
        }
    }

    /// Answers with what is kept, if it is young enough, or stale and nobody could be asked. Else whether there is
    /// something stale.
    fn kept(
        &mut self,
        now: u64,
        asker: &Asker<'_>,
        group: GroupId,
        key: &Key,
        query: &Query<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), bool> {
        let hit = self.cache.find(now, key.as_bytes()).ok_or(false)?;
        let old = hit.age == Age::Stale;
        if old && !hit.rests {
            let servers = self.servers(group);
            if !self.forwarder.servers.all_down(now, &servers) {
                return Err(true);
            }
        }
        match asker.way {
            Way::Udp(..) | Way::Tcp(..) => {
                let counters = &mut self.counters[asker.from.network.index()];
                counters.stale += u64::from(old);
                counters.cached += u64::from(!old);
            }
            Way::Check(_) => {}
        }
        let limit = limit(asker.way, query);
        give(&hit.response, query, hit.age, asker.private, limit, out);
        Ok(())
    }

    /// Keeps what came, and tells it to all who waited.
    fn settle(&mut self, now: u64) {
        for done in std::mem::take(&mut self.forwarder.done) {
            let answer = self.keep(now, &done.key, &done.outcome);
            for waiter in done.waiters {
                self.tell(&waiter, answer.as_ref());
            }
        }
    }

    /// Keeps what came of a question. What is told of it: anything we ever knew is better than a failure.
    fn keep(&mut self, now: u64, key: &[u8], outcome: &Outcome) -> Option<(Arc<Response>, Age)> {
        let response = match outcome {
            Outcome::Said(response) => Some(Arc::clone(response)),
            Outcome::Silence(question) => Response::silence(question).map(Arc::new),
            Outcome::Pending => None,
        };
        if response.as_ref().is_none_or(|r| r.is_failure())
            && let Some(hit) = self.cache.fall_back(now, key)
        {
            return Some((hit.response, hit.age));
        }
        let response = response?;
        self.cache.insert(now, key, &response);
        Some((response, Age::Seconds(0)))
    }

    fn tell(&mut self, waiter: &Waiter, answer: Option<&(Arc<Response>, Age)>) {
        let Ok(query) = Query::parse(&waiter.query) else {
            return;
        };
        let mut out = Vec::new();
        let counters = self.counters.get_mut(waiter.network.index());
        let counters = counters.filter(|_| !matches!(waiter.way, Way::Check(_)));
        match answer {
            Some((response, age)) => {
                if let Some(counters) = counters {
                    counters.stale += u64::from(*age == Age::Stale);
                    counters.failed += u64::from(response.is_silence());
                }
                give(
                    response,
                    &query,
                    *age,
                    waiter.private,
                    limit(waiter.way, &query),
                    &mut out,
                );
            }
            None => {
                if let Some(counters) = counters {
                    counters.failed += 1;
                }
                let why = ede::NO_REACHABLE_AUTHORITY;
                wire::refusal(&mut out, &query, flag::RA, rcode::SERV_FAIL, why);
            }
        }
        if let Some(aliased) = &waiter.aliased {
            aliased.complete(limit(waiter.way, &query), &mut out);
        }
        self.replies.push((waiter.way, out));
    }

    /// Whom the host asks about a name, and whether that is about inner names. A link of our own, told to the host's
    /// resolver by us, is nobody to ask.
    fn whom(&mut self, group: GroupId, name: &[u8]) -> (GroupId, bool) {
        if group != GroupId::HOST {
            return (group, false);
        }
        for at in 0..self.host.routes.len() {
            let (domain, group) = &self.host.routes[at];
            if wire::is_under(name, domain.as_bytes()) {
                let (group, inner) = (*group, domain.as_bytes().len() > 1);
                if !self.servers(group).is_empty() {
                    return (group, inner);
                }
            }
        }
        (self.host.others, false)
    }

    /// The upstreams of a group, without any of our own gateways: asking ourselves would be a loop.
    fn servers(&mut self, group: GroupId) -> Arc<[ServerId]> {
        if self.groups.len() <= group.index() {
            self.groups.resize(group.index() + 1, None);
        }
        if let Some(servers) = &self.groups[group.index()] {
            return Arc::clone(servers);
        }
        let own: BTreeSet<IpAddr> = self.directory.gateways().collect();
        let foreign = |target: &&Target| {
            let address = target.endpoint.address;
            address.port() != 53 || !own.contains(&address.ip())
        };
        let others = self.directory.group(group).iter().filter(foreign);
        let servers: Arc<[ServerId]> = others.map(|t| self.forwarder.servers.intern(t)).collect();
        self.groups[group.index()] = Some(Arc::clone(&servers));
        servers
    }
}

/// Whom the host asks.
#[derive(Debug)]
struct Host {
    others: GroupId,
    /// About names under a domain, the longest first.
    routes: Vec<(NameBuf, GroupId)>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            others: GroupId::HOST,
            routes: Vec::new(),
        }
    }
}

/// Who asks, by which way, and what may be told.
struct Asker<'a> {
    from: &'a From,
    way: Way,
    private: bool,
    aliased: Option<Aliased>,
}

impl Asker<'_> {
    fn waiter(&self, directory: &Directory, query: &Query<'_>) -> Waiter {
        Waiter {
            way: self.way,
            network: self.from.network,
            holder: Holder::of(directory, self.from.network, self.from.address),
            client: self.from.address,
            host: self.from.host,
            private: self.private,
            query: query.brief(),
            aliased: self.aliased.clone(),
        }
    }
}

/// Counts and tells that a question is not asked.
fn declined(counters: &mut Counters, why: Declined, query: &Query<'_>, out: &mut Vec<u8>) {
    match why {
        Declined::Busy => {
            counters.limited += 1;
            wire::bare(out, query, flag::RA, rcode::REFUSED);
        }
        Declined::Loop => {
            counters.refused += 1;
            wire::bare(out, query, flag::RA, rcode::REFUSED);
        }
        Declined::Nobody => {
            counters.failed += 1;
            let why = ede::NO_REACHABLE_AUTHORITY;
            wire::refusal(out, query, flag::RA, rcode::SERV_FAIL, why);
        }
    }
}

/// The largest reply that the way back carries.
fn limit(way: Way, query: &Query<'_>) -> usize {
    match way {
        Way::Udp(..) => query.udp_limit(),
        Way::Tcp(..) | Way::Check(_) => usize::from(u16::MAX),
    }
}

/// Writes an upstream's answer as the reply, unless it names what the asker may not be told.
fn give(
    response: &Response,
    query: &Query<'_>,
    age: Age,
    private: bool,
    limit: usize,
    out: &mut Vec<u8>,
) {
    if response.private == Private::InAnswer && !private {
        wire::refusal(out, query, flag::RA, rcode::REFUSED, ede::BLOCKED);
    } else {
        response.write(query, age, private, limit, out);
    }
}

fn refuse(out: &mut Vec<u8>, query: &Query<'_>, refusal: Refusal) {
    match refusal {
        Refusal::EdnsVersion => wire::bad_version(out, query),
        Refusal::Unsupported => wire::bare(out, query, 0, rcode::NOT_IMP),
        Refusal::NotServed | Refusal::NoForward | Refusal::NotRecursive => {
            wire::refusal(out, query, 0, rcode::REFUSED, ede::PROHIBITED);
        }
    }
}
