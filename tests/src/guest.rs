//! A real Linux guest in QEMU.
//!
//! ```text
//! let guest = Guest::on_tap(&ns, "tap0").mac("52:54:00:00:00:01").name("web").boot()?;
//! let address = guest.lease()?;
//! guest.run("ping -c1 192.168.122.1")?;
//! ```
//! `boot` only starts QEMU, so several guests boot side by side; the first command waits until the guest is there.
//! KVM is used where it really boots Linux, else TCG. Commands go through a virtio-serial port, not the console.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};

use crate::image::{self, Image};
use crate::process::{self, PATIENCE, Proc};
use crate::{Netd, Ns, Scratch, daemon, enter, wait_for};

/// A guest that does not come up in this time never will: a busy two-core machine without KVM needs about 10 s.
const BOOT: Duration = Duration::from_secs(90);

/// 192 MiB and two pages, for guests that move while QEMU translates them: where memory is a multiple of 256 KiB, QEMU
/// before 9.0 takes a short cut when it looks for pages that were written, and overlooks some (seen with no card at all).
pub const MOVABLE: &str = "196616K";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A guest to be booted: where its card is plugged, and what differs from the usual.
#[derive(Debug)]
#[must_use]
pub struct Boot<'n> {
    ns: Option<&'n Ns>,
    plug: Plug,
    name: String,
    mac: String,
    /// As QEMU takes it: a number and its unit.
    memory: String,
    queues: u32,
    dhcp: bool,
    chardev: String,
    extra: Vec<String>,
}

/// What the guest's network card is plugged into.
#[derive(Debug)]
enum Plug {
    Tap(String),
    TapFd(OwnedFd),
    VhostUser(PathBuf),
    /// A tap that `vnet port open` fetches and hands to QEMU: the socket, the network, the port.
    Opened(PathBuf, String, String),
    /// No card at all.
    Nothing,
}

/// A running guest, ended on drop. Its console is shown when the test fails.
#[derive(Debug)]
pub struct Guest {
    name: String,
    qemu: Proc,
    scratch: Scratch,
    listener: UnixListener,
    agent: Mutex<Option<BufReader<UnixStream>>>,
    started: Instant,
    took: OnceLock<Duration>,
}

