use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use super::*;
use crate::lease::row::{HEAD, MARK};
use crate::lease::{Client, LeaseState, Time};
use crate::store::tests::Scratch;
use crate::types::Mac;

fn lease(last: u8) -> LeaseRecord {
    let mac = Mac([0x52, 0x54, 0, 0, 0, last]);
    LeaseRecord {
        network: "default".parse().unwrap(),
        address: IpAddr::from([10, 0, 0, last]),
        state: LeaseState::Held,
        client: Client::Mac(mac),
        mac: Some(mac),
        client_id: None,
        via: None,
        hostname: None,
        granted: Time(1),
        expires: Time(2),
    }
}

fn put(last: u8) -> Change {
    Change::Put(lease(last))
}

fn delete(address: IpAddr) -> Change {
    Change::Delete(lease(0).network, address)
}

fn open(scratch: &Scratch) -> LeaseLog {
    LeaseLog::open(&scratch.folder()).unwrap().0
}

fn read(scratch: &Scratch) -> Vec<LeaseRecord> {
    LeaseLog::open(&scratch.folder()).unwrap().1
}

/// What opening the folder says; it is not to end well.
fn refused(scratch: &Scratch) -> StoreError {
    LeaseLog::open(&scratch.folder()).unwrap_err()
}

/// Changes bytes of a file of the log.
fn damage(scratch: &Scratch, name: &str, at: u64, bytes: &[u8]) {
    let path = scratch.folder().join(name);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn what_is_committed_is_there_after_opening_again() {
    let scratch = Scratch::new("leases");
    let (mut log, none) = LeaseLog::open(&scratch.folder()).unwrap();
    assert!(none.is_empty());
    log.commit(&[put(9), put(8)]).unwrap();
    log.commit(&[delete(lease(9).address), put(7), delete(lease(9).address)])
        .unwrap();
    drop(log);
    assert_eq!(read(&scratch), [lease(7), lease(8)]);
    // And so again, without a word in between.
    assert_eq!(read(&scratch), [lease(7), lease(8)]);
    let mut log = open(&scratch);
    log.commit(&[put(9)]).unwrap();
    drop(log);
    assert_eq!(read(&scratch), [lease(7), lease(8), lease(9)]);
}

#[test]
fn only_its_owner_reads_it_and_only_one_process_has_it() {
    let scratch = Scratch::new("leases-lock");
    let mut log = open(&scratch);
    log.commit(&[put(1)]).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(scratch.folder()), 0o700);
    assert_eq!(mode(scratch.folder().join("0")), 0o600);
    let second = refused(&scratch);
    assert!(matches!(second, StoreError::Locked(_)), "{second}");
}

#[test]
fn a_log_of_renewals_does_not_grow_and_forgets_nothing() {
    let scratch = Scratch::new("renewals");
    let mut log = open(&scratch);
    // One that is never said again, one that is deleted, and two hundred that are renewed five hundred times.
    log.commit(&[put(1), put(2)]).unwrap();
    log.commit(&[delete(lease(2).address)]).unwrap();
    let mut expected = vec![lease(1)];
    for round in 0..500 {
        let renewed = (3..=203).map(|last| LeaseRecord {
            expires: Time(round),
            ..lease(last)
        });
        let renewed: Vec<_> = renewed.collect();
        let changes: Vec<_> = renewed.iter().cloned().map(Change::Put).collect();
        log.commit(&changes).unwrap();
        log.prepare();
        expected.splice(1.., renewed);
        if round % 97 == 96 {
            drop(log);
            assert_eq!(read(&scratch), expected, "after {round} rounds");
            log = open(&scratch);
        }
    }
    let entries = log.entries;
    assert!(entries < 5000, "{entries} entries for 202 addresses");
    drop(log);
    let files = files(&scratch.folder()).unwrap();
    assert!(files.len() <= 3, "{files:?}");
    let (log, leases) = LeaseLog::open(&scratch.folder()).unwrap();
    assert_eq!(leases, expected);
    assert_eq!(log.entries, entries);
}

