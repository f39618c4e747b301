//! What happens, told to whoever listens. A slow listener loses old events, never the daemon's time or memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

use crate::wire::Event;

/// How many events a slow listener may lag behind.
const BACKLOG: usize = 1024;

/// The source of events.
#[derive(Debug, Clone)]
pub struct Events {
    next: Arc<AtomicU64>,
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            next: Arc::new(AtomicU64::new(1)),
            sender: broadcast::channel(BACKLOG).0,
        }
    }
}

impl Events {
    /// Tells what happened.
    pub fn emit(&self, kind: &str, network: Option<&str>, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(kind, network, "{text}");
        let event = Event {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            at: now_ms(),
            kind: kind.to_owned(),
            network: network.map(str::to_owned),
            text,
        };
        // Nobody listening is no error.
        let _ = self.sender.send(event);
    }

    /// Whether anybody listens, or it is logged.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.sender.receiver_count() > 0 || tracing::enabled!(tracing::Level::INFO)
    }

    /// Everything that happens from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
