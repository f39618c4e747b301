//! The two files by which others find guests: libvirt's NSS modules, and scripts older than any API.
//!
//! `<bridge>.status` says who holds which address, `<bridge>.macs` which MACs belong to which guest. Here they are
//! text; `serve` writes them, whole and by rename, so that no reader ever sees half of one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Client, LeaseRecord, Time};
use crate::types::{Mac, PortName};

/// `<bridge>.status`: the leases that are held, in the order given. `now` is the leases' own time; readers go by the wall
/// clock, which may have been set since, so each ends when that is as much later as is left.
#[must_use]
pub fn status<'a>(
    leases: impl IntoIterator<Item = &'a LeaseRecord>,
    now: Time,
    wall: Time,
) -> String {
    let held = leases.into_iter().filter(|l| l.is_held(now));
    let end = |expires: Time| match expires {
        Time::NEVER => Time::NEVER,
        _ => wall.plus_millis(expires.0.saturating_sub(now.0)),
    };
    let entries = held.filter_map(|lease| Entry::of(lease, end(lease.expires)));
    let entries: Vec<Entry<'_>> = entries.collect();
    // Text and numbers in a vector: there is nothing in it that JSON could not say.
    serde_json::to_string(&entries).unwrap_or_default()
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

/// One lease, in the readers' words.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Entry<'a> {
    ip_address: IpAddr,
    mac_address: Mac,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iaid: Option<String>,
    expiry_time: u64,
}

impl<'a> Entry<'a> {
    /// `None` where the MAC is not known, without which readers can do nothing.
    fn of(lease: &'a LeaseRecord, end: Time) -> Option<Self> {
        Some(Self {
            ip_address: lease.address,
            mac_address: lease.mac?,
            hostname: lease.hostname.as_ref().map(PortName::as_str),
            client_id: lease.client_id.as_deref().map(hex),
            iaid: match &lease.client {
                Client::Ia { iaid, .. } => Some(iaid.to_string()),
                Client::Mac(_) | Client::Id(_) => None,
            },
            // Zero is libvirt's word for "never".
            expiry_time: end.as_unix().unwrap_or(0),
        })
    }
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
        let now = Time::from_secs(100);
        let text = status(&leases, now, now);
        let read: Value = serde_json::from_str(&text).unwrap();
        let expected = json!([
            { "ip-address": "192.168.122.2", "mac-address": "52:54:00:00:00:02", "hostname": "web",
              "client-id": "01:ab", "expiry-time": 900 },
            { "ip-address": "192.168.122.3", "mac-address": "52:54:00:00:00:03", "hostname": "web",
              "client-id": "01:ab", "expiry-time": 0 },
        ]);
        assert_eq!(read, expected);
        // The wall clock was set years ahead: as much is left as before.
        let text = status(&leases, now, Time::from_secs(2_000_000_000));
        assert!(text.contains("\"expiry-time\":2000000800"), "{text}");
        assert!(text.contains("\"expiry-time\":0"), "{text}");
        let guests = [("g1".parse().unwrap(), vec![Mac([0x52, 0x54, 0, 0, 0, 2])])].into();
        assert_eq!(
            macs(&guests),
            r#"[{"domain":"g1","macs":["52:54:00:00:00:02"]}]"#
        );
        assert_eq!(status(&[], now, now), "[]");
    }
}
