//! Guests that mean harm, beside guests that do not: the harm stays theirs.

use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use serde_json::json;

use crate::frontend::{Frontend, Line, Program, trace, within};
use crate::replay::{CLOUD_HYPERVISOR, MAC, exchange, frame};

const SET_VRING_ADDR: u32 = 9;
/// Frames of one queue in one turn of the program.
const BUDGET: usize = 64;
/// Longer than one turn takes, shorter than a ring.
const FLOOD: u16 = 200;

/// Three ports whose guests run, all with the same VMM; the first with its messages changed.
fn guests(program: &mut Program, change: impl Fn(Line) -> Line) -> [Frontend; 3] {
    let lines = trace(CLOUD_HYPERVISOR);
    let lines = || {
        lines
            .iter()
            .take_while(|line| **line != Line::Frames)
            .cloned()
    };
    let mut guest = |name, bad| {
        program.add_port(name, MAC);
        let mut guest = program.frontend(name);
        for line in lines() {
            guest.replay(&if bad { change(line) } else { line });
        }
        guest.post();
        guest
    };
    [guest("bad", true), guest("a", false), guest("b", false)]
}

#[test]
fn two_queues_on_one_ring_harm_nobody_else() {
    let mut program = Program::start();
    let [mut bad, mut a, mut b] = guests(&mut program, |line| match line {
        Line::Says(SET_VRING_ADDR, flags, mut payload) => {
            // The rings of queue 0 are said of both: descriptors, used, available.
            let rings: Vec<u8> = trace(CLOUD_HYPERVISOR)
                .iter()
                .find_map(|line| match line {
                    Line::Says(SET_VRING_ADDR, _, first) => Some(first[8..32].to_vec()),
                    Line::Says(..) | Line::Hears(..) | Line::Frames => None,
                })
                .expect("a ring");
            payload[8..32].copy_from_slice(&rings);
            Line::Says(SET_VRING_ADDR, flags, payload)
        }
        line @ (Line::Says(..) | Line::Hears(..) | Line::Frames) => line,
    });
    for number in 0..20 {
        // To itself: should the device take it for a frame at all, it is nobody's.
        bad.offer(&frame(0xc, 0xc, number));
        bad.kick(0);
        exchange(&mut a, &mut b, 1);
    }
    let listed = program.done(&json!({ "op": "list" }), &[]);
    assert_eq!(
        listed["ports"].as_array().map(Vec::len),
        Some(3),
        "{listed}"
    );
}

#[test]
fn shared_memory_that_is_taken_away_costs_its_owner_only() {
    const SET_FEATURES: u32 = 2;
    const SET_LOG_BASE: u32 = 6;
    const SET_INFLIGHT_FD: u32 = 32;
    // What the recorded driver accepted, and that writes are logged.
    const LOGGED: u64 = 0x1_7423_bba3;
    let file = |len: u64| {
        let fd = memfd_create("shared", MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, len).expect("length");
        fd
    };
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for kind in [SET_LOG_BASE, SET_INFLIGHT_FD] {
        let mut program = Program::start();
        let [mut bad, mut a, mut b] = guests(&mut program, |line| line);
        let fd = file(0x2080);
        let payload: Vec<u8> = match kind {
            SET_LOG_BASE => words(&[0x2080, 0]),
            _ => words(&[0x2080, 0, 0x0100_0002]),
        };
        assert!(bad.ask(kind, &payload, &[fd.as_fd()]));
        assert!(bad.ask(SET_FEATURES, &LOGGED.to_le_bytes(), &[]));
        bad.kick(0);
        // It is used, then it is gone while it is used.
        let to_all = frame(0xc, 0xa, 1);
        bad.offer(&to_all);
        bad.sent();
        assert_eq!((a.next(), b.next()), (to_all.clone(), to_all));
        let back = frame(0xa, 0xc, 2);
        a.offer(&back);
        a.sent();
        assert_eq!(bad.next(), back);
        // Calm, so that the process sleeps as soon as it has no more to do.
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(2));
            exchange(&mut a, &mut b, 1);
        }
        ftruncate(&fd, 0).expect("truncated");
        // One frame, after which nothing happens that could wake it.
        a.offer(&back);
        assert!(bad.is_hung_up());
        a.sent();
        exchange(&mut a, &mut b, 10);
    }
}

#[test]
fn kicks_without_end_stop_nobody() {
    let mut program = Program::start();
    let [bad, mut a, mut b] = guests(&mut program, |line| line);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                bad.kick(0);
                bad.kick(1);
            }
        });
        exchange(&mut a, &mut b, 20);
        stop.store(true, Ordering::Release);
    });
}

