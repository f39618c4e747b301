//! The shells that listen on gateways: sockets and timers here, decisions in the pure floors below.

pub mod dns;
