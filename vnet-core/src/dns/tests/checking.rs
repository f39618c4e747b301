//! Answers that are checked before they are told, with a checker that says what a test wants.

use super::*;
use crate::dns::Question as Wanted;
use crate::dns::wire::ede;

/// The checks that are wanted.
fn wanted(host: &mut Host) -> Vec<Wanted> {
    std::iter::from_fn(|| host.resolver.effect())
        .map(|effect| match effect {
            Effect::Check(question) => question,
            Effect::Send { .. } | Effect::Stream { .. } => panic!("only checks were expected"),
        })
        .collect()
}

fn ask_for(host: &mut Host, question: &Wanted, part: u64) -> Option<Vec<u8>> {
    let seed = &mut host.seed;
    let dice = &mut || dice(seed);
    let (name, rtype) = (&question.name, question.rtype);
    host.resolver
        .ask_for(host.now, dice, question.ticket, part, name, rtype)
}

/// The upstream's answer, as the checker gets it.
fn fetched(host: &mut Host, question: &Wanted, records: &[&str]) -> Vec<u8> {
    assert!(ask_for(host, question, 7).is_none(), "nobody knows yet");
    let sent = host.sent();
    let flags = u16::from_be_bytes([sent[0].3[2], sent[0].3[3]]);
    assert_eq!(
        flags & 0x10,
        0x10,
        "RFC 6840 section 5.9: checking disabled"
    );
    let reply = answer(&sent[0].3, records);
    let seed = &mut host.seed;
    let (server, lane) = (sent[0].1, sent[0].2);
    host.resolver
        .receive(host.now, &mut || dice(seed), server, lane, &reply);
    let mut replies: Vec<_> = host.resolver.replies().collect();
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0].0, Way::Check(7));
    replies.remove(0).1
}

fn checked(host: &mut Host, ticket: u64, outcome: Checked) -> Vec<String> {
    host.resolver.checked(host.now, ticket, outcome);
    host.replies()
}

const SIGNED: [&str; 1] = ["www.example. 300 A 192.0.2.1"];

#[test]
fn rfc4035_3_2_3_what_is_proven_is_said_to_be_and_kept() {
    let mut host = Host::new();
    assert_eq!(host.ask("safe", "www.example. A +do"), "later");
    assert_eq!(host.ask("safe", "WWW.example. A +do"), "later");
    let questions = wanted(&mut host);
    assert_eq!(questions.len(), 1, "joined");
    let message = fetched(&mut host, &questions[0], &SIGNED);
    let outcome = Checked::Proven {
        secure: true,
        ttl: 60,
        message,
    };
    let told = checked(&mut host, questions[0].ticket, outcome);
    assert_eq!(told.len(), 2);
    assert_eq!(
        told[0],
        "NoError ra ad edns | www.example. 300 A 192.0.2.1 | "
    );
    host.now += 59_000;
    assert!(
        host.ask("safe", "www.example. A +do")
            .starts_with("NoError ra ad edns | ")
    );
    host.now += 2_000;
    // RFC 4035 section 5.3.3: no longer than its signatures.
    assert_eq!(host.ask("safe", "www.example. A +do"), "later");
}

#[test]
fn rfc4035_3_2_2_who_disables_checks_is_told_what_came() {
    let mut host = Host::new();
    assert_eq!(host.ask("safe", "www.example. A +cd"), "later");
    assert_eq!(host.sent().len(), 1, "asked as it is");
}

#[test]
fn ours_and_inner_names_are_not_checked() {
    let mut host = Host::new();
    assert!(
        host.ask("safe", "gateway.safe.test. A")
            .starts_with("NoError aa")
    );
    assert!(
        host.ask("safe", "no.safe.test. A")
            .starts_with("NXDomain aa")
    );
    assert_eq!(host.ask("safe", "www.corp.test. A"), "later");
    assert_eq!(host.sent()[0].0.to_string(), "192.0.2.54:53");
    // Another network that asks the same upstream does not check, and shares nothing.
    assert_eq!(host.ask("lab", "www.example. A"), "later");
    assert_eq!(host.sent().len(), 1);
}

#[test]
fn rfc8914_4_7_a_forgery_is_a_failure_that_says_so() {
    let mut host = Host::new();
    host.ask("safe", "www.example. A");
    let first = wanted(&mut host).remove(0);
    let message = fetched(&mut host, &first, &SIGNED);
    let good = Checked::Proven {
        secure: true,
        ttl: 60,
        message,
    };
    checked(&mut host, first.ticket, good);
    host.now += 61_000;
    // What was proven once does not stand in for what is forged now.
    host.ask("safe", "www.example. A");
    let second = wanted(&mut host).remove(0);
    let told = checked(
        &mut host,
        second.ticket,
        Checked::Bogus(ede::SIGNATURE_EXPIRED),
    );
    assert_eq!(told, ["ServFail ra |  | "]);
    let from = host.from("safe", "10.94.5.50");
    let way = Way::Udp(0, SocketAddr::new(from.address, 4000));
    host.ask("safe", "www.example. A +edns=1232");
    let kept = host.handle(&from, way, &query("www.example. A +edns=1232"));
    assert!(
        kept.ends_with(&[0, 6, 0, 15, 0, 2, 0, 7]),
        "EDE 7: {kept:02x?}"
    );
    assert_eq!(kept[3] & 15, 2);
    host.now += 6_000;
    assert_eq!(host.ask("safe", "www.example. A"), "later", "not for long");
}

