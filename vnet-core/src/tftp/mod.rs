//! A read-only TFTP server (RFC 1350, 2347, 2348, 2349, 7440) as pure functions: what a packet says, and what a
//! transfer sends next. It is not a socket, a timer or a file: those are `serve`'s. It cannot write: a write request
//! is refused before anything looks at its name.
//!
//! ```text
//!   RRQ ----> Transfer::begin --options--> OACK -- ACK 0 --> window of DATA -- ACK n --> next window ... Done
//!                             --none-----------------------> DATA 1
//! ```

mod packet;
mod transfer;

pub use packet::{Packet, Refused, Wishes, as_text, data, error};
pub use transfer::{Act, Limits, Transfer};
