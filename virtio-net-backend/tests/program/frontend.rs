//! The real program over its real sockets, and a frontend laid out by hand: it sends recorded messages and then plays the
//! driver of the two rings that they describe.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::{Value, json};
use vm_memory::{Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap};

/// Longer than anything here takes on the busiest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const MOST_FDS: usize = 250;
/// No file comes with SET_VRING_KICK: bit 8 of its word, in its second byte.
pub(crate) const NO_FD: u8 = 1;

/// `virtio-net-backend --control`, without a tap.
pub(crate) struct Program {
    child: Child,
    folder: PathBuf,
    control: BufReader<UnixStream>,
}

impl Program {
    /// One in a folder of its own.
    pub(crate) fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vnb-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        Self::start_in(&folder)
    }

    fn start_in(folder: &Path) -> Self {
        let control = folder.join("control");
        let log = File::create(folder.join("log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_virtio-net-backend"))
            .arg("--control")
            .arg(&control)
            .stderr(log)
            .spawn()
            .expect("the program");
        let stream = within("a control socket", || UnixStream::connect(&control).ok());
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self {
            child,
            folder: folder.to_owned(),
            control: BufReader::new(stream),
        }
    }

    /// Kills it without a word, and starts another in its place.
    pub(crate) fn replace(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("dead");
        let next = Self::start_in(&self.folder);
        let old = std::mem::replace(self, next);
        // The folder is the next one's.
        std::mem::forget(old);
    }

    /// How many lines of its log have these words.
    pub(crate) fn said(&self, words: &str) -> usize {
        let log = std::fs::read_to_string(self.folder.join("log")).expect("a log");
        log.matches(words).count()
    }

    /// One command that must be done, with open files.
    pub(crate) fn done(&mut self, command: &Value, fds: &[BorrowedFd<'_>]) -> Value {
        let answer = self.ask(command, fds);
        assert_eq!(answer["ok"], true, "{command}: {answer}");
        answer
    }

    /// The answer to a command.
    pub(crate) fn ask(&mut self, command: &Value, fds: &[BorrowedFd<'_>]) -> Value {
        send(
            self.control.get_ref(),
            format!("{command}\n").as_bytes(),
            fds,
        );
        let mut line = String::new();
        self.control.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).expect("JSON")
    }

    /// A port that listens in the folder.
    pub(crate) fn add_port(&mut self, name: &str, mac: &str) {
        let socket = format!("{name}.sock");
        self.done(
            &json!({ "op": "add-port", "name": name, "socket": socket, "mac": mac }),
            &[],
        );
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).expect("a log")
    }

    /// Where its sockets are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Stops it where it is, or lets it go on.
    pub(crate) fn pause(&self, stopped: bool) {
        use rustix::process::{Pid, Signal, kill_process};
        let signal = if stopped { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.child), signal).expect("signalled");
    }

    /// A frontend that came to a port.
    pub(crate) fn frontend(&self, name: &str) -> Frontend {
        let stream = UnixStream::connect(self.folder.join(format!("{name}.sock"))).expect("a port");
        Frontend::new(stream)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Dead or gone already is as good.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// What comes of `look` before the patience ends.
pub(crate) fn within<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends bytes with files.
pub(crate) fn send(stream: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(sent.expect("sent"), bytes.len());
}

/// Receives up to `most` bytes and the files with them.
pub(crate) fn receive(stream: impl AsFd, most: usize) -> (Vec<u8>, VecDeque<OwnedFd>) {
    let mut bytes = vec![0; most];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(stream, &mut into, &mut control, flags).expect("received");
    let mut fds = VecDeque::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            fds.extend(some);
        }
    }
    bytes.truncate(got.bytes);
    (bytes, fds)
}

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The VMM says this: type, flags, payload.
    Says(u32, u32, Vec<u8>),
    /// The backend answers: these bytes, with so many files.
    Hears(Vec<u8>, usize),
    /// The rings carry frames.
    Frames,
}

