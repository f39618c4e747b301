//! `vnet`: the command line. Tables for people, `-o json` for programs, a first error line that says what to do.
//!
//! Each noun is one file; this one holds the grammar, the exit codes and what all nouns share.

mod apply;
mod client;
mod dns;
mod event;
mod lease;
mod network;
mod output;
mod port;
mod publish;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

pub use client::{Client, Failure};

/// Networks for virtual machines.
#[derive(Debug, Parser)]
#[command(name = "vnet", version, propagate_version = true, after_help = EXIT_CODES)]
pub struct Args {
    /// The daemon's socket.
    #[arg(
        long,
        global = true,
        env = "VNET_SOCKET",
        default_value = "/run/netd/netd.sock"
    )]
    socket: PathBuf,
    /// How to print: a table for people, or JSON for programs.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    noun: Noun,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no such thing, 4 the daemon does not answer, 5 not allowed.

Five minutes:
  vnet network list                              what there is
  vnet port attach default web                   a plug for a guest: its MAC, address and QEMU line
  vnet publish default web 8080:80/tcp           reach the guest through the host
  vnet lease list                                who has which address
  vnet network edit default                      change a running network; guests stay connected";

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// A network's document, for `vnet apply` and `vnet network edit`.
    Toml,
    /// A port's arguments for QEMU, and nothing else.
    Qemu,
    /// A port's arguments for cloud-hypervisor, and nothing else.
    CloudHypervisor,
    /// A port's arguments for crosvm, and nothing else.
    Crosvm,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Networks: list, show, create, edit, start, stop, ...
    #[command(subcommand, visible_aliases = ["net", "networks"])]
    Network(network::Verb),
    /// Ports, the plugs of guests: attach, detach, list, show, open
    #[command(subcommand, visible_alias = "ports")]
    Port(port::Verb),
    /// Leases: who has which address
    #[command(subcommand, visible_alias = "leases")]
    Lease(lease::Verb),
    /// DNS: what was asked, whose word a name is, forgetting what is kept
    #[command(subcommand)]
    Dns(dns::Verb),
    /// Publish a guest's port on the host; without arguments, list what is published
    Publish(publish::Args),
    /// Take a publication back
    Unpublish(publish::UnpublishArgs),
    /// Make the networks of a file or folder true, changing running ones in place
    Apply(apply::Args),
    /// How the daemon is, and what needs a look
    Status,
    /// Follow what happens
    Events(event::Args),
}

/// Runs the command and turns its end into an exit code.
#[must_use]
pub fn main(args: Args) -> ExitCode {
    let client = Client::new(args.socket);
    let out = output::Out::new(args.output);
    let done = match args.noun {
        Noun::Network(verb) => network::run(verb, &client, &out),
        Noun::Port(verb) => port::run(verb, &client, &out),
        Noun::Lease(verb) => lease::run(verb, &client, &out),
        Noun::Dns(verb) => dns::run(verb, &client, &out),
        Noun::Publish(args) => publish::run(args, &client, &out),
        Noun::Unpublish(args) => publish::take_back(&args, &client, &out),
        Noun::Apply(args) => apply::run(&args, &client, &out),
        Noun::Status => status::run(&client, &out),
        Noun::Events(args) => event::run(&args, &client, &out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::error(&failure);
            ExitCode::from(failure.code())
        }
    }
}
