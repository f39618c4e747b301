//! What a client is told: which options, in which order, and where the reply goes.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use super::message::{Head, encode};
use super::scope::Subnet;
use super::search::compressed;
use super::{Message, MessageType, Sender, code};
use crate::model::{Booting, Reservation4};
use crate::types::{DomainName, Mac, PortName};

/// RFC 4702: the name is in DNS encoding.
pub(super) const FQDN_E: u8 = 0x04;
const FQDN_S: u8 = 0x01;
const FQDN_O: u8 = 0x02;
const FQDN_N: u8 = 0x08;
/// What a client that names no size takes: 576 bytes of IP (RFC 2131 section 2).
const DEFAULT_SIZE: u16 = 576;
/// IP and UDP headers, which option 57 counts.
const HEADERS: usize = 28;

/// What HTTP boot of UEFI is known by.
const HTTP_CLIENT: &[u8] = b"HTTPClient";
/// What all network boot is known by.
const PXE_CLIENT: &[u8] = b"PXEClient";
/// The longest names that the fixed fields `file` and `sname` hold, with their zeros.
const LONGEST_FILE: usize = 127;
const LONGEST_SNAME: usize = 63;

/// What a booting client is told besides.
struct Boot<'a> {
    server: Ipv4Addr,
    file: Cow<'a, [u8]>,
    sname: Cow<'a, [u8]>,
    options: Vec<(u8, Cow<'a, [u8]>)>,
}

/// A reply, ready to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What it is.
    pub kind: MessageType,
    /// The packet's source: the address of ours that was written to, or the one in the client's subnet.
    pub from: Ipv4Addr,
    /// Where it goes.
    pub to: Destination,
    /// The UDP payload.
    pub bytes: Vec<u8>,
    /// Options that the size which the client takes has no room for.
    pub left_out: Vec<u8>,
}

/// Where a reply goes (RFC 2131 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To every station of the link, port 68.
    Broadcast,
    /// To one station of the link, port 68; it may not know yet that the address is its own, so nobody can ask
    /// for it by ARP.
    Client(Mac, Ipv4Addr),
    /// To the relay, port 67.
    Relay(Ipv4Addr),
}

/// Who we are to a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Us {
    /// The packet's source.
    pub(super) from: Ipv4Addr,
    /// Option 54, which a client writes back to.
    pub(super) id: Ipv4Addr,
}

/// What a reply is made of.
pub(super) struct Draft<'a> {
    pub(super) kind: MessageType,
    pub(super) us: Us,
    pub(super) subnet: &'a Subnet,
    pub(super) host: Option<&'a Reservation4>,
    /// The client's: what it is given, or (INFORM) what it says it has.
    pub(super) address: Ipv4Addr,
    /// Seconds; `None` for what is not a lease (INFORM).
    pub(super) lease: Option<u32>,
    /// The name that the client has by us.
    pub(super) name: Option<&'a PortName>,
    pub(super) domain: Option<&'a DomainName>,
    pub(super) rapid: bool,
}

