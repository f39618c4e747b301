//! What of an answer's head matters: its status, and how long caches on the way have held it (RFC 7541 and RFC 9110).
//!
//! No table is kept: we say that ours has no room, so the other side names everything by the static table or in full.

/// What was read; what is not there is `None`, and no age is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Head {
    pub(super) status: Option<u16>,
    /// RFC 8484 section 5.1: in seconds.
    pub(super) age: u32,
}

/// The statuses that the static table has, from this number on (RFC 7541 appendix A).
const STATUS: usize = 8;
const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
/// The name `age` in that table.
const AGE: usize = 21;
/// The name `age` in Huffman's code (RFC 7541 appendix B).
const AGE_CODED: [u8; 2] = [0x1c, 0xc5];

/// A string as it lies in the block.
#[derive(Clone, Copy)]
struct Text<'a> {
    coded: bool,
    bytes: &'a [u8],
}

/// Reads a whole block; `None` if it is malformed.
pub(super) fn read(block: &[u8]) -> Option<Head> {
    let mut head = Head::default();
    let mut rest = block;
    while let Some(first) = rest.first().copied() {
        match first {
            0x80.. => {
                let index = number(&mut rest, 7)?;
                if let Some(status) = index.checked_sub(STATUS).and_then(|i| STATUSES.get(i)) {
                    head.status = Some(*status);
                }
            }
            0x40..=0x7f => field(&mut rest, 6, &mut head)?,
            0x20..=0x3f => drop(number(&mut rest, 5)?),
            0x00..=0x1f => field(&mut rest, 4, &mut head)?,
        }
    }
    Some(head)
}

/// A field in full, with its name by number or in full.
fn field(rest: &mut &[u8], prefix: u32, head: &mut Head) -> Option<()> {
    let index = number(rest, prefix)?;
    let (mut status, mut age) = ((STATUS..STATUS + 7).contains(&index), index == AGE);
    if index == 0 {
        let name = text(rest)?;
        status = !name.coded && name.bytes == b":status";
        age = if name.coded {
            name.bytes == AGE_CODED
        } else {
            name.bytes == b"age"
        };
    }
    let value = text(rest)?;
    if status {
        head.status = Some(u16::try_from(digits(value)?).ok()?);
    }
    if age {
        // An age that is no number says nothing (RFC 9111 section 5.1).
        head.age = digits(value).unwrap_or(0);
    }
    Some(())
}

/// RFC 7541 section 5.1.
fn number(rest: &mut &[u8], prefix: u32) -> Option<usize> {
    let most = (1usize << prefix) - 1;
    let (first, mut after) = rest.split_first()?;
    let mut value = usize::from(*first) & most;
    if value == most {
        for shift in [0, 7, 14, 21] {
            let (byte, next) = after.split_first()?;
            after = next;
            value += usize::from(byte & 127) << shift;
            if byte & 128 == 0 {
                *rest = after;
                return Some(value);
            }
        }
        return None;
    }
    *rest = after;
    Some(value)
}

/// RFC 7541 section 5.2.
fn text<'a>(rest: &mut &'a [u8]) -> Option<Text<'a>> {
    let coded = rest.first()? & 128 != 0;
    let len = number(rest, 7)?;
    let (bytes, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(Text { coded, bytes })
}

/// A number in decimal, as large as fits.
fn digits(text: Text<'_>) -> Option<u32> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u32::from(byte - b'0'));
    let digits: Vec<u32> = if text.coded {
        decoded(text.bytes)?
    } else {
        text.bytes.iter().map(digit).collect::<Option<_>>()?
    };
    let grow = |all: u32, digit: &u32| all.saturating_mul(10).saturating_add(*digit);
    (!digits.is_empty()).then(|| digits.iter().fold(0, grow))
}

/// Digits in Huffman's code: 0 to 2 have five bits, 3 to 9 have six; ones fill the last byte.
fn decoded(bytes: &[u8]) -> Option<Vec<u32>> {
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |i| u32::from(byte >> i & 1)));
    let mut digits = Vec::new();
    loop {
        let five: Vec<u32> = bits.by_ref().take(5).collect();
        let code = five.iter().fold(0, |code, bit| code << 1 | bit);
        match (five.len(), code) {
            (5, 0..=2) => digits.push(code),
            (5, 12..=15) => digits.push((code << 1 | bits.next()?).checked_sub(25)? + 3),
            // What is left is filling, less than a byte of it.
            (len, _) if code + 1 == 1 << len && bits.by_ref().count() + len < 8 => {
                return Some(digits);
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(block: &[u8]) -> Option<(Option<u16>, u32)> {
        read(block).map(|head| (head.status, head.age))
    }

    #[test]
    fn rfc7541_c_6_answers_in_huffmans_code() {
        // The RFC's own (appendix C.6.1): 302, cache-control, date, location; each would go into a table.
        let block = "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff\
                     6e919d29ad171863c78f0b97c8e9ae82ae43d3";
        let bytes: Vec<u8> = (0..block.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&block[i..i + 2], 16).unwrap())
            .collect();
        assert_eq!(of(&bytes), Some((Some(302), 0)));
    }

    #[test]
    fn status_and_age_however_they_are_written() {
        for (block, head) in [
            (&[0x88][..], (Some(200), 0)),
            (&[0x20, 0x8d], (Some(404), 0)),
            (b"\x08\x03503", (Some(503), 0)),
            (b"\x00\x07:status\x03204", (Some(204), 0)),
            // age by its number in the table, whose prefix is full in four bits and not in six.
            (b"\x88\x0f\x06\x03250", (Some(200), 250)),
            (b"\x88\x55\x03250", (Some(200), 250)),
            (b"\x88\x40\x03age\x0299", (Some(200), 99)),
            (b"\x88\x00\x82\x1c\xc5\x0299", (Some(200), 99)),
            (b"\x88\x55\x0a9999999999", (Some(200), u32::MAX)),
            (b"\x88\x55\x03x10", (Some(200), 0)),
            (b"\x88\x10\x06server\x01x", (Some(200), 0)),
            (b"", (None, 0)),
        ] {
            assert_eq!(of(block), Some(head), "{block:?}");
        }
        for malformed in [
            &[0x0f, 0x06, 0x05, b'1'][..],
            &[0x48],
            &[0xff, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert_eq!(of(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn every_number_in_huffmans_code() {
        const CODES: [(u32, u32); 10] = [
            (0, 5),
            (1, 5),
            (2, 5),
            (25, 6),
            (26, 6),
            (27, 6),
            (28, 6),
            (29, 6),
            (30, 6),
            (31, 6),
        ];
        for number in (0..2_000).chain([86_400, 604_800, 4_294_967_295u32]) {
            let mut bits = String::new();
            for digit in number.to_string().bytes() {
                let (code, len) = CODES[usize::from(digit - b'0')];
                bits.extend(
                    (0..len)
                        .rev()
                        .map(|i| if code >> i & 1 == 1 { '1' } else { '0' }),
                );
            }
            while !bits.len().is_multiple_of(8) {
                bits.push('1');
            }
            let bytes: Vec<u8> = (0..bits.len())
                .step_by(8)
                .map(|i| u8::from_str_radix(&bits[i..i + 8], 2).unwrap())
                .collect();
            let text = Text {
                coded: true,
                bytes: &bytes,
            };
            assert_eq!(digits(text), Some(number));
        }
    }
}
