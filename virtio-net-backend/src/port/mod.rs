//! What is on the other side of a device: a kernel tap, a channel inside the process, or a tee around either.

pub mod batch;
pub mod channel;
pub mod tap;
pub mod tee;

use std::io;

use crate::device::{Frame, Sent};

pub use batch::Batch;
pub use channel::Channel;
pub use tap::Tap;
pub use tee::Tee;

/// A place where frames go and come from, each with its virtio-net header before it.
///
/// One frame a call: a batch is the caller's loop, bounded by the caller's budget. Who sends many small frames to a tap
/// puts a [`Batch`] before it.
pub trait FramePort {
    /// Sends a frame. [`Sent::Busy`] asks to try again later; a frame that can never be sent is dropped and counted.
    fn send(&mut self, frame: &Frame<'_>) -> Sent;

    /// Receives the next frame, header first, into `into`; `None` when none waits. What does not fit is cut off.
    ///
    /// # Errors
    /// When the port is gone.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<Option<usize>>;

    /// Frames that could not be sent.
    fn refused(&self) -> u64;
}
