//! One file on its way to one client.

use std::ops::Range;

use super::packet::{Wishes, granted};

/// How often the same is sent again before the client is given up.
const TRIES: u32 = 5;

/// What a server grants at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a block: more than the link's MTU holds would come in fragments, which firmwares drop.
    pub block: u16,
    /// Blocks of a window.
    pub window: u16,
    /// Seconds.
    pub timeout: u8,
}

/// Where a transfer is.
#[derive(Debug, Clone)]
pub struct Transfer {
    size: u64,
    block: u16,
    window: u16,
    timeout: u8,
    /// The answer to the options, until the client has it.
    granted: Option<Vec<u8>>,
    /// The first block that the client may not have; blocks are counted from 1 and do not wrap here.
    next: u64,
    /// Sent again so many times.
    tries: u32,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Send this packet.
    Say(Vec<u8>),
    /// Send these blocks.
    Send(Range<u64>),
    /// Wait.
    Wait,
    /// The client has all of it, or is gone.
    End,
}

impl Transfer {
    /// A transfer of so many bytes, and how it begins.
    #[must_use]
    pub fn begin(size: u64, wishes: &Wishes, limits: &Limits) -> (Self, Act) {
        let block = wishes.block.map(|n| n.min(limits.block));
        let window = wishes.window.map(|n| n.min(limits.window));
        // RFC 2349: the value is taken as it is, or not at all.
        let timeout = wishes.timeout.filter(|n| *n <= limits.timeout);
        let mut options = Vec::new();
        options.extend(block.map(|n| ("blksize", u64::from(n))));
        options.extend(timeout.map(|n| ("timeout", u64::from(n))));
        options.extend(wishes.size.then_some(("tsize", size)));
        options.extend(window.map(|n| ("windowsize", u64::from(n))));
        let mut transfer = Self {
            size,
            block: block.unwrap_or(512),
            window: window.unwrap_or(1),
            timeout: timeout.unwrap_or(1),
            granted: (!options.is_empty()).then(|| granted(&options)),
            next: 1,
            tries: 0,
        };
        let act = transfer.again();
        (transfer, act)
    }

    /// The client has everything up to this block.
    pub fn acknowledged(&mut self, block: u16) -> Act {
        if self.granted.is_some() {
            if block != 0 {
                return Act::Wait;
            }
            self.granted = None;
            self.tries = 0;
            return Act::Send(self.in_flight());
        }
        // Which of the blocks in flight has this number; numbers come round after 65535.
        let Some(block) = self.in_flight().find(|n| n & 0xffff == u64::from(block)) else {
            // An old one, said twice: answering it would double everything from here on.
            return Act::Wait;
        };
        self.next = block + 1;
        self.tries = 0;
        if block == self.last() {
            return Act::End;
        }
        Act::Send(self.in_flight())
    }

    /// Nothing came for as long as [`Transfer::timeout`] says.
    pub fn timed_out(&mut self) -> Act {
        self.tries += 1;
        if self.tries > TRIES {
            return Act::End;
        }
        self.again()
    }

    /// Seconds to wait for the client.
    #[must_use]
    pub const fn timeout(&self) -> u8 {
        self.timeout
    }

    /// Where in the file a block is, and how long it is; the last one may be empty.
    #[must_use]
    pub fn place(&self, block: u64) -> (u64, usize) {
        let at = (block - 1) * u64::from(self.block);
        let left = self.size.saturating_sub(at).min(u64::from(self.block));
        (at, usize::try_from(left).unwrap_or(0))
    }

    fn again(&mut self) -> Act {
        match &self.granted {
            Some(granted) => Act::Say(granted.clone()),
            None => Act::Send(self.in_flight()),
        }
    }

    fn in_flight(&self) -> Range<u64> {
        self.next..(self.next + u64::from(self.window)).min(self.last() + 1)
    }