#[test]
fn a_frontend_fills_no_log() {
    const SET_VRING_KICK: u32 = 12;
    let mut program = Program::start();
    let [bad, _, _] = guests(&mut program, |line| line);
    let kick = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
    let words = [SET_VRING_KICK, 1, 8, 0, 0].map(u32::to_le_bytes);
    // Many before the program looks.
    program.pause(true);
    for _ in 0..64 {
        bad.say_with(words.as_flattened(), &[kick.as_fd()]);
    }
    drop(bad);
    program.pause(false);
    let came = |program: &mut Program, times: u64| {
        within("all to come and leave", || {
            let stats = program.done(&json!({ "op": "stats" }), &[]);
            let listed = program.done(&json!({ "op": "list" }), &[]);
            let came = stats["ports"]["bad"]["device"]["sessions"] == times;
            (came && listed["ports"][0]["connected"] == false).then_some(())
        });
    };
    came(&mut program, 1);
    let log = program.log();
    assert!(!log.contains("cannot be polled"), "{log}");
    for _ in 0..100 {
        drop(program.frontend("bad"));
    }
    came(&mut program, 101);
    let log = program.log();
    let lines = log.lines().filter(|line| line.contains("port=\"bad\""));
    assert_eq!(lines.count(), 20, "{log}");
}

#[test]
fn who_is_refused_an_answer_does_not_wait_for_it() {
    const GET_VRING_BASE: u32 = 11;
    const WANTS_ACK: u32 = 1 << 3;
    let mut program = Program::start();
    let [bad, _, _] = guests(&mut program, |line| line);
    // Of a ring that there is not: eight bytes that say so would be half of what is waited for.
    let words = [GET_VRING_BASE, 1 | WANTS_ACK, 8, 99, 0].map(u32::to_le_bytes);
    bad.say_with(words.as_flattened(), &[]);
    within("the end of the connection", || {
        let listed = program.done(&json!({ "op": "list" }), &[]);
        (listed["ports"][0]["connected"] == false).then_some(())
    });
}

#[test]
fn a_vmm_that_listens_and_never_accepts_holds_up_nobody() {
    let mut program = Program::start();
    let [_, mut a, mut b] = guests(&mut program, |line| line);
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let socket = socket.expect("a socket");
    let path = program.folder().join("full.sock");
    let address = SocketAddrUnix::new(&path).expect("a short path");
    bind(&socket, &address).expect("bound");
    listen(&socket, 0).expect("listens");
    let others = UnixStream::connect(&path).expect("the only place");
    program.done(
        &json!({ "op": "add-port", "name": "c", "connect": "full.sock", "mac": MAC }),
        &[],
    );
    exchange(&mut a, &mut b, 3);
    // Nor does who only asks whether anybody listens there.
    let taken = json!({ "op": "add-port", "name": "d", "socket": "full.sock", "mac": MAC });
    let answer = program.ask(&taken, &[]);
    assert_eq!(answer["ok"], false, "{answer}");
    exchange(&mut a, &mut b, 3);
    // As soon as there is a place, it is taken.
    let listener = UnixListener::from(socket);
    drop((listener.accept().expect("the other"), others));
    within("the connection", || {
        let listed = program.done(&json!({ "op": "list" }), &[]);
        (listed["ports"][3]["connected"] == true).then_some(())
    });
}

#[test]
fn a_guest_that_floods_lets_another_have_its_turn() {
    let mut program = Program::start();
    let [mut bad, mut a, mut b] = guests(&mut program, |line| line);
    exchange(&mut a, &mut b, 1);
    // Both have their frames ready before the program looks.
    program.pause(true);
    for slot in 0..FLOOD {
        bad.lay(slot, &frame(0xc, 0xb, 0));
    }
    let fair = u16::try_from(BUDGET).expect("small");
    for slot in 0..fair {
        a.lay(slot, &frame(0xa, 0xb, 0));
    }
    bad.kick(1);
    a.kick(1);
    program.pause(false);
    let mut last = 0;
    for at in 0..usize::from(FLOOD + fair) {
        if at % 32 == 31 {
            b.post_again(32);
        }
        if b.next()[11] == 0xa {
            last = at;
        }
    }
    // A turn of the flood may come first, and one more may have begun.
    assert!(
        last < 3 * BUDGET,
        "the last frame of the other came {last}th"
    );
}
