//! The files that others read (`lease::interop`), replaced whole: a reader sees the old one or the new one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::lease::{LeaseRecord, Time, interop};
use crate::types::{IfName, Mac, PortName};

/// Writes `<bridge>.status` into a directory that exists.
///
/// # Errors
/// What the system says; then the old file is still there.
pub fn write_status<'a>(
    directory: &Path,
    bridge: &IfName,
    leases: impl IntoIterator<Item = &'a LeaseRecord>,
    now: Time,
) -> io::Result<()> {
    replace(
        directory,
        &format!("{bridge}.status"),
        &interop::status(leases, now),
    )
}

/// Writes `<bridge>.macs` into a directory that exists.
///
/// # Errors
/// What the system says; then the old file is still there.
pub fn write_macs(
    directory: &Path,
    bridge: &IfName,
    guests: &BTreeMap<PortName, Vec<Mac>>,
) -> io::Result<()> {
    replace(directory, &format!("{bridge}.macs"), &interop::macs(guests))
}

fn replace(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let fresh = directory.join(format!(".{name}.new"));
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o644);
    let written = options.open(&fresh).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        fs::rename(&fresh, directory.join(name))
    });
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let directory = std::env::temp_dir().join(format!("vnet-files-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let bridge: IfName = "virbr0".parse().unwrap();
        let guests = [("g1".parse().unwrap(), vec![Mac([2; 6])])].into();
        write_macs(&directory, &bridge, &guests).unwrap();
        write_macs(&directory, &bridge, &BTreeMap::new()).unwrap();
        write_status(&directory, &bridge, &[], Time(0)).unwrap();
        let mut names: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["virbr0.macs", "virbr0.status"]);
        assert_eq!(
            fs::read_to_string(directory.join("virbr0.macs")).unwrap(),
            "[]"
        );
        fs::remove_dir_all(&directory).unwrap();
        assert!(write_status(&directory, &bridge, &[], Time(0)).is_err());
    }
}
