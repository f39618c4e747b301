use std::fs;

use super::*;
use crate::lease::{Client, LeaseState, Time};
use crate::types::Mac;

/// A directory of this test's own, gone at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vnet-store-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("state.redb")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

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

fn document(key: &str, json: &str) -> Op {
    Op::PutDocument {
        table: Table::Networks,
        key: key.to_owned(),
        json: json.as_bytes().to_vec(),
    }
}

#[test]
fn what_is_committed_is_there_after_opening_again() {
    let scratch = Scratch::new("again");
    let store = Store::open(&scratch.file()).unwrap();
    assert!(store.documents(Table::Networks).unwrap().is_empty());
    assert!(store.leases().unwrap().is_empty());
    let ops = [
        document("a", "1"),
        document("b", "2"),
        Op::PutLease(lease(9)),
        Op::PutLease(lease(8)),
    ];
    store.commit(&ops).unwrap();
    let gone = Op::DeleteLease {
        network: "default".parse().unwrap(),
        address: lease(9).address,
    };
    let unlisted = Op::DeleteDocument {
        table: Table::Networks,
        key: "a".to_owned(),
    };
    store.commit(&[gone.clone(), unlisted, gone]).unwrap();
    drop(store);

    let store = Store::open(&scratch.file()).unwrap();
    assert_eq!(store.leases().unwrap(), [lease(8)]);
    let documents = store.documents(Table::Networks).unwrap();
    assert_eq!(
        documents.into_iter().collect::<Vec<_>>(),
        [("b".to_owned(), b"2".to_vec())]
    );
    assert!(store.documents(Table::Ports).unwrap().is_empty());
}

#[test]
fn only_root_reads_it_and_only_one_process_has_it() {
    let scratch = Scratch::new("lock");
    let _store = Store::open(&scratch.file()).unwrap();
    let mode = fs::metadata(scratch.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Store::open(&scratch.file()).unwrap_err();
    assert!(matches!(second, StoreError::Locked(_)), "{second}");
}

#[test]
fn a_damaged_file_is_named_and_left_alone() {
    let scratch = Scratch::new("damaged");
    let junk = vec![0x5a; 8192];
    fs::write(scratch.file(), &junk).unwrap();
    let error = Store::open(&scratch.file()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert_eq!(fs::read(scratch.file()).unwrap(), junk);
}

#[test]
fn a_missing_directory_is_an_error_not_a_panic() {
    let error = Store::open(Path::new("/nonexistent/dir/state.redb")).unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
}

#[test]
fn a_log_of_renewals_does_not_grow_and_forgets_nothing() {
    let scratch = Scratch::new("log");
    let store = Store::open(&scratch.file()).unwrap();
    // One that is never said again, one that is deleted, and two hundred that are renewed a hundred times.
    store
        .commit(&[Op::PutLease(lease(1)), Op::PutLease(lease(2))])
        .unwrap();
    let gone = Op::DeleteLease {
        network: "default".parse().unwrap(),
        address: lease(2).address,
    };
    store.commit(&[gone]).unwrap();
    let mut expected = vec![lease(1)];
    for round in 0..100 {
        let renewed = (3..=203).map(|last| LeaseRecord {
            expires: Time(round),
            ..lease(last)
        });
        let renewed: Vec<_> = renewed.collect();
        let ops: Vec<_> = renewed.iter().cloned().map(Op::PutLease).collect();
        store.commit(&ops).unwrap();
        expected.splice(1.., renewed);
    }
    assert_eq!(store.leases().unwrap(), expected);
    let entries = store.0.open.lock().unwrap().as_ref().unwrap().log.entries();
    assert!(entries < 5000, "{entries} entries for 202 addresses");
    drop(store);
    let store = Store::open(&scratch.file()).unwrap();
    assert_eq!(store.leases().unwrap(), expected);
    let again = store.0.open.lock().unwrap().as_ref().unwrap().log.entries();
    assert_eq!(entries, again);
}
