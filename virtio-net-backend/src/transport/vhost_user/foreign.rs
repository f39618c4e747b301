//! Files that a frontend chose.
//!
//! Even to close a file can take for ever: a FUSE mount is asked, and who runs it may be the one who sent it. So nothing
//! is asked of such a file before its kind is known ([`super::fds`]), and what is not known is closed by a thread that
//! does nothing else. When too many wait there, no new frontend is heard until they are gone ([`are_too_many`]).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

/// So many may wait to be closed before that is thought to be ill will.
const MOST: usize = 64;

static CLOSER: OnceLock<Option<Sender<OwnedFd>>> = OnceLock::new();
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Starts the thread, which has the rights of who calls, for a sandbox that starts none; without one nobody has to.
pub fn prepare() {
    closer();
}

/// Whether files wait to be closed that should long have been.
#[must_use]
pub fn are_too_many() -> bool {
    WAITING.load(Ordering::Relaxed) > MOST
}

fn closer() -> Option<&'static Sender<OwnedFd>> {
    let start = || {
        let (sender, receiver) = channel::<OwnedFd>();
        let (ready, is_ready) = channel();
        let closing = move || {
            drop(ready);
            for fd in receiver {
                drop(fd);
                WAITING.fetch_sub(1, Ordering::Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name("closer".to_owned());
        // Without it they are closed here, and we may wait.
        thread.spawn(closing).ok()?;
        // It begins with system calls that a sandbox does not leave.
        let _: Result<(), _> = is_ready.recv();
        Some(sender)
    };
    CLOSER.get_or_init(start).as_ref()
}

/// A file of which nothing is known yet.
#[derive(Debug)]
pub struct Foreign(Option<OwnedFd>);

impl Foreign {
    /// The file, once a check that asks no file system has said what it is.
    pub(super) fn checked(
        mut self,
        check: impl FnOnce(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<OwnedFd> {
        let fd = self.0.take().ok_or(io::ErrorKind::NotFound)?;
        match check(&fd) {
            Ok(()) => Ok(fd),
            Err(error) => {
                self.0 = Some(fd);
                Err(error)
            }
        }
    }
}

impl From<OwnedFd> for Foreign {
    fn from(fd: OwnedFd) -> Self {
        Self(Some(fd))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let (Some(fd), Some(closer)) = (self.0.take(), closer()) {
            WAITING.fetch_add(1, Ordering::Relaxed);
            // The thread ends with the process.
            drop(closer.send(fd));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use rustix::net::sockopt::set_socket_linger;

    use super::*;

    #[test]
    fn what_is_long_in_closing_keeps_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut full =
            TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (mut peer, _) = listener.accept().expect("a peer");
        full.set_nonblocking(true).expect("a flag");
        let mut sent = 0;
        while let Ok(len) = full.write(&[0; 65536]) {
            sent += len;
        }
        full.set_nonblocking(false).expect("a flag");
        // Its end waits for the peer to read all that.
        set_socket_linger(&full, Some(Duration::from_secs(60))).expect("an option");
        drop(Foreign::from(OwnedFd::from(full)));
        assert!(WAITING.load(Ordering::Relaxed) > 0);
        let mut rest = vec![0; sent];
        peer.read_exact(&mut rest).expect("read");
        drop(peer);
        while WAITING.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_known_is_the_owners() {
        let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
        let refuse = |_: &OwnedFd| Err(io::ErrorKind::Unsupported.into());
        assert!(Foreign::from(reader).checked(refuse).is_err());
        let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
        assert!(Foreign::from(reader).checked(|_| Ok(())).is_ok());
    }
}
