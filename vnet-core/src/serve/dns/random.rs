//! Unpredictable numbers from the kernel, fetched a page at a time.

/// A pool that is refilled when it is empty.
pub(super) struct Random {
    pool: Vec<u8>,
}

impl Default for Random {
    fn default() -> Self {
        Self {
            pool: Vec::with_capacity(SIZE),
        }
    }
}

const SIZE: usize = 4096;

impl Random {
    /// The next 64 bits.
    pub(super) fn next(&mut self) -> u64 {
        if self.pool.len() < 8 {
            self.refill();
        }
        let at = self.pool.len().saturating_sub(8);
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(self.pool.drain(at..)) {
            *to = from;
        }
        u64::from_ne_bytes(bytes)
    }

    fn refill(&mut self) {
        self.pool.clear();
        while self.pool.len() < SIZE {
            let spare = rustix::buffer::spare_capacity(&mut self.pool);
            // Linux has had it since 3.17, and it can only be interrupted by a signal.
            let got = rustix::rand::getrandom(spare, rustix::rand::GetRandomFlags::empty());
            if let Err(e) = got
                && e != rustix::io::Errno::INTR
            {
                unreachable!("the kernel gives no randomness: {e}");
            }
        }
    }
}
