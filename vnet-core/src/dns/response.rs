//! What an upstream said: checked, stripped of what was between it and us, and ready to be given to many askers.

mod private;

use hickory_proto::op::Message;

use super::wire::{
    HEADER, MAX_NAME, Query, REASON, RecordAt, ede, flag, put_opt, put_reason, put_u16, rcode,
    record_at, rtype, skip_name, u16_at, u32_at,
};

/// The longest we believe a positive answer.
const MOST: u32 = 86_400;
/// The longest we believe a negative one (RFC 2308 section 5).
const MOST_NEGATIVE: u32 = 3_600;
/// The longest lifetime we tell. RFC 8767 section 4 amends RFC 2181 section 8: one with the top bit set is long, not none.
const WEEK: u32 = 604_800;
/// How long a failure is remembered, and that nobody answered at all (RFC 9520 section 3.2: a second at least), so that
/// askers cannot hammer a broken zone through us.
const FAILURE: (u32, u32) = (1, 3);
/// How long a forgery is remembered (RFC 4035 section 4.7): short, so that a zone put right is found so.
const BOGUS: u32 = 5;
/// The lifetime told with a stale answer (RFC 8767 section 4).
pub(super) const STALE_TTL: u32 = 30;

/// A whole answer without its OPT record, with the places of its lifetimes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) bytes: Box<[u8]>,
    pub(super) ttls: Box<[u16]>,
    pub(super) question_end: u16,
    /// How long it may be kept, in seconds; 0 is not at all.
    pub(super) ttl: u32,
    /// Where an address of some private network is (what DNS rebinding needs).
    pub(super) private: Private,
    /// Why it is a failure, for those who can be told.
    pub(super) told: Option<u16>,
    /// Whether it was found to be forged: then nothing older stands in for it.
    forged: bool,
    /// Whether it showed that its sender knows EDNS.
    pub(super) edns: bool,
    /// Whether it only refers to others, as one does who does not resolve for us.
    pub(super) lame: bool,
    /// Whether it has, beside what was asked, what only those who check signatures need.
    signed: bool,
}

/// Where addresses of private networks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Private {
    #[default]
    Nowhere,
    /// Only among the additional records, which begin here with so many lifetimes before them.
    Beside(u16, u16),
    InAnswer,
}

/// What a walk over the records gathers.
#[derive(Default)]
struct Walk {
    ttls: Vec<u16>,
    /// The type asked for.
    asked: u16,
    positive: Option<u32>,
    negative: Option<u32>,
    /// Lifetimes that are told otherwise than they came.
    told: Vec<(usize, u32)>,
    /// The SOA record's place and how long it lets what is not there not be there.
    soa: Option<(usize, u32)>,
    private: bool,
    private_beside: bool,
    /// Where the additional records begin, and how many lifetimes are before them.
    beside: Option<(usize, usize)>,
    opt: Option<RecordAt>,
    signed: bool,
    answers: u16,
    /// Whether there is an answer of the type asked for, and not only aliases.
    found: bool,
    referral: bool,
}

