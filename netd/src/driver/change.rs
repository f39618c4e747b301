//! The one way a change goes: plan, execute, verify, persist. If any of it fails, everything is as it was.

use std::collections::BTreeSet;
use std::time::Instant;

use vnet_core::firewall::Change;
use vnet_core::model::{Port, World};
use vnet_core::plan::{self, HostState, Plan, Scope, Step};
use vnet_core::store::{Op, Table};
use vnet_core::types::{IfName, NetworkName};

use super::{Driver, Refusal, services};

/// Above this many links, one dump is cheaper than single questions.
const FEW: usize = 24;

/// A world, what it asks of the kernel, and the way there. It is computed once, and carried through.
pub(super) struct Prepared {
    world: World,
    desired: HostState,
    plan: Plan,
}

impl Prepared {
    /// The world that is to be.
    pub(super) const fn world(&self) -> &World {
        &self.world
    }

    /// The steps, as text.
    pub(super) fn steps(&self) -> Vec<String> {
        self.plan.steps().map(ToString::to_string).collect()
    }
}

impl Driver {
    /// What a world asks of the kernel, and the steps from here to there, without taking any.
    ///
    /// # Errors
    /// When something that is not ours is in the way.
    pub(super) fn prepare(&self, world: World) -> Result<Prepared, Refusal> {
        let mut desired = plan::desired(&world);
        self.remembered.complete(&mut desired, &self.observed);
        let plan = plan::diff(&self.observed, &desired)
            .map_err(|conflict| Refusal::Conflict(conflict.to_string()))?;
        Ok(Prepared {
            world,
            desired,
            plan,
        })
    }

    /// As [`Self::prepare`], for a world that is this one with one more port: it costs the port, not the world.
    ///
    /// # Errors
    /// The same.
    pub(super) fn prepare_port(&mut self, world: World, port: &Port) -> Result<Prepared, Refusal> {
        let Some(addition) = plan::addition(&world, port) else {
            return self.prepare(world);
        };
        let mut desired = std::mem::take(&mut self.desired);
        desired.absorb(addition.clone());
        match plan::diff_addition(&self.observed, &desired, &addition) {
            Ok(plan) => Ok(Prepared {
                world,
                desired,
                plan,
            }),
            Err(conflict) => {
                self.desired = plan::desired(&self.world);
                Err(Refusal::Conflict(conflict.to_string()))
            }
        }
    }

    /// Makes a world true, and keeps it: the kernel first, then the disk, then our own idea of it.
    ///
    /// # Errors
    /// Why not; then kernel, disk and idea are as they were.
    pub(super) async fn commit(
        &mut self,
        next: World,
        ops: Vec<Op>,
        touched: &[NetworkName],
    ) -> Result<(), Refusal> {
        let prepared = self.prepare(next)?;
        self.commit_prepared(prepared, ops, touched).await
    }

    /// As [`Self::commit`].
    ///
    /// # Errors
    /// The same.
    pub(super) async fn commit_prepared(
        &mut self,
        prepared: Prepared,
        mut ops: Vec<Op>,
        touched: &[NetworkName],
    ) -> Result<(), Refusal> {
        let Prepared {
            world: next,
            mut desired,
            plan,
        } = prepared;
        let begun = Instant::now();
        // The kernel takes its time; what the services will be told is found out meanwhile.
        let (done, news) = tokio::join!(self.execute(plan, &mut desired), async {
            services::news(&next, touched)
        });
        if let Err(refusal) = done {
            self.desired = plan::desired(&self.world);
            self.look(&Scope::All).await;
            return Err(refusal);
        }
        let executed = begun.elapsed();
        ops.extend(self.active_op(&next));
        ops.push(self.remembered_op());
        if let Err(error) = self.persist(ops).await {
            self.go_back().await;
            return Err(Refusal::Failed(format!(
                "nothing was changed, because it could not be kept: {error}"
            )));
        }
        let persisted = begun.elapsed();
        self.desired = desired;
        let before = std::mem::replace(&mut self.world, next);
        self.tell(news).await;
        self.serve_vhost(&before);
        tracing::debug!(?executed, ?persisted, told = ?begun.elapsed(), "committed");
        Ok(())
    }

    /// Takes the steps and looks whether the kernel did as it was told.
    async fn execute(&mut self, plan: Plan, desired: &mut HostState) -> Result<(), Refusal> {
        if plan.is_empty() {
            return Ok(());
        }
        let scope = scope(&plan);
        let rules = changes_of_rules(&plan);
        let done = plan::execute(plan, &mut self.tools.kernel)
            .await
            .map_err(|back| Refusal::Failed(format!("nothing was changed: {back}")))?;
        self.remembered.learn(&done);
        // A transaction of nft is all or nothing: what it did needs no look.
        if let Some(firewall) = &mut self.observed.firewall {
            rules.iter().for_each(|change| firewall.make(change));
        }
        self.look(&scope).await;
        if self.rest(desired, &scope)?.is_empty() {
            return Ok(());
        }
        // Somebody else may have moved at the same moment: once more, from what is there now.
        self.look(&Scope::All).await;
        let rest = self.rest(desired, &Scope::All)?;
        let text = rest.to_string();
        let done = plan::execute(rest, &mut self.tools.kernel)
            .await
            .map_err(|back| Refusal::Failed(back.to_string()))?;
        self.remembered.learn(&done);
        self.look(&Scope::All).await;
        if self.rest(desired, &Scope::All)?.is_empty() {
            return Ok(());
        }
        self.go_back().await;
        Err(Refusal::Failed(format!(
            "the kernel does not keep what it was told; nothing was changed. It would not:\n{text}"
        )))
    }

    /// What is still to be done, as far as the scope goes.
    fn rest(&self, desired: &mut HostState, scope: &Scope) -> Result<Plan, Refusal> {
        self.remembered.complete(desired, &self.observed);
        let (plan, conflicts) = plan::settle_within(&self.observed, desired, scope);
        match conflicts.first() {
            Some(conflict) => Err(Refusal::Conflict(conflict.to_string())),
            None => Ok(plan),
        }
    }

    /// Brings the kernel back to the world, as far as it goes; what is left is drift, which is repaired as such.
    async fn go_back(&mut self) {
        self.look(&Scope::All).await;
        self.desired = plan::desired(&self.world);
        self.remembered.complete(&mut self.desired, &self.observed);
        let back = plan::settle(&self.observed, &self.desired).0;
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
        let mut nothing = plan::desired(&World::default());
        self.remembered.complete(&mut nothing, &self.observed);
        let (plan, _) = plan::settle(&self.observed, &nothing);
        let done = plan::execute(plan, &mut self.tools.kernel)
            .await
            .map_err(|back| Refusal::Failed(back.to_string()))?;
        self.remembered.learn(&done);
        self.desired = nothing;
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

fn changes_of_rules(plan: &Plan) -> Vec<Change> {
    let changes = plan.steps().filter_map(|step| match step {
        Step::Firewall { change, .. } => Some(change.clone()),
        Step::Create(_) | Step::Delete(_) | Step::Change { .. } | Step::Set { .. } => None,
        Step::AddAddress(..) | Step::RemoveAddress(..) => None,
        Step::AddRoute(_) | Step::RemoveRoute(_) => None,
    });
    changes.collect()
}

/// Keeps a document.
pub(super) fn put(table: Table, key: impl ToString, json: Vec<u8>) -> Op {
    Op::Put {
        table,
        key: key.to_string(),
        json,
    }
}

/// Forgets a document.
pub(super) fn forget(table: Table, key: impl ToString) -> Op {
    Op::Delete {
        table,
        key: key.to_string(),
    }
}
