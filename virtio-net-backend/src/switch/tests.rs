//! The switch against a naive one that keeps everything in maps and looks at each rule in turn.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use vnet_core::types::Mac;

fn port(index: usize) -> PortIndex {
    PortIndex::new(index).unwrap()
}

fn ports(list: &[usize]) -> PortSet {
    list.iter().map(|index| port(*index)).collect()
}

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

const BROADCAST: Mac = Mac::BROADCAST;

/// A frame of a protocol that a guard lets pass: RARP.
fn frame(to: Mac, from: Mac) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    frame.extend([0x80, 0x35]);
    frame.resize(64, 0);
    frame
}

fn at(seconds: u64) -> Time {
    Time::from_nanos(seconds * 1_000_000_000)
}

fn guarded(macs: &[u8]) -> Port {
    Port {
        guard: Some(Guard::new(macs.iter().map(|last| mac(*last)))),
        ..Port::default()
    }
}

fn isolated() -> Port {
    Port {
        isolated: true,
        ..Port::default()
    }
}

fn switch(list: impl IntoIterator<Item = Port>) -> Switch {
    let mut switch = Switch::new(100, 1);
    for port in list {
        switch.attach(at(0), port).unwrap();
    }
    switch
}

#[test]
fn an_unknown_address_is_flooded_and_then_known() {
    let mut switch = switch([Port::default(), Port::default(), Port::default()]);
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(mac(2), mac(1))),
        Egress::Flood(ports(&[1, 2]))
    );
    assert_eq!(
        switch.ingress(at(0), port(1), &frame(mac(1), mac(2))),
        Egress::To(port(0))
    );
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(mac(2), mac(1))),
        Egress::To(port(1))
    );
    assert_eq!(
        switch.ingress(at(299), port(2), &frame(mac(2), mac(3))),
        Egress::To(port(1))
    );
    assert_eq!(
        switch.ingress(at(300), port(2), &frame(mac(2), mac(3))),
        Egress::Flood(ports(&[0, 1])),
        "after 300 s of silence"
    );
    assert_eq!(
        switch.ingress(at(300), port(0), &frame(mac(1), mac(1))),
        Egress::Drop(Reason::SamePort)
    );
}

#[test]
fn isolated_ports_reach_the_uplink_and_not_each_other() {
    let mut switch = switch([Port::uplink(), isolated(), isolated()]);
    assert_eq!(
        switch.ingress(at(0), port(1), &frame(BROADCAST, mac(1))),
        Egress::To(port(0))
    );
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(BROADCAST, mac(9))),
        Egress::Flood(ports(&[1, 2]))
    );
    assert_eq!(
        switch.ingress(at(0), port(2), &frame(mac(1), mac(2))),
        Egress::Drop(Reason::Isolated)
    );
    assert_eq!(
        switch.ingress(at(0), port(2), &frame(mac(9), mac(2))),
        Egress::To(port(0))
    );
    switch.detach(port(0));
    assert_eq!(
        switch.ingress(at(0), port(2), &frame(BROADCAST, mac(2))),
        Egress::Drop(Reason::NoReceiver)
    );
}

#[test]
fn a_guarded_address_is_known_before_it_speaks_and_cannot_be_taken() {
    let mut switch = switch([Port::default(), guarded(&[1]), Port::default()]);
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(mac(1), mac(9))),
        Egress::To(port(1))
    );
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(mac(9), mac(1))),
        Egress::Drop(Reason::MacPinned)
    );
    assert_eq!(
        switch.ingress(at(9999), port(2), &frame(mac(1), mac(2))),
        Egress::To(port(1)),
        "it does not age"
    );
    assert_eq!(
        switch.ingress(at(9999), port(2), &frame(mac(77), mac(2))),
        Egress::To(port(0)),
        "nothing unknown is there"
    );
    assert_eq!(
        switch.ingress(at(9999), port(1), &frame(mac(2), mac(3))),
        Egress::Drop(Reason::GuardMac)
    );
    switch.detach(port(1));
    assert_eq!(
        switch.ingress(at(9999), port(0), &frame(mac(2), mac(1))),
        Egress::To(port(2)),
        "free again"
    );
}

