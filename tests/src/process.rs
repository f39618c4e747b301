//! Programs: run to the end with captured output and a deadline, or spawned and owned by a guard.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait_for;

/// How long a command may take when the caller does not say.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command, for messages.
    pub command: String,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// Did it exit with 0?
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Its standard output when it succeeded, else an error that shows everything.
    pub fn ok(self) -> anyhow::Result<String> {
        if self.success() {
            return Ok(self.stdout);
        }
        bail!(
            "`{}` failed ({:?})\n{}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        )
    }

    /// Both outputs of a command that must *not* succeed.
    pub fn refused(self) -> anyhow::Result<String> {
        if self.success() {
            bail!(
                "`{}` succeeded, it should not\n{}{}",
                self.command,
                self.stdout,
                self.stderr
            );
        }
        Ok(self.stdout + &self.stderr)
    }
}

/// The command's words, as a person would type them.
#[must_use]
pub fn words(command: &Command) -> String {
    let quote = |word: &OsStr| {
        let word = word.to_string_lossy();
        if word.contains([' ', '"', '$', '\n']) {
            format!("'{word}'")
        } else {
            word.into_owned()
        }
    };
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    std::iter::once(program)
        .chain(command.get_args())
        .map(quote)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command to its end. After `deadline` it and its children are killed and that is an error.
pub fn run(mut command: Command, deadline: Duration) -> anyhow::Result<Ran> {
    let words = words(&command);
    let start = Instant::now();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run `{words}`"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait_within(&mut child, deadline);
    if status.is_none() {
        kill_group(&child);
        child.wait()?;
    }
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    let Some(status) = status else {
        bail!("`{words}` did not end within {deadline:?}\n{stdout}{stderr}");
    };
    Ok(Ran {
        command: words,
        code: status.code(),
        stdout,
        stderr,
        took: start.elapsed(),
    })
}

/// Runs a command line of plain words on the machine itself, not in a namespace.
pub fn host(line: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("an empty command")?);
    command.args(words);
    run(command, PATIENCE)?.ok()
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What arrived before an error is what there is to show.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait_within(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    wait_for("the end", deadline, || {
        child.try_wait().ok().flatten().ok_or("running")
    })
    .ok()
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

fn kill_group(child: &Child) {
    if let Some(pid) = pid(child) {
        // It may have ended by itself this very moment.
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// A program that runs beside the test, killed with its children on drop. Its output goes to a file, and the end of
/// that file is shown when the test is failing.
#[derive(Debug)]
pub struct Proc {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Proc {
    /// Starts `command`, output into `log`.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let name = words(&command);
        let out = File::options().create(true).append(true).open(log)?;
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        Ok(Self {
            name,
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until its output contains `text`.
    pub fn wait_log(&self, text: &str, deadline: Duration) -> anyhow::Result<()> {
        wait_for(&format!("{text:?} from `{}`", self.name), deadline, || {
            let log = self.log();
            if log.contains(text) {
                Ok(())
            } else {
                Err(tail(&log, 10).to_owned())
            }
        })
    }

    /// Has it ended?
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Does it run? A look that changes nothing: it may be dead and not yet waited for.
    #[must_use]
    pub fn alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
        !state.is_empty() && !state.starts_with('Z')
    }

    /// Sends a signal to it alone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = pid(&self.child).context("no pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Kills it at once (SIGKILL), not its children, and waits for its end.
    pub fn kill9(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        wait_within(&mut self.child, deadline).with_context(|| {
            format!(
                "`{}` still runs after {deadline:?}\n{}",
                self.name,
                tail(&self.log(), 20)
            )
        })
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn stop(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if shown() {
            eprintln!(
                "--- `{}` said (end of it):\n{}\n---",
                self.name,
                tail(&self.log(), 60)
            );
        }
        kill_group(&self.child);
        let _ = self.child.wait();
    }
}

/// Should a guard that ends show its log? In a test yes: libtest swallows it unless the test fails, and a test that
/// fails by returning an error cannot be told from one that passed. In a program only when it panics.
pub(crate) fn shown() -> bool {
    thread::panicking() || thread::current().name().is_some_and(|name| name != "main")
}

/// The last `lines` lines of a text.
#[must_use]
pub fn tail(text: &str, lines: usize) -> &str {
    let text = text.trim_end();
    let start = text
        .rmatch_indices('\n')
        .nth(lines.saturating_sub(1))
        .map_or(0, |(at, _)| at + 1);
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_code_and_refusal() {
        let ran = run(sh("echo out; echo err >&2; exit 3"), PATIENCE).unwrap();
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
            (Some(3), "out\n", "err\n")
        );
        assert!(ran.clone().ok().unwrap_err().to_string().contains("err"));
        assert_eq!(ran.refused().unwrap(), "out\nerr\n");
    }

    #[test]
    fn a_deadline_kills_the_children_too() {
        let start = Instant::now();
        let error = run(
            sh("echo begun; sleep 60 & sleep 60"),
            Duration::from_millis(200),
        )
        .unwrap_err();
        assert!(error.to_string().contains("begun"), "{error}");
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "the pipe was held open"
        );
    }

    #[test]
    fn tail_of_a_text() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
    }
}
