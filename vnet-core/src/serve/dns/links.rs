//! Whom the host asks, as systemd-resolved has it: resolvers of each link, and the domains whose names are asked there
//! (`resolvectl status`). Followed live, so that guests resolve what a VPN brings in the moment it connects.
//!
//! Guests' questions go to those resolvers directly, by the link they belong to, and not by systemd-resolved's stub:
//! then what we keep is known to be of those who were asked, one more cache is out of the way, and no question comes
//! back to us. The stub is asked when systemd-resolved knows nobody, or when it cannot be read.
//!
//! A thread of its own, because the bus is asked and waited for. systemd-resolved tells on the bus when resolvers
//! change; when only domains change it writes its files anew, so those are watched too.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tracing::{debug, info};

use super::bus::{Bus, Object, Reader, Writer};
use super::resolved::{MANAGER, RESOLVED, ours};
use crate::dns::Target;
use crate::model::{Endpoint, Transport};

/// Where systemd-resolved writes down what it knows.
const STATE: [&str; 2] = ["/run/systemd/resolve", "/run/systemd/resolve/netif"];
/// How often it is looked without any sign: while there is a bus that would give one, and while there is none.
const LOOK: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));
/// How long signs are gathered: a VPN that connects sets one thing after the other.
const GATHER: Duration = Duration::from_millis(20);
/// The most servers, domains and links that are taken.
const MOST: usize = 256;

const LINK: &str = "org.freedesktop.resolve1.Link";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// Where the stub of systemd-resolved listens.
const STUBS: [[u8; 4]; 2] = [[127, 0, 0, 53], [127, 0, 0, 54]];
const PLAIN: u16 = 53;
const TLS: u16 = 853;

/// What systemd-resolved knows: whom to ask in general, and about names under domains (the root is a domain too).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Links {
    pub(super) others: Vec<Target>,
    pub(super) domains: BTreeMap<String, Vec<Target>>,
}

/// The DNS thread's end.
pub(super) struct Watched {
    news: Receiver<Option<Links>>,
    bell: Arc<OwnedFd>,
    /// The watching thread ends when nobody holds this.
    _alive: Arc<()>,
    last: Option<Links>,
}

impl Watched {
    /// Starts watching.
    pub(super) fn start(bus: PathBuf) -> io::Result<Self> {
        let bell = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let alive = Arc::new(());
        let (sender, news) = channel();
        let watcher = Watcher {
            socket: bus,
            bus: None,
            files: inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok(),
            sender,
            bell: Arc::clone(&bell),
            alive: Arc::downgrade(&alive),
            last: None,
        };
        std::thread::Builder::new()
            .name("links".to_owned())
            .spawn(move || watcher.run())?;
        Ok(Self {
            news,
            bell,
            _alive: alive,
            last: None,
        })
    }

    /// What becomes readable when there are news.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.bell
    }

    /// Takes the news.
    pub(super) fn take(&mut self) {
        let _ = rustix::io::read(&*self.bell, &mut [0u8; 8]);
        if let Some(last) = self.news.try_iter().last() {
            self.last = last;
        }
    }

    /// What was heard last.
    pub(super) const fn known(&self) -> Option<&Links> {
        self.last.as_ref()
    }
}

/// Whom to ask in general, and about names under domains: what resolv.conf says is the host's word; where it says to
/// ask systemd-resolved, those are asked that it would ask.
pub(super) fn whom(
    resolv_conf: &[SocketAddr],
    links: Option<&Links>,
) -> (Vec<Target>, Vec<(String, Vec<Target>)>) {
    let written = resolv_conf.iter().map(|a| Endpoint::from(*a).into());
    let Some(links) = links else {
        return (written.collect(), Vec::new());
    };
    let its = |address: &SocketAddr| {
        let all = links.domains.values().flatten().chain(&links.others);
        let stub = STUBS.iter().any(|stub| address.ip() == IpAddr::from(*stub));
        stub || all
            .into_iter()
            .any(|t| t.endpoint.address.ip() == address.ip())
    };
    let mut domains = links.domains.clone();
    let managed = resolv_conf.iter().all(its);
    if !managed {
        domains.remove(".");
    }
    let others = if managed && !links.others.is_empty() {
        links.others.clone()
    } else {
        written.collect()
    };
    (others, domains.into_iter().collect())
}

/// The thread's own.
struct Watcher {
    socket: PathBuf,
    bus: Option<Bus>,
    files: Option<OwnedFd>,
    sender: Sender<Option<Links>>,
    bell: Arc<OwnedFd>,
    alive: Weak<()>,
    last: Option<Links>,
}

