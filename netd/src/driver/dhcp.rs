//! What the DHCP services have to tell.

use std::collections::BTreeMap;

use vnet_core::lease::Tally;
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
        v4: family(
            &stats.tally,
            words(&four.received, |kind| kind.word()),
            words(&four.sent, |kind| kind.word()),
            words(&four.ignored, |reason| reason.word()),
        ),
        v6: family(
            &stats.tally6,
            words(&six.received, |kind| kind.word()),
            words(&six.sent, |kind| kind.word()),
            words(&six.ignored, |reason| reason.word()),
        ),
    }
}

/// Counts by word.
type Words = BTreeMap<String, u64>;

const fn family(tally: &Tally, received: Words, sent: Words, ignored: Words) -> DhcpFamily {
    DhcpFamily {
        held: tally.held,
        offered: tally.offered,
        quarantined: tally.quarantined,
        received,
        sent,
        ignored,
    }
}

fn words<K: Copy>(counts: &BTreeMap<K, u64>, word: impl Fn(K) -> &'static str) -> Words {
    let counts = counts.iter();
    counts
        .map(|(key, count)| (word(*key).to_owned(), *count))
        .collect()
}
