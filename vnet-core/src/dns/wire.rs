//! DNS messages as bytes (RFC 1035 section 4, RFC 6891): a bounded reader of queries, and a writer of replies.
//!
//! Hand-written for the few shapes that make up nearly all traffic. Names are kept in lower-case wire form, so that
//! comparing and hashing them is comparing and hashing bytes. Whoever needs more uses `hickory-proto`.

mod edns;

pub use edns::Edns;

/// The longest name (RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 255;
/// The length of the header.
pub const HEADER: usize = 12;
/// The largest UDP message we send or ask for: no fragments on any path (DNS flag day 2020).
pub const UDP_LIMIT: usize = 1232;
/// What every client takes over UDP without EDNS (RFC 1035 section 4.2.1).
pub const UDP_CLASSIC: usize = 512;

/// Record types (the `TYPE` registry).
#[allow(missing_docs, reason = "the names are the registry's")]
pub mod rtype {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const MX: u16 = 15;
    pub const HINFO: u16 = 13;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const SVCB: u16 = 64;
    pub const HTTPS: u16 = 65;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const DS: u16 = 43;
    pub const RRSIG: u16 = 46;
    pub const NSEC: u16 = 47;
    pub const DNSKEY: u16 = 48;
    pub const NSEC3: u16 = 50;
    /// What only those who check signatures need.
    pub const PROOFS: [u16; 3] = [RRSIG, NSEC, NSEC3];
    pub const TKEY: u16 = 249;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

/// A type by its name, as people write it (`AAAA`).
#[must_use]
pub fn rtype_of(name: &str) -> Option<u16> {
    let parsed = name.to_ascii_uppercase().parse();
    parsed
        .ok()
        .map(|kind: hickory_proto::rr::RecordType| kind.into())
}

/// Response codes.
#[allow(missing_docs, reason = "the names are the registry's")]
pub mod rcode {
    pub const NO_ERROR: u8 = 0;
    pub const FORM_ERR: u8 = 1;
    pub const SERV_FAIL: u8 = 2;
    pub const NX_DOMAIN: u8 = 3;
    pub const NOT_IMP: u8 = 4;
    pub const REFUSED: u8 = 5;
}

/// Bits of the header's second word.
#[allow(missing_docs, reason = "the names are the RFC's")]
pub mod flag {
    pub const QR: u16 = 0x8000;
    pub const AA: u16 = 0x0400;
    pub const TC: u16 = 0x0200;
    pub const RD: u16 = 0x0100;
    pub const RA: u16 = 0x0080;
    pub const AD: u16 = 0x0020;
    pub const CD: u16 = 0x0010;
}

/// What an extended error says beside the response code (RFC 8914 section 4).
#[allow(missing_docs, reason = "the names are the RFC's")]
pub mod ede {
    pub const STALE_ANSWER: u16 = 3;
    pub const DNSSEC_BOGUS: u16 = 6;
    pub const SIGNATURE_EXPIRED: u16 = 7;
    pub const SIGNATURE_NOT_YET_VALID: u16 = 8;
    pub const DNSKEY_MISSING: u16 = 9;
    pub const RRSIGS_MISSING: u16 = 10;
    pub const NSEC_MISSING: u16 = 12;
    pub const BLOCKED: u16 = 15;
    pub const PROHIBITED: u16 = 18;
    pub const STALE_NX_DOMAIN: u16 = 19;
    pub const NO_REACHABLE_AUTHORITY: u16 = 22;
}

/// The class `IN`.
pub const IN: u16 = 1;

/// The header's opcode, which is 0 for a query.
const OPCODE: u16 = 0x7800;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes([four[0], four[1], four[2], four[3]]))
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(pair) = bytes.get_mut(at..at + 2) {
        pair.copy_from_slice(&value.to_be_bytes());
    }
}

/// A name in lower-case wire form, on the stack.
#[derive(Clone, Copy)]
pub struct NameBuf {
    len: u8,
    bytes: [u8; MAX_NAME],
}

impl NameBuf {
    /// The root.
    #[must_use]
    pub const fn root() -> Self {
        Self {
            len: 1,
            bytes: [0; MAX_NAME],
        }
    }

    /// The bytes, with the root's zero.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// One label put before a name; `None` if that gets too long.
    #[must_use]
    pub fn join(label: &[u8], parent: &[u8]) -> Option<Self> {
        let mut name = Self::root();
        let (label_len, total) = (
            u8::try_from(label.len()).ok()?,
            1 + label.len() + parent.len(),
        );
        if !(1..=63).contains(&label_len) || total > MAX_NAME {
            return None;
        }
        name.bytes[0] = label_len;
        name.bytes[1..=label.len()].copy_from_slice(label);
        name.bytes[1 + label.len()..total].copy_from_slice(parent);
        name.len = u8::try_from(total).ok()?;
        Some(name)
    }