#[test]
fn rfc8767_4_what_was_proven_is_better_than_nothing() {
    let mut host = Host::new();
    host.ask("safe", "www.example. A");
    let first = wanted(&mut host).remove(0);
    let message = fetched(&mut host, &first, &SIGNED);
    let good = Checked::Proven {
        secure: false,
        ttl: 60,
        message,
    };
    assert_eq!(
        checked(&mut host, first.ticket, good),
        ["NoError ra | www.example. 300 A 192.0.2.1 | "]
    );
    host.now += 61_000;
    host.ask("safe", "www.example. A");
    let second = wanted(&mut host).remove(0);
    let told = checked(&mut host, second.ticket, Checked::Unknown);
    assert_eq!(told, ["NoError ra | www.example. 30 A 192.0.2.1 | "]);
    host.ask("safe", "other.example. A");
    let third = wanted(&mut host).remove(0);
    assert_eq!(
        checked(&mut host, third.ticket, Checked::Unknown),
        ["ServFail ra |  | "]
    );
    assert!(
        checked(&mut host, third.ticket, Checked::Unknown).is_empty(),
        "once"
    );
}

#[test]
fn a_check_that_comes_back_is_a_loop_and_greed_is_bounded() {
    let mut host = Host::new();
    host.ask("safe", "www.example. A");
    let question = wanted(&mut host).remove(0);
    let own = From {
        host: true,
        ..host.from("safe", "10.94.5.1")
    };
    let way = Way::Udp(0, "10.94.5.1:4000".parse().unwrap());
    let back = host.handle(&own, way, &query("www.example. A"));
    assert!(text(&back).starts_with("Refused"), "{}", text(&back));
    assert!(ask_for(&mut host, &question, 1).is_none());
    assert_eq!(host.sent().len(), 1);
    let mut later = 0;
    for i in 0..600 {
        later += u32::from(host.ask("safe", &format!("n{i}.example. A")) == "later");
    }
    assert!((200..300).contains(&later), "{later}");
    let ticket = question.ticket + (1 << 24);
    let nobody = Wanted {
        ticket: ticket << 8,
        ..question
    };
    assert_eq!(
        ask_for(&mut host, &nobody, 2),
        Some(Vec::new()),
        "no such check"
    );
}

#[test]
fn nobody_waits_for_a_checker_that_is_busy() {
    let mut host = Host::new();
    host.ask("safe", "www.example. A +edns=1232");
    let question = wanted(&mut host).remove(0);
    assert_eq!(host.wait(4_400), [""; 0]);
    assert_eq!(host.wait(200), ["ServFail ra edns |  | "]);
    assert_eq!(host.resolver.due(), None);
    let late = checked(&mut host, question.ticket, Checked::Unknown);
    assert_eq!(late, [""; 0], "told once");
}

#[test]
fn one_asker_has_not_all_of_the_checker() {
    let mut host = Host::new();
    for i in 0..100 {
        assert_eq!(host.ask("safe", &format!("n{i}.example. A")), "later");
    }
    let running = wanted(&mut host);
    assert_eq!(running.len(), 16, "of one asker");
    let other = host.from("safe", "10.94.5.51");
    let way = Way::Udp(0, SocketAddr::new(other.address, 4000));
    let later = host.handle(&other, way, &query("other.example. A"));
    assert!(later.is_empty());
    assert_eq!(wanted(&mut host).len(), 1, "another is served");
    // In turn.
    checked(&mut host, running[3].ticket, Checked::Unknown);
    let next = wanted(&mut host);
    assert_eq!(crate::dns::wire::text(&next[0].name), "n16.example");
    assert_eq!(next.len(), 1);
    // All are told in time. What the checker is still busy with counts until it is done.
    assert_eq!(host.wait(4_500).len(), 100);
    for i in 0..20 {
        assert_eq!(host.ask("safe", &format!("m{i}.example. A")), "later");
    }
    assert_eq!(wanted(&mut host).len(), 0);
    checked(&mut host, running[0].ticket, Checked::Unknown);
    let next = wanted(&mut host);
    assert_eq!(crate::dns::wire::text(&next[0].name), "m0.example");
}

#[test]
fn rfc4035_3_2_3_where_an_alias_of_ours_leads_is_checked_and_the_whole_is_not_called_proven() {
    let mut host = Host::new();
    assert_eq!(host.ask("safe", "cdn.safe.test. A +do"), "later");
    let question = wanted(&mut host).remove(0);
    assert_eq!(crate::dns::wire::text(&question.name), "www.example");
    let message = fetched(&mut host, &question, &SIGNED);
    let outcome = Checked::Proven {
        secure: true,
        ttl: 60,
        message,
    };
    let whole = "NoError aa ra edns | cdn.safe.test. 10 CNAME www.example.; www.example. 300 A 192.0.2.1 | ";
    assert_eq!(checked(&mut host, question.ticket, outcome), [whole]);
    assert_eq!(host.ask("safe", "cdn.safe.test. A +do"), whole, "kept");
    assert!(
        host.ask("safe", "www.example. A +do")
            .starts_with("NoError ra ad edns")
    );
}
