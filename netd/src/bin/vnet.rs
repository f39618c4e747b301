//! Netd.
fn main() {}
