//! Upstreams that are old, lame, slow or forged, and what is kept of what they say.

use super::*;

/// A message that goes to an upstream.
struct Sent {
    to: String,
    server: ServerId,
    lane: u8,
    message: Vec<u8>,
}

impl Sent {
    fn has_edns(&self) -> bool {
        Message::from_vec(&self.message).unwrap().edns.is_some()
    }

    /// What the upstream says to it: only a code; with or without EDNS, with or without the question.
    fn complaint(&self, code: u8, edns: bool, question: bool) -> Vec<u8> {
        let asked = Message::from_vec(&self.message).unwrap();
        let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata.response_code = hickory_proto::op::ResponseCode::from(0, code);
        if question {
            reply.add_query(asked.queries[0].clone());
        }
        reply.edns = asked.edns.clone().filter(|_| edns);
        reply.to_vec().unwrap()
    }

    fn answer(&self, records: &[&str]) -> Vec<u8> {
        answer(&self.message, records)
    }

    /// The same by an upstream that knows no EDNS.
    fn old_answer(&self, records: &[&str]) -> Vec<u8> {
        let mut reply = Message::from_vec(&self.answer(records)).unwrap();
        reply.edns = None;
        reply.to_vec().unwrap()
    }
}

impl Host {
    fn asked(&mut self) -> Vec<Sent> {
        let all = self.sent().into_iter();
        all.map(|(address, server, lane, message)| Sent {
            to: address.ip().to_string(),
            server,
            lane,
            message,
        })
        .collect()
    }

    fn one(&mut self) -> Sent {
        let mut all = self.asked();
        assert_eq!(all.len(), 1, "one question was expected");
        all.remove(0)
    }

    fn hear(&mut self, sent: &Sent, message: &[u8]) -> Vec<String> {
        self.receive(sent.server, sent.lane, message)
    }

    /// Asks, and the upstream answers at once.
    fn fetch(&mut self, question: &str, records: &[&str]) -> String {
        assert_eq!(self.ask("lab", question), "later");
        let sent = self.one();
        self.hear(&sent, &sent.answer(records)).remove(0)
    }
}

const A: [&str; 1] = ["example.com. 300 A 192.0.2.1"];
const FORM_ERR: u8 = 1;
const NOT_IMP: u8 = 4;

fn targets(addresses: &[SocketAddr]) -> Vec<Target> {
    let endpoints = addresses.iter().map(|a| crate::model::Endpoint::from(*a));
    endpoints.map(Target::from).collect()
}

#[test]
fn rfc6891_7_a_complaint_with_edns_is_not_about_edns() {
    let mut host = Host::new();
    host.ask("lab", "odd.example. A");
    let sent = host.one();
    // Whoever serves the name may say this as often as he likes: it is a failure of this name.
    let told = host.hear(&sent, &sent.complaint(FORM_ERR, true, true));
    assert_eq!(told, ["FormErr ra |  | "]);
    host.ask("lab", "example.com. A");
    assert!(host.one().has_edns(), "others are asked as before");
}

#[test]
fn rfc6891_6_2_2_who_works_without_edns_is_asked_without_for_a_while() {
    let mut host = Host::new();
    for question in [true, false] {
        let mut host = Host::new();
        host.ask("lab", "example.com. A");
        let first = host.one();
        assert!(first.has_edns());
        assert_eq!(
            host.hear(&first, &first.complaint(FORM_ERR, false, question)),
            [""; 0]
        );
        let again = host.one();
        assert!(!again.has_edns());
        // That did not help either: then EDNS was not to blame, and the failure is told.
        assert_eq!(
            host.hear(&again, &again.complaint(NOT_IMP, false, question)),
            ["NotImp ra |  | "]
        );
        host.ask("lab", "other.example.com. A");
        assert!(host.one().has_edns(), "nothing was learnt");
    }
    host.ask("lab", "example.com. A");
    let first = host.one();
    host.hear(&first, &first.complaint(NOT_IMP, false, true));
    let again = host.one();
    assert_eq!(host.hear(&again, &again.old_answer(&A)).len(), 1);
    host.ask("lab", "other.example.com. A");
    let other = host.one();
    assert!(!other.has_edns(), "it was learnt");
    host.hear(&other, &other.old_answer(&A));
    host.now += 3_600_000;
    host.ask("lab", "third.example.com. A");
    assert!(host.one().has_edns(), "and looked at again");
}

