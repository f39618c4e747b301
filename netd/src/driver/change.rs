//! The one way a change goes: plan, execute, verify, persist. If any of it fails, everything is as it was.

use std::collections::BTreeSet;

use vnet_core::firewall::Ruleset;
use vnet_core::model::World;
use vnet_core::plan::{self, HostState, Plan, Scope, Step};
use vnet_core::store::{Op, Table};
use vnet_core::types::{IfName, NetworkName};

use super::{Driver, Refusal};

/// Above this many links, one dump is cheaper than single questions.
const FEW: usize = 24;

impl Driver {
    /// What the kernel should look like for a world.
    fn desired(&self, world: &World) -> HostState {
        let mut desired = plan::desired(world);
        self.remembered.complete(&mut desired, &self.observed);
        desired
    }

    /// The steps from here to a world, without taking any.
    pub(super) fn plan(&self, next: &World) -> Result<Plan, Refusal> {
        plan::diff(&self.observed, &self.desired(next))
            .map_err(|c| Refusal::Conflict(c.to_string()))
    }

    /// Makes a world true, and keeps it: the kernel first, then the disk, then our own idea of it.
    ///
    /// # Errors
    /// Why not; then kernel, disk and idea are as they were.
    pub(super) async fn commit(
        &mut self,
        next: World,
        mut ops: Vec<Op>,
        touched: &[NetworkName],
    ) -> Result<(), Refusal> {
        let plan = self.plan(&next)?;
        if let Err(refusal) = self.execute(plan, &next).await {
            self.look(&Scope::All).await;
            return Err(refusal);
        }
        ops.extend(self.active_op(&next));
        ops.push(self.remembered_op());
        if let Err(error) = self.persist(ops).await {
            let back = self.world.clone();
            self.go_back(&back).await;
            return Err(Refusal::Failed(format!(
                "nothing was changed, because it could not be kept: {error}"
            )));
        }
        let before = std::mem::replace(&mut self.world, next);
        self.tell_services(touched).await;
        self.serve_vhost(&before);
        Ok(())
    }

    /// Takes the steps and looks whether the kernel did as it was told.
    async fn execute(&mut self, plan: Plan, next: &World) -> Result<(), Refusal> {
        if plan.is_empty() {
            return Ok(());
        }
        let scope = scope(&plan);
        let rules = self.firewall_after(&plan);
        let done = plan::execute(plan, &mut self.tools.kernel)
            .await
            .map_err(|back| Refusal::Failed(format!("nothing was changed: {back}")))?;
        self.remembered.learn(&done);
        self.observed.firewall = rules;
        self.look(&scope).await;
        let rest = self.plan(next)?;
        if rest.is_empty() {
            return Ok(());
        }
        // Somebody else may have moved at the same moment: once more, from what is there now.
        self.look(&Scope::All).await;
        let rest = self.plan(next)?;
        let text = rest.to_string();
        let done = plan::execute(rest, &mut self.tools.kernel)
            .await
            .map_err(|back| Refusal::Failed(back.to_string()))?;
        self.remembered.learn(&done);
        self.look(&Scope::All).await;
        if self.plan(next)?.is_empty() {
            return Ok(());
        }
        let world = self.world.clone();
        self.go_back(&world).await;
        Err(Refusal::Failed(format!(
            "the kernel does not keep what it was told; nothing was changed. It would not:\n{text}"
        )))
    }

    /// The firewall after a plan. A transaction of nft is all or nothing, so what it did needs no look.
    fn firewall_after(&self, plan: &Plan) -> Option<Ruleset> {
        let mut rules = self.observed.firewall.clone();
        for step in plan.steps() {
            if let Step::Firewall { change, .. } = step {
                rules = rules.map(|rules| rules.after(change));
            }
        }
        rules
    }

    /// Brings the kernel back to a world, as far as it goes; what is left is drift, which is repaired as such.
    async fn go_back(&mut self, world: &World) {
        self.look(&Scope::All).await;
        let back = plan::settle(&self.observed, &self.desired(world)).0;
        match plan::execute(back, &mut self.tools.kernel).await {
            Ok(done) => drop(self.remembered.learn(&done)),
            Err(error) => tracing::error!(%error, "the way back failed as well"),
        }
        self.look(&Scope::All).await;
    }

    /// Looks at the kernel again.
    pub(super) async fn look(&mut self, scope: &Scope) {
        use vnet_core::plan::Host;
        match self.tools.kernel.observe(scope).await {
            Ok(seen) => self.observed.refresh(scope, seen),
            Err(error) => tracing::error!(%error, "the kernel cannot be looked at"),
        }
    }

    /// Writes to disk, off this task's thread.
    pub(super) async fn persist(&self, ops: Vec<Op>) -> Result<(), String> {
        let store = self.tools.store.clone();
        match tokio::task::spawn_blocking(move || store.commit(&ops)).await {
            Ok(done) => done.map_err(|e| e.to_string()),
            Err(lost) => Err(lost.to_string()),
        }
    }

    /// Makes everything vanish that is ours, without forgetting any of it.
    pub(super) async fn take_everything_down(&mut self) -> Result<(), Refusal> {
        let names: Vec<NetworkName> = self.world.active.iter().cloned().collect();
        self.silence_services(&names).await;
        self.look(&Scope::All).await;
        let (plan, _) = plan::settle(&self.observed, &self.desired(&World::default()));
        let done = plan::execute(plan, &mut self.tools.kernel)
            .await
            .map_err(|back| Refusal::Failed(back.to_string()))?;
        self.remembered.learn(&done);
        let before = std::mem::take(&mut self.world);
        self.serve_vhost(&before);
        let keep = self.remembered_op();
        self.persist(vec![keep]).await.map_err(Refusal::Failed)
    }
}

/// The links a plan touches.
fn scope(plan: &Plan) -> Scope {
    let names: BTreeSet<IfName> = plan
        .steps()
        .filter_map(|step| step.link().cloned())
        .collect();
    if names.len() > FEW {
        Scope::All
    } else {
        Scope::Links(names)
    }
}

/// Keeps a document.
pub(super) fn put(table: Table, key: impl ToString, json: Vec<u8>) -> Op {
    Op::PutDocument {
        table,
        key: key.to_string(),
        json,
    }
}

/// Forgets a document.
pub(super) fn forget(table: Table, key: impl ToString) -> Op {
    Op::DeleteDocument {
        table,
        key: key.to_string(),
    }
}
