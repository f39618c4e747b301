//! Our own document format: the shape of a network in TOML and JSON, as plain texts and numbers.
//!
//! A document says only what its writer cares for; [`NetworkDoc::settle`] fills in the rest and checks every
//! rule. [`NetworkDoc::of`] is the way back: the whole network, ready to be edited and applied again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Problems;

/// A network as its owner writes it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkDoc {
    /// 1 to 63 letters, digits, `.`, `_` or `-`.
    pub name: String,
    /// Chosen when left out; kept for life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Whether it starts with the daemon (yes when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// Whether new ports are isolated from each other (no when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolate_ports: Option<bool>,
    /// What guests may reach on the host itself: `all`, `services` or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_access: Option<String>,
    /// The bridge it lives on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<BridgeDoc>,
    /// How packets leave and enter (`nat` when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward: Option<ForwardDoc>,
    /// The DNS domain of its guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainDoc>,
    /// DNS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsDoc>,
    /// Subnets. A `nat` or `routed` network without any gets the next free one, with DHCP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnet: Vec<SubnetDoc>,
    /// IPv6: router advertisements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ra: Option<RaDoc>,
    /// Routes of the host through a guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<RouteDoc>,
    /// Ports of the host that lead to guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<PublishDoc>,
}

/// The bridge.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BridgeDoc {
    /// The interface name; the next free `virbrN` when left out. With mode `bridge`, the host's bridge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Chosen when left out; kept for life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// 576 to 65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Spanning tree (off when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stp: Option<bool>,
}

/// How packets leave and enter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ForwardDoc {
    /// `nat`, `routed`, `isolated`, `open` or `bridge`.
    pub mode: String,
    /// Only through this interface of the host (`nat`, `routed`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<String>,
    /// Translate to these addresses of the host, `a-b` (`nat`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<String>,
    /// Source ports for TCP and UDP, `1024-65535` (`nat`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
    /// Translate IPv6 too (`nat`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<bool>,
}

/// The DNS domain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DomainDoc {
    /// The name, like `lab.test`.
    pub name: String,
    /// Never ask upstream about names under it (yes when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_only: Option<bool>,
}

/// DNS.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DnsDoc {
    /// Whether the gateway answers DNS (yes when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Whether unknown names are asked upstream (yes, but no for `isolated`, when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward: Option<bool>,
    /// Whether upstreams may not name private addresses (no when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebind_protection: Option<bool>,
    /// Whether upstreams may be asked for the names of private addresses that are not ours (no when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_reverse: Option<bool>,
    /// What is done about DNSSEC signatures: `off` (they pass untouched; when left out) or `validate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dnssec: Option<String>,
    /// Keys that `validate` begins with, as DNSKEY records; one of the root (`.`) takes the place of those built in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust_anchors: Vec<String>,
    /// Who is asked; the host's resolvers when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstream: Vec<UpstreamDoc>,
    /// Names for addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host: Vec<HostDoc>,
    /// Records of other kinds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub record: Vec<RecordDoc>,
}

/// A DNS record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RecordDoc {
    /// `_http._tcp` or `*.apps` (in the network's domain), or a whole name.
    pub name: String,
    /// `SRV`, `TXT`, `CNAME`, `MX`, `CAA`, `HTTPS`, `PTR`, ... or a number: `TYPE65280`.
    pub r#type: String,
    /// As in a zone file: `0 5 80 web`.
    pub value: String,
    /// Seconds that resolvers may keep it, at most a week (10 when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
}

/// One resolver to forward to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpstreamDoc {
    /// `9.9.9.9`, `9.9.9.9:53`, `tls://9.9.9.9#dns.quad9.net` or `https://9.9.9.9/dns-query#dns.quad9.net`.
    pub address: String,
    /// Only for names under this domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// An address and its names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct HostDoc {
    /// The address.
    pub ip: String,
    /// At least one name; the first is what the reverse lookup answers.
    pub names: Vec<String>,
}

/// A subnet, of either family.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SubnetDoc {
    /// The gateway's address and the prefix, `10.50.0.1/16`; or `auto` for the next free one.
    pub address: String,
    /// DHCP (and, for IPv6, router advertisements).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<DhcpDoc>,
}

/// DHCP of a subnet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct DhcpDoc {
    /// IPv6 only: `slaac`, `stateless`, `stateful` or `both`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// What may be handed out, `10.50.0.2-10.50.0.99`. Left out: the whole subnet. `[]`: only reservations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Vec<RangeDoc>>,
    /// `45m`, `1h`, `7d`, `infinite` (`1h` when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_time: Option<String>,
    /// Relays that speak for as many clients as there are, by the address that they put into `giaddr` (IPv6: their link or
    /// their own). One that is not named here is one station among others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relays: Vec<String>,
    /// IPv6 only: where else the gateway leads, `fd00:9::/48`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// IPv6 only: the prefix of a translator to IPv4, `64:ff9b::/96`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pref64: Option<String>,
    /// Options by name or number: `ntp-server = "10.0.0.5"` or a list; `[]`: not told, though it would be.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, OptionDoc>,
    /// IPv4 only: options that clients are told though they do not ask for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub always: Vec<String>,
    /// Network boot. IPv6: files are URLs, and there is neither `tftp` nor `server`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootDoc>,
    /// Reservations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host: Vec<ReservationDoc>,
}

