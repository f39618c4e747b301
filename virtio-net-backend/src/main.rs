//! The process: a vhost-user device for one virtual machine, or for all of a network.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use virtio_net_backend::device::Settings;
use virtio_net_backend::port::Tap;
use virtio_net_backend::process::Network;
use virtio_net_backend::process::Worker;
use virtio_net_backend::process::control::Control;
use virtio_net_backend::process::middle::{Middle, Uplink};
use virtio_net_backend::process::port::{Door, Port};
use virtio_net_backend::process::sandbox::{self, Need};
use virtio_net_backend::switch::{self, Switch, Time};
use virtio_net_backend::transport::vhost_user::lost_memory;
use vnet_core::types::Mac;

/// Addresses that the switch of one network learns.
const ADDRESSES: usize = 16 * 1024;
/// A tap that is busy for longer is somebody else's.
const LETTING_GO: Duration = Duration::from_secs(1);

/// A virtio-net device over vhost-user.
///
/// With --socket and --tap it serves one virtual machine. With --control it serves a network: ports are added and
/// removed over that socket, and --tap is the way to the kernel's bridge.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Listen here for one frontend (QEMU: -chardev socket,path=...,reconnect=1)
    #[arg(long, value_name = "PATH", required_unless_present_any = ["control", "connect"], conflicts_with = "control")]
    socket: Option<PathBuf>,
    /// The frontend listens here (QEMU: -chardev socket,path=...,server=on); come again whenever it is away
    #[arg(long, value_name = "PATH", conflicts_with_all = ["control", "socket"])]
    connect: Option<PathBuf>,
    /// Take commands here; the sockets of the ports lie beside it
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The tap; created and brought up when it does not exist
    #[arg(long, value_name = "NAME")]
    tap: Option<String>,
    /// MAC address that the device says (frontends such as QEMU have their own)
    #[arg(long, default_value = "52:54:00:00:00:01")]
    mac: Mac,
    /// MTU that the device says, and of a tap that is created
    #[arg(long)]
    mtu: Option<u16>,
    /// Most queue pairs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    queues: u16,
    /// With --control: forget an address that has been silent for this many seconds (what is not known is flooded)
    #[arg(long, value_name = "SECONDS", default_value_t = switch::AGEING.as_secs(), value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    ageing: u64,
    /// Become this user (its number) once all is open. Ports' sockets must then come as open files, as netd gives them,
    /// and who gave them removes them
    #[arg(long, value_name = "UID", conflicts_with_all = ["socket", "connect"])]
    user: Option<u32>,
    /// Leave the sandbox out, for debugging
    #[arg(long)]
    no_sandbox: bool,
}

impl Arguments {
    /// What it still does with names of sockets once it serves.
    fn needs(&self) -> &'static [Need] {
        match self {
            // Who gives it open sockets removes them, and that of the commands.
            Self { user: Some(_), .. } => &[],
            Self {
                control: Some(_), ..
            } => &[Need::Make, Need::Remove, Need::Connect],
            Self {
                connect: Some(_), ..
            } => &[Need::Connect],
            Self { .. } => &[Need::Remove],
        }
    }
}

fn main() -> anyhow::Result<()> {
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    run(&Arguments::parse())
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let tap = arguments
        .tap
        .as_deref()
        .map(|name| open_tap(name, arguments.mtu))
        .transpose()?;
    let signals = stop_signals().context("signals")?;
    lost_memory::install().context("SIGBUS")?;
    let main_path = [&arguments.control, &arguments.socket, &arguments.connect]
        .into_iter()
        .flatten()
        .next();
    let directory = main_path
        .and_then(|path| path.parent())
        .unwrap_or(Path::new(""));
    let mut worker = match &arguments.control {
        Some(path) => {
            let control =
                bind_control(path).with_context(|| format!("control socket {}", path.display()))?;
            Worker::new(
                switched(tap, Duration::from_secs(arguments.ageing))?,
                Some(control),
            )?
        }
        None => wired(arguments, tap)?,
    };
    worker.stop_on(signals.as_fd())?;
    if arguments.no_sandbox {
        sandbox::enter_directory(directory)
    } else {
        sandbox::enter(directory, arguments.user, arguments.needs())
    }
    .context("sandbox")?;
    tracing::info!("ready");
    worker.run()?;
    if let Some(name) = arguments.control.as_deref().and_then(Path::file_name) {
        // Whoever stopped us may have removed it already, or will (`--user`).
        let _ = std::fs::remove_file(name);
    }
    tracing::info!("stopped");
    Ok(())
}