/// Reads a trace.
pub(crate) fn trace(text: &str) -> Vec<Line> {
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(line).collect()
}

fn line(text: &str) -> Line {
    if text == "frames" {
        return Line::Frames;
    }
    let words: Vec<&str> = text.split(' ').collect();
    let [mark, _name, kind, flags, size, fds, hex] = words[..] else {
        panic!("not a line of a trace: {text}");
    };
    let number = |word: &str| word.split_once('=').expect("a number").1.to_owned();
    let kind: u32 = number(kind).parse().expect("a type");
    let flags = u32::from_str_radix(&number(flags)[2..], 16).expect("flags");
    let payload: Vec<u8> = hex
        .as_bytes()
        .chunks(2)
        .filter(|_| hex != "-")
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).expect("ASCII"), 16).expect("hex"))
        .collect();
    assert_eq!(number(size), payload.len().to_string(), "{text}");
    match mark {
        ">" => Line::Says(kind, flags, payload),
        "<" => Line::Hears(
            message(kind, flags, &payload),
            number(fds).parse().expect("fds"),
        ),
        _ => panic!("not a line of a trace: {text}"),
    }
}

/// A message's bytes.
pub(crate) fn message(kind: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("short");
    let words = [kind, flags, size].map(u32::to_le_bytes);
    [words.as_flattened(), payload].concat()
}

#[derive(Default)]
struct Ring {
    size: u16,
    /// Descriptors, available, used.
    parts: [u64; 3],
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    made: u16,
    seen: u16,
}

/// A VMM's end of a connection, and its guest's driver.
pub(crate) struct Frontend {
    stream: UnixStream,
    memory: Option<GuestMemoryMmap>,
    /// Guest address, length, address in the VMM.
    regions: Vec<[u64; 3]>,
    rings: [Ring; 4],
    /// The guest's memory, when it is one file.
    file: Option<OwnedFd>,
    inflight: Option<OwnedFd>,
    /// What the device was to log its writes in, oldest first.
    logs: Vec<File>,
    /// The buffer in which the last frame came.
    last_slot: Option<u32>,
}

const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
const HEADER: usize = 12;
const BUFFER: u32 = 2048;
/// Where buffers are: above the recorded guest's rings.
const RX_BUFFERS: u64 = 0x40_0000;
const TX_BUFFERS: u64 = 0x60_0000;
/// Where a command is, and behind it the place for its answer.
const COMMAND: u64 = 0x70_0000;
const ANSWER: u64 = 0x70_1000;
/// How far apart the buffers of two queue pairs are.
const PAIR: u64 = 0x8_0000;
/// Receive buffers that the device has.
const POSTED: u16 = 64;
const WRITABLE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where packets of any length are, and how far apart.
const PACKETS: u64 = 0x100_0000;
const PACKET: u64 = 0x2_0000;

/// Where a buffer of a queue pair is.
fn buffer(first: u64, pair: usize, slot: u64) -> u64 {
    first + pair as u64 * PAIR + slot * u64::from(BUFFER)
}

