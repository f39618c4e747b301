//! Requests as types: bytes in, [`Request`] out, nothing acted upon.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Length of a message header.
pub const HEADER_LEN: usize = 12;
/// Longest payload; the longest that is defined (memory table, config) is a few hundred bytes.
pub const MAX_PAYLOAD: usize = 4096;
/// Regions of a memory table in one message.
pub const MAX_TABLE_REGIONS: usize = 8;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
const VRING_INDEX_MASK: u64 = 0xff;
const VRING_NO_FD: u64 = 1 << 8;

/// Feature bit of the ring protocol itself: there are protocol features.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Feature bit: writes are logged.
pub const F_LOG_ALL: u64 = 1 << 26;

/// A set of `VHOST_USER_PROTOCOL_F_*` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolFeatures(pub u64);

impl ProtocolFeatures {
    /// Several queues.
    pub const MQ: Self = Self(1 << 0);
    /// The dirty log is shared memory.
    pub const LOG_SHMFD: Self = Self(1 << 1);
    /// The backend sends an announcement for guests that cannot.
    pub const RARP: Self = Self(1 << 2);
    /// Requests can be acknowledged.
    pub const REPLY_ACK: Self = Self(1 << 3);
    /// The frontend says the MTU.
    pub const MTU: Self = Self(1 << 4);
    /// A channel for requests of the backend.
    pub const BACKEND_REQ: Self = Self(1 << 5);
    /// The config space is read from the backend.
    pub const CONFIG: Self = Self(1 << 9);
    /// Descriptors in flight are tracked in shared memory.
    pub const INFLIGHT_SHMFD: Self = Self(1 << 12);
    /// The device can be reset.
    pub const RESET_DEVICE: Self = Self(1 << 13);
    /// Memory comes and goes by regions.
    pub const CONFIGURE_MEM_SLOTS: Self = Self(1 << 15);
    /// The device status is passed on.
    pub const STATUS: Self = Self(1 << 16);

    /// What is offered: everything above.
    #[must_use]
    pub const fn offered() -> Self {
        Self(
            Self::MQ.0
                | Self::LOG_SHMFD.0
                | Self::RARP.0
                | Self::REPLY_ACK.0
                | Self::MTU.0
                | Self::BACKEND_REQ.0
                | Self::CONFIG.0
                | Self::INFLIGHT_SHMFD.0
                | Self::RESET_DEVICE.0
                | Self::CONFIGURE_MEM_SLOTS.0
                | Self::STATUS.0,
        )
    }

    /// Whether all of `other` is here.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal,)*) => {
        /// Request numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the names are those of the protocol")]
        pub enum Code { $($name = $code,)* }

        impl Code {
            /// The request with this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

codes! {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    ResetOwner = 4,
    SetMemTable = 5,
    SetLogBase = 6,
    SetLogFd = 7,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SendRarp = 19,
    NetSetMtu = 20,
    SetBackendReqFd = 21,
    GetConfig = 24,
    SetConfig = 25,
    GetInflightFd = 31,
    SetInflightFd = 32,
    ResetDevice = 34,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
    SetStatus = 39,
    GetStatus = 40,
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked.
    pub code: u32,
    /// Version and flags.
    pub flags: u32,
    /// Length of the payload.
    pub size: u32,
}

/// Why a message is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not version 1, or a reply.
    #[error("message flags {0:#x} are not those of a request")]
    Flags(u32),
    /// The payload is longer than any that is defined.
    #[error("payload of {0} bytes")]
    TooLong(u32),
    /// The payload has the wrong length for its request.
    #[error("request {0} with a payload of {1} bytes")]
    Length(u32, usize),
    /// No such request, or one that was not offered.
    #[error("unknown request {0}")]
    Unknown(u32),
}

impl Code {
    /// Whether the answer is one of its own, so that a refusal cannot take its place.
    #[must_use]
    pub const fn is_answered(self) -> bool {
        matches!(
            self,
            Self::GetFeatures
                | Self::GetProtocolFeatures
                | Self::GetQueueNum
                | Self::GetVringBase
                | Self::GetConfig
                | Self::GetInflightFd
                | Self::GetMaxMemSlots
                | Self::GetStatus
                | Self::SetLogBase
        )
    }
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// When version, direction or length are wrong.
    pub fn parse(raw: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        let header = Self {
            code: word(0),
            flags: word(4),
            size: word(8),
        };
        if header.flags & VERSION_MASK != VERSION || header.flags & FLAG_REPLY != 0 {
            return Err(Malformed::Flags(header.flags));
        }
        if header.size as usize > MAX_PAYLOAD {
            return Err(Malformed::TooLong(header.size));
        }
        Ok(header)
    }

