//! What VMMs say, word by word: their recorded messages against the real program, over its real sockets. Every answer must be
//! the recorded one, and the rings that the messages describe must carry frames. Then the same through a death of the program.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::fairness::plain;
use crate::frontend::{Frontend, Line, NO_FD, PATIENCE, Program, receive, trace, within};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde_json::{Value, json};

pub(crate) const CLOUD_HYPERVISOR: &str = include_str!("../traces/cloud-hypervisor.txt");
const MIGRATION: &str = include_str!("../traces/cloud-hypervisor-migration.txt");
const CROSVM: &str = include_str!("../traces/crosvm.txt");
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_ERR: u32 = 14;
const SET_VRING_ENABLE: u32 = 18;
const SEND_RARP: u32 = 19;
const NET_SET_MTU: u32 = 20;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_INFLIGHT_FD: u32 = 31;
const RESET_DEVICE: u32 = 34;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;
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

#[test]
fn crosvm_gets_a_control_queue_and_its_rings_carry_frames() {
    let (mut program, mut a, mut b) = two_ports();
    for line in trace(CROSVM) {
        if line == Line::Frames {
            a.post();
            b.post();
            for guest in [&mut a, &mut b] {
                assert_eq!(guest.command(&[3, 0]), 0, "it announced itself");
                assert_eq!(guest.command(&[9, 9]), 1, "nobody knows such a command");
            }
            exchange(&mut a, &mut b, FRAMES);
        }
        a.replay(&line);
        b.replay(&line);
    }
    let stats = program.done(&json!({ "op": "stats" }), &[]);
    assert_eq!(stats["ports"]["a"]["device"]["faults"], 0, "{stats}");
}

#[test]
fn a_command_is_answered_while_its_guest_is_over_its_rate() {
    let mut program = Program::start();
    let rate = json!({ "bytes": { "per-second": 1, "burst": 1 } });
    let ask =
        json!({ "op": "add-port", "name": "a", "socket": "a.sock", "mac": MAC, "send": rate });
    program.done(&ask, &[]);
    let mut a = program.frontend("a");
    let lines = trace(CROSVM);
    let set_up = lines.iter().take_while(|line| **line != Line::Frames);
    set_up.for_each(|line| a.replay(line));
    // Answered when all rings are enabled: frames before that are lost, whatever the rate.
    assert_eq!(a.command(&[3, 0]), 0, "it announced itself");
    // The second may go after a minute.
    for slot in 0..2 {
        a.lay(slot, &frame(0xa, 0xb, 0));
    }
    a.kick(1);
    a.sent();
    assert_eq!(a.command(&[3, 0]), 0, "it announced itself");
    let stats = program.done(&json!({ "op": "stats" }), &[]);
    assert_eq!(stats["ports"]["a"]["device"]["tx_frames"], 1, "{stats}");
}

/// The lines of cloud-hypervisor's trace up to its first frames.
fn set_up() -> impl Iterator<Item = Line> {
    let lines = trace(CLOUD_HYPERVISOR).into_iter();
    lines.take_while(|line| *line != Line::Frames)
}

/// Two guests of cloud-hypervisor that run.
fn two_guests() -> (Program, Frontend, Frontend) {
    let (program, mut a, mut b) = two_ports();
    for line in set_up() {
        a.replay(&line);
        b.replay(&line);
    }
    a.post();
    b.post();
    (program, a, b)
}

#[test]
fn a_migration_of_cloud_hypervisor_is_answered_and_each_log_has_what_came_in_its_time() {
    let (mut program, mut a, mut b) = two_guests();
    // Nothing is logged of these.
    exchange(&mut a, &mut b, 2);
    let mut came = Vec::new();
    for line in trace(MIGRATION) {
        if line == Line::Frames {
            exchange(&mut a, &mut b, 1);
            came.push(a.last_slot().expect("a frame"));
        }
        a.replay(&line);
    }
    for (log, slot) in a.logged().iter().zip(came) {
        for page in a.pages_of_receipt(slot.into()) {
            assert!(log.contains(&page), "{page:#x} in {log:x?}");
        }
    }
    let stats = program.done(&json!({ "op": "stats" }), &[]);
    assert_eq!(stats["ports"]["a"]["device"]["faults"], 0, "{stats}");
}

#[test]
fn memory_that_goes_and_comes_again_stops_no_ring_for_good() {
    let (mut program, mut a, mut b) = two_guests();
    exchange(&mut a, &mut b, 5);
    add_other_memory(&mut a);
    for round in 0..3 {
        let region = a.region();
        let file = a.file();
        assert!(a.ask(REM_MEM_REG, &region, &[]));
        let meanwhile = frame(0xa, 0xb, 99);
        a.offer(&meanwhile);
        assert!(a.ask(ADD_MEM_REG, &region, &[file.as_fd()]));
        a.sent();
        assert_eq!(b.next(), meanwhile, "round {round}");
        exchange(&mut a, &mut b, 5);
    }
    let stats = program.done(&json!({ "op": "stats" }), &[]);
    assert_eq!(stats["ports"]["a"]["device"]["faults"], 0, "{stats}");
}

