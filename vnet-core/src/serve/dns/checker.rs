//! Who checks signatures (DNSSEC, RFC 4033 to 4035): hickory's validator on a thread of its own, so that cryptography
//! never holds up those who ask for something else.
//!
//! ```text
//!  DNS thread ──Question──▶ checker (one runtime, one task a question)
//!             ◀──Asked ───  what has to be known: the answer itself, keys, delegations
//!             ──bytes ───▶
//!             ◀──Done ────  what came of it
//! ```
//! What it asks goes by the DNS thread's own cache and upstreams: it has no socket. It is started with the first
//! question there is for it, and ends with the thread that started it.

#[cfg(any(feature = "fuzz", test))]
mod fuzz;
mod proof;
mod trap;

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, stream};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::DnsHandle;
use hickory_resolver::proto::op::{DnsRequest, DnsResponse, ResponseCode};
use hickory_resolver::proto::serialize::binary::BinEncodable as _;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, trace};

use super::worker::Worker;
use crate::dns::wire::ede;
use crate::dns::{AnchorsId, Checked, GroupId, Question};
use crate::model::TrustAnchor;
#[cfg(any(feature = "fuzz", test))]
pub(crate) use fuzz::door as fuzz;
use proof::Trust;

/// How long a check may take: a little less than those who wait for it do. Whoever waits is told in time in any case, by the
/// DNS thread: this thread may be busy.
const PATIENCE: Duration = Duration::from_millis(4_300);
/// What may be asked for one check: an honest chain of a long name takes some thirty.
const MOST_ASKED: u32 = 96;

/// What the checker tells the DNS thread.
pub(super) enum Event {
    /// This has to be known for a check.
    Asked {
        ticket: u64,
        name: Vec<u8>,
        rtype: u16,
        reply: oneshot::Sender<Vec<u8>>,
    },
    /// A check is over.
    Done(u64, Checked),
}

type Job = (Question, Arc<[TrustAnchor]>);

/// The DNS thread's end.
pub(super) struct Checker {
    jobs: Option<mpsc::UnboundedSender<Job>>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    bell: Arc<OwnedFd>,
    waiting: HashMap<u64, oneshot::Sender<Vec<u8>>>,
    parts: u64,
}

impl Checker {
    pub(super) fn new() -> io::Result<Self> {
        let (sender, events) = channel();
        Ok(Self {
            jobs: None,
            events,
            sender,
            bell: Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?),
            waiting: HashMap::new(),
            parts: 0,
        })
    }

    /// What becomes readable when there is an event.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.bell
    }

    fn start(&mut self) -> io::Result<&mpsc::UnboundedSender<Job>> {
        if self.jobs.is_none() {
            let (jobs, inbox) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()?;
            let link = Link {
                events: self.sender.clone(),
                bell: Arc::clone(&self.bell),
            };
            std::thread::Builder::new()
                .name("dnssec".to_owned())
                .spawn(move || {
                    let local = tokio::task::LocalSet::new();
                    local.block_on(&runtime, run(inbox, link));
                })?;
            self.jobs = Some(jobs);
        }
        self.jobs.as_ref().ok_or(io::ErrorKind::NotFound.into())
    }
}

impl Worker {
    /// Hands a question to the checker.
    pub(super) fn check(&mut self, now: u64, question: Question) {
        let (ticket, anchors) = (question.ticket, question.anchors);
        let anchors = self.resolver.directory().anchors(anchors);
        let sent = self
            .checker
            .start()
            .map(|jobs| jobs.send((question, anchors)));
        if let Ok(Ok(())) = sent {
            return;
        }
        debug!("signatures cannot be checked");
        self.checker.jobs = None;
        self.resolver.checked(now, ticket, Checked::Unknown);
    }

    /// What the checker has to tell.
    pub(super) fn on_checker(&mut self) {
        let now = self.now();
        let _ = rustix::io::read(&*self.checker.bell, &mut [0u8; 8]);
        while let Ok(event) = self.checker.events.try_recv() {
            match event {
                Event::Done(ticket, outcome) => self.resolver.checked(now, ticket, outcome),
                Event::Asked {
                    ticket,
                    name,
                    rtype,
                    reply,
                } => {
                    self.checker.parts += 1;
                    let part = self.checker.parts;
                    let dice = &mut || self.random.next();
                    match self.resolver.ask_for(now, dice, ticket, part, &name, rtype) {
                        // Who does not wait any more needs no answer.
                        Some(message) => drop(reply.send(message)),
                        None => drop(self.checker.waiting.insert(part, reply)),
                    }
                }
            }
        }
    }

    /// What was asked for a check is answered.
    pub(super) fn tell_checker(&mut self, part: u64, message: Vec<u8>) {
        if let Some(reply) = self.checker.waiting.remove(&part) {
            let _ = reply.send(message);
        }
    }
}

