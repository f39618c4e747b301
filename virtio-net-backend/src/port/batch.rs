//! Frames on their way to a tap, handed to the kernel together: io_uring takes a turn's frames in one system call.
//!
//! ```text
//!   send   small: copied in, counts as sent     others: after a flush, by the tap's own call
//!   flush  > 1 frame: the ring                  1 frame, no ring, or what the ring did not take: the tap's own call
//! ```
//! It is not a queue: nothing waits after [`Batch::flush`] but frames for which the tap had no room, and those go first.
//! Where the kernel has no io_uring for us, each frame is a call of its own.
//!
//! The ring can do less than the process: it was restricted to plain writes before it was enabled, and it is entered as
//! a ring that the thread registered, so that the process's filter can refuse any other ring, wherever it came from.
//! A batch therefore belongs to the thread that made it; elsewhere it finds no ring and does without.
#![allow(
    unsafe_code,
    reason = "entries of an io_uring hold addresses, and a registered ring is entered by number; one step a function"
)]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode, types};

use super::{FramePort as _, Tap};
use crate::device::frame::HEAD;
use crate::device::header::HEADER_LEN;
use crate::device::{Frame, Sent};

/// Most frames of a batch; the bits of [`Frames`] bound it.
const MOST: u32 = Frames::BITS;
/// A longer frame is not copied once more: its tail goes to the kernel from where the guest put it.
const LONGEST: usize = HEADER_LEN + HEAD;

/// Frames of a batch by their numbers, the first in the lowest bit.
type Frames = u64;

/// The batch.
#[derive(Debug)]
pub struct Batch {
    ring: Option<WriteRing>,
    /// The frames, one after the other.
    bytes: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Batch {
    /// An empty batch, with a ring if the kernel gives us one.
    #[must_use]
    pub fn new() -> Self {
        Self::with_ring(WriteRing::new().ok())
    }

    fn with_ring(ring: Option<WriteRing>) -> Self {
        Self {
            ring,
            bytes: Vec::with_capacity(MOST as usize * LONGEST),
            ends: Vec::with_capacity(MOST as usize),
        }
    }

    /// Whether frames go together: there is a ring, and it has been of use so far.
    #[must_use]
    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Sends a frame to `tap`, at the latest with the next [`Batch::flush`] for which the tap has room.
    #[inline]
    pub fn send(&mut self, tap: &mut Tap, frame: &Frame<'_>) -> Sent {
        let linear = frame.linear();
        if self.ring.is_none() || !frame.tail().is_empty() || linear.len() > LONGEST {
            return self.send_alone(tap, frame);
        }
        if self.is_full() {
            self.flush(tap);
            if self.is_full() {
                return Sent::Busy;
            }
        }
        self.push(linear);
        Sent::Done
    }

    /// Frames keep their order: first what waits.
    fn send_alone(&mut self, tap: &mut Tap, frame: &Frame<'_>) -> Sent {
        self.flush(tap);
        if self.is_empty() {
            tap.send(frame)
        } else {
            Sent::Busy
        }
    }

    fn is_full(&self) -> bool {
        self.ends.len() >= MOST as usize
    }

    fn push(&mut self, linear: &[u8]) {
        self.bytes.extend_from_slice(linear);
        self.ends.push(self.bytes.len());
    }

    /// Hands to `tap` what waits.
    pub fn flush(&mut self, tap: &mut Tap) {
        let waiting = first(self.ends.len());
        let again = match &mut self.ring {
            // A ring costs more than a call to enter: it is for company.
            Some(ring) if self.ends.len() > 1 => {
                let wrote = ring.write(tap.as_fd(), &self.bytes, &self.ends);
                tap.refuse(wrote.refused.count_ones());
                if wrote.unfit {
                    self.ring = None;
                }
                wrote.again
            }
            Some(_) | None => waiting,
        };
        if again != 0 {
            self.send_again(tap, again);
        } else {
            self.bytes.clear();
            self.ends.clear();
        }
    }

    /// Sends these frames by calls of their own. From the first on for which there is no room they stay.
    fn send_again(&mut self, tap: &mut Tap, again: Frames) {
        let bytes = std::mem::take(&mut self.bytes);
        let ends = std::mem::take(&mut self.ends);
        let mut full = false;
        for (number, linear) in pieces(&bytes, &ends) {
            let Some(frame) = Frame::new(linear).filter(|_| again >> number & 1 == 1) else {
                continue;
            };
            full = full || tap.send(&frame) == Sent::Busy;
            if full {
                self.push(linear);
            }
        }
        if !full {
            // Nothing waits: the room is of use to the next turn.
            (self.bytes, self.ends) = (bytes, ends);
            self.bytes.clear();
            self.ends.clear();
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

/// The first so many frames.
fn first(count: usize) -> Frames {
    let beyond = (MOST as usize).saturating_sub(count);
    u32::try_from(beyond)
        .ok()
        .and_then(|beyond| Frames::MAX.checked_shr(beyond))
        .unwrap_or(0)
}

/// The frames with their numbers.
fn pieces<'a>(bytes: &'a [u8], ends: &'a [usize]) -> impl Iterator<Item = (u32, &'a [u8])> {
    let mut from = 0;
    (0..).zip(ends).map(move |(number, &end)| {
        let piece = &bytes[from..end];
        from = end;
        (number, piece)
    })
}

/// What became of a batch; frames that are not named were taken.
#[derive(Clone, Copy, Debug, Default)]
struct Wrote {
    /// The file took them for no frames, or takes none.
    refused: Frames,
    /// The file had no room, or they did not reach it.
    again: Frames,
    /// The ring is of no use.
    unfit: bool,
}

/// A ring that writes, and can do nothing else.
struct WriteRing {
    ring: IoUring,
    /// Its number among those that this thread registered.
    number: u32,
}

impl WriteRing {
    fn new() -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(MOST)?;
        if !ring.params().is_feature_skip_cqe_on_success() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let number = register(ring.as_raw_fd())?;
        let ring = Self { ring, number };
        let submitter = ring.ring.submitter();
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_flags_allowed(Flags::SKIP_SUCCESS.bits()),
            Restriction::register_op(UNREGISTER_RINGS),
        ])?;
        submitter.register_enable_rings()?;
        Ok(ring)
    }

