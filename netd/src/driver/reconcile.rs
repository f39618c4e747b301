//! Drift: somebody else changed our links or rules. Seen by the kernel's own notices, repaired within a second.
//!
//! Our own changes are noticed too. Looking at what was touched finds them as they should be, and nothing is done.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use vnet_core::host::nft_watch::NftWatch;
use vnet_core::host::watch::{self, Watch};
use vnet_core::plan::{self, Plan, Scope, Step};
use vnet_core::types::{IfName, NetworkName};

use super::{Driver, Events};
use vnet_core::host::Kernel;

/// Notices come in bursts; the last of a burst is waited for this long.
const SETTLE: Duration = Duration::from_millis(40);
/// More notices than this wait for nobody: then everything is looked at.
const BACKLOG: usize = 4096;

/// The kernel's notices, and those that were taken and not yet acted upon.
pub(super) struct Drift {
    notices: mpsc::Receiver<Notice>,
    pending: Option<(Scope, Instant)>,
}

/// Where to look.
enum Notice {
    Link(IfName),
    Settings,
    Everything,
}

impl Drift {
    /// Listens from now on.
    pub(super) fn watch(kernel: &Kernel, events: &Events) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        match Watch::new() {
            Ok(watch) => drop(tokio::spawn(links(watch, sender.clone()))),
            Err(error) => blind(events, "links", &error),
        }
        match NftWatch::new(kernel.nft().ours()) {
            Ok(watch) => drop(tokio::spawn(rules(watch, sender))),
            Err(error) => blind(events, "the firewall", &error),
        }
        Self {
            notices: receiver,
            pending: None,
        }
    }

    /// Returns when something changed and has come to rest: where to look. Dropped by a command that comes first, it
    /// forgets nothing, and many commands do not put it off.
    pub(super) async fn settled(&mut self) -> Scope {
        if self.pending.is_none() {
            let mut scope = Scope::Links(BTreeSet::new());
            match self.notices.recv().await {
                Some(notice) => notice.add_to(&mut scope),
                None => return std::future::pending().await,
            }
            self.pending = Some((scope, Instant::now() + SETTLE));
        }
        if let Some((_, rest)) = &self.pending {
            tokio::time::sleep_until(*rest).await;
        }
        let (mut scope, _) = self.pending.take().unwrap_or((Scope::All, Instant::now()));
        while let Ok(notice) = self.notices.try_recv() {
            notice.add_to(&mut scope);
        }
        scope
    }
}

impl Notice {
    fn add_to(self, scope: &mut Scope) {
        match (self, &mut *scope) {
            (Self::Everything, _) => *scope = Scope::All,
            (Self::Link(name), Scope::Links(names)) => drop(names.insert(name)),
            (Self::Link(_), Scope::All) | (Self::Settings, _) => {}
        }
    }
}

fn blind(events: &Events, what: &str, error: &std::io::Error) {
    events.emit(
        "drift.blind",
        None,
        format!("changes of {what} by others are not seen: {error}"),
    );
}

async fn links(mut watch: Watch, sender: mpsc::Sender<Notice>) {
    loop {
        let notice = match watch.next().await {
            watch::Drift::Link(name)
            | watch::Drift::Address(name)
            | watch::Drift::OurRoute(name) => Notice::Link(name),
            watch::Drift::Forwarding => Notice::Settings,
            watch::Drift::Resync => Notice::Everything,
            watch::Drift::ForeignRoute => continue,
        };
        if sender.send(notice).await.is_err() {
            return;
        }
    }
}

async fn rules(mut watch: NftWatch, sender: mpsc::Sender<Notice>) {
    loop {
        watch.next().await;
        if sender.send(Notice::Everything).await.is_err() {
            return;
        }
    }
}

impl Driver {
    /// Looks, and puts right what is not as the world says.
    pub(super) async fn reconcile(&mut self, scope: &Scope) {
        self.look(scope).await;
        if self.drifted(scope).is_empty() {
            return;
        }
        // What was touched may not be all, and what depends on it is not noticed twice.
        if *scope != Scope::All {
            self.look(&Scope::All).await;
        }
        let plan = self.drifted(&Scope::All);
        if plan.is_empty() {
            return;
        }
        let steps: Vec<String> = plan.steps().map(ToString::to_string).collect();
        let anew = self.bridges_made(&plan);
        match plan::execute(plan, &mut self.tools.kernel).await {
            Ok(done) => {
                self.remembered.learn(&done);
                self.repairs += 1;
                let text = format!("put right: {}", steps.join("; "));
                self.events.emit("drift.repaired", None, text);
                self.mend_vhost();
                self.serve_anew(&anew).await;
            }
            Err(back) => {
                let text = format!("cannot be put right: {back}");
                self.events.emit("drift.failed", None, text);
            }
        }
        self.look(&Scope::All).await;
    }

    /// The networks whose bridges a plan makes.
    fn bridges_made(&self, plan: &Plan) -> Vec<NetworkName> {
        let made = plan.steps().filter_map(|step| match step {
            Step::Create(link) => Some(&link.name),
            Step::Delete(_) | Step::Change { .. } | Step::Set { .. } | Step::Firewall { .. } => {
                None
            }
            Step::AddAddress(..) | Step::RemoveAddress(..) => None,
            Step::AddRoute(_) | Step::RemoveRoute(_) => None,
        });
        let made: BTreeSet<&IfName> = made.collect();
        let networks = self.world.running();
        networks
            .filter(|network| made.contains(&network.bridge.name))
            .map(|network| network.name.clone())
            .collect()
    }

    /// The steps back to what should be, within the scope.
    fn drifted(&mut self, scope: &Scope) -> Plan {
        self.remembered.complete(&mut self.desired, &self.observed);
        let (plan, conflicts) = plan::settle_within(&self.observed, &self.desired, scope);
        for conflict in conflicts {
            tracing::warn!(%conflict, "drift that is not ours to repair");
        }
        plan
    }
}