    /// This name with another in place of its root; `None` if that gets too long.
    #[must_use]
    pub fn before(&self, parent: &[u8]) -> Option<Self> {
        let own = self.as_bytes();
        let own = &own[..own.len() - 1];
        let mut name = *self;
        let end = own.len() + parent.len();
        name.bytes.get_mut(own.len()..end)?.copy_from_slice(parent);
        name.len = u8::try_from(end).ok()?;
        Some(name)
    }

    /// From text, with or without the dot at its end; `None` if it is no name.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let mut name = Self::root();
        let text = text.strip_suffix('.').unwrap_or(text);
        for label in text.rsplit('.').filter(|_| !text.is_empty()) {
            if label.is_empty() {
                return None;
            }
            name = Self::join(label.to_ascii_lowercase().as_bytes(), name.as_bytes())?;
        }
        Some(name)
    }

    /// Reads an uncompressed name; the bytes as they stand and the place after it.
    fn read(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Self::root();
        let mut next = at;
        let mut len = 0usize;
        loop {
            let label = usize::from(*message.get(next)?);
            if label > 63 || len + label + 1 > MAX_NAME {
                return None;
            }
            let from = message.get(next..=next + label)?;
            let to = &mut name.bytes[len..=len + label];
            to.copy_from_slice(from);
            to[1..].make_ascii_lowercase();
            next += label + 1;
            len += label + 1;
            if label == 0 {
                name.len = u8::try_from(len).ok()?;
                return Some((name, next));
            }
        }
    }
}

impl std::fmt::Debug for NameBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&text(self.as_bytes()))
    }
}

/// The labels of a wire name, without the root.
pub fn labels(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let len = usize::from(*rest.first()?);
        let label = rest.get(1..=len).filter(|l| !l.is_empty())?;
        rest = rest.get(len + 1..)?;
        Some(label)
    })
}

/// The name without its first label; `None` for the root.
#[must_use]
pub fn parent(name: &[u8]) -> Option<&[u8]> {
    let len = usize::from(*name.first()?);
    if len == 0 {
        return None;
    }
    name.get(len + 1..).filter(|rest| !rest.is_empty())
}

/// Whether `name` is `zone` or lies under it, by whole labels.
#[must_use]
pub fn is_under(name: &[u8], zone: &[u8]) -> bool {
    if !name.ends_with(zone) {
        return false;
    }
    let mut rest = name;
    while rest.len() > zone.len() {
        match parent(rest) {
            Some(up) => rest = up,
            None => return false,
        }
    }
    rest.len() == zone.len()
}

/// Whether the name has exactly one label.
#[must_use]
pub fn is_plain(name: &[u8]) -> bool {
    parent(name) == Some(&[0])
}

/// A wire name as people write it, without the trailing dot (the root is `.`).
#[must_use]
pub fn text(name: &[u8]) -> String {
    let parts: Vec<_> = labels(name).map(|l| l.escape_ascii().to_string()).collect();
    if parts.is_empty() {
        ".".to_owned()
    } else {
        parts.join(".")
    }
}

/// One question, checked.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The whole message.
    pub bytes: &'a [u8],
    /// The message's number.
    pub id: u16,
    /// The header's flags.
    pub flags: u16,
    /// The name asked for, in lower case (the case as asked is in `bytes`).
    pub name: NameBuf,
    /// The type asked for.
    pub rtype: u16,
    /// The class asked for.
    pub class: u16,
    /// Where the question ends.
    pub question_end: usize,
    /// EDNS, if the client speaks it.
    pub edns: Option<Edns>,
}

/// Why a message is not a query that can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// Too short to answer, or not a query: silence (an answer to an answer would make a loop).
    Silent,
    /// An answer with this code.
    Code(u8),
}

