//! Looks at the kernel: dumps and single questions into a [`HostState`].
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel's enums are not ours, and grow"
)]

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressMessage, AddressProtocol, AddressScope,
};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, BridgeStpState, InfoBridge, InfoBridgePort, InfoData,
    InfoKind, InfoPortData, InfoTun, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
    LinkMessage, Prop,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::sysctl;
use super::worker::{Failure, PROTOCOL, Worker};
use crate::plan::{
    BridgeOptions, HostState, Knob, Link, LinkKind, Mark, PortFlags, Route, Scope, Sysctl,
    TapOptions,
};
use crate::types::{IfName, IpNet, Mac};
use std::net::IpAddr;

impl Worker {
    /// What is there, within the scope.
    pub(super) fn observe(&mut self, scope: &Scope) -> Result<HostState, Failure> {
        let mut state = HostState::default();
        let mut names = BTreeMap::new();
        let messages = match scope {
            Scope::All => self.all_links()?,
            Scope::Links(wanted) => self.some_links(wanted)?,
        };
        let links: Vec<Seen> = messages.iter().filter_map(Seen::parse).collect();
        names.extend(links.iter().map(|seen| (seen.index, seen.name.clone())));
        for seen in links {
            self.admit(&mut state, &names, seen);
        }
        self.observe_addresses(scope, &names, &mut state)?;
        self.observe_routes(&names, &mut state)?;
        for key in [Sysctl::Ip4Forwarding, Sysctl::Ip6Forwarding] {
            if let Ok(Some(value)) = sysctl::read(&key) {
                state.sysctls.insert(key, value);
            }
        }
        Ok(state)
    }

    fn admit(&self, state: &mut HostState, names: &BTreeMap<u32, IfName>, seen: Seen) {
        let master = seen
            .master
            .and_then(|index| names.get(&index).cloned().or_else(|| self.name(index)));
        let mut link = seen.link;
        link.master = master;
        for (knob, value) in seen.knobs {
            let key = Sysctl::Interface(seen.name.clone(), knob);
            state.sysctls.insert(key, value.to_string());
        }
        state.links.insert(seen.name, link);
    }