#[test]
fn an_address_that_two_guards_share_moves_between_the_two() {
    let mut switch = switch([Port::default(), guarded(&[1, 7]), guarded(&[2, 7])]);
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(mac(7), mac(9))),
        Egress::To(port(1))
    );
    assert_eq!(
        switch.ingress(at(0), port(2), &frame(mac(9), mac(7))),
        Egress::To(port(0))
    );
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(mac(7), mac(9))),
        Egress::To(port(2))
    );
    switch.detach(port(2));
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(mac(7), mac(9))),
        Egress::To(port(1)),
        "to the one that is left"
    );
}

#[test]
fn a_port_that_invents_addresses_fills_its_own_share_only() {
    let mut switch = Switch::new(100, 1);
    let hostile = switch
        .attach(
            at(0),
            Port {
                addresses: 10,
                ..Port::default()
            },
        )
        .unwrap();
    let honest = switch.attach(at(0), Port::default()).unwrap();
    for last in 0..=255 {
        assert!(matches!(
            switch.ingress(at(0), hostile, &frame(BROADCAST, mac(last))),
            Egress::To(_)
        ));
    }
    assert_eq!(switch.entries(at(0)).count(), 10);
    assert_eq!(switch.counters(hostile).unwrap().unlearned, 246);
    switch.ingress(at(0), honest, &frame(BROADCAST, Mac([2, 0, 0, 0, 0, 1])));
    assert_eq!(
        switch.ingress(at(0), hostile, &frame(Mac([2, 0, 0, 0, 0, 1]), mac(0))),
        Egress::To(honest)
    );
}

#[test]
fn nonsense_goes_nowhere_and_is_counted() {
    let mut switch = switch([Port::default(), Port::default()]);
    let cases = [
        (vec![0; 13], Reason::Runt),
        (vec![], Reason::Runt),
        (frame(mac(1), Mac([0; 6])), Reason::BadSource),
        (frame(mac(1), BROADCAST), Reason::BadSource),
        (
            frame(Mac([1, 0x80, 0xc2, 0, 0, 0]), mac(1)),
            Reason::Reserved,
        ),
        (
            frame(Mac([1, 0x80, 0xc2, 0, 0, 0xf]), mac(1)),
            Reason::Reserved,
        ),
    ];
    for (bytes, reason) in &cases {
        assert_eq!(switch.ingress(at(0), port(0), bytes), Egress::Drop(*reason));
    }
    assert_eq!(
        switch.ingress(
            at(0),
            port(0),
            &frame(Mac([1, 0x80, 0xc2, 0, 0, 0x10]), mac(1))
        ),
        Egress::To(port(1))
    );
    assert_eq!(
        switch.ingress(at(0), port(5), &frame(mac(1), mac(2))),
        Egress::Drop(Reason::NoPort)
    );
    let counters = switch.counters(port(0)).unwrap();
    assert_eq!(
        counters.dropped().map(|(_, count)| count).sum::<u64>(),
        cases.len() as u64
    );
    assert_eq!(
        (
            counters.sent_frames,
            switch.counters(port(1)).unwrap().received_frames
        ),
        (7, 1)
    );
}

#[test]
fn rates_hold_in_both_directions() {
    let slow = Limit {
        bytes: None,
        frames: Some(Rate {
            per_second: 1,
            burst: 2,
        }),
    };
    let mut switch = switch([
        Port::default(),
        Port {
            send: slow,
            ..Port::default()
        },
        Port {
            receive: slow,
            ..Port::default()
        },
    ]);
    let to_all = |switch: &mut Switch, from| {
        switch.ingress(at(0), port(from), &frame(BROADCAST, mac(from as u8)))
    };
    assert_eq!(to_all(&mut switch, 1), Egress::Flood(ports(&[0, 2])));
    assert_eq!(switch.send_wait(at(0), port(1)), Duration::ZERO);
    assert_eq!(to_all(&mut switch, 1), Egress::Flood(ports(&[0, 2])));
    assert_eq!(to_all(&mut switch, 1), Egress::Drop(Reason::RateIn));
    assert!(switch.send_wait(at(0), port(1)) > Duration::ZERO);
    assert_eq!(
        to_all(&mut switch, 0),
        Egress::To(port(1)),
        "port 2 has had its two"
    );
    switch.ingress(at(0), port(2), &frame(BROADCAST, mac(2)));
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(mac(2), mac(0))),
        Egress::Drop(Reason::RateOut)
    );
    assert_eq!(switch.counters(port(2)).unwrap().drops(Reason::RateOut), 2);
    assert_eq!(
        switch.counters(port(0)).unwrap().drops(Reason::RateOut),
        0,
        "it is the receiver's"
    );
    assert_eq!(
        switch.ingress(at(1), port(0), &frame(mac(2), mac(0))),
        Egress::To(port(2))
    );
}

