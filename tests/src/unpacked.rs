//! Programs of Debian packages that would start a service on the whole machine if they were installed: unpacked into a
//! folder instead, and run from there, in a namespace.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

use crate::{process, tool};

/// A download over a slow line.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where `program` (a path like `usr/sbin/named`) of a package is, if it can be had: installed, or unpacked now or
/// before. Why it cannot be had is a skip of `test`.
#[must_use]
pub fn program(test: &str, package: &str, program: &str) -> Option<PathBuf> {
    if !tool::ready(test, &["apt-get", "dpkg"]) {
        return None;
    }
    let path = PathBuf::from("/").join(program);
    if path.is_file() {
        return Some(path);
    }
    match unpacked(package).map(|folder| folder.join(program)) {
        Ok(path) if path.is_file() => Some(path),
        Ok(path) => {
            tool::skip(test, &format!("the package has no {}", path.display()));
            None
        }
        Err(error) => {
            tool::skip(test, &format!("{package} cannot be had: {error:#}"));
            None
        }
    }
}

/// The folder that holds a package's files, beside what cargo builds.
pub fn unpacked(package: &str) -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let target = exe.ancestors().nth(3).context("a target folder")?;
    let all = target.join("unpacked");
    fs::create_dir_all(&all)?;
    // One at a time: tests run beside each other.
    let lock = File::create(all.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let folder = all.join(package);
    if folder.is_dir() {
        return Ok(folder);
    }
    let half = all.join(format!("{package}.half"));
    if half.exists() {
        fs::remove_dir_all(&half)?;
    }
    fs::create_dir_all(&half)?;
    let line = format!(
        "cd {} && apt-get -qq download {package} && dpkg -x {package}_*.deb .",
        half.display()
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &line]);
    process::run(command, PATIENCE)?.ok()?;
    fs::rename(&half, &folder)?;
    Ok(folder)
}
