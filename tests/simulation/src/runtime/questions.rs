//! What the judge and the other edges want to know of the runtime.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ferrolet::cri::{ContainerId, ContainerState, SandboxState};

use super::SimRuntime;
use crate::programs::Ask;

impl SimRuntime {
    pub fn pods(&self) -> BTreeSet<String> {
        let state = self.state();
        let of_sandboxes = state.sandboxes.values().map(|sandbox| sandbox.pod_uid.clone());
        of_sandboxes.chain(state.containers.values().map(|instance| instance.pod_uid.clone())).collect()
    }

    /// Ids of the running instances of one container.
    pub fn running(&self, pod_uid: &str, name: &str) -> Vec<ContainerId> {
        let state = self.state();
        let of_it =
            state.containers.values().filter(|instance| instance.pod_uid == pod_uid && instance.container.name == name);
        of_it.filter(|instance| instance.container.is_running()).map(|instance| instance.container.id.clone()).collect()
    }

    pub(super) fn is_running(&self, id: &ContainerId) -> bool {
        self.state().containers.get(id).is_some_and(|instance| instance.container.is_running())
    }

    /// Names of all containers of the pod that run.
    pub fn running_in(&self, pod_uid: &str) -> Vec<String> {
        let state = self.state();
        let of_it = state.containers.values().filter(|instance| instance.pod_uid == pod_uid);
        of_it
            .filter(|instance| instance.container.is_running())
            .map(|instance| instance.container.name.clone())
            .collect()
    }

    /// The image an instance was made from, as its author wrote it.
    pub fn image(&self, id: &ContainerId) -> Option<String> {
        Some(self.state().containers.get(id)?.container.image.clone())
    }

    pub fn ready_sandboxes(&self, pod_uid: &str) -> usize {
        let state = self.state();
        state
            .sandboxes
            .values()
            .filter(|sandbox| sandbox.pod_uid == pod_uid && sandbox.state == SandboxState::Ready)
            .count()
    }

    /// How the newest instance of a container ended, if it did.
    pub fn newest_exit(&self, pod_uid: &str, name: &str) -> Option<i32> {
        let state = self.state();
        let ever = state.containers.values().chain(state.forgotten.values());
        let of_it = ever.filter(|instance| instance.pod_uid == pod_uid && instance.container.name == name);
        let newest = of_it.max_by_key(|instance| (instance.container.attempt, instance.container.id.clone()))?;
        newest.container.exit().map(|exit| exit.exit_code)
    }

    /// Paths of the logs of all containers, and whether the container runs.
    pub fn logs(&self) -> Vec<(PathBuf, bool)> {
        let state = self.state();
        let all = state.containers.values().filter(|instance| instance.container.state != ContainerState::Created);
        all.map(|instance| (PathBuf::from(&instance.container.log_path), instance.container.is_running())).collect()
    }

    /// Whether so many answers to a probe went wrong that a container of the pod may have
    /// been killed for it.
    pub fn was_hit(&self, pod_uid: &str) -> bool {
        self.state().hit_pods.contains(pod_uid)
    }

    /// Whether an instance runs without its postStart hook, in the life of the agent that started it.
    /// Of a sleep nobody but the agent knows.
    pub fn misses_its_hook(&self, id: &ContainerId) -> bool {
        let state = self.state();
        let is_asked =
            state.manners.get(id).and_then(|manners| manners.hook(Ask::PostStart)).is_some_and(|it| !it.is_sleep);
        let is_ours = state.containers.get(id).is_some_and(|instance| instance.started_in == Some(state.life));
        is_asked && is_ours && !state.hooks.contains_key(&(id.clone(), Ask::PostStart))
    }

    pub fn has_container(&self, id: &str) -> bool {
        self.state().containers.contains_key(&ContainerId::new(id))
    }

    /// Takes the record of changes: pod UID and call.
    pub fn take_changes(&self) -> Vec<(String, &'static str)> {
        std::mem::take(&mut self.state().changes)
    }
}