#[test]
fn who_showed_edns_is_not_taken_to_have_lost_it() {
    let mut host = Host::new();
    host.fetch("example.com. A", &A);
    host.ask("lab", "odd.example. A");
    let first = host.one();
    host.hear(&first, &first.complaint(FORM_ERR, false, true));
    let again = host.one();
    assert!(!again.has_edns(), "this name is tried without");
    let told = host.hear(&again, &again.old_answer(&["odd.example. 300 A 192.0.2.1"]));
    assert!(told[0].starts_with("NoError"), "{told:?}");
    host.ask("lab", "other.example. A");
    assert!(host.one().has_edns(), "others are asked as before");
}

#[test]
fn who_kept_the_case_is_not_taken_to_have_lost_it() {
    let mut host = Host::new();
    host.fetch("example.com. A", &A);
    host.ask("lab", "averylongname.example. A");
    let sent = host.one();
    let folded = sent
        .answer(&["averylongname.example. 300 A 192.0.2.66"])
        .to_ascii_lowercase();
    assert_eq!(
        host.hear(&sent, &folded),
        [""; 0],
        "a forgery, as far as we know"
    );
    let good = sent.answer(&["averylongname.example. 300 A 192.0.2.1"]);
    let told = host.hear(&sent, &good);
    assert!(told[0].contains("192.0.2.1"), "{told:?}");
    assert_eq!(host.resolver.stats(host.now).upstream_spoofed, 1);
}

#[test]
fn that_the_case_is_lost_is_known_for_a_while_only() {
    let mut host = Host::new();
    let question = |sent: &Sent| sent.message[12..20].to_vec();
    host.ask("lab", "example.com. A");
    let first = host.one();
    assert_eq!(
        host.hear(&first, &first.answer(&A).to_ascii_lowercase()),
        [""; 0]
    );
    let again = host.one();
    assert_eq!(question(&again), b"\x07example");
    host.hear(&again, &again.answer(&A));
    host.ask("lab", "example.org. A");
    let next = host.one();
    assert_eq!(question(&next), b"\x07example", "it was learnt");
    host.hear(&next, &next.answer(&["example.org. 300 A 192.0.2.1"]));
    host.now += 3_600_000;
    host.ask("lab", "example.net. A");
    assert_ne!(question(&host.one()), b"\x07example", "and looked at again");
}

/// An upstream that refers to others is none: it was to find the answer itself.
#[test]
fn a_lame_upstream_is_passed_over() {
    let mut host = Host::new();
    let both = ["192.0.2.1:53", "192.0.2.2:53"].map(|a| a.parse().unwrap());
    host.resolver.follow(targets(&both), Vec::new());
    assert_eq!(host.ask("open", "www.example.com. A"), "later");
    let first = host.one();
    let mut lame =
        Message::from_vec(&first.answer(&["example.com. 300 NS ns.example.com."])).unwrap();
    lame.metadata.recursion_available = false;
    lame.authorities = std::mem::take(&mut lame.answers);
    assert_eq!(host.hear(&first, &lame.to_vec().unwrap()), [""; 0]);
    let second = host.one();
    assert_eq!(second.to, "192.0.2.2");
    let told = host.hear(
        &second,
        &second.answer(&["www.example.com. 300 A 192.0.2.1"]),
    );
    assert!(told[0].contains("192.0.2.1"), "{told:?}");
}

#[test]
fn rfc2308_5_nothing_behind_an_alias_is_kept_for_the_soas_minimum() {
    let mut host = Host::new();
    host.ask("lab", "www.example.com. AAAA");
    let sent = host.one();
    let soa = "example.com. 900 SOA ns.example.com. root.example.com. 1 2 3 4 60";
    let mut nothing =
        Message::from_vec(&sent.answer(&["www.example.com. 3600 CNAME x.example.com.", soa]))
            .unwrap();
    nothing.metadata.response_code = hickory_proto::op::ResponseCode::NoError;
    let told = host.hear(&sent, &nothing.to_vec().unwrap());
    assert!(
        told[0].contains("CNAME x.example.com. | example.com. 60 SOA"),
        "{told:?}"
    );
    host.now += 59_000;
    assert!(
        host.ask("lab", "www.example.com. AAAA")
            .starts_with("NoError")
    );
    host.now += 2_000;
    assert_eq!(host.ask("lab", "www.example.com. AAAA"), "later");
    host.asked();
    // An alias that was asked for is an answer.
    host.fetch(
        "alias.example.com. CNAME",
        &["alias.example.com. 3600 CNAME x.example.com."],
    );
    host.now += 3_000_000;
    assert!(
        host.ask("lab", "alias.example.com. CNAME")
            .starts_with("NoError")
    );
}

