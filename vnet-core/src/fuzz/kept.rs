//! What people write and what disks and other programs give back: documents, values, leases, nft's listing.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use serde_json::Value;

use crate::config::native::{self, NetworkDoc};
use crate::dhcp::{ra, v4, v6};
use crate::dns::Zone;
use crate::firewall::{self, Ruleset, Table};
use crate::lease::LeaseRecord;
use crate::lease::row::{Draft, Row, Salt};
use crate::model::{
    Arch, DhcpOption, DhcpOption6, Endpoint, Network, PortKey, Protocol, RecordData, RecordName,
    Target, TrustAnchor, World,
};
use crate::plan;
use crate::types::{DomainName, IfName, LeaseTime, Mac, Mtu, NetworkName, PortName, Range4, Rate};

/// Documents, in both of their languages.
pub(super) fn documents(bytes: &[u8]) -> usize {
    let text = String::from_utf8_lossy(bytes);
    let toml = native::from_toml(&text).unwrap_or_default();
    let json = native::from_json(&text).unwrap_or_default();
    let settled = toml.iter().chain(&json);
    let settled = settled.filter_map(|doc| doc.settle(&super::fill()).ok());
    settled.map(|network| run(&network)).count()
}

/// A network that was taken is said again by its document, and everything can be made of it.
fn run(network: &Network) {
    let doc = NetworkDoc::of(network);
    let toml = doc.to_toml().expect("it can be written");
    let again = native::from_toml(&toml).expect("what we write is read");
    assert_eq!(again, [doc], "{toml}");
    let again = again[0].settle(&super::fill());
    assert_eq!(again.as_ref(), Ok(network), "{toml}");
    let mut world = World::default();
    world.active.insert(network.name.clone());
    world.networks.insert(network.name.clone(), network.clone());
    let state = plan::desired(&world);
    assert_eq!(state.firewall, Some(firewall::compile(&world)));
    let _ = Zone::of(&world, &network.name);
    let _ = v4::Scope::of(&world, &network.name);
    let _ = v6::Scope::of(&world, &network.name);
    let _ = ra::Scope::of(&world, &network.name);
}

/// Each kind of value that is written as text: what is shown is what was meant.
pub(super) fn values(bytes: &[u8]) -> usize {
    let text = &*String::from_utf8_lossy(bytes);
    let mut understood = [
        shown::<DomainName>(text),
        shown::<Endpoint>(text),
        shown::<IfName>(text),
        shown::<LeaseTime>(text),
        shown::<Mac>(text),
        shown::<NetworkName>(text),
        shown::<PortKey>(text),
        shown::<PortName>(text),
        shown::<Protocol>(text),
        shown::<Range4>(text),
        shown::<Rate>(text),
        shown::<RecordName>(text),
        shown::<Target>(text),
        shown::<TrustAnchor>(text),
        Arch::parse(text).is_ok(),
        text.parse::<u32>().is_ok_and(|n| Mtu::try_from(n).is_ok()),
    ]
    .map(usize::from)
    .iter()
    .sum();
    // `KEY VALUE`, as an option and as a record.
    let (key, value) = text.split_once(' ').unwrap_or((text, ""));
    let values = [value.to_owned()];
    if let Ok(option) = DhcpOption::parse(key, &values) {
        let (key, values) = option.spell();
        assert_eq!(DhcpOption::parse(&key, &values).as_ref(), Ok(&option));
        understood += 1;
    }
    if let Ok(option) = DhcpOption6::parse(key, &values) {
        let (key, values) = option.spell();
        assert_eq!(DhcpOption6::parse(&key, &values).as_ref(), Ok(&option));
        understood += 1;
    }
    if let Ok(record) = RecordData::new(key, value) {
        let again = RecordData::new(&record.kind(), record.value());
        assert_eq!(again.as_ref(), Ok(&record));
        let _ = record.wire(Some(&"lab.test".parse().expect("a name")));
        understood += 1;
    }
    understood
}

fn shown<T: FromStr + Display + PartialEq + Debug>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else {
        return false;
    };
    let shown = value.to_string();
    assert_eq!(shown.parse::<T>().ok().as_ref(), Some(&value), "{shown}");
    true
}

/// A lease in the store: the length of its key, the key, the record.
pub(super) fn lease(bytes: &[u8]) -> usize {
    let Some((len, rest)) = bytes.split_first() else {
        return 0;
    };
    let (key, value) = rest.split_at(usize::from(*len).min(rest.len()));
    let Ok(record) = LeaseRecord::from_bytes(key, value) else {
        return 0;
    };
    let key = LeaseRecord::key(&record.network, record.address);
    let again = LeaseRecord::from_bytes(&key, &record.to_bytes());
    assert_eq!(again, Ok(record));
    1
}

/// The rows of a file of leases: bytes as they are, and as the entries of a row whose seal is right.
pub(super) fn lease_log(bytes: &[u8]) -> usize {
    const SALT: Salt = [0; 8];
    let sealed = Draft::raw(bytes).seal(SALT, 1, 0).expect("a row");
    let read = [bytes, &sealed].map(|bytes| Row::read(SALT, bytes));
    let rows = read.into_iter().flatten();
    rows.map(|(row, len)| {
        let mut again = Draft::default();
        row.entries().for_each(|entry| again.say(entry));
        let again = again.seal(SALT, row.number, row.floor);
        assert!(again.is_none_or(|again| again.len() <= len));
        row.entries()
            .filter(|entry| {
                LeaseRecord::from_bytes(entry.key, entry.value.unwrap_or_default()).is_ok()
            })
            .count()
    })
    .sum()
}

/// What nft lists as our tables, by their families; what is seen is turned into what is wanted, if that is less.
pub(super) fn nft(bytes: &[u8]) -> usize {
    let Ok(listings) = serde_json::from_slice::<BTreeMap<String, Value>>(bytes) else {
        return 0;
    };
    let tables = Table::ALL.into_iter();
    let listings = tables.filter_map(|t| Some((t, listings.get(t.family())?.clone())));
    let seen = firewall::read::read(&listings.collect());
    let _ = seen.change_to(&Ruleset::default());
    let _ = Ruleset::default().change_to(&seen);
    1
}