fn open_tap(name: &str, mtu: Option<u16>) -> anyhow::Result<Tap> {
    let (tap, created) = free_tap(name).with_context(|| format!("tap {name}"))?;
    if created {
        tap.bring_up(mtu)
            .with_context(|| format!("bringing up tap {name}"))?;
    }
    Ok(tap)
}

/// A predecessor that was killed lets go of its tap last of all: give it a moment.
fn free_tap(name: &str) -> io::Result<(Tap, bool)> {
    let deadline = Instant::now() + LETTING_GO;
    loop {
        match Tap::open(name) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done,
        }
    }
}

/// A network: a switch with the tap as its first port.
fn switched(tap: Option<Tap>, ageing: Duration) -> anyhow::Result<Network> {
    // Guests must not know it, or they could choose addresses that all hash alike.
    let mut seed = [0; 8];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .context("random numbers")?;
    let mut switch = Switch::new(ADDRESSES, u64::from_ne_bytes(seed));
    switch.set_ageing(ageing);
    let uplink = match tap {
        Some(tap) => {
            let index = switch.attach(Time::default(), switch::Port::uplink());
            Some(Uplink::new(tap, index))
        }
        None => None,
    };
    Ok(Network::new(Middle::Switch(Box::new(switch)), uplink))
}

/// One frontend and a tap.
fn wired(arguments: &Arguments, tap: Option<Tap>) -> anyhow::Result<Worker> {
    let tap = tap.context("--tap is needed")?;
    let door = match (&arguments.socket, &arguments.connect) {
        (Some(path), _) => listen(path).with_context(|| format!("socket {}", path.display()))?,
        (None, Some(path)) => {
            Door::Connect(path.file_name().context("--connect needs a file")?.into())
        }
        (None, None) => anyhow::bail!("--socket, --connect or --control is needed"),
    };
    let settings = Settings {
        mac: arguments.mac.0,
        mtu: arguments.mtu,
        queue_pairs: arguments.queues,
        own_control_queue: false,
        withheld: tap.withheld(),
    };
    let uplink = Uplink::new(tap, None);
    let mut worker = Worker::new(Network::new(Middle::Wire, Some(uplink)), None)?;
    worker.add(0, Port::new("port".to_owned(), settings, door))?;
    Ok(worker)
}

/// Listens at a path whose directory becomes the working directory, where the file is removed in the end.
fn listen(path: &Path) -> io::Result<Door> {
    let mut door = Door::listen(path)?;
    door.rename(path.file_name().map(PathBuf::from));
    Ok(door)
}

fn bind_control(path: &Path) -> io::Result<Control> {
    if std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path)?;
    }
    Control::new(UnixListener::bind(path)?)
}

/// SIGTERM and SIGINT as an fd, so that the loop ends in order and sockets are removed.
fn stop_signals() -> io::Result<OwnedFd> {
    virtio_net_backend::process::signals::stop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_keeps_what_it_was_started_for() {
        let needs = |options: &str| {
            let words = ["virtio-net-backend"].into_iter().chain(options.split(' '));
            Arguments::parse_from(words).needs()
        };
        let all = [Need::Make, Need::Remove, Need::Connect];
        assert_eq!(needs("--socket s --tap t"), [Need::Remove]);
        assert_eq!(needs("--connect s --tap t"), [Need::Connect]);
        assert_eq!(needs("--control c"), all);
        assert_eq!(needs("--control c --user 65534"), []);
    }
}