impl Guest {
    /// A guest on an existing tap of the namespace.
    pub fn on_tap<'n>(ns: &'n Ns, tap: &str) -> Boot<'n> {
        Boot::new(Some(ns), Plug::Tap(tap.to_owned()))
    }

    /// A guest on an open tap, as handed over by netd.
    pub fn on_tap_fd(ns: &Ns, tap: OwnedFd) -> Boot<'_> {
        Boot::new(Some(ns), Plug::TapFd(tap))
    }

    /// A guest whose QEMU is started by `vnet port open NETWORK PORT -- ...`, which fetches the tap from netd.
    pub fn opened<'n>(netd: &Netd<'n>, network: &str, port: &str) -> Boot<'n> {
        let plug = Plug::Opened(netd.socket(), network.to_owned(), port.to_owned());
        Boot::new(Some(netd.ns()), plug)
    }

    /// A guest on a vhost-user backend that listens on `socket`.
    pub fn on_vhost_user<'n>(socket: impl Into<PathBuf>) -> Boot<'n> {
        Boot::new(None, Plug::VhostUser(socket.into()))
    }

    /// A guest whose card is among [`Boot::args`], as are the parts it needs.
    pub fn without_card<'n>() -> Boot<'n> {
        Boot::new(None, Plug::Nothing)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// Waits until the guest takes commands; how long that took from the start of QEMU.
    pub fn ready(&self) -> anyhow::Result<Duration> {
        self.ready_within(BOOT)
    }

    fn ready_within(&self, deadline: Duration) -> anyhow::Result<Duration> {
        let mut agent = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(took) = self.took.get() {
            return Ok(*took);
        }
        let what = format!("guest `{}`", self.name);
        let stream = wait_for(&what, deadline, || match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(_) if !self.qemu.alive() => Ok(None),
            Err(_) => Err(self.said()),
        })?;
        let stream = stream.with_context(|| format!("{what}: QEMU ended\n{}", self.said()))?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(deadline))?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader
            .read_line(&mut line)
            .with_context(|| format!("{what} did not come up\n{}", self.said()))?;
        if !line.starts_with("READY") {
            bail!("{what} said {line:?} in place of READY\n{}", self.said());
        }
        *agent = Some(reader);
        Ok(*self.took.get_or_init(|| self.started.elapsed()))
    }

    /// Runs a shell script in the guest; its output, or an error when it fails.
    pub fn run(&self, script: &str) -> anyhow::Result<String> {
        let (code, output) = self.try_run(PATIENCE, script)?;
        if code == 0 {
            Ok(output)
        } else {
            bail!("{}# {script}\nfailed with {code}:\n{output}", self.name)
        }
    }

    /// Runs a shell script in the guest; its exit code and output.
    pub fn try_run(&self, deadline: Duration, script: &str) -> anyhow::Result<(i32, String)> {
        self.ready()?;
        let mut slot = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        // A failed exchange leaves the channel out of step, so it is not put back.
        let mut agent = slot
            .take()
            .with_context(|| format!("guest `{}` was lost before", self.name))?;
        let answer = ask(&mut agent, deadline, script)
            .with_context(|| format!("{}# {script}\n{}", self.name, self.said()))?;
        *slot = Some(agent);
        Ok(answer)
    }

    /// Its IPv4 address, when it has one.
    pub fn lease(&self) -> anyhow::Result<Ipv4Addr> {
        self.ready()?;
        wait_for(&format!("a lease of `{}`", self.name), PATIENCE, || {
            let shown =
                self.run("ip -4 -o addr show dev eth0 scope global; tail -n3 /tmp/udhcpc.eth0")?;
            let address = shown
                .split_whitespace()
                .skip_while(|word| *word != "inet")
                .nth(1);
            let address = address.and_then(|a| a.split('/').next()?.parse().ok());
            address.ok_or_else(|| anyhow!("no address yet\n{shown}"))
        })
    }

    /// What it printed on its console so far.
    #[must_use]
    pub fn console(&self) -> String {
        fs::read(self.scratch.join("console.log"))
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    }

    /// The socket of its serial console, for a person.
    #[must_use]
    pub fn console_socket(&self) -> PathBuf {
        self.scratch.join("console")
    }

    fn said(&self) -> String {
        format!(
            "{}\n{}",
            process::tail(&self.qemu.log(), 10),
            process::tail(&self.console(), 15)
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if process::shown() {
            eprintln!(
                "--- guest `{}`'s console:\n{}\n---",
                self.name,
                process::tail(&self.console(), 40)
            );
        }
    }
}

/// One exchange with the agent: a line of base64 out, `DONE code bytes` and the bytes back.
fn ask(
    agent: &mut BufReader<UnixStream>,
    deadline: Duration,
    script: &str,
) -> anyhow::Result<(i32, String)> {
    agent.get_ref().set_read_timeout(Some(deadline))?;
    agent
        .get_ref()
        .write_all(format!("{}\n", base64(script.as_bytes())).as_bytes())?;
    let mut line = String::new();
    agent
        .read_line(&mut line)
        .context("no answer from the guest")?;
    let mut fields = line
        .split_whitespace()
        .skip_while(|word| *word != "DONE")
        .skip(1);
    let code = fields
        .next()
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("the guest said {line:?}"))?;
    let size = fields
        .next()
        .and_then(|size| size.parse().ok())
        .with_context(|| format!("the guest said {line:?}"))?;
    let mut output = vec![0; size];
    agent.read_exact(&mut output)?;
    Ok((code, String::from_utf8_lossy(&output).into_owned()))
}

/// Scripts have lines and quotes, the channel has lines: standard base64.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = |chunk: &[u8]| {
        let word = chunk
            .iter()
            .chain(&[0, 0])
            .take(3)
            .fold(0_usize, |word, byte| word << 8 | usize::from(*byte));
        let letter = |at: usize| {
            if at <= chunk.len() {
                char::from(LETTERS[word >> (18 - 6 * at) & 63])
            } else {
                '='
            }
        };
        [letter(0), letter(1), letter(2), letter(3)]
    };
    bytes.chunks(3).flat_map(letters).collect()
}

