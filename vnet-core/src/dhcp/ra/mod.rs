//! Router advertisements (RFC 4861 section 6.2, with RFC 4191, 8106 and 8781) of one network, as a pure function of
//! its scope, the time and the solicitations that come in. It is not a socket or a timer, and it keeps nothing on
//! disk: a restarted daemon advertises afresh.
//!
//! ```text
//!   configure --> three in a hurry --> one every 200 to 600 s <--+
//!                                        |                       |
//!      solicitation ---- unicast at once +-- multicast ----------+
//!   configure(None) --> farewell: no router, no prefix
//! ```
//! A prefix that was advertised and is not any more is *deprecated* for two hours: guests finish what they began with
//! it and begin nothing new, instead of keeping a dead address for a day.

mod wire;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

pub use wire::Solicitation;
pub(super) use wire::wire_name;

use super::ip6::{Envelope, multicast_mac};
use super::limit::Rates;
use crate::lease::Time;
use crate::model::{Forward, HostAccess, Network, RaMode, World};
use crate::types::{DomainName, Ipv6Net, Mac, NetworkName};

/// `MaxRtrAdvInterval` and `MinRtrAdvInterval`, in seconds: the defaults of RFC 4861 section 6.2.1.
const INTERVAL: (u64, u64) = (200, 600);
/// How many advertisements of something new are sent, and how far apart (`MAX_INITIAL_RTR_ADVERTISEMENTS`).
const HASTY: (u8, u64) = (3, 16);
/// `MIN_DELAY_BETWEEN_RAS`: multicasts come no faster, whoever asks.
const MULTICAST_GAP: u64 = 3;
/// How long what an advertisement says holds without another: three intervals.
const LIFETIME: u32 = 1800;
/// How long an address made from a prefix is preferred, and valid, without another advertisement.
const PREFERRED: u32 = 14_400;
const VALID: u32 = 86_400;
/// RFC 4862 section 5.5.3: guests cut no lifetime below two hours, so a removed prefix is spoken of that long.
const DEPRECATED: u64 = 7200;
/// Removed prefixes remembered.
const MOST_REMOVED: usize = 16;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// All that a network's advertisements say: a function of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The network.
    pub network: NetworkName,
    /// Whether guests have a way out by us.
    pub is_router: bool,
    /// Whether DHCPv6 has addresses (`M`).
    pub managed: bool,
    /// Whether DHCPv6 has anything at all (`O`).
    pub other: bool,
    /// The prefixes on the link, and whether guests make their own addresses from them.
    pub prefixes: Vec<(Ipv6Net, bool)>,
    /// Resolvers.
    pub resolvers: Vec<Ipv6Addr>,
    /// The search domain.
    pub domain: Option<DomainName>,
    /// The link's MTU, where it is not Ethernet's.
    pub mtu: Option<u16>,
    /// What more than the default route leads through us.
    pub routes: Vec<Ipv6Net>,
    /// By which prefix IPv4 is reached through a translator.
    pub pref64: Option<Ipv6Net>,
}

/// One advertisement and whom it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    to_mac: Mac,
    to: Ipv6Addr,
    body: wire::Body,
}

/// Why a solicitation is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is advertised here.
    Silent,
    /// The sender asks more than its share.
    RateLimit,
}

/// The advertisements of one network.
#[derive(Debug, Clone, Default)]
pub struct Advertiser {
    scope: Option<Scope>,
    /// Prefixes that were advertised before, and until when they are spoken of.
    removed: BTreeMap<Ipv6Net, Time>,
    next: Option<Time>,
    last: Option<Time>,
    hasty: u8,
    rates: Rates,
    /// How many were sent.
    sent: u64,
}

impl Scope {
    /// The scope of a network; `None` where it has no IPv6 or the bridge is not ours.
    #[must_use]
    pub fn of(world: &World, name: &NetworkName) -> Option<Self> {
        let network = world.networks.get(name)?;
        if !network.owns_bridge() || network.subnets6.is_empty() {
            return None;
        }
        let any = |modes: &[RaMode]| {
            let mut subnets = network.subnets6.iter();
            subnets.any(|s| modes.contains(&s.dhcp.mode))
        };
        let dhcp = network.subnets6.iter().map(|s| &s.dhcp);
        Some(Self {
            network: name.clone(),
            is_router: !matches!(network.forward, Forward::Isolated),
            managed: any(&[RaMode::Stateful, RaMode::Both]),
            other: any(&[RaMode::Stateless, RaMode::Stateful, RaMode::Both]),
            prefixes: prefixes(network),
            resolvers: resolvers(network),
            domain: network.domain.clone(),
            mtu: network.bridge.mtu.map(crate::types::Mtu::get),
            routes: dhcp.clone().flat_map(|d| d.routes.clone()).collect(),
            pref64: dhcp.clone().find_map(|d| d.pref64),
        })
    }
}

