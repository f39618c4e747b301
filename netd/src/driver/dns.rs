//! What the DNS service has to tell.

use vnet_core::dns::wire::{rtype, rtype_of};
use vnet_core::dns::{Counters, Explained, UpstreamState, Whose, reverse_name};
use vnet_core::types::NetworkName;

use super::{Driver, Refusal};
use crate::wire::{DnsLookup, DnsNetwork, DnsUpstream, DnsView, Outcome};

impl Driver {
    pub(super) async fn show_dns(&self) -> DnsView {
        let stats = self.tools.dns.stats().await;
        let networks = stats.networks.iter();
        DnsView {
            cache_entries: stats.cache_entries,
            cache_bytes: stats.cache_bytes,
            cache_limit: stats.cache_limit,
            upstream_sent: stats.upstream_sent,
            upstream_timeouts: stats.upstream_timeouts,
            upstream_spoofed: stats.upstream_spoofed,
            upstreams: stats.upstreams.into_iter().map(upstream).collect(),
            networks: networks
                .map(|(name, counters)| of_network(name, counters))
                .collect(),
        }
    }

    /// Forgets what upstreams said.
    pub(super) async fn flush_dns(&self) -> Outcome {
        let count = self.tools.dns.flush().await;
        Outcome {
            changed: vec![format!("{count} answers")],
            notes: Vec::new(),
        }
    }

    /// Explains what guests of a network are told of a name.
    pub(super) async fn look_up(
        &self,
        network: &NetworkName,
        name: &str,
        kind: &str,
    ) -> Result<DnsLookup, Refusal> {
        let wanted = rtype_of(kind)
            .ok_or_else(|| Refusal::Invalid(format!("{kind:?} is no type of DNS records")))?;
        self.known(network)?;
        // As people write it: by the address itself.
        let reverse = (wanted == rtype::PTR).then(|| name.parse().ok().map(reverse_name));
        let name = reverse.flatten().unwrap_or_else(|| name.to_owned());
        let explained = self.tools.dns.explain(network.clone(), &name, wanted).await;
        let explained = explained.ok_or_else(|| {
            Refusal::NotFound(format!(
                "`{}` is no name, or network `{network}` serves no DNS now",
                name.escape_debug()
            ))
        })?;
        Ok(lookup(explained))
    }
}

fn upstream(state: UpstreamState) -> DnsUpstream {
    DnsUpstream {
        endpoint: state.endpoint,
        up: state.up,
        milliseconds: state.milliseconds,
        no_edns: state.no_edns,
    }
}

fn of_network(name: &NetworkName, counters: &Counters) -> DnsNetwork {
    DnsNetwork {
        network: name.to_string(),
        queries: counters.queries,
        local: counters.local,
        no_such_name: counters.no_such_name,
        cached: counters.cached,
        stale: counters.stale,
        forwarded: counters.forwarded,
        refused: counters.refused,
        malformed: counters.malformed,
        limited: counters.limited,
        failed: counters.failed,
    }
}

fn lookup(explained: Explained) -> DnsLookup {
    let whose = match explained.whose {
        Whose::Ours => "ours".to_owned(),
        Whose::NoSuchName => "ours: there is no such name".to_owned(),
        Whose::Kept(left) => format!("kept of what upstreams said, for {left} s more"),
        Whose::Stale => {
            "kept of what upstreams said, too old now: told if they do not answer".to_owned()
        }
        Whose::Upstreams => "upstreams are asked".to_owned(),
        Whose::Refused(why) => format!("refused: {why}"),
    };
    DnsLookup {
        whose,
        records: explained.records,
        upstreams: explained.upstreams.into_iter().map(upstream).collect(),
        checked: explained.checked,
        protected: explained.protected,
    }
}