#[test]
fn a_row_that_is_longer_than_a_file_gets_a_file_of_its_own() {
    let scratch = Scratch::new("long");
    let mut log = open(&scratch);
    log.commit(&[put(1)]).unwrap();
    let many = (0..20_000u32).map(|n| {
        Change::Put(LeaseRecord {
            address: IpAddr::from((0x0a01_0000 + n).to_be_bytes()),
            ..lease(2)
        })
    });
    log.commit(&many.collect::<Vec<_>>()).unwrap();
    log.commit(&[put(3)]).unwrap();
    drop(log);
    assert_eq!(read(&scratch).len(), 20_002);
}

/// Whatever of the last row reached the disk: it is there, or it is not, and the next one takes its place.
#[test]
fn a_torn_row_is_as_if_it_had_never_been() {
    let scratch = Scratch::new("torn");
    let mut log = open(&scratch);
    log.commit(&[put(1)]).unwrap();
    let end = log.files[0].read(Segment::start()).unwrap().unwrap().after;
    log.commit(&[put(2)]).unwrap();
    drop(log);
    let row = {
        let bytes = fs::read(scratch.folder().join("0")).unwrap();
        bytes[usize::try_from(end).unwrap()..].to_vec()
    };
    let len = Row::length(row.first_chunk().unwrap());
    for torn in 0..len {
        damage(&scratch, "0", end, &row[..len]);
        // Its last bytes are zeros anyway, so that not every piece is one that is missing something.
        damage(&scratch, "0", end + torn as u64, &vec![0x55; len - torn]);
        assert_eq!(read(&scratch), [lease(1)], "{torn} bytes of it");
    }
    let mut log = open(&scratch);
    log.commit(&[put(3)]).unwrap();
    drop(log);
    assert_eq!(read(&scratch), [lease(1), lease(3)]);
}

#[test]
fn damage_is_named_and_never_taken_for_a_torn_row() {
    let scratch = Scratch::new("rot");
    let mut log = open(&scratch);
    for last in 1..=3 {
        log.commit(&[put(last)]).unwrap();
    }
    drop(log);
    let whole = fs::read(scratch.folder().join("0")).unwrap();
    let at = |row: u64| {
        let marks = whole.windows(4).enumerate();
        let mut marks = marks.filter(|(_, window)| *window == MARK);
        let (at, _) = marks.nth(usize::try_from(row).unwrap()).unwrap();
        at as u64
    };
    // In the head or the entries of a row that has others behind it, or at the beginning of the file.
    for place in [at(0), at(0) + 30, at(1) + 5, at(1) + HEAD as u64 + 9, 3] {
        let place_in = usize::try_from(place).unwrap();
        damage(&scratch, "0", place, &[whole[place_in] ^ 1]);
        let error = refused(&scratch);
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains("leases/0"), "{error}");
        damage(&scratch, "0", place, &[whole[place_in]]);
    }
    assert_eq!(read(&scratch).len(), 3);
}

#[test]
fn a_file_that_is_missing_is_noticed() {
    let scratch = Scratch::new("missing");
    let mut log = open(&scratch);
    let some = |round: u32| {
        (0..2000u32).map(move |n| {
            Change::Put(LeaseRecord {
                address: IpAddr::from((0x0a00_0000 + 2000 * round + n).to_be_bytes()),
                ..lease(1)
            })
        })
    };
    for round in 0..20 {
        log.commit(&some(round).collect::<Vec<_>>()).unwrap();
    }
    drop(log);
    let files = files(&scratch.folder()).unwrap();
    assert!(files.len() >= 3, "{files:?}");
    assert_eq!(read(&scratch).len(), 40_000);
    for path in files.values().rev().skip(1) {
        let aside = scratch.0.join("aside");
        fs::rename(path, &aside).unwrap();
        let error = refused(&scratch);
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        fs::rename(&aside, path).unwrap();
    }
}

/// A guest's identifier is in the log as it came: a row of its own making is nobody's row.
#[test]
fn bytes_of_a_guest_are_no_row() {
    let scratch = Scratch::new("forged");
    let forged = {
        let mut draft = crate::lease::row::Draft::default();
        draft.change(&put(66));
        draft.seal(*b"guessed!", 1, 0).unwrap()
    };
    let mut log = open(&scratch);
    log.commit(&[Change::Put(LeaseRecord {
        client_id: Some(forged.clone()),
        ..lease(1)
    })])
    .unwrap();
    let end = log.files[0].read(Segment::start()).unwrap().unwrap().after;
    drop(log);
    // And right where the next row would be, as when a file is used again.
    damage(&scratch, "0", end, &forged);
    assert_eq!(read(&scratch).len(), 1);
}