fn prefixes(network: &Network) -> Vec<(Ipv6Net, bool)> {
    let autonomous = |mode| match mode {
        RaMode::Slaac | RaMode::Stateless | RaMode::Both => true,
        RaMode::Stateful => false,
    };
    let subnets = network.subnets6.iter();
    subnets
        .map(|s| (s.prefix(), autonomous(s.dhcp.mode)))
        .collect()
}

/// Where guests find their resolver: the gateways, if they answer DNS.
pub(super) fn resolvers(network: &Network) -> Vec<Ipv6Addr> {
    let serves = network.dns.enabled && network.host_access != HostAccess::None;
    let gateways = network.subnets6.iter().map(crate::model::Subnet6::gateway);
    gateways.filter(|_| serves).collect()
}

impl Advertiser {
    /// A new scope in place of the old one; with `None` the farewell that is to be sent before the bridge goes.
    pub fn configure(&mut self, now: Time, scope: Option<Scope>) -> Option<Advertisement> {
        if self.scope == scope {
            return None;
        }
        let until = now.plus_secs(DEPRECATED);
        let before = self.scope.as_ref().map(|s| s.prefixes.clone());
        let is_kept = |net: &Ipv6Net| {
            let mut kept = scope.iter().flat_map(|s| &s.prefixes);
            kept.any(|(kept, _)| kept == net)
        };
        for (net, _) in before.into_iter().flatten() {
            self.removed.insert(net, until);
        }
        self.removed
            .retain(|net, until| *until > now && !is_kept(net));
        while self.removed.len() > MOST_REMOVED {
            self.removed.pop_first();
        }
        let silent = scope.is_none();
        let last_words = self.scope.take().filter(|_| silent);
        self.scope = scope;
        self.hasty = HASTY.0;
        self.next = (!silent).then_some(now);
        let farewell =
            last_words.map(|old| self.multicast(wire::farewell(&old, &self.removed, now)));
        if silent {
            self.removed.clear();
        }
        farewell
    }

    /// What a solicitation is answered with: at once and to the one who asks, or (asked by nobody's address) soon and
    /// to all. RFC 4861 section 6.2.6 has routers wait up to half a second so that they do not all answer at once;
    /// this link has one.
    ///
    /// # Errors
    /// Why it is not answered.
    pub fn solicited(
        &mut self,
        now: Time,
        from: &Solicitation,
    ) -> Result<Option<Advertisement>, Reason> {
        let Some(scope) = &self.scope else {
            return Err(Reason::Silent);
        };
        if !self.rates.admits(from.mac, now) {
            return Err(Reason::RateLimit);
        }
        if from.address.is_unspecified() {
            let gap = self.last.map_or(now, |last| last.plus_secs(MULTICAST_GAP));
            let soon = gap.max(now);
            self.next = self.next.map(|next| next.min(soon));
            return Ok(None);
        }
        let body = wire::body(scope, &self.removed, now);
        self.sent += 1;
        Ok(Some(Advertisement {
            to_mac: from.mac,
            to: from.address,
            body,
        }))
    }

    /// When [`Advertiser::poll`] has something to say next.
    #[must_use]
    pub const fn next_due(&self) -> Option<Time> {
        self.next
    }

    /// The advertisement that is due, if one is. `random` spreads the next.
    pub fn poll(&mut self, now: Time, random: u64) -> Option<Advertisement> {
        if self.next? > now {
            return None;
        }
        self.removed.retain(|_, until| *until > now);
        let body = wire::body(self.scope.as_ref()?, &self.removed, now);
        let (least, most) = INTERVAL;
        let spread = least + random % (most - least);
        self.hasty = self.hasty.saturating_sub(1);
        let wait = if self.hasty > 0 { HASTY.1 } else { spread };
        self.next = Some(now.plus_secs(wait));
        self.last = Some(now);
        Some(self.multicast(body))
    }

    /// How many advertisements went out.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    fn multicast(&mut self, body: wire::Body) -> Advertisement {
        self.sent += 1;
        Advertisement {
            to_mac: multicast_mac(ALL_NODES),
            to: ALL_NODES,
            body,
        }
    }
}

impl Advertisement {
    /// The frame that carries it, from a bridge with this MAC.
    #[must_use]
    pub fn frame(&self, ours: Mac) -> Vec<u8> {
        let envelope = Envelope {
            from_mac: ours,
            to_mac: self.to_mac,
            from: ours.link_local(),
            to: self.to,
            hops: 255,
        };
        self.body.frame(&envelope)
    }
}

#[cfg(test)]
mod tests;
