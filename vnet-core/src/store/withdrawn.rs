//! What networks advertised and take back: one small file beside the leases, written whole when a network's
//! advertisements change. Guests that missed the news keep a dead address for a day if we forget it, and nothing worse
//! happens: a file that cannot be read or written is told of and lived without.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::dhcp::ra::Removed;
use crate::types::NetworkName;

const FILE: &str = "withdrawn.json";

/// What is taken back, by network.
#[derive(Debug)]
pub struct Withdrawn {
    folder: PathBuf,
    of: BTreeMap<NetworkName, Removed>,
    is_saved: bool,
}

impl Withdrawn {
    /// Reads the file of a folder, if there is one.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let of = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "forgotten: what networks do not advertise any more");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Self {
            folder: folder.to_owned(),
            of,
            is_saved: true,
        }
    }

    /// What a network takes back.
    #[must_use]
    pub fn of(&self, network: &NetworkName) -> Removed {
        self.of.get(network).cloned().unwrap_or_default()
    }

    /// A network takes this back from now on, and is remembered to with the next [`Withdrawn::save`].
    pub fn put(&mut self, network: &NetworkName, removed: &Removed) {
        if self.of.get(network).unwrap_or(&Removed::default()) == removed {
            return;
        }
        if removed.is_empty() {
            self.of.remove(network);
        } else {
            self.of.insert(network.clone(), removed.clone());
        }
        self.is_saved = false;
    }

    /// Writes what is not written yet.
    pub fn save(&mut self) {
        if self.is_saved {
            return;
        }
        match self.write() {
            Ok(()) => self.is_saved = true,
            Err(error) => {
                let folder = self.folder.display();
                tracing::warn!(%folder, %error, "not kept: what networks do not advertise any more");
            }
        }
    }

    fn write(&self) -> io::Result<()> {
        let text = serde_json::to_vec(&self.of)?;
        let fresh = self.folder.join(format!("{FILE}.new"));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&fresh)?;
        file.write_all(&text)?;
        file.sync_data()?;
        fs::rename(&fresh, self.folder.join(FILE))?;
        File::open(&self.folder)?.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Scratch;

    fn removed(text: &str) -> Removed {
        serde_json::from_str(text).expect("rows")
    }

    #[test]
    fn it_is_there_after_opening_again_until_it_is_taken_out() {
        let scratch = Scratch::new("withdrawn");
        let lab: NetworkName = "lab".parse().expect("a name");
        let rows = removed(r#"[[{"prefix":"fd00::/64"},5000],["mtu",6000]]"#);
        let mut file = Withdrawn::open(&scratch.0);
        file.put(&lab, &rows);
        file.save();
        assert_eq!(Withdrawn::open(&scratch.0).of(&lab), rows);
        file.put(&lab, &Removed::default());
        file.save();
        assert!(Withdrawn::open(&scratch.0).of(&lab).is_empty());
    }

    #[test]
    fn a_damaged_file_is_lived_without_and_written_anew() {
        let scratch = Scratch::new("withdrawn-damaged");
        let lab: NetworkName = "lab".parse().expect("a name");
        fs::write(scratch.0.join(FILE), b"{\"lab\":[[{\"prefix\":\"fd00").expect("written");
        let mut file = Withdrawn::open(&scratch.0);
        assert!(file.of(&lab).is_empty());
        let rows = removed(r#"[[{"own":"fd00::/64"},5000]]"#);
        file.put(&lab, &rows);
        file.save();
        assert_eq!(Withdrawn::open(&scratch.0).of(&lab), rows);
    }
}
