//! Router advertisements of one network: its advertiser and its sockets. Frames in, frames out; nothing waits for the
//! disk.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{Ipv6Addr, UdpSocket};

use super::bridged::Bridged;
use super::packet::{Inbox, PacketSocket};
use crate::dhcp::ra::{Advertiser, Removed, Scope, Solicitation};
use crate::lease::Time;
use crate::types::IfName;

/// Batches read from one network before the others have their turn.
const BATCHES: usize = 4;
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Router advertisements of one network.
#[derive(Debug)]
pub(super) struct Ra {
    advertiser: Advertiser,
    /// Beside the packets: a socket that holds the membership of the routers' group, without which a snooping bridge
    /// keeps solicitations from us.
    pub(super) sockets: Bridged<Option<UdpSocket>>,
}

impl Ra {
    /// Goes on taking back what was being taken back before.
    pub(super) fn after(removed: Removed) -> Self {
        Self {
            advertiser: Advertiser::after(removed),
            sockets: Bridged::default(),
        }
    }

    /// What is being taken back.
    pub(super) const fn removed(&self) -> &Removed {
        self.advertiser.removed()
    }

    /// Says this from now on; `None` says farewell.
    pub(super) fn configure(&mut self, now: Time, scope: Option<Scope>, bridge: IfName) {
        let wanted = scope.is_some().then_some(bridge);
        let farewells = self.advertiser.configure(now, scope);
        if let Some(packets) = self.sockets.packets() {
            let frames = farewells.iter().map(|last| last.frame(packets.mac()));
            packets.send(&frames.collect::<Vec<_>>());
        }
        self.sockets.want(wanted);
    }

    /// Opens what should be open: `Ok(true)` if there is a new socket.
    pub(super) fn open(&mut self) -> io::Result<bool> {
        self.sockets.open(|bridge, index| {
            let group = super::join(ALL_ROUTERS, index, 0)
                .inspect_err(|error| tracing::debug!(%bridge, %error, "not of the routers' group"));
            Ok((PacketSocket::solicitations(bridge)?, group.ok()))
        })
    }

    /// Answers the solicitations that wait.
    pub(super) fn read(&mut self, now: Time, inbox: &mut Inbox) {
        let advertiser = &mut self.advertiser;
        self.sockets.read(BATCHES, inbox, |bytes, checked, ours, answers| {
            let Some(from) = Solicitation::parse(bytes, checked) else {
                return;
            };
            let answer = advertiser.solicited(now, &from);
            tracing::trace!(mac = %from.mac, address = %from.address, ok = answer.is_ok(), "solicitation");
            answers.extend(answer.ok().flatten().map(|a| a.frame(ours)));
        });
    }

    /// How many advertisements went out.
    pub(super) const fn sent(&self) -> u64 {
        self.advertiser.sent()
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        self.sockets.packets().and(self.advertiser.next_due())
    }

    /// Sends the advertisement that is due, if one is.
    pub(super) fn poll(&mut self, now: Time) {
        let Some(packets) = self.sockets.packets() else {
            return;
        };
        let random = RandomState::new().build_hasher().finish();
        if let Some(advertisement) = self.advertiser.poll(now, random) {
            packets.send(&[advertisement.frame(packets.mac())]);
        }
    }
}
