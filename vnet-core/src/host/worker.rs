//! The thread that talks to the kernel: netlink, sysctls and taps, one thing after another.
//!
//! These calls do their work (and wait for the kernel, up to tens of milliseconds) inside the system call. On a
//! thread of their own they stall nobody else; and a thread stays in the network namespace it was started in.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use tokio::sync::oneshot;

use super::nft::Ours;
use super::socket::{Refusal, Socket};
use super::sysctl;
use super::tap::TapError;
use crate::firewall::batch::Batch;
use crate::plan::{Step, StepError, Sysctl};
use crate::types::IfName;

/// Says of an address or a route that we added it (`ip address` and `ip route` show it as `proto 118`).
pub(super) const PROTOCOL: u8 = 118;

/// Why something could not be done.
pub(super) type Failure = StepError;

impl StepError {
    pub(super) fn text(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl From<Refusal> for StepError {
    fn from(refusal: Refusal) -> Self {
        Self(refusal.to_string())
    }
}

impl From<TapError> for StepError {
    fn from(error: TapError) -> Self {
        Self(error.to_string())
    }
}

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// The owner's end. The thread ends when the last of these is gone.
#[derive(Clone)]
pub(super) struct Desk {
    jobs: mpsc::Sender<Job>,
}

impl Desk {
    pub(super) fn open(ours: Ours) -> io::Result<Self> {
        let mut worker = Worker::new(ours)?;
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("kernel".to_owned())
            .spawn(move || inbox.iter().for_each(|job| job(&mut worker)))?;
        Ok(Self { jobs })
    }

    /// Has something done on the thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<T, Failure> {
        let (answer, wait) = oneshot::channel();
        let job: Job = Box::new(move |worker| drop(answer.send(job(worker))));
        let gone = |_| Failure::text("the thread that talks to the kernel is gone");
        self.jobs.send(job).map_err(|_| gone(()))?;
        wait.await.map_err(|_| gone(()))
    }
}

pub(super) struct Worker {
    pub(super) socket: Socket,
    /// To nf_tables, once it was needed: a kernel may lack it.
    rules: Option<Socket>,
    ours: Ours,
    names: OwnedFd,
    /// Whether the kernel keeps a protocol number with each address (Linux 5.18).
    pub(super) marks_addresses: bool,
}

impl Worker {
    fn new(ours: Ours) -> io::Result<Self> {
        let names = socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self {
            socket: Socket::routes()?,
            rules: None,
            ours,
            names,
            marks_addresses: kernel_is_at_least(5, 18),
        })
    }

    /// The kernel's number of a link.
    pub(super) fn index(&self, name: &IfName) -> Result<u32, Failure> {
        netdevice::name_to_index(&self.names, name.as_str()).map_err(|error| match error {
            Errno::NODEV => Failure::text(format!("interface `{name}` does not exist")),
            other => Failure::text(format!("interface `{name}`: {other}")),
        })
    }

    /// The name of a link, if it has one that we could have given.
    pub(super) fn name(&self, index: u32) -> Option<IfName> {
        let name = netdevice::index_to_name(&self.names, index).ok()?;
        name.parse().ok()
    }

    /// Changes elements of our sets, all or none.
    pub(super) fn change_elements(&mut self, batch: &Batch) -> Result<(), Failure> {
        // The kernel tells of a transaction with the number of the thread that made it.
        self.ours
            .remember(rustix::thread::gettid().as_raw_nonzero().get());
        let socket = match &mut self.rules {
            Some(socket) => socket,
            none => none.insert(Socket::rules().map_err(Refusal::from)?),
        };
        socket.batch(batch).map_err(|refusal| {
            Failure::text(format!(
                "the firewall refused, and nothing was changed: {refusal}"
            ))
        })
    }

    /// Takes one step, whole or not at all.
    pub(super) fn take(&mut self, step: &Step) -> Result<(), Failure> {
        match step {
            Step::Create(new) => self.create(new),
            Step::Delete(gone) => self.delete(&gone.name),
            Step::Change { name, from, to } => self.change(name, from, to),
            Step::AddAddress(dev, address) => self.add_address(dev, *address),
            Step::RemoveAddress(dev, address) => self.remove_address(dev, *address),
            Step::AddRoute(route) => self.add_route(route),
            Step::RemoveRoute(route) => self.remove_route(route),
            Step::Set { key, to, .. } => set(key, to),
            Step::Firewall { .. } => Err(Failure::text("no nft on this thread")),
        }
    }

    /// Takes the steps of a stage, up to the first that fails.
    pub(super) fn take_all(&mut self, steps: &[Step]) -> Vec<Result<(), Failure>> {
        let deletes = |step: &Step| match step {
            Step::Delete(gone) => Some(gone.name.clone()),
            Step::Create(_) | Step::Change { .. } | Step::Set { .. } => None,
            Step::AddAddress(..) | Step::RemoveAddress(..) => None,
            Step::AddRoute(_) | Step::RemoveRoute(_) | Step::Firewall { .. } => None,
        };
        let doomed: Vec<IfName> = steps.iter().filter_map(deletes).collect();
        if doomed.len() > 1 && doomed.len() == steps.len() {
            let names: Vec<&IfName> = doomed.iter().collect();
            if self.delete_all(&names).is_ok() {
                return vec![Ok(()); steps.len()];
            }
        }
        let mut results = Vec::with_capacity(steps.len());
        for step in steps {
            let result = self.take(step);
            let failed = result.is_err();
            results.push(result);
            if failed {
                break;
            }
        }
        results
    }

    /// Sets the sysctls of a new link. A kernel without IPv6 has none of its files, and needs none of its settings.
    pub(super) fn set_all(&self, sysctls: &BTreeMap<Sysctl, String>) -> Result<(), Failure> {
        for (key, value) in sysctls {
            match sysctl::write(key, value) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(refused(key, value, error)),
            }
        }
        Ok(())
    }
}

fn set(key: &Sysctl, value: &str) -> Result<(), Failure> {
    sysctl::write(key, value).map_err(|error| refused(key, value, error))
}

fn refused(key: &Sysctl, value: &str, error: Errno) -> Failure {
    let advice = match error {
        Errno::ROFS => ": /proc/sys is read-only here, set it from outside the container",
        Errno::ACCESS | Errno::PERM => ": run as root",
        _ => "",
    };
    let error = io::Error::from(error);
    Failure::text(format!("cannot set {key} to {value}: {error}{advice}"))
}

fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next()) >= (major, minor)
}
