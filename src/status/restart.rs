//! Whether a container that exited is started again, by policy and rules alone.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod, PodStatus};

use super::containers::{known, told_exit};
use crate::config::{FeatureGates, Gate};
use crate::cri;
use crate::pleg::PodRuntime;
use crate::pod::containers::{Role, all_containers, regular_containers, workload_containers};
use crate::pod::spec;

/// The action of a rule by which the exit of one container restarts all.
const RESTART_ALL: &str = "RestartAllContainers";

/// By what a pod's containers are started again.
#[derive(Clone, Copy)]
pub struct Restarts<'a> {
    pub pod: &'a Pod,
    /// Whether rules may restart all containers. Where not, such a rule decides nothing, and keeps
    /// those behind it from deciding.
    pub all_may: bool,
}

impl<'a> Restarts<'a> {
    pub fn of(pod: &'a Pod, gates: &FeatureGates) -> Self {
        Restarts { pod, all_may: gates.enabled(Gate::RestartAllContainersOnContainerExits) }
    }

    /// Whether `container` is started again after it exited with `exit_code`. The container's
    /// own rules come first, then its policy, then the pod's; a deleted pod restarts nothing.
    ///
    /// For an init container a zero exit code means done, whatever this says.
    pub fn restartable(self, container: &Container, exit_code: i32) -> bool {
        if self.pod.metadata.deletion_timestamp.is_some() {
            return false;
        }
        if matching_rule(container, exit_code).is_some_and(|rule| self.all_may || rule.action != RESTART_ALL) {
            // Both actions that exist restart the container; one of them its neighbours as well.
            return true;
        }
        let policy = container.restart_policy.as_ref().or(spec(self.pod).restart_policy.as_ref());
        match policy.map(String::as_str) {
            Some("Never") => false,
            Some("OnFailure") => exit_code != 0,
            _ => true,
        }
    }

    /// The containers that are over, of which the runtime has nothing any more: their status tells
    /// that they ran, and nothing starts them again. Somebody may have removed them behind our back,
    /// and a machine without power forgets more than that.
    pub fn over_and_lost(self, told: &PodStatus, runtime: &PodRuntime) -> BTreeSet<String> {
        // Where all may begin anew, what is missing may have been removed for that.
        let may_begin_anew = self.may_restart_all();
        let is_over = |role: Role, container: &Container| {
            let Some(exit_code) = known(told, role, &container.name).and_then(told_exit) else { return false };
            match role {
                Role::Sidecar => false,
                Role::Ephemeral => true,
                // One that did its work may have to do it again, for a new sandbox.
                Role::Init if exit_code == 0 => false,
                Role::Init | Role::Regular => !may_begin_anew && !self.restartable(container, exit_code),
            }
        };
        let lost = all_containers(self.pod).filter(|(_, container)| runtime.newest(&container.name).is_none());
        lost.filter(|(role, container)| is_over(*role, container))
            .map(|(_, container)| container.name.clone())
            .collect()
    }

    /// The instances whose end demands that all containers of the pod begin anew. While the
    /// runtime has one of them, that is under way.
    pub fn sources(self, runtime: &'a PodRuntime) -> impl Iterator<Item = &'a cri::Container> {
        let is_deleted = self.pod.metadata.deletion_timestamp.is_some();
        let over = self.over_since(runtime);
        workload_containers(self.pod).filter(move |_| !is_deleted).filter_map(move |(role, container)| {
            let newest = runtime.newest(&container.name)?;
            let exit = newest.exit()?;
            // A sidecar that ends after all it served was stopped because the pod had ended.
            if role == Role::Sidecar && over.is_some_and(|over| exit.finished_at.is_none_or(|end| end >= over)) {
                return None;
            }
            self.demands_all(container, exit.exit_code).then_some(newest)
        })
    }

    /// Whether such an exit restarts all containers of the pod.
    pub(super) fn demands_all(self, container: &Container, exit_code: i32) -> bool {
        self.all_may && matching_rule(container, exit_code).is_some_and(|rule| rule.action == RESTART_ALL)
    }

    /// Whether some container of the pod may end so that all begin anew.
    pub(super) fn may_restart_all(self) -> bool {
        let rules = |container: &Container| {
            container.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL)
        };
        self.all_may && workload_containers(self.pod).any(|(_, container)| rules(container))
    }

    /// When the last regular container ended for good; `None` while there is one that has not.
    fn over_since(self, runtime: &PodRuntime) -> Option<Timestamp> {
        let mut last = None;
        for container in regular_containers(self.pod) {
            let exit = runtime.newest(&container.name)?.exit()?;
            if self.restartable(container, exit.exit_code) {
                return None;
            }
            last = last.max(exit.finished_at);
        }
        last
    }
}

/// The first rule that speaks of this exit. They are read where the container has a policy of
/// its own.
fn matching_rule(container: &Container, exit_code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy.as_ref()?;
    container.restart_policy_rules.iter().flatten().find(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.as_deref().unwrap_or_default().contains(&exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    })
}
