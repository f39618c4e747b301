//! Links: made, changed and deleted; the messages of `RTM_*LINK`.

use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage, Prop,
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec};

use super::tap::{self, NewTap};
use super::worker::{Failure, Worker};
use crate::plan::{BridgeOptions, Link, LinkKind, Mark, NewLink, TapOptions};
use crate::types::IfName;

/// What the kernel gives a new link.
const DEFAULT_MTU: u32 = 1500;
/// Links of this group are being deleted (its letters spell `netd`).
const DOOMED: u32 = 0x6e65_7464;

impl Worker {
    /// Makes a link with its mark and sysctls, down and on no bridge; whole or not at all.
    pub(super) fn create(&mut self, new: &NewLink) -> Result<(), Failure> {
        match &new.link.kind {
            LinkKind::Bridge(options) => self.create_bridge(new, *options),
            LinkKind::Tap(options) => self.create_tap(new, *options),
            LinkKind::Other => Err(Failure::text("only bridges and taps can be made")),
        }
    }

    fn create_bridge(&mut self, new: &NewLink, options: BridgeOptions) -> Result<(), Failure> {
        let mut message = LinkMessageBuilder::<LinkBridge>::new(new.name.as_str());
        for option in bridge_options(options) {
            message = message.append_info_data(option);
        }
        if let Some(mac) = new.link.mac {
            message = message.address(mac.octets().to_vec());
        }
        self.socket
            .command(Message::NewLink(message.build()), NLM_F_CREATE | NLM_F_EXCL)?;
        let finished = self.finish_bridge(new);
        if finished.is_err() {
            let _ = self.delete(&new.name);
        }
        finished
    }

    /// An alias given at creation is ignored, and an mtu would follow that of the ports; set afterwards both stay.
    fn finish_bridge(&mut self, new: &NewLink) -> Result<(), Failure> {
        let bare = Link {
            mtu: Some(DEFAULT_MTU),
            mark: None,
            ..new.link.clone()
        };
        if let Some(message) = self.settings(&new.name, &bare, &new.link, false)? {
            self.set(message)?;
        }
        self.set_all(&new.sysctls)?;
        if new.ports.is_empty() {
            return Ok(());
        }
        let bridge = self.index(&new.name)?;
        for port in &new.ports {
            // A stranger's link may have gone meanwhile; that is no reason to fail.
            let _ = self.set(
                LinkUnspec::new_with_name(port.as_str())
                    .controller(bridge)
                    .build(),
            );
        }
        Ok(())
    }

    /// The tap is kept only once it bears its mark: if we die in between, it goes with us.
    fn create_tap(&mut self, new: &NewLink, options: TapOptions) -> Result<(), Failure> {
        let tap = NewTap::create(&new.name, options)?;
        let mut message = LinkUnspec::new_with_name(new.name.as_str());
        if let Some(mark) = new.link.mark.as_ref().filter(|m| m.is_made()) {
            message = message.alias(mark.to_string());
        }
        if let Some(mtu) = new.link.mtu.filter(|m| *m != DEFAULT_MTU) {
            message = message.mtu(mtu);
        }
        if let Some(mac) = new.link.mac {
            message = message.address(mac.octets().to_vec());
        }
        self.set(message.build())?;
        self.set_all(&new.sysctls)?;
        Ok(tap.keep()?)
    }

    /// Deletes a link.
    pub(super) fn delete(&mut self, name: &IfName) -> Result<(), Failure> {
        let message = LinkUnspec::new_with_name(name.as_str()).build();
        Ok(self.socket.command(Message::DelLink(message), 0)?)
    }

    /// Deletes links all at once: the kernel waits once for all of them (some 10 ms) instead of once for each.
    pub(super) fn delete_all(&mut self, names: &[&IfName]) -> Result<(), Failure> {
        for name in names {
            self.set(
                LinkUnspec::new_with_name(name.as_str())
                    .link_group(DOOMED)
                    .build(),
            )?;
        }
        let message = LinkMessageBuilder::<LinkUnspec>::default()
            .link_group(DOOMED)
            .build();
        Ok(self.socket.command(Message::DelLink(message), 0)?)
    }

    /// Changes what differs; whole or, as far as the kernel lets us, not at all.
    pub(super) fn change(&mut self, name: &IfName, from: &Link, to: &Link) -> Result<(), Failure> {
        let changed = self.try_change(name, from, to);
        if changed.is_err() {
            let _ = self.try_change(name, to, from);
        }
        changed
    }

