//! How a driver reaches a device. A transport sets up queues and passes kicks and interrupts; it touches no frame.

pub mod finish;
pub mod mmio;
pub mod vhost_user;
