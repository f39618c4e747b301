//! What the commands of the control socket do.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::control::{AddPort, Answer, Command, LimitSpec, RateSpec, SetPort};
use super::keeper::Keeper;
use super::middle::{Middle, Uplink};
use super::port::{Door, Port};
use super::worker::Worker;
use crate::device::Settings;
use crate::switch::{self, Guard, Limit, PortIndex, Rate};
use crate::transport::vhost_user::Kept;
use vnet_core::firewall::Hold;
use vnet_core::types::Mac;

impl Worker {
    /// Carries out a command and takes the fds that belong to it.
    pub fn obey(&mut self, command: Command, fds: &mut VecDeque<OwnedFd>) -> Answer {
        match command {
            Command::AddPort(port) => match self.add_port(&port, fds) {
                Ok(number) => Answer::done(json!({ "number": number })),
                Err(error) => Answer::refused(error),
            },
            Command::SetPort(port) => match self.set_port(&port) {
                Ok(()) => Answer::done(json!(null)),
                Err(error) => Answer::refused(error),
            },
            Command::RemovePort { name } => match self.number_of(&name) {
                Some(number) => {
                    self.remove(number);
                    Answer::done(json!(null))
                }
                None => Answer::refused(format!("there is no port {name}")),
            },
            Command::SetUplink => match fds.pop_front().map(|fd| self.set_uplink(fd)) {
                Some(Ok(())) => Answer::done(json!(null)),
                Some(Err(error)) => Answer::refused(error),
                None => Answer::refused("an open tap must come with it"),
            },
            Command::Keep => match fds.pop_front() {
                Some(fd) => {
                    self.keep_by(Keeper::new(fd));
                    Answer::done(json!(null))
                }
                None => Answer::refused("a socket must come with it"),
            },
            Command::Stop => {
                self.stop();
                Answer::done(json!(null))
            }
            Command::List => self.list(),
            Command::Stats => self.stats(),
            Command::Addresses => self.addresses(),
            Command::SetLink { name, up } => match self.set_link(&name, up) {
                Some(()) => Answer::done(json!(null)),
                None => Answer::refused(format!("there is no port {name}")),
            },
        }
    }

    fn add_port(&mut self, spec: &AddPort, fds: &mut VecDeque<OwnedFd>) -> io::Result<u16> {
        let opened = spec.socket.is_none() && spec.connect.is_none();
        let listener = if opened { fds.pop_front() } else { None };
        let count = spec.session.as_ref().map_or(0, Kept::fds);
        let kept_fds = fds.drain(..count.min(fds.len())).collect();
        if self.number_of(&spec.name).is_some() {
            return Err(io::Error::other(format!(
                "there is a port {} already",
                spec.name
            )));
        }
        let door = door(spec, listener)?;
        let settings = Settings {
            mac: spec.mac.0,
            mtu: spec.mtu,
            queue_pairs: spec.queues,
            own_control_queue: false,
            withheld: self.network().withheld(),
        };
        let port = switch::Port {
            guard: spec.guard.as_ref().map(|hold| guard(hold, spec.mac)),
            isolated: spec.isolated,
            send: limit(&spec.send),
            receive: limit(&spec.receive),
            ..switch::Port::default()
        };
        let now = self.time();
        let index = match self.network().middle() {
            Middle::Wire => return Err(io::Error::other("this process has one port only")),
            Middle::Switch(switch) => switch
                .attach(now, port)
                .ok_or_else(|| io::Error::other("no port is free"))?,
        };
        let number = u16::try_from(index.index()).map_err(io::Error::other)?;
        let mut port = Port::new(spec.name.clone(), settings, door);
        port.link_up = spec.link;
        if let Some(kept) = &spec.session
            && let Err(why) = port.resume(kept, kept_fds)
        {
            tracing::warn!(port = spec.name, %why, "the session cannot go on; its frontend must come again");
        }
        let added = self.add(number, port);
        if added.is_err() {
            self.remove(number);
        }
        added.map(|()| number)
    }

    /// The guest notices nothing; frames under way are judged by the old or the new.
    fn set_port(&mut self, spec: &SetPort) -> io::Result<()> {
        let missing = || io::Error::other(format!("there is no port {}", spec.name));
        let number = self.number_of(&spec.name).ok_or_else(missing)?;
        let port = self.network().port(number).ok_or_else(missing)?;
        let mac = Mac(port.settings.mac);
        let port = switch::Port {
            guard: spec.guard.as_ref().map(|hold| guard(hold, mac)),
            isolated: spec.isolated,
            send: limit(&spec.send),
            receive: limit(&spec.receive),
            ..switch::Port::default()
        };
        let now = self.time();
        let (Middle::Switch(switch), Some(index)) =
            (self.network().middle(), PortIndex::new(usize::from(number)))
        else {
            return Err(io::Error::other("this process has no switch"));
        };
        if switch.configure(now, index, port) {
            tracing::info!(port = spec.name, "on other terms");
            Ok(())
        } else {
            Err(missing())
        }
    }

    fn set_link(&mut self, name: &str, up: bool) -> Option<()> {
        let number = self.number_of(name)?;
        self.network().port(number)?.set_link(up);
        self.keep(number);
        Some(())
    }