    fn try_change(&mut self, name: &IfName, from: &Link, to: &Link) -> Result<(), Failure> {
        if from.up && !to.up {
            self.set(LinkUnspec::new_with_name(name.as_str()).down().build())?;
        }
        self.change_lending(name, from, to)?;
        self.change_kind(name, from, to)?;
        // A port that must not talk to its neighbours is made so before it is up.
        let flags = from.flags != to.flags && to.master.is_some();
        let up = !from.up && to.up;
        if let Some(message) = self.settings(name, from, to, up && !flags)? {
            self.set(message)?;
        }
        if flags {
            self.set_flags(name, to)?;
            if up {
                self.set(LinkUnspec::new_with_name(name.as_str()).up().build())?;
            }
        }
        Ok(())
    }

    /// One message for all that one message can carry; none if nothing of it differs.
    fn settings(
        &mut self,
        name: &IfName,
        from: &Link,
        to: &Link,
        up: bool,
    ) -> Result<Option<LinkMessage>, Failure> {
        let mut message = LinkUnspec::new_with_name(name.as_str());
        let mut some = false;
        if let Some(mtu) = to.mtu.filter(|_| from.mtu != to.mtu) {
            (message, some) = (message.mtu(mtu), true);
        }
        if let Some(mac) = to.mac.filter(|_| from.mac != to.mac) {
            (message, some) = (message.address(mac.octets().to_vec()), true);
        }
        if alias(from) != alias(to) {
            (message, some) = (message.alias(alias(to).unwrap_or_default()), true);
        }
        if from.master != to.master {
            let master = match &to.master {
                Some(bridge) => self.index(bridge)?,
                None => 0,
            };
            (message, some) = (message.controller(master), true);
        }
        if up {
            (message, some) = (message.up(), true);
        }
        Ok(some.then(|| message.build()))
    }

    /// The mark of somebody else's link is an alternative name: their alias stays theirs.
    fn change_lending(&mut self, name: &IfName, from: &Link, to: &Link) -> Result<(), Failure> {
        let lent = |link: &Link| link.mark.clone().filter(|m| !m.is_made());
        let (before, after) = (lent(from), lent(to));
        if before == after {
            return Ok(());
        }
        if let Some(mark) = before {
            let message = self.alternative_name(name, &mark)?;
            self.socket.command(Message::DelLinkProp(message), 0)?;
        }
        if let Some(mark) = after {
            let message = self.alternative_name(name, &mark)?;
            let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND;
            self.socket.command(Message::NewLinkProp(message), flags)?;
        }
        Ok(())
    }

    fn alternative_name(&mut self, name: &IfName, mark: &Mark) -> Result<LinkMessage, Failure> {
        let index = self.index(name)?;
        let names = vec![Prop::AltIfName(mark.to_string())];
        Ok(LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::PropList(names))
            .build())
    }

    fn change_kind(&mut self, name: &IfName, from: &Link, to: &Link) -> Result<(), Failure> {
        match (&from.kind, &to.kind) {
            (from, to) if from == to => Ok(()),
            (_, LinkKind::Bridge(options)) => {
                let mut settings = bridge_options(*options);
                if options.stp {
                    // While it is on, the kernel refuses a delay below its minimum: the delay first.
                    settings.reverse();
                }
                let index = self.index(name)?;
                settings.into_iter().try_for_each(|option| {
                    let message = bridge_message(index, option);
                    Ok(self.socket.command(Message::NewLink(message), 0)?)
                })
            }
            (_, LinkKind::Tap(options)) => Ok(tap::set_owner(name, *options)?),
            (_, LinkKind::Other) => Ok(()),
        }
    }

    fn set_flags(&mut self, name: &IfName, to: &Link) -> Result<(), Failure> {
        let index = self.index(name)?;
        let message = LinkBridgePort::new(index)
            .isolated(to.flags.isolated)
            .hairpin(to.flags.hairpin)
            .build();
        Ok(self.socket.command(Message::NewLink(message), 0)?)
    }

    fn set(&mut self, message: LinkMessage) -> Result<(), Failure> {
        Ok(self.socket.command(Message::SetLink(message), 0)?)
    }
}

fn alias(link: &Link) -> Option<String> {
    let mark = link.mark.as_ref().filter(|m| m.is_made());
    mark.map(Mark::to_string)
}

/// Spanning tree first, then the delay.
fn bridge_options(options: BridgeOptions) -> Vec<InfoBridge> {
    let stp = match options.stp {
        true => BridgeStpState::KernelStp,
        false => BridgeStpState::Disabled,
    };
    vec![
        InfoBridge::StpState(stp),
        InfoBridge::ForwardDelay(options.forward_delay),
    ]
}

fn bridge_message(index: u32, option: InfoBridge) -> LinkMessage {
    LinkUnspec::new_with_index(index)
        .append_extra_attribute(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![option])),
        ]))
        .build()
}
