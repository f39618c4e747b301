use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;

use super::{HostState, Plan, Scope, Step, Sysctl};

/// Something that can be looked at and changed: the kernel, or a fake.
pub trait Host {
    /// Takes one step, whole or not at all.
    fn apply(&mut self, step: &Step) -> impl Future<Output = Result<(), StepError>> + Send;

    /// Takes the steps of one stage, which do not depend on each other. Answers for each; what follows a failure
    /// may or may not have been tried, and what was not is a failure too.
    fn apply_stage(
        &mut self,
        steps: &[Step],
    ) -> impl Future<Output = Vec<Result<(), StepError>>> + Send
    where
        Self: Send,
    {
        async move {
            let mut results = Vec::with_capacity(steps.len());
            for step in steps {
                let result = self.apply(step).await;
                let failed = result.is_err();
                results.push(result);
                if failed {
                    break;
                }
            }
            results
        }
    }

    /// Looks at the host.
    fn observe(
        &mut self,
        scope: &Scope,
    ) -> impl Future<Output = Result<HostState, StepError>> + Send;
}

/// Why a step could not be taken: what the kernel said, and what to do where we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StepError(pub String);

/// A plan that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Done {
    /// How many steps it had.
    pub steps: usize,
    /// The host's own sysctls that were changed: from, to. Feed it to [`super::Remembered::learn`].
    pub changed: BTreeMap<Sysctl, (String, String)>,
}

/// A plan that failed, and was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    /// The step that failed.
    pub step: Step,
    /// Why.
    pub error: StepError,
    /// Steps that could not be undone, and why: normally none.
    pub left: Vec<(Step, StepError)>,
}

impl fmt::Display for RolledBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = self.step.to_string();
        write!(
            f,
            "{}: {}",
            step.trim_start_matches(['+', '-', '~', ' ']),
            self.error
        )?;
        for (step, error) in &self.left {
            write!(f, "; and could not undo `{step}`: {error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RolledBack {}

/// Takes every step of a plan, or none: at the first failure, what was done is undone in reverse.
///
/// # Errors
/// What failed, and what could not be undone.
pub async fn execute(plan: Plan, host: &mut (impl Host + Send)) -> Result<Done, RolledBack> {
    let mut taken: Vec<Vec<&Step>> = Vec::new();
    for stage in plan.stages() {
        let results = host.apply_stage(stage).await;
        let mut ok = Vec::with_capacity(stage.len());
        let mut failure = None;
        for (step, result) in stage.iter().zip(results) {
            match result {
                Ok(()) => ok.push(step),
                Err(error) => failure = failure.or(Some((step.clone(), error))),
            }
        }
        taken.push(ok);
        if let Some((step, error)) = failure {
            let left = undo(&taken, host).await;
            return Err(RolledBack { step, error, left });
        }
    }
    Ok(Done {
        steps: plan.len(),
        changed: plan.steps().filter_map(hosts_own).collect(),
    })
}

fn hosts_own(step: &Step) -> Option<(Sysctl, (String, String))> {
    match step {
        Step::Set {
            key,
            from,
            to,
            hosts: true,
        } => Some((key.clone(), (from.clone(), to.clone()))),
        Step::Set { .. } | Step::Create(_) | Step::Delete(_) | Step::Change { .. } => None,
        Step::AddAddress(..) | Step::RemoveAddress(..) => None,
        Step::AddRoute(_) | Step::RemoveRoute(_) | Step::Firewall { .. } => None,
    }
}

async fn undo(taken: &[Vec<&Step>], host: &mut (impl Host + Send)) -> Vec<(Step, StepError)> {
    let mut left = Vec::new();
    for step in taken.iter().rev().flat_map(|stage| stage.iter().rev()) {
        let step = step.undo();
        if let Err(error) = host.apply(&step).await {
            left.push((step, error));
        }
    }
    left
}