    /// Whether the frontend wants to know the outcome.
    #[must_use]
    pub const fn wants_ack(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }
}

/// A reply, or a request of ours on the backend channel, ready to be sent.
#[must_use]
pub fn encode(code: u32, reply: bool, payload: &[u8]) -> Vec<u8> {
    let flags = VERSION | if reply { FLAG_REPLY } else { 0 };
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(HEADER_LEN + payload.len());
    for word in [code, flags, size] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(payload);
    out
}

/// One region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Where the guest sees it.
    pub guest: u64,
    /// Length.
    pub size: u64,
    /// Where the frontend has it mapped (ring addresses are given in these terms).
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

/// Where the parts of a ring are, in addresses of the frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VringAddresses {
    /// Writes to the used ring are logged.
    pub logged: bool,
    /// Descriptor table.
    pub desc: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub avail: u64,
    /// Guest address of the used ring for the log.
    pub log: u64,
}

/// Shape of the memory that tracks descriptors in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InflightShape {
    /// Length.
    pub size: u64,
    /// Where it begins in its file.
    pub offset: u64,
    /// Queues.
    pub queues: u16,
    /// Entries of each queue.
    pub queue_size: u16,
}

impl InflightShape {
    /// The wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.size.to_le_bytes().to_vec();
        out.extend(self.offset.to_le_bytes());
        out.extend(self.queues.to_le_bytes());
        out.extend(self.queue_size.to_le_bytes());
        out.extend([0; 4]);
        out
    }
}

/// A request with its payload. `bool` in the fd requests says whether an fd comes with it.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the protocol")]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<MemoryRegion>),
    SetLogBase { size: u64, offset: u64 },
    SetLogFd,
    SetVringNum(u16, u32),
    SetVringAddr(u16, VringAddresses),
    SetVringBase(u16, u32),
    GetVringBase(u16),
    SetVringKick(u16, bool),
    SetVringCall(u16, bool),
    SetVringErr(u16, bool),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(u16, bool),
    SendRarp([u8; 6]),
    NetSetMtu(u64),
    SetBackendReqFd,
    GetConfig { offset: u32, size: u32, flags: u32 },
    SetConfig { offset: u32, bytes: Vec<u8> },
    GetInflightFd(InflightShape),
    SetInflightFd(InflightShape),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(MemoryRegion),
    RemMemReg(MemoryRegion),
    SetStatus(u8),
    GetStatus,
}

impl Request {
    /// Reads the payload of a request.
    ///
    /// # Errors
    /// When the request is unknown or its payload is not of the right shape.
    pub fn parse(code: u32, payload: &[u8]) -> Result<Self, Malformed> {
        let known = Code::from_number(code).ok_or(Malformed::Unknown(code))?;
        Self::from_payload(known, payload).ok_or(Malformed::Length(code, payload.len()))
    }