#[test]
fn there_is_a_last_port_and_numbers_come_back() {
    let mut switch = switch((0..MAX_PORTS).map(|_| Port::default()));
    assert_eq!(switch.attach(at(0), Port::default()), None);
    assert!(switch.detach(port(17)).is_some());
    assert_eq!(switch.detach(port(17)), None);
    assert_eq!(switch.attach(at(0), Port::default()), Some(port(17)));
}

#[test]
fn a_port_changed_in_place_keeps_its_counters_and_forgets_its_addresses() {
    let mut switch = switch([Port::default(), Port::default(), Port::default()]);
    switch.ingress(at(0), port(1), &frame(BROADCAST, mac(1)));
    assert!(switch.configure(at(0), port(1), guarded(&[5])));
    assert_eq!(switch.counters(port(1)).unwrap().sent_frames, 1);
    assert_eq!(
        switch.ingress(at(0), port(1), &frame(BROADCAST, mac(1))),
        Egress::Drop(Reason::GuardMac)
    );
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(mac(5), mac(9))),
        Egress::To(port(1))
    );
    assert_eq!(
        switch.ingress(at(0), port(0), &frame(mac(1), mac(9))),
        Egress::To(port(2))
    );
    assert!(!switch.configure(at(0), port(9), Port::default()));
}

/// The reference: each rule as a sentence.
struct Naive {
    limit: usize,
    ports: BTreeMap<usize, (Option<Vec<Mac>>, bool, usize)>,
    learnt: BTreeMap<Mac, (usize, u64)>,
    pinned: BTreeMap<Mac, usize>,
}

impl Naive {
    fn attach(&mut self, guard: Option<Vec<Mac>>, isolated: bool, share: usize) {
        let index = (0..).find(|index| !self.ports.contains_key(index)).unwrap();
        self.ports.insert(index, (guard, isolated, share));
        self.pin();
    }

    fn detach(&mut self, index: usize) {
        self.ports.remove(&index);
        self.learnt.retain(|_, (port, _)| *port != index);
        self.pinned.retain(|_, port| *port != index);
        self.pin();
    }

    fn pin(&mut self) {
        for (index, (guard, ..)) in &self.ports {
            for mac in guard.iter().flatten() {
                self.pinned.entry(*mac).or_insert(*index);
                self.learnt.remove(mac);
            }
        }
    }

