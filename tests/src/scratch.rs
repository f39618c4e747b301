//! A folder that belongs to one test and goes away with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A folder under the system's temporary folder, removed with all its content on drop.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one. The path is short enough for the sockets in it (a unix socket's path ends at 107 bytes).
    pub fn new(label: &str) -> anyhow::Result<Self> {
        let serial = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vt{}-{serial}-{label}", std::process::id()));
        match fs::create_dir(&path) {
            // A pid comes round again: what an earlier owner left is nobody's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_dir_all(&path)?;
                fs::create_dir(&path)
            }
            other => other,
        }
        .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of an entry in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in it and returns its path.
    pub fn write(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        let path = self.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The same, executable.
    pub fn script(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.write(name, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A test that failed has said so already; a folder left in /tmp is no second failure.
        let _ = fs::remove_dir_all(&self.0);
    }
}
