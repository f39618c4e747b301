//! What the machine offers. A test that cannot run says why, and is counted: a skip is never silent.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

/// The program's path, looked for in PATH and the system folders that an ordinary user's PATH lacks.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Are we root (of this machine or of a user namespace)?
#[must_use]
pub fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// May `test` run? It may when we are root and every program is installed. If not, the skip is printed and counted.
///
/// ```text
/// if !tool::ready("leases::dhclient_renews", &["dhclient", "dig"]) { return Ok(()) }
/// ```
#[must_use]
pub fn ready(test: &str, programs: &[&str]) -> bool {
    let missing: Vec<_> = programs
        .iter()
        .copied()
        .filter(|program| find(program).is_none())
        .collect();
    if !root() {
        skip(test, "needs root for namespaces");
    } else if !missing.is_empty() {
        skip(test, &format!("not installed: {}", missing.join(", ")));
    } else {
        return true;
    }
    false
}

/// Records that `test` did not run. `make test` gives the file to write to in `VNET_SKIPS` and prints the count.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIP {test}: {why}");
    if let Some(path) = std::env::var_os("VNET_SKIPS") {
        let line = format!("SKIP {test}: {why}\n");
        let written = File::options()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut f| f.write_all(line.as_bytes()));
        written.expect("a skip that cannot be counted would be silent");
    }
}
