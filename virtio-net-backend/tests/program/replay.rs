//! What VMMs say, word by word: their recorded messages against the real program, over its real sockets. Every answer must be
//! the recorded one, and the rings that the messages describe must carry frames. Then the same through a death of the program.

use std::os::fd::{AsFd, OwnedFd};

use crate::frontend::{Frontend, Line, Program, receive, trace, within};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde_json::{Value, json};

pub(crate) const CLOUD_HYPERVISOR: &str = include_str!("../traces/cloud-hypervisor.txt");
/// As many as the recorded guest sent and got: the VMM asks where the rings stood.
const FRAMES: u8 = 23;
/// The MAC that the recorded port had: the VMM reads it.
pub(crate) const MAC: &str = "52:54:00:00:00:c1";

const GET_CONFIG: u8 = 24;
/// Where the link's state is in the answer: behind header, offset, size, flags and MAC.
const LINK: usize = 12 + 12 + 6;

/// A frame of a protocol that is nobody's.
pub(crate) fn frame(from: u8, to: u8, number: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5, number];
    frame.resize(60 + usize::from(number), number);
    frame
}

/// A frame there and one back, `count` times.
pub(crate) fn exchange(a: &mut Frontend, b: &mut Frontend, count: u8) {
    for number in 0..count {
        let there = frame(0xa, 0xb, number);
        a.offer(&there);
        a.sent();
        assert_eq!(b.next(), there);
        let back = frame(0xb, 0xa, number);
        b.offer(&back);
        b.sent();
        assert_eq!(a.next(), back);
    }
}

fn two_ports() -> (Program, Frontend, Frontend) {
    let mut program = Program::start();
    for name in ["a", "b"] {
        program.add_port(name, MAC);
    }
    let (a, b) = (program.frontend("a"), program.frontend("b"));
    (program, a, b)
}

#[test]
fn cloud_hypervisor_is_answered_as_recorded_and_its_rings_carry_frames() {
    let (mut program, mut a, mut b) = two_ports();
    let lines = trace(CLOUD_HYPERVISOR);
    let rounds = lines.iter().filter(|line| **line == Line::Frames).count();
    assert_eq!(rounds, 2, "before and after a reset of the card");
    for line in &lines {
        if *line == Line::Frames {
            a.post();
            b.post();
            exchange(&mut a, &mut b, FRAMES);
        }
        a.replay(line);
        b.replay(line);
    }
    let stats = program.done(&json!({ "op": "stats" }), &[]);
    assert_eq!(stats["ports"]["a"]["device"]["faults"], 0, "{stats}");
}

/// The last word on each port that came over a keeper's socket.
fn kept(keeper: &OwnedFd, names: &[&str]) -> Vec<(Value, Vec<OwnedFd>)> {
    let mut found: Vec<Option<(Value, Vec<OwnedFd>)>> = names.iter().map(|_| None).collect();
    loop {
        let (bytes, fds) = receive(keeper, 64 * 1024);
        if bytes.is_empty() {
            return found.into_iter().map(|one| one.expect("told")).collect();
        }
        let told: Value = serde_json::from_slice(&bytes).expect("JSON");
        let at = names.iter().position(|name| told["name"] == *name);
        found[at.expect("one of them")] = Some((told, fds.into()));
    }
}

#[test]
fn sessions_go_on_in_the_next_process_when_theirs_was_killed() {
    let (mut program, mut a, mut b) = two_ports();
    let lines = trace(CLOUD_HYPERVISOR);
    for line in lines.iter().take_while(|line| **line != Line::Frames) {
        a.replay(line);
        b.replay(line);
    }
    a.post();
    b.post();
    exchange(&mut a, &mut b, 5);

    for death in 0..3 {
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (ours, theirs) = pair.expect("a pair");
        program.done(&json!({ "op": "keep" }), &[theirs.as_fd()]);
        drop(theirs);
        a.was_interrupted();
        program.replace();
        // Nobody is there to take it, and nobody will kick again.
        let meanwhile = frame(0xa, 0xb, 99);
        a.offer(&meanwhile);
        // Who gets it is there before who sends it.
        let names = ["b", "a"];
        for ((told, fds), name) in kept(&ours, &names).into_iter().zip(names) {
            assert_eq!(told["listener"], true, "{told}");
            assert!(told["session"].is_object(), "{told}");
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            let ask =
                json!({ "op": "add-port", "name": name, "mac": MAC, "session": told["session"] });
            program.done(&ask, &fds);
        }
        assert!(
            a.was_interrupted(),
            "what was used before may not have been said"
        );
        a.sent();
        assert_eq!(b.next(), meanwhile);
        let back = frame(0xb, 0xa, 99);
        b.offer(&back);
        b.sent();
        assert_eq!(a.next(), back);
        exchange(&mut a, &mut b, 4 + death);
    }
    // 5, 1 + 4, 1 + 5 and 1 + 6 frames are 23: the VMM asks where the rings stand, and is told as it was then.
    let rest = lines
        .iter()
        .skip_while(|line| **line != Line::Frames)
        .skip(1);
    for line in rest.take_while(|line| **line != Line::Frames) {
        a.replay(line);
        b.replay(line);
    }
    // The socket is the one that the first process had.
    drop(a);
    let mut again = program.frontend("a");
    lines
        .iter()
        .take_while(|line| **line != Line::Frames)
        .for_each(|line| again.replay(line));
    let listed = program.done(&json!({ "op": "list" }), &[]);
    assert_eq!(listed["ports"][0]["running"], true, "{listed}");
}

