//! One request at a time over the daemon's unix socket.
//!
//! A blocking HTTP/1.1 exchange by hand: a command line makes one or two requests and ends, so a runtime and a
//! connection pool would cost more than they give. Events are read line by line from the same connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::wire::ErrorBody;

/// Where the daemon listens.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody listens.
    #[error("the daemon does not answer on {}: start it with `systemctl start netd` or `netd`, or name its socket with --socket ({why})", .socket.display())]
    NoDaemon {
        /// Where.
        socket: PathBuf,
        /// What the kernel said.
        why: io::Error,
    },
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Not by this user.
    #[error("{0}")]
    Forbidden(String),
    /// The command itself is wrong.
    #[error("{0}")]
    Usage(String),
    /// Something broke on this side.
    #[error("{0}")]
    Broken(String),
}

impl Failure {
    /// The process's exit code.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Broken(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::NoDaemon { .. } => 4,
            Self::Forbidden(_) => 5,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// A head that has been read: the status, and the body still to come.
struct Answer {
    status: u16,
    length: Option<usize>,
    chunked: bool,
    body: BufReader<UnixStream>,
}

impl Client {
    /// A client of the daemon that listens there.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Where the daemon hands over file descriptors.
    #[must_use]
    pub fn fd_socket(&self) -> PathBuf {
        self.socket
            .parent()
            .unwrap_or(Path::new("/run/netd"))
            .join("fd.sock")
    }

    /// Asks for something.
    ///
    /// # Errors
    /// What the daemon said, or that it does not answer.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange("GET", path, &[])
    }

    /// Gives an order.
    ///
    /// # Errors
    /// What the daemon said, or that it does not answer.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|e| Failure::Broken(e.to_string()))?;
        self.exchange("POST", path, &body)
    }

    /// Takes something away.
    ///
    /// # Errors
    /// What the daemon said, or that it does not answer.
    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.exchange("DELETE", path, &[])
    }

    /// Follows the events, line by line, until `each` says to stop.
    ///
    /// # Errors
    /// What the daemon said, or that it does not answer, or that it went away.
    pub fn events(&self, mut each: impl FnMut(&str) -> bool) -> Result<(), Failure> {
        let mut answer = self.send("GET", "/v1/events", &[])?;
        if answer.status != 200 {
            return Err(failure(answer.status, &read_body(&mut answer)?));
        }
        let mut line = String::new();
        loop {
            line.clear();
            if answer.body.read_line(&mut line)? == 0 {
                return Err(Failure::Broken("the daemon went away".to_owned()));
            }
            if let Some(data) = line.strip_prefix("data:")
                && !each(data.trim())
            {
                return Ok(());
            }
        }
    }

    fn exchange<T: DeserializeOwned>(
        &self,
        verb: &str,
        path: &str,
        body: &[u8],
    ) -> Result<T, Failure> {
        let mut answer = self.send(verb, path, body)?;
        let body = read_body(&mut answer)?;
        if !(200..300).contains(&answer.status) {
            return Err(failure(answer.status, &body));
        }
        serde_json::from_slice(&body).map_err(|e| {
            Failure::Broken(format!(
                "the daemon's answer is not understood ({e}): is it of another version?"
            ))
        })
    }

    fn send(&self, verb: &str, path: &str, body: &[u8]) -> Result<Answer, Failure> {
        let refused = |why: io::Error| {
            if why.kind() != io::ErrorKind::PermissionDenied {
                return Failure::NoDaemon {
                    socket: self.socket.clone(),
                    why,
                };
            }
            Failure::Forbidden(format!(
                "you may not talk to the daemon on {}: be root or join the group `netd`",
                self.socket.display()
            ))
        };
        let mut stream = UnixStream::connect(&self.socket).map_err(refused)?;
        let head = format!(
            "{verb} {path} HTTP/1.1\r\nhost: netd\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        read_head(BufReader::new(stream))
    }
}

fn read_head(mut reader: BufReader<UnixStream>) -> Result<Answer, Failure> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status =
        status.ok_or_else(|| Failure::Broken("the daemon closed the connection".to_owned()))?;
    let (mut length, mut chunked) = (None, false);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Answer {
                status,
                length,
                chunked,
                body: reader,
            });
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok(),
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            _ => {}
        }
    }
}

fn read_body(answer: &mut Answer) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    if answer.chunked {
        loop {
            let mut size = String::new();
            answer.body.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16)
                .map_err(|_| Failure::Broken("the daemon's answer is broken".to_owned()))?;
            io::copy(&mut (&mut answer.body).take(size as u64), &mut body)?;
            answer.body.read_line(&mut String::new())?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    match answer.length {
        Some(length) => io::copy(&mut (&mut answer.body).take(length as u64), &mut body)?,
        None => io::copy(&mut answer.body, &mut body)?,
    };
    Ok(body)
}

fn failure(status: u16, body: &[u8]) -> Failure {
    let text = serde_json::from_slice::<ErrorBody>(body).map_or_else(
        |_| {
            format!(
                "the daemon answered {status}: {}",
                String::from_utf8_lossy(body).trim()
            )
        },
        |e| e.error,
    );
    match status {
        401 | 403 => Failure::Forbidden(text),
        404 => Failure::NotFound(text),
        _ => Failure::Refused(text),
    }
}