/// The checker's way to the DNS thread.
#[derive(Clone)]
struct Link {
    events: Sender<Event>,
    bell: Arc<OwnedFd>,
}

impl Link {
    fn tell(&self, event: Event) {
        // A thread that is gone needs to know nothing.
        let _ = self.events.send(event);
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
    }
}

/// A check ends in any case, with or without an outcome: somebody waits for it.
struct End {
    link: Link,
    ticket: u64,
    outcome: Checked,
}

impl Drop for End {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Checked::Unknown);
        self.link.tell(Event::Done(self.ticket, outcome));
    }
}

/// What the task of a question knows.
struct Task {
    ticket: u64,
    asked: Cell<u32>,
    /// What was not to be had of what had to be known.
    lacks: Rc<Cell<Lack>>,
}

/// What keeps a check from being one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lack {
    Nothing,
    /// Nobody said something that had to be known: then a failure proves nothing.
    Answer,
    /// Somebody said more than an honest zone would.
    Measure,
}

tokio::task_local! {
    static TASK: Task;
}

/// All checks, one task each; those of the same upstreams and keys share what they found out.
async fn run(mut inbox: mpsc::UnboundedReceiver<Job>, link: Link) {
    let mut trusts: HashMap<(GroupId, AnchorsId), Rc<Trust>> = HashMap::new();
    while let Some((question, anchors)) = inbox.recv().await {
        let trust = trusts
            .entry((question.group, question.anchors))
            .or_insert_with(|| Rc::new(Trust::new(Ask { link: link.clone() }, anchors)));
        let (trust, link) = (Rc::clone(trust), link.clone());
        tokio::task::spawn_local(async move {
            let mut end = End {
                link,
                ticket: question.ticket,
                outcome: Checked::Unknown,
            };
            let lacks = Rc::new(Cell::new(Lack::Nothing));
            let task = Task {
                ticket: question.ticket,
                asked: Cell::new(0),
                lacks: Rc::clone(&lacks),
            };
            let Question { name, rtype, .. } = &question;
            let work = TASK.scope(task, trust.check(name, *rtype));
            let outcome = tokio::time::timeout(PATIENCE, work).await;
            end.outcome = settled(outcome.unwrap_or(Checked::Unknown), lacks.get());
        });
    }
}

/// What is told of a check that lacked something.
fn settled(outcome: Checked, lacks: Lack) -> Checked {
    match (outcome, lacks) {
        (proven @ Checked::Proven { .. }, _) => proven,
        (_, Lack::Measure) => Checked::Bogus(ede::DNSSEC_BOGUS),
        (_, Lack::Answer) => Checked::Unknown,
        (other, Lack::Nothing) => other,
    }
}

/// Asks the DNS thread.
#[derive(Clone)]
struct Ask {
    link: Link,
}

type Answers = std::pin::Pin<Box<dyn futures::Stream<Item = Result<DnsResponse, NetError>> + Send>>;

impl DnsHandle for Ask {
    type Response = Answers;
    type Runtime = TokioRuntimeProvider;

    fn send(&self, request: DnsRequest) -> Answers {
        let (reply, answer) = oneshot::channel();
        let asked = TASK.try_with(|task| {
            task.asked.set(task.asked.get() + 1);
            let query = request
                .queries
                .first()
                .filter(|_| task.asked.get() <= MOST_ASKED)?;
            trace!(%query, "asked for a check");
            self.link.tell(Event::Asked {
                ticket: task.ticket,
                name: query.name().to_lowercase().to_bytes().ok()?,
                rtype: query.query_type().into(),
                reply,
            });
            Some(())
        });
        if !matches!(asked, Ok(Some(()))) {
            return stream::once(async { Err(NetError::Busy) }).boxed();
        }
        let answer = answer.map(|message| {
            response(message.ok()).map_err(|(lack, error)| {
                let _ = TASK.try_with(|task| task.lacks.set(task.lacks.get().max(lack)));
                error
            })
        });
        stream::once(answer).boxed()
    }
}

fn response(message: Option<Vec<u8>>) -> Result<DnsResponse, (Lack, NetError)> {
    let none = |error| (Lack::Answer, error);
    let message = message.ok_or(none(NetError::Timeout))?;
    let response = DnsResponse::from_buffer(message).map_err(|e| none(e.into()))?;
    let known = [ResponseCode::NoError, ResponseCode::NXDomain];
    if !known.contains(&response.response_code) {
        Err(none(NetError::Message("no upstream knows")))
    } else if trap::is_one(&response) {
        Err((
            Lack::Measure,
            NetError::Message("no honest zone has so much"),
        ))
    } else {
        Ok(response)
    }
}