/// Memory in which there is no ring.
fn add_other_memory(guest: &mut Frontend) {
    let file = memfd_create("other", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, 0x10_0000).expect("length");
    let region = [0u64, 1 << 40, 0x10_0000, 1 << 40, 0].map(u64::to_le_bytes);
    assert!(guest.ask(ADD_MEM_REG, region.as_flattened(), &[file.as_fd()]));
}

#[test]
fn rings_may_be_told_before_their_memory() {
    let (_program, mut a, mut b) = two_ports();
    let set_up: Vec<Line> = set_up().collect();
    let is_table = |line: &&Line| matches!(line, Line::Says(SET_MEM_TABLE, ..));
    let table = set_up.iter().find(is_table).expect("a table");
    for guest in [&mut a, &mut b] {
        // This side must have its memory to lay the rings; the backend hears of that last.
        let files = guest.prepare(table);
        for line in set_up.iter().filter(|line| **line != *table) {
            if is_answer_to(line, SET_MEM_TABLE) {
                add_other_memory(guest);
            } else {
                guest.replay(line);
            }
        }
        let region = guest.region();
        assert!(guest.ask(ADD_MEM_REG, &region, &[files[0].as_fd()]));
        guest.post();
    }
    exchange(&mut a, &mut b, 5);
}

/// The same, of a VMM that gives no kick: the ring is to be looked at again and again.
fn unkicked(line: Line) -> Line {
    match line {
        Line::Says(SET_VRING_KICK, flags, mut payload) => {
            payload[1] |= NO_FD;
            Line::Says(SET_VRING_KICK, flags, payload)
        }
        line @ (Line::Says(..) | Line::Hears(..) | Line::Frames) => line,
    }
}

#[test]
fn rings_without_kicks_are_looked_at_however_long_they_were_quiet() {
    let (mut program, mut a, mut b) = two_ports();
    for line in set_up() {
        a.replay(&unkicked(line.clone()));
        b.replay(&line);
    }
    a.post();
    b.post();
    for _ in 0..4 {
        exchange(&mut a, &mut b, 1);
        // The process sleeps meanwhile, and nobody will wake it.
        std::thread::sleep(Duration::from_millis(5));
    }
    // Nor is the ring forgotten while others let the process have no sleep.
    program.add_port("c", MAC);
    let mut c = program.frontend("c");
    set_up().for_each(|line| c.replay(&line));
    c.post();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                c.offer(&frame(0xc, 0xc, 0));
                c.sent();
            }
        });
        exchange(&mut a, &mut b, 10);
        stop.store(true, Ordering::Release);
    });
}

#[test]
fn a_kick_that_is_taken_from_a_running_ring_is_not_missed() {
    let (_program, mut a, mut b) = two_guests();
    exchange(&mut a, &mut b, 1);
    for ring in [0u8, 1] {
        let none = [ring, NO_FD, 0, 0, 0, 0, 0, 0];
        assert!(a.ask(SET_VRING_KICK, &none, &[]));
        a.unkick(ring.into());
    }
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(5));
        exchange(&mut a, &mut b, 1);
    }
}

fn is_answer_to(line: &Line, kind: u32) -> bool {
    matches!(line, Line::Hears(bytes, _) if bytes.starts_with(&kind.to_le_bytes()))
}

#[test]
fn a_device_that_was_reset_runs_when_it_is_set_up_anew() {
    let (mut program, mut a, mut b) = two_guests();
    exchange(&mut a, &mut b, 5);
    assert!(a.ask(RESET_DEVICE, &[], &[]));
    let unheard = frame(0xa, 0xb, 98);
    a.lay(0, &unheard);
    let listed = program.done(&json!({ "op": "list" }), &[]);
    assert_eq!(listed["ports"][0]["running"], false, "{listed}");
    // The same record of what is in flight as before: there must be nothing in it.
    let again = set_up().skip_while(|line| !matches!(line, Line::Says(SET_FEATURES, ..)));
    for line in again.filter(|line| !about_new_record(line)) {
        a.replay(&line);
    }
    a.post();
    exchange(&mut a, &mut b, 5);
    assert_eq!(a.last_slot(), Some(4), "the fifth of its new buffers");
    let stats = program.done(&json!({ "op": "stats" }), &[]);
    assert_eq!(stats["ports"]["a"]["device"]["faults"], 0, "{stats}");
}

type Deed = fn(&mut Frontend);

