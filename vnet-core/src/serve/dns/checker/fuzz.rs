//! One check with nobody but the bytes to ask: the door of [`crate::fuzz`], and what the corpus of it proves.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;

use hickory_resolver::proto::op::Message;
use rustix::event::{EventfdFlags, eventfd};

use super::{Ask, Event, Link, MOST_ASKED, TASK, Task, proof};
use crate::dns::Checked;
use crate::model::TrustAnchor;
use crate::serve::dns::tcp::Input;

/// Whose private half signed the zones of the corpus, until 2090, and is gone.
const KEY: &str = "example DNSKEY 257 3 13 \
    ZHVtqQ6tlSByvHrOK3V/VT3dKeh2P4nGwTPnQ/A4SXRiSluRouGHxNH5DYo+APbdqGdutJMYcfOoq2rps7m2sg==";

/// A question, and what is said to all that is asked because of it, each with its length in front: nothing panics, and
/// nobody is asked without end. How often somebody had an answer.
pub(crate) fn door(bytes: &[u8]) -> usize {
    judge(bytes).map_or(0, |(_, answered)| answered)
}

fn judge(bytes: &[u8]) -> Option<(Checked, usize)> {
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
    let task = Task {
        ticket: 1,
        asked: Cell::new(0),
        missed: Rc::new(Cell::new(false)),
    };
    let validator = proof::validator(Ask { link }, proof::keys(&anchors));
    let check = TASK.scope(task, proof::check(validator, &anchors, &name, rtype));
    let answered = Cell::new(0);
    let answers = async {
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
    let outcome = runtime.expect("a runtime").block_on(async {
        tokio::select! {
            outcome = check => outcome,
            () = answers => Checked::Unknown,
        }
    });
    assert!(answered.get() <= MOST_ASKED as usize);
    Some((outcome, answered.get()))
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
            let (outcome, _) = judge(&bytes).expect("a question");
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
}
