//! What pods may ask for that not every node has, and which of it this node has.
//!
//! Without the declaration of a feature the scheduler sends pods that need it elsewhere, and
//! the API server refuses changes that need it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{EnvVar, Pod};

use super::containers::{Role, all_containers, is_sidecar, workload_containers};
use super::resources::is_pod_level;
use super::spec;
use crate::config::{FeatureGates, Gate};

/// Features that are declared where their gates are on. Sorted, as they are told.
const DECLARED: &[(&str, Gate)] = &[
    (RESIZED_AS_A_WHOLE, Gate::InPlacePodLevelResourcesVerticalScaling),
    (RESIZED_INIT, Gate::InPlacePodVerticalScalingInitContainers),
    (RESTART_ALL, Gate::RestartAllContainersOnContainerExits),
];
const RESIZED_AS_A_WHOLE: &str = "InPlacePodLevelResourcesVerticalScaling";
const RESIZED_INIT: &str = "InPlacePodVerticalScalingInitContainers";
const RESTART_ALL: &str = "RestartAllContainersOnContainerExits";
/// Nobody has this yet: it needs a runtime that says so.
const USERS_ON_HOST_NETWORK: &str = "UserNamespacesHostNetworkSupport";

/// What the Node declares.
pub fn declared(gates: &FeatureGates) -> impl Iterator<Item = &'static str> {
    let tells = gates.enabled(Gate::NodeDeclaredFeatures);
    let on = DECLARED.iter().filter(move |(_, gate)| tells && gates.enabled(*gate));
    on.map(|(feature, _)| *feature)
}

/// What a node has to declare to be given this pod. Sorted.
fn required(pod: &Pod) -> impl Iterator<Item = &'static str> {
    let restarts_all = workload_containers(pod)
        .flat_map(|(_, container)| container.restart_policy_rules.iter().flatten())
        .any(|rule| rule.action == "RestartAllContainers");
    let own_users = spec(pod).host_network == Some(true) && spec(pod).host_users == Some(false);
    let required = [(restarts_all, RESTART_ALL), (own_users, USERS_ON_HOST_NETWORK)];
    required.into_iter().filter_map(|(is_required, feature)| is_required.then_some(feature))
}

/// What a node has to declare for this change of a pod that it has. Sorted.
fn required_for_change(before: &Pod, now: &Pod) -> impl Iterator<Item = &'static str> {
    let resized_as_a_whole = spec(before).resources != spec(now).resources;
    let init = |pod: &Pod| -> Vec<_> {
        let init = workload_containers(pod).filter(|(role, _)| *role == Role::Init);
        init.map(|(_, container)| container.resources.clone()).collect()
    };
    let required = [(resized_as_a_whole, RESIZED_AS_A_WHOLE), (init(before) != init(now), RESIZED_INIT)];
    required.into_iter().filter_map(|(is_required, feature)| is_required.then_some(feature))
}

/// What there is to say of a pod that needs more than this node declares.
pub fn unavailable(gates: &FeatureGates, pod: &Pod) -> Option<String> {
    told_missing(gates, required(pod))
}

/// The same of a change.
pub fn unavailable_for_change(gates: &FeatureGates, before: &Pod, now: &Pod) -> Option<String> {
    told_missing(gates, required_for_change(before, now))
}

fn told_missing(gates: &FeatureGates, required: impl Iterator<Item = &'static str>) -> Option<String> {
    if !gates.enabled(Gate::NodeDeclaredFeatures) {
        return None;
    }
    let missing: Vec<_> = required.filter(|feature| !declared(gates).any(|declared| declared == *feature)).collect();
    let message = || format!("Pod requires node features that are not available: {}", missing.join(", "));
    (!missing.is_empty()).then(message)
}

/// Whether the pod as a whole says what CPU, memory or huge pages it needs.
pub fn has_pod_level_resources(pod: &Pod) -> bool {
    let resources = spec(pod).resources.iter().flat_map(|resources| [&resources.requests, &resources.limits]);
    resources.flatten().flatten().any(|(name, _)| is_pod_level(name))
}