#[test]
fn an_unfinished_file_and_strangers_files_do_no_harm() {
    let scratch = Scratch::new("strangers");
    let mut log = open(&scratch);
    log.commit(&[put(1)]).unwrap();
    drop(log);
    for name in ["unfinished", "notes.txt"] {
        fs::write(scratch.folder().join(name), "half").unwrap();
    }
    assert_eq!(read(&scratch), [lease(1)]);
    assert!(!scratch.folder().join("unfinished").exists());
    assert!(scratch.folder().join("notes.txt").exists());
}

#[test]
fn a_missing_directory_is_an_error_not_a_panic() {
    let error = LeaseLog::open(Path::new("/nonexistent/dir/leases")).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
}

/// A log that uses its files again and again.
fn small(scratch: &Scratch) -> (LeaseLog, Vec<LeaseRecord>) {
    let sizes = Sizes {
        room: 600,
        slack: 8,
    };
    LeaseLog::sized(&scratch.folder(), sizes).unwrap()
}

/// The files of a log, and what is in them.
type Image = BTreeMap<PathBuf, Vec<u8>>;

fn image(scratch: &Scratch) -> Image {
    let files = files(&scratch.folder()).unwrap().into_values();
    files
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

fn restore(scratch: &Scratch, image: &Image) {
    for path in files(&scratch.folder()).unwrap().into_values() {
        fs::remove_file(path).unwrap();
    }
    for (path, bytes) in image {
        fs::write(path, bytes).unwrap();
    }
}

/// Whatever a crash leaves of one write, anywhere in a log whose files are used again and again: what was committed is
/// there, and of what was being committed all or nothing.
#[test]
fn a_crash_at_any_moment_loses_nothing_that_was_committed() {
    let scratch = Scratch::new("crash");
    let mut random = 1u64;
    let mut random = |below: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(random >> 33).unwrap() % below
    };
    let some = |n: usize| lease(u8::try_from(n).unwrap());
    let mut expected = BTreeMap::new();
    let (mut reused, mut torn) = (0, 0);
    for round in 0..400u64 {
        let mut log = small(&scratch).0;
        let before = image(&scratch);
        let changes: Vec<_> = (0..=random(3))
            .map(|_| match (random(8), random(3)) {
                (last, 0) => delete(some(last).address),
                (last, _) => Change::Put(LeaseRecord {
                    expires: Time(round),
                    ..some(last)
                }),
            })
            .collect();
        log.commit(&changes).unwrap();
        if random(2) == 0 {
            log.prepare();
        }
        drop(log);
        let old: Vec<LeaseRecord> = expected.values().cloned().collect();
        for change in &changes {
            match change {
                Change::Put(lease) => drop(expected.insert(lease.address, lease.clone())),
                Change::Delete(_, address) => drop(expected.remove(address)),
            }
        }
        let new: Vec<LeaseRecord> = expected.values().cloned().collect();
        assert_eq!(small(&scratch).1, new, "round {round}");
        // The one file that was there before and is not as it was: the row went there.
        let after = image(&scratch);
        let changed = after.iter().find_map(|(path, bytes)| {
            Some((path, bytes, before.get(path).filter(|b| *b != bytes)?))
        });
        let Some((path, bytes, was)) = changed else {
            continue;
        };
        reused += usize::from(bytes.len() == was.len() && bytes[16..44] != was[16..44]);
        let first = (0..bytes.len()).find(|at| bytes[*at] != was[*at]).unwrap();
        let last = (0..bytes.len()).rfind(|at| bytes[*at] != was[*at]).unwrap();
        let cut = first + random(last - first + 1);
        let mut half = bytes.clone();
        half[cut..].copy_from_slice(&was[cut..]);
        // Files are taken away after the row is there, so that in this moment all are.
        let mut crashed = before.clone();
        crashed.insert(path.clone(), half);
        restore(&scratch, &crashed);
        assert_eq!(
            small(&scratch).1,
            old,
            "round {round}, cut at {cut} of {first} to {last}"
        );
        torn += 1;
        restore(&scratch, &after);
        assert_eq!(small(&scratch).1, new);
    }
    assert!(
        reused > 20 && torn > 200,
        "{reused} used again, {torn} torn"
    );
}
