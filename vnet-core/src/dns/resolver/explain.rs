//! What would become of a question, without asking anybody: for people who wonder why a name is what it is.

use std::net::IpAddr;

use hickory_proto::op::Message;

use super::super::aliased::Aliased;
use super::super::answer::{Answer, Ask, From, Refusal};
use super::super::cache::Key;
use super::super::response::{Age, Response};
use super::super::servers::{ServerId, Standing};
use super::super::wire::{HEADER, IN, NameBuf, Query, flag, put_u16};
use super::Resolver;
use crate::types::NetworkName;

/// An upstream, and how it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamState {
    /// Where it is, as the document would say it.
    pub endpoint: String,
    /// Whether it answers, as far as is known.
    pub up: bool,
    /// How long it takes, in milliseconds, if it ever answered.
    pub milliseconds: Option<u64>,
    /// Whether it does not know EDNS.
    pub no_edns: bool,
}

/// Whose word an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Ours: a name of some network of ours, or one that never leaves the machine.
    Ours,
    /// Ours: the name does not exist.
    NoSuchName,
    /// Upstreams' that was kept, with so many seconds left.
    Kept(u32),
    /// Upstreams' that was kept and is too old: it is told if they do not answer.
    Stale,
    /// Upstreams': they would be asked.
    Upstreams,
    /// Nobody's: it is refused.
    Refused(&'static str),
}

/// What would become of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// Whose word it is.
    pub whose: Whose,
    /// The records, as far as they are known.
    pub records: Vec<String>,
    /// Who is asked, in order.
    pub upstreams: Vec<UpstreamState>,
    /// Whether signatures are checked.
    pub checked: bool,
    /// Whether inner addresses of upstreams are refused.
    pub protected: bool,
}

impl Resolver {
    /// Explains a guest's question; `None` if the network is not served, or the name is none.
    #[must_use]
    pub fn explain(
        &mut self,
        now: u64,
        network: &NetworkName,
        name: &str,
        rtype: u16,
    ) -> Option<Explained> {
        let name = NameBuf::from_text(name)?;
        let message = message(&name, rtype);
        let query = Query::parse(&message).ok()?;
        let id = self.directory.id(network)?;
        let gateway = self.directory.zone(network)?.gateways().first().copied();
        let from = From {
            network: id,
            address: gateway.unwrap_or(IpAddr::from([0, 0, 0, 0])),
            host: false,
        };
        let mut out = Vec::new();
        let mut explained = Explained {
            whose: Whose::Ours,
            records: Vec::new(),
            upstreams: Vec::new(),
            checked: false,
            protected: false,
        };
        match self
            .directory
            .answer(&from, &query, usize::from(u16::MAX), &mut out)
        {
            Answer::Local => explained.records = records(&out),
            Answer::NoSuchName => explained.whose = Whose::NoSuchName,
            Answer::Refuse(refusal) => explained.whose = Whose::Refused(why(refusal)),
            Answer::Forward(ask) => {
                // Aliases of ours that led there.
                if ask.alias.is_some() {
                    explained.records = records(&out);
                }
                self.explain_others(now, ask, &query, &mut explained);
            }
        }
        Some(explained)
    }

    /// What is asked of others, and what is kept of what they said.
    fn explain_others(&mut self, now: u64, ask: Ask, query: &Query<'_>, explained: &mut Explained) {
        let name = ask.alias.as_deref().unwrap_or(query.name.as_bytes());
        let (group, inner) = self.whom(ask.group, name);
        if ask.only_links && !inner {
            explained.whose = Whose::NoSuchName;
            return;
        }
        let about = ask
            .alias
            .as_ref()
            .map(|name| Aliased::question(query, name));
        let Ok(query) = about.as_deref().map_or(Ok(*query), Query::parse) else {
            return;
        };
        let check = ask.check.filter(|_| !inner);
        explained.protected = !ask.private && !inner;
        explained.checked = check.is_some();
        let servers = self.servers(group);
        let states = servers.iter().filter_map(|id| self.state(now, *id));
        explained.upstreams = states.collect();
        let key = Key::of(group, &query);
        let key = check.map_or(key, |anchors| key.checked(anchors));
        explained.whose = Whose::Upstreams;
        if let Some(hit) = self.cache.find(now, key.as_bytes()) {
            explained.whose = match hit.age {
                Age::Seconds(age) => Whose::Kept(hit.response.ttl.saturating_sub(age)),
                Age::Stale => Whose::Stale,
            };
            let kept = told(&hit.response, &query, hit.age);
            explained.records.extend(kept);
        }
    }

    /// Every upstream, and how it does.
    pub(super) fn states(&self, now: u64) -> Vec<UpstreamState> {
        let all = self.forwarder.servers.ids();
        all.filter_map(|id| self.state(now, id)).collect()
    }

    fn state(&self, now: u64, id: ServerId) -> Option<UpstreamState> {
        let server = self.forwarder.servers.get(id)?;
        Some(UpstreamState {
            endpoint: server.endpoint.to_string(),
            up: server.standing(now) == Standing::Up,
            milliseconds: server.took(),
            no_edns: server.edns.is_lacking(now),
        })
    }

    /// Forgets what upstreams said; how many answers that was.
    pub fn flush(&mut self) -> usize {
        self.cache.clear()
    }
}

fn message(name: &NameBuf, rtype: u16) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    put_u16(&mut message, 2, flag::RD);
    put_u16(&mut message, 4, 1);
    message.extend_from_slice(name.as_bytes());
    for word in [rtype, IN] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    message
}

fn told(response: &Response, query: &Query<'_>, age: Age) -> Vec<String> {
    let mut out = Vec::new();
    response.write(query, age, true, usize::from(u16::MAX), &mut out);
    records(&out)
}

/// The answers of a message, one a line; or the code of one that has none.
fn records(message: &[u8]) -> Vec<String> {
    let Ok(message) = Message::from_vec(message) else {
        return Vec::new();
    };
    if message.answers.is_empty() {
        return vec![message.metadata.response_code.to_string()];
    }
    let text = |r: &hickory_proto::rr::Record| {
        format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data)
    };
    message.answers.iter().map(text).collect()
}

const fn why(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NotServed => "the network is not served",
        Refusal::Unsupported => "such a type is not served",
        Refusal::EdnsVersion => "the EDNS version is not known",
        Refusal::NoForward => "the network asks nobody about names of others",
        Refusal::NotRecursive => "names of others are only told to who asks for recursion",
    }
}