    fn number_of(&mut self, name: &str) -> Option<u16> {
        self.network()
            .ports()
            .find(|(_, port)| port.name == name)
            .map(|(number, _)| number)
    }

    fn list(&mut self) -> Answer {
        let ports: Vec<_> = self
            .network()
            .ports()
            .map(|(number, port)| {
                let features = port
                    .session
                    .as_ref()
                    .map(|session| session.device_ref().accepted());
                json!({
                    "name": port.name,
                    "number": number,
                    "connected": port.session.is_some(),
                    "running": port.receives(),
                    "link": port.link_up,
                    "stopped": port.stopped(),
                    "mac": vnet_core::types::Mac(port.settings.mac).to_string(),
                    "features": features.map(|features| format!("{features:?}")),
                })
            })
            .collect();
        let uplink = self.network().uplink().map(|uplink| &*uplink);
        let answer = json!({
            "ports": ports,
            "uplink": uplink.map(|uplink| uplink.tap.name()),
            "uplink-attached": uplink.map(|uplink| uplink.tap.is_attached()),
            "uplink-batched": uplink.map(Uplink::is_batched),
        });
        Answer::done(answer)
    }

    fn stats(&mut self) -> Answer {
        let numbers: Vec<_> = self
            .network()
            .ports()
            .map(|(n, port)| (n, port.name.clone(), port.counters, port.faults.last()))
            .collect();
        let mut ports = serde_json::Map::new();
        for (number, name, counters, fault) in numbers {
            ports.insert(
                name,
                json!({ "device": counters, "last-fault": fault, "switch": self.switch_counters(number) }),
            );
        }
        let uplink = self.network().uplink().map(|uplink| {
            use crate::port::FramePort;
            json!({ "sent": uplink.sent, "received": uplink.received, "refused": uplink.tap.refused() })
        });
        Answer::done(json!({ "ports": ports, "uplink": uplink }))
    }

    fn switch_counters(&mut self, number: u16) -> serde_json::Value {
        let Middle::Switch(switch) = self.network().middle() else {
            return json!(null);
        };
        let counters = PortIndex::new(usize::from(number)).and_then(|index| switch.counters(index));
        counters.map_or(json!(null), |counters| {
            let drops: serde_json::Map<_, _> = counters
                .dropped()
                .map(|(reason, count)| (reason.name().to_owned(), json!(count)))
                .collect();
            json!({
                "sent-frames": counters.sent_frames,
                "sent-bytes": counters.sent_bytes,
                "received-frames": counters.received_frames,
                "received-bytes": counters.received_bytes,
                "drops": drops,
            })
        })
    }

    fn addresses(&mut self) -> Answer {
        let now = self.time();
        let Middle::Switch(switch) = self.network().middle() else {
            return Answer::done(json!({ "addresses": [] }));
        };
        let mut entries: Vec<_> = switch
            .entries(now)
            .map(|entry| (entry.mac.to_string(), entry.port.index()))
            .collect();
        entries.sort();
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(mac, port)| json!({ "mac": mac, "port": port }))
            .collect();
        Answer::done(json!({ "addresses": entries }))
    }
}

fn door(spec: &AddPort, fd: Option<OwnedFd>) -> io::Result<Door> {
    if fd.is_none() && !may_make_sockets() {
        return Err(io::Error::other(
            "started with --user it takes a port's listening socket as an fd only",
        ));
    }
    match (fd, &spec.socket, &spec.connect) {
        (Some(fd), None, None) => Door::from_listener(UnixListener::from(fd), None),
        (None, Some(path), None) => Door::listen(&beside(path).ok_or_else(|| not_beside(path))?),
        (None, None, Some(path)) => {
            Ok(Door::Connect(beside(path).ok_or_else(|| not_beside(path))?))
        }
        _ => Err(io::Error::other(
            "give one of socket, connect, or a listening socket as an fd",
        )),
    }
}

/// What the sandbox leaves, which knows how the process was started.
fn may_make_sockets() -> bool {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
    let made = socket_with(AddressFamily::UNIX, kind, flags, None);
    !made.is_err_and(|error| error == rustix::io::Errno::PERM)
}

/// Sockets lie in the working directory, which is all of the file system that the process can see: only the file name
/// of a path counts.
fn beside(path: &Path) -> Option<PathBuf> {
    path.file_name().map(PathBuf::from)
}

fn not_beside(path: &Path) -> io::Error {
    io::Error::other(format!(
        "{} is not a file beside the control socket",
        path.display()
    ))
}

fn guard(hold: &Hold, mac: Mac) -> Guard {
    let mut hold = hold.clone();
    if hold.macs.is_empty() {
        hold.macs.push(mac);
    }
    Guard::of(&hold)
}

fn limit(spec: &LimitSpec) -> Limit {
    let rate = |rate: &RateSpec| Rate {
        per_second: rate.per_second,
        burst: rate.burst,
    };
    Limit {
        bytes: spec.bytes.as_ref().map(rate),
        frames: spec.frames.as_ref().map(rate),
    }
}
