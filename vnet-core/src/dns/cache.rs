//! What upstreams said, for as long as they said, and longer while they say nothing.
//!
//! One cache for all networks with a limit in bytes; what was used least recently goes first. Networks that ask the
//! same upstreams share answers, networks that ask others never do (the group is part of the key).

use std::collections::HashMap;
use std::sync::Arc;

use super::directory::{AnchorsId, GroupId};
use super::response::{Age, Response};
use super::slab::Slab;
use super::wire::{MAX_NAME, Query, flag};

/// How long an answer may be served after its time, if no upstream answers (RFC 8767 section 4: one to three days).
const STALE: u64 = 86_400_000;
/// How long nobody is asked again about what is stale after that failed (RFC 8767 section 5: 30 seconds).
const RECHECK: u64 = 30_000;
/// What an entry costs beside its bytes: the entry, its slot, its place in the table.
const OVERHEAD: usize = 192;
const NONE: usize = usize::MAX;

/// What an answer depends on: who was asked, what, whether for DNSSEC's records or without its checks, and what we
/// checked it with.
#[derive(Clone, Copy)]
pub(super) struct Key {
    len: u16,
    bytes: [u8; KEY_HEAD + MAX_NAME],
}

/// What stands before the name.
const KEY_HEAD: usize = 9;

impl Key {
    pub(super) fn of(group: GroupId, query: &Query<'_>) -> Self {
        let name = query.name.as_bytes();
        let mut bytes = [0; KEY_HEAD + MAX_NAME];
        bytes[..4].copy_from_slice(&group.0.to_ne_bytes());
        bytes[4] = u8::from(query.dnssec_ok()) | u8::from(query.flags & flag::CD != 0) << 1;
        bytes[5..7].copy_from_slice(&query.rtype.to_ne_bytes());
        bytes[KEY_HEAD..KEY_HEAD + name.len()].copy_from_slice(name);
        Self {
            len: u16::try_from(KEY_HEAD + name.len()).unwrap_or(0),
            bytes,
        }
    }

    /// The same, of the answer whose signatures were checked.
    pub(super) fn checked(mut self, anchors: AnchorsId) -> Self {
        self.bytes[7..KEY_HEAD].copy_from_slice(&anchors.0.wrapping_add(1).to_ne_bytes());
        self
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// One answer.
#[derive(Debug)]
struct Entry {
    key: Arc<[u8]>,
    response: Arc<Response>,
    stored: u64,
    /// Until when nobody is asked though it is stale.
    rests_until: u64,
    newer: usize,
    older: usize,
}

/// All answers.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    used: usize,
    index: HashMap<Arc<[u8]>, usize>,
    entries: Slab<Entry>,
    newest: usize,
    oldest: usize,
}

/// An answer that was found.
#[derive(Debug)]
pub(super) struct Hit {
    pub(super) response: Arc<Response>,
    pub(super) age: Age,
    /// Whether it is stale, and who was asked of late failed: it is what there is.
    pub(super) rests: bool,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            used: 0,
            index: HashMap::new(),
            entries: Slab::default(),
            newest: NONE,
            oldest: NONE,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.used
    }

    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    /// Keeps an answer, in place of an older one. A failure never takes the place of a good answer that could still
    /// be served stale.
    pub(super) fn insert(&mut self, now: u64, key: &[u8], response: &Arc<Response>) {
        let cost = cost(key, response);
        if response.ttl == 0 || cost > self.limit / 8 {
            return;
        }
        if let Some(old) = self.index.get(key).copied() {
            let better = |e: &Entry| !e.response.is_failure();
            if response.is_failure() && self.entries.get(old).is_some_and(better) {
                return;
            }
            self.forget(old);
        }
        while self.used + cost > self.limit && self.oldest != NONE {
            self.forget(self.oldest);
        }
        let key: Arc<[u8]> = key.into();
        let slot = self.entries.insert(Entry {
            key: Arc::clone(&key),
            response: Arc::clone(response),
            stored: now,
            rests_until: 0,
            newer: NONE,
            older: NONE,
        });
        self.index.insert(key, slot);
        self.used += cost;
        self.link(slot);
    }

    /// What is known, and how old it is: the caller decides whether stale is good enough.
    pub(super) fn find(&mut self, now: u64, key: &[u8]) -> Option<Hit> {
        let slot = *self.index.get(key)?;
        let entry = self.entries.get(slot)?;
        let (age, ttl) = (
            now.saturating_sub(entry.stored),
            u64::from(entry.response.ttl) * 1000,
        );
        let most = if entry.response.is_failure() {
            0
        } else {
            STALE
        };
        if age >= ttl + most {
            self.forget(slot);
            return None;
        }
        let response = Arc::clone(&entry.response);
        let rests = now < entry.rests_until;
        let age = if age < ttl {
            Age::Seconds(u32::try_from(age / 1000).unwrap_or(u32::MAX))
        } else {
            Age::Stale
        };
        if self.newest != slot {
            self.unlink(slot);
            self.link(slot);
        }
        Some(Hit {
            response,
            age,
            rests,
        })
    }

    /// Nobody knows better now than what is kept, if that is more than a failure: it is told, and for a while nobody is
    /// asked again.
    pub(super) fn fall_back(&mut self, now: u64, key: &[u8]) -> Option<Hit> {
        let hit = self.find(now, key).filter(|h| !h.response.is_failure())?;
        let entry = self.entries.get_mut(self.newest)?;
        entry.rests_until = now + RECHECK;
        Some(hit)
    }

    /// Forgets everything; how many answers that was.
    pub(super) fn clear(&mut self) -> usize {
        let count = self.len();
        *self = Self::new(self.limit);
        count
    }

    fn forget(&mut self, slot: usize) {
        self.unlink(slot);
        if let Some(entry) = self.entries.remove(slot) {
            self.index.remove(&entry.key);
            self.used -= cost(&entry.key, &entry.response);
        }
    }

    /// Puts an entry at the newest end.
    fn link(&mut self, slot: usize) {
        let second = std::mem::replace(&mut self.newest, slot);
        if let Some(entry) = self.entries.get_mut(slot) {
            (entry.newer, entry.older) = (NONE, second);
        }
        match self.entries.get_mut(second) {
            Some(entry) => entry.newer = slot,
            None => self.oldest = slot,
        }
    }

    fn unlink(&mut self, slot: usize) {
        let Some((newer, older)) = self.entries.get(slot).map(|e| (e.newer, e.older)) else {
            return;
        };
        match self.entries.get_mut(newer) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
        match self.entries.get_mut(older) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }
}

fn cost(key: &[u8], response: &Response) -> usize {
    OVERHEAD + key.len() + response.bytes.len() + 2 * response.ttls.len()
}