impl<'a> Query<'a> {
    /// Reads a query.
    ///
    /// # Errors
    /// Why not, and whether that deserves an answer.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Reject> {
        let word = |at| u16_at(bytes, at).ok_or(Reject::Silent);
        let (flags, counts) = (word(2)?, [word(6)?, word(8)?]);
        word(10)?;
        if flags & flag::QR != 0 {
            return Err(Reject::Silent);
        }
        if flags & OPCODE != 0 {
            return Err(Reject::Code(rcode::NOT_IMP));
        }
        let malformed = Reject::Code(rcode::FORM_ERR);
        let query = Self::read(bytes).ok_or(malformed)?;
        // RFC 1995 section 3: who asks for what has changed says since when.
        let since = u16::from(query.rtype == rtype::IXFR);
        if counts[0] > 0 || counts[1] > since {
            return Err(malformed);
        }
        Ok(query)
    }

    /// A message with one question, whatever is after it.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let word = |at| u16_at(bytes, at);
        let (id, flags) = (word(0)?, word(2)?);
        let [1, answers, authorities, additional] = [word(4)?, word(6)?, word(8)?, word(10)?]
        else {
            return None;
        };
        let (name, next) = NameBuf::read(bytes, HEADER)?;
        let (rtype, class) = (word(next)?, word(next + 2)?);
        let question_end = next + 4;
        let before = answers.checked_add(authorities)?;
        Some(Self {
            bytes,
            id,
            flags,
            name,
            rtype,
            class,
            question_end,
            edns: edns::read(bytes, question_end, before, additional)?,
        })
    }

    /// Whether the client wants DNSSEC records.
    #[must_use]
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|e| e.dnssec_ok)
    }

    /// The same query without what its answer does not depend on (a client may send 64 KiB of it).
    pub(crate) fn brief(&self) -> Box<[u8]> {
        let mut bytes = Vec::with_capacity(self.question_end + 11);
        bytes.extend_from_slice(&self.bytes[..self.question_end]);
        put_u16(&mut bytes, 10, u16::from(self.edns.is_some()));
        if let Some(edns) = self.edns {
            let [high, low] = edns.payload.to_be_bytes();
            let dnssec = if edns.dnssec_ok { 0x80 } else { 0 };
            bytes.extend_from_slice(&[0, 0, 41, high, low, 0, edns.version, dnssec, 0, 0, 0]);
        }
        bytes.into()
    }

    /// The largest UDP reply the client takes from us.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(UDP_CLASSIC, |e| {
            usize::from(e.payload).clamp(UDP_CLASSIC, UDP_LIMIT)
        })
    }
}

/// One record of a message, by its places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordAt {
    pub(crate) start: usize,
    pub(crate) rtype: u16,
    pub(crate) class: u16,
    pub(crate) ttl_at: usize,
    pub(crate) ttl: u32,
    pub(crate) data: usize,
    pub(crate) end: usize,
}

/// The record that starts here. Its owner's name is skipped, not followed: no pointer is ever chased.
pub(crate) fn record_at(bytes: &[u8], start: usize) -> Option<RecordAt> {
    let at = skip_name(bytes, start)?;
    let rtype = u16_at(bytes, at)?;
    let class = u16_at(bytes, at + 2)?;
    let ttl = u32_at(bytes, at + 4)?;
    let data = at + 10;
    let end = data + usize::from(u16_at(bytes, at + 8)?);
    (end <= bytes.len()).then_some(RecordAt {
        start,
        rtype,
        class,
        ttl_at: at + 4,
        ttl,
        data,
        end,
    })
}

/// The place after a name that may end in a pointer. A pointer has to lead back to before the name: whoever follows such
/// pointers comes to an end.
pub(crate) fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let len = *bytes.get(at)?;
        match len {
            0 => return Some(at + 1),
            1..=63 => at += usize::from(len) + 1,
            0xc0.. => {
                let target = usize::from(u16_at(bytes, at)? & 0x3fff);
                return (HEADER..start).contains(&target).then_some(at + 2);
            }
            64..=0xbf => return None,
        }
        if at - start > MAX_NAME {
            return None;
        }
    }
}

/// A reply that grows in a buffer.
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    query: &'a Query<'a>,
    counts: [u16; 3],
    limit: usize,
}

/// Whose record it is.
#[derive(Debug, Clone, Copy)]
pub enum Owner<'a> {
    /// The name asked for (two bytes: a pointer to the question, in whatever case it was asked).
    Question,
    /// The last bytes of the name asked for, from this offset into it.
    Tail(usize),
    /// Another name.
    Name(&'a [u8]),
}

/// Where in the message a record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// The answer.
    Answer,
    /// Whose authority it is: the SOA of a negative answer.
    Authority,
}

impl<'a> Reply<'a> {
    /// Starts a reply to `query`: its header and its question, exactly as asked (0x20 case is kept).
    pub fn new(out: &'a mut Vec<u8>, query: &'a Query<'a>, limit: usize) -> Self {
        out.clear();
        out.extend_from_slice(&query.bytes[..query.question_end]);
        Self {
            out,
            query,
            counts: [0; 3],
            limit,
        }
    }

