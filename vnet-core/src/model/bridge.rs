use crate::types::{IfName, Mac, Mtu};

/// The bridge a network lives on.
///
/// For every mode but `bridge` we create it and it bears our mark; with `bridge` it is the host's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// The interface name.
    pub name: IfName,
    /// Kept for life, so that guests that remember their gateway's MAC do not lose it at a restart.
    pub mac: Mac,
    /// The largest packet; `None` is the kernel's 1500.
    pub mtu: Option<Mtu>,
    /// Spanning tree: off unless asked for, so that a port forwards at once.
    pub stp: bool,
}