impl Watcher {
    fn run(mut self) {
        while self.alive.strong_count() > 0 {
            self.watch_files();
            let links = self.read().unwrap_or_else(|error| {
                debug!(%error, "systemd-resolved cannot be read");
                self.bus = None;
                None
            });
            if links != self.last {
                match &links {
                    Some(links) => info!(?links, "whom systemd-resolved asks"),
                    None => info!("systemd-resolved is not there any more"),
                }
                self.last.clone_from(&links);
                if self.sender.send(links).is_err() {
                    return;
                }
                let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
            }
            self.wait();
        }
    }

    /// Watching what is watched already is harmless; what is not there yet is watched when it is.
    fn watch_files(&self) {
        let Some(files) = &self.files else { return };
        let mut buffer = [0u8; 4096];
        while rustix::io::read(files, &mut buffer).is_ok_and(|got| got > 0) {}
        for folder in STATE {
            let signs = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
            let _ = inotify::add_watch(files, folder, signs);
        }
    }

    /// Until there is a sign, or it is time.
    fn wait(&mut self) {
        let fresh = self.bus.as_mut().is_some_and(Bus::heard);
        if !fresh {
            let bus = self.bus.as_ref().map(Bus::descriptor);
            let look = if bus.is_some() { LOOK.0 } else { LOOK.1 };
            let files = self.files.as_ref().map(rustix::fd::AsFd::as_fd);
            let both = bus.into_iter().chain(files);
            let mut all: Vec<PollFd<'_>> = both
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            let _ = poll(&mut all, Some(&timespec(look)));
        }
        std::thread::sleep(GATHER);
        if let Some(bus) = &mut self.bus
            && bus.pass_over().is_err()
        {
            self.bus = None;
        }
    }

    /// What systemd-resolved knows; `None` if there is none in our network.
    fn read(&mut self) -> io::Result<Option<Links>> {
        if self.bus.is_none() {
            if !self.socket.exists() {
                return Ok(None);
            }
            let mut bus = Bus::connect(&self.socket)?;
            bus.listen(&format!(
                "type='signal',sender='{RESOLVED}',interface='{PROPERTIES}',member='PropertiesChanged'"
            ))?;
            bus.listen(&format!(
                "type='signal',interface='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{RESOLVED}'"
            ))?;
            self.bus = Some(bus);
        }
        let Some(bus) = &mut self.bus else {
            return Ok(None);
        };
        let Some(owner) = bus.owner(RESOLVED)? else {
            return Ok(None);
        };
        let process = bus.process(&owner)?;
        if !ours(process) {
            return Ok(None);
        }
        links(bus).map(Some)
    }
}

fn timespec(duration: Duration) -> rustix::event::Timespec {
    rustix::event::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A server of a link; link 0 is all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    link: u32,
    address: IpAddr,
    port: u16,
    name: String,
}

/// How a link asks, and whether for names of no link's domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Manner {
    tls: bool,
    default: bool,
}

fn links(bus: &mut Bus) -> io::Result<Links> {
    let servers = match property(bus, MANAGER, "DNSEx", "a(iiayqs)") {
        Ok(reply) => servers(&mut reply.value(), true),
        // Before version 246 there were no ports.
        Err(e) if e.kind() == io::ErrorKind::Other => servers(
            &mut property(bus, MANAGER, "DNS", "a(iiay)")?.value(),
            false,
        ),
        Err(e) => return Err(e),
    };
    let servers = servers.ok_or(io::ErrorKind::InvalidData)?;
    let reply = property(bus, MANAGER, "Domains", "a(isb)")?;
    let domains = domains(&mut reply.value()).ok_or(io::ErrorKind::InvalidData)?;
    let mut manners = BTreeMap::new();
    for link in servers.iter().map(|s| s.link).take(MOST) {
        if let Entry::Vacant(vacant) = manners.entry(link) {
            vacant.insert(manner(bus, link)?);
        }
    }
    Ok(sorted(&servers, &domains, &manners))
}

