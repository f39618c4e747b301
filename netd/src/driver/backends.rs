//! The processes that serve vhost-user ports: one a home, started here, adopted after a restart of netd.
//!
//! A `virtio-net-backend` outlives the daemon on purpose: a killed or upgraded netd finds it by its control socket and
//! only makes its ports what the world says. One that dies is started anew at once, and given the sessions that netd
//! kept for it ([`keeper`](super::keeper)): its guests' VMMs notice nothing. Where that cannot be, they reconnect.
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
use vnet_core::types::{Mtu, Rate};

use super::Driver;
use super::keeper::{Keeper, Kept, KeptPort, MOST_FDS};
use super::warnings::Source;
use crate::privilege;
use crate::wire::DeviceView;

/// A process answers, or comes up, within this time.
const PATIENCE: Duration = Duration::from_secs(3);
/// An answer about a thousand ports is shorter.
const LONGEST: usize = 8 << 20;

/// The processes, by what they serve.
pub(super) struct Backends {
    program: PathBuf,
    folder: PathBuf,
    watched: BTreeSet<Home>,
    deaths: (mpsc::Sender<Death>, mpsc::Receiver<Death>),
    /// Homes whose process could not be had, and how long we wait before the next try.
    pauses: BTreeMap<Home, Duration>,
    /// The terms that each process was told of each port last: only what changed is told again, because frames wait
    /// meanwhile.
    told: BTreeMap<Home, BTreeMap<String, Value>>,
    /// Whom a process becomes once its files are open.
    user: Option<u32>,
}

/// Whom a process becomes where no user is made for it.
const NOBODY: &str = "nobody";
/// The user that an administrator may make for the processes.
const OWN_USER: &str = "netd-backend";

/// A process ended, or could not be had.
pub(super) struct Death {
    home: Home,
    /// What was kept of it; `None` where there was none and it is to be tried again.
    left: Option<Kept>,
}

