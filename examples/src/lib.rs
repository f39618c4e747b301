//! What the example programs share. The programs are in `src/bin`; each says at its top what it shows.

pub mod gateway;
pub mod lan;
pub mod plug;
#[cfg(target_arch = "x86_64")]
pub mod scenario;
#[cfg(target_arch = "x86_64")]
pub mod vmm;
