//! virtio-net-backend
pub mod switch;
