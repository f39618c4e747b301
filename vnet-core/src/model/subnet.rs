use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Dhcp4, Dhcp6};
use crate::types::{Ipv4Net, Ipv6Net};

/// An IPv4 subnet of a network: the gateway's own address with its prefix, and perhaps DHCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet4 {
    /// The gateway's address and the prefix, as it stands on the bridge (10.0.0.1/24).
    pub address: Ipv4Net,
    /// DHCP, if this subnet has it.
    pub dhcp: Option<Dhcp4>,
}

impl Subnet4 {
    /// The gateway: our address on the bridge.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.address.addr()
    }

    /// The subnet with its host bits cleared.
    #[must_use]
    pub fn prefix(&self) -> Ipv4Net {
        self.address.trunc()
    }

    /// Whether a guest may have this address: of the subnet, and not the network's, the broadcast's or ours.
    #[must_use]
    pub fn is_guest_address(&self, address: Ipv4Addr) -> bool {
        let net = self.address;
        let edge =
            net.prefix_len() < 31 && (address == net.network() || address == net.broadcast());
        net.contains(&address) && !edge && address != self.gateway()
    }
}

/// An IPv6 subnet of a network: the gateway's own address with its prefix, and how guests get theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet6 {
    /// The gateway's address and the prefix, as it stands on the bridge (fd00::1/64).
    pub address: Ipv6Net,
    /// Router advertisements and DHCPv6.
    pub dhcp: Dhcp6,
}

impl Subnet6 {
    /// The gateway: our address on the bridge.
    #[must_use]
    pub fn gateway(&self) -> Ipv6Addr {
        self.address.addr()
    }

    /// The subnet with its host bits cleared.
    #[must_use]
    pub fn prefix(&self) -> Ipv6Net {
        self.address.trunc()
    }
}
