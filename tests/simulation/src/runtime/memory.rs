//! What is over, as far as anybody can know although the runtime may have forgotten it.
//!
//! Checked here, at the moment it would happen: what is over does not begin again.

use std::collections::BTreeSet;

use ferrolet::cri::ContainerId;
use k8s_openapi::api::core::v1::PodStatus;

use super::{SimRuntime, State};
use crate::cluster::{is_terminal, phase};
use crate::invariants::Invariant;

/// What the API was told of a pod.
#[derive(Default)]
pub(super) struct Told {
    /// Instances that run or ran.
    pub ran: BTreeSet<ContainerId>,
    is_over: bool,
    /// Of a static pod, of which the next life of the agent may hear later than it has to act.
    pub is_by_mirror: bool,
}

impl SimRuntime {
    /// A pod is written whose containers start once, as long as they are not changed.
    pub fn starts_once(&self, pod_uid: &str, names: impl IntoIterator<Item = String>) {
        self.state().once.extend(names.into_iter().map(|name| (pod_uid.to_owned(), name)));
    }

    /// A static pod that was taken away comes back as it was.
    pub fn lives_again(&self, pod_uid: &str) {
        self.state().put_back.insert(pod_uid.to_owned());
    }

    /// The API is told so of a pod.
    pub fn is_told(&self, pod_uid: &str, status: &PodStatus, is_by_mirror: bool) {
        let mut state = self.state();
        let told = state.told.entry(pod_uid.to_owned()).or_default();
        told.is_by_mirror = is_by_mirror;
        told.is_over |= is_terminal(phase(status));
        let lists = [&status.container_statuses, &status.ephemeral_container_statuses];
        for container in lists.into_iter().flatten().flatten() {
            let state = container.state.as_ref();
            let has_run = state.is_some_and(|state| state.running.is_some() || state.terminated.is_some());
            let id = container.container_id.as_deref().and_then(|id| id.split_once("://"));
            told.ran.extend(id.filter(|_| has_run).map(|(_, id)| ContainerId::new(id)));
        }
    }

    /// Whether this container was taken away or lost.
    pub fn has_forgotten(&self, id: &str) -> bool {
        self.state().forgotten.contains_key(&ContainerId::new(id))
    }

    /// Whether any instance of this container was.
    pub fn has_forgotten_any(&self, pod_uid: &str, name: &str) -> bool {
        let state = self.state();
        state.forgotten.values().any(|instance| instance.pod_uid == pod_uid && instance.container.name == name)
    }

    /// An instance is about to start, and somebody waits for it.
    pub(super) fn check_is_not_over(&self, state: &State, uid: &str, name: &str, starting: &ContainerId) {
        let Some(told) = state.told.get(uid).filter(|_| !state.put_back.contains(uid)) else { return };
        if told.is_over {
            self.world.violation(Invariant::OverIsOver, format!("{starting} of {uid}/{name} starts after its end"));
        }
        let is_once = state.once.contains(&(uid.to_owned(), name.to_owned())) && !state.replaced.contains(uid);
        let is_earlier = |id: &&ContainerId| {
            *id != starting && state.owners.get(*id).is_some_and(|(owner, of)| owner == uid && of == name)
        };
        if let Some(earlier) = told.ran.iter().find(is_earlier).filter(|_| is_once) {
            let what = format!("{starting} of {uid}/{name}, which is never restarted, starts after {earlier}");
            self.world.violation(Invariant::OverIsOver, what);
        }
    }
}