    /// Writes frames, each with the right not to wait.
    fn write(&mut self, file: BorrowedFd<'_>, bytes: &[u8], ends: &[usize]) -> Wrote {
        let file = types::Fd(file.as_raw_fd());
        let mut queue = self.ring.submission();
        let mut asked = 0;
        for (number, piece) in pieces(bytes, ends) {
            let entry = opcode::Write::new(file, piece.as_ptr(), length(piece))
                .rw_flags(libc::RWF_NOWAIT)
                .build()
                .flags(Flags::SKIP_SUCCESS)
                .user_data(number.into());
            // SAFETY: the kernel reads `piece` only within `enter`, for it may not wait: what cannot be written at once
            // has failed. What `enter` leaves in the queue is never entered: the ring is given up then.
            if unsafe { queue.push(&entry) }.is_err() {
                break;
            }
            asked += 1;
        }
        drop(queue);
        // Whatever it says, the queue tells what was taken.
        let _ = enter(self.number, asked);
        let left = self.ring.submission().len();
        let taken = first((asked as usize).saturating_sub(left));
        let mut wrote = Wrote {
            again: first(ends.len()) & !taken,
            unfit: left > 0,
            ..Wrote::default()
        };
        for answer in self.ring.completion() {
            let frame = u32::try_from(answer.user_data())
                .ok()
                .and_then(|number| Frames::checked_shl(1, number))
                .unwrap_or(0);
            match -answer.result() {
                ..=0 => {}
                libc::EAGAIN => wrote.again |= frame,
                // These are a tap's: malformed, its link is down, it was deleted, no memory.
                libc::EINVAL | libc::EIO | libc::EBADFD | libc::EFAULT | libc::ENOMEM => {
                    wrote.refused |= frame;
                }
                // No tap says so: the kernel wants frames in another way.
                _ => {
                    wrote.again |= frame;
                    wrote.unfit = true;
                }
            }
        }
        wrote
    }
}

impl std::fmt::Debug for WriteRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteRing")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Drop for WriteRing {
    fn drop(&mut self) {
        // Where a filter refuses, the thread's end does it.
        let _ = unregister(self.ring.as_raw_fd(), self.number);
    }
}

/// Frames are short: see [`LONGEST`].
fn length(piece: &[u8]) -> u32 {
    u32::try_from(piece.len()).unwrap_or(u32::MAX)
}

const REGISTER_RINGS: u8 = 20;
const UNREGISTER_RINGS: u8 = 21;
/// A flag of io_uring_enter(2): the ring is told by its number.
pub(crate) const ENTER_REGISTERED: u32 = 1 << 4;