#[test]
fn a_session_is_kept_between_two_messages_only() {
    let mut program = Program::start();
    program.add_port("a", MAC);
    let mut a = program.frontend("a");
    let lines = trace(CLOUD_HYPERVISOR);
    lines
        .iter()
        .take_while(|line| **line != Line::Frames)
        .for_each(|line| a.replay(line));
    let flags = SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (ours, theirs) = pair.expect("a pair");
    program.done(&json!({ "op": "keep" }), &[theirs.as_fd()]);
    drop(theirs);
    // Half a header: GET_FEATURES, and the flags are still to come.
    a.say(&[1, 0, 0, 0]);
    within("the first half to be read", || {
        let (bytes, _) = receive(&ours, 64 * 1024);
        let told: Value = serde_json::from_slice(&bytes).expect("JSON");
        told["session"].is_null().then_some(())
    });
    program.replace();
    let (told, fds) = kept_or(&ours);
    assert!(told.is_none_or(|told| told["session"].is_null()));
    drop(fds);
    assert!(
        a.is_hung_up(),
        "the VMM must know that it has to come again"
    );
}

/// The last word, if any came since.
fn kept_or(keeper: &OwnedFd) -> (Option<Value>, Vec<OwnedFd>) {
    let mut last = (None, Vec::new());
    loop {
        let (bytes, fds) = receive(keeper, 64 * 1024);
        if bytes.is_empty() {
            return last;
        }
        last = (serde_json::from_slice(&bytes).ok(), fds.into());
    }
}

/// Sends a frame that nobody gets, and waits until it is taken.
fn lose(from: &mut Frontend, frame: &[u8]) {
    from.offer(frame);
    from.sent();
}

#[test]
fn a_pulled_cable_stops_frames_both_ways_and_stays_pulled() {
    let (mut program, mut a, mut b) = two_ports();
    let lines = trace(CLOUD_HYPERVISOR);
    let set_up = |guest: &mut Frontend, up: bool| {
        let mut said: Vec<Line> = lines
            .iter()
            .take_while(|line| **line != Line::Frames)
            .cloned()
            .collect();
        for line in &mut said {
            // The config space: the recorded guest's cable was in.
            if let Line::Hears(bytes, _) = line
                && bytes[0] == GET_CONFIG
            {
                bytes[LINK] = u8::from(up);
            }
        }
        said.iter().for_each(|line| guest.replay(line));
        guest.post();
    };
    set_up(&mut a, true);
    set_up(&mut b, true);
    exchange(&mut a, &mut b, 1);
    let link = |up: bool| json!({ "op": "set-link", "name": "a", "up": up });
    program.done(&link(false), &[]);
    lose(&mut a, &frame(0xa, 0xb, 50));
    lose(&mut b, &frame(0xb, 0xa, 51));
    // Its VMM comes again: the cable is still out.
    drop(a);
    let mut a = within("the port's door", || {
        let listed = program.done(&json!({ "op": "list" }), &[]);
        assert_eq!(listed["ports"][0]["link"], false, "{listed}");
        (listed["ports"][0]["connected"] == false).then(|| program.frontend("a"))
    });
    set_up(&mut a, false);
    lose(&mut a, &frame(0xa, 0xb, 52));
    lose(&mut b, &frame(0xb, 0xa, 53));
    let stats = program.done(&json!({ "op": "stats" }), &[]);
    let counters = &stats["ports"]["a"]["device"];
    assert_eq!(counters["tx_link_down"], 2, "{stats}");
    assert_eq!(counters["rx_link_down"], 2, "{stats}");
    program.done(&link(true), &[]);
    exchange(&mut a, &mut b, 3);
}

#[test]
fn it_is_told_why_a_ring_stopped() {
    let (mut program, mut a, _b) = two_ports();
    let lines = trace(CLOUD_HYPERVISOR);
    lines
        .iter()
        .take_while(|line| **line != Line::Frames)
        .for_each(|line| a.replay(line));
    a.jump();
    let told = within("the ring to stop", || {
        let listed = program.done(&json!({ "op": "list" }), &[]);
        listed["ports"][0]["stopped"]["1"]
            .as_str()
            .map(str::to_owned)
    });
    assert_eq!(told, "available index jumped");
}
