//! What a network *is*: the [`World`] of networks and ports, as plain validated data.
//!
//! Nothing here does anything. A value of the model that exists is valid on its own; rules between networks
//! (overlapping subnets, two owners of a name) are [`World::admit`]'s. Documents become model values in
//! [`crate::config`]; kernel state, rules, leases and answers are all functions of a `World`.

mod anchor;
mod boot;
mod bridge;
mod dhcp;
mod dns;
mod endpoint;
mod forward;
mod names;
mod network;
mod options;
mod options6;
mod port;
mod publish;
mod qos;
mod ra;
mod record;
mod subnet;
mod world;

pub use anchor::TrustAnchor;
pub use boot::{Arch, Boot, BootRule, Booting};
pub use bridge::Bridge;
pub use dhcp::{Circuit, Dhcp4, Dhcp6, DhcpRange4, RaMode, Reservation4, Reservation6};
pub use dns::{Dns, Dnssec, HostRecord, Upstream};
pub use endpoint::{Endpoint, Transport};
pub use forward::{Forward, ForwardKind, HostAccess, Nat};
pub(crate) use names::{GATEWAY, HARMFUL};
pub use network::{Network, Route4};
pub(crate) use options::unhex;
pub use options::{
    ALIASES as DHCP_OPTION_ALIASES, DhcpOption, OptionKind, OptionRow, TABLE as DHCP_OPTIONS,
};
pub use options6::{DhcpOption6, TABLE as DHCP6_OPTIONS};
pub use port::{Home, Owner, Port, PortKey, PortKind};
pub use publish::{Protocol, Publish, Target};
pub use qos::Qos;
pub use ra::{Preference, Ra};
pub use record::{Record, RecordData, RecordName};
pub use subnet::{Subnet4, Subnet6};
pub use world::{Clash, World};