    pub(super) fn all_links(&mut self) -> Result<Vec<LinkMessage>, Failure> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let answers = self.socket.dump(&Message::GetLink(message))?;
        Ok(answers.into_iter().filter_map(into_link).collect())
    }

    fn some_links(&mut self, names: &BTreeSet<IfName>) -> Result<Vec<LinkMessage>, Failure> {
        let mut links = Vec::with_capacity(names.len());
        for name in names {
            let mut message = LinkMessage::default();
            message.attributes = vec![
                LinkAttribute::IfName(name.to_string()),
                LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
            ];
            match self.socket.ask(Message::GetLink(message)) {
                Ok(answer) => links.extend(answer.and_then(into_link)),
                Err(refusal) if refusal.is(libc::ENODEV) => {}
                Err(refusal) => return Err(refusal.into()),
            }
        }
        Ok(links)
    }

    /// Our addresses on our bridges: those with our number, or all of them where the kernel keeps no number.
    fn observe_addresses(
        &mut self,
        scope: &Scope,
        names: &BTreeMap<u32, IfName>,
        state: &mut HostState,
    ) -> Result<(), Failure> {
        let ours = |name: &IfName| {
            state
                .links
                .get(name)
                .is_some_and(|l| l.is_made() && l.is_bridge())
        };
        let bridges: Vec<u32> = names
            .iter()
            .filter(|(_, n)| ours(n))
            .map(|(i, _)| *i)
            .collect();
        let questions = match scope {
            Scope::All if bridges.is_empty() => Vec::new(),
            Scope::All => vec![0],
            Scope::Links(_) => bridges.clone(),
        };
        let bridges: BTreeSet<u32> = bridges.into_iter().collect();
        for index in questions {
            for message in self.addresses_of(index)? {
                let number = message.header.index;
                let Some(name) = names.get(&number).filter(|_| bridges.contains(&number)) else {
                    continue;
                };
                if let Some(address) = self.our_address(&message) {
                    state.addresses.insert((name.clone(), address));
                }
            }
        }
        Ok(())
    }

    /// The addresses of one link, or of all (0).
    pub(super) fn addresses_of(&mut self, index: u32) -> Result<Vec<AddressMessage>, Failure> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        let answers = self.socket.dump(&Message::GetAddress(message))?;
        Ok(answers.into_iter().filter_map(into_address).collect())
    }

    fn our_address(&self, message: &AddressMessage) -> Option<IpNet> {
        let ours = message.attributes.iter().any(|a| {
            matches!(
                a,
                AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL))
            )
        });
        let unmarked = !self.marks_addresses && message.header.scope == AddressScope::Universe;
        address_of(message).filter(|_| ours || unmarked)
    }

    fn observe_routes(
        &mut self,
        names: &BTreeMap<u32, IfName>,
        state: &mut HostState,
    ) -> Result<(), Failure> {
        if !state.links.values().any(Link::is_made) {
            return Ok(());
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = RouteProtocol::Other(PROTOCOL);
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            for message in self.routes(message)? {
                if let Some(route) = our_route(&message, names) {
                    state.routes.insert(route);
                }
            }
        }
        Ok(())
    }

    /// Routes as the kernel filters them; a family it does not have has none.
    pub(super) fn routes(&mut self, filter: RouteMessage) -> Result<Vec<RouteMessage>, Failure> {
        match self.socket.dump(&Message::GetRoute(filter)) {
            Ok(answers) => Ok(answers.into_iter().filter_map(into_route).collect()),
            Err(refusal)
                if [libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::ENOENT]
                    .contains(&refusal.errno) =>
            {
                Ok(Vec::new())
            }
            Err(refusal) => Err(refusal.into()),
        }
    }
}

fn into_link(message: Message) -> Option<LinkMessage> {
    match message {
        Message::NewLink(link) => Some(link),
        _ => None,
    }
}

fn into_address(message: Message) -> Option<AddressMessage> {
    match message {
        Message::NewAddress(address) => Some(address),
        _ => None,
    }
}

fn into_route(message: Message) -> Option<RouteMessage> {
    match message {
        Message::NewRoute(route) => Some(route),
        _ => None,
    }
}

/// The address with its prefix: on IPv4 the local one (the other is a peer's).
pub(super) fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let attributes = || message.attributes.iter();
    let local = attributes().find_map(|a| match a {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        attributes().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn our_route(message: &RouteMessage, names: &BTreeMap<u32, IfName>) -> Option<Route> {
    if message.header.protocol != RouteProtocol::Other(PROTOCOL) {
        return None;
    }
    let (mut to, mut via, mut dev, mut metric) = (None, None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) => dev = names.get(index),
            RouteAttribute::Priority(number) => metric = *number,
            _ => {}
        }
    }
    Some(Route {
        to: IpNet::new(to?, message.header.destination_prefix_length).ok()?,
        via: via?,
        dev: dev?.clone(),
        metric,
    })
}

/// One link as the kernel shows it, its master still a number.
pub(super) struct Seen {
    index: u32,
    name: IfName,
    pub(super) link: Link,
    master: Option<u32>,
    knobs: Vec<(Knob, i32)>,
}

