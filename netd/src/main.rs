//! The daemon. Everything is in the library; this is only the process.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    netd::daemon::main(netd::daemon::Args::parse())
}