#[test]
fn what_waits_for_a_driver_goes_with_it_and_is_not_for_other_features() {
    let reset = |b: &mut Frontend| assert!(b.ask(RESET_DEVICE, &[], &[]));
    let stop = |b: &mut Frontend| {
        for ring in [0, 1] {
            let which = [ring, 0, 0, 0, 0, 0, 0, 0];
            b.replay(&Line::Says(GET_VRING_BASE, 1, which.to_vec()));
            let answer = [[GET_VRING_BASE, 5], [8, ring.into()], [0, 0]];
            let answer = answer
                .as_flattened()
                .iter()
                .flat_map(|word| word.to_le_bytes());
            b.replay(&Line::Hears(answer.take(20).collect(), 0));
        }
    };
    let nothing = |_: &mut Frontend| ();
    let same: fn(&Line) -> Line = Line::clone;
    let ways: [(&str, Deed, _); 3] = [
        ("reset", reset, same),
        ("stop", stop, same),
        ("other features", nothing, plain),
    ];
    for (way, leave, of_next) in ways {
        let (mut program, mut a, mut b) = two_ports();
        for line in set_up() {
            a.replay(&line);
            b.replay(&line);
        }
        a.offer(&frame(0xa, 0xb, 1));
        a.sent();
        leave(&mut b);
        let again = set_up().skip_while(|line| !matches!(line, Line::Says(SET_FEATURES, ..)));
        for line in again.filter(|line| !about_new_record(line)) {
            b.replay(&of_next(&line));
        }
        b.post();
        let for_it = frame(0xa, 0xb, 2);
        a.offer(&for_it);
        assert_eq!(b.next(), for_it, "{way}");
        let stats = program.done(&json!({ "op": "stats" }), &[]);
        assert_eq!(stats["ports"]["b"]["device"]["rx_no_driver"], 1, "{stats}");
    }
}

fn about_new_record(line: &Line) -> bool {
    matches!(line, Line::Says(GET_INFLIGHT_FD, ..)) || is_answer_to(line, GET_INFLIGHT_FD)
}

#[test]
fn a_card_that_is_reset_meets_no_chain_of_its_former_life() {
    let (mut program, mut a, mut b) = two_guests();
    exchange(&mut a, &mut b, FRAMES);
    let rest = trace(CLOUD_HYPERVISOR).into_iter();
    let rest = rest.skip_while(|line| *line != Line::Frames).skip(1);
    let second = rest.take_while(|line| *line != Line::Frames);
    for line in second.filter(|line| !about_new_record(line)) {
        a.replay(&line);
        b.replay(&line);
    }
    a.post();
    b.post();
    exchange(&mut a, &mut b, 1);
    assert_eq!(a.last_slot(), Some(0), "the first of its new buffers");
    exchange(&mut a, &mut b, FRAMES);
    let stats = program.done(&json!({ "op": "stats" }), &[]);
    assert_eq!(stats["ports"]["a"]["device"]["faults"], 0, "{stats}");
}

#[test]
fn an_mtu_that_would_not_get_through_is_refused() {
    let mut program = Program::start();
    let ask = json!({ "op": "add-port", "name": "a", "socket": "a.sock", "mac": MAC, "mtu": 1500 });
    program.done(&ask, &[]);
    let mut a = program.frontend("a");
    assert!(a.negotiate());
    for (mtu, taken) in [(1500u64, true), (1400, true), (1501, false), (60, false)] {
        assert_eq!(a.ask(NET_SET_MTU, &mtu.to_le_bytes(), &[]), taken, "{mtu}");
    }
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
        let ours = keeper(&mut program);
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

/// Someone who keeps the program's sessions from here on.
fn keeper(program: &mut Program) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (ours, theirs) = pair.expect("a pair");
    program.done(&json!({ "op": "keep" }), &[theirs.as_fd()]);
    ours
}

/// Asks for one thing again and again, until the program does not listen any more.
fn chatter(guest: &Frontend) {
    const ENOUGH: usize = 100_000;
    let waits = (0..ENOUGH).position(|_| !guest.murmur());
    assert!(waits.is_some(), "it was heard all the time");
}

