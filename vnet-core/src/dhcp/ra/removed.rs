//! What was advertised and is not any more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Scope;
use super::scope::Item;
use crate::lease::Time;

/// RFC 4862 section 5.5.3: guests cut no lifetime below two hours, so a removed prefix is spoken of that long.
const DEPRECATED: u64 = 7200;
/// The most that is remembered.
const MOST: usize = 64;

/// Each thing that is taken back, and until when: guests may have missed the advertisement that first said so. It is
/// worth keeping over a restart, or those guests hold a dead address for a day.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(Item, u64)>", into = "Vec<(Item, u64)>")]
pub struct Removed(BTreeMap<Item, Time>);

impl From<Vec<(Item, u64)>> for Removed {
    fn from(rows: Vec<(Item, u64)>) -> Self {
        let rows = rows.into_iter();
        Self(rows.map(|(item, until)| (item, Time(until))).collect())
    }
}

impl From<Removed> for Vec<(Item, u64)> {
    fn from(removed: Removed) -> Self {
        let rows = removed.0.into_iter();
        rows.map(|(item, until)| (item, until.0)).collect()
    }
}

impl Removed {
    /// Whether there is nothing to take back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes what the old scope says and the new one does not.
    pub(super) fn follow(&mut self, now: Time, old: Option<&Scope>, new: Option<&Scope>) {
        let kept = new.map(Scope::items).unwrap_or_default();
        if let Some(old) = old {
            let forgotten = now.plus_secs(old.ra.lifetime().into());
            let deprecated = now.plus_secs(DEPRECATED.min(old.ra.valid_lifetime.into()));
            for item in old.items() {
                let until = match &item {
                    Item::Prefix(_) | Item::Own(_) => deprecated,
                    Item::Route(_)
                    | Item::Resolver(_)
                    | Item::Domain(_)
                    | Item::Pref64(_)
                    | Item::Portal
                    | Item::Mtu => forgotten,
                };
                self.0.insert(item, until);
            }
        }
        self.0
            .retain(|item, until| *until > now && !kept.contains(item));
        while self.0.len() > MOST {
            let first = self.0.iter().min_by_key(|(_, until)| **until);
            let Some(first) = first.map(|(item, _)| item.clone()) else {
                return;
            };
            self.0.remove(&first);
        }
    }

    /// What guests know by now, or have forgotten by themselves.
    pub(super) fn expire(&mut self, now: Time) {
        self.0.retain(|_, until| *until > now);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Item, Time)> {
        self.0.iter().map(|(item, until)| (item, *until))
    }

    pub(super) fn contains(&self, item: &Item) -> bool {
        self.0.contains_key(item)
    }
}
