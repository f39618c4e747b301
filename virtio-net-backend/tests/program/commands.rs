//! The control socket of a large network.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::frontend::{PATIENCE, Program, send};

const PORTS: usize = 1000;
/// More than the socket holds, whatever an answer's length.
const QUESTIONS: usize = 50;

#[test]
fn a_thousand_ports_are_listed_and_counted() {
    let mut program = Program::start();
    for number in 0..PORTS {
        let mac = format!("52:54:00:00:{:02x}:{:02x}", number >> 8, number & 0xff);
        // Nobody is there: no port needs an open file.
        let port = json!({ "op": "add-port", "name": format!("port-{number}"), "connect": "none", "mac": mac });
        program.done(&port, &[]);
    }
    let of_list = |answer: &Value| answer["ports"].as_array().map(Vec::len);
    let of_stats = |answer: &Value| answer["ports"].as_object().map(serde_json::Map::len);
    assert_eq!(
        of_list(&program.done(&json!({ "op": "list" }), &[])),
        Some(PORTS)
    );
    assert_eq!(
        of_stats(&program.done(&json!({ "op": "stats" }), &[])),
        Some(PORTS)
    );
    // One asks on and on and reads no more than the first answer; others are answered meanwhile.
    let eager = UnixStream::connect(program.folder().join("control")).expect("connected");
    eager.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let questions = "{\"op\":\"stats\"}\n".repeat(QUESTIONS);
    send(&eager, questions.as_bytes(), &[]);
    let mut answers = BufReader::new(&eager).lines().map(|line| {
        let answer = serde_json::from_str(&line.expect("a line")).expect("JSON");
        of_stats(&answer).expect("ports")
    });
    assert_eq!(answers.next(), Some(PORTS));
    program.done(&json!({ "op": "remove-port", "name": "port-7" }), &[]);
    // Each question is answered whole, the last ones when there was room for them.
    eager
        .shutdown(std::net::Shutdown::Write)
        .expect("no more questions");
    let answers: Vec<usize> = answers.collect();
    assert_eq!(answers.len(), QUESTIONS - 1);
    assert_eq!(answers.last(), Some(&(PORTS - 1)));
}