#[test]
fn who_chatters_waits_for_who_keeps_the_sessions_and_costs_nobody_theirs() {
    let (mut program, mut a, mut b) = two_guests();
    let ours = keeper(&mut program);
    chatter(&a);
    // Frames pass, and there is room to say what becomes of others.
    exchange(&mut a, &mut b, 5);
    for up in [false, true] {
        program.done(&json!({ "op": "set-link", "name": "b", "up": up }), &[]);
    }
    program.add_port("c", MAC);
    program.done(&json!({ "op": "remove-port", "name": "c" }), &[]);
    // It goes on as soon as what was told is read, and nothing of it is missing.
    let mut told = Vec::new();
    while told.last() != Some(&json!("c")) {
        let (bytes, _) = receive(&ours, 64 * 1024);
        let one: Value = serde_json::from_slice(&bytes).expect("nobody hung up");
        told.push(if one["gone"] == true {
            one["name"].clone()
        } else {
            one["link"].clone()
        });
    }
    assert!(told.contains(&json!(false)), "{told:?}");
    assert!(a.ask(SET_VRING_ENABLE, &[0, 0, 0, 0, 1, 0, 0, 0], &[]));
    // Once more, for the last word on both.
    program.done(&json!({ "op": "set-link", "name": "b", "up": true }), &[]);
    program.replace();
    for ((told, fds), name) in kept(&ours, &["b", "a"]).into_iter().zip(["b", "a"]) {
        assert!(told["session"].is_object(), "{told}");
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let ask = json!({ "op": "add-port", "name": name, "mac": MAC, "session": told["session"] });
        program.done(&ask, &fds);
    }
    exchange(&mut a, &mut b, 5);
}

#[test]
fn who_keeps_the_sessions_and_stands_still_is_left_after_a_while() {
    let (mut program, mut a, mut b) = two_guests();
    let _ours = keeper(&mut program);
    chatter(&a);
    let began = Instant::now();
    assert!(a.ask(SET_VRING_ENABLE, &[0, 0, 0, 0, 1, 0, 0, 0], &[]));
    let waited = began.elapsed();
    assert!(waited > Duration::from_secs(3), "{waited:?}");
    exchange(&mut a, &mut b, 5);
}

#[test]
fn many_that_start_while_nobody_reads_are_all_kept() {
    const GUESTS: usize = 24;
    let mut program = Program::start();
    let names: Vec<String> = (0..GUESTS).map(|at| format!("g{at}")).collect();
    names.iter().for_each(|name| program.add_port(name, MAC));
    let ours = keeper(&mut program);
    let guests: Vec<Frontend> = std::thread::scope(|scope| {
        let start = |name: &str| {
            let mut guest = program.frontend(name);
            set_up().for_each(|line| guest.replay(&line));
            guest
        };
        let starts: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || start(name)))
            .collect();
        // Who keeps them is away.
        std::thread::sleep(Duration::from_millis(500));
        let waits = starts.iter().any(|start| !start.is_finished());
        assert!(waits, "there was room for all");
        let running = |told: &Value| told["session"]["vrings"][1]["running"] == true;
        let mut last = BTreeMap::new();
        while last.len() < GUESTS || !last.values().all(running) {
            let (bytes, _) = receive(&ours, 64 * 1024);
            let told: Value = serde_json::from_slice(&bytes).expect("nobody hung up");
            last.insert(told["name"].to_string(), told);
        }
        starts
            .into_iter()
            .map(|start| start.join().expect("started"))
            .collect()
    });
    drop(guests);
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
    let ours = keeper(&mut program);
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

#[test]
fn a_vmm_is_told_that_a_ring_stopped() {
    let (_program, mut a, mut b) = two_guests();
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let error = eventfd(0, flags).expect("eventfd");
    let told = || rustix::io::read(&error, &mut [0; 8]).ok();
    assert!(a.ask(SET_VRING_ERR, &1u64.to_le_bytes(), &[error.as_fd()]));
    exchange(&mut a, &mut b, 1);
    assert_eq!(told(), None);
    a.jump();
    assert_eq!(within("a word of the error", told), 8);
}

#[test]
fn a_guest_that_cannot_announce_itself_is_announced() {
    let (_program, mut a, mut b) = two_guests();
    let mac = [0x52, 0x54, 0, 0, 0, 0xc1];
    assert!(a.ask(SEND_RARP, &[&mac[..], &[0; 2]].concat(), &[]));
    // To all, from it: a request that asks for the address of the one who asks (RFC 903).
    let mut request = vec![0xff; 6];
    request.extend(mac);
    request.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    for protocol_address in [[0; 4]; 2] {
        request.extend(mac);
        request.extend(protocol_address);
    }
    request.resize(60, 0);
    assert_eq!(b.next(), request);
}

#[test]
fn a_vmm_is_told_that_the_cable_was_pulled() {
    let (mut program, mut a, _b) = two_guests();
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    ours.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert!(a.ask(SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]));
    for up in [false, false, true] {
        program.done(&json!({ "op": "set-link", "name": "a", "up": up }), &[]);
    }
    // The process alone has the other end.
    drop((theirs, program));
    let mut said = Vec::new();
    ours.read_to_end(&mut said).expect("read");
    // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, version 1, nothing behind it; once for each change.
    let config_change = [2u32, 1, 0].map(u32::to_le_bytes);
    assert_eq!(said, config_change.as_flattened().repeat(2));
}