impl<'n> Boot<'n> {
    fn new(ns: Option<&'n Ns>, plug: Plug) -> Self {
        let serial = COUNT.fetch_add(1, Ordering::Relaxed);
        let [.., high, low] = std::process::id().to_be_bytes();
        Self {
            ns,
            plug,
            name: format!("guest{serial}"),
            mac: format!("52:54:00:{high:02x}:{low:02x}:{:02x}", serial & 0xff),
            memory: "192M".to_owned(),
            queues: 1,
            dhcp: true,
            chardev: String::new(),
            extra: Vec::new(),
        }
    }

    /// The card's MAC; one of its own if not given.
    pub fn mac(mut self, mac: &str) -> Self {
        mac.clone_into(&mut self.mac);
        self
    }

    /// The guest's host name, sent in its DHCP requests.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Memory in MiB; 192 if not given.
    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.memory = format!("{mebibytes}M");
        self
    }

    /// Memory that survives a move: [`MOVABLE`].
    pub fn movable(mut self) -> Self {
        MOVABLE.clone_into(&mut self.memory);
        self
    }

    /// Queue pairs of the card; the guest gets as many processors.
    pub fn queues(mut self, pairs: u32) -> Self {
        self.queues = pairs;
        self
    }

    /// The card comes up, but nobody asks for a lease.
    pub fn no_dhcp(mut self) -> Self {
        self.dhcp = false;
        self
    }

    /// Options of the connection to a vhost-user backend: `reconnect=1`, `server=on`.
    pub fn connection(mut self, options: &str) -> Self {
        self.chardev = format!(",{options}");
        self
    }

    /// More arguments for QEMU.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.extra.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Starts it.
    pub fn boot(self) -> anyhow::Result<Guest> {
        self.boot_with(accelerator()?)
    }

    fn boot_with(self, accelerator: Accelerator) -> anyhow::Result<Guest> {
        let image = image::image()?;
        let scratch = Scratch::new(&self.name)?;
        let listener = UnixListener::bind(scratch.join("agent"))?;
        listener.set_nonblocking(true)?;
        let (ns, name) = (self.ns, self.name.clone());
        let command = self.command(&image, accelerator, &scratch)?;
        let log = scratch.join("qemu.log");
        let started = Instant::now();
        let start = move || Proc::start(command, &log);
        let qemu = match ns {
            Some(ns) => ns.enter(start)??,
            None => start()?,
        };
        Ok(Guest {
            name,
            qemu,
            scratch,
            listener,
            agent: Mutex::default(),
            started,
            took: OnceLock::new(),
        })
    }

    fn command(
        mut self,
        image: &Image,
        accelerator: Accelerator,
        scratch: &Scratch,
    ) -> anyhow::Result<Command> {
        let path = |name: &str| scratch.join(name).display().to_string();
        let dhcp = if self.dhcp { "on" } else { "off" };
        let mut qemu = self.program()?;
        qemu.args([
            "-M",
            "q35",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        qemu.args(accelerator.args());
        qemu.args(["-smp", &self.queues.to_string(), "-m", &self.memory]);
        qemu.arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initrd);
        qemu.arg("-append")
            .arg(format!("{QUICK} vnet.name={} vnet.dhcp={dhcp}", self.name));
        let console = format!(
            "socket,id=console,path={},server=on,wait=off,logfile={}",
            path("console"),
            path("console.log")
        );
        qemu.args(["-chardev", &console, "-serial", "chardev:console"]);
        qemu.args([
            "-device",
            "virtio-serial-pci",
            "-chardev",
            &format!("socket,id=agent,path={}", path("agent")),
        ]);
        qemu.args(["-device", "virtserialport,chardev=agent,name=agent"]);
        if let Some(device) = self.card(&mut qemu, accelerator) {
            qemu.args(["-device", &device]);
        }
        qemu.args(&self.extra);
        Ok(qemu)
    }

    /// QEMU, or what becomes QEMU once it has the tap.
    fn program(&self) -> anyhow::Result<Command> {
        let Plug::Opened(socket, network, port) = &self.plug else {
            return Ok(Command::new("qemu-system-x86_64"));
        };
        let mut vnet = Command::new(daemon::binary("vnet")?);
        vnet.env("VNET_SOCKET", socket).args([
            "port",
            "open",
            network,
            port,
            "--",
            "qemu-system-x86_64",
        ]);
        Ok(vnet)
    }

    /// Adds what the card is plugged into, and returns the card.
    fn card(&mut self, qemu: &mut Command, accelerator: Accelerator) -> Option<String> {
        let mut device = format!("virtio-net-pci,netdev=net,mac={},romfile=", self.mac);
        let many = self.queues > 1;
        if many {
            device += ",mq=on";
        }
        match std::mem::replace(&mut self.plug, Plug::Nothing) {
            Plug::Nothing => return None,
            Plug::Tap(tap) => {
                let queues = if many {
                    format!(",queues={}", self.queues)
                } else {
                    String::new()
                };
                qemu.args([
                    "-netdev",
                    &format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost=off{queues}"),
                ]);
            }
            Plug::TapFd(fd) => {
                qemu.args([
                    "-netdev",
                    &format!("tap,id=net,fd={},vhost=off", fd.as_raw_fd()),
                ]);
                enter::inherit(qemu, fd);
            }
            Plug::Opened(..) => {
                qemu.args(["-netdev", "tap,id=net,fd={fd},vhost=off"]);
            }
            Plug::VhostUser(socket) => {
                let memory = format!(
                    "memory-backend-memfd,id=memory,size={},share=on",
                    self.memory
                );
                qemu.args(["-object", &memory, "-numa", "node,memdev=memory"]);
                qemu.args([
                    "-chardev",
                    &format!(
                        "socket,id=backend,path={}{}",
                        socket.display(),
                        self.chardev
                    ),
                ]);
                qemu.args([
                    "-netdev",
                    &format!("vhost-user,id=net,chardev=backend,queues={}", self.queues),
                ]);
                if accelerator == Accelerator::Tcg {
                    // QEMU 7.2 crashes when a vhost-user device starts with MSI-X and there is no irqfd.
                    device += ",vectors=0";
                }
            }
        }
        Some(device)
    }
}

