//! What goes over the API's socket: requests and replies, shared by the daemon and `vnet`.
//!
//! Everything here is plain data with a stable JSON form; `docs/openapi.json` is generated from it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vnet_core::config::native::NetworkDoc;

/// How the daemon is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime: u64,
    /// Networks started.
    pub networks_running: usize,
    /// Networks defined.
    pub networks: usize,
    /// Ports.
    pub ports: usize,
    /// Leases that have not ended.
    pub leases: usize,
    /// Times that drift (somebody else changed our links or rules) was found and repaired.
    pub repairs: u64,
    /// What a person should look at, each with what to do.
    pub warnings: Vec<String>,
}

/// A network and how it is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: String,
    /// Whether it is started.
    pub running: bool,
    /// Whether it starts with the daemon.
    pub autostart: bool,
    /// `nat`, `routed`, `isolated`, `open` or `bridge`.
    pub mode: String,
    /// Its bridge.
    pub bridge: String,
    /// Gateway addresses with their prefixes.
    pub addresses: Vec<String>,
    /// The DNS domain of its guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// How many ports it has.
    pub ports: usize,
    /// How many leases it has.
    pub leases: usize,
    /// What does not work, and what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The whole document, to be edited and applied again.
    pub document: NetworkDoc,
}

/// Networks to make true.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// Each is created, or changed in place while it runs.
    pub networks: Vec<NetworkDoc>,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Refuse networks that exist already.
    #[serde(default)]
    pub only_new: bool,
    /// Start new networks (yes when left out).
    #[serde(default = "yes")]
    pub start: bool,
}

fn yes() -> bool {
    true
}

/// What was done, or would be.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApplyReply {
    /// Network by network.
    pub networks: Vec<Applied>,
    /// The steps taken in the kernel, one line each (in order).
    pub steps: Vec<String>,
    /// What was chosen or could not be had, for the person who asked.
    pub notes: Vec<String>,
}

/// What became of one network.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Applied {
    /// Which.
    pub name: String,
    /// What.
    pub action: Action,
}

/// What becomes of a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Created,
    /// It was there and is different now.
    Changed,
    /// It was so already.
    Unchanged,
}

/// What a command did, for the person who gave it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// What it was done to.
    pub changed: Vec<String>,
    /// What to know about it.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A plug for a guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortRequest {
    /// On this network...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// ...or on this bridge of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Its name, which is also the guest's DNS name.
    pub name: String,
    /// `tap` (when left out), `tap-fd`, `external` or `vhost-user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The guest's MAC; chosen when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The guest's addresses; the next free one of the first DHCP subnet when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip: Vec<String>,
    /// The user (name or number) that may open it without being root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The host's interface: which one (`external`), or how to name the tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Whether the guest is held to its MAC and addresses (yes when left out).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<bool>,
    /// Whether it may not reach other isolated ports (the network's setting when left out).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated: Option<bool>,
    /// How many queues its tap can have (1 when left out, which is what every VMM opens).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// The most that comes in to the guest: `100mbit`, or `100mbit,burst=256k` (`vhost-user` only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_in: Option<String>,
    /// The most that the guest sends out, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_out: Option<String>,
}

/// A port, and how to plug a guest into it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// `default/web` or `bridge:br0/web`.
    pub port: String,
    /// Its network, or `bridge:NAME`.
    pub network: String,
    /// Its name.
    pub name: String,
    /// `tap`, `tap-fd`, `external` or `vhost-user`.
    pub kind: String,
    /// The host's interface.
    pub interface: String,
    /// The guest's MAC.
    pub mac: String,
    /// The addresses kept for the guest.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// The guest's DNS name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_name: Option<String>,
    /// Whether the guest is held to its MAC and addresses.
    pub guard: bool,
    /// Whether it may not reach other isolated ports.
    pub isolated: bool,
    /// The most that comes in to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_in: Option<String>,
    /// The most that the guest sends out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_out: Option<String>,
    /// Whether it is in the kernel now (its network is started).
    pub live: bool,
    /// The vhost-user socket, for that kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// What its guest has of DHCP, and what it was refused; absent in the answer that attaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<DhcpShare>,
    /// What its vhost-user device says of itself, for that kind; only where one port is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceView>,
    /// Arguments for QEMU.
    pub qemu: String,
    /// Arguments for cloud-hypervisor.
    pub cloud_hypervisor: String,
    /// Arguments for crosvm.
    pub crosvm: String,
}

/// A vhost-user port as the process that serves it sees it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct DeviceView {
    /// A VMM is connected.
    pub connected: bool,
    /// Its guest's driver takes frames.
    pub running: bool,
    /// Whether the cable is in.
    pub link: bool,
    /// Rings that stopped because the driver broke them, by queue, and how.
    pub stopped: BTreeMap<String, String>,
    /// Frames and chains, by what became of them.
    pub counters: BTreeMap<String, u64>,
    /// Frames that the switch dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// What one port has of its network's DHCP, of both families, since the daemon started.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DhcpShare {
    /// Addresses that clients behind it hold, were offered or declined.
    pub addresses: u32,
    /// Messages that were not read: too many a second.
    pub over_rate: u64,
    /// Addresses that were refused: it has all that one port may.
    pub over_pool: u64,
    /// Messages in another's name.
    pub forged: u64,
}

