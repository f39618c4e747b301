use std::fmt;

use super::{Knob, Step, Sysctl};

/// Steps in the order they must be taken; empty when there is nothing to do.
///
/// Steps of one stage do not depend on each other, so a host may take them together. What cannot be given back
/// whole (a tap that a guest holds open) is deleted last, when nothing else can fail any more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    stages: Vec<Vec<Step>>,
}

/// When a step's turn comes. The order of the variants is the order of the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Routes that go, and those whose address goes.
    RemoveRoutes,
    RemoveAddresses,
    /// Links that go are taken off their bridges and down.
    Retire,
    /// Links whose name is needed for something else.
    Clear,
    /// Before anything is there that it has to guard, and after all that it guarded is off.
    Firewall,
    /// Bridges and taps, down and alone.
    Create,
    /// Bridges first, so that a port finds the mtu it has to follow.
    Bridges,
    Ports,
    /// IPv6 must be on before it has an address.
    Interfaces,
    AddAddresses,
    AddRoutes,
    /// Uplinks learn to obey advertisements although we forward, before we do.
    Uplinks,
    Forwarding,
    UplinksBack,
    Delete,
}

impl Plan {
    /// Sorts steps into stages; within a stage they stay in the order given.
    pub(super) fn new(mut steps: Vec<(Stage, Step)>) -> Self {
        steps.sort_by_key(|(stage, _)| *stage);
        let mut stages: Vec<Vec<Step>> = Vec::new();
        let mut current = None;
        for (stage, step) in steps {
            match stages.last_mut() {
                Some(last) if current == Some(stage) => last.push(step),
                Some(_) | None => stages.push(vec![step]),
            }
            current = Some(stage);
        }
        Self { stages }
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// How many steps there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.stages.iter().map(Vec::len).sum()
    }

    /// Every step, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.stages.iter().flatten()
    }

    /// The stages, in order.
    #[must_use]
    pub fn stages(&self) -> &[Vec<Step>] {
        &self.stages
    }
}

/// Where a sysctl of the host's belongs: an uplink is raised before forwarding is, and lowered after.
pub(super) fn stage_of_sysctl(key: &Sysctl, to: &str) -> Stage {
    match key {
        Sysctl::Ip4Forwarding | Sysctl::Ip6Forwarding => Stage::Forwarding,
        Sysctl::Interface(_, Knob::AcceptRa) if to == "2" => Stage::Uplinks,
        Sysctl::Interface(_, Knob::AcceptRa) => Stage::UplinksBack,
        Sysctl::Interface(_, Knob::Autoconf | Knob::RouteLocalnet | Knob::DisableIpv6) => {
            Stage::Interfaces
        }
    }
}

/// One line a step: what a dry run prints.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps().try_for_each(|step| writeln!(f, "{step}"))
    }
}