impl Seen {
    /// `None` for links whose name we could not have given (`lo` is one): nothing of ours can be about them.
    pub(super) fn parse(message: &LinkMessage) -> Option<Self> {
        let mut name = None;
        let mut link = Link::foreign(LinkKind::Other);
        let (mut master, mut alias, mut lent, mut knobs) = (None, None, None, Vec::new());
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = text.parse().ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = Some(*mtu),
                LinkAttribute::Address(bytes) => {
                    link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
                }
                LinkAttribute::Controller(index) => master = Some(*index),
                LinkAttribute::IfAlias(text) => alias = text.parse::<Mark>().ok(),
                LinkAttribute::PropList(names) => lent = lent.or_else(|| lending(names)),
                LinkAttribute::LinkInfo(infos) => read_info(infos, &mut link),
                LinkAttribute::AfSpecUnspec(families) => read_knobs(families, &mut knobs),
                _ => {}
            }
        }
        link.up = message.header.flags.contains(LinkFlags::Up);
        link.mark = alias.filter(Mark::is_made).or(lent);
        Some(Self {
            index: message.header.index,
            name: name?,
            link,
            master,
            knobs,
        })
    }
}

fn lending(names: &[Prop]) -> Option<Mark> {
    names.iter().find_map(|name| match name {
        Prop::AltIfName(text) => text.parse::<Mark>().ok().filter(|m| !m.is_made()),
        _ => None,
    })
}

fn read_info(infos: &[LinkInfo], link: &mut Link) {
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => {
                link.kind = LinkKind::Bridge(BridgeOptions::default())
            }
            LinkInfo::Data(InfoData::Bridge(options)) => {
                link.kind = LinkKind::Bridge(bridge_options(options));
            }
            LinkInfo::Data(InfoData::Tun(options)) => {
                if let Some(options) = tap_options(options) {
                    link.kind = LinkKind::Tap(options);
                }
            }
            LinkInfo::PortData(InfoPortData::BridgePort(flags)) => link.flags = port_flags(flags),
            _ => {}
        }
    }
}

fn bridge_options(infos: &[InfoBridge]) -> BridgeOptions {
    let mut options = BridgeOptions::default();
    for info in infos {
        match info {
            InfoBridge::StpState(state) => options.stp = *state != BridgeStpState::Disabled,
            InfoBridge::ForwardDelay(delay) => options.forward_delay = *delay,
            _ => {}
        }
    }
    options
}

/// `None` for what is not a tap but a tun.
fn tap_options(infos: &[InfoTun]) -> Option<TapOptions> {
    const OWNER: u16 = 1;
    const TYPE: u16 = 3;
    const MULTI_QUEUE: u16 = 7;
    const TAP: u8 = 2;
    let mut options = TapOptions::default();
    let mut tap = false;
    for info in infos {
        let InfoTun::Other(attribute) = info else {
            continue;
        };
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        match (attribute.kind(), value.as_slice()) {
            (OWNER, &[a, b, c, d]) => {
                // Root may anyway: a tap of root's is nobody else's.
                options.owner = Some(u32::from_ne_bytes([a, b, c, d])).filter(|uid| *uid != 0);
            }
            (TYPE, &[kind]) => tap = kind == TAP,
            (MULTI_QUEUE, &[on]) => options.multi_queue = on != 0,
            _ => {}
        }
    }
    tap.then_some(options)
}

fn port_flags(infos: &[InfoBridgePort]) -> PortFlags {
    let mut flags = PortFlags::default();
    for info in infos {
        match info {
            InfoBridgePort::Isolated(on) => flags.isolated = *on,
            InfoBridgePort::HairpinMode(on) => flags.hairpin = *on,
            _ => {}
        }
    }
    flags
}

fn read_knobs(families: &[AfSpecUnspec], knobs: &mut Vec<(Knob, i32)>) {
    for family in families {
        match family {
            AfSpecUnspec::Inet(infos) => {
                for info in infos {
                    if let AfSpecInet::DevConf(conf) = info {
                        knobs.push((Knob::RouteLocalnet, conf.route_localnet));
                    }
                }
            }
            AfSpecUnspec::Inet6(infos) => {
                for info in infos {
                    if let AfSpecInet6::DevConf(conf) = info {
                        knobs.push((Knob::AcceptRa, conf.accept_ra));
                        knobs.push((Knob::Autoconf, conf.autoconf));
                        knobs.push((Knob::DisableIpv6, conf.disable_ipv6));
                    }
                }
            }
            _ => {}
        }
    }
}
