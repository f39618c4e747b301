//! Finishing a frame for a driver that cannot take it as it is: its checksum is filled in, a super-frame is cut.

use crate::device::header::HEADER_LEN;
use crate::device::{Features, Frame, Gso, NetHeader};
use crate::switch::offload::{self, Accepts, Kind, Large, Partial, Pending, Segments, Work};

/// The frame cannot be finished: its headers are not those of what it says to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the frame cannot be finished")]
pub struct Unfinishable;

/// Memory for the work.
#[derive(Debug, Default)]
pub struct Finisher {
    whole: Vec<u8>,
    segment: Vec<u8>,
    linear: Vec<u8>,
}

impl Finisher {
    /// Hands the frame over as a driver with `features` can take it: as it is, finished, or in segments until `deliver`
    /// has no room. How many segments were left then.
    ///
    /// # Errors
    /// When it cannot be finished; nothing was handed over then.
    pub fn finish(
        &mut self,
        frame: &Frame<'_>,
        features: Features,
        mut deliver: impl FnMut(&Frame<'_>) -> bool,
    ) -> Result<u64, Unfinishable> {
        if frame.is_plain() {
            deliver(frame);
            return Ok(0);
        }
        let header = frame.header().map_err(|_| Unfinishable)?;
        if header.fits(features) {
            deliver(frame);
            return Ok(0);
        }
        frame.copy_to(&mut self.whole);
        let bytes = &mut self.whole;
        let finished = match pending(&header).work(accepts(features)) {
            // Only the ECN mark is too much for it.
            Work::Nothing => NetHeader {
                ecn: false,
                ..header
            },
            Work::Checksum(partial) => {
                let done = offload::finish_checksum(&mut bytes[HEADER_LEN..], partial);
                done.map_err(|_| Unfinishable)?;
                NetHeader::default()
            }
            Work::Segment(large) => return self.cut(large, deliver),
        };
        bytes[..HEADER_LEN].copy_from_slice(&finished.encode());
        if let Some(frame) = Frame::new(bytes) {
            deliver(&frame);
        }
        Ok(0)
    }

    fn cut(
        &mut self,
        large: Large,
        mut deliver: impl FnMut(&Frame<'_>) -> bool,
    ) -> Result<u64, Unfinishable> {
        let frame = &self.whole[HEADER_LEN..];
        let mut segments = Segments::new(frame, large).map_err(|_| Unfinishable)?;
        let header = NetHeader::default().encode();
        let mut left = segments.count() as u64;
        while segments.next_into(&mut self.segment) {
            left -= 1;
            self.linear.clear();
            self.linear.extend_from_slice(&header);
            self.linear.extend_from_slice(&self.segment);
            if Frame::new(&self.linear).is_some_and(|frame| !deliver(&frame)) {
                break;
            }
        }
        Ok(left)
    }
}

fn pending(header: &NetHeader) -> Pending {
    let kind = match header.gso {
        Gso::None => None,
        Gso::Tcp4 => Some(Kind::Tcp4),
        Gso::Tcp6 => Some(Kind::Tcp6),
        Gso::Udp => Some(Kind::Udp),
    };
    Pending {
        checksum: header.needs_csum.then_some(Partial {
            start: header.csum_start,
            offset: header.csum_offset,
        }),
        large: kind.map(|kind| Large {
            kind,
            size: header.gso_size,
        }),
    }
}

fn accepts(features: Features) -> Accepts {
    Accepts {
        checksum: features.has(Features::GUEST_CSUM),
        tcp4: features.has(Features::GUEST_TSO4),
        tcp6: features.has(Features::GUEST_TSO6),
        udp: features.has(Features::GUEST_USO4.with(Features::GUEST_USO6)),
    }
}
