//! Traces of router advertisements by clause of the RFCs: `tests/cases/ra/*.txt`. `UPDATE=1` writes what is said into
//! them.
//!
//! ```text
//! # RFC 4861 section 6.2.4: what the case is about
//! toml ... end                       the network (again: the network after a change)
//! stop                               the network ends
//! restart                            the daemon ends and begins, with what it kept on disk
//! + 600                              so many seconds pass; what is due in them is sent, spread as little as can be;
//!                                    with `last` only the last of it is told
//! rs 52:54:00:00:00:01 src=ADDRESS hops=N option=HEX code=N xN    a solicitation (so many of them), from the link-local
//!                                    address of the MAC unless it says otherwise
//! < +16 to ff02::1 ...               what follows: when it is sent, to whom and what; `again`: as it was last said
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test's own set-up is small and must not fail"
)]

mod replay;
mod stage;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv6Addr;

use vnet_core::dhcp::ra::{Advertisement, Advertiser, Scope, Solicitation};
use vnet_core::lease::Time;
use vnet_core::types::Mac;

use replay::replay;
use stage::{BEGIN, Stage};

const BRIDGE: Mac = Mac([0x52, 0x54, 0, 0, 0, 0xff]);
const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

#[test]
fn cases() {
    replay("ra", 8, |said| Case::default().play(said));
}

#[derive(Default)]
struct Case {
    stage: Stage,
    server: Advertiser,
    last: String,
}

impl Case {
    fn play(mut self, text: &str) -> String {
        stage::play(text, |line, document| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["toml"] => {
                    self.network(document);
                    self.pass(0)
                }
                ["stop"] => self.stop(),
                ["restart"] => self.restart(),
                ["+", seconds] => self.pass(seconds.parse().unwrap()),
                ["+", seconds, "last"] => {
                    let mut says = self.pass(seconds.parse().unwrap());
                    says.drain(..says.len().saturating_sub(1));
                    says
                }
                ["rs", ..] => self.solicitation(line),
                _ => panic!("what is `{line}`?"),
            }
        })
    }

    fn network(&mut self, document: &str) {
        self.stage.network(document, BRIDGE);
        self.advertise();
    }

    fn advertise(&mut self) {
        let scope = Scope::of(&self.stage.world, self.stage.name());
        assert!(scope.is_some());
        let farewells = self.server.configure(self.stage.time(), scope);
        assert!(farewells.is_empty());
    }

    fn stop(&mut self) -> Vec<String> {
        let farewells = self.server.configure(self.stage.time(), None);
        farewells.iter().map(|one| self.tell(0, one)).collect()
    }

    fn restart(&mut self) -> Vec<String> {
        let kept = serde_json::to_vec(self.server.removed()).unwrap();
        self.server = Advertiser::after(serde_json::from_slice(&kept).unwrap());
        self.advertise();
        self.pass(0)
    }

    fn pass(&mut self, seconds: u64) -> Vec<String> {
        let (began, end) = (self.stage.now, self.stage.now + seconds);
        let mut says = Vec::new();
        while let Some(due) = self.server.next_due() {
            let due = due.secs() - BEGIN;
            if due > end {
                break;
            }
            if due > self.stage.now {
                let early = Time(self.stage.time().0.max(Time::from_secs(BEGIN + due).0 - 1));
                assert_eq!(self.server.poll(early, 0), None, "before it is due");
            }
            self.stage.now = due.max(self.stage.now);
            let said = self.server.poll(self.stage.time(), 0).expect("it is due");
            says.push(self.tell(self.stage.now - began, &said));
        }
        self.stage.now = end;
        says
    }

    fn solicitation(&mut self, line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let count = words.iter().find_map(|w| w.strip_prefix('x'));
        let frame = solicit(&words);
        let now = self.stage.time();
        let Some(from) = Solicitation::parse(&frame, false) else {
            return vec!["no solicitation".to_owned()];
        };
        let Some(count) = count else {
            return match self.server.solicited(now, &from) {
                Err(reason) => vec![format!("ignored {reason:?}")],
                Ok(Some(answer)) => vec![self.tell(0, &answer)],
                Ok(None) => {
                    let due = self.server.next_due().unwrap();
                    vec![format!("to all, in {} s", due.secs() - now.secs())]
                }
            };
        };
        let mut counts = BTreeMap::<String, u32>::new();
        for _ in 0..count.parse::<u32>().unwrap() {
            let answer = self.server.solicited(now, &from);
            let word = answer.map_or_else(|why| format!("ignored {why:?}"), |_| "answered".into());
            *counts.entry(word).or_default() += 1;
        }
        let told = |(word, n)| format!("{n} times {word}");
        counts.into_iter().map(told).collect()
    }

    fn tell(&mut self, after: u64, said: &Advertisement) -> String {
        let (to, text) = told(&said.frame(BRIDGE));
        let again = text == self.last;
        let what = if again { " again" } else { &text };
        let told = format!("+{after} to {to}{what}");
        self.last = text;
        told
    }
}

