//! A person at a guest's serial console: bytes both ways until Ctrl-] or the guest's end.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;

use tests::Guest;

/// What telnet and virsh users press to get out.
const ESCAPE: u8 = 0x1d;

pub(crate) fn talk(guest: &Guest) -> anyhow::Result<()> {
    let mut console = UnixStream::connect(guest.console_socket())?;
    let mut keys = console.try_clone()?;
    let _raw = Raw::set();
    thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut key = [0; 256];
        while let Ok(count @ 1..) = stdin.read(&mut key) {
            let typed = &key[..count];
            if typed.contains(&ESCAPE) || keys.write_all(typed).is_err() {
                break;
            }
        }
        // The other direction sees it and ends.
        let _ = keys.shutdown(std::net::Shutdown::Both);
    });
    // The prompt was printed before anybody looked.
    console.write_all(b"\n")?;
    let mut stdout = std::io::stdout().lock();
    let mut shown = [0; 4096];
    while let Ok(count @ 1..) = console.read(&mut shown) {
        stdout.write_all(&shown[..count])?;
        stdout.flush()?;
    }
    Ok(())
}

/// The terminal without line editing and echo, both of which the guest does; put back on drop.
struct Raw(Option<String>);

impl Raw {
    fn set() -> Self {
        if !std::io::stdin().is_terminal() {
            return Self(None);
        }
        let saved = Command::new("stty")
            .arg("-g")
            .stdin(std::process::Stdio::inherit())
            .output();
        let saved = saved
            .ok()
            .and_then(|output| String::from_utf8(output.stdout).ok());
        stty(&["raw", "-echo"]);
        Self(saved)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(saved) = &self.0 {
            stty(&[saved.trim()]);
        }
    }
}

fn stty(args: &[&str]) {
    // A console without raw mode is awkward, not broken.
    let _ = Command::new("stty").args(args).status();
}