impl Draft<'_> {
    pub(super) fn reply(&self, message: &Message<'_>, from: &Sender) -> Reply {
        let mut options = vec![
            own(code::MESSAGE_TYPE, &[self.kind.to_wire()]),
            own(code::SERVER_ID, &self.us.id.octets()),
        ];
        if let Some(seconds) = self.lease {
            options.push(own(code::LEASE_TIME, &seconds.to_be_bytes()));
            let (t1, t2) = self.timers(seconds);
            options.push(own(code::T1, &t1.to_be_bytes()));
            options.push(own(code::T2, &t2.to_be_bytes()));
        }
        if self.rapid {
            options.push((code::RAPID_COMMIT, Cow::Borrowed(&[])));
        }
        // PXE 2.1 section 2.2: the machine's identifier comes back.
        let said = |code| message.option(code).unwrap_or_default();
        if said(code::VENDOR_CLASS).starts_with(PXE_CLIENT) && !said(code::MACHINE).is_empty() {
            options.push((code::MACHINE, Cow::Borrowed(said(code::MACHINE))));
        }
        let boot = self.boot(message).or_else(|| self.plain_boot());
        if let Some(boot) = &boot {
            options.extend(boot.options.iter().cloned());
        }
        self.ask(&mut options, code::SUBNET_MASK);
        for wanted in message.option(code::PARAMETERS).unwrap_or(DEFAULTS) {
            self.ask(&mut options, *wanted);
        }
        for code in &self.subnet.always {
            self.ask(&mut options, *code);
        }
        if let Some(fqdn) = self.fqdn(message) {
            options.push((code::FQDN, Cow::Owned(fqdn)));
        }
        let head = Head {
            yiaddr: match self.lease {
                Some(_) => self.address,
                None => Ipv4Addr::UNSPECIFIED,
            },
            siaddr: boot.as_ref().map_or(self.subnet.gateway, |b| b.server),
            file: boot.as_ref().map_or(&[], |b| &b.file),
            sname: boot.as_ref().map_or(&[], |b| &b.sname),
            ciaddr: message.ciaddr,
            ..head(message)
        };
        let (bytes, left_out) = encode(&head, &options, &echoed(message), most(message));
        Reply {
            kind: self.kind,
            from: self.us.from,
            to: self.destination(message, from),
            bytes,
            left_out,
        }
    }

    /// What the client boots, if the subnet has something for it. A reservation's own options win.
    fn boot<'a>(&'a self, message: &Message<'_>) -> Option<Boot<'a>> {
        let said = |code| message.option(code).unwrap_or_default();
        let machine = Booting {
            arch: said(code::ARCH),
            vendor_class: said(code::VENDOR_CLASS),
            user_class: said(code::USER_CLASS),
        };
        let (file, server) = self.subnet.boot.as_ref()?.choose(&machine)?;
        let server = server.unwrap_or(self.subnet.gateway);
        let own_file = self.value(code::BOOT_FILE).filter(|f| !f.is_empty());
        let file = own_file.unwrap_or(Cow::Borrowed(file.as_bytes()));
        let mut options = Vec::new();
        // UEFI takes an offer for HTTP boot only from a server that says the word back.
        let is_http = machine.vendor_class.starts_with(HTTP_CLIENT);
        if is_http && self.value(code::VENDOR_CLASS).is_none() {
            options.push(own(code::VENDOR_CLASS, HTTP_CLIENT));
        }
        let parameters = message.option(code::PARAMETERS).unwrap_or_default();
        if parameters.contains(&code::TFTP_SERVER) && self.value(code::TFTP_SERVER).is_none() {
            options.push(own(code::TFTP_SERVER, server.to_string().as_bytes()));
        }
        // The fixed field holds 127 bytes: what is longer goes as an option, asked for or not.
        let fits = file.len() <= LONGEST_FILE;
        if parameters.contains(&code::BOOT_FILE) || !fits {
            options.push((code::BOOT_FILE, file.clone()));
        }
        Some(Boot {
            server,
            file: if fits { file } else { Cow::Borrowed(&[]) },
            sname: Cow::Borrowed(&[]),
            options,
        })
    }

    /// Boot said by options 66 and 67 alone: firmware that reads only the fixed fields is told there.
    fn plain_boot(&self) -> Option<Boot<'_>> {
        let told = |code| self.value(code).filter(|v| !v.is_empty());
        let (name, file) = (told(code::TFTP_SERVER), told(code::BOOT_FILE));
        if name.is_none() && file.is_none() {
            return None;
        }
        // A name is the client's to look up: no address then.
        let address = |name: &Cow<'_, [u8]>| std::str::from_utf8(name).ok()?.parse().ok();
        let server = name.as_ref().map_or(Some(self.subnet.gateway), address);
        let within = |longest: usize| move |field: &Cow<'_, [u8]>| field.len() <= longest;
        Some(Boot {
            server: server.unwrap_or(Ipv4Addr::UNSPECIFIED),
            file: file.filter(within(LONGEST_FILE)).unwrap_or_default(),
            sname: name.filter(within(LONGEST_SNAME)).unwrap_or_default(),
            options: Vec::new(),
        })
    }

    /// Adds an option that the client asked for, once, if there is one.
    fn ask<'a>(&'a self, options: &mut Vec<(u8, Cow<'a, [u8]>)>, wanted: u8) {
        if options.iter().any(|(code, _)| *code == wanted) {
            return;
        }
        if wanted == code::HOST_NAME
            && let Some(name) = self.name
        {
            options.push((wanted, Cow::Borrowed(name.as_str().as_bytes())));
            return;
        }
        // Microsoft's number for the classless routes of RFC 3442.
        let source = if wanted == code::MS_ROUTES {
            code::ROUTES
        } else {
            wanted
        };
        let data = self.value(wanted).or_else(|| self.value(source));
        // What the document leaves empty is not told.
        let Some(data) = data.filter(|data| !data.is_empty()) else {
            return;
        };
        let short = (wanted == code::SEARCH)
            .then(|| compressed(&data))
            .flatten();
        options.push((wanted, short.map_or(data, Cow::Owned)));
    }

    /// The reservation's value of an option, else its range's, else the subnet's.
    fn value(&self, wanted: u8) -> Option<Cow<'_, [u8]>> {
        let own = self.host.map_or(&[][..], |h| &h.options);
        let special = self.subnet.special_of(self.address);
        let special = special.map_or(&[][..], |s| &s.options);
        match own.iter().chain(special).find(|o| o.code == wanted) {
            Some(option) => Some(Cow::Borrowed(&option.data)),
            None => self
                .subnet
                .options
                .get(&wanted)
                .map(|d| Cow::Borrowed(d.as_slice())),
        }
    }

    /// T1 and T2: the document's if they fit the lease, else half and seven eighths (RFC 2131 section 4.4.5).
    fn timers(&self, lease: u32) -> (u32, u32) {
        let said = |code| {
            let data = self.value(code)?;
            Some(u32::from_be_bytes(data.as_ref().try_into().ok()?))
        };
        if lease == u32::MAX {
            return (u32::MAX, u32::MAX);
        }
        let t2 = said(code::T2)
            .filter(|t| *t < lease)
            .unwrap_or(lease - lease / 8);
        let t1 = said(code::T1).filter(|t| *t < t2).unwrap_or(lease / 2);
        (t1.min(t2), t2)
    }

    /// RFC 4702 section 4: we keep the names (S), say so where the client meant to (O), in the client's encoding. A name
    /// that it cannot have is kept by nobody (N), and not said again.
    fn fqdn(&self, message: &Message<'_>) -> Option<Vec<u8>> {
        let flags = *message.option(code::FQDN)?.first()?;
        let Some(name) = self.name else {
            let override_ = if flags & FQDN_S == 0 { 0 } else { FQDN_O };
            return Some(vec![FQDN_N | override_ | (flags & FQDN_E), 255, 255]);
        };
        let name = match self.domain {
            Some(domain) => domain.child(name.as_str()).ok()?,
            None => name.clone().into(),
        };
        let override_ = if flags & FQDN_S == 0 { FQDN_O } else { 0 };
        let mut out = vec![FQDN_S | override_ | (flags & FQDN_E), 255, 255];
        if flags & FQDN_E == 0 {
            out.extend_from_slice(name.as_str().as_bytes());
            return Some(out);
        }
        for label in name.as_str().split('.') {
            out.push(u8::try_from(label.len()).ok()?);
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
        Some(out)
    }

    fn destination(&self, message: &Message<'_>, from: &Sender) -> Destination {
        if message.giaddr != Ipv4Addr::UNSPECIFIED {
            return Destination::Relay(message.giaddr);
        }
        // Who has its address may write from another link, through a router: the frame came from there.
        let has_address = message.ciaddr != Ipv4Addr::UNSPECIFIED || self.lease.is_none();
        let (station, broadcast) = match has_address {
            true => (from.mac.or(message.mac()), false),
            false => (message.mac(), message.broadcast),
        };
        let to = match message.ciaddr {
            Ipv4Addr::UNSPECIFIED => self.address,
            ciaddr => ciaddr,
        };
        match station {
            Some(mac) if !broadcast && to != Ipv4Addr::UNSPECIFIED => Destination::Client(mac, to),
            Some(_) | None => Destination::Broadcast,
        }
    }
}

