//! One clause each that the cases beside it do not name.

use super::*;

/// The answer of the upstream to `example.com. A`, changed by `edit`; then what is told when it is asked again.
fn again(edit: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut host = Host::new();
    host.ask("lab", "example.com. A");
    let sent = host.sent();
    let mut reply = answer(&sent[0].3, &["example.com. 300 A 192.0.2.1"]);
    edit(&mut reply);
    host.receive(sent[0].1, sent[0].2, &reply);
    host.ask("lab", "example.com. A")
}

#[test]
fn rfc2181_9_what_was_cut_is_not_kept() {
    assert_eq!(again(|reply| reply[2] |= 2), "later");
}

#[test]
fn rfc9460_2_4_a_service_record_as_it_was_written() {
    let mut host = Host::new();
    let said = host.ask("lab", "shop.lab.test. HTTPS");
    assert!(said.contains("HTTPS 1 web.lab.test. "), "{said}");
    assert!(said.contains("8443"), "{said}");
    let none = host.ask("lab", "shop.lab.test. SVCB");
    assert!(none.starts_with("NoError aa ra |  | lab.test."), "{none}");
}

#[test]
fn rfc8914_4_16_a_refusal_says_that_it_is_one() {
    let mut host = Host::new();
    let from = host.from("lab", "10.94.1.50");
    let way = Way::Udp(0, SocketAddr::new(from.address, 4000));
    let question = query("example.com. A +edns=1232");
    assert!(host.handle(&from, way, &question).is_empty());
    let sent = host.sent();
    let reply = answer(&sent[0].3, &["example.com. 300 A 192.168.1.1"]);
    assert_eq!(
        host.receive(sent[0].1, sent[0].2, &reply),
        ["Refused ra edns |  | "]
    );
    let kept = host.handle(&from, way, &question);
    assert!(
        kept.ends_with(&[0, 6, 0, 15, 0, 2, 0, 15]),
        "EDE 15: {kept:02x?}"
    );
    // Who does not speak EDNS is told no more than the code.
    let plain = host.handle(&from, way, &query("example.com. A"));
    assert_eq!((plain[3] & 15, &plain[10..12]), (5, &[0, 0][..]));
}
