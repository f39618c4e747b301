//! The processes that serve vhost-user ports: one a home, started here, adopted after a restart of netd.
//!
//! A `virtio-net-backend` outlives the daemon on purpose: a killed or upgraded netd finds it by its control socket and
//! only makes its ports what the world says. One that dies is started anew at once; its guests' VMMs reconnect.
//!
//! ```text
//!   RUN/vhost/<uplink>/control      one JSON line a command; the peer's pid is the process
//!   RUN/vhost/<uplink>/<port>.sock  where the VMM connects; made here, so that its owner may be a plain user
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use vnet_core::firewall::Hold;
use vnet_core::host::tap;
use vnet_core::model::{Home, Port, PortKind, World};
use vnet_core::types::Mtu;

use super::Driver;

/// A process answers, or comes up, within this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// The processes, by what they serve.
pub(super) struct Backends {
    program: PathBuf,
    folder: PathBuf,
    watched: BTreeSet<Home>,
    deaths: (mpsc::Sender<Home>, mpsc::Receiver<Home>),
}

/// What a port must be in its process.
#[derive(PartialEq, Eq)]
struct Wanted<'a> {
    port: &'a Port,
    mtu: Option<u16>,
    hold: Option<Hold>,
}

impl Backends {
    /// Processes run `program` and have their sockets below the run directory.
    pub(super) fn new(program: PathBuf, run_dir: &Path) -> Self {
        Self {
            program,
            folder: run_dir.join("vhost"),
            watched: BTreeSet::new(),
            deaths: mpsc::channel(64),
        }
    }

    /// Where the VMM of a port connects.
    pub(super) fn socket(&self, port: &Port) -> PathBuf {
        self.folder(&port.key.home)
            .join(format!("{}.sock", port.key.name))
    }

    fn folder(&self, home: &Home) -> PathBuf {
        self.folder.join(home.uplink().as_str())
    }

    /// The next process that died: its ports must be served anew.
    pub(super) async fn death(&mut self) -> Home {
        match self.deaths.1.recv().await {
            Some(home) => {
                self.watched.remove(&home);
                home
            }
            None => std::future::pending().await,
        }
    }

    /// Every home that has, or had, vhost-user ports.
    pub(super) fn homes(world: &World) -> BTreeSet<Home> {
        let ports = world
            .ports
            .values()
            .filter(|p| matches!(p.kind, PortKind::VhostUser { .. }));
        ports.map(|p| p.key.home.clone()).collect()
    }

    /// Makes the process of a home serve exactly its live vhost-user ports; without any, there is no process.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub(super) fn serve(&mut self, home: &Home, world: &World) -> Result<(), String> {
        let wanted = wanted(world, home);
        let folder = self.folder(home);
        let mut line = match (Line::open(&folder), wanted.is_empty()) {
            (Ok(line), true) => return line.end(&folder).map_err(|e| e.to_string()),
            (Ok(line), false) => line,
            (Err(_), true) => return Ok(()),
            (Err(_), false) => self.start(home, &folder)?,
        };
        let served = line
            .ports()
            .and_then(|ports| line.mend(home).map(|()| ports))
            .map_err(|e| format!("the backend of {home} does not answer: {e}"))?;
        for name in served.iter().filter(|name| !wanted.contains_key(*name)) {
            line.ask(&json!({ "op": "remove-port", "name": name }), None)
                .map_err(|e| e.to_string())?;
            let _ = std::fs::remove_file(folder.join(format!("{name}.sock")));
        }
        for (name, port) in &wanted {
            let done = if served.contains(name) {
                set(&mut line, port)
            } else {
                self.add(&mut line, port)
            };
            done.map_err(|e| format!("port {}: {e}", port.port.key))?;
        }
        self.watch(home, &folder);
        Ok(())
    }

    fn start(&self, home: &Home, folder: &Path) -> Result<Line, String> {
        let broken = |what: &str, e: &io::Error| format!("{what}: {e}");
        std::fs::create_dir_all(folder).map_err(|e| broken(&folder.display().to_string(), &e))?;
        let control = folder.join("control");
        let mut command = Command::new(&self.program);
        command
            .arg("--control")
            .arg(&control)
            .arg("--tap")
            .arg(home.uplink().as_str());
        // A group of its own: a Ctrl-C for netd is none for the guests.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut child = command.spawn().map_err(|e| {
            format!(
                "{} cannot be run ({e}): install it beside netd, or name it with --backend",
                self.program.display()
            )
        })?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(line) = Line::open(folder) {
                // Somebody must take its end, or it would stay in the process table.
                std::thread::spawn(move || child.wait());
                return Ok(line);
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!(
                    "the backend of {home} ended at once ({status}): its own lines in netd's log say why"
                ));
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                return Err(format!(
                    "the backend of {home} does not come up within {} s",
                    PATIENCE.as_secs()
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The socket is made here, so that a plain user may be its owner; the process gets it open.
    fn add(&self, line: &mut Line, wanted: &Wanted<'_>) -> io::Result<()> {
        let port = wanted.port;
        let path = self.socket(port);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))?;
        if let PortKind::VhostUser { owner: Some(owner) } = port.kind {
            std::os::unix::fs::chown(&path, Some(owner.uid), None)?;
        }
        let ask = json!({
            "op": "add-port", "name": port.key.name, "mac": port.mac, "queues": port.queues, "mtu": wanted.mtu,
            "isolated": port.isolated, "guard": wanted.hold,
        });
        line.ask(&ask, Some(listener.as_fd())).map(drop)
    }

    /// Tells of the process's death, once.
    fn watch(&mut self, home: &Home, folder: &Path) {
        if self.watched.contains(home) {
            return;
        }
        let Ok(stream) = UnixStream::connect(folder.join("control")) else {
            return;
        };
        let (sender, dead) = (self.deaths.0.clone(), home.clone());
        self.watched.insert(home.clone());
        tokio::spawn(async move {
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = tokio::net::UnixStream::from_std(stream)
            {
                // The process never speaks unasked: whatever comes is its end.
                let _ = stream.readable().await;
            }
            let _ = sender.send(dead).await;
        });
    }
}

