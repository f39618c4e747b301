use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;

use super::output::{Out, segment, table};
use super::status::span;
use super::{Client, Failure};
use crate::wire::{DhcpFamily, DhcpView, LeaseView, Outcome};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Who has which address
    #[command(visible_alias = "ls")]
    List {
        /// Only of this network.
        network: Option<String>,
    },
    /// Everything about one lease
    Show {
        /// The network.
        network: String,
        /// The address, or the guest's name or MAC.
        guest: String,
    },
    /// Keep the address for its guest from now on: the lease becomes a reservation in the network's document
    Reserve {
        /// The network.
        network: String,
        /// The address, or the guest's name or MAC.
        guest: String,
    },
    /// What guests asked of DHCP, what was answered, and what was not and why
    Stats,
    /// End a lease, so that its address is free at once; by name or MAC, all that the guest has in the network
    Release {
        /// The network.
        network: String,
        /// The address, or the guest's name or MAC.
        guest: String,
    },
}

pub(super) fn run(verb: Verb, client: &Client, out: &Out) -> Result<(), Failure> {
    match verb {
        Verb::List { network } => {
            let query = network.map_or_else(String::new, |n| format!("?network={}", segment(&n)));
            let leases: Vec<LeaseView> = client.get(&format!("/v1/leases{query}"))?;
            out.show(&leases, || rows(&leases))
        }
        Verb::Stats => {
            let view: DhcpView = client.get("/v1/dhcp")?;
            out.show(&view, || stats(&view))
        }
        Verb::Show { network, guest } => {
            let path = path(client, &network, &guest)?.1;
            let lease: LeaseView = client.get(&path)?;
            out.show(&lease, || card(&lease))
        }
        Verb::Reserve { network, guest } => {
            let (address, path) = path(client, &network, &guest)?;
            let done: Outcome = client.post(&format!("{path}/reserve"), &())?;
            out.show(&done, || match done.changed.is_empty() {
                true => format!("{address} of {network} was reserved already"),
                false => format!("{address} of {network} is kept for this guest from now on"),
            })
        }
        Verb::Release { network, guest } => {
            let mut done = Outcome::default();
            for address in addresses(client, &network, &guest)? {
                let one: Outcome = client.delete(&path_of(&network, &address))?;
                done.changed.extend(one.changed);
                done.notes.extend(one.notes);
            }
            out.show(&done, || {
                let free = |address: &String| format!("{address} of {network} is free");
                let free: Vec<String> = done.changed.iter().map(free).collect();
                free.join("\n")
            })
        }
    }
}

fn stats(view: &DhcpView) -> String {
    let rows = view.networks.iter().flat_map(|n| {
        let pool = format!("{} of {}", n.busy, n.pool);
        [("IPv4", &n.v4, pool), ("IPv6", &n.v6, "-".to_owned())].map(|(name, family, pool)| {
            [
                n.network.clone(),
                name.to_owned(),
                pool,
                family.held.to_string(),
                family.quarantined.to_string(),
                family.received.values().sum::<u64>().to_string(),
                family.sent.values().sum::<u64>().to_string(),
                reasons(family),
            ]
        })
    });
    let header = [
        "NETWORK",
        "FAMILY",
        "BUSY",
        "LEASED",
        "IN DOUBT",
        "ASKED",
        "ANSWERED",
        "NOT ANSWERED",
    ];
    table(header, rows)
}

fn reasons(family: &DhcpFamily) -> String {
    let all = family.ignored.iter();
    let all: Vec<_> = all.map(|(why, count)| format!("{count} {why}")).collect();
    match all.is_empty() {
        true => "-".to_owned(),
        false => all.join(", "),
    }
}

/// The first address of a guest, and where its lease is in the API.
fn path(client: &Client, network: &str, guest: &str) -> Result<(String, String), Failure> {
    let mut all = addresses(client, network, guest)?;
    let address = all.swap_remove(0);
    let path = path_of(network, &address);
    Ok((address, path))
}

fn path_of(network: &str, address: &str) -> String {
    format!("/v1/leases/{}/{}", segment(network), segment(address))
}

/// The addresses of a guest, one at least. A name or MAC that nobody has goes to the daemon as it is, which says so.
fn addresses(client: &Client, network: &str, guest: &str) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    if guest.parse::<IpAddr>().is_err() {
        let query = format!("/v1/leases?network={}", segment(network));
        let leases: Vec<LeaseView> = client.get(&query)?;
        let is = |l: &&LeaseView| {
            l.hostname.as_deref() == Some(guest)
                || l.mac
                    .as_deref()
                    .is_some_and(|m| m.eq_ignore_ascii_case(guest))
        };
        let of_it = leases.iter().filter(is);
        found.extend(of_it.map(|lease| lease.address.to_string()));
    }
    if found.is_empty() {
        found.push(guest.to_owned());
    }
    Ok(found)
}

fn card(lease: &LeaseView) -> String {
    let now = now();
    let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let ends = lease.expires.map_or_else(
        || "never".to_owned(),
        |at| format!("in {}", span(at.saturating_sub(now))),
    );
    let kept = if lease.reserved { "yes" } else { "no" };
    [
        ("Network", lease.network.clone()),
        ("Address", lease.address.to_string()),
        ("Name", or_none(&lease.hostname)),
        ("MAC", or_none(&lease.mac)),
        ("Client id", or_none(&lease.client_id)),
        (
            "Began",
            format!("{} ago", span(now.saturating_sub(lease.granted))),
        ),
        ("Ends", ends),
        ("Reserved", kept.to_owned()),
    ]
    .map(|(key, value)| format!("{:<11}{value}", format!("{key}:")))
    .join("\n")
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

fn rows(leases: &[LeaseView]) -> String {
    if leases.is_empty() {
        return "No leases yet: a guest gets one when it asks by DHCP.".to_owned();
    }
    let now = now();
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