#[test]
fn rfc2308_3_a_negative_answer_tells_how_long_it_holds() {
    let mut host = Host::new();
    let soa = |ttl, minimum| {
        format!("example.com. {ttl} SOA ns.example.com. root.example.com. 1 2 3 4 {minimum}")
    };
    let told = host.fetch("no.example.com. A", &[&soa(900, 60)]);
    assert!(told.contains("example.com. 60 SOA"), "{told}");
    host.now += 20_000;
    let told = host.ask("lab", "no.example.com. A");
    assert!(told.contains("example.com. 40 SOA"), "{told}");
    let told = host.fetch("not.example.com. A", &[&soa(50, 86_400)]);
    assert!(told.contains("example.com. 50 SOA"), "{told}");
}

#[test]
fn rfc8767_4_no_lifetime_is_longer_than_a_week() {
    let mut host = Host::new();
    let told = host.fetch("example.com. A", &["example.com. 4294967295 A 192.0.2.1"]);
    assert_eq!(told, "NoError ra | example.com. 604800 A 192.0.2.1 | ");
    assert!(
        host.ask("lab", "example.com. A").starts_with("NoError"),
        "and it is kept"
    );
}

#[test]
fn rfc6840_5_7_who_asks_first_does_not_decide_who_is_told_ad() {
    let mut host = Host::new();
    host.ask("lab", "example.com. A");
    let sent = host.one();
    let flags = u16::from_be_bytes([sent.message[2], sent.message[3]]);
    assert_eq!(flags & wire::flag::AD, wire::flag::AD);
    let mut reply = sent.answer(&A);
    reply[3] |= 0x20;
    assert!(!host.hear(&sent, &reply)[0].contains(" ad"));
    let mut asking = query("example.com. A");
    asking[3] |= 0x20;
    let from = host.from("lab", "10.94.1.51");
    let way = Way::Udp(0, SocketAddr::new(from.address, 4000));
    assert!(text(&host.handle(&from, way, &asking)).contains(" ad"));
}

#[test]
fn rfc9520_3_2_that_nobody_answers_is_remembered() {
    let mut host = Host::new();
    assert_eq!(host.ask("lab", "example.com. A"), "later");
    assert_eq!(host.wait(5_000), ["ServFail ra |  | "]);
    host.sent();
    assert!(host.ask("lab", "example.com. A").starts_with("ServFail"));
    assert!(
        host.ask("lab", "example.com. A +edns=1232")
            .starts_with("ServFail ra edns")
    );
    assert!(host.asked().is_empty());
    host.now += 10_000;
    assert_eq!(
        host.ask("lab", "example.com. A"),
        "later",
        "but not for long"
    );
}

#[test]
fn rfc8767_5_while_upstreams_fail_what_is_stale_is_told_at_once() {
    let mut host = Host::new();
    let stale = "NoError ra | example.com. 30 A 192.0.2.1 | ";
    let fail = |host: &mut Host, code| {
        let sent = host.one();
        host.hear(&sent, &sent.complaint(code, true, true))
    };
    host.fetch("example.com. A", &A);
    host.now += 301_000;
    // Each kind of failure: reported, refused, silence.
    for code in [wire::rcode::SERV_FAIL, wire::rcode::REFUSED] {
        assert_eq!(host.ask("lab", "example.com. A"), "later");
        assert_eq!(fail(&mut host, code), [stale]);
        assert_eq!(
            host.ask("lab", "example.com. A"),
            stale,
            "not asked again at once"
        );
        assert!(host.asked().is_empty());
        host.now += 31_000;
    }
    assert_eq!(host.ask("lab", "example.com. A"), "later");
    assert_eq!(host.wait(1_800), [stale]);
    assert_eq!(
        host.ask("lab", "example.com. A"),
        stale,
        "who joins late waits for nothing"
    );
    host.wait(5_000);
    host.asked();
    assert_eq!(host.ask("lab", "example.com. A"), stale);
    assert!(host.asked().is_empty());
}

#[test]
fn an_answer_that_comes_late_takes_the_place_of_the_stale_one() {
    let mut host = Host::new();
    host.fetch("example.com. A", &A);
    host.now += 301_000;
    host.ask("lab", "example.com. A");
    let sent = host.one();
    assert_eq!(host.wait(1_800).len(), 1);
    host.hear(&sent, &sent.answer(&["example.com. 300 A 192.0.2.2"]));
    assert_eq!(
        host.ask("lab", "example.com. A"),
        "NoError ra | example.com. 300 A 192.0.2.2 | "
    );
}