fn manner(bus: &mut Bus, link: u32) -> io::Result<Manner> {
    let path = path(link);
    let of_link = Object {
        path: &path,
        interface: LINK,
        ..MANAGER
    };
    let object = if link == 0 { MANAGER } else { of_link };
    let read = |reply: io::Result<Value>| match reply {
        Ok(reply) => Ok(Some(reply)),
        // The link went, or this version does not know.
        Err(e) if e.kind() == io::ErrorKind::Other => Ok(None),
        Err(e) => Err(e),
    };
    let tls = read(property(bus, object, "DNSOverTLS", "s"))?;
    let tls = tls.is_some_and(|reply| reply.value().text() == Some("yes"));
    let default = match link {
        0 => true,
        _ => read(property(bus, object, "DefaultRoute", "b"))?
            .is_none_or(|reply| reply.value().u32() == Some(1)),
    };
    Ok(Manner { tls, default })
}

/// The path of a link's object: its number, whose first digit may not begin a name on the bus as it is.
fn path(link: u32) -> String {
    let digits = link.to_string();
    let (first, rest) = digits.split_at(1);
    format!("/org/freedesktop/resolve1/link/_3{first}{rest}")
}

/// A property's value.
struct Value(super::bus::Reply, usize);

impl Value {
    fn value(&self) -> Reader<'_> {
        self.0.reader().after(self.1)
    }
}

fn property(bus: &mut Bus, of: Object<'_>, name: &str, kind: &str) -> io::Result<Value> {
    let mut body = Writer::default();
    body.text(of.interface);
    body.text(name);
    let object = Object {
        interface: PROPERTIES,
        ..of
    };
    let reply = bus.call(object, "Get", "ss", &body)?;
    let mut reader = reply.reader();
    if reader.signature() != Some(kind) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let at = reader.at();
    Ok(Value(reply, at))
}

fn servers(reader: &mut Reader<'_>, ports: bool) -> Option<Vec<Server>> {
    let all = reader.array(8, |r| {
        let link = r.u32()?;
        let _family = r.u32()?;
        let octets = r.bytes()?;
        let (port, name) = if ports {
            (r.u16()?, r.text()?.to_owned())
        } else {
            (0, String::new())
        };
        let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
        let address = v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from));
        Some(address.ok().map(|address| Server {
            link,
            address,
            port,
            name,
        }))
    })?;
    Some(all.into_iter().flatten().take(MOST).collect())
}

fn domains(reader: &mut Reader<'_>) -> Option<Vec<(u32, String)>> {
    // Whether a domain is only for routing says nothing here: names under a search domain are asked there as well.
    let all = reader.array(8, |r| {
        let (link, name) = (r.u32()?, r.text()?.to_owned());
        r.u32()?;
        Some((link, name))
    })?;
    Some(all.into_iter().take(MOST).collect())
}

/// As systemd-resolved goes about it: names under a domain are asked of the links that have it, all others of those that
/// are good for that; a link without servers is not asked.
fn sorted(servers: &[Server], domains: &[(u32, String)], manners: &BTreeMap<u32, Manner>) -> Links {
    let of = |link: u32| {
        let tls = manners.get(&link).is_some_and(|m| m.tls);
        let own = servers.iter().filter(move |s| s.link == link);
        own.map(move |server| target(server, tls))
    };
    let mut links = Links::default();
    for (link, domain) in domains {
        let name = match domain.trim_end_matches('.') {
            "" => ".".to_owned(),
            name => name.to_ascii_lowercase(),
        };
        let mut own = of(*link).peekable();
        if own.peek().is_some() {
            add(links.domains.entry(name).or_default(), own);
        }
    }
    for (link, _) in manners.iter().filter(|(_, manner)| manner.default) {
        add(&mut links.others, of(*link));
    }
    links
}

fn add(list: &mut Vec<Target>, more: impl Iterator<Item = Target>) {
    for target in more {
        if !list.contains(&target) {
            list.push(target);
        }
    }
}

fn target(server: &Server, tls: bool) -> Target {
    let port = match server.port {
        0 if tls => TLS,
        0 => PLAIN,
        port => port,
    };
    let scoped = server.link != 0;
    let address = match server.address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            SocketAddrV6::new(v6, port, 0, server.link).into()
        }
        IpAddr::V4(_) | IpAddr::V6(_) => SocketAddr::new(server.address, port),
    };
    let transport = if tls {
        Transport::Tls {
            name: server.name.parse().ok(),
        }
    } else {
        Transport::Plain
    };
    Target {
        endpoint: Endpoint { address, transport },
        link: scoped.then_some(server.link),
    }
}