impl Response {
    /// Checks a message that answers what was asked. `None` if it is malformed in any part.
    #[must_use]
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        let question_end = question_end(message)?;
        let mut walk = Walk {
            asked: u16_at(message, question_end - 4)?,
            ..Walk::default()
        };
        let mut at = question_end;
        for (section, counter) in [6, 8, 10].into_iter().enumerate() {
            if section == 2 {
                walk.beside = Some((at, walk.ttls.len()));
            }
            for _ in 0..u16_at(message, counter)? {
                let record = record_at(message, at)?;
                walk.take(message, section, &record)?;
                at = record.end;
            }
        }
        if let Some(opt) = walk.opt {
            if opt.end != at {
                let rest = Self::parse(&without_opt(message)?)?;
                return Some(Self { edns: true, ..rest });
            }
            at = opt.start;
        }
        let mut bytes: Box<[u8]> = message[..at].into();
        if walk.opt.is_some() {
            let additional = u16_at(message, 10)?.checked_sub(1)?;
            put_u16(&mut bytes, 10, additional);
        }
        let code = walk.code(&bytes)?;
        let ttl = walk.keep(&bytes, code);
        for (at, ttl) in walk.told.iter().chain(&walk.minimum(code)) {
            bytes
                .get_mut(*at..at + 4)?
                .copy_from_slice(&ttl.to_be_bytes());
        }
        Some(Self {
            ttl,
            private: walk.private()?,
            told: None,
            forged: false,
            edns: walk.opt.is_some(),
            lame: walk.is_lame(&bytes, code),
            signed: walk.signed,
            ttls: walk.ttls.into(),
            question_end: u16::try_from(question_end).ok()?,
            bytes,
        })
    }

    /// What those are told who did not ask for signatures (RFC 4035 section 3.2.1), whatever the upstream adds to it.
    pub(super) fn for_all(self) -> Option<Self> {
        if !self.signed {
            return Some(self);
        }
        let asked = u16_at(&self.bytes, usize::from(self.question_end) - 4)?;
        let rest = Self::parse(&without_signatures(&self.bytes, asked)?)?;
        Some(Self {
            edns: self.edns,
            ..rest
        })
    }

    /// A failure to answer this question, with a code.
    #[must_use]
    pub(super) fn failure(question: &[u8], code: u8) -> Option<Self> {
        let mut bytes = vec![0; HEADER];
        put_u16(&mut bytes, 2, flag::QR | u16::from(code));
        put_u16(&mut bytes, 4, 1);
        bytes.extend_from_slice(question);
        Self::parse(&bytes)
    }

    /// The failure that stands for nobody having answered.
    #[must_use]
    pub(super) fn silence(question: &[u8]) -> Option<Self> {
        let failure = Self::failure(question, rcode::SERV_FAIL)?;
        Some(Self {
            told: Some(ede::NO_REACHABLE_AUTHORITY),
            ttl: FAILURE.1,
            ..failure
        })
    }

    /// Whether it stands for nobody having answered.
    #[must_use]
    pub(super) fn is_silence(&self) -> bool {
        self.told == Some(ede::NO_REACHABLE_AUTHORITY)
    }

    /// Whether it says that there is no knowing, so that what was known before is better. That it was found to be forged
    /// is knowledge.
    #[must_use]
    pub(super) fn is_failure(&self) -> bool {
        let known = [rcode::NO_ERROR, rcode::NX_DOMAIN].contains(&self.code());
        self.lame || !known && !self.forged
    }

    /// The response code.
    #[must_use]
    pub(super) fn code(&self) -> u8 {
        self.bytes[3] & 15
    }

    /// Whether the upstream had more to say than fits into a datagram.
    #[must_use]
    pub(super) fn truncated(&self) -> bool {
        self.bytes[2] & 2 != 0
    }

    /// Writes it as the reply to a query with the same question, `age` seconds after it came; without private addresses
    /// beside the answer unless they may be told.
    pub(super) fn write(
        &self,
        query: &Query<'_>,
        age: Age,
        private: bool,
        limit: usize,
        out: &mut Vec<u8>,
    ) {
        let question_end = usize::from(self.question_end);
        out.clear();
        if question_end != query.question_end {
            return;
        }
        out.extend_from_slice(&self.bytes[..HEADER]);
        out.extend_from_slice(&query.bytes[HEADER..question_end]);
        let (mut end, mut ttls) = (self.bytes.len(), &*self.ttls);
        if let Private::Beside(at, before) = self.private
            && !private
        {
            (end, ttls) = (usize::from(at), &ttls[..usize::from(before)]);
            put_u16(out, 10, 0);
        }
        out.extend_from_slice(&self.bytes[question_end..end]);
        for at in ttls {
            let at = usize::from(*at);
            let told = u32_at(&self.bytes, at).unwrap_or(0);
            let ttl = match age {
                Age::Seconds(age) => told.saturating_sub(age),
                Age::Stale => STALE_TTL,
            };
            out[at..at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
        let said = u16_at(&self.bytes, 2).unwrap_or(0);
        let mut flags = said & (flag::TC | 15);
        if query.flags & flag::AD != 0 || query.dnssec_ok() {
            flags |= said & flag::AD;
        }
        let stale = (age == Age::Stale).then(|| match self.code() {
            rcode::NX_DOMAIN => ede::STALE_NX_DOMAIN,
            _ => ede::STALE_ANSWER,
        });
        let told = self.told.or(stale);
        let opt = match (&query.edns, told) {
            (None, _) => 0,
            (Some(_), None) => 11,
            (Some(_), Some(_)) => 11 + REASON,
        };
        if out.len() + opt > limit {
            out.truncate(question_end);
            out[6..HEADER].fill(0);
            flags |= flag::TC;
        }
        if opt > 0 {
            put_opt(out, query.dnssec_ok(), 0);
            if let Some(told) = told {
                put_reason(out, told);
            }
            let additional = u16_at(out, 10).unwrap_or(0).saturating_add(1);
            put_u16(out, 10, additional);
        }
        let kept = query.flags & (flag::RD | flag::CD);
        put_u16(out, 0, query.id);
        put_u16(out, 2, flag::QR | flag::RA | kept | flags);
    }
}

impl Response {
    /// What was proven, out of a message whose header and question are ours: with the sign that it was if it is signed,
    /// without what only who checks needs where nobody asked for that (RFC 4035 section 3.2.1), and without the
    /// additional records, which nobody checked.
    pub(super) fn proven(
        message: &[u8],
        secure: bool,
        dnssec_ok: bool,
        rtype: u16,
    ) -> Option<Self> {
        let mut bytes = if dnssec_ok {
            without_additional(message)?
        } else {
            without_signatures(message, rtype)?
        };
        let flags = u16_at(&bytes, 2)? & !flag::AD;
        put_u16(&mut bytes, 2, if secure { flags | flag::AD } else { flags });
        Self::parse(&bytes)
    }

    /// The failure that stands for what was found to be forged.
    pub(super) fn bogus(query: &Query<'_>, reason: u16) -> Option<Self> {
        let mut bytes = query.bytes.get(..query.question_end)?.to_vec();
        put_u16(&mut bytes, 2, flag::QR | u16::from(rcode::SERV_FAIL));
        bytes[6..HEADER].fill(0);
        let failure = Self::parse(&bytes)?;
        Some(Self {
            told: Some(reason),
            forged: true,
            ttl: BOGUS,
            ..failure
        })
    }
}

fn without_additional(message: &[u8]) -> Option<Vec<u8>> {
    let mut at = question_end(message)?;
    for counter in [6, 8] {
        for _ in 0..u16_at(message, counter)? {
            at = record_at(message, at)?.end;
        }
    }
    let mut bytes = message.get(..at)?.to_vec();
    put_u16(&mut bytes, 10, 0);
    Some(bytes)
}

fn without_signatures(message: &[u8], asked: u16) -> Option<Vec<u8>> {
    let mut parsed = Message::from_vec(message).ok()?;
    parsed.edns = None;
    parsed.additionals.clear();
    let wanted = |r: &hickory_proto::rr::Record| {
        let rtype = u16::from(r.record_type());
        rtype == asked || !rtype::PROOFS.contains(&rtype)
    };
    parsed.answers.retain(wanted);
    parsed.authorities.retain(wanted);
    parsed.to_vec().ok()
}

/// How old an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// Younger than its lifetime.
    Seconds(u32),
    /// Older, and given for want of a better.
    Stale,
}

