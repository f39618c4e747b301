//! The command line. Everything is in the library; this is only the process.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    netd::cli::main(netd::cli::Args::parse())
}
