//! Numbers of messages that nobody waits for any more: who answers late, or twice, is no forger.

use super::super::servers::ServerId;

/// How many are remembered.
const MOST: usize = 1_024;

/// The last numbers that were let go.
#[derive(Debug, Default)]
pub(super) struct Late {
    numbers: Vec<u64>,
    next: usize,
}

impl Late {
    pub(super) fn remember(&mut self, server: ServerId, lane: u8, id: u16) {
        let number = pack(server, lane, id);
        match self.numbers.get_mut(self.next) {
            Some(oldest) => *oldest = number,
            None => self.numbers.push(number),
        }
        self.next = (self.next + 1) % MOST;
    }

    pub(super) fn expects(&self, server: ServerId, lane: u8, id: u16) -> bool {
        self.numbers.contains(&pack(server, lane, id))
    }
}

fn pack(server: ServerId, lane: u8, id: u16) -> u64 {
    u64::from(server.0) << 24 | u64::from(lane) << 16 | u64::from(id)
}