impl Walk {
    fn take(&mut self, message: &[u8], section: usize, record: &RecordAt) -> Option<()> {
        let data = message.get(record.data..record.end)?;
        if record.rtype == rtype::OPT {
            let proper = section == 2 && self.opt.is_none() && message[record.start] == 0;
            self.opt = proper.then_some(*record);
            return self.opt.map(|_| ());
        }
        if !well_formed(message, record) {
            return None;
        }
        self.signed |= record.rtype != self.asked && rtype::PROOFS.contains(&record.rtype);
        let ttl = record.ttl.min(WEEK);
        if ttl < record.ttl {
            self.told.push((record.ttl_at, ttl));
        }
        self.ttls.push(u16::try_from(record.ttl_at).ok()?);
        match section {
            0 => {
                self.answers += 1;
                self.found |= [record.rtype, rtype::ANY].contains(&self.asked);
                self.positive = Some(self.positive.map_or(ttl, |least| least.min(ttl)));
                self.private |= private::names_inner(record.rtype, data);
            }
            1 if record.rtype == rtype::SOA && data.len() >= 22 => {
                let minimum = ttl.min(u32_at(data, data.len() - 4)?);
                self.negative = Some(minimum);
                self.soa = (minimum < ttl).then_some((record.ttl_at, minimum));
            }
            1 => self.referral |= record.rtype == rtype::NS,
            _ => self.private_beside |= private::names_inner(record.rtype, data),
        }
        Some(())
    }

