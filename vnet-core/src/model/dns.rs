use std::net::IpAddr;

use super::{Endpoint, TrustAnchor};
use crate::types::DomainName;

/// DNS of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Whether the gateway answers DNS at all.
    pub enabled: bool,
    /// Who is asked about names we do not know; empty follows the host's resolvers.
    pub upstreams: Vec<Upstream>,
    /// Whether unknown names may be asked upstream at all (off for `isolated` unless upstreams are named).
    pub forward: bool,
    /// Whether upstreams may not name private addresses (but those asked for a domain of their own may), so that no
    /// web page can reach into the network by a name of its own.
    pub rebind_protection: bool,
    /// Whether names of private addresses that are none of ours may be asked of upstreams (RFC 6303).
    pub private_reverse: bool,
    /// What is done about signatures.
    pub dnssec: Dnssec,
    /// Keys to begin with: one of the root takes the place of those that are built in, others are added.
    pub trust_anchors: Vec<TrustAnchor>,
    /// Names that the document gives to addresses.
    pub hosts: Vec<HostRecord>,
    /// Records of other kinds.
    pub records: Vec<super::Record>,
}

/// What is done about the signatures of others' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dnssec {
    /// They pass untouched: a guest that checks them can.
    #[default]
    Off,
    /// They are checked for the guests: what is forged is a failure.
    Validate,
}

impl Dnssec {
    /// The word in a document.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Validate => "validate",
        }
    }

    /// From the word in a document.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Off, Self::Validate]
            .into_iter()
            .find(|d| d.word() == word)
    }
}

/// One resolver to forward to, for every name or for one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Where it listens, and how it is spoken to.
    pub server: Endpoint,
    /// Only for names under this domain.
    pub domain: Option<DomainName>,
}

/// An address and its names; the first is the canonical one (what PTR answers).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// The address.
    pub ip: IpAddr,
    /// At least one name; a name without a dot lies in the network's domain.
    pub names: Vec<DomainName>,
}
