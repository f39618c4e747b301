//! Drift: somebody else changed our links or rules. Seen by the kernel's own notices, repaired within a second.

use std::time::Duration;

use tokio::sync::mpsc;
use vnet_core::host::watch::Watch;
use vnet_core::plan::{self, Scope};

use super::{Driver, Events};

/// Notices come in bursts; the last of a burst is waited for this long.
const SETTLE: Duration = Duration::from_millis(40);

/// The kernel's notices, made into one signal.
pub(super) struct Drift(mpsc::Receiver<()>);

impl Drift {
    /// Listens from now on.
    pub(super) fn watch(events: &Events) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        match Watch::new() {
            Ok(mut watch) => {
                tokio::spawn(async move {
                    loop {
                        watch.next().await;
                        // A signal that is already waiting is enough.
                        let _ = sender.try_send(());
                    }
                });
            }
            Err(error) => events.emit(
                "drift.blind",
                None,
                format!("changes of links are not seen: {error}"),
            ),
        }
        Self(receiver)
    }

    /// Returns when something changed and has come to rest.
    pub(super) async fn settled(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SETTLE).await;
        while self.0.try_recv().is_ok() {}
    }
}

impl Driver {
    /// Looks, and puts right what is not as the world says.
    pub(super) async fn reconcile(&mut self) {
        self.look(&Scope::All).await;
        let mut desired = plan::desired(&self.world);
        self.remembered.complete(&mut desired, &self.observed);
        let (plan, conflicts) = plan::settle(&self.observed, &desired);
        for conflict in conflicts {
            tracing::warn!(%conflict, "drift that is not ours to repair");
        }
        if plan.is_empty() {
            return;
        }
        let steps: Vec<String> = plan.steps().map(ToString::to_string).collect();
        match plan::execute(plan, &mut self.tools.kernel).await {
            Ok(done) => {
                self.remembered.learn(&done);
                self.repairs += 1;
                self.events.emit(
                    "drift.repaired",
                    None,
                    format!("put right: {}", steps.join("; ")),
                );
            }
            Err(back) => {
                self.events
                    .emit("drift.failed", None, format!("cannot be put right: {back}"))
            }
        }
        self.look(&Scope::All).await;
        self.retell_services().await;
    }

    /// Sockets on a bridge that was made anew must be opened anew.
    async fn retell_services(&mut self) {
        let all: Vec<_> = self.world.active.iter().cloned().collect();
        self.tell_services(&all).await;
    }
}