/// A range of addresses: a text, or (IPv4) a table that says what is special about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(
    untagged,
    expecting = "a range is a text like \"10.50.0.2-10.50.0.99\", or a table with `range` and perhaps `lease_time` and `options`"
)]
pub enum RangeDoc {
    /// `10.50.0.2-10.50.0.99`.
    Plain(String),
    /// With its own terms.
    Special(SpecialRangeDoc),
}

impl RangeDoc {
    /// The addresses, as they are written.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Special(special) => &special.range,
        }
    }
}

/// A range with terms of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SpecialRangeDoc {
    /// The addresses, `10.50.0.2-10.50.0.99`.
    pub range: String,
    /// Another lease time than the subnet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_time: Option<String>,
    /// Options that win over the subnet's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, OptionDoc>,
}

/// Router advertisements of a network's IPv6 subnets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RaDoc {
    /// Seconds between two advertisements, at most: 4 to 1800 (600 when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<u16>,
    /// Seconds that the gateway is the default router without another advertisement: 0 (it is none), or from the
    /// interval to 9000 (three intervals when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_lifetime: Option<u16>,
    /// Seconds that addresses made from a prefix are used for something new without another advertisement: from the
    /// interval to the valid lifetime (14400 when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_lifetime: Option<u32>,
    /// Seconds that they are valid (86400 when left out; 4294967295: for ever). Guests cut it to no less than two hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_lifetime: Option<u32>,
    /// `high`, `medium` (when left out) or `low`: which of several routers guests take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preference: Option<String>,
}

/// Network boot: what a machine without a system is told to load.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BootDoc {
    /// A folder of the host that the gateway serves by TFTP, read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tftp: Option<String>,
    /// Who has the files, if not the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The file (or URL) where no rule fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Files for machines of one kind; the first rule that fits wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<BootRuleDoc>,
}

/// A file for machines of one kind: whatever is said must fit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BootRuleDoc {
    /// One of these firmwares: `bios`, `uefi-x64`, `uefi-arm64`, `uefi-x64-http`, ... or IANA's numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arch: Vec<String>,
    /// What the vendor class begins with: `PXEClient`, `HTTPClient`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor_class: Option<String>,
    /// The user class: `iPXE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_class: Option<String>,
    /// The file, or a URL where the firmware takes one.
    pub file: String,
    /// Who has it, if not the subnet's server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}

/// The value of a DHCP option: one text or number, or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum OptionDoc {
    /// A number.
    Number(i64),
    /// A text.
    One(String),
    /// Several texts.
    Many(Vec<String>),
}

/// A reservation: who (`mac`, `client_id`, a relay's `circuit_id` and `remote_id` or, for IPv6, `duid`; or only a name),
/// and what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ReservationDoc {
    /// The guest's MAC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// IPv4: the client identifier, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// IPv4: the relay's circuit that the guest comes from (option 82): a text, or bytes as `0x0004`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub circuit_id: Option<String>,
    /// IPv4: what the relay says is at the circuit's other end (option 82): a text, or bytes as `0x0004`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote_id: Option<String>,
    /// IPv6: the DUID, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duid: Option<String>,
    /// The address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Another lease time than the subnet's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_time: Option<String>,
    /// Options that win over the subnet's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, OptionDoc>,
}

/// A route of the host through a guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RouteDoc {
    /// Where to, `10.9.0.0/16`.
    pub to: String,
    /// Through which guest.
    pub via: String,
    /// The metric (1 when left out).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
}

/// A port of the host that leads to a guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PublishDoc {
    /// A port or reservation by name, or an address.
    pub guest: String,
    /// `8080:80/tcp`: the host's port, the guest's port, the protocol.
    pub ports: String,
}

/// A TOML file: one network at the top, or several as `[[network]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Several {
    network: Vec<NetworkDoc>,
}

/// Reads every network of a TOML text: one at the top, or several as `[[network]]`.
///
/// # Errors
/// Where the text is not TOML, or does not have the shape.
pub fn from_toml(text: &str) -> Result<Vec<NetworkDoc>, Problems> {
    let table: toml::Table = toml::from_str(text).map_err(|e| toml_problem(text, &e))?;
    if table.contains_key("network") {
        let several: Several = toml::from_str(text).map_err(|e| toml_problem(text, &e))?;
        return Ok(several.network);
    }
    toml::from_str(text)
        .map(|one| vec![one])
        .map_err(|e| toml_problem(text, &e))
}

/// Reads every network of a JSON text: one object, or an array of them.
///
/// # Errors
/// Where the text is not JSON, or does not have the shape.
pub fn from_json(text: &str) -> Result<Vec<NetworkDoc>, Problems> {
    fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Problems> {
        let mut json = serde_json::Deserializer::from_str(text);
        serde_path_to_error::deserialize(&mut json).map_err(|e| {
            let path = e.path().to_string();
            Problems::one(
                if path == "." { String::new() } else { path },
                e.inner().to_string(),
            )
        })
    }
    if text.trim_start().starts_with('[') {
        read(text)
    } else {
        read(text).map(|one| vec![one])
    }
}

fn toml_problem(text: &str, error: &toml::de::Error) -> Problems {
    let at = error.span().map_or_else(String::new, |span| {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("line {line}, column {column}")
    });
    Problems::one(at, error.message().trim().replace('\n', "; "))
}

impl NetworkDoc {
    /// The document as TOML, for people.
    ///
    /// # Errors
    /// Never for a document that [`NetworkDoc::of`] made; a foreign one may hold what TOML cannot say.
    pub fn to_toml(&self) -> Result<String, Problems> {
        toml::to_string(self).map_err(|e| Problems::one("", e.to_string()))
    }
}
