use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;

use super::output::{Out, segment, table};
use super::status::span;
use super::{Client, Failure};
use crate::wire::{LeaseView, Outcome};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Who has which address
    #[command(visible_alias = "ls")]
    List {
        /// Only of this network.
        network: Option<String>,
    },
    /// End a lease, so that its address is free at once
    Release {
        /// The network.
        network: String,
        /// The address.
        address: String,
    },
}

pub(super) fn run(verb: Verb, client: &Client, out: &Out) -> Result<(), Failure> {
    match verb {
        Verb::List { network } => {
            let query = network.map_or_else(String::new, |n| format!("?network={}", segment(&n)));
            let leases: Vec<LeaseView> = client.get(&format!("/v1/leases{query}"))?;
            out.show(&leases, || rows(&leases))
        }
        Verb::Release { network, address } => {
            let path = format!("/v1/leases/{}/{}", segment(&network), segment(&address));
            let done: Outcome = client.delete(&path)?;
            out.show(&done, || format!("{address} of {network} is free"))
        }
    }
}

fn rows(leases: &[LeaseView]) -> String {
    if leases.is_empty() {
        return "No leases yet: a guest gets one when it asks by DHCP.".to_owned();
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let ends = |expires: Option<u64>| {
        expires.map_or_else(
            || "never".to_owned(),
            |at| format!("in {}", span(at.saturating_sub(now))),
        )
    };
    table(
        ["NETWORK", "ADDRESS", "MAC", "NAME", "ENDS"],
        leases.iter().map(|l| {
            [
                l.network.clone(),
                l.address.to_string(),
                l.mac.clone().unwrap_or_else(|| "-".to_owned()),
                l.hostname.clone().unwrap_or_else(|| "-".to_owned()),
                ends(l.expires),
            ]
        }),
    )
}
