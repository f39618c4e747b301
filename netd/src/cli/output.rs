//! Printing: tables for people, JSON for programs, errors that say what to do. Colours only on a terminal.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::{Failure, Format};

/// How and where to print.
pub(super) struct Out {
    pub(super) format: Format,
}

impl Out {
    pub(super) const fn new(format: Format) -> Self {
        Self { format }
    }

    /// The value as JSON, or what people are shown.
    pub(super) fn show(
        &self,
        value: &impl Serialize,
        people: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => {
                let json = serde_json::to_string_pretty(value);
                line(&json.map_err(|e| Failure::Broken(e.to_string()))?)
            }
            Format::Table => line(people().trim_end()),
            Format::Toml | Format::Qemu | Format::CloudHypervisor | Format::Crosvm => {
                Err(Failure::Usage(
                    "this command prints a table or JSON: use -o table or -o json".to_owned(),
                ))
            }
        }
    }
}

/// One line (or block) to standard output; a closed pipe ends the process quietly, as in any filter.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    if text.is_empty() {
        return Ok(());
    }
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Something to know, to standard error.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{} {text}", paint("note:", "36"));
}

/// Why the command failed, to standard error.
pub(super) fn error(failure: &Failure) {
    let _ = writeln!(std::io::stderr(), "{} {failure}", paint("error:", "31"));
}

fn paint(word: &str, colour: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some() || !std::io::stderr().is_terminal();
    if plain {
        word.to_owned()
    } else {
        format!("\x1b[1;{colour}m{word}\x1b[0m")
    }
}

/// A table with a header; each column as wide as its widest cell.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let rows: Vec<[String; N]> = std::iter::once(header.map(str::to_owned))
        .chain(rows)
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `Key: value` lines, aligned.
pub(super) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let shown = rows.iter().filter(|(_, value)| !value.is_empty());
    shown
        .map(|(key, value)| format!("{:<w$}  {value}", format!("{key}:"), w = width + 1))
        .collect::<Vec<_>>()
        .join("\n")
}

/// `yes` or `no`.
pub(super) fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

/// A segment of a URL path.
pub(super) fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-._~:".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}
