//! What `nft -j list table` prints, as a [`Ruleset`].
//!
//! Elements are read exactly. Rules are not read as expressions: each bears its tag as comment, and the tags must be
//! those of the rules that belong to the sets that are there, in order. Whatever is missing, added or unknown makes
//! the frame [`Frame::Broken`], so that it is replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::ruleset::chains;
use super::set::{Atom, Column, Element, Key, SetName, SetSpec, Table};
use super::{Chain, Frame, Ruleset};
use crate::types::{Ipv4Net, Ipv6Net};

/// From the listing of each of our tables that is there.
#[must_use]
pub fn read(listings: &BTreeMap<Table, Value>) -> Ruleset {
    if listings.is_empty() {
        return Ruleset::default();
    }
    let mut seen = Seen::default();
    let result = Table::ALL
        .iter()
        .try_for_each(|table| match listings.get(table) {
            Some(listing) => seen.table(*table, listing),
            None => Err(format!("table {} vnet is missing", table.family())),
        });
    match result.and_then(|()| seen.check()) {
        Ok(()) => Ruleset::observed(Frame::Whole, seen.elements),
        Err(what) => Ruleset::observed(Frame::Broken(what), seen.elements),
    }
}

#[derive(Default)]
struct Seen {
    elements: BTreeMap<SetName, BTreeSet<Element>>,
    /// Table and name to the hook's description and the rules' tags.
    chains: BTreeMap<(Table, String), (String, Vec<String>)>,
}