    fn ingress(&mut self, now: u64, from: usize, to: Mac, source: Mac) -> Egress {
        self.learnt.retain(|_, (_, seen)| now - *seen < 300);
        let Some((guard, isolated, share)) = self.ports.get(&from).cloned() else {
            return Egress::Drop(Reason::NoPort);
        };
        if guard.as_ref().is_some_and(|macs| !macs.contains(&source)) {
            return Egress::Drop(Reason::GuardMac);
        }
        match self.pinned.get_mut(&source) {
            Some(_) if guard.is_none() => return Egress::Drop(Reason::MacPinned),
            Some(owner) => *owner = from,
            None => {
                let mine = self
                    .learnt
                    .values()
                    .filter(|(port, _)| *port == from)
                    .count();
                let place = match self.learnt.get(&source) {
                    Some((port, _)) => *port == from || mine < share,
                    None => mine < share && self.learnt.len() < self.limit,
                };
                if place {
                    self.learnt.insert(source, (from, now));
                }
            }
        }
        let group = to.is_group();
        let place = self
            .pinned
            .get(&to)
            .copied()
            .or(self.learnt.get(&to).map(|(port, _)| *port));
        match place.filter(|_| !group) {
            Some(port) if port == from => Egress::Drop(Reason::SamePort),
            Some(port) if isolated && self.ports[&port].1 => Egress::Drop(Reason::Isolated),
            Some(index) => Egress::To(port(index)),
            None => {
                let all = self.ports.iter().filter(|(index, (guard, other, _))| {
                    **index != from && !(isolated && *other) && (group || guard.is_none())
                });
                let all: PortSet = all.map(|(index, _)| port(*index)).collect();
                let first = all.iter().next();
                match (first, all.len()) {
                    (None, _) => Egress::Drop(Reason::NoReceiver),
                    (Some(only), 1) => Egress::To(only),
                    _ => Egress::Flood(all),
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Attach {
        guard: Option<Vec<u8>>,
        isolated: bool,
        share: usize,
    },
    Detach(usize),
    Frame {
        from: usize,
        to: Option<u8>,
        source: u8,
    },
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guard = proptest::option::weighted(0.3, proptest::collection::vec(0u8..12, 1..3));
    let step = prop_oneof![
        2 => (guard, any::<bool>(), 0usize..5).prop_map(|(guard, isolated, share)| Step::Attach { guard, isolated, share }),
        1 => (0usize..8).prop_map(Step::Detach),
        20 => (0usize..8, proptest::option::weighted(0.9, 0u8..12), 0u8..12).prop_map(|(from, to, source)| Step::Frame { from, to, source }),
        1 => (1u64..400).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn it_does_what_the_naive_one_does(steps in steps(), limit in 1usize..12, seed: u64) {
        let mut switch = Switch::new(limit, seed);
        let mut naive = Naive { limit, ports: BTreeMap::new(), learnt: BTreeMap::new(), pinned: BTreeMap::new() };
        let mut now = 0;
        for step in steps {
            match step {
                Step::Attach { guard, isolated, share } => {
                    let macs = guard.as_ref().map(|macs| macs.iter().map(|last| mac(*last)).collect::<Vec<_>>());
                    naive.attach(macs.clone(), isolated, share);
                    let port = Port { guard: macs.map(Guard::new), isolated, addresses: share as u32, ..Port::default() };
                    prop_assert!(switch.attach(at(now), port).is_some());
                }
                Step::Detach(index) => {
                    naive.detach(index);
                    switch.detach(port(index));
                }
                Step::Frame { from, to, source } => {
                    let to = to.map_or(BROADCAST, mac);
                    let expected = naive.ingress(now, from, to, mac(source));
                    prop_assert_eq!(switch.ingress(at(now), port(from), &frame(to, mac(source))), expected);
                }
                Step::Wait(seconds) => now += seconds,
            }
            let mut table: Vec<_> = switch.entries(at(now)).map(|entry| (entry.mac, entry.port.index())).collect();
            table.sort_unstable();
            let live = naive.learnt.iter().filter(|(_, (_, seen))| now - seen < 300).map(|(mac, (port, _))| (*mac, *port));
            let mut expected: Vec<_> = live.chain(naive.pinned.iter().map(|(mac, port)| (*mac, *port))).collect();
            expected.sort_unstable();
            prop_assert_eq!(table, expected);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in prop_oneof![Just(0x800u16), Just(0x86dd), Just(0x806), Just(0x8100), any::<u16>()], own: bool) {
        let mut bytes = bytes;
        if bytes.len() > 14 {
            bytes[12..14].copy_from_slice(&kind.to_be_bytes());
            if own { bytes[6..12].copy_from_slice(&mac(1).0); }
        }
        let mut switch = switch([guarded(&[1]), Port::default()]);
        switch.ingress(at(0), port(0), &bytes);
        switch.ingress(at(0), port(1), &bytes);
    }
}

/// A port that may send so many bytes at once, and next to nothing after that.
fn limited(burst: u64) -> Port {
    Port {
        send: Limit {
            bytes: Some(Rate {
                per_second: 1,
                burst,
            }),
            frames: None,
        },
        ..Port::default()
    }
}

#[test]
fn the_same_terms_again_fill_no_bucket_and_forget_no_address() {
    let mut switch = switch([limited(200), Port::default(), Port::default()]);
    let sent = |switch: &mut Switch| switch.ingress(at(0), port(0), &frame(mac(2), mac(1)));
    while sent(&mut switch) != Egress::Drop(Reason::RateIn) {}
    assert!(switch.configure(at(0), port(0), limited(200)));
    assert_eq!(sent(&mut switch), Egress::Drop(Reason::RateIn));
    assert_eq!(
        switch.ingress(at(0), port(1), &frame(mac(1), mac(2))),
        Egress::To(port(0)),
        "it was learnt and still is"
    );
    // Isolated now, and still out of tokens; another rate is another bucket.
    let terms = Port {
        isolated: true,
        ..limited(200)
    };
    assert!(switch.configure(at(0), port(0), terms));
    assert_eq!(sent(&mut switch), Egress::Drop(Reason::RateIn));
    assert!(switch.configure(at(0), port(0), limited(500)));
    assert_eq!(sent(&mut switch), Egress::To(port(1)));
}
