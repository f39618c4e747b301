//! Router advertisements of one network: its advertiser and its sockets. Frames in, frames out; nothing waits for the
//! disk.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{Ipv6Addr, UdpSocket};

use super::packet::{Inbox, PacketSocket, index_of};
use crate::dhcp::ra::{Advertiser, Scope, Solicitation};
use crate::lease::Time;
use crate::types::IfName;

/// Batches read from one network before the others have their turn.
const BATCHES: usize = 4;
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Router advertisements of one network.
#[derive(Debug, Default)]
pub(super) struct Ra {
    advertiser: Advertiser,
    bridge: Option<IfName>,
    link: Option<Link>,
}

/// The sockets on its bridge.
#[derive(Debug)]
struct Link {
    packets: PacketSocket,
    /// Holds the membership of the routers' group, without which a snooping bridge keeps solicitations from us.
    _group: Option<UdpSocket>,
    /// A socket said that its interface is down or gone.
    doubtful: bool,
}

impl Ra {
    /// Says this from now on; `None` says farewell.
    pub(super) fn configure(&mut self, now: Time, scope: Option<Scope>, bridge: IfName) {
        let farewell = self.advertiser.configure(now, scope.clone());
        if let (Some(last), Some(link)) = (farewell, &self.link) {
            link.packets.send(&[last.frame(link.packets.mac())]);
        }
        self.bridge = scope.map(|_| bridge);
        if self.bridge.is_none() {
            self.link = None;
        }
    }

    /// Opens what should be open: `Ok(true)` if there is a new socket. A bridge that is not there is no error.
    pub(super) fn open(&mut self) -> io::Result<bool> {
        let Some(bridge) = &self.bridge else {
            return Ok(false);
        };
        let index = match index_of(bridge) {
            Ok(index) => index,
            Err(e) if super::is_missing(&e) => {
                self.link = None;
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        if let Some(link) = &mut self.link
            && link.packets.index() == index
        {
            link.doubtful = false;
            return Ok(false);
        }
        self.link = None;
        let group = super::join(ALL_ROUTERS, index, 0);
        self.link = Some(Link {
            packets: PacketSocket::solicitations(bridge)?,
            _group: group
                .inspect_err(|error| tracing::debug!(%bridge, %error, "not of the routers' group"))
                .ok(),
            doubtful: false,
        });
        Ok(true)
    }

    pub(super) fn packets(&self) -> Option<&PacketSocket> {
        self.link.as_ref().map(|link| &link.packets)
    }

    /// Whether a bridge that should be there is not, or may have been made anew.
    pub(super) fn should_look_again(&self) -> bool {
        self.bridge.is_some() && self.link.as_ref().is_none_or(|link| link.doubtful)
    }

    /// Answers the solicitations that wait.
    pub(super) fn read(&mut self, now: Time, inbox: &mut Inbox) {
        let Some(link) = &mut self.link else {
            return;
        };
        let ours = link.packets.mac();
        let mut answers = Vec::new();
        for _ in 0..BATCHES {
            match link.packets.receive(inbox) {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => {
                    link.doubtful = true;
                    break;
                }
            }
            for (bytes, checked) in inbox.frames() {
                let Some(from) = Solicitation::parse(bytes, checked) else {
                    continue;
                };
                let answer = self.advertiser.solicited(now, &from);
                tracing::trace!(mac = %from.mac, address = %from.address, ok = answer.is_ok(), "solicitation");
                answers.extend(answer.ok().flatten().map(|a| a.frame(ours)));
            }
        }
        link.packets.send(&answers);
    }

    /// How many advertisements went out.
    pub(super) const fn sent(&self) -> u64 {
        self.advertiser.sent()
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        self.link.as_ref().and(self.advertiser.next_due())
    }

    /// Sends the advertisement that is due, if one is.
    pub(super) fn poll(&mut self, now: Time) {
        let Some(link) = &self.link else {
            return;
        };
        let random = RandomState::new().build_hasher().finish();
        if let Some(advertisement) = self.advertiser.poll(now, random) {
            let ours = link.packets.mac();
            link.packets.send(&[advertisement.frame(ours)]);
        }
    }
}