impl Seen {
    fn table(&mut self, table: Table, listing: &Value) -> Result<(), String> {
        let objects = listing["nftables"]
            .as_array()
            .ok_or("nft printed no list of objects")?;
        for (kind, object) in objects.iter().filter_map(Value::as_object).flatten() {
            match kind.as_str() {
                "metainfo" => {}
                "table" if object.get("flags").is_none() => {}
                "set" | "map" => self.set(table, object)?,
                "chain" => {
                    let key = (table, text(object, "name").to_owned());
                    self.chains.insert(key, (hook_seen(object), Vec::new()));
                }
                "rule" => {
                    let key = (table, text(object, "chain").to_owned());
                    let chain = self.chains.entry(key).or_default();
                    chain.1.push(text(object, "comment").to_owned());
                }
                _ => {
                    return Err(format!(
                        "a {kind} that is not ours in table {}",
                        table.family()
                    ));
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, table: Table, object: &Value) -> Result<(), String> {
        let name = text(object, "name");
        let set = SetName::parse(table, name).ok_or(format!("set {name} is not ours"))?;
        let spec = set.spec();
        if !declared_so(&spec, object) {
            return Err(format!("set {name} is declared otherwise"));
        }
        let elements = object.get("elem").and_then(Value::as_array);
        let elements = elements
            .into_iter()
            .flatten()
            .map(|value| element(&spec, value));
        let elements: Option<_> = elements.collect();
        self.elements.insert(
            set,
            elements.ok_or(format!("set {name} has a strange element"))?,
        );
        Ok(())
    }

    /// Whether every set is there, and exactly the chains and rules that go with them.
    fn check(&self) -> Result<(), String> {
        if let Some(set) = SetName::FIXED
            .iter()
            .find(|set| !self.elements.contains_key(set))
        {
            return Err(format!("set {} is missing", set.name()));
        }
        let translations: Vec<_> = self
            .elements
            .keys()
            .filter_map(|set| set.translation())
            .collect();
        let chains = chains(&translations);
        for chain in &chains {
            let name = chain.name;
            let key = (chain.table, name.to_owned());
            let (hook, tags) = self
                .chains
                .get(&key)
                .ok_or(format!("chain {name} is missing"))?;
            if *hook != hook_meant(chain) {
                return Err(format!("chain {name} hangs elsewhere: {hook}"));
            }
            if !chain
                .rules
                .iter()
                .map(super::Rule::tag)
                .eq(tags.iter().cloned())
            {
                return Err(format!("the rules of chain {name} were changed"));
            }
        }
        let meant = |(table, name): &(Table, String)| {
            chains
                .iter()
                .any(|chain| chain.table == *table && chain.name == name)
        };
        match self.chains.keys().find(|key| !meant(key)) {
            Some((_, name)) => Err(format!("chain {name} is not ours")),
            None => Ok(()),
        }
    }
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn hook_seen(object: &Value) -> String {
    if object.get("hook").is_none() {
        return String::new();
    }
    let priority = object
        .get("prio")
        .and_then(Value::as_i64)
        .unwrap_or_default();
    let [kind, at, policy] = ["type", "hook", "policy"].map(|key| text(object, key));
    format!("{kind} {at} {priority} {policy}")
}

fn hook_meant(chain: &Chain) -> String {
    chain.hook.map_or(String::new(), |hook| {
        let kind = if hook.nat { "nat" } else { "filter" };
        format!("{kind} {} {} accept", hook.at.word(), hook.priority)
    })
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "what JSON can hold besides is not what we wrote"
)]
fn declared_so(spec: &SetSpec, object: &Value) -> bool {
    let key: Vec<_> = spec.key.iter().map(|column| column.word()).collect();
    let same_key = match &object["type"] {
        Value::String(one) => key == [one.as_str()],
        Value::Array(all) => all.iter().map(|v| v.as_str().unwrap_or_default()).eq(key),
        _ => false,
    };
    let flags: &[&str] = if spec.interval() { &["interval"] } else { &[] };
    let seen = object.get("flags").and_then(Value::as_array);
    let seen = seen.into_iter().flatten().filter_map(Value::as_str);
    same_key
        && seen.eq(flags.iter().copied())
        && object.get("map").and_then(Value::as_str) == spec.value.map(Column::word)
}

fn element(spec: &SetSpec, value: &Value) -> Option<Element> {
    match (spec.value, value) {
        (None, key) => Some(Element {
            key: self::key(spec, key)?,
            value: None,
        }),
        (Some(column), Value::Array(pair)) => {
            let [key, value] = &pair[..] else { return None };
            Some(Element {
                key: self::key(spec, key)?,
                value: Some(atom(column, value)?),
            })
        }
        (Some(_), _) => None,
    }
}

fn key(spec: &SetSpec, value: &Value) -> Option<Key> {
    let parts = match value.get("concat").and_then(Value::as_array) {
        Some(parts) => &parts[..],
        None => std::slice::from_ref(value),
    };
    if parts.len() != spec.key.len() {
        return None;
    }
    let columns = spec.key.iter().zip(parts);
    let atoms: Option<Vec<_>> = columns.map(|(column, part)| atom(*column, part)).collect();
    Key::new(&atoms?)
}

fn atom(column: Column, value: &Value) -> Option<Atom> {
    let word = || value.as_str();
    let number = || value.as_u64();
    Some(match column {
        Column::Interface => Atom::Interface(word()?.parse().ok()?),
        Column::Mac => Atom::Mac(word()?.parse().ok()?),
        Column::Ip4 => Atom::Ip4(word()?.parse().ok()?),
        Column::Ip6 => Atom::Ip6(word()?.parse().ok()?),
        Column::Protocol => Atom::Protocol(word()?.parse().ok()?),
        Column::Port => Atom::Port(number()?.try_into().ok()?),
        Column::Mark => Atom::Mark(number()?.try_into().ok()?),
        Column::Net4 => {
            let (address, length) = prefix(value, 32)?;
            let address: Ipv4Addr = address.parse().ok()?;
            Atom::Net4(Ipv4Net::new(address, length).ok()?)
        }
        Column::Net6 => {
            let (address, length) = prefix(value, 128)?;
            let address: Ipv6Addr = address.parse().ok()?;
            Atom::Net6(Ipv6Net::new(address, length).ok()?)
        }
    })
}

/// nft prints a prefix as an object, and one address as itself.
fn prefix(value: &Value, full: u8) -> Option<(&str, u8)> {
    if let Some(address) = value.as_str() {
        return Some((address, full));
    }
    let prefix = value.get("prefix")?;
    let length = prefix.get("len")?.as_u64()?;
    Some((prefix.get("addr")?.as_str()?, length.try_into().ok()?))
}
