//! A virtio-net device: the part of a virtual machine's network that touches its frames.
//!
//! Two ways to use it: as a process (`virtio-net-backend`, one for a network) that QEMU, cloud-hypervisor or crosvm
//! reach over vhost-user, or as a library that a VMM holds in its own address space.
//!
//! | module | what it is | what it is not |
//! |---|---|---|
//! | [`device`] | the virtio-net device over split rings in guest memory: features, config space, rings, offload headers, control queue | has no fd, no thread, no clock |
//! | [`switch`] | the L2 switch of one network: forwarding table, guards, rates, finishing offloads | knows no ring: bytes and time in, decisions out |
//! | [`port`] | what is on the other side of a device: a tap, an in-process channel, a tee (pcap, faults) | decides nothing |
//! | [`transport`] | how a driver reaches a device: `vhost_user` messages, `mmio` registers | touches no frame |
//! | [`process`] | one thread that polls it all, the control socket, the sandbox | holds no protocol |
//!
//! Imports go only downward in this order: process, transport, port, switch, device.
//!
//! The guest is hostile in every module: what it writes is read once, checked, and can cost only its own port.

pub mod device;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
pub mod port;
pub mod process;
pub mod switch;
pub mod transport;
