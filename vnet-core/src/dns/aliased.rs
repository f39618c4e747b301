//! A reply in two parts: aliases of ours, and what others say of the name that they lead to.

use hickory_proto::op::Message;

use super::wire::{self, Query, flag, put_u16, rcode, u16_at};

/// A question whose reply begins with aliases of ours.
#[derive(Debug, Clone)]
pub(super) struct Aliased {
    /// The question as the asker put it.
    query: Box<[u8]>,
    /// The reply as far as it is ours.
    reply: Box<[u8]>,
}

impl Aliased {
    pub(super) fn new(query: &Query<'_>, reply: &[u8]) -> Self {
        Self {
            query: query.bytes.into(),
            reply: reply.into(),
        }
    }

    /// The same question about the name that the aliases lead to.
    pub(super) fn question(query: &Query<'_>, name: &[u8]) -> Vec<u8> {
        let mut message = query.bytes[..wire::HEADER].to_vec();
        message.extend_from_slice(name);
        message.extend_from_slice(&query.bytes[query.question_end - 4..query.question_end]);
        put_u16(&mut message, 10, u16::from(query.edns.is_some()));
        if query.edns.is_some() {
            wire::put_opt(&mut message, query.dnssec_ok(), 0);
        }
        message
    }

    /// Puts what is ours before what was said of that name, and both under the question as it was put.
    pub(super) fn complete(&self, limit: usize, out: &mut Vec<u8>) {
        let Ok(query) = Query::parse(&self.query) else {
            return out.clear();
        };
        match self.joined(out).filter(|whole| whole.len() <= limit) {
            Some(whole) => *out = whole,
            // It does not fit, or others garbled it.
            None => match Message::from_vec(out) {
                Ok(_) => wire::bare(out, &query, flag::AA | flag::RA | flag::TC, rcode::NO_ERROR),
                Err(_) => wire::bare(out, &query, flag::RA, rcode::SERV_FAIL),
            },
        }
    }

    fn joined(&self, said: &[u8]) -> Option<Vec<u8>> {
        if u16_at(said, 2)? & flag::TC != 0 {
            return None;
        }
        let mut whole = Message::from_vec(&self.reply).ok()?;
        let said = Message::from_vec(said).ok()?;
        // RFC 6604 section 3: the code is that of the last name. Nobody signed the aliases.
        whole.metadata.response_code = said.metadata.response_code;
        whole.metadata.recursion_available = said.metadata.recursion_available;
        whole.metadata.authentic_data = false;
        whole.answers.extend(said.answers);
        whole.authorities = said.authorities;
        whole.edns = said.edns;
        whole.to_vec().ok()
    }
}
