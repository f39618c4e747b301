//! The process: arguments, start, signals, end.
//!
//! A stopped daemon leaves its networks up, so that an upgrade cuts no guest; `--teardown-on-exit` takes them down.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use vnet_core::config::native::RangeDoc;
use vnet_core::host::Kernel;
use vnet_core::serve::dns::{Dns, SYSTEM_BUS, Setup};
use vnet_core::serve::files::LeaseFiles;
use vnet_core::serve::leases::Leases;
use vnet_core::store::Store;

use crate::driver::{Command, Driver, Events, Handle, Tools};
use crate::wire::NetworkView;
use crate::{api, privilege};

/// Networks for virtual machines: bridges, DHCP, DNS, NAT and ports, in one process.
#[derive(Debug, Parser)]
#[command(name = "netd", version)]
pub struct Args {
    /// Where networks, ports and leases are kept.
    #[arg(long, default_value = "/var/lib/netd")]
    state_dir: PathBuf,
    /// Where the sockets are made.
    #[arg(long, default_value = "/run/netd")]
    run_dir: PathBuf,
    /// A folder of documents (*.toml, *.json) to make true at every start.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Take every network down when told to end; without it they stay up for the next start.
    #[arg(long)]
    teardown_on_exit: bool,
    /// Do not make the network `default` at the first start.
    #[arg(long)]
    no_default: bool,
    /// The group whose members may change things.
    #[arg(long, default_value = "netd")]
    group: String,
    /// Where the host's resolvers are read from.
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Where `<bridge>.status` and `<bridge>.macs` are written, by which others find guests; `leases` in the run
    /// directory when left out. libvirt's NSS modules look in /var/lib/libvirt/dnsmasq.
    #[arg(long)]
    lease_files: Option<PathBuf>,
    /// Certificates of those who may vouch for upstreams over TLS and HTTPS; the system's when left out.
    #[arg(long, env = "SSL_CERT_FILE")]
    ca_file: Option<PathBuf>,
    /// KiB of upstreams' answers that are kept, for all networks together; 8192 when left out, 0 keeps none.
    #[arg(long, value_name = "KIB")]
    dns_cache: Option<usize>,
    /// The system's bus, by which systemd-resolved (where it runs) learns the networks' names.
    #[arg(long, default_value = SYSTEM_BUS)]
    system_bus: PathBuf,
    /// The program that serves vhost-user ports; beside netd when left out.
    #[arg(long)]
    backend: Option<PathBuf>,
    /// Print the API's OpenAPI document and end.
    #[arg(long)]
    print_openapi: bool,
}

/// Runs the daemon until a signal ends it.
#[must_use]
pub fn main(args: Args) -> ExitCode {
    if args.print_openapi {
        return print_openapi();
    }
    start_log();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(&args)),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "netd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_openapi() -> ExitCode {
    match api::openapi() {
        Ok(text) => {
            let _ = writeln!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// What is logged unless the environment says otherwise. The checker of signatures warns of what is wrong with strangers'
/// records, with all of them in a line, as often as strangers like; what came of a check is ours to tell.
const LOGGED: &str = "info,hickory_net=off,hickory_proto=off,hickory_resolver=off";

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(LOGGED));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    // systemd's journal stamps the time itself.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init()
    } else {
        log.init()
    }
}

async fn run(args: &Args) -> Result<()> {
    // From the first moment on, so that a signal during a slow start is not lost.
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    raise_file_limit();
    make_dir(&args.state_dir, 0o700)?;
    make_dir(&args.run_dir, 0o755)?;
    let http = api::bind(&args.run_dir.join("netd.sock")).context("the API's socket")?;
    let fds = api::bind(&args.run_dir.join("fd.sock")).context("the descriptors' socket")?;
    let group = privilege::group(&args.group);

    let events = Events::default();
    let (handle, commands) = Driver::handle(events.clone());
    let mut driver = Driver::restore(tools(args).await?, events).await?;
    let mut notes = Vec::new();
    if let Some(folder) = &args.config {
        notes.extend(driver.apply_folder(folder).await?);
    }
    if !args.no_default {
        notes.extend(driver.first_network().await?);
    }
    let driver = tokio::spawn(driver.run(commands));
    let doors = [
        tokio::spawn(api::serve(http, handle.clone(), group)),
        tokio::spawn(api::serve_fds(fds, handle.clone(), group)),
    ];
    announce(args, &handle, &notes).await?;

    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        done = driver => { done.context("the driver ended")?; bail!("the driver ended by itself") }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let ended = handle
        .ask(|reply| Command::Shutdown(args.teardown_on_exit, reply))
        .await;
    for door in doors {
        door.abort();
        let _ = door.await;
    }
    Ok(ended?)
}

