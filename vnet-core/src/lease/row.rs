//! A row of the leases' log: what one commit said, sealed.
//!
//! ```text
//!   row:    mark 4 | length of the entries 4 | number 8 | floor 8 | seal 4 | entries
//!   entry:  length of the key 2 | length of the value 2 (ffff: deleted) | key | value
//! ```
//! Numbers have no gaps, and nothing in rows below the floor of the last one counts any more. The seal is a CRC-32 that
//! begins with the salt of the file. No guest knows it: what a guest says is in a row as it came (an identifier of a
//! thousand bytes), and must not be taken for a row of its own when what was before it is torn.

use super::Change;
use super::LeaseRecord;

/// How a row begins.
pub const MARK: [u8; 4] = *b"\xf1row";
/// What is before the entries.
pub const HEAD: usize = 28;
/// The length that says "deleted".
const GONE: u16 = u16::MAX;

/// What makes the rows of one file its own.
pub type Salt = [u8; 8];

/// A row whose seal was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Its place among all rows.
    pub number: u64,
    /// The first row in which something counted when this one was written.
    pub floor: u64,
    entries: &'a [u8],
}

/// What one entry says: this key has this value, or none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// As [`LeaseRecord::key`] makes it.
    pub key: &'a [u8],
    /// As [`LeaseRecord::to_bytes`] makes it.
    pub value: Option<&'a [u8]>,
}

/// The entries of a row that is being written.
#[derive(Debug, Default)]
pub struct Draft {
    /// A head's place, and the entries.
    bytes: Vec<u8>,
}

impl Draft {
    /// Adds what was said of one address.
    pub fn say(&mut self, entry: Entry<'_>) {
        if self.bytes.is_empty() {
            self.bytes.resize(HEAD, 0);
        }
        // A key is a name and an address, a record a few bounded fields: both are far shorter than 64 KiB.
        let len = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(GONE - 1);
        let out = &mut self.bytes;
        out.extend_from_slice(&len(entry.key).to_be_bytes());
        out.extend_from_slice(&entry.value.map_or(GONE, len).to_be_bytes());
        out.extend_from_slice(entry.key);
        out.extend_from_slice(entry.value.unwrap_or_default());
    }

    /// Adds a change.
    pub fn change(&mut self, change: &Change) {
        match change {
            Change::Put(lease) => self.say(Entry {
                key: &LeaseRecord::key(&lease.network, lease.address),
                value: Some(&lease.to_bytes()),
            }),
            Change::Delete(network, address) => self.say(Entry {
                key: &LeaseRecord::key(network, *address),
                value: None,
            }),
        }
    }

    /// What others could have written, for [`crate::fuzz`].
    #[cfg(any(feature = "fuzz", test))]
    pub(crate) fn raw(entries: &[u8]) -> Self {
        let mut bytes = vec![0; HEAD];
        bytes.extend_from_slice(entries);
        Self { bytes }
    }

    /// How many bytes the row will have.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was said.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The row. `None` for one of four gigabytes.
    #[must_use]
    pub fn seal(mut self, salt: Salt, number: u64, floor: u64) -> Option<Vec<u8>> {
        let (head, entries) = self.bytes.split_at_mut_checked(HEAD)?;
        head[..4].copy_from_slice(&MARK);
        head[4..8].copy_from_slice(&u32::try_from(entries.len()).ok()?.to_be_bytes());
        head[8..16].copy_from_slice(&number.to_be_bytes());
        head[16..24].copy_from_slice(&floor.to_be_bytes());
        let seal = seal(salt, &head[..24], entries);
        head[24..].copy_from_slice(&seal.to_be_bytes());
        Some(self.bytes)
    }
}