/// Takes the fields out of the pod that nobody is to heed, because their gate is off.
pub fn leave_out_unheeded(pod: &mut Arc<Pod>, gates: &FeatureGates) {
    if !gates.enabled(Gate::HostnameOverride)
        && spec(pod).hostname_override.is_some()
        && let Some(spec) = &mut Arc::make_mut(pod).spec
    {
        spec.hostname_override = None;
    }
    let is_from_file = |variable: &EnvVar| variable.value_from.as_ref().is_some_and(|from| from.file_key_ref.is_some());
    let reads_files =
        |pod: &Pod| all_containers(pod).any(|(_, container)| container.env.iter().flatten().any(is_from_file));
    if !gates.enabled(Gate::EnvFiles)
        && reads_files(pod)
        && let Some(spec) = &mut Arc::make_mut(pod).spec
    {
        let workload = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
        let ephemeral = spec.ephemeral_containers.iter_mut().flatten();
        let lists = workload.map(|container| &mut container.env).chain(ephemeral.map(|container| &mut container.env));
        for source in lists.flatten().flatten().filter_map(|variable| variable.value_from.as_mut()) {
            source.file_key_ref = None;
        }
    }
    // The rules are read only where there is a policy.
    if !gates.enabled(Gate::ContainerRestartRules)
        && workload_containers(pod).any(|(role, container)| container.restart_policy.is_some() && role != Role::Sidecar)
        && let Some(spec) = &mut Arc::make_mut(pod).spec
    {
        let init = spec.init_containers.iter_mut().flatten().filter(|container| !is_sidecar(container));
        init.chain(&mut spec.containers).for_each(|container| container.restart_policy = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod_yaml;

    #[test]
    fn features_are_declared_while_their_gates_are_on() {
        let declared = |gates: &FeatureGates| declared(gates).collect::<Vec<_>>();
        let all = declared(&FeatureGates::default());
        assert!(all.is_sorted());
        for (feature, gate) in DECLARED {
            let without = declared(&FeatureGates::with(&[(*gate, false)]));
            assert!(all.contains(feature) && !without.contains(feature), "{feature}");
            assert_eq!(without.len(), all.len() - 1);
        }
        assert!(declared(&FeatureGates::with(&[(Gate::NodeDeclaredFeatures, false)])).is_empty());
    }

    #[test]
    fn a_change_that_needs_what_is_not_declared_is_told() {
        let pod = |whole: &str, init: &str, sidecar: &str| {
            let resources = |cpu: &str| format!("resources: {{requests: {{cpu: {cpu}}}}}");
            pod_yaml(&format!(
                "spec: {{{}, containers: [], initContainers: [{{name: i, {}}}, {{name: s, restartPolicy: Always, {}}}]}}",
                resources(whole),
                resources(init),
                resources(sidecar)
            ))
        };
        let gates = FeatureGates::with(&[
            (Gate::InPlacePodLevelResourcesVerticalScaling, false),
            (Gate::InPlacePodVerticalScalingInitContainers, false),
        ]);
        let told = |now: Pod| unavailable_for_change(&gates, &pod("1", "1", "1"), &now);
        let message = |missing: &str| Some(format!("Pod requires node features that are not available: {missing}"));
        assert_eq!(told(pod("1", "1", "1")), None);
        assert_eq!(told(pod("1", "1", "2")), None, "sidecars could always be resized");
        assert_eq!(told(pod("2", "1", "1")), message("InPlacePodLevelResourcesVerticalScaling"));
        assert_eq!(told(pod("1", "2", "1")), message("InPlacePodVerticalScalingInitContainers"));
        let both = "InPlacePodLevelResourcesVerticalScaling, InPlacePodVerticalScalingInitContainers";
        assert_eq!(told(pod("2", "2", "1")), message(both));
        let (before, now) = (pod("1", "1", "1"), pod("2", "2", "1"));
        assert_eq!(unavailable_for_change(&FeatureGates::default(), &before, &now), None, "all is declared");
        let silent = FeatureGates::with(&[
            (Gate::NodeDeclaredFeatures, false),
            (Gate::InPlacePodLevelResourcesVerticalScaling, false),
        ]);
        assert_eq!(unavailable_for_change(&silent, &before, &now), None, "nobody declares anything");
    }

    #[test]
    fn what_a_gate_switches_off_is_left_out() {
        let given = "
            spec:
              hostnameOverride: elsewhere
              initContainers:
              - {name: init, image: a, restartPolicy: Never}
              - {name: sidecar, image: a, restartPolicy: Always}
              containers:
              - {name: c, image: a, restartPolicy: OnFailure, env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: p, key: k}}}]}";
        let check = |gate: Gate, expected: &str| {
            let mut pod = Arc::new(pod_yaml(given));
            leave_out_unheeded(&mut pod, &FeatureGates::with(&[(gate, false)]));
            assert_eq!(*pod, pod_yaml(expected), "{gate:?}");
        };
        check(Gate::HostnameOverride, &given.replace("hostnameOverride: elsewhere", ""));
        let without_policies = given.replace(", restartPolicy: Never", "").replace(", restartPolicy: OnFailure", "");
        check(Gate::ContainerRestartRules, &without_policies);
        check(Gate::EnvFiles, &given.replace("fileKeyRef: {volumeName: v, path: p, key: k}", ""));
        check(Gate::NodeDeclaredFeatures, given);
    }
}
