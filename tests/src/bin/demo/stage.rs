//! The transcript: headed steps, each command and what it printed. Colours only on a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use tests::{Guest, Netd, Ns};

/// How long one command of the demo may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Stage {
    colours: bool,
    scenes: std::cell::Cell<u32>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            colours,
            scenes: std::cell::Cell::new(0),
        }
    }

    pub(crate) fn say(&self, text: &str) {
        // Somebody piped us into `head`: there is nobody to tell.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    pub(crate) fn scene(&self, title: &str) {
        self.scenes.set(self.scenes.get() + 1);
        self.say(&self.paint("1", &format!("\n{}. {title}", self.scenes.get())));
    }

    pub(crate) fn failed(&self, error: &anyhow::Error) {
        let _ = writeln!(
            std::io::stderr(),
            "{} {error:#}",
            self.paint("1;31", "The demo failed:")
        );
    }

    /// A command of vnet, as a person would type it on the host.
    pub(crate) fn vnet(&self, netd: &Netd, args: &[&str]) -> anyhow::Result<()> {
        self.typed("$", &format!("vnet {}", args.join(" ")));
        self.printed(&netd.vnet(args)?);
        Ok(())
    }

    /// A command in a namespace.
    pub(crate) fn ns(&self, place: &str, ns: &Ns, argv: &[&str]) -> anyhow::Result<()> {
        let prompt = if place == "host" {
            "$".to_owned()
        } else {
            format!("{place}$")
        };
        self.typed(&prompt, &argv.join(" "));
        self.printed(&ns.run(argv)?.ok()?);
        Ok(())
    }

    /// A command in a guest.
    pub(crate) fn guest(&self, guest: &Guest, script: &str) -> anyhow::Result<()> {
        self.typed(&format!("{}#", guest.name()), script);
        let (code, output) = guest.try_run(PATIENCE, script)?;
        self.printed(&output);
        anyhow::ensure!(
            code == 0,
            "in the guest {}: `{script}` ended with {code}",
            guest.name()
        );
        Ok(())
    }

    fn typed(&self, prompt: &str, command: &str) {
        self.say(&format!(
            "{} {}",
            self.paint("36", prompt),
            self.paint("1", command)
        ));
    }

    fn printed(&self, output: &str) {
        for line in output.trim_end().lines() {
            self.say(&format!("  {line}"));
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