/// How often it is asked within that time.
const STEP: Duration = Duration::from_millis(5);
/// Before a process that could not be had is tried again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Who dies as soon as this may have died of a session that was given to it.
const TOO_SOON: Duration = Duration::from_secs(1);

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
            pauses: BTreeMap::new(),
            told: BTreeMap::new(),
            user: privilege::user(OWN_USER).or_else(|| privilege::user(NOBODY)),
        }
    }

    /// Where the VMM of a port connects.
    pub(super) fn socket(&self, port: &Port) -> PathBuf {
        self.folder(&port.key.home)
            .join(format!("{}.sock", port.key.name))
    }

    /// What a vhost-user port's process says of it; nothing where there is no answer, or another kind of port.
    pub(super) fn device(&self, port: &Port) -> Option<DeviceView> {
        if !matches!(port.kind, PortKind::VhostUser { .. }) {
            return None;
        }
        let mut line = Line::open(&self.folder(&port.key.home)).ok()?;
        let name = port.key.name.to_string();
        let listed = line.ask(&json!({ "op": "list" }), &[]).ok()?;
        let stats = line.ask(&json!({ "op": "stats" }), &[]).ok()?;
        let mut ports = listed["ports"].as_array().into_iter().flatten();
        let told = ports.find(|port| port["name"] == *name)?;
        let (device, switch) = (
            &stats["ports"][&name]["device"],
            &stats["ports"][&name]["switch"],
        );
        let is = |what: &str| told[what].as_bool().unwrap_or_default();
        Some(DeviceView {
            connected: is("connected"),
            running: is("running"),
            link: is("link"),
            stopped: serde_json::from_value(told["stopped"].clone()).unwrap_or_default(),
            counters: numbers(device),
            drops: numbers(&switch["drops"]),
        })
    }

    fn folder(&self, home: &Home) -> PathBuf {
        self.folder.join(home.uplink().as_str())
    }

    /// The next process that died: its ports must be served anew.
    pub(super) async fn death(&mut self) -> Death {
        match self.deaths.1.recv().await {
            Some(death) => {
                if death.left.is_some() {
                    self.watched.remove(&death.home);
                }
                death
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

    /// Makes the process of a home serve exactly its live vhost-user ports; without any, there is no process. A new one
    /// goes on with what its predecessor `left`. Whether one was started.
    ///
    /// # Errors
    /// A sentence that says what to do.
    pub(super) fn serve(
        &mut self,
        home: &Home,
        world: &World,
        mut left: Kept,
    ) -> Result<bool, String> {
        let wanted = wanted(world, home);
        let folder = self.folder(home);
        // What is said from here on may be heard or not, until all of it was answered.
        let mut told = self.told.remove(home).unwrap_or_default();
        if wanted.is_empty() {
            let alive = Line::open(&folder);
            return alive.map_or(Ok(false), |line| {
                line.end(&folder).map(|()| false).map_err(|e| e.to_string())
            });
        }
        let (mut line, listed) = self.reach(home, &folder)?;
        let started = listed.is_none();
        let listed = listed.unwrap_or_default();
        if started {
            told.clear();
        }
        line.mend(home, &listed).map_err(|e| silent(home, &e))?;
        let served = names(&listed);
        for name in served.iter().filter(|name| !wanted.contains_key(*name)) {
            line.ask(&json!({ "op": "remove-port", "name": name }), &[])
                .map_err(|e| e.to_string())?;
            let _ = std::fs::remove_file(folder.join(format!("{name}.sock")));
            told.remove(name);
        }
        for (name, port) in &wanted {
            let terms = terms(port);
            let done = if !served.contains(name) {
                self.add(&mut line, port, &terms, left.remove(name))
            } else if told.get(name) != Some(&terms) {
                set(&mut line, port, &terms)
            } else {
                Ok(())
            };
            done.map_err(|e| format!("port {}: {e}", port.port.key))?;
            told.insert(name.clone(), terms);
        }
        self.watch(home, &mut line).map_err(|e| e.to_string())?;
        self.told.insert(home.clone(), told);
        Ok(started)
    }

    /// The process, with what it has; nothing when it was started for that. One that ends while we speak to it is waited
    /// for.
    fn reach(&self, home: &Home, folder: &Path) -> Result<(Line, Option<Value>), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Ok(mut line) = Line::open(folder) else {
                return Ok((self.start(home, folder)?, None));
            };
            match line.ask(&json!({ "op": "list" }), &[]) {
                Ok(listed) => return Ok((line, Some(listed))),
                Err(e) if Instant::now() > deadline => {
                    return Err(format!("{}; {}", silent(home, &e), line.kill()));
                }
                Err(_) => std::thread::sleep(STEP),
            }
        }
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
        if let Some(user) = self.user {
            command.arg("--user").arg(user.to_string());
        }
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
            std::thread::sleep(STEP);
        }
    }

    /// The port in its process, which gets its socket open: what a predecessor had, or a new one.
    fn add(
        &self,
        line: &mut Line,
        wanted: &Wanted<'_>,
        terms: &Value,
        left: Option<KeptPort>,
    ) -> io::Result<()> {
        let port = wanted.port;
        let mut ask = terms.clone();
        ask["op"] = json!("add-port");
        ask["name"] = json!(port.key.name);
        ask["mac"] = json!(port.mac);
        ask["queues"] = json!(port.queues);
        ask["mtu"] = json!(wanted.mtu);
        let left = left.filter(|_| self.socket(port).exists());
        let Some(left) = left else {
            let listener = self.listen(port)?;
            return line.ask(&ask, &[listener.as_fd()]).map(drop);
        };
        ask["session"] = left.session;
        ask["link"] = json!(left.link);
        let fds: Vec<_> = left.fds.iter().map(AsFd::as_fd).collect();
        line.ask(&ask, &fds).map(drop)
    }

    /// The socket is made here, so that a plain user may be its owner.
    fn listen(&self, port: &Port) -> io::Result<UnixListener> {
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
        Ok(listener)
    }

    /// Comes back to a home whose process cannot be had: soon, then at ever longer intervals.
    fn try_later(&mut self, home: &Home) {
        let pause = self.pauses.get(home).map_or(FIRST_PAUSE, |last| 2 * *last);
        let pause = pause.min(LONGEST_PAUSE);
        self.pauses.insert(home.clone(), pause);
        let (sender, home) = (self.deaths.0.clone(), home.clone());
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = sender.send(Death { home, left: None }).await;
        });
    }

    /// Keeps the process's sessions, and tells of its death with them, once.
    fn watch(&mut self, home: &Home, line: &mut Line) -> io::Result<()> {
        if self.watched.contains(home) {
            return Ok(());
        }
        let (keeper, its_end) = Keeper::pair()?;
        line.ask(&json!({ "op": "keep" }), &[its_end.as_fd()])?;
        let (sender, home) = (self.deaths.0.clone(), home.clone());
        self.watched.insert(home.clone());
        let began = Instant::now();
        tokio::spawn(async move {
            let mut left = keeper.until_death().await;
            if began.elapsed() < TOO_SOON {
                left.forget_sessions();
            }
            let left = Some(left);
            let _ = sender.send(Death { home, left }).await;
        });
        Ok(())
    }
}

fn silent(home: &Home, why: &io::Error) -> String {
    format!("the backend of {home} does not answer: {why}")
}

/// How a process is to treat a port.
fn terms(wanted: &Wanted<'_>) -> Value {
    let port = wanted.port;
    json!({
        "isolated": port.isolated, "guard": wanted.hold,
        "send": limit(port.qos.outward), "receive": limit(port.qos.inward),
    })
}

/// What a process serves already it keeps, on today's terms.
fn set(line: &mut Line, wanted: &Wanted<'_>, terms: &Value) -> io::Result<()> {
    let mut ask = terms.clone();
    ask["op"] = json!("set-port");
    ask["name"] = json!(wanted.port.key.name);
    line.ask(&ask, &[]).map(drop)
}