    fn from_payload(code: Code, payload: &[u8]) -> Option<Self> {
        let mut read = Reader(payload);
        let request = match code {
            Code::GetFeatures => Self::GetFeatures,
            Code::SetFeatures => Self::SetFeatures(read.u64()?),
            Code::SetOwner => Self::SetOwner,
            Code::ResetOwner => Self::ResetOwner,
            Code::SetMemTable => {
                let count = usize::try_from(read.u32()?).ok()?;
                read.u32()?;
                if count > MAX_TABLE_REGIONS {
                    return None;
                }
                Self::SetMemTable((0..count).map(|_| read.region()).collect::<Option<_>>()?)
            }
            Code::SetLogBase => Self::SetLogBase {
                size: read.u64()?,
                offset: read.u64()?,
            },
            Code::SetLogFd => return Some(Self::SetLogFd),
            Code::SetVringNum => Self::SetVringNum(read.index()?, read.u32()?),
            Code::SetVringAddr => Self::SetVringAddr(
                read.index()?,
                VringAddresses {
                    logged: read.u32()? & 1 != 0,
                    desc: read.u64()?,
                    used: read.u64()?,
                    avail: read.u64()?,
                    log: read.u64()?,
                },
            ),
            Code::SetVringBase => Self::SetVringBase(read.index()?, read.u32()?),
            Code::GetVringBase => {
                let index = read.index()?;
                read.u32()?;
                Self::GetVringBase(index)
            }
            Code::SetVringKick => read
                .index_and_fd()
                .map(|(index, fd)| Self::SetVringKick(index, fd))?,
            Code::SetVringCall => read
                .index_and_fd()
                .map(|(index, fd)| Self::SetVringCall(index, fd))?,
            Code::SetVringErr => read
                .index_and_fd()
                .map(|(index, fd)| Self::SetVringErr(index, fd))?,
            Code::GetProtocolFeatures => Self::GetProtocolFeatures,
            Code::SetProtocolFeatures => Self::SetProtocolFeatures(read.u64()?),
            Code::GetQueueNum => Self::GetQueueNum,
            Code::SetVringEnable => Self::SetVringEnable(read.index()?, read.u32()? != 0),
            Code::SendRarp => Self::SendRarp(*payload_mac(read.u64()?).first_chunk()?),
            Code::NetSetMtu => Self::NetSetMtu(read.u64()?),
            Code::SetBackendReqFd => return Some(Self::SetBackendReqFd),
            Code::GetConfig => {
                let (offset, size, flags) = (read.u32()?, read.u32()?, read.u32()?);
                read.rest(size)?;
                Self::GetConfig {
                    offset,
                    size,
                    flags,
                }
            }
            Code::SetConfig => {
                let (offset, size, _flags) = (read.u32()?, read.u32()?, read.u32()?);
                let bytes = read.rest(size)?.to_vec();
                Self::SetConfig { offset, bytes }
            }
            Code::GetInflightFd => return read.inflight().map(Self::GetInflightFd),
            Code::SetInflightFd => return read.inflight().map(Self::SetInflightFd),
            Code::ResetDevice => Self::ResetDevice,
            Code::GetMaxMemSlots => Self::GetMaxMemSlots,
            Code::AddMemReg => Self::AddMemReg(read.single_region()?),
            Code::RemMemReg => Self::RemMemReg(read.single_region()?),
            Code::SetStatus => Self::SetStatus(u8::try_from(read.u64()? & 0xff).ok()?),
            Code::GetStatus => Self::GetStatus,
        };
        read.0.is_empty().then_some(request)
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GetFeatures => write!(f, "GET_FEATURES"),
            Self::SetFeatures(bits) => write!(f, "SET_FEATURES {bits:#x}"),
            Self::SetOwner => write!(f, "SET_OWNER"),
            Self::ResetOwner => write!(f, "RESET_OWNER"),
            Self::SetMemTable(regions) => write!(f, "SET_MEM_TABLE {regions:x?}"),
            Self::SetLogBase { size, offset } => write!(f, "SET_LOG_BASE {size:#x} at {offset:#x}"),
            Self::SetLogFd => write!(f, "SET_LOG_FD"),
            Self::SetVringNum(index, num) => write!(f, "SET_VRING_NUM {index} {num}"),
            Self::SetVringAddr(index, addr) => write!(f, "SET_VRING_ADDR {index} {addr:x?}"),
            Self::SetVringBase(index, base) => write!(f, "SET_VRING_BASE {index} {base}"),
            Self::GetVringBase(index) => write!(f, "GET_VRING_BASE {index}"),
            Self::SetVringKick(index, fd) => write!(f, "SET_VRING_KICK {index} fd={fd}"),
            Self::SetVringCall(index, fd) => write!(f, "SET_VRING_CALL {index} fd={fd}"),
            Self::SetVringErr(index, fd) => write!(f, "SET_VRING_ERR {index} fd={fd}"),
            Self::GetProtocolFeatures => write!(f, "GET_PROTOCOL_FEATURES"),
            Self::SetProtocolFeatures(bits) => write!(f, "SET_PROTOCOL_FEATURES {bits:#x}"),
            Self::GetQueueNum => write!(f, "GET_QUEUE_NUM"),
            Self::SetVringEnable(index, on) => write!(f, "SET_VRING_ENABLE {index} {on}"),
            Self::SendRarp(mac) => write!(f, "SEND_RARP {mac:02x?}"),
            Self::NetSetMtu(mtu) => write!(f, "NET_SET_MTU {mtu}"),
            Self::SetBackendReqFd => write!(f, "SET_BACKEND_REQ_FD"),
            Self::GetConfig { offset, size, .. } => write!(f, "GET_CONFIG {size} at {offset}"),
            Self::SetConfig { offset, bytes } => {
                write!(f, "SET_CONFIG {} at {offset}", bytes.len())
            }
            Self::GetInflightFd(shape) => write!(f, "GET_INFLIGHT_FD {shape:?}"),
            Self::SetInflightFd(shape) => write!(f, "SET_INFLIGHT_FD {shape:?}"),
            Self::ResetDevice => write!(f, "RESET_DEVICE"),
            Self::GetMaxMemSlots => write!(f, "GET_MAX_MEM_SLOTS"),
            Self::AddMemReg(region) => write!(f, "ADD_MEM_REG {region:x?}"),
            Self::RemMemReg(region) => write!(f, "REM_MEM_REG {region:x?}"),
            Self::SetStatus(status) => write!(f, "SET_STATUS {status:#x}"),
            Self::GetStatus => write!(f, "GET_STATUS"),
        }
    }
}