/// A message of the bus that may be an answer about resolvers or domains, whatever it says it is.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn fuzz(message: &[u8]) -> usize {
    let Some(body) = super::bus::body(message) else {
        return 0;
    };
    let mut reader = Reader::new(body);
    if reader.signature().is_none() {
        return 0;
    }
    let again = || Reader::new(body).after(reader.at());
    let found = servers(&mut again(), true).unwrap_or_default();
    let _ = servers(&mut again(), false);
    let domains = domains(&mut again()).unwrap_or_default();
    assert!(found.len() <= MOST && domains.len() <= MOST);
    let manner = Manner {
        tls: false,
        default: true,
    };
    let manners = found.iter().map(|server| (server.link, manner)).collect();
    let links = sorted(&found, &domains, &manners);
    assert!(links.others.len() <= found.len());
    found.len() + domains.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(link: u32, address: &str) -> Server {
        Server {
            link,
            address: address.parse().unwrap(),
            port: 0,
            name: String::new(),
        }
    }

    fn manner(default: bool) -> Manner {
        Manner {
            tls: false,
            default,
        }
    }

    fn said(targets: &[Target]) -> Vec<String> {
        let one = |t: &Target| format!("{} {}", t.endpoint, t.link.unwrap_or(0));
        targets.iter().map(one).collect()
    }

    /// An uplink and a VPN.
    fn two() -> Links {
        let servers = [
            server(2, "192.168.1.1"),
            server(7, "10.8.0.1"),
            server(7, "fe80::1"),
        ];
        let domains = [
            (7, "Corp.Example".to_owned()),
            (7, "8.10.in-addr.arpa".to_owned()),
            (9, "nobody.example".to_owned()),
        ];
        let manners = [(2, manner(true)), (7, manner(false))].into();
        sorted(&servers, &domains, &manners)
    }

    #[test]
    fn names_go_to_the_link_that_has_their_domain() {
        let stub = ["127.0.0.53:53".parse().unwrap()];
        let (others, domains) = whom(&stub, Some(&two()));
        assert_eq!(said(&others), ["192.168.1.1:53 2"]);
        let names: Vec<_> = domains.iter().map(|d| d.0.as_str()).collect();
        assert_eq!(names, ["8.10.in-addr.arpa", "corp.example"]);
        assert_eq!(said(&domains[1].1), ["10.8.0.1:53 7", "[fe80::1%7]:53 7"]);
    }

    #[test]
    fn a_link_that_wants_everything_has_it() {
        let mut links = two();
        let all = links.domains["corp.example"].clone();
        links.domains.insert(".".to_owned(), all);
        // As systemd-resolved's other file says it.
        let uplink = [
            "192.168.1.1:53".parse().unwrap(),
            "10.8.0.1:53".parse().unwrap(),
        ];
        let (others, domains) = whom(&uplink, Some(&links));
        assert_eq!(
            said(&others),
            ["192.168.1.1:53 2"],
            "if nobody of the others can be asked"
        );
        assert_eq!(domains[0].0, ".");
        assert_eq!(said(&domains[0].1), ["10.8.0.1:53 7", "[fe80::1%7]:53 7"]);
        let own = ["9.9.9.9:53".parse().unwrap()];
        assert_ne!(whom(&own, Some(&links)).1[0].0, ".");
    }

    #[test]
    fn a_file_of_the_hosts_own_is_the_hosts_word() {
        let own = ["9.9.9.9:53".parse().unwrap()];
        let (others, domains) = whom(&own, Some(&two()));
        assert_eq!(said(&others), ["9.9.9.9:53 0"]);
        assert_eq!(domains.len(), 2, "but domains of links are asked there");
        let (others, domains) = whom(&own, None);
        assert_eq!(
            (said(&others), domains),
            (vec!["9.9.9.9:53 0".to_owned()], Vec::new())
        );
        let stub = ["127.0.0.53:53".parse().unwrap()];
        let (others, _) = whom(&stub, Some(&Links::default()));
        assert_eq!(said(&others), ["127.0.0.53:53 0"], "it knows nobody");
    }

    #[test]
    fn a_link_that_asks_in_secret_is_asked_so() {
        let mut named = server(2, "9.9.9.9");
        named.name = "dns.quad9.net".to_owned();
        let manners = [(
            2,
            Manner {
                tls: true,
                default: true,
            },
        )]
        .into();
        let links = sorted(&[named], &[], &manners);
        assert_eq!(said(&links.others), ["tls://9.9.9.9:853#dns.quad9.net 2"]);
    }

    #[test]
    fn paths_of_links() {
        assert_eq!(path(3), "/org/freedesktop/resolve1/link/_33");
        assert_eq!(path(142), "/org/freedesktop/resolve1/link/_3142");
    }
}
