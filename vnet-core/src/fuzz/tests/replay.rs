//! Feeds the doors of a crate from its stored corpora: each file, its beginnings, and changed copies of it. One file for
//! all crates that have doors; the folder is that of the crate it is compiled in.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use super::super::{DOORS, Door};

/// Changed copies of each file.
const CHANGES: u64 = 200;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

pub(super) fn file(door: &str, name: &str) -> Vec<u8> {
    fs::read(folder().join(door).join(name)).unwrap()
}

/// A file of a corpus, its beginnings, and changed copies, always the same.
fn shapes(number: u64, bytes: &[u8], mut take: impl FnMut(&[u8])) {
    // Beginnings of long files differ little, and each takes its time.
    let less = 1 + bytes.len() / 512;
    for cut in (0..bytes.len()).step_by(less * less) {
        take(&bytes[..cut]);
    }
    take(bytes);
    for round in 0..CHANGES / less as u64 {
        let mut changed = bytes.to_vec();
        Dice(number << 32 | round).spoil(&mut changed);
        take(&changed);
    }
}

/// A seeded generator (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ z >> 31) >> 1).unwrap() % below.max(1)
    }

    fn byte(&mut self) -> u8 {
        const TELLING: [u8; 8] = [0, 1, 2, 4, 0x7f, 0x80, 0xfe, 0xff];
        match self.roll(2) {
            0 => TELLING[self.roll(TELLING.len())],
            _ => u8::try_from(self.roll(256)).unwrap(),
        }
    }

    fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.roll(4) {
            let at = self.roll(bytes.len());
            match self.roll(6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << self.roll(8),
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.insert(at, self.byte()),
                _ if at < bytes.len() => bytes[at] = self.byte(),
                _ => {}
            }
        }
    }
}

/// Feeds every door; each has a corpus, and understands some of it.
pub(super) fn all() {
    let folders = names(&folder());
    let doors: BTreeSet<_> = DOORS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, doors, "each door has a corpus");
    std::thread::scope(|scope| {
        for (name, door) in DOORS {
            scope.spawn(move || {
                let files = names(&folder().join(name));
                assert!(files.len() >= 15, "the corpus of {name} is gone");
                let mut understood = 0;
                for (number, shape) in (0..).zip(&files) {
                    shapes(number, &file(name, shape), |bytes| {
                        let outcome = catch_unwind(|| door(bytes));
                        assert!(
                            outcome.is_ok(),
                            "{name}/{shape}: {:?}",
                            bytes.escape_ascii().to_string()
                        );
                        understood += outcome.unwrap_or_default();
                    });
                }
                assert!(
                    understood > 30,
                    "{name} is understood {understood} times only"
                );
            });
        }
    });
}

/// Feeds files that are named after something honest: they are understood.
pub(super) fn honest(all: &[(&str, &[&str])]) {
    for (name, shapes) in all {
        let (_, door): &(&str, Door) = DOORS.iter().find(|(door, _)| door == name).unwrap();
        for shape in *shapes {
            assert!(door(&file(name, shape)) > 0, "{name}/{shape}");
        }
    }
}
