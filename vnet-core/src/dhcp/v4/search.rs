//! The domain search list on the wire (option 119).

use std::collections::BTreeMap;

/// RFC 3397 section 2: a tail that was there before is a pointer to it. `None` if these are no plain names.
pub(super) fn compressed(mut names: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut tails) = (Vec::new(), BTreeMap::<&[u8], u16>::new());
    while !names.is_empty() {
        let (mut name, rest) = names.split_at(len_of_first(names)?);
        names = rest;
        while let Some(len) = name.first().filter(|len| **len > 0) {
            if let Some(at) = tails.get(name) {
                out.extend_from_slice(&(0xc000 | at).to_be_bytes());
                break;
            }
            let at = u16::try_from(out.len()).ok().filter(|at| *at < 0x4000);
            tails.extend(at.map(|at| (name, at)));
            let (label, tail) = name.split_at(1 + usize::from(*len));
            out.extend_from_slice(label);
            name = tail;
        }
        if name == [0] {
            out.push(0);
        }
    }
    Some(out)
}

/// The length of the first name, its final zero included.
fn len_of_first(names: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match usize::from(*names.get(at)?) {
            0 => return Some(at + 1),
            len @ 1..64 => at += 1 + len,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_pointers() {
        let plain = b"\x03lab\x04test\0\x02eu\x03lab\x04test\0\x03lab\x04test\0\0\x04test\0";
        let short = b"\x03lab\x04test\0\x02eu\xc0\0\xc0\0\0\xc0\x04";
        assert_eq!(compressed(plain).as_deref(), Some(&short[..]));
        assert_eq!(compressed(b""), Some(Vec::new()));
        // Not ended, and compressed already.
        assert_eq!(compressed(b"\x03lab"), None);
        assert_eq!(compressed(short), None);
    }
}
