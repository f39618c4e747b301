//! Which receive queue a flow goes to: the pair by which the driver last sent it, as the standard asks
//! (virtio 1.2, 5.1.6.5.5), else one by hash. A small table without collision handling: a wrong hit costs locality,
//! never a frame.

const SLOTS: usize = 256;
const NONE: u8 = u8::MAX;

/// Pair by flow hash.
#[derive(Debug)]
pub struct Steer {
    slots: Box<[u8; SLOTS]>,
}

impl Default for Steer {
    fn default() -> Self {
        Self {
            slots: Box::new([NONE; SLOTS]),
        }
    }
}

impl Steer {
    /// The pair for a frame toward the driver, one of those in the set `pairs`, a bit each.
    #[must_use]
    pub fn pair(&self, head: &[u8], pairs: u32) -> u16 {
        let hash = flow_hash(head);
        let known = self.slots[slot(hash)];
        if u32::from(known) < u32::BITS && pairs >> known & 1 == 1 {
            return u16::from(known);
        }
        let mut left = pairs;
        for _ in 0..hash % pairs.count_ones().max(1) {
            left &= left.wrapping_sub(1);
        }
        u16::try_from(left.trailing_zeros()).map_or(0, |pair| pair % 32)
    }

    /// The driver sent frames of these flows by `pair`.
    pub fn learn(&mut self, flows: &Flows, pair: u16) {
        let pair = u8::try_from(pair).unwrap_or(NONE);
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if flows.0[at / 64] >> (at % 64) & 1 == 1 {
                *slot = pair;
            }
        }
    }
}

/// The flows of a turn over one transmit queue.
#[derive(Debug, Default)]
pub struct Flows([u64; SLOTS / 64]);

impl Flows {
    /// A frame of its flow was sent.
    pub fn note(&mut self, head: &[u8]) {
        let at = slot(flow_hash(head));
        self.0[at / 64] |= 1 << (at % 64);
    }
}

fn slot(hash: u32) -> usize {
    hash as usize % SLOTS
}

/// The same for both directions of a flow: addresses and ports are combined by sums.
fn flow_hash(head: &[u8]) -> u32 {
    let word = |at: usize| {
        head.get(at..at + 4)
            .map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    };
    let half = |at: usize| {
        head.get(at..at + 2)
            .map_or(0, |b| u32::from(u16::from_be_bytes([b[0], b[1]])))
    };
    let sum = |at: usize, words: usize| {
        (0..words).fold(0u32, |sum, i| sum.wrapping_add(word(at + 4 * i)))
    };
    let ports = |at: usize| half(at).wrapping_add(half(at + 2));
    let carries_ports = |protocol: Option<&u8>| matches!(protocol, Some(6 | 17));
    let raw = match half(12) {
        0x0800 => {
            let header = usize::from(head.get(14).copied().unwrap_or(0) & 0xf) * 4;
            let flow = if carries_ports(head.get(23)) {
                ports(14 + header)
            } else {
                0
            };
            sum(26, 2).wrapping_add(flow)
        }
        0x86dd => sum(22, 8).wrapping_add(if carries_ports(head.get(20)) {
            ports(54)
        } else {
            0
        }),
        _ => 0,
    };
    let mixed = raw.wrapping_mul(0x9e37_79b1);
    mixed ^ mixed >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flows(sent: &[Vec<u8>]) -> Flows {
        let mut flows = Flows::default();
        sent.iter().for_each(|head| flows.note(head));
        flows
    }

    fn udp(from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
        let mut frame = vec![0; 42];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[23] = 17;
        frame[29] = from.0;
        frame[33] = to.0;
        frame[34..36].copy_from_slice(&from.1.to_be_bytes());
        frame[36..38].copy_from_slice(&to.1.to_be_bytes());
        frame
    }

    #[test]
    fn the_answer_comes_by_the_pair_that_asked() {
        let mut steer = Steer::default();
        for port in 1000..1100 {
            steer.learn(&flows(&[udp((1, port), (2, 53))]), port % 4);
            assert_eq!(steer.pair(&udp((2, 53), (1, port)), 0b1111), port % 4);
        }
    }

    #[test]
    fn every_flow_of_a_turn_is_learnt() {
        let mut steer = Steer::default();
        let sent: Vec<_> = (1000..1020).map(|port| udp((1, port), (2, 53))).collect();
        steer.learn(&flows(&sent), 3);
        for port in 1000..1020 {
            assert_eq!(steer.pair(&udp((2, 53), (1, port)), 0b1111), 3);
        }
    }

    #[test]
    fn a_pair_that_is_not_in_use_is_never_chosen() {
        let mut steer = Steer::default();
        steer.learn(&flows(&[udp((1, 7), (2, 7))]), 3);
        assert!(steer.pair(&udp((2, 7), (1, 7)), 0b11) < 2);
        assert_eq!(steer.pair(&[], 1), 0);
        let chosen: std::collections::BTreeSet<u16> = (0..200)
            .map(|port| steer.pair(&udp((3, port), (4, 9)), 0b1010_0000))
            .collect();
        assert_eq!(chosen.into_iter().collect::<Vec<_>>(), [5, 7]);
    }
}