/// A solicitation as a frame.
fn solicit(words: &[&str]) -> Vec<u8> {
    let mac: Mac = words[0].parse().unwrap();
    let (mut source, mut hops, mut code) = (mac.link_local(), 255, 0);
    let mut options = Vec::new();
    for word in &words[1..] {
        match word.split_once('=') {
            Some(("src", value)) => source = value.parse().unwrap(),
            Some(("hops", value)) => hops = value.parse().unwrap(),
            Some(("code", value)) => code = value.parse().unwrap(),
            Some(("option", value)) => options = unhex(value),
            Some(_) => panic!("what is `{word}`?"),
            None => assert!(word.starts_with('x'), "what is `{word}`?"),
        }
    }
    let to: Ipv6Addr = "ff02::2".parse().unwrap();
    let mut body = vec![133, code, 0, 0, 0, 0, 0, 0];
    body.extend(options);
    let sum = checksum(source, to, &body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 2];
    frame.extend(mac.0);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((body.len() as u16).to_be_bytes());
    frame.extend([58, hops]);
    frame.extend(source.octets());
    frame.extend(to.octets());
    frame.extend(body);
    frame
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |d: &[u8]| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

/// RFC 4443 section 2.3.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u16 {
    let mut all = from.octets().to_vec();
    all.extend(to.octets());
    all.extend((body.len() as u32).to_be_bytes());
    all.extend([0, 0, 0, 58]);
    all.extend(body);
    all.resize(all.len().next_multiple_of(2), 0);
    let words = all
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn address(bytes: &[u8]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..bytes.len()].copy_from_slice(bytes);
    octets.into()
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |n, b| n << 8 | u32::from(*b))
}

/// An advertisement's frame: to whom, and its contents in words.
fn told(frame: &[u8]) -> (Ipv6Addr, String) {
    let (ip, body) = (&frame[14..54], &frame[54..]);
    let (from, to) = (address(&ip[8..24]), address(&ip[24..40]));
    assert_eq!((from, ip[7]), (BRIDGE.link_local(), 255), "RFC 4861 4.2");
    assert_eq!(checksum(from, to, body), 0);
    assert_eq!(body[..2], [134, 0]);
    let flags = [
        "reserved", "reserved", "reserved", "low", "high", "home", " O", " M",
    ];
    let flag = |bit: usize| {
        if body[5] >> bit & 1 == 1 {
            flags[bit]
        } else {
            ""
        }
    };
    let preference = match body[5] >> 3 & 3 {
        0 => "",
        1 => " high",
        3 => " low",
        _ => " reserved",
    };
    let lifetime = number(&body[6..8]);
    let mut text = format!(" router {lifetime}{}{}{preference}", flag(7), flag(6));
    assert_eq!(body[4], 64);
    let mut rest = &body[16..];
    while let [kind, len, ..] = rest {
        let (option, after) = rest.split_at(usize::from(*len) * 8);
        let _ = write!(text, "\n<   {}", one(*kind, option));
        rest = after;
    }
    assert!(rest.is_empty());
    (to, text)
}

fn one(kind: u8, o: &[u8]) -> String {
    let names = |mut data: &[u8]| {
        let (mut text, mut dot) = (String::new(), ' ');
        while let [len, rest @ ..] = data {
            let (label, rest) = rest.split_at(usize::from(*len));
            if !label.is_empty() {
                let _ = write!(text, "{dot}{}", label.escape_ascii());
            }
            dot = if label.is_empty() { ' ' } else { '.' };
            data = rest;
        }
        text
    };
    match kind {
        1 => format!("source {}", Mac(o[2..8].try_into().unwrap())),
        3 => {
            let flags = [
                (0x80, " on-link"),
                (0x40, " autonomous"),
                (0x3f, " reserved"),
            ];
            let flags = flags.iter().filter(|(bit, _)| o[3] & bit != 0);
            let flags: String = flags.map(|(_, word)| *word).collect();
            let (valid, preferred) = (number(&o[4..8]), number(&o[8..12]));
            let net = address(&o[16..32]);
            format!(
                "prefix {net}/{}{flags} valid {valid} preferred {preferred}",
                o[2]
            )
        }
        5 => format!("mtu {}", number(&o[4..8])),
        24 => format!(
            "route {}/{} for {}",
            address(&o[8..]),
            o[2],
            number(&o[4..8])
        ),
        25 => {
            let all = o[8..].chunks(16).map(|a| format!(" {}", address(a)));
            format!(
                "resolvers for {}{}",
                number(&o[4..8]),
                all.collect::<String>()
            )
        }
        31 => format!("search for {}{}", number(&o[4..8]), names(&o[8..])),
        37 => {
            let uri = String::from_utf8_lossy(&o[2..]);
            format!("portal {}", uri.trim_end_matches('\0'))
        }
        38 => {
            let (word, net) = (number(&o[2..4]), address(&o[4..16]));
            format!(
                "pref64 {net} length code {} for {}",
                word & 7,
                (word >> 3) * 8
            )
        }
        _ => panic!("an option {kind}"),
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        flips in proptest::collection::vec((0usize..80, proptest::prelude::any::<u8>()), 0..12),
        cut in 0usize..80,
    ) {
        let mut frame = solicit(&[&GUEST.to_string(), "option=0101525400000001"]);
        for (at, byte) in flips {
            if let Some(slot) = frame.get_mut(at) {
                *slot = byte;
            }
        }
        frame.truncate(cut);
        let _ = Solicitation::parse(&frame, true);
        let _ = Solicitation::parse(&frame, false);
    }
}
