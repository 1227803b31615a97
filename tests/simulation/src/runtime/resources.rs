//! What containers may use, and how that changes while they run.
//!
//! A change takes effect at once or not at all: a caller that has given up has taken it back.
//! Checked here, at the change: no container may use more memory than its whole pod.

use ferrolet::cri::{ContainerId, CriError, LinuxResources, Result};
use tokio::sync::oneshot;

use super::{CALL_DEADLINE, SimRuntime};
use crate::faults::Fate;
use crate::invariants::Invariant;

/// What every container uses of its memory.
const USAGE_BYTES: u64 = 8 << 20;

impl SimRuntime {
    /// What an instance may use.
    pub fn resources(&self, id: &ContainerId) -> Option<LinuxResources> {
        self.state().containers.get(id)?.container.resources.clone()
    }

    pub(super) async fn update(&self, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
        const CALL: &str = "UpdateContainerResources";
        let (answer, answered) = oneshot::channel();
        let (runtime, id, resources) = (self.clone(), id.clone(), resources.clone());
        tokio::spawn(async move {
            let fate = runtime.world.fate().await;
            let unavailable = |message: &str| CriError::Unavailable { call: CALL, message: message.into() };
            if runtime.state().down_until.is_some() {
                let _ = answer.send(Err(unavailable("connection refused")));
                return;
            }
            let takes_effect = match fate {
                Fate::Good | Fate::Lost => true,
                Fate::Refused => false,
                Fate::Hangs { takes_effect } => takes_effect,
            };
            let result = match takes_effect && !answer.is_closed() {
                true => runtime.change(&id, &resources),
                false => Err(CriError::Failed { call: CALL, message: "simulated refusal".into() }),
            };
            if let Fate::Hangs { .. } = fate {
                tokio::time::sleep(CALL_DEADLINE * 3).await;
            }
            let lost = Err(unavailable("simulated loss of the answer"));
            let _ = answer.send(if fate == Fate::Lost { lost } else { result });
        });
        match tokio::time::timeout(CALL_DEADLINE, answered).await {
            Ok(Ok(result)) => result,
            _ => Err(CriError::Timeout { call: CALL, after: CALL_DEADLINE }),
        }
    }

    fn change(&self, id: &ContainerId, wanted: &LinuxResources) -> Result<()> {
        const CALL: &str = "UpdateContainerResources";
        let mut state = self.state();
        let Some(instance) = state.containers.get_mut(id) else {
            return Err(CriError::NotFound { call: CALL, message: id.to_string() });
        };
        if !instance.container.is_running() {
            return Err(CriError::Failed { call: CALL, message: format!("{id} is not running") });
        }
        let has = instance.container.resources.get_or_insert_default();
        for (has, wanted) in [
            (&mut has.cpu_shares, wanted.cpu_shares),
            (&mut has.cpu_quota, wanted.cpu_quota),
            (&mut has.cpu_period, wanted.cpu_period),
            (&mut has.memory_limit_bytes, wanted.memory_limit_bytes),
        ] {
            if wanted != 0 {
                *has = wanted;
            }
        }
        if !wanted.cpuset_cpus.is_empty() {
            has.cpuset_cpus.clone_from(&wanted.cpuset_cpus);
        }
        // What a container was made with outlasts a resize of its pod where nobody resizes it too, as
        // with ephemeral ones: then the pod's own limit bounds it.
        let limit = u64::try_from(wanted.memory_limit_bytes).unwrap_or(0);
        let uid = instance.pod_uid.clone();
        if let Some(of_pod) = self.ground.pod_memory_limit(&uid).filter(|of_pod| limit > *of_pod) {
            let what = format!("container {id} of {uid} gets {limit} of {of_pod}");
            self.world.violation(Invariant::PodsBoundTheirContainers, what);
        }
        let (shares, cpus) = (wanted.cpu_shares, &wanted.cpuset_cpus);
        self.world.log(|| format!("container {id} of {uid} may use {limit} bytes, {shares} shares, CPUs {cpus:?}"));
        state.changes.push((uid, CALL));
        Ok(())
    }

    pub(super) async fn usage(&self, id: &ContainerId) -> Result<Option<u64>> {
        let id = id.clone();
        self.call("ContainerStats", move |runtime| match runtime.is_running(&id) {
            true => Ok(Some(USAGE_BYTES)),
            false => Err(CriError::NotFound { call: "ContainerStats", message: id.to_string() }),
        })
        .await
    }
}
