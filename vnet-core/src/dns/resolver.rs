//! One query from its bytes to its answer: directory first, then cache, then upstreams. No sockets here.

use std::collections::BTreeMap;

use super::answer::{Answer, From, Refusal};
use super::directory::{Directory, NetworkId};
use super::wire::{self, Query, Reject, rcode};
use crate::types::NetworkName;

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
    /// Questions that upstreams were asked, with repetitions.
    pub upstream_sent: u64,
    /// Upstreams that did not answer in time.
    pub upstream_timeouts: u64,
    /// Messages from upstreams that were no answer to anything asked.
    pub upstream_spoofed: u64,
}

/// The way back to who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A datagram.
    Udp,
}

/// Directory, cache and forwarder at work together.
#[derive(Debug)]
pub struct Resolver {
    directory: Directory,
    counters: BTreeMap<NetworkId, Counters>,
}

impl Resolver {
    /// A resolver that knows these names.
    #[must_use]
    pub fn new(directory: Directory) -> Self {
        Self {
            directory,
            counters: BTreeMap::new(),
        }
    }

    /// The names.
    #[must_use]
    pub const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The names, to change them.
    pub const fn directory_mut(&mut self) -> &mut Directory {
        &mut self.directory
    }

    /// Adds what happened so far.
    pub fn stats(&self, stats: &mut Stats) {
        for (network, id) in self.directory.networks() {
            let counters = self.counters.get(&id).copied().unwrap_or_default();
            stats.total += counters;
            stats.networks.insert(network.clone(), counters);
        }
    }

    /// Takes a message; the reply is in `out`, which stays empty if there is none, or none yet.
    pub fn handle(&mut self, _now: u64, from: &From, _way: Way, message: &[u8], out: &mut Vec<u8>) {
        let counters = self.counters.entry(from.network).or_default();
        counters.queries += 1;
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(reject) => {
                counters.malformed += 1;
                match reject {
                    Reject::Silent => {}
                    Reject::Code(code) => wire::reject(out, message, code),
                }
                return;
            }
        };
        match self.directory.answer(from, &query, query.udp_limit(), out) {
            Answer::Local => counters.local += 1,
            Answer::NoSuchName => counters.no_such_name += 1,
            Answer::Refuse(refusal) => {
                counters.refused += 1;
                refuse(out, &query, refusal);
            }
            Answer::Forward(_) => wire::bare(out, &query, 0, rcode::SERV_FAIL),
        }
    }
}

fn refuse(out: &mut Vec<u8>, query: &Query<'_>, refusal: Refusal) {
    match refusal {
        Refusal::EdnsVersion => wire::bad_version(out, query),
        Refusal::Unsupported => wire::bare(out, query, 0, rcode::NOT_IMP),
        Refusal::NotServed | Refusal::NoForward | Refusal::NotRecursive => {
            wire::bare(out, query, 0, rcode::REFUSED);
        }
    }
}
