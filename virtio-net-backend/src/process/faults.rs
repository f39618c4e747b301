//! Why rings of a port were stopped: each reason is logged once a port, and the last one is shown.

use std::collections::BTreeMap;

use crate::device::Fault;

/// The reasons so far.
#[derive(Debug, Default)]
pub struct Faults {
    /// In the order in which they came first: there are a handful of them, however often a guest breaks its rings.
    told: Vec<Fault>,
    last: Option<Fault>,
    /// By queue, of this session.
    queues: BTreeMap<u16, Fault>,
}

impl Faults {
    /// A ring was stopped.
    pub fn note(&mut self, port: &str, queue: u16, fault: Fault) {
        self.last = Some(fault);
        self.queues.insert(queue, fault);
        if !self.told.contains(&fault) {
            self.told.push(fault);
            tracing::warn!(port, queue, %fault, "ring stopped: its driver must set it up anew");
        }
    }

    /// Another driver, another session.
    pub fn begin_anew(&mut self) {
        self.queues.clear();
    }

    /// How the driver of this session broke rings; of interest while they do not run.
    pub fn by_queue(&self) -> impl Iterator<Item = (u16, Fault)> {
        self.queues.iter().map(|(queue, fault)| (*queue, *fault))
    }

    /// The last reason.
    #[must_use]
    pub fn last(&self) -> Option<String> {
        self.last.map(|fault| fault.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_breaks_its_ring_again_and_again_fills_no_log() {
        let mut faults = Faults::default();
        assert_eq!(faults.last(), None);
        for _ in 0..1000 {
            faults.note("web", 1, Fault::IndexJump);
            faults.note("web", 0, Fault::Direction);
        }
        assert_eq!(faults.told, [Fault::IndexJump, Fault::Direction]);
        assert_eq!(faults.last(), Some(Fault::Direction.to_string()));
    }
}
