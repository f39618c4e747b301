//! What guests ask and upstreams say.

use std::sync::LazyLock;

use hickory_proto::op::Message;

use crate::dns::h2::Session;
use crate::dns::{Checked, Directory, Effect, From, Limits, Resolver, Way, Zone};

const WORLD: &str = r#"
[[network]]
name = "lab"
bridge.name = "br1"
domain.name = "lab.test"
subnet = [{ address = "10.94.1.1/24" }, { address = "fd94:1::1/64" }]
[network.dns]
rebind_protection = true
host = [{ ip = "10.94.1.9", names = ["web", "www.lab.test"] }]
record = [
  { name = "_http._tcp", type = "SRV", value = "0 5 80 web" },
  { name = "*.apps", type = "A", value = "10.94.1.7" },
  { name = "cdn", type = "CNAME", value = "example.com." },
]
upstream = [{ address = "192.0.2.53" }, { address = "192.0.2.54", domain = "corp.test" }]
[[network]]
name = "safe"
bridge.name = "br2"
domain.name = "safe.test"
subnet = [{ address = "10.94.2.1/24" }]
[network.dns]
dnssec = "validate"
upstream = [{ address = "192.0.2.53" }]
"#;

/// `example.com A`, as a guest asks it.
const QUESTION: &[u8] =
    b"\0\x4d\x01\0\0\x01\0\0\0\0\0\x01\x07example\x03com\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\x80\0\0\0";
/// Where its question ends.
const ASKED: usize = 12 + 13 + 4;

static ZONES: LazyLock<Vec<Zone>> = LazyLock::new(|| {
    let world = super::world(WORLD);
    let zones = world.networks.keys().map(|name| Zone::of(&world, name));
    zones.map(|zone| zone.expect("it answers")).collect()
});

/// A resolver with its clock and its dice.
struct Host {
    resolver: Resolver,
    now: u64,
    seed: u64,
}

impl Host {
    fn new() -> Self {
        let mut directory = Directory::new(Some("box".parse().expect("a name")));
        for zone in ZONES.iter() {
            directory.put(zone.clone());
        }
        Self {
            resolver: Resolver::new(directory, Limits::default()),
            now: 1_000,
            seed: 1,
        }
    }

    fn ask(&mut self, network: &str, way: Way, message: &[u8]) -> Vec<u8> {
        let name = network.parse().expect("a name");
        let from = From {
            network: self.resolver.directory().id(&name).expect("it is there"),
            address: [10, 94, 1, 50].into(),
            host: false,
        };
        let (mut out, seed) = (Vec::new(), &mut self.seed);
        let dice = &mut || next(seed);
        self.resolver
            .handle(self.now, dice, &from, way, message, &mut out);
        out
    }

    /// Whatever an upstream is asked, it says `message`: as it is, and with the number and the case that are believed.
    fn upstreams_say(&mut self, message: &[u8]) {
        while let Some(effect) = self.resolver.effect() {
            let (now, seed) = (self.now, &mut self.seed);
            let dice = &mut || next(seed);
            match effect {
                Effect::Send {
                    server,
                    lane,
                    message: asked,
                    ..
                } => {
                    self.resolver.receive(now, dice, server, lane, message);
                    let forged = forged(message, &asked);
                    self.resolver.receive(now, dice, server, lane, &forged);
                }
                Effect::Stream {
                    server,
                    ticket,
                    message: asked,
                    ..
                } => {
                    let forged = forged(message, &asked);
                    let said = Some(&*forged);
                    self.resolver.stream_answer(now, dice, server, ticket, said);
                }
                Effect::Check(question) => {
                    let outcome = Checked::Proven {
                        secure: true,
                        ttl: 60,
                        message: forged(message, QUESTION),
                    };
                    self.resolver.checked(now, question.ticket, outcome);
                }
            }
        }
    }

    /// Time passes until nothing is due.
    fn wait(&mut self) {
        let end = self.now + 10_000;
        while let Some(due) = self.resolver.due().filter(|due| *due <= end) {
            self.now = due;
            let seed = &mut self.seed;
            self.resolver.tick(due, &mut || next(seed));
        }
        assert_eq!(self.resolver.due(), None, "every question ends");
    }
}

fn next(seed: &mut u64) -> u64 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *seed ^ *seed >> 29
}

/// A message with the number of another, and its question as far as it is long enough for that.
fn forged(message: &[u8], asked: &[u8]) -> Vec<u8> {
    let mut forged = message.to_vec();
    for at in (0..2).chain(12..ASKED) {
        if let (Some(to), Some(from)) = (forged.get_mut(at), asked.get(at)) {
            *to = *from;
        }
    }
    forged
}

/// A message as a question of a guest's, over UDP and over TCP, and as what an upstream says to one.
pub(super) fn messages(bytes: &[u8]) -> usize {
    let mut host = Host::new();
    let client = "10.94.1.50:4000".parse().expect("an address");
    let mut understood = 0;
    for way in [Way::Udp(0, client), Way::Tcp(0, 0)] {
        let reply = host.ask("lab", way, bytes);
        if !reply.is_empty() {
            let read = Message::from_vec(&reply);
            assert!(read.is_ok(), "{reply:02x?}");
            assert_eq!(reply.get(..2), bytes.get(..2));
            understood += 1;
        }
        host.upstreams_say(bytes);
    }
    for network in ["lab", "safe"] {
        let way = Way::Udp(0, client);
        host.ask(network, way, QUESTION);
        host.upstreams_say(bytes);
        host.wait();
        // From the cache, if that was an answer.
        host.now += 1_000;
        understood += usize::from(!host.ask(network, way, QUESTION).is_empty());
        host.upstreams_say(bytes);
        host.wait();
    }
    host.resolver.replies().for_each(drop);
    understood
}

/// What a server of DNS over HTTPS says to two questions: in one piece and byte by byte the same comes of it.
pub(super) fn http2(bytes: &[u8]) -> usize {
    let session = || {
        let mut session = Session::new("dns.example".to_owned(), "/dns-query".to_owned());
        session.ask(b"one");
        session.ask(b"two");
        session
    };
    let mut whole = session();
    let said = whole.take(bytes);
    let ended: Vec<_> = std::iter::from_fn(|| whole.ended()).collect();
    assert!(ended.len() <= 2 && whole.output().len() < 1 << 16);
    let mut pieces = session();
    let broken = bytes.iter().any(|byte| pieces.take(&[*byte]).is_err());
    assert_eq!(said.is_err(), broken);
    if !broken {
        let again: Vec<_> = std::iter::from_fn(|| pieces.ended()).collect();
        assert_eq!(ended, again);
    }
    ended.iter().filter(|(_, body)| body.is_some()).count()
}
