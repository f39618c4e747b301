use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket that is bound, and taken away again when dropped.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    /// The listener.
    pub listener: tokio::net::UnixListener,
}

/// Binds a unix socket that everybody may connect to (who may do what is settled by the peer's credentials).
/// A dead predecessor's socket is replaced; a living daemon's is not.
///
/// # Errors
/// When another daemon answers there, or the place cannot be written.
pub fn bind(path: &Path) -> io::Result<Listening> {
    if UnixStream::connect(path).is_ok() {
        let text = format!(
            "another netd answers on {}: stop it, or choose another --run-dir",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(Listening {
        path: path.to_owned(),
        listener: tokio::net::UnixListener::from_std(listener)?,
    })
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
