//! The store on a disk that is full: a clear error, nothing acknowledged lost, and it goes on when there is room.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use tests::{Ns, tool};
use vnet_core::lease::{Client, LeaseRecord, LeaseState, Time};
use vnet_core::store::{Op, Store, StoreError};
use vnet_core::types::Mac;

#[test]
fn a_full_disk_is_told_and_loses_nothing() -> anyhow::Result<()> {
    if !tool::ready("full_disk::a_full_disk_is_told_and_loses_nothing", &[]) {
        return Ok(());
    }
    // A namespace for its mounts: nobody else sees the tiny disk.
    let ns = Ns::new("full")?;
    let folder = ns.scratch().join("disk");
    fs::create_dir(&folder)?;
    ns.enter(|| fill(&folder))?
}

fn fill(folder: &Path) -> anyhow::Result<()> {
    mount(
        "tmpfs",
        folder,
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=6m"),
    )?;
    let ballast = folder.join("ballast");
    fs::write(&ballast, vec![1; 2 << 20])?;
    let path = folder.join("netd.redb");
    let store = Store::open(&path)?;
    let mut kept = 0;
    let error = loop {
        match store.commit(&leases(kept)?) {
            Ok(()) => kept += 100,
            Err(error) => break error,
        }
        anyhow::ensure!(kept < 1_000_000, "the disk does not fill");
    };
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    assert!(error.to_string().contains("full"), "{error}");
    assert!(kept > 0, "nothing fitted");
    // It stays full, and stays an error: no panic, no half of a commit.
    for _ in 0..3 {
        assert!(store.commit(&leases(kept)?).is_err());
    }

    fs::remove_file(&ballast)?;
    store.commit(&leases(kept)?)?;
    kept += 100;
    assert_eq!(store.leases()?.len(), kept);
    drop(store);
    assert_eq!(Store::open(&path)?.leases()?.len(), kept);
    Ok(())
}

/// A hundred leases, from the nth on.
fn leases(from: usize) -> anyhow::Result<Vec<Op>> {
    let lease = |n: usize| {
        let n = u32::try_from(n)?;
        let [_, a, b, c] = n.to_be_bytes();
        let mac = Mac([2, 0, 0, a, b, c]);
        Ok(Op::PutLease(LeaseRecord {
            network: "lab".parse()?,
            address: Ipv4Addr::from(0x0a00_0000 + n).into(),
            state: LeaseState::Held,
            client: Client::Mac(mac),
            mac: Some(mac),
            client_id: None,
            via: None,
            hostname: None,
            granted: Time(1),
            expires: Time(2),
        }))
    };
    (from..from + 100).map(lease).collect()
}
