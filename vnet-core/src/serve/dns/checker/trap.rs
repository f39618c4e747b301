//! Messages that only serve to make others work (KeyTrap, CVE-2023-50387): with each key tried on each signature, one of
//! 64 KiB costs seconds.
//!
//! What passes here is cheap: of each set of records few signatures, each tried with few keys, and what is asked for one
//! check is bounded, too.

use std::collections::HashMap;

use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::{Name, RecordType};

use super::proof::signature;

/// The most of one name. The root has four keys at most; a zone of three operators of which each changes its keys has
/// twelve, with a DS of two digests for each that a parent vouches for, and with a signature by each for the keys.
const MOST: [(RecordType, usize); 2] = [(RecordType::DS, 16), (RecordType::DNSKEY, 32)];
/// The most of one set of records.
const MOST_SIGNATURES: usize = 16;
/// The most sets in a message, each of which is looked for among all records. Those of a referral are some thirty.
const MOST_SETS: usize = 256;

/// Whether a message has more than an honest zone says.
pub(super) fn is_one(message: &Message) -> bool {
    let mut sets: HashMap<(&Name, RecordType), [usize; 2]> = HashMap::new();
    for record in message.all_sections() {
        let covered = signature(record).map(|s| s.input().type_covered);
        let of = covered.unwrap_or_else(|| record.record_type());
        let [records, signatures] = sets.entry((&record.name, of)).or_default();
        *signatures += usize::from(covered.is_some());
        *records += usize::from(covered.is_none());
        let bounded = MOST.iter().find(|(kind, _)| *kind == of);
        if *signatures > MOST_SIGNATURES || bounded.is_some_and(|(_, most)| *records > *most) {
            return true;
        }
    }
    sets.len() > MOST_SETS
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::{RData, Record};
    use hickory_resolver::proto::serialize::binary::{BinDecoder, Restrict};

    use super::*;

    const DS: (RecordType, &[u8]) = (RecordType::DS, &[0, 7, 13, 1]);
    const KEY: (RecordType, &[u8]) = (RecordType::DNSKEY, &[1, 1, 3, 13]);
    /// Of an address, by the root.
    const SIGNATURE: (RecordType, &[u8]) = (
        RecordType::RRSIG,
        &[0, 1, 13, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    const ADDRESS: (RecordType, &[u8]) = (RecordType::A, &[]);

    /// So many that begin with these bytes, each with its number after them.
    fn records((kind, head): (RecordType, &[u8]), count: usize, owner: &str) -> Vec<Record> {
        let record = |i: usize| {
            let number = u32::try_from(i).expect("few").to_be_bytes();
            let data = [head, &number].concat();
            let length = u16::try_from(data.len()).expect("short");
            let data = RData::read(&mut BinDecoder::new(&data), kind, Restrict::new(length));
            let name = Name::from_ascii(owner.replace('#', &i.to_string())).expect("a name");
            Record::from_rdata(name, 300, data.expect("a record"))
        };
        (0..count).map(record).collect()
    }

    #[test]
    fn more_than_an_honest_zone_has() {
        for (kind, owner, most) in [
            (DS, "trap.example.", 16),
            (KEY, "trap.example.", 32),
            (SIGNATURE, "trap.example.", MOST_SIGNATURES),
            (ADDRESS, "n#.example.", MOST_SETS),
        ] {
            let mut message = Message::query();
            message.answers = records(kind, most, owner);
            assert!(!is_one(&message), "{kind:?}");
            message.authorities = records(kind, most + 1, owner).split_off(most);
            assert!(is_one(&message), "{kind:?}");
        }
        // Many addresses of a name are many addresses.
        let mut message = Message::query();
        message.answers = records(ADDRESS, 1_000, "www.example.");
        message
            .answers
            .extend(records(SIGNATURE, 2, "www.example."));
        assert!(!is_one(&message));
    }
}
