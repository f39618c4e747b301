//! virtio-net-backend
