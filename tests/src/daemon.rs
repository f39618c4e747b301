//! The real `netd` in a namespace, with state of its own, and `vnet` to talk to it.
//!
//! ```text
//! let mut netd = Netd::start(&host)?;
//! netd.vnet(&["network", "list"])?;
//! netd.kill9()?;
//! netd.start_again()?;
//! ```

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

use crate::process::{PATIENCE, Proc, Ran};
use crate::{Ns, Scratch, wait_for};

/// How long netd may take to answer on its socket, and to end when asked.
const DAEMON: Duration = Duration::from_secs(15);

/// A daemon of this test. Dropping it kills it; the namespace removes what it made.
#[derive(Debug)]
pub struct Netd<'n> {
    ns: &'n Ns,
    scratch: Scratch,
    args: Vec<String>,
    /// What becomes netd: a program and its arguments, or nothing.
    under: Vec<String>,
    /// What is logged, if not as by itself.
    level: Option<String>,
    process: Option<Proc>,
}

impl<'n> Netd<'n> {
    /// Starts netd and waits until its socket answers.
    pub fn start(ns: &'n Ns) -> anyhow::Result<Self> {
        Self::start_with(ns, &[])
    }

    /// The same as a user would run it, without debugging output.
    pub fn start_quiet(ns: &'n Ns) -> anyhow::Result<Self> {
        Self::at_level(ns, &[], &[], Some("warn"))
    }

    /// The same with more arguments.
    pub fn start_with(ns: &'n Ns, args: &[&str]) -> anyhow::Result<Self> {
        Self::at_level(ns, &[], args, None)
    }

    /// The same under a program that limits what it may do, and then becomes it (`setpriv`).
    pub fn start_under(ns: &'n Ns, under: &[&str]) -> anyhow::Result<Self> {
        Self::at_level(ns, under, &[], None)
    }

    fn at_level(
        ns: &'n Ns,
        under: &[&str],
        args: &[&str],
        level: Option<&str>,
    ) -> anyhow::Result<Self> {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let (under, args) = (owned(under), owned(args));
        let level = std::env::var("RUST_LOG")
            .ok()
            .or_else(|| level.map(str::to_owned));
        let mut netd = Self {
            ns,
            scratch: Scratch::new("netd")?,
            args,
            under,
            level,
            process: None,
        };
        netd.start_again()?;
        Ok(netd)
    }

    /// Starts it again, with the state that it left.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        if self.process.is_some() {
            bail!("netd runs already");
        }
        let netd = binary("netd")?;
        let mut command = match self.under.split_first() {
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(netd);
                command
            }
            None => Command::new(netd),
        };
        command
            .arg("--state-dir")
            .arg(self.state())
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(&self.args);
        if let Some(level) = &self.level {
            command.env("RUST_LOG", level);
        }
        let mut process = self.ns.spawn_command(command)?;
        let answer = wait_for("netd's socket", DAEMON, || match process.ended() {
            // No use to wait any longer, but the log is wanted.
            Some(status) => Ok(Err(anyhow!("netd ended with {status}\n{}", process.log()))),
            None => UnixStream::connect(self.socket()).map(Ok),
        });
        answer.with_context(|| process.log())??;
        self.process = Some(process);
        // The socket is there early; the answer comes when everything is restored.
        self.vnet(&["status"]).with_context(|| self.log()).map(drop)
    }

    /// Where it runs.
    #[must_use]
    pub fn ns(&self) -> &'n Ns {
        self.ns
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("netd.sock")
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.scratch.join("state")
    }

    /// Its run folder.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.scratch.join("run")
    }

    /// A folder for documents of the test.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Proc::id)
    }

    /// What the running netd has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.as_ref().map(Proc::log).unwrap_or_default()
    }

    /// Runs `vnet ARGS`; its output, or an error when it fails.
    pub fn vnet(&self, args: &[&str]) -> anyhow::Result<String> {
        self.try_vnet(args)?.ok()
    }

    /// Runs `vnet ARGS` and shows how it ended.
    pub fn try_vnet(&self, args: &[&str]) -> anyhow::Result<Ran> {
        self.ns.run_command(self.vnet_command(args)?, PATIENCE)
    }

    /// `vnet ARGS -o json`.
    pub fn json(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.vnet(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&output)
            .with_context(|| format!("`vnet {}` printed no JSON:\n{output}", args.join(" ")))
    }

    /// `vnet ARGS` as a command, to be run by the caller.
    pub fn vnet_command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(binary("vnet")?);
        command.args(args).env("VNET_SOCKET", self.socket());
        Ok(command)
    }

    /// `vnet apply -f` of a document.
    pub fn apply(&self, document: &str) -> anyhow::Result<String> {
        let file = self.scratch.write("apply.toml", document)?;
        self.vnet(&["apply", "-f", &file.to_string_lossy()])
    }

    /// Kills it without a word (SIGKILL).
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.process.take().context("netd does not run")?.kill9()
    }

    /// Asks it to end (SIGTERM).
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.process
            .take()
            .context("netd does not run")?
            .stop(DAEMON)
    }

    /// Ends it and starts it again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.stop()?;
        self.start_again()
    }
}

/// A binary of this workspace: in `VNET_BIN_DIR`, else the newer of the debug and the release build beside this test.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("VNET_BIN_DIR") {
        let path = Path::new(&folder).join(name);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(anyhow!("VNET_BIN_DIR has no {name}"))
        };
    }
    let here = std::env::current_exe()?;
    let target = here
        .ancestors()
        .find(|folder| folder.ends_with("info") || folder.ends_with("release"));
    let target = target
        .and_then(Path::parent)
        .context("not run by cargo; set VNET_BIN_DIR")?;
    ["debug", "release"]
        .map(|profile| target.join(profile).join(name))
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .with_context(|| format!("{name} is not built: cargo build -p netd -p virtio-net-backend"))
}