impl DhcpShare {
    /// What it was refused, in words.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        let all = [
            (self.over_rate, "messages over its rate"),
            (self.over_pool, "addresses over its limit"),
            (self.forged, "messages in another's name"),
        ];
        let some = all.iter().filter(|(count, _)| *count > 0);
        some.map(|(count, what)| format!("{count} {what}"))
            .collect()
    }
}

/// How DHCP does.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DhcpView {
    /// Every network that is served, or has leases.
    pub networks: Vec<DhcpNetwork>,
}

/// What a network's guests asked of DHCP since the daemon began, and what they have.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DhcpNetwork {
    /// The network.
    pub network: String,
    /// IPv4 addresses in all ranges.
    pub pool: u64,
    /// Those that are somebody's, reserved, or in quarantine.
    pub busy: u64,
    /// Router advertisements sent.
    pub advertisements: u64,
    /// IPv4 addresses that somebody else was found to use.
    pub conflicts: u64,
    /// DHCP of IPv4.
    pub v4: DhcpFamily,
    /// DHCP of IPv6.
    pub v6: DhcpFamily,
}

/// One family's share of [`DhcpNetwork`].
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DhcpFamily {
    /// Addresses that are leased.
    pub held: u64,
    /// Addresses that are offered.
    pub offered: u64,
    /// Addresses that nobody gets for a while: they were found in use.
    pub quarantined: u64,
    /// Messages by kind.
    pub received: BTreeMap<String, u64>,
    /// Answers by kind.
    pub sent: BTreeMap<String, u64>,
    /// Messages without an answer, by the reason.
    pub ignored: BTreeMap<String, u64>,
}

/// How DNS does.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DnsView {
    /// Answers of upstreams that are kept.
    pub cache_entries: u64,
    /// Bytes they take.
    pub cache_bytes: u64,
    /// Bytes they may take.
    pub cache_limit: u64,
    /// Questions that upstreams were asked, with repetitions.
    pub upstream_sent: u64,
    /// Times that one did not answer in time.
    pub upstream_timeouts: u64,
    /// Messages in an upstream's name that were no answer to anything asked.
    pub upstream_spoofed: u64,
    /// Every upstream that was asked since the start.
    pub upstreams: Vec<DnsUpstream>,
    /// Every network that is served.
    pub networks: Vec<DnsNetwork>,
}

/// An upstream, and how it does.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DnsUpstream {
    /// Where it is.
    pub endpoint: String,
    /// Whether it answers, as far as is known.
    pub up: bool,
    /// How long it takes to answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milliseconds: Option<u64>,
    /// Whether it does not know EDNS.
    pub no_edns: bool,
}

/// What a network's guests asked, by what became of it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DnsNetwork {
    /// The network.
    pub network: String,
    /// Messages received.
    pub queries: u64,
    /// Answered from our own names.
    pub local: u64,
    /// Answered that the name does not exist, on our own authority.
    pub no_such_name: u64,
    /// Answered from what was kept.
    pub cached: u64,
    /// Answered from what was kept though too old, because no upstream answered.
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

/// What guests are told of a name, and why.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DnsLookup {
    /// Whose word it is, in words.
    pub whose: String,
    /// The records, or the code, as far as they are known without asking anybody.
    pub records: Vec<String>,
    /// Who is asked, in order.
    pub upstreams: Vec<DnsUpstream>,
    /// Whether signatures are checked.
    pub checked: bool,
    /// Whether inner addresses are refused of upstreams.
    pub protected: bool,
}

/// A lease.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LeaseView {
    /// On which network.
    pub network: String,
    /// Which address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Whose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The name the guest has in DNS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The client identifier, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// When it began, in seconds since 1970.
    pub granted: u64,
    /// When it ends, in seconds since 1970; absent for one that never does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// Whether the address is kept for the guest: a reservation, or its port's.
    pub reserved: bool,
}

/// A port of the host that leads to a guest.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PublishView {
    /// On which network.
    pub network: String,
    /// Which guest, as it was asked for.
    pub guest: String,
    /// Its address now.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv4Addr>,
    /// The host's port.
    pub host_port: u16,
    /// The guest's port.
    pub guest_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// A publication to make.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// A guest by name or address.
    pub guest: String,
    /// `8080:80/tcp`
    pub ports: String,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// A number that only grows.
    pub id: u64,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// What: `network.started`, `port.attached`, `lease.granted`, `drift.repaired`, ...
    pub kind: String,
    /// On which network (or `bridge:NAME`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// One sentence.
    pub text: String,
}

/// Why a request was refused.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong, and what to do about it.
    pub error: String,
    /// A word for programs: `not-found`, `conflict`, `invalid`, `forbidden`, `failed`.
    pub code: String,
}
