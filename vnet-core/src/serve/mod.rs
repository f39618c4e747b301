//! The shells that listen on gateways: sockets and timers here, decisions in the pure floors below.

mod dhcp4;
pub mod dns;
pub mod files;
pub mod leases;
mod packet;
