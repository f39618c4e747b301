//! What is printed.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is what this program is for"
)]

use crate::peer::Peer;

/// A line of the table; figures in the order of [`Peer::ALL`].
pub(crate) struct Row {
    pub(crate) measure: String,
    pub(crate) figures: [String; 3],
    pub(crate) reach: String,
    pub(crate) reached: bool,
}

pub(crate) fn progress(what: &str) {
    eprintln!("... {what}");
}

pub(crate) fn print(rows: &[Row]) {
    let names = Peer::ALL.map(Peer::name).join(" | ");
    println!("| DHCPv4 | {names} | to reach | reached |\n|---|---|---|---|---|---|");
    for row in rows {
        let figures = row.figures.join(" | ");
        let reached = if row.reached { "yes" } else { "NO" };
        println!(
            "| {} | {figures} | {} | {reached} |",
            row.measure, row.reach
        );
    }
}
