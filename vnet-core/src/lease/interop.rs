//! The two files by which others find guests: libvirt's NSS modules, and scripts older than any API.
//!
//! `<bridge>.status` says who holds which address, `<bridge>.macs` which MACs belong to which guest. Here they are
//! text; `serve` writes them, whole and by rename, so that no reader ever sees half of one.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Client, LeaseRecord, Time};
use crate::types::{Mac, PortName};

/// `<bridge>.status`: the leases that are held, in the order given.
#[must_use]
pub fn status<'a>(leases: impl IntoIterator<Item = &'a LeaseRecord>, now: Time) -> String {
    let held = leases.into_iter().filter(|l| l.is_held(now));
    Value::Array(held.filter_map(entry).collect()).to_string()
}

/// `<bridge>.macs`: each guest and its MACs.
#[must_use]
pub fn macs(guests: &BTreeMap<PortName, Vec<Mac>>) -> String {
    let guests = guests.iter().map(|(name, macs)| {
        let macs: Vec<String> = macs.iter().map(ToString::to_string).collect();
        json!({ "domain": name.as_str(), "macs": macs })
    });
    Value::Array(guests.collect()).to_string()
}

/// One lease; `None` where the MAC is not known, without which readers can do nothing.
fn entry(lease: &LeaseRecord) -> Option<Value> {
    let mut entry = Map::new();
    let mut put = |key: &str, value: Value| drop(entry.insert(key.to_owned(), value));
    put("ip-address", lease.address.to_string().into());
    put("mac-address", lease.mac?.to_string().into());
    if let Some(name) = &lease.hostname {
        put("hostname", name.as_str().into());
    }
    if let Some(id) = &lease.client_id {
        put("client-id", hex(id).into());
    }
    if let Client::Ia { iaid, .. } = &lease.client {
        put("iaid", iaid.to_string().into());
    }
    // Zero is libvirt's word for "never".
    put("expiry-time", lease.expires.as_unix().unwrap_or(0).into());
    Some(Value::Object(entry))
}

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::LeaseState;

    fn lease(last: u8, expires: Time) -> LeaseRecord {
        let mac = Mac([0x52, 0x54, 0, 0, 0, last]);
        LeaseRecord {
            network: "default".parse().unwrap(),
            address: [192, 168, 122, last].into(),
            state: LeaseState::Held,
            client: Client::Mac(mac),
            mac: Some(mac),
            client_id: Some(vec![1, 0xab]),
            via: None,
            hostname: Some("web".parse().unwrap()),
            granted: Time(0),
            expires,
        }
    }

    #[test]
    fn what_libvirts_modules_read() {
        let leases = [
            lease(2, Time::from_secs(900)),
            lease(3, Time::NEVER),
            lease(4, Time::from_secs(100)),
        ];
        let text = status(&leases, Time::from_secs(100));
        let read: Value = serde_json::from_str(&text).unwrap();
        let expected = json!([
            { "ip-address": "192.168.122.2", "mac-address": "52:54:00:00:00:02", "hostname": "web",
              "client-id": "01:ab", "expiry-time": 900 },
            { "ip-address": "192.168.122.3", "mac-address": "52:54:00:00:00:03", "hostname": "web",
              "client-id": "01:ab", "expiry-time": 0 },
        ]);
        assert_eq!(read, expected);
        let guests = [("g1".parse().unwrap(), vec![Mac([0x52, 0x54, 0, 0, 0, 2])])].into();
        assert_eq!(
            macs(&guests),
            r#"[{"domain":"g1","macs":["52:54:00:00:00:02"]}]"#
        );
        assert_eq!(status(&[], Time(0)), "[]");
    }
}