/// The numbers of an object that are not zero.
fn numbers(object: &Value) -> BTreeMap<String, u64> {
    let fields = object.as_object().into_iter().flatten();
    let numbers = fields.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?)));
    numbers.filter(|(_, number)| *number > 0).collect()
}

/// The ports that a process has.
fn names(listed: &Value) -> BTreeSet<String> {
    let ports = listed["ports"].as_array().into_iter().flatten();
    let names = ports.filter_map(|port| port["name"].as_str());
    names.map(str::to_owned).collect()
}

/// A rate in the words of the process.
fn limit(rate: Option<Rate>) -> Value {
    let bytes =
        |rate: Rate| json!({ "per-second": rate.bytes_per_second(), "burst": rate.burst() });
    json!({ "bytes": rate.map(bytes) })
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
                self.serve_home(&home, Kept::default());
            }
        }
    }

    /// The kernel was put right: who lost the tap by which it hangs on its bridge gets it anew.
    pub(super) fn mend_vhost(&mut self) {
        for home in Backends::homes(&self.world) {
            self.serve_home(&home, Kept::default());
        }
    }

    /// A process died, or nobody kept it any more: serve its ports, anew if need be.
    pub(super) fn revive(&mut self, Death { home, left }: Death) {
        if wanted(&self.world, &home).is_empty() {
            return;
        }
        let started = self.serve_home(&home, left.unwrap_or_default());
        if started {
            self.events.emit(
                "backend.died",
                Some(&home.to_string()),
                format!("the backend of {home} died and was started anew"),
            );
        }
    }

    /// Whether a process was started for that. What fails is tried again by and by.
    fn serve_home(&mut self, home: &Home, left: Kept) -> bool {
        match self.backends.serve(home, &self.world, left) {
            Ok(started) => {
                self.backends.pauses.remove(home);
                if let Some(network) = home.network() {
                    self.warnings.say(network, Source::Backend, Vec::new());
                }
                started
            }
            Err(why) => {
                self.events
                    .emit("backend.failed", Some(&home.to_string()), why.clone());
                if let Some(network) = home.network() {
                    self.warnings.say(network, Source::Backend, vec![why]);
                }
                self.backends.try_later(home);
                false
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

    /// One command, one answer; open files may go with it.
    fn ask(&mut self, command: &Value, with: &[BorrowedFd<'_>]) -> io::Result<Value> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !with.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(with));
        }
        let slices = [IoSlice::new(&line)];
        let sent = sendmsg(&self.stream, &slices, &mut control, SendFlags::NOSIGNAL)?;
        self.stream.write_all(&line[sent..])?;
        let answer: Value = serde_json::from_slice(&self.hear()?)?;
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

    /// A line, of a process that may be in the wrong hands: neither endless nor for ever.
    fn hear(&mut self) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut line = Vec::new();
        while line.len() < LONGEST && Instant::now() < deadline {
            let some = self.reader.fill_buf()?;
            let end = some.iter().position(|byte| *byte == b'\n');
            let len = end.map_or(some.len(), |end| end + 1);
            line.extend_from_slice(&some[..len]);
            self.reader.consume(len);
            match (len, end) {
                (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
                (_, Some(_)) => return Ok(line),
                (_, None) => {}
            }
        }
        Err(io::Error::other("its answer has no end"))
    }

    /// Hands it a new end of the uplink, if the interface behind the one it has was deleted.
    fn mend(&mut self, home: &Home, listed: &Value) -> io::Result<()> {
        if listed["uplink-attached"] != json!(false) {
            return Ok(());
        }
        let tap = tap::open(&home.uplink(), false, NonZeroU16::MIN).map_err(io::Error::other)?;
        let tap: Vec<_> = tap.first().map(AsFd::as_fd).into_iter().collect();
        self.ask(&json!({ "op": "set-uplink" }), &tap).map(drop)
    }

    /// Ends a process that stands still, and its ports with it: its death is noticed, and a successor goes on. What
    /// became of that.
    fn kill(&self) -> String {
        let Ok(peer) = rustix::net::sockopt::socket_peercred(&self.stream) else {
            return "who it is cannot be told".to_owned();
        };
        match rustix::process::kill_process(peer.pid, rustix::process::Signal::KILL) {
            Ok(()) => "it is ended, and another one takes its place".to_owned(),
            Err(error) => {
                let pid = peer.pid.as_raw_nonzero();
                format!("it cannot be ended ({error}): `kill -9 {pid}` makes place for another one")
            }
        }
    }

    /// Ends the process, which nobody needs any more, and takes its sockets away. It is asked to, because a signal to
    /// another user's process needs a right that netd need not have; one of an older release knows only the signal.
    fn end(mut self, folder: &Path) -> io::Result<()> {
        let peer = rustix::net::sockopt::socket_peercred(&self.stream)?;
        if self.ask(&json!({ "op": "stop" }), &[]).is_err() {
            rustix::process::kill_process(peer.pid, rustix::process::Signal::TERM)?;
        }
        match std::fs::remove_dir_all(folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
