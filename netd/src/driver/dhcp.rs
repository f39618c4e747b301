//! What the DHCP services have to tell.

use std::collections::BTreeMap;

use vnet_core::serve::leases::Stats;

use super::Driver;
use crate::wire::{DhcpFamily, DhcpNetwork, DhcpView};

impl Driver {
    pub(super) async fn show_dhcp(&self) -> DhcpView {
        let stats = self.tools.leases.stats().await;
        DhcpView {
            networks: stats.iter().map(of_network).collect(),
        }
    }
}

fn of_network(stats: &Stats) -> DhcpNetwork {
    let (four, six) = (&stats.counters, &stats.counters6);
    DhcpNetwork {
        network: stats.network.to_string(),
        pool: stats.pool_total,
        busy: stats.pool_busy,
        advertisements: stats.advertised,
        conflicts: four.conflicts,
        v4: DhcpFamily {
            held: stats.tally.held,
            offered: stats.tally.offered,
            quarantined: stats.tally.quarantined,
            received: words(&four.received, |kind| kind.word()),
            sent: words(&four.sent, |kind| kind.word()),
            ignored: words(&four.ignored, |reason| reason.word()),
        },
        v6: DhcpFamily {
            held: stats.tally6.held,
            offered: stats.tally6.offered,
            quarantined: stats.tally6.quarantined,
            received: words(&six.received, |kind| kind.word()),
            sent: words(&six.sent, |kind| kind.word()),
            ignored: words(&six.ignored, |reason| reason.word()),
        },
    }
}

fn words<K: Copy>(
    counts: &BTreeMap<K, u64>,
    word: impl Fn(K) -> &'static str,
) -> BTreeMap<String, u64> {
    let counts = counts.iter();
    counts
        .map(|(key, count)| (word(*key).to_owned(), *count))
        .collect()
}