/// What a client gets that sends no list.
const DEFAULTS: &[u8] = &[
    code::ROUTER,
    code::DNS,
    code::HOST_NAME,
    code::DOMAIN,
    code::MTU,
    code::BROADCAST,
];

/// A refusal: nothing but the server's name and the reason (RFC 2131 table 3), to everybody on the link, since the
/// client's address is what is wrong (section 4.1); through a relay with the broadcast bit (section 4.3.2).
pub(super) fn nak(message: &Message<'_>, us: Us, why: &str) -> Reply {
    let options = [
        own(code::MESSAGE_TYPE, &[MessageType::Nak.to_wire()]),
        own(code::SERVER_ID, &us.id.octets()),
        own(code::MESSAGE, why.as_bytes()),
    ];
    let relayed = message.giaddr != Ipv4Addr::UNSPECIFIED;
    let head = Head {
        broadcast: message.broadcast || relayed,
        ..head(message)
    };
    let (bytes, left_out) = encode(&head, &options, &echoed(message), most(message));
    Reply {
        kind: MessageType::Nak,
        from: us.from,
        to: if relayed {
            Destination::Relay(message.giaddr)
        } else {
            Destination::Broadcast
        },
        bytes,
        left_out,
    }
}

/// What every reply ends with: the subnet that the client chose (RFC 3011 section 3), its identifier (RFC 6842
/// section 3) and the relay's information, last (RFC 3046 section 2.2).
fn echoed<'a>(message: &'a Message<'_>) -> Vec<(u8, Cow<'a, [u8]>)> {
    let relayed = message.giaddr != Ipv4Addr::UNSPECIFIED;
    [code::SUBNET_SELECTION, code::CLIENT_ID, code::RELAY]
        .into_iter()
        .filter(|code| *code != code::RELAY || relayed)
        .filter_map(|code| Some((code, Cow::Borrowed(message.option(code)?))))
        .collect()
}

fn head(message: &Message<'_>) -> Head<'static> {
    Head {
        htype: message.htype,
        hlen: message.hlen,
        xid: message.xid,
        broadcast: message.broadcast,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: message.giaddr,
        chaddr: message.chaddr,
        file: &[],
        sname: &[],
    }
}

fn most(message: &Message<'_>) -> usize {
    let size = message.u16(code::MAX_SIZE).unwrap_or(DEFAULT_SIZE);
    usize::from(size.clamp(DEFAULT_SIZE, 1500)) - HEADERS
}

fn own<'a>(code: u8, data: &[u8]) -> (u8, Cow<'a, [u8]>) {
    (code, Cow::Owned(data.to_vec()))
}
