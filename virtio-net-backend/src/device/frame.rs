//! One frame on its way: header and first bytes in private memory, the rest where the guest put it.

use super::header::{BadHeader, HEADER_LEN, NetHeader};
use super::memory::Slice;

/// Bytes of a frame that are copied out before anyone looks at them, so that a guest cannot change what was judged.
/// Covers Ethernet, two VLAN tags, IPv6 with extension headers, and a whole ARP, DHCP fixed part or ND message head.
pub const HEAD: usize = 256;

/// Longest frame: 64 KiB of IP packet, an Ethernet header and two tags.
pub const MAX_FRAME: usize = 65_535 + 14 + 8;

/// A frame. The first [`HEADER_LEN`] bytes of `linear` are its virtio-net header with `num_buffers` one.
#[derive(Debug)]
pub struct Frame<'a> {
    linear: &'a [u8],
    tail: &'a [Slice],
    tail_len: usize,
}

impl<'a> Frame<'a> {
    /// A frame that is wholly in private memory: header and bytes. `None` when the header is cut short.
    #[must_use]
    pub fn new(linear: &'a [u8]) -> Option<Self> {
        Self::with_tail(linear, &[], 0)
    }

    pub(super) fn with_tail(linear: &'a [u8], tail: &'a [Slice], tail_len: usize) -> Option<Self> {
        (linear.len() >= HEADER_LEN).then_some(Self {
            linear,
            tail,
            tail_len,
        })
    }

    /// The header.
    ///
    /// # Errors
    /// When the kind of super-frame is unknown, which frames from a device are not.
    pub fn header(&self) -> Result<NetHeader, BadHeader> {
        let mut raw = [0; HEADER_LEN];
        raw.copy_from_slice(&self.linear[..HEADER_LEN]);
        NetHeader::parse(&raw)
    }

    /// Whether the frame is finished: no checksum to fill in, not a super-frame.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.linear[0] & 1 == 0 && self.linear[1] == 0
    }

    /// The first bytes of the frame, at least [`HEAD`] of them where the frame has so many: what verdicts are taken on.
    #[must_use]
    pub fn head(&self) -> &'a [u8] {
        &self.linear[HEADER_LEN..]
    }

    /// Header and head together.
    #[must_use]
    pub fn linear(&self) -> &'a [u8] {
        self.linear
    }

    /// What follows the head, still in guest memory.
    #[must_use]
    pub fn tail(&self) -> &'a [Slice] {
        self.tail
    }

    /// Length of the frame without its header.
    #[must_use]
    pub fn len(&self) -> usize {
        self.linear.len() - HEADER_LEN + self.tail_len
    }

    /// Whether there is no frame behind the header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes header and frame to `out`, replacing its contents.
    pub fn copy_to(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(self.linear);
        let mut at = out.len();
        out.resize(at + self.tail_len, 0);
        for slice in self.tail {
            at += slice.read(&mut out[at..]);
        }
    }
}