/// Each network takes a handful of sockets: as many as the system lets us have.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is: thousands of networks may not fit");
    }
}

async fn tools(args: &Args) -> Result<Tools> {
    let kernel = Kernel::new().context("the kernel")?;
    let store = Store::open(&args.state_dir.join("netd.redb"))?;
    let leases = Leases::start(&args.state_dir.join("leases")).context("the DHCP service")?;
    let shown = args.lease_files.clone();
    let shown = shown.unwrap_or_else(|| args.run_dir.join("leases"));
    let files = LeaseFiles::start(leases.clone(), shown).context("the lease files")?;
    let dns = Dns::start(Setup {
        resolv_conf: args.resolv_conf.clone(),
        authorities: args.ca_file.clone(),
        bus: Some(args.system_bus.clone()),
        cache: args.dns_cache.map(|kib| kib.saturating_mul(1024)),
    })
    .context("the DNS service")?;
    Ok(Tools {
        kernel,
        store,
        leases,
        dns,
        files,
        run_dir: args.run_dir.clone(),
        backend: args.backend.clone().unwrap_or_else(beside_us),
    })
}

fn beside_us() -> PathBuf {
    let name = "virtio-net-backend";
    let beside = std::env::current_exe()
        .ok()
        .and_then(|us| Some(us.parent()?.join(name)));
    beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| name.into())
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| {
            format!(
                "{} cannot be made: run netd as root, or choose another place",
                path.display()
            )
        })
}

/// Tells systemd that all is up; tells a person what there is and what to do next.
async fn announce(args: &Args, handle: &Handle, notes: &[String]) -> Result<()> {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        return Ok(());
    }
    let networks = handle.ask(Command::Networks).await?;
    let mut text = format!(
        "netd {} answers on {}\n",
        env!("CARGO_PKG_VERSION"),
        args.run_dir.join("netd.sock").display()
    );
    for note in notes {
        text.push_str(&format!("note: {note}\n"));
    }
    for network in networks.iter().filter(|n| n.running) {
        text.push_str(&describe(network));
    }
    if let Some(network) = networks.iter().find(|n| n.running) {
        text.push_str(&next_steps(&network.name, &args.run_dir));
    }
    // Nobody reads it: that is fine.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
    Ok(())
}

fn describe(network: &NetworkView) -> String {
    let mut text = format!(
        "network {}: {} on {}, {}",
        network.name,
        network.mode,
        network.bridge,
        network.addresses.join(" ")
    );
    let ranges = network
        .document
        .subnet
        .iter()
        .filter_map(|s| s.dhcp.as_ref()?.ranges.as_ref())
        .flatten();
    let ranges: Vec<&str> = ranges.map(RangeDoc::text).collect();
    if !ranges.is_empty() {
        text.push_str(&format!(", DHCP {}", ranges.join(" ")));
    }
    text.push('\n');
    for warning in &network.warnings {
        text.push_str(&format!("  ! {warning}\n"));
    }
    text
}

fn next_steps(network: &str, run_dir: &Path) -> String {
    let socket = match run_dir == Path::new("/run/netd") {
        true => String::new(),
        false => format!("--socket {} ", run_dir.join("netd.sock").display()),
    };
    format!(
        "\nA guest, in one line:\n  qemu-system-x86_64 -m 1G disk.img $(vnet {socket}port attach {network} vm1 -o qemu)\n  cloud-hypervisor --kernel vmlinux --disk path=disk.img $(vnet {socket}port attach {network} vm2 -o cloud-hypervisor)\n\nCtrl-C ends netd.\n"
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("one thread").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn strangers_records_are_no_news() {
        let (log, filter) = (Log::default(), tracing_subscriber::EnvFilter::new(LOGGED));
        let to = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(move || to.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "hickory_net::dnssec", "too many DS records");
            tracing::error!(target: "hickory_proto::rr", "too odd a record");
            tracing::info!("a network starts");
        });
        let text = String::from_utf8(log.0.lock().expect("one thread").clone()).expect("text");
        assert!(
            text.contains("a network starts") && !text.contains("too"),
            "{text}"
        );
    }
}
