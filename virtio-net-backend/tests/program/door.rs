//! Who comes to a port that has a frontend already.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::frontend::{Frontend, Line, Program, trace, within};
use crate::replay::{CLOUD_HYPERVISOR, MAC, exchange};

const TURNED_AWAY: &str = "turned away";

/// A guest that runs, whatever its VMM has said before.
fn run(guest: &mut Frontend) {
    let lines = trace(CLOUD_HYPERVISOR);
    let lines = lines.iter().take_while(|line| **line != Line::Frames);
    lines.for_each(|line| guest.replay(line));
    guest.post();
}

fn two_guests() -> (Program, Frontend, Frontend) {
    let mut program = Program::start();
    let [a, b] = ["a", "b"].map(|name| {
        program.add_port(name, MAC);
        let mut guest = program.frontend(name);
        run(&mut guest);
        guest
    });
    (program, a, b)
}

#[test]
fn a_second_frontend_is_hung_up_on_and_the_first_notices_nothing() {
    let (mut program, mut a, mut b) = two_guests();
    let began = Instant::now();
    for _ in 0..3 {
        assert!(program.frontend("a").is_hung_up());
        exchange(&mut a, &mut b, 1);
    }
    // Who comes again without end costs the others nothing.
    assert!(began.elapsed() > Duration::from_millis(1900));
    assert_eq!(program.said(TURNED_AWAY), 1);
    // It is said again of the next frontend, with which another has come.
    drop(a);
    within("the port to be free", || {
        let listed = program.done(&json!({ "op": "list" }), &[]);
        (listed["ports"][0]["connected"] == false).then_some(())
    });
    program.pause(true);
    let mut a = program.frontend("a");
    let second = program.frontend("a");
    program.pause(false);
    assert!(second.is_hung_up());
    run(&mut a);
    exchange(&mut a, &mut b, 1);
    assert_eq!(program.said(TURNED_AWAY), 2);
}

#[test]
fn a_frontend_that_comes_again_before_its_end_was_read_is_taken() {
    const SET_OWNER: [u32; 3] = [3, 1, 0];
    let (program, a, mut b) = two_guests();
    // More than is read in one turn, then its end, then it is there again.
    program.pause(true);
    a.say(
        SET_OWNER
            .map(u32::to_le_bytes)
            .as_flattened()
            .repeat(1000)
            .as_slice(),
    );
    drop(a);
    let mut a = program.frontend("a");
    program.pause(false);
    run(&mut a);
    exchange(&mut a, &mut b, 1);
    assert_eq!(program.said(TURNED_AWAY), 0);
}