/// `struct io_uring_rsrc_update`, as io_uring_register(2) has it.
#[repr(C)]
struct Place {
    number: u32,
    reserved: u32,
    ring: u64,
}

/// Registers a ring with this thread; its number there.
fn register(ring: libc::c_int) -> io::Result<u32> {
    let mut place = Place {
        // The kernel chooses.
        number: u32::MAX,
        reserved: 0,
        ring: u64::from(ring.cast_unsigned()),
    };
    call_register(ring, REGISTER_RINGS, &mut place)?;
    Ok(place.number)
}

fn unregister(ring: libc::c_int, number: u32) -> io::Result<()> {
    let mut place = Place {
        number,
        reserved: 0,
        ring: 0,
    };
    call_register(ring, UNREGISTER_RINGS, &mut place)
}

fn call_register(ring: libc::c_int, what: u8, place: &mut Place) -> io::Result<()> {
    // SAFETY: both requests read and write one `Place`.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            libc::c_uint::from(what),
            std::ptr::from_mut(place),
            1,
        )
    };
    match done {
        1 => Ok(()),
        0 => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets the kernel do `count` entries of the ring with this number.
fn enter(number: u32, count: u32) -> io::Result<()> {
    // SAFETY: who put the entries in answers for the addresses in them; none is passed here.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            number,
            count,
            0,
            ENTER_REGISTERED,
            std::ptr::null::<libc::sigset_t>(),
            0usize,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use io_uring::squeue::Entry;
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

    use super::*;

    /// What takes frames one by one as a tap does, and can be read and be full.
    fn pretended_tap() -> (Tap, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
        let (ours, theirs) = pair.expect("a pair");
        (Tap::pretended(ours), theirs)
    }

    /// The numbers of the frames that came, in their order.
    fn arrived(socket: &OwnedFd) -> Vec<u8> {
        let mut bytes = [0; 2 * LONGEST];
        let next = || {
            recv(socket, &mut bytes[..], RecvFlags::empty()).ok()?;
            Some(bytes[HEADER_LEN])
        };
        std::iter::from_fn(next).collect()
    }

    fn send(batch: &mut Batch, tap: &mut Tap, number: u8, len: usize) -> Sent {
        let mut linear = vec![number; len];
        linear[..HEADER_LEN].fill(0);
        batch.send(tap, &Frame::new(&linear).expect("whole"))
    }

    /// With a ring, where the kernel gives one, and without.
    fn batches() -> impl Iterator<Item = Batch> {
        let ring = WriteRing::new();
        if let Err(error) = &ring {
            eprintln!("skipped: no io_uring here: {error}");
        }
        let with = ring.ok().map(|ring| Batch::with_ring(Some(ring)));
        with.into_iter().chain([Batch::with_ring(None)])
    }

    #[test]
    fn frames_short_and_long_keep_their_order() {
        for mut batch in batches() {
            let (mut tap, socket) = pretended_tap();
            let had_ring = batch.has_ring();
            let mut came = Vec::new();
            for number in 0..200 {
                let len = if number % 7 == 6 {
                    LONGEST + 1
                } else {
                    LONGEST
                };
                assert_eq!(send(&mut batch, &mut tap, number, len), Sent::Done);
                if number % 10 == 9 {
                    batch.flush(&mut tap);
                    came.extend(arrived(&socket));
                }
            }
            assert_eq!(came, (0..200).collect::<Vec<_>>());
            assert!(batch.is_empty());
            assert_eq!((batch.has_ring(), tap.refused()), (had_ring, 0));
        }
    }

    #[test]
    fn small_frames_wait_for_each_other_only_where_there_is_a_ring() {
        for mut batch in batches() {
            let (mut tap, socket) = pretended_tap();
            send(&mut batch, &mut tap, 1, 80);
            send(&mut batch, &mut tap, 2, 80);
            let at_once = if batch.has_ring() { vec![] } else { vec![1, 2] };
            assert_eq!(arrived(&socket), at_once);
            batch.flush(&mut tap);
            assert_eq!([at_once, arrived(&socket)].concat(), [1, 2]);
        }
    }

    #[test]
    fn a_full_tap_loses_no_frame_that_counts_as_sent() {
        for mut batch in batches() {
            let (mut tap, socket) = pretended_tap();
            rustix::net::sockopt::set_socket_send_buffer_size(tap.as_fd(), 4608).expect("set");
            let had_ring = batch.has_ring();
            let more = |number: &u8| send(&mut batch, &mut tap, *number, 80) == Sent::Done;
            let sent: Vec<u8> = (0..=u8::MAX).take_while(more).collect();
            assert!(sent.len() < 200, "a socket takes a dozen: {sent:?}");
            assert_eq!(batch.is_empty(), !had_ring);
            assert_eq!(send(&mut batch, &mut tap, 0, LONGEST + 1), Sent::Busy);
            let mut came = Vec::new();
            while came.len() < sent.len() {
                let before = came.len();
                came.extend(arrived(&socket));
                assert!(came.len() > before, "{came:?} of {sent:?}");
                batch.flush(&mut tap);
            }
            assert_eq!(came, sent);
            assert!(batch.is_empty());
            assert_eq!((batch.has_ring(), tap.refused()), (had_ring, 0));
        }
    }

    #[test]
    fn an_answer_that_no_tap_gives_ends_the_ring_and_the_tap_is_asked_itself() {
        for mut batch in batches() {
            let (mut tap, socket) = pretended_tap();
            drop(socket);
            for number in 0..5 {
                assert_eq!(send(&mut batch, &mut tap, number, 80), Sent::Done);
            }
            batch.flush(&mut tap);
            assert_eq!((tap.refused(), batch.has_ring()), (5, false));
            assert!(batch.is_empty());
        }
    }

    /// Moves this thread to a network of its own, where it may.
    fn leave_network() -> bool {
        // SAFETY: no memory is touched, and the thread has no socket yet that would notice.
        let left = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        if !left {
            eprintln!("skipped: no network: {}", io::Error::last_os_error());
        }
        left
    }

    #[test]
    fn what_a_tap_refuses_is_counted_and_the_ring_stays() {
        let on_taps = || {
            if !leave_network() {
                return;
            }
            for (mut batch, name) in batches().zip(["t0", "t1"]) {
                let Ok((mut tap, _)) = Tap::open(name) else {
                    eprintln!("skipped: no taps here");
                    return;
                };
                let had_ring = batch.has_ring();
                let mut three_and_three = |tap: &mut Tap| {
                    for number in 0..3 {
                        send(&mut batch, tap, number, 80);
                        let unknown_kind = Frame::new(&[9; 80]).expect("whole");
                        assert_eq!(batch.send(tap, &unknown_kind), Sent::Done);
                    }
                    batch.flush(tap);
                    (tap.refused(), batch.is_empty(), batch.has_ring())
                };
                // Its link is down.
                assert_eq!(three_and_three(&mut tap), (6, true, had_ring));
                tap.bring_up(None).expect("up");
                assert_eq!(three_and_three(&mut tap), (9, true, had_ring));
            }
        };
        // A thread of its own, for others may use this one.
        std::thread::spawn(on_taps).join().expect("ran");
    }

    #[test]
    fn a_thread_that_did_not_make_the_ring_does_without() {
        for mut batch in batches() {
            let (mut tap, socket) = pretended_tap();
            let elsewhere = move || {
                for number in 0..5 {
                    send(&mut batch, &mut tap, number, 80);
                }
                batch.flush(&mut tap);
                (batch.has_ring(), tap.refused())
            };
            let told = std::thread::spawn(elsewhere).join().expect("ran");
            assert_eq!(told, (false, 0));
            assert_eq!(arrived(&socket), [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn a_ring_does_nothing_but_write() {
        let Ok(mut ring) = WriteRing::new() else {
            eprintln!("skipped: no io_uring here");
            return;
        };
        let (tap, _socket) = pretended_tap();
        let file = types::Fd(tap.as_fd().as_raw_fd());
        let mut outcome = |entry: Entry| {
            // SAFETY: none of the entries tried here holds an address.
            unsafe { ring.ring.submission().push(&entry) }.expect("room");
            enter(ring.number, 1).expect("entered");
            ring.ring.completion().next().map(|answer| answer.result())
        };
        let write = || opcode::Write::new(file, std::ptr::null(), 0).build();
        assert_eq!(outcome(write()), Some(0));
        let refused = Some(-libc::EACCES);
        assert_eq!(outcome(opcode::Nop::new().build()), refused);
        assert_eq!(outcome(opcode::Close::new(file).build()), refused);
        assert_eq!(outcome(write().flags(Flags::ASYNC)), refused);
        let submitter = ring.ring.submitter();
        let more = submitter.register_files(&[file.0]);
        assert_eq!(
            more.expect_err("refused").raw_os_error(),
            Some(libc::EACCES)
        );
    }
}