    /// RFC 2308 section 3: a negative answer's SOA record tells how long it holds.
    fn minimum(&self, code: u8) -> Option<(usize, u32)> {
        self.soa.filter(|_| code == rcode::NX_DOMAIN || !self.found)
    }

    /// Whether whoever was to resolve referred to others instead (RFC 1034 section 4.3.1).
    fn is_lame(&self, bytes: &[u8], code: u8) -> bool {
        let flags = u16_at(bytes, 2).unwrap_or(0) & (flag::RA | flag::AA);
        let nothing = self.answers == 0 && self.negative.is_none();
        code == rcode::NO_ERROR && flags == 0 && nothing && self.referral
    }

    fn private(&self) -> Option<Private> {
        match self.beside {
            _ if self.private => Some(Private::InAnswer),
            Some((at, ttls)) if self.private_beside => {
                let (at, ttls) = (u16::try_from(at).ok()?, u16::try_from(ttls).ok()?);
                Some(Private::Beside(at, ttls))
            }
            _ => Some(Private::Nowhere),
        }
    }

    /// The response code; an extended one (BADVERS and the like) is no answer.
    fn code(&self, bytes: &[u8]) -> Option<u8> {
        let extended = self.opt.map_or(0, |opt| opt.ttl >> 24);
        (extended == 0).then(|| bytes.get(3).map(|b| b & 15))?
    }

    fn keep(&self, bytes: &[u8], code: u8) -> u32 {
        let truncated = bytes.get(2).is_some_and(|b| b & 2 != 0);
        match code {
            _ if truncated => 0,
            rcode::NO_ERROR if self.found => self.positive.unwrap_or(0).min(MOST),
            // RFC 2308 section 5, also for nothing behind an alias.
            rcode::NO_ERROR | rcode::NX_DOMAIN => {
                let aliases = self.positive.unwrap_or(u32::MAX);
                self.negative
                    .map_or(0, |ttl| ttl.min(aliases).min(MOST_NEGATIVE))
            }
            _ => FAILURE.0,
        }
    }
}

/// Makes a message that many seconds older. What is malformed stays as it is: nobody will take it.
#[cfg(any(feature = "host", test))]
pub(super) fn age(message: &mut [u8], seconds: u32) {
    let Some(mut at) = question_end(message).filter(|_| seconds > 0) else {
        return;
    };
    while let Some(record) = record_at(message, at) {
        if record.rtype != rtype::OPT {
            let ttl = record.ttl.min(WEEK).saturating_sub(seconds);
            message[record.ttl_at..record.ttl_at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
        at = record.end;
    }
}

/// The end of the one question.
fn question_end(message: &[u8]) -> Option<usize> {
    if u16_at(message, 4)? != 1 {
        return None;
    }
    let mut at = HEADER;
    loop {
        let len = usize::from(*message.get(at)?);
        if len > 63 || at - HEADER > MAX_NAME {
            return None;
        }
        at += len + 1;
        if len == 0 {
            return (at + 4 <= message.len()).then_some(at + 4);
        }
    }
}

/// An OPT record that others follow: rare enough to be taken apart and put together again.
fn without_opt(message: &[u8]) -> Option<Vec<u8>> {
    let mut parsed = Message::from_vec(message).ok()?;
    parsed.edns.take()?;
    parsed.to_vec().ok()
}

/// Whether the data of the common types has the shape of its type: it goes on to guests as it is, and may not hurt them.
fn well_formed(message: &[u8], record: &RecordAt) -> bool {
    let names = |skip: usize, count: usize, rest: usize| {
        let name = |at: Option<usize>, _| skip_name(message, at?);
        let end = (0..count).fold(Some(record.data + skip), name);
        end.is_some_and(|end| end + rest == record.end)
    };
    match record.rtype {
        rtype::A => record.end - record.data == 4,
        rtype::AAAA => record.end - record.data == 16,
        rtype::CNAME | rtype::NS | rtype::PTR | rtype::DNAME => names(0, 1, 0),
        rtype::MX => names(2, 1, 0),
        rtype::SRV => names(6, 1, 0),
        rtype::SOA => names(0, 2, 20),
        _ => true,
    }
}