impl Frontend {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Self {
            stream,
            memory: None,
            regions: Vec::new(),
            rings: Default::default(),
            file: None,
            inflight: None,
            logs: Vec::new(),
            last_slot: None,
        }
    }

    /// Sends a message as recorded, with files of the kind that belongs to it; or checks an answer, byte by byte.
    pub(crate) fn replay(&mut self, line: &Line) {
        match line {
            Line::Says(kind, flags, payload) => {
                let fds = self.files(*kind, payload);
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                send(&self.stream, &message(*kind, *flags, payload), &fds);
            }
            Line::Hears(expected, count) => {
                let (bytes, mut fds) = self.hear(expected.len());
                assert_eq!((&bytes, fds.len()), (expected, *count));
                self.inflight = fds.pop_front().or(self.inflight.take());
            }
            Line::Frames => {}
        }
    }

    /// Sends a message with files of one's own, and says whether the backend did what it asks.
    pub(crate) fn ask(&mut self, kind: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        const WANTS_ANSWER: u32 = 1 | 1 << 3;
        send(&self.stream, &message(kind, WANTS_ANSWER, payload), fds);
        // SET_LOG_BASE is answered with what it says.
        let done = if kind == 6 { payload } else { &[0; 8] };
        let expected = message(kind, 1 | 1 << 2, done);
        self.hear(expected.len()).0 == expected
    }

    /// Agrees with the backend that requests can be answered.
    pub(crate) fn negotiate(&mut self) -> bool {
        const SET_PROTOCOL_FEATURES: u32 = 16;
        const REPLY_ACK: u64 = 1 << 3;
        self.ask(SET_PROTOCOL_FEATURES, &REPLY_ACK.to_le_bytes(), &[])
    }

    /// Maps the memory of a table that is to be sent later, with these files.
    pub(crate) fn prepare(&mut self, table: &Line) -> Vec<OwnedFd> {
        let Line::Says(kind, _, payload) = table else {
            panic!("not a message: {table:?}");
        };
        self.files(*kind, payload)
    }

    /// The guest's memory, as REM_MEM_REG and ADD_MEM_REG have it.
    pub(crate) fn region(&self) -> Vec<u8> {
        let [guest, len, user] = self.regions[0];
        [0, guest, len, user, 0]
            .iter()
            .flat_map(|word: &u64| word.to_le_bytes())
            .collect()
    }

    /// The file of the guest's memory.
    pub(crate) fn file(&self) -> OwnedFd {
        let file = self.file.as_ref().expect("mapped");
        file.try_clone().expect("dup")
    }

    /// Tells the device something by the control queue: 0 when it was done, 1 when it was refused.
    pub(crate) fn command(&mut self, command: &[u8]) -> u8 {
        const CHAINED: u16 = 1;
        let [table, ..] = self.rings[CONTROL].parts;
        let memory = self.memory.as_ref().expect("mapped");
        memory
            .write_slice(command, GuestAddress(COMMAND))
            .expect("written");
        // The second descriptor is the answer's.
        memory
            .write_obj(ANSWER, GuestAddress(table + 16))
            .expect("written");
        memory
            .write_obj(1u32, GuestAddress(table + 24))
            .expect("written");
        self.write(table + 28, WRITABLE);
        self.write(table + 14, 1);
        let len = u32::try_from(command.len()).expect("short");
        self.make_available(CONTROL, 0, COMMAND, len, CHAINED);
        self.kick(CONTROL);
        within("an answer to a command", || self.take_used(CONTROL));
        self.read(ANSWER)
    }

    fn hear(&self, len: usize) -> (Vec<u8>, VecDeque<OwnedFd>) {
        let (mut bytes, mut fds) = (Vec::new(), VecDeque::new());
        while bytes.len() < len {
            let (more, more_fds) = receive(&self.stream, len - bytes.len());
            assert!(!more.is_empty(), "the backend hung up");
            bytes.extend(more);
            fds.extend(more_fds);
        }
        (bytes, fds)
    }

    fn files(&mut self, kind: u32, payload: &[u8]) -> Vec<OwnedFd> {
        let word = |at: usize| u32::from_le_bytes(*payload[at..].first_chunk().expect("whole"));
        let long = |at: usize| u64::from_le_bytes(*payload[at..].first_chunk().expect("whole"));
        let ring = usize::from(payload.first().copied().unwrap_or_default());
        let event = || eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
        match kind {
            // SET_MEM_TABLE
            5 => return self.map(word(0), |at| long(8 + at)),
            // SET_LOG_BASE
            6 => {
                let log = memfd_create("log", MemfdFlags::CLOEXEC).expect("memfd");
                ftruncate(&log, long(0)).expect("length");
                self.logs.push(log.try_clone().expect("dup").into());
                return vec![log];
            }
            // SET_VRING_NUM
            8 => self.rings[ring].size = u16::try_from(word(4)).expect("a size"),
            // SET_VRING_ADDR: flags, then descriptors, used, available
            9 => self.rings[ring].parts = [long(8), long(24), long(16)].map(|at| self.guest(at)),
            // SET_VRING_BASE
            10 => self.begin(ring, u16::try_from(word(4)).expect("an index")),
            // SET_VRING_KICK that says that there is none
            12 if payload[1] & NO_FD != 0 => self.rings[ring].kick = None,
            // SET_VRING_KICK, SET_VRING_CALL
            12 => {
                let kick = event();
                self.rings[ring].kick = Some(kick.try_clone().expect("dup"));
                return vec![kick];
            }
            13 => {
                let call = event();
                self.rings[ring].call = Some(call.try_clone().expect("dup"));
                return vec![call];
            }
            // SET_BACKEND_REQ_FD: nobody listens at the other end
            21 => return vec![UnixStream::pair().expect("a pair").0.into()],
            // ADD_MEM_REG
            37 => {
                let file = self.file.as_ref().expect("mapped");
                return vec![file.try_clone().expect("dup")];
            }
            // SET_INFLIGHT_FD
            32 => {
                return vec![
                    self.inflight
                        .as_ref()
                        .expect("given")
                        .try_clone()
                        .expect("dup"),
                ];
            }
            _ => {}
        }
        Vec::new()
    }

    fn map(&mut self, count: u32, long: impl Fn(usize) -> u64) -> Vec<OwnedFd> {
        let (mut files, mut ranges) = (Vec::new(), Vec::new());
        self.regions.clear();
        for at in (0..count as usize).map(|region| 32 * region) {
            let [guest, len, user, offset] = [0, 8, 16, 24].map(|field| long(at + field));
            let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
            ftruncate(&file, offset + len).expect("length");
            let mapped = FileOffset::new(file.try_clone().expect("dup").into(), offset);
            let len_here = usize::try_from(len).expect("small");
            ranges.push((GuestAddress(guest), len_here, Some(mapped)));
            self.regions.push([guest, len, user]);
            self.file = Some(file.try_clone().expect("dup"));
            files.push(file);
        }
        self.memory = Some(GuestMemoryMmap::from_ranges_with_files(ranges).expect("mapped"));
        files
    }

    fn guest(&self, user: u64) -> u64 {
        let within = |[_, len, start]: &&[u64; 3]| (*start..start + len).contains(&user);
        let [guest, _, start] = self.regions.iter().find(within).expect("in memory");
        guest + user - start
    }

    fn begin(&mut self, ring: usize, base: u16) {
        let [_, available, used] = self.rings[ring].parts;
        self.write(available + 2, base);
        self.write(used + 2, base);
        (self.rings[ring].made, self.rings[ring].seen) = (base, base);
    }

    fn write(&self, at: u64, value: u16) {
        let memory = self.memory.as_ref().expect("mapped");
        memory.write_obj(value, GuestAddress(at)).expect("written");
    }

    fn read<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        let memory = self.memory.as_ref().expect("mapped");
        memory.read_obj(GuestAddress(at)).expect("read")
    }

    fn make_available(&mut self, number: usize, slot: u16, at: u64, len: u32, flags: u16) {
        let ring = &self.rings[number];
        let [table, available, _] = ring.parts;
        let (made, size) = (ring.made, ring.size);
        let entry = table + 16 * u64::from(slot);
        let memory = self.memory.as_ref().expect("mapped");
        memory.write_obj(at, GuestAddress(entry)).expect("written");
        memory
            .write_obj(len, GuestAddress(entry + 8))
            .expect("written");
        self.write(entry + 12, flags);
        self.write(available + 4 + 2 * u64::from(made % size), slot);
        std::sync::atomic::fence(Ordering::SeqCst);
        self.write(available + 2, made.wrapping_add(1));
        self.rings[number].made = made.wrapping_add(1);
    }

    /// Kicks a ring, unless the device said that it would look of its own accord: 0 is for what it receives, 1 for what
    /// it sends, 2 for commands.
    pub(crate) fn kick(&self, ring: usize) {
        if let Some(kick) = &self.rings[ring].kick {
            rustix::io::write(kick, &1u64.to_ne_bytes()).expect("kicked");
        }
    }

    /// Kicks a ring no more.
    pub(crate) fn unkick(&mut self, ring: usize) {
        self.rings[ring].kick = None;
    }

    /// The next entry of a used ring, when the device gave something back.
    fn take_used(&mut self, ring: usize) -> Option<[u32; 2]> {
        let [_, _, used] = self.rings[ring].parts;
        let (seen, size) = (self.rings[ring].seen, self.rings[ring].size);
        if self.read::<u16>(used + 2) == seen {
            return None;
        }
        std::sync::atomic::fence(Ordering::SeqCst);
        self.rings[ring].seen = seen.wrapping_add(1);
        let entry = used + 4 + 8 * u64::from(seen % size);
        Some([self.read(entry), self.read(entry + 4)])
    }

    /// Gives the device its receive buffers.
    pub(crate) fn post(&mut self) {
        self.post_again(POSTED);
    }

    /// Gives back the first of its receive buffers, all of which were seen.
    pub(crate) fn post_again(&mut self, count: u16) {
        self.post_to(0, count);
    }

    /// The same, for a queue pair.
    pub(crate) fn post_to(&mut self, pair: usize, count: u16) {
        let ring = 2 * pair + RX;
        for _ in 0..count {
            let slot = self.rings[ring].made % POSTED;
            let at = buffer(RX_BUFFERS, pair, slot.into());
            self.make_available(ring, slot, at, BUFFER, WRITABLE);
        }
        self.kick(ring);
    }

    /// Makes a frame available to the device, and says so.
    pub(crate) fn offer(&mut self, frame: &[u8]) {
        self.lay(0, frame);
        self.kick(TX);
    }

    /// The same in one of the descriptors, without saying so.
    pub(crate) fn lay(&mut self, slot: u16, frame: &[u8]) {
        self.lay_in(0, slot, frame);
    }

    /// The same, by a queue pair.
    pub(crate) fn lay_in(&mut self, pair: usize, slot: u16, frame: &[u8]) {
        let packet = [&[0; HEADER], frame].concat();
        let memory = self.memory.as_ref().expect("mapped");
        let at = buffer(TX_BUFFERS, pair, slot.into());
        memory
            .write_slice(&packet, GuestAddress(at))
            .expect("written");
        let len = u32::try_from(packet.len()).expect("short");
        self.make_available(2 * pair + TX, slot, at, len, 0);
    }

    /// Makes a packet available as it is, header and all, without saying so: `slot` is the descriptor, and also says where
    /// in memory it lies.
    pub(crate) fn lay_packet(&mut self, slot: u16, packet: &[u8]) {
        let at = PACKETS + u64::from(slot) * PACKET;
        let memory = self.memory.as_ref().expect("mapped");
        memory
            .write_slice(packet, GuestAddress(at))
            .expect("written");
        let len = u32::try_from(packet.len()).expect("short");
        self.make_available(TX, slot, at, len, 0);
    }

    /// Makes a chain of `count` empty descriptors available, in a table of its own.
    pub(crate) fn lay_nothing(&mut self, slot: u16, count: u16) {
        let at = PACKETS + u64::from(slot) * PACKET;
        let memory = self.memory.as_ref().expect("mapped");
        for number in 0..count {
            let more = u16::from(number + 1 < count);
            let entry = GuestAddress(at + 16 * u64::from(number));
            memory.write_obj(at, entry).expect("written");
            let rest = [0, 0, more, number + 1].map(u16::to_le_bytes);
            let rest: [u8; 8] = *rest.as_flattened().first_chunk().expect("whole");
            let after = GuestAddress(at + 16 * u64::from(number) + 8);
            memory.write_slice(&rest, after).expect("written");
        }
        self.make_available(TX, slot, at, 16 * u32::from(count), INDIRECT);
    }

    /// Says that more is available than the transmit ring holds.
    pub(crate) fn jump(&mut self) {
        let [_, available, _] = self.rings[TX].parts;
        let far = self.rings[TX].made.wrapping_add(self.rings[TX].size + 1);
        self.write(available + 2, far);
        self.kick(TX);
    }

    /// Waits until the device has taken what was offered.
    pub(crate) fn sent(&mut self) {
        within("a frame to be taken", || self.take_used(TX));
    }

    /// The next frame that comes. Its buffer is the device's again at the next [`Frontend::post`].
    pub(crate) fn next(&mut self) -> Vec<u8> {
        within("a frame", || self.come_by(0))
    }

    /// The next frame that has come by a queue pair.
    pub(crate) fn come_by(&mut self, pair: usize) -> Option<Vec<u8>> {
        let [slot, len] = self.take_used(2 * pair + RX)?;
        self.last_slot = Some(slot);
        let at = GuestAddress(buffer(RX_BUFFERS, pair, slot.into()));
        let mut packet = vec![0; len as usize];
        let memory = self.memory.as_ref().expect("mapped");
        memory.read_slice(&mut packet, at).expect("read");
        Some(packet.split_off(HEADER))
    }

    /// The pages that the device wrote to, by each of the logs that it had.
    pub(crate) fn logged(&self) -> Vec<Vec<u64>> {
        let pages = |log: &File| {
            let mut bytes =
                vec![0; usize::try_from(log.metadata().expect("len").len()).expect("small")];
            log.read_exact_at(&mut bytes, 0).expect("read");
            let bits = bytes
                .iter()
                .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
            let pages = bits.zip(0..).filter(|(set, _)| *set);
            pages.map(|(_, page)| page).collect()
        };
        self.logs.iter().map(pages).collect()
    }

    /// The pages of what the device writes when a frame comes in this buffer: the buffer itself, and the used ring.
    pub(crate) fn pages_of_receipt(&self, slot: u64) -> Vec<u64> {
        let [_, _, used] = self.rings[RX].parts;
        vec![used >> 12, buffer(RX_BUFFERS, 0, slot) >> 12]
    }

    /// In which buffer the last frame came, in the order in which the device got them.
    pub(crate) fn last_slot(&self) -> Option<u32> {
        self.last_slot
    }

    /// Says once more that the first ring is enabled. False when the backend has not listened for a while.
    pub(crate) fn murmur(&self) -> bool {
        const SET_VRING_ENABLE: u32 = 18;
        let bytes = message(SET_VRING_ENABLE, 1, &[0, 0, 0, 0, 1, 0, 0, 0]);
        let deadline = Instant::now() + Duration::from_millis(300);
        loop {
            match rustix::net::send(&self.stream, &bytes, SendFlags::DONTWAIT) {
                Ok(sent) => {
                    assert_eq!(sent, bytes.len());
                    return true;
                }
                Err(error) => assert_eq!(error, rustix::io::Errno::AGAIN),
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends bytes that are no message, or not yet.
    pub(crate) fn say(&self, bytes: &[u8]) {
        self.say_with(bytes, &[]);
    }

    /// Sends bytes with files.
    pub(crate) fn say_with(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        send(&self.stream, bytes, fds);
    }

    /// Whether the backend ended the connection; waits for it.
    pub(crate) fn is_hung_up(&self) -> bool {
        // A connection that is closed before all was read is reset.
        match rustix::net::recv(&self.stream, &mut [0; 1], RecvFlags::empty()) {
            Ok((got, _)) => got == 0,
            Err(error) => error == rustix::io::Errno::CONNRESET,
        }
    }

    /// Whether the driver was interrupted for its receive ring since it last looked.
    pub(crate) fn was_interrupted(&self) -> bool {
        let call = self.rings[RX].call.as_ref().expect("a call fd");
        let flags = rustix::fs::fcntl_getfl(call).expect("flags");
        rustix::fs::fcntl_setfl(call, flags | rustix::fs::OFlags::NONBLOCK).expect("set");
        rustix::io::read(call, &mut [0; 8]).is_ok()
    }
}