impl<'a> Row<'a> {
    /// The row at the beginning of these bytes, and its length; `None` if there is none that is whole.
    #[must_use]
    pub fn read(salt: Salt, bytes: &'a [u8]) -> Option<(Self, usize)> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let (before, sealed) = head.split_at(24);
        let mut fields = before.strip_prefix(&MARK)?;
        let len = u32::from_be_bytes(take(&mut fields)?);
        let number = u64::from_be_bytes(take(&mut fields)?);
        let floor = u64::from_be_bytes(take(&mut fields)?);
        let entries = rest.get(..usize::try_from(len).ok()?)?;
        if seal(salt, before, entries).to_be_bytes() != sealed {
            return None;
        }
        let row = Self {
            number,
            floor,
            entries,
        };
        Some((row, HEAD + entries.len()))
    }

    /// How long the row is that begins so, whole or not.
    #[must_use]
    pub fn length(head: &[u8; HEAD]) -> usize {
        let [_, _, _, _, a, b, c, d, ..] = *head;
        HEAD.saturating_add(u32::from_be_bytes([a, b, c, d]) as usize)
    }

    /// What it says, in order; the last word on a key counts.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let mut rest = self.entries;
        std::iter::from_fn(move || {
            let entry = take_entry(&mut rest);
            if entry.is_none() {
                rest = &[];
            }
            entry
        })
    }
}

fn seal(salt: Salt, head: &[u8], entries: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt);
    hasher.update(head);
    hasher.update(entries);
    hasher.finalize()
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*head)
}

fn take_entry<'a>(from: &mut &'a [u8]) -> Option<Entry<'a>> {
    let (key, value) = (
        u16::from_be_bytes(take(from)?),
        u16::from_be_bytes(take(from)?),
    );
    let (key, rest) = from.split_at_checked(usize::from(key))?;
    let len = if value == GONE { 0 } else { usize::from(value) };
    let (bytes, rest) = rest.split_at_checked(len)?;
    *from = rest;
    Some(Entry {
        key,
        value: (value != GONE).then_some(bytes),
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const SALT: Salt = *b"01234567";

    fn entries() -> [Entry<'static>; 3] {
        let entry = |key, value| Entry { key, value };
        [
            entry(b"one", Some(b"first".as_slice())),
            entry(b"two", None),
            entry(b"", Some(b"".as_slice())),
        ]
    }

    fn row() -> Vec<u8> {
        let mut draft = Draft::default();
        entries().into_iter().for_each(|entry| draft.say(entry));
        draft.seal(SALT, 7, 5).expect("a row")
    }

    #[test]
    fn a_row_says_what_was_said() {
        let mut bytes = row();
        let len = bytes.len();
        bytes.extend_from_slice(b"what comes after it");
        let (row, end) = Row::read(SALT, &bytes).expect("a row");
        assert_eq!((row.number, row.floor, end), (7, 5, len));
        assert_eq!(row.entries().collect::<Vec<_>>(), entries());
        let head = bytes.first_chunk().expect("a head");
        assert_eq!(Row::length(head), len);
    }

    #[test]
    fn a_row_that_is_torn_changed_or_anothers_is_none() {
        let bytes = row();
        for len in 0..bytes.len() {
            assert_eq!(Row::read(SALT, &bytes[..len]), None, "{len} bytes of it");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x20;
            assert_eq!(Row::read(SALT, &changed), None, "changed at {at}");
        }
        assert_eq!(Row::read(*b"76543210", &bytes), None);
    }

    #[test]
    fn a_change_is_an_entry() {
        let (network, address) = ("lab".parse().expect("a name"), IpAddr::from([10, 0, 0, 9]));
        let mut draft = Draft::default();
        assert!(draft.is_empty());
        draft.change(&Change::Delete(network, address));
        assert_eq!(draft.len(), HEAD + 4 + 8);
        let bytes = draft.seal(SALT, 0, 0).expect("a row");
        let (row, _) = Row::read(SALT, &bytes).expect("a row");
        let gone = Entry {
            key: b"lab\0\x0a\0\0\x09",
            value: None,
        };
        assert_eq!(row.entries().collect::<Vec<_>>(), [gone]);
    }
}
