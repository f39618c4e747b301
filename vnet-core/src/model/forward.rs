use crate::types::{IfName, Range4};

/// How packets leave the network, and what may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forward {
    /// Out by address translation; in come replies and published ports.
    Nat(Nat),
    /// Both ways with the guests' own addresses; a packet's source must be of the subnet.
    Routed {
        /// Only through this interface of the host, if given.
        egress: Option<IfName>,
    },
    /// Guests among themselves, with DHCP and DNS of their own gateway. Nothing else, in either direction.
    Isolated,
    /// Bridge, address, DHCP and DNS, and no packet rule of ours.
    Open,
    /// Guests join a bridge that the host already has: no address, DHCP or DNS of ours.
    Bridge,
}

/// Network address translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nat {
    /// Only through this interface of the host, if given.
    pub egress: Option<IfName>,
    /// Translate to these addresses of the host; `None` is whatever address the packet leaves by.
    pub addresses: Option<Range4>,
    /// Source ports for TCP and UDP: privileged ports stay out, so that no guest speaks with a trusted port.
    pub ports: (u16, u16),
    /// Translate IPv6 too (otherwise IPv6 of a NAT network is routed, with nothing let in).
    pub ipv6: bool,
}

impl Default for Nat {
    fn default() -> Self {
        Self {
            egress: None,
            addresses: None,
            ports: (1024, 65535),
            ipv6: false,
        }
    }
}

/// The modes by name only: what documents and tables show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForwardKind {
    /// `nat`
    Nat,
    /// `routed`
    Routed,
    /// `isolated`
    Isolated,
    /// `open`
    Open,
    /// `bridge`
    Bridge,
}

impl ForwardKind {
    /// Every mode, in the order documents list them.
    pub const ALL: [Self; 5] = [
        Self::Nat,
        Self::Routed,
        Self::Isolated,
        Self::Open,
        Self::Bridge,
    ];

    /// The word documents use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Routed => "routed",
            Self::Isolated => "isolated",
            Self::Open => "open",
            Self::Bridge => "bridge",
        }
    }
}

impl Forward {
    /// The mode without its settings.
    #[must_use]
    pub const fn kind(&self) -> ForwardKind {
        match self {
            Self::Nat(_) => ForwardKind::Nat,
            Self::Routed { .. } => ForwardKind::Routed,
            Self::Isolated => ForwardKind::Isolated,
            Self::Open => ForwardKind::Open,
            Self::Bridge => ForwardKind::Bridge,
        }
    }

    /// The interface that traffic is restricted to, if any.
    #[must_use]
    pub const fn egress(&self) -> Option<&IfName> {
        match self {
            Self::Nat(nat) => nat.egress.as_ref(),
            Self::Routed { egress } => egress.as_ref(),
            Self::Isolated | Self::Open | Self::Bridge => None,
        }
    }

    /// Whether the host must forward packets for this network.
    #[must_use]
    pub const fn needs_forwarding(&self) -> bool {
        match self {
            Self::Nat(_) | Self::Routed { .. } | Self::Open => true,
            Self::Isolated | Self::Bridge => false,
        }
    }
}

/// What guests may reach on the host itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostAccess {
    /// Everything (the default for `nat` and `routed`, as users of libvirt expect).
    All,
    /// DHCP, DNS and ping of the own gateway (the default for `isolated`).
    Services,
    /// DHCP only: a guest that may not even resolve names through the host.
    None,
}

impl HostAccess {
    /// Every value, in the order documents list them.
    pub const ALL: [Self; 3] = [Self::All, Self::Services, Self::None];

    /// The word documents use.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Services => "services",
            Self::None => "none",
        }
    }

    /// What a mode gives unless the document says otherwise.
    #[must_use]
    pub const fn default_of(kind: ForwardKind) -> Self {
        match kind {
            ForwardKind::Nat | ForwardKind::Routed | ForwardKind::Open | ForwardKind::Bridge => {
                Self::All
            }
            ForwardKind::Isolated => Self::Services,
        }
    }
}
