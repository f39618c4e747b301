//! Requests of the backend to the frontend (SET_BACKEND_REQ_FD).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::message;
use super::wire::send_with_fd;

const CONFIG_CHANGE: u32 = 2;

/// The channel. Requests on it are not acknowledged: nothing here waits for a frontend.
#[derive(Debug)]
pub struct BackendChannel(OwnedFd);

impl BackendChannel {
    /// Takes the socket that the frontend sent.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Tells the frontend that the config space changed (link state, announce).
    ///
    /// # Errors
    /// When the socket is closed or full.
    pub fn config_changed(&self) -> io::Result<()> {
        send_with_fd(
            self.0.as_fd(),
            &message::encode(CONFIG_CHANGE, false, &[]),
            None,
        )
    }
}

impl AsFd for BackendChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_config_change_is_a_bare_request() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        BackendChannel::new(ours.into())
            .config_changed()
            .expect("sent");
        let mut raw = [0; 12];
        theirs.read_exact(&mut raw).expect("a header");
        assert_eq!(raw, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }
}
