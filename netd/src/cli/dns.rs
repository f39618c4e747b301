use clap::Subcommand;

use super::output::{Out, pairs, segment, table, yes};
use super::{Client, Failure};
use crate::wire::{DnsLookup, DnsUpstream, DnsView, Outcome};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// What was asked of each network, how full the cache is, and how upstreams do
    Stats,
    /// Forget what upstreams said
    Flush,
    /// Whose word a name is for guests of a network, who is asked about it, and what is kept
    Lookup {
        /// The network whose guests ask.
        network: String,
        /// The name, or an address to ask for the name of.
        name: String,
        /// The type of records: A unless said, PTR for an address.
        kind: Option<String>,
    },
}

pub(super) fn run(verb: Verb, client: &Client, out: &Out) -> Result<(), Failure> {
    match verb {
        Verb::Stats => {
            let view: DnsView = client.get("/v1/dns")?;
            out.show(&view, || stats(&view))
        }
        Verb::Flush => {
            let done: Outcome = client.post("/v1/dns/flush", &())?;
            out.show(&done, || format!("Forgotten: {}", done.changed.join(", ")))
        }
        Verb::Lookup {
            network,
            name,
            kind,
        } => {
            let kind = kind.map(|kind| format!("&type={}", segment(&kind)));
            let path = format!(
                "/v1/dns/{}/lookup?name={}{}",
                segment(&network),
                segment(&name),
                kind.unwrap_or_default()
            );
            let lookup: DnsLookup = client.get(&path)?;
            out.show(&lookup, || explained(&lookup))
        }
    }
}

fn stats(view: &DnsView) -> String {
    let cells = view.networks.iter().map(|n| {
        let told = [
            n.queries,
            n.local,
            n.no_such_name,
            n.cached,
            n.stale,
            n.forwarded,
            n.refused + n.limited + n.malformed,
            n.failed,
        ];
        let [a, b, c, d, e, f, g, h] = told.map(|count| count.to_string());
        [n.network.clone(), a, b, c, d, e, f, g, h]
    });
    let header = [
        "NETWORK", "QUERIES", "OURS", "NO NAME", "CACHED", "STALE", "ASKED", "REFUSED", "FAILED",
    ];
    let cache = format!(
        "{} answers, {} KiB of {} KiB",
        view.cache_entries,
        view.cache_bytes.div_ceil(1024),
        view.cache_limit / 1024
    );
    let asked = format!(
        "{} ({} not answered in time, {} answers forged)",
        view.upstream_sent, view.upstream_timeouts, view.upstream_spoofed
    );
    [
        table(header, cells),
        pairs(&[("Cache", cache), ("Asked upstream", asked)]),
        upstreams(&view.upstreams),
    ]
    .join("\n\n")
}

fn upstreams(list: &[DnsUpstream]) -> String {
    let rows = list.iter().map(|u| {
        let took = u
            .milliseconds
            .map_or("-".to_owned(), |ms| format!("{ms} ms"));
        [u.endpoint.clone(), yes(u.up), took, yes(!u.no_edns)]
    });
    table(["UPSTREAM", "UP", "ANSWERS IN", "EDNS"], rows)
}

fn explained(lookup: &DnsLookup) -> String {
    let mut text = pairs(&[
        ("Whose word", lookup.whose.clone()),
        ("Told", lookup.records.join("\n            ")),
        ("Signatures checked", yes(lookup.checked)),
        ("Inner addresses refused", yes(lookup.protected)),
    ]);
    if !lookup.upstreams.is_empty() {
        text = [text, upstreams(&lookup.upstreams)].join("\n\n");
    }
    text
}