fn payload_mac(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn index(&mut self) -> Option<u16> {
        self.u32().and_then(|index| u16::try_from(index).ok())
    }

    fn index_and_fd(&mut self) -> Option<(u16, bool)> {
        let value = self.u64()?;
        let index = u16::try_from(value & VRING_INDEX_MASK).ok()?;
        Some((index, value & VRING_NO_FD == 0))
    }

    fn region(&mut self) -> Option<MemoryRegion> {
        Some(MemoryRegion {
            guest: self.u64()?,
            size: self.u64()?,
            user: self.u64()?,
            offset: self.u64()?,
        })
    }

    fn single_region(&mut self) -> Option<MemoryRegion> {
        self.u64()?;
        self.region()
    }

    /// Frontends pad this structure to eight bytes, or not.
    fn inflight(&mut self) -> Option<InflightShape> {
        let shape = InflightShape {
            size: self.u64()?,
            offset: self.u64()?,
            queues: self.u16()?,
            queue_size: self.u16()?,
        };
        (self.0.len() < 8).then_some(shape)
    }

    fn rest(&mut self, len: u32) -> Option<&'a [u8]> {
        let bytes = std::mem::take(&mut self.0);
        (bytes.len() == usize::try_from(len).ok()?).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_table_is_read_whole_or_not_at_all() {
        let mut payload = 2u32.to_le_bytes().to_vec();
        payload.extend([0; 4]);
        for value in 1u64..=8 {
            payload.extend(value.to_le_bytes());
        }
        let Ok(Request::SetMemTable(regions)) = Request::parse(5, &payload) else {
            panic!("not a table");
        };
        assert_eq!(regions.len(), 2);
        assert_eq!(
            regions[1],
            MemoryRegion {
                guest: 5,
                size: 6,
                user: 7,
                offset: 8
            }
        );
        assert_eq!(
            Request::parse(5, &payload[..40]),
            Err(Malformed::Length(5, 40))
        );
        payload[0] = 200;
        assert!(Request::parse(5, &payload).is_err());
    }

    #[test]
    fn every_code_is_known_by_its_number_and_refuses_a_foreign_length() {
        for number in 0..64 {
            let Some(code) = Code::from_number(number) else {
                assert_eq!(Request::parse(number, &[]), Err(Malformed::Unknown(number)));
                continue;
            };
            assert_eq!(code as u32, number);
            if !matches!(code, Code::SetLogFd | Code::SetBackendReqFd) {
                assert!(Request::parse(number, &[0; 1001]).is_err(), "{code:?}");
            }
        }
    }

    #[test]
    fn a_header_is_a_request_of_version_one() {
        let raw = encode(Code::GetFeatures as u32, false, &[]);
        let header = Header::parse(raw.first_chunk().expect("whole")).expect("valid");
        assert_eq!((header.code, header.wants_ack()), (1, false));
        let reply = encode(1, true, &[]);
        assert!(Header::parse(reply.first_chunk().expect("whole")).is_err());
    }

    #[test]
    fn a_vring_fd_request_says_whether_an_fd_comes() {
        assert_eq!(
            Request::parse(12, &0x103u64.to_le_bytes()),
            Ok(Request::SetVringKick(3, false))
        );
        assert_eq!(
            Request::parse(13, &3u64.to_le_bytes()),
            Ok(Request::SetVringCall(3, true))
        );
    }
}
