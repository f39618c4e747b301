//! One check with nobody but the bytes to ask: the door of [`crate::fuzz`], and what the corpus of it proves.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;

use hickory_resolver::proto::op::Message;
use rustix::event::{EventfdFlags, eventfd};

use super::{Ask, Event, Lack, Link, MOST_ASKED, TASK, Task, Trust, settled};
use crate::dns::Checked;
use crate::model::TrustAnchor;
use crate::serve::dns::tcp::Input;

/// Whose private half signed the zones of the corpus, until 2090, and is gone.
const KEY: &str = "example DNSKEY 257 3 13 \
    ZHVtqQ6tlSByvHrOK3V/VT3dKeh2P4nGwTPnQ/A4SXRiSluRouGHxNH5DYo+APbdqGdutJMYcfOoq2rps7m2sg==";

/// A question, and what is said to all that is asked because of it, each with its length in front: nothing panics, and
/// nobody is asked without end. How often somebody had an answer.
pub(crate) fn door(bytes: &[u8]) -> usize {
    judge(bytes, 1).map_or(0, |(_, answered)| answered[0])
}

/// Asks so many times; what came of it at last, and how often somebody had an answer each time.
fn judge(bytes: &[u8], times: usize) -> Option<(Checked, Vec<usize>)> {
    let mut input = Input::default();
    input.push(bytes);
    let (name, rtype) = question(&input.next()?)?;
    let said: Vec<_> = std::iter::from_fn(|| input.next())
        .filter_map(|message| Some((question(&message)?, message)))
        .collect();
    let anchors: [TrustAnchor; 1] = [KEY.parse().expect("a key")];
    let (events, asked) = channel();
    let bell = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
    let link = Link {
        events,
        bell: Arc::new(bell),
    };
    let trust = Trust::new(Ask { link }, Arc::new(anchors));
    let answered = Cell::new(0);
    let check = async || {
        let lacks = Rc::new(Cell::new(Lack::Nothing));
        let task = Task {
            ticket: 1,
            asked: Cell::new(0),
            lacks: Rc::clone(&lacks),
        };
        let outcome = TASK.scope(task, trust.check(&name, rtype)).await;
        match lacks.get() {
            // What a check asks beside what is said here is not to be had: what is judged is the rest.
            Lack::Answer => outcome,
            lack @ (Lack::Nothing | Lack::Measure) => settled(outcome, lack),
        }
    };
    let answers = async || {
        loop {
            while let Ok(event) = asked.try_recv() {
                let Event::Asked {
                    name, rtype, reply, ..
                } = event
                else {
                    continue;
                };
                if let Some((_, message)) = said.iter().find(|(of, _)| *of == (name.clone(), rtype))
                {
                    answered.set(answered.get() + 1);
                    // Who does not wait any more needs no answer.
                    let _ = reply.send(message.to_vec());
                }
            }
            tokio::task::yield_now().await;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime");
    let mut counts = Vec::new();
    let mut outcome = Checked::Unknown;
    for _ in 0..times {
        outcome = runtime.block_on(async {
            tokio::select! {
                outcome = check() => outcome,
                () = answers() => Checked::Unknown,
            }
        });
        assert!(answered.get() <= MOST_ASKED as usize);
        counts.push(answered.take());
    }
    Some((outcome, counts))
}

/// What a message asks, in small letters.
fn question(message: &[u8]) -> Option<(Vec<u8>, u16)> {
    use hickory_resolver::proto::serialize::binary::BinEncodable as _;
    let message = Message::from_vec(message).ok()?;
    let query = message.queries.first()?;
    let name = query.name().to_lowercase().to_bytes().ok()?;
    Some((name, query.query_type().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::wire::ede;

    /// The zones are BIND's, signed by BIND; the damage is ours.
    #[test]
    fn each_of_the_corpus_is_judged_rightly() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/dnssec");
        let judged = |name: &str| {
            let bytes = std::fs::read(folder.join(name)).expect("a file of the corpus");
            let (outcome, _) = judge(&bytes, 1).expect("a question");
            match outcome {
                Checked::Proven { secure: true, .. } => "secure".to_owned(),
                Checked::Proven { secure: false, .. } => "unsigned".to_owned(),
                Checked::Bogus(ede::SIGNATURE_EXPIRED) => "expired".to_owned(),
                Checked::Bogus(_) => "bogus".to_owned(),
                Checked::Unknown => "unknown".to_owned(),
            }
        };
        for (outcome, names) in [
            (
                "secure",
                &[
                    "address",
                    "alias",
                    "delegation",
                    "keys",
                    "no-such-name",
                    "nothing-of-that-type",
                    "nsec3-no-such-name",
                    "nsec3-nothing",
                    "nsec3-wildcard",
                    "soa",
                    "wildcard",
                    "wildcard-at-the-top",
                ][..],
            ),
            ("unsigned", &["below-a-delegation"]),
            ("expired", &["expired"]),
            (
                "bogus",
                &[
                    "address-changed",
                    "key-revoked",
                    "signature-changed",
                    "signature-stripped",
                ],
            ),
            ("unknown", &["no-keys", "empty", "cut"]),
        ] {
            for name in names {
                assert_eq!(judged(name), outcome, "{name}");
            }
        }
    }
    #[test]
    fn what_was_found_out_from_the_key_of_a_zone_is_kept() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/dnssec");
        let bytes = std::fs::read(folder.join("address")).expect("a file of the corpus");
        let (outcome, asked) = judge(&bytes, 3).expect("a question");
        assert!(matches!(outcome, Checked::Proven { secure: true, .. }));
        // The keys of the zone and the address; not again the keys with which the address was checked.
        assert_eq!(asked, [3, 2, 2]);
    }

    /// KeyTrap: an answer with so many signatures is looked at no further, and is a forgery to those who ask.
    #[test]
    fn more_than_an_honest_zone_has_is_asked_no_further() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/dnssec");
        let bytes = std::fs::read(folder.join("address")).expect("a file of the corpus");
        let mut input = Input::default();
        input.push(&bytes);
        let all: Vec<_> = std::iter::from_fn(|| input.next().map(|m| m.to_vec())).collect();
        let (_, rtype) = question(&all[0]).expect("a question");
        let mut trap = Vec::new();
        for message in all {
            let mut message = Message::from_vec(&message).expect("a message");
            let asked = u16::from(message.queries[0].query_type());
            if asked == rtype {
                let signatures = message
                    .answers
                    .iter()
                    .filter(|r| r.record_type().is_rrsig());
                let signatures: Vec<_> = signatures.cloned().collect();
                let many = signatures.iter().cycle().take(400 * signatures.len());
                message.answers.extend(many.cloned());
            }
            let bytes = message.to_vec().expect("a message");
            trap.extend(u16::try_from(bytes.len()).expect("64 KiB").to_be_bytes());
            trap.extend(bytes);
        }
        let (outcome, asked) = judge(&trap, 1).expect("a question");
        assert!(outcome == Checked::Bogus(ede::DNSSEC_BOGUS));
        assert_eq!(asked, [2]);
    }
}