/// Every way to say an inner address that a guest's browser or stack would go to.
#[test]
fn rebinding_has_no_back_door() {
    let mut host = Host::new();
    for data in [
        "A 10.0.0.1",
        "A 127.0.0.1",
        "A 100.64.0.1",
        "A 0.0.0.0",
        "A 224.0.0.1",
        "A 240.0.0.1",
        "A 255.255.255.255",
        "AAAA ::1",
        "AAAA fe80::1",
        "AAAA fec0::1",
        "AAAA fd00::1",
        "AAAA ff02::1",
        "AAAA ::ffff:10.0.0.1",
        "AAAA ::10.0.0.1",
        "AAAA 64:ff9b::10.0.0.1",
        "AAAA 64:ff9b:1::10.0.0.1",
        "AAAA 2002:a00:1::1",
        "HTTPS 1 . ipv4hint=192.0.2.1,10.0.0.1",
        "HTTPS 1 . alpn=h2 ipv6hint=2001:db8::1,fd00::1",
        "SVCB 1 x.example. ipv6hint=::ffff:10.0.0.1",
    ] {
        let kind = data.split(' ').next().unwrap();
        let name = format!("n{}.example.", host.now);
        host.now += 1;
        let told = host.fetch(&format!("{name} {kind}"), &[&format!("{name} 60 {data}")]);
        assert_eq!(told, "Refused ra |  | ", "{data}");
    }
    for data in [
        "A 192.0.2.1",
        "AAAA 2001:db8::1",
        "AAAA 64:ff9b::192.0.2.1",
        "AAAA 2002:c000:201::1",
        "HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1",
    ] {
        let kind = data.split(' ').next().unwrap();
        let name = format!("n{}.example.", host.now);
        host.now += 1;
        let told = host.fetch(&format!("{name} {kind}"), &[&format!("{name} 60 {data}")]);
        assert!(told.starts_with("NoError"), "{data}: {told}");
    }
}

#[test]
fn an_inner_address_beside_the_answer_is_left_out() {
    let mut host = Host::new();
    let to = ["192.0.2.53:53".parse().unwrap()];
    host.resolver.follow(targets(&to), Vec::new());
    host.ask("lab", "example.com. MX");
    let sent = host.one();
    let mut reply = Message::from_vec(&sent.answer(&[
        "example.com. 300 MX 5 mail.example.com.",
        "mail.example.com. 300 A 10.0.0.1",
    ]))
    .unwrap();
    reply.additionals.push(reply.answers.pop().unwrap());
    host.hear(&sent, &reply.to_vec().unwrap());
    // The same answer to both: one network is protected, one is not.
    for (network, beside) in [("lab", 0), ("open", 1)] {
        let from = host.from(network, "10.94.1.50");
        let way = Way::Udp(0, SocketAddr::new(from.address, 4000));
        let told = host.handle(&from, way, &query("example.com. MX"));
        let told = Message::from_vec(&told).unwrap();
        assert_eq!(told.answers.len(), 1, "{network}");
        assert_eq!(told.additionals.len(), beside, "{network}");
    }
}

/// Numbers guessed one after the other: from then on connections are asked, whose answers nobody forges from aside.
#[test]
fn rfc5452_9_3_who_is_forged_is_asked_by_connection() {
    let mut host = Host::new();
    host.ask("lab", "example.com. A");
    let sent = host.one();
    let mut good = sent.answer(&A);
    host.hear(&sent, &good);
    for _ in 0..100 {
        host.hear(&sent, &good);
    }
    assert_eq!(
        host.resolver.stats(host.now).upstream_spoofed,
        0,
        "late, or twice, is no forgery"
    );
    for _ in 0..64 {
        let number = u16::from_be_bytes([good[0], good[1]]).wrapping_add(1);
        good[..2].copy_from_slice(&number.to_be_bytes());
        host.hear(&sent, &good);
    }
    host.ask("lab", "other.example. A");
    let Some(Effect::Stream { server, ticket, .. }) = host.resolver.effect() else {
        panic!("a connection was expected");
    };
    // Who has no connections is asked as before: a forger may not take him away altogether.
    let seed = &mut host.seed;
    let dice = &mut || dice(seed);
    host.resolver
        .stream_answer(host.now, dice, server, ticket, None);
    host.replies();
    host.ask("lab", "third.example. A");
    assert!(host.one().has_edns());
}