    /// Adds a record of class IN.
    pub fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        rtype: u16,
        ttl: u32,
        data: &[u8],
    ) {
        match owner {
            Owner::Question => self.out.extend_from_slice(&[0xc0, 0x0c]),
            Owner::Tail(offset) => {
                let at = u16::try_from(HEADER + offset).unwrap_or(0) | 0xc000;
                self.out.extend_from_slice(&at.to_be_bytes());
            }
            Owner::Name(name) => self.out.extend_from_slice(name),
        }
        let mut fixed = [0u8; 10];
        fixed[..2].copy_from_slice(&rtype.to_be_bytes());
        fixed[2..4].copy_from_slice(&IN.to_be_bytes());
        fixed[4..8].copy_from_slice(&ttl.to_be_bytes());
        let len = u16::try_from(data.len()).unwrap_or(u16::MAX);
        fixed[8..].copy_from_slice(&len.to_be_bytes());
        self.out.extend_from_slice(&fixed);
        self.out.extend_from_slice(&data[..usize::from(len)]);
        self.counts[usize::from(section == Section::Authority)] += 1;
    }

    /// Ends the reply. `flags` are ours (AA, RA, AD); RD and CD are the client's. What does not fit is replaced by
    /// the sign that it did not (RFC 2181 section 9).
    pub fn finish(mut self, mut flags: u16, code: u8) {
        let edns_len = if self.query.edns.is_some() { 11 } else { 0 };
        if self.out.len() + edns_len > self.limit {
            self.out.truncate(self.query.question_end);
            self.counts = [0; 3];
            flags |= flag::TC;
        }
        if let Some(edns) = self.query.edns {
            put_opt(self.out, edns.dnssec_ok, 0);
            self.counts[2] = 1;
        }
        let kept = self.query.flags & (flag::RD | flag::CD);
        put_u16(self.out, 2, flag::QR | kept | flags | u16::from(code & 15));
        put_u16(self.out, 4, 1);
        for (at, count) in [6, 8, 10].into_iter().zip(self.counts) {
            put_u16(self.out, at, count);
        }
    }
}

/// Appends our OPT record.
pub(crate) fn put_opt(out: &mut Vec<u8>, dnssec_ok: bool, extended_rcode: u8) {
    let payload = u16::try_from(UDP_LIMIT).unwrap_or(u16::MAX).to_be_bytes();
    let dnssec = if dnssec_ok { 0x80 } else { 0 };
    out.extend_from_slice(&[0, 0, 41, payload[0], payload[1]]);
    out.extend_from_slice(&[extended_rcode, 0, dnssec, 0, 0, 0]);
}

/// A whole reply to a query that was read: no records, only a code.
pub fn bare(out: &mut Vec<u8>, query: &Query<'_>, flags: u16, code: u8) {
    Reply::new(out, query, usize::MAX).finish(flags, code);
}

/// The same with a reason, for those who can be told one.
pub fn refusal(out: &mut Vec<u8>, query: &Query<'_>, flags: u16, code: u8, reason: u16) {
    bare(out, query, flags, code);
    if query.edns.is_some() {
        put_reason(out, reason);
    }
}

/// What [`put_reason`] takes.
pub(crate) const REASON: usize = 6;

/// Adds a reason to our OPT record, which is the last (RFC 8914 section 2).
pub(crate) fn put_reason(out: &mut Vec<u8>, reason: u16) {
    const OPTION: u16 = 15;
    let len_at = out.len().saturating_sub(2);
    put_u16(out, len_at, 6);
    for word in [OPTION, 2, reason] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// A reply to what is no query that we answer: with its question and an OPT record for its own (RFC 6891 section 7) as far
/// as it can be read, or else the header alone. The message had at least a header.
pub fn reject(out: &mut Vec<u8>, message: &[u8], code: u8) {
    if let Some(query) = Query::read(message) {
        return bare(out, &query, query.flags & OPCODE, code);
    }
    out.clear();
    out.extend_from_slice(&[0; HEADER]);
    let (Some(id), Some(flags)) = (u16_at(message, 0), u16_at(message, 2)) else {
        return;
    };
    put_u16(out, 0, id);
    put_u16(
        out,
        2,
        flag::QR | flags & (OPCODE | flag::RD) | u16::from(code),
    );
}

/// The reply to an EDNS version that nobody has defined (RFC 6891 section 6.1.3: BADVERS, 16).
pub fn bad_version(out: &mut Vec<u8>, query: &Query<'_>) {
    bare(out, query, 0, 0);
    let at = query.question_end + 5;
    if let Some(extended) = out.get_mut(at) {
        *extended = 1;
    }
}