    /// A block that is not full ends the file, so a file of whole blocks ends with an empty one.
    const fn last(&self) -> u64 {
        self.size / self.block as u64 + 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        block: 1468,
        window: 16,
        timeout: 10,
    };

    #[test]
    fn without_options_one_block_at_a_time() {
        let (mut transfer, act) = Transfer::begin(1024, &Wishes::default(), &LIMITS);
        assert_eq!(act, Act::Send(1..2));
        assert_eq!(transfer.acknowledged(1), Act::Send(2..3));
        assert_eq!(transfer.acknowledged(1), Act::Wait);
        assert_eq!(transfer.timed_out(), Act::Send(2..3));
        assert_eq!(transfer.acknowledged(2), Act::Send(3..4));
        assert_eq!(transfer.place(3), (1024, 0));
        assert_eq!(transfer.acknowledged(3), Act::End);
    }

    #[test]
    fn options_are_granted_within_limits() {
        let wishes = Wishes {
            block: Some(9000),
            timeout: Some(3),
            size: true,
            window: Some(99),
        };
        let (mut transfer, act) = Transfer::begin(100_000, &wishes, &LIMITS);
        let said = b"\0\x06blksize\x001468\0timeout\x003\0tsize\x00100000\0windowsize\x0016\0";
        assert_eq!(act, Act::Say(said.to_vec()));
        assert_eq!(transfer.timed_out(), act);
        assert_eq!(transfer.acknowledged(1), Act::Wait);
        assert_eq!(transfer.acknowledged(0), Act::Send(1..17));
        // The tenth was lost: from there on.
        assert_eq!(transfer.acknowledged(9), Act::Send(10..26));
        assert_eq!(transfer.timeout(), 3);
    }

    #[test]
    fn a_client_that_is_gone_is_given_up() {
        let (mut transfer, _) = Transfer::begin(10, &Wishes::default(), &LIMITS);
        for _ in 0..TRIES {
            assert_eq!(transfer.timed_out(), Act::Send(1..2));
        }
        assert_eq!(transfer.timed_out(), Act::End);
    }

    #[test]
    fn block_numbers_come_round() {
        let (mut transfer, _) = Transfer::begin(512 * 70_000, &Wishes::default(), &LIMITS);
        for block in 1..=70_000u64 {
            let number = u16::try_from(block & 0xffff).unwrap();
            assert_eq!(
                transfer.acknowledged(number),
                Act::Send(block + 1..block + 2)
            );
        }
        let last = u16::try_from(70_001u64 & 0xffff).unwrap();
        assert_eq!(transfer.acknowledged(last), Act::End);
    }

    proptest! {
        /// A client that takes what comes gets the whole file, whatever is lost on the way and however it asks.
        #[test]
        fn the_file_arrives(size in 0u64..60_000, block in prop::option::of(8u16..2000), window in prop::option::of(1u16..40), lost in prop::collection::vec(any::<bool>(), 0..40)) {
            let wishes = Wishes { block, window, size: true, timeout: None };
            let (mut transfer, mut act) = Transfer::begin(size, &wishes, &LIMITS);
            let (mut have, mut bytes, mut lost) = (0u64, 0u64, lost.into_iter());
            for _ in 0..40_000 {
                match act {
                    Act::Say(_) => act = transfer.acknowledged(0),
                    Act::Send(blocks) => {
                        for n in blocks {
                            if n == have + 1 && !lost.next().unwrap_or(false) {
                                have = n;
                                let (at, len) = transfer.place(n);
                                prop_assert_eq!(at, bytes);
                                bytes += len as u64;
                            }
                        }
                        let number = u16::try_from(have & 0xffff).unwrap();
                        act = transfer.acknowledged(number);
                    }
                    Act::Wait => act = transfer.timed_out(),
                    Act::End => break,
                }
                // A client in doubt is patient here: the giving up has its own test.
                transfer.tries = 0;
            }
            prop_assert_eq!(bytes, size);
            prop_assert_eq!(act, Act::End);
        }
    }
}