/// What is asked in secret does not tell by its length what it is; what is asked in plain text need not grow.
#[test]
fn rfc8467_4_1_what_is_asked_in_secret_is_padded() {
    for (upstream, padded) in [
        ("192.0.2.53", false),
        ("tls://192.0.2.53#dns.example", true),
        ("https://192.0.2.53/dns-query#dns.example", true),
    ] {
        let mut host = Host::new();
        let target = Target::from(upstream.parse::<crate::model::Endpoint>().unwrap());
        host.resolver.follow(vec![target], Vec::new());
        assert_eq!(host.ask("open", "a.rather.long.name.example. A"), "later");
        let message = match host.resolver.effect() {
            Some(Effect::Send { message, .. } | Effect::Stream { message, .. }) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(message.len() % 128 == 0, padded, "{upstream}");
        assert_eq!(message.windows(2).any(|pair| pair == [0, 12]), padded);
    }
}

/// Over TCP a query may bring 64 KiB of something: what waits for its answer does not.
#[test]
fn who_waits_costs_little() {
    let mut message = query("web.example. A +do");
    let whole = message.clone();
    message.extend_from_slice(&[0; 60_000]);
    let long = wire::Query::parse(&message).unwrap().brief();
    let short = wire::Query::parse(&whole).unwrap();
    let again = wire::Query::parse(&long).unwrap();
    assert_eq!(long.len(), whole.len());
    assert_eq!((again.edns, again.rtype), (short.edns, short.rtype));
    assert_eq!(again.udp_limit(), short.udp_limit());
}

/// Those who join a question count as well: not one network takes all places.
#[test]
fn one_network_cannot_take_all() {
    let mut host = Host::new();
    let most = Limits::default().in_flight;
    let ask = |host: &mut Host, network: &str, client: usize| {
        let address = format!("10.94.1.{}", client % 250);
        let from = host.from(network, &address);
        let way = Way::Udp(0, SocketAddr::new(from.address, 4000));
        host.handle(&from, way, &query("same.example. A"))
            .is_empty()
    };
    let asked = (0..most).filter(|i| ask(&mut host, "lab", *i)).count();
    assert_eq!(asked, most / 4 * 3);
    let to = ["192.0.2.53:53".parse().unwrap()];
    host.resolver.follow(targets(&to), Vec::new());
    assert!(ask(&mut host, "open", 1), "another network is served");
}

/// What a person is told of a name, without anybody being asked.
#[test]
fn a_name_is_explained() {
    let mut host = Host::new();
    let explain = |host: &mut Host, network: &str, name: &str| {
        let network = Host::network(network);
        host.resolver.explain(host.now, &network, name, 1).unwrap()
    };
    let own = explain(&mut host, "lab", "web.lab.test");
    assert_eq!(own.whose, Whose::Ours);
    assert_eq!(own.records, ["web.lab.test. 10 A 10.94.1.9"]);
    let none = explain(&mut host, "lab", "no.lab.test");
    assert_eq!(none.whose, Whose::NoSuchName);
    let refused = explain(&mut host, "alone", "example.com");
    assert!(matches!(refused.whose, Whose::Refused(_)));
    let asked = explain(&mut host, "lab", "Example.com");
    assert_eq!((asked.whose, asked.protected), (Whose::Upstreams, true));
    assert_eq!(asked.upstreams[0].endpoint, "192.0.2.53:53");
    assert_eq!(
        (asked.upstreams[0].up, asked.upstreams[0].milliseconds),
        (true, None)
    );
    assert!(host.asked().is_empty());
    assert!(explain(&mut host, "safe", "example.com").checked);
    host.fetch("example.com. A", &A);
    host.now += 100_000;
    let kept = explain(&mut host, "lab", "example.com");
    assert_eq!(kept.whose, Whose::Kept(200));
    assert_eq!(kept.records, ["example.com. 200 A 192.0.2.1"]);
    assert!(kept.upstreams[0].milliseconds.is_some());
    host.now += 300_000;
    assert_eq!(explain(&mut host, "lab", "example.com").whose, Whose::Stale);
    assert_eq!(host.resolver.flush(), 1);
    assert_eq!(
        explain(&mut host, "lab", "example.com").whose,
        Whose::Upstreams
    );
    assert_eq!(host.resolver.stats(host.now).cache_entries, 0);
    let network = Host::network("lab");
    let long = "x".repeat(64);
    assert!(host.resolver.explain(0, &network, &long, 1).is_none());
}

#[test]
fn nobody_waits_longer_over_tcp() {
    let mut host = Host::new();
    let from = host.from("lab", "10.94.1.50");
    let silent = host.handle(&from, Way::Tcp(0, 1), &query("silent.example. A"));
    assert!(silent.is_empty());
    assert_eq!(host.wait(4_400), [""; 0]);
    assert_eq!(host.wait(200), ["ServFail ra |  | "]);
}
