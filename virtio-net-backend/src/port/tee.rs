//! A port around a port: records each frame as pcap, and loses or corrupts some. For tests and for looking.

use std::io::{self, Write};

use super::FramePort;
use crate::device::header::HEADER_LEN;
use crate::device::{Frame, Sent};

/// Which frames suffer, by a small seeded generator, so that a run can be repeated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Of 256 frames, how many are lost.
    pub lose: u8,
    /// Of 256 frames, how many get one byte changed.
    pub corrupt: u8,
    /// Where the generator starts.
    pub seed: u64,
}

/// The port.
#[derive(Debug)]
pub struct Tee<P, W> {
    inner: P,
    record: Option<W>,
    faults: Faults,
    lost: u64,
    packets: u32,
    scratch: Vec<u8>,
}

impl<P: FramePort, W: Write> Tee<P, W> {
    /// Wraps a port. `record` gets a pcap file, when there is one to write.
    ///
    /// # Errors
    /// When the file header cannot be written.
    pub fn new(inner: P, mut record: Option<W>, faults: Faults) -> io::Result<Self> {
        if let Some(record) = &mut record {
            record.write_all(&pcap_header())?;
        }
        Ok(Self {
            inner,
            record,
            faults,
            lost: 0,
            packets: 0,
            scratch: Vec::new(),
        })
    }

    /// The record, to read what was written.
    pub fn into_record(self) -> Option<W> {
        self.record
    }

    fn next(&mut self) -> u64 {
        // xorshift64*: good enough to choose frames.
        let mut x = self.faults.seed | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.faults.seed = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    /// Records a frame (header included) and decides its fate; false when it is lost.
    fn pass(&mut self, linear: &mut [u8]) -> bool {
        let frame = linear.get(HEADER_LEN..).unwrap_or_default();
        if let Some(record) = &mut self.record {
            let len = u32::try_from(frame.len()).unwrap_or(0).to_le_bytes();
            // Time is not known here: packets are numbered, a microsecond apart.
            let at = self.packets.to_le_bytes();
            self.packets = self.packets.wrapping_add(1);
            let header = [[0; 4], at, len, len].concat();
            if record
                .write_all(&header)
                .and_then(|()| record.write_all(frame))
                .is_err()
            {
                self.record = None;
            }
        }
        let dice = self.next();
        if dice % 256 < u64::from(self.faults.lose) {
            self.lost += 1;
            return false;
        }
        if dice / 256 % 256 < u64::from(self.faults.corrupt) && linear.len() > HEADER_LEN {
            let room = (linear.len() - HEADER_LEN) as u64;
            let at = HEADER_LEN + usize::try_from(dice % room).unwrap_or(0);
            linear[at] ^= 0x55;
        }
        true
    }
}

impl<P: FramePort, W: Write> FramePort for Tee<P, W> {
    fn send(&mut self, frame: &Frame<'_>) -> Sent {
        let mut scratch = std::mem::take(&mut self.scratch);
        frame.copy_to(&mut scratch);
        let sent = if self.pass(&mut scratch) {
            Frame::new(&scratch).map_or(Sent::Done, |frame| self.inner.send(&frame))
        } else {
            Sent::Done
        };
        self.scratch = scratch;
        sent
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        while let Some(n) = self.inner.receive(into)? {
            if self.pass(&mut into[..n]) {
                return Ok(Some(n));
            }
        }
        Ok(None)
    }

    fn refused(&self) -> u64 {
        self.inner.refused() + self.lost
    }
}

/// The classic pcap file header: microseconds, Ethernet.
fn pcap_header() -> Vec<u8> {
    let words: [u32; 6] = [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 0x4_0000, 1];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Channel;

    #[test]
    fn frames_are_recorded_and_the_same_seed_loses_the_same_frames() {
        let run = |seed| {
            let (a, mut b) = Channel::pair();
            let faults = Faults {
                lose: 64,
                corrupt: 0,
                seed,
            };
            let mut tee = Tee::new(a, Some(Vec::new()), faults).expect("header");
            for i in 0..200u8 {
                tee.send(&Frame::new(&[i; 60]).expect("whole"));
            }
            let mut got = Vec::new();
            let mut into = [0; 100];
            while let Some(n) = b.receive(&mut into).expect("open") {
                got.push(into[n - 1]);
            }
            assert_eq!(tee.refused() + got.len() as u64, 200);
            assert_eq!(
                tee.into_record().expect("record").len(),
                24 + 200 * (16 + 48)
            );
            got
        };
        assert_eq!(run(7), run(7));
        assert!(run(7).len() < 190);
    }
}
