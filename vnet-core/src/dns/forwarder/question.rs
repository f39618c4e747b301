//! The message of a question, and whether another message is its answer.

use super::super::wire::{HEADER, flag, put_opt, put_u16, rcode, record_at, rtype, u16_at};
use super::Dice;

/// Padded questions come in multiples of this (RFC 8467 section 4.1).
const BLOCK: usize = 128;
/// A padding option without its padding (RFC 7830 section 3).
const PADDING: [u8; 2] = [0, 12];

/// A query as it is sent: its number, flags and question, and EDNS where the upstream takes it. Padded, its length does
/// not tell those on the way what was asked.
pub(super) fn compose(
    id: u16,
    flags: u16,
    question: &[u8],
    edns: Option<bool>,
    padded: bool,
) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    put_u16(&mut message, 0, id);
    put_u16(&mut message, 2, flag::RD | flags);
    put_u16(&mut message, 4, 1);
    message.extend_from_slice(question);
    if let Some(dnssec_ok) = edns {
        put_u16(&mut message, 10, 1);
        put_opt(&mut message, dnssec_ok, 0);
        if padded {
            let data_len_at = message.len() - 2;
            let whole = (message.len() + 4).next_multiple_of(BLOCK);
            let pad = whole - message.len() - 4;
            message.extend_from_slice(&PADDING);
            message.extend_from_slice(&u16::try_from(pad).unwrap_or(0).to_be_bytes());
            message.resize(whole, 0);
            put_u16(
                &mut message,
                data_len_at,
                u16::try_from(pad + 4).unwrap_or(0),
            );
        }
    }
    message
}

/// Gives each letter of a question's name a random case: more for a forger to guess.
pub(super) fn mangle(question: &mut [u8], dice: Dice<'_>) {
    let end = question.len().saturating_sub(4);
    let (mut bits, mut left) = (0u64, 0u32);
    for byte in &mut question[..end] {
        if !byte.is_ascii_alphabetic() {
            continue;
        }
        if left == 0 {
            (bits, left) = (dice(), 64);
        }
        if bits & 1 == 1 {
            *byte ^= 0x20;
        }
        (bits, left) = (bits >> 1, left - 1);
    }
}

/// Whether a message is the answer to what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Belief {
    Yes,
    No,
    /// It is, but the case of the name was not kept.
    OtherCase,
    /// It is a complaint by one who shows no EDNS (RFC 6891 section 7), with this code.
    Complaint(u8),
}

pub(super) fn believe(message: &[u8], question: &[u8]) -> Belief {
    let (Some(flags), Some(count)) = (u16_at(message, 2), u16_at(message, 4)) else {
        return Belief::No;
    };
    if flags & flag::QR == 0 || flags & 0x7800 != 0 {
        return Belief::No;
    }
    let complaint = complaint(message);
    if let Some(code) = complaint.filter(|_| count == 0) {
        return Belief::Complaint(code);
    }
    let Some(got) = message
        .get(HEADER..HEADER + question.len())
        .filter(|_| count == 1)
    else {
        return Belief::No;
    };
    let name = question.len().saturating_sub(4);
    if got[name..] != question[name..] || !got[..name].eq_ignore_ascii_case(&question[..name]) {
        Belief::No
    } else if let Some(code) = complaint {
        Belief::Complaint(code)
    } else if got != question {
        Belief::OtherCase
    } else {
        Belief::Yes
    }
}

/// The code of a message that says it was not understood, and has no OPT record: with one, EDNS is not what was not
/// understood.
fn complaint(message: &[u8]) -> Option<u8> {
    let code = message.get(3)? & 15;
    if code != rcode::FORM_ERR && code != rcode::NOT_IMP {
        return None;
    }
    let mut at = HEADER;
    for _ in 0..u16_at(message, 4)? {
        at = super::super::wire::skip_name(message, at)? + 4;
    }
    let count = |counter| u16_at(message, counter).map(u32::from);
    for _ in 0..count(6)? + count(8)? + count(10)? {
        let record = record_at(message, at)?;
        if record.rtype == rtype::OPT {
            return None;
        }
        at = record.end;
    }
    Some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc8467_4_1_questions_are_padded_to_128() {
        for len in 5..260 {
            let question = vec![b'x'; len];
            let message = compose(7, 0, &question, Some(true), true);
            assert_eq!(message.len() % BLOCK, 0, "{len}");
            let least = HEADER + len + 11 + 4;
            assert!(message.len() < least + BLOCK, "no more than it takes");
            // RFC 7830 section 3: the option is 12 and its bytes are zero; the record has the length of all of it.
            let opt = record_at(&message, HEADER + len).unwrap();
            assert_eq!((opt.rtype, opt.end), (rtype::OPT, message.len()));
            assert_eq!(message[opt.data..opt.data + 2], [0, 12]);
            let pad = usize::from(u16_at(&message, opt.data + 2).unwrap());
            assert_eq!(opt.data + 4 + pad, message.len());
            assert!(message[opt.data + 4..].iter().all(|byte| *byte == 0));
            // RFC 7830 section 6: only where nobody sees it anyway.
            assert_eq!(compose(7, 0, &question, Some(true), false).len(), least - 4);
            assert_eq!(compose(7, 0, &question, None, true).len(), HEADER + len);
        }
    }
}