/// Kernel arguments that shorten the boot and lengthen nothing.
const QUICK: &str = "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable no_timer_check rodata=off \
    rcupdate.rcu_expedited=1 random.trust_cpu=on 8250.nr_uarts=1 cryptomgr.notests";

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accelerator {
    fn args(self) -> [&'static str; 4] {
        match self {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Page tables of five levels only cost a translator time.
            Accelerator::Tcg => ["-accel", "tcg", "-cpu", "max,la57=off"],
        }
    }
}

/// KVM if a guest comes up with it, asked once a boot of the machine. Some hosts have a /dev/kvm that cannot run a
/// Linux kernel; they show no virtualisation in the processor's flags and are not even tried.
pub fn accelerator() -> anyhow::Result<Accelerator> {
    static FOUND: OnceLock<Accelerator> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let capable = flags
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm");
    let open = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    let found = if capable && open {
        probed()?
    } else {
        Accelerator::Tcg
    };
    Ok(*FOUND.get_or_init(|| found))
}

/// Boots a guest with KVM, or takes the answer of an earlier process.
fn probed() -> anyhow::Result<Accelerator> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    fs::create_dir_all(image::cache())?;
    let answer = image::cache().join("kvm-works");
    if let Some(works) = fs::read_to_string(&answer)
        .ok()
        .and_then(|text| text.strip_prefix(&boot).map(|w| w == "yes"))
    {
        return Ok(if works {
            Accelerator::Kvm
        } else {
            Accelerator::Tcg
        });
    }
    let guest = Boot::new(None, Plug::Nothing).boot_with(Accelerator::Kvm)?;
    let works = guest.ready_within(Duration::from_secs(10)).is_ok();
    fs::write(
        &answer,
        format!("{boot}{}", if works { "yes" } else { "no" }),
    )?;
    Ok(if works {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    })
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_of_every_length() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\u{ff}", "w78="),
        ];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