/// What a process serves already it keeps, on today's terms.
fn set(line: &mut Line, wanted: &Wanted<'_>) -> io::Result<()> {
    let port = wanted.port;
    let ask = json!({ "op": "set-port", "name": port.key.name, "isolated": port.isolated, "guard": wanted.hold });
    line.ask(&ask, None).map(drop)
}

/// A home's live vhost-user ports, by name.
fn wanted<'a>(world: &'a World, home: &Home) -> BTreeMap<String, Wanted<'a>> {
    let network = home.network().and_then(|name| world.networks.get(name));
    let mtu = network.and_then(|network| network.bridge.mtu).map(Mtu::get);
    let ports = world.live_ports().filter(|p| p.key.home == *home);
    let mine = ports.filter(|p| matches!(p.kind, PortKind::VhostUser { .. }));
    let terms = mine.map(|port| {
        let hold = port.guard.then(|| Hold::of(world, port));
        (port.key.name.to_string(), Wanted { port, mtu, hold })
    });
    terms.collect()
}

impl Driver {
    /// Makes the processes serve what changed between two worlds. What fails is told, and does not undo the change.
    pub(super) fn serve_vhost(&mut self, before: &World) {
        let homes: BTreeSet<Home> = Backends::homes(before)
            .union(&Backends::homes(&self.world))
            .cloned()
            .collect();
        for home in homes {
            if wanted(before, &home) != wanted(&self.world, &home) {
                self.serve_home(&home);
            }
        }
    }

    /// The kernel was put right: who lost the tap by which it hangs on its bridge gets it anew.
    pub(super) fn mend_vhost(&mut self) {
        for home in Backends::homes(&self.world) {
            self.serve_home(&home);
        }
    }

    /// A process died: serve its ports anew.
    pub(super) fn revive(&mut self, home: &Home) {
        if wanted(&self.world, home).is_empty() {
            return;
        }
        self.events.emit(
            "backend.died",
            Some(&home.to_string()),
            format!("the backend of {home} died and is started anew"),
        );
        self.serve_home(home);
    }

    fn serve_home(&mut self, home: &Home) {
        if let Err(why) = self.backends.serve(home, &self.world) {
            self.events
                .emit("backend.failed", Some(&home.to_string()), why.clone());
            if let Some(network) = home.network() {
                self.warnings.entry(network.clone()).or_default().push(why);
            }
        }
    }

    /// Where a vhost-user port's VMM connects.
    pub(super) fn vhost_socket(&self, port: &Port) -> Option<String> {
        match port.kind {
            PortKind::VhostUser { .. } => Some(self.backends.socket(port).display().to_string()),
            PortKind::Tap { .. } | PortKind::TapFd { .. } | PortKind::External => None,
        }
    }
}

/// A conversation with a process.
struct Line {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Line {
    fn open(folder: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(folder.join("control"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            reader: BufReader::new(stream.try_clone()?),
            stream,
        })
    }

    /// One command, one answer; an open socket may go with it.
    fn ask(&mut self, command: &Value, with: Option<BorrowedFd<'_>>) -> io::Result<Value> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        match with {
            Some(fd) => {
                let fds = [fd];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&fds));
                sendmsg(
                    &self.stream,
                    &[IoSlice::new(&line)],
                    &mut control,
                    SendFlags::NOSIGNAL,
                )?;
            }
            None => self.stream.write_all(&line)?,
        }
        let mut answer = String::new();
        self.reader.read_line(&mut answer)?;
        let answer: Value = serde_json::from_str(&answer)?;
        match answer["ok"].as_bool() {
            Some(true) => Ok(answer),
            Some(false) | None => Err(io::Error::other(
                answer["error"]
                    .as_str()
                    .unwrap_or("it did not say why")
                    .to_owned(),
            )),
        }
    }

    /// Hands it a new end of the uplink, if the interface behind the one it has was deleted.
    fn mend(&mut self, home: &Home) -> io::Result<()> {
        let answer = self.ask(&json!({ "op": "list" }), None)?;
        if answer["uplink-attached"] != json!(false) {
            return Ok(());
        }
        let tap = tap::open(&home.uplink(), false, NonZeroU16::MIN).map_err(io::Error::other)?;
        let tap = tap.first().map(AsFd::as_fd);
        self.ask(&json!({ "op": "set-uplink" }), tap).map(drop)
    }

    fn ports(&mut self) -> io::Result<BTreeSet<String>> {
        let answer = self.ask(&json!({ "op": "list" }), None)?;
        let ports = answer["ports"].as_array().into_iter().flatten();
        Ok(ports
            .filter_map(|p| p["name"].as_str().map(str::to_owned))
            .collect())
    }

    /// Ends the process, which nobody needs any more, and takes its sockets away.
    fn end(self, folder: &Path) -> io::Result<()> {
        let peer = rustix::net::sockopt::socket_peercred(&self.stream)?;
        rustix::process::kill_process(peer.pid, rustix::process::Signal::TERM)?;
        match std::fs::remove_dir_all(folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
