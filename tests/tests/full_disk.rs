//! The store on a disk that is full: a clear error, nothing acknowledged lost, and it goes on when there is room.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::mount::{MountFlags, mount};
use tests::daemon::binary;
use tests::{Ns, tool, wait_for};
use vnet_core::lease::{Change, Client, LeaseRecord, LeaseState, Time};
use vnet_core::store::{LeaseLog, StoreError};
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
    let path = folder.join("leases");
    let (mut log, _) = LeaseLog::open(&path)?;
    let mut kept = 0;
    let error = loop {
        match log.commit(&leases(kept)?) {
            Ok(()) => kept += 100,
            Err(error) => break error,
        }
        log.prepare();
        anyhow::ensure!(kept < 1_000_000, "the disk does not fill");
    };
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    assert!(error.to_string().contains("full"), "{error}");
    assert!(kept > 0, "nothing fitted");
    // It stays full, and stays an error: no panic, no half of a commit.
    for _ in 0..3 {
        log.prepare();
        assert!(log.commit(&leases(kept)?).is_err());
    }

    fs::remove_file(&ballast)?;
    log.commit(&leases(kept)?)?;
    kept += 100;
    drop(log);
    assert_eq!(LeaseLog::open(&path)?.1.len(), kept);
    Ok(())
}

/// Room for leases is on disk before it is needed: renewals go on when others have filled it.
#[test]
fn leases_are_renewed_on_a_full_disk() -> anyhow::Result<()> {
    if !tool::ready("full_disk::leases_are_renewed_on_a_full_disk", &[]) {
        return Ok(());
    }
    let ns = Ns::new("full")?;
    let folder = ns.scratch().join("disk");
    fs::create_dir(&folder)?;
    ns.enter(|| {
        mount(
            "tmpfs",
            &folder,
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=6m"),
        )?;
        let path = folder.join("leases");
        let (mut log, _) = LeaseLog::open(&path)?;
        log.commit(&leases(0)?)?;
        let full = fs::write(folder.join("ballast"), vec![1; 8 << 20]);
        assert!(full.is_err(), "the disk does not fill");
        for _ in 0..50 {
            log.commit(&leases(0)?)?;
        }
        drop(log);
        assert_eq!(LeaseLog::open(&path)?.1.len(), 100);
        Ok(())
    })?
}

/// The whole daemon: what cannot be kept is not done, and what was before goes on.
#[test]
fn netd_on_a_full_disk_changes_nothing() -> anyhow::Result<()> {
    if !tool::ready("full_disk::netd_on_a_full_disk_changes_nothing", &["nft"]) {
        return Ok(());
    }
    let ns = Ns::new("full")?;
    let folder = ns.scratch().join("disk");
    let (state, run) = (folder.display(), ns.scratch().join("run"));
    let (netd, vnet) = (binary("netd")?, binary("vnet")?);
    fs::create_dir(&folder)?;
    // Every program has its own mounts here: the tiny disk is the daemon's alone, and seen by its root.
    let line = format!(
        "mount -t tmpfs -o size=6m none {state} && exec {} --state-dir {state} --run-dir {}",
        netd.display(),
        run.display()
    );
    let daemon = ns.spawn(&["sh", "-c", &line])?;
    let socket = run.join("netd.sock").display().to_string();
    let ask = |args: &str| {
        ns.run(&[
            "sh",
            "-c",
            &format!("{} --socket {socket} {args}", vnet.display()),
        ])
    };
    wait_for("netd", Duration::from_secs(15), || {
        ask("status")?.ok().map(drop)
    })?;
    let seen = Path::new("/proc")
        .join(daemon.id().to_string())
        .join("root");
    let ballast = seen.join(folder.strip_prefix("/")?).join("ballast");
    let full = fs::write(&ballast, vec![1; 8 << 20]);
    assert!(full.is_err(), "the disk does not fill");

    // The file of the store has some room of its own.
    let refused = (0..2000).find_map(|n| match ask(&format!("network create n{n} --no-dhcp")) {
        Ok(ran) if ran.code == Some(0) => None,
        other => Some(other.map(|ran| (n, ran))),
    });
    let (n, ran) = refused.context("the disk is full, and everything is kept")??;
    let said = ran.ok().err().context("it failed")?.to_string();
    assert!(
        said.contains("full") && said.contains("nothing was changed"),
        "{said}"
    );
    let list = ask("network list")?.ok()?;
    assert!(!list.contains(&format!("n{n} ")), "{list}");
    let bridges = ns.sh("ip -br link show type bridge | wc -l")?;
    assert_eq!(
        bridges.trim(),
        (n + 1).to_string(),
        "the default network's and those that were kept"
    );

    fs::remove_file(&ballast)?;
    ask(&format!("network create n{n}"))?.ok()?;
    Ok(())
}

/// A hundred leases, from the nth on.
fn leases(from: usize) -> anyhow::Result<Vec<Change>> {
    let lease = |n: usize| {
        let n = u32::try_from(n)?;
        let [_, a, b, c] = n.to_be_bytes();
        let mac = Mac([2, 0, 0, a, b, c]);
        Ok(Change::Put(LeaseRecord {
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
