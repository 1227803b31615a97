//! The containers of a pod, whatever list of the spec they stand in.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

use super::spec;

/// What part a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// Stands among the init containers, but keeps running beside the regular ones.
    Sidecar,
    Regular,
    /// Added to a running pod for debugging; never restarted.
    Ephemeral,
}

impl Role {
    /// The list of the spec that holds such containers, as event field paths name it.
    pub fn list_name(self) -> &'static str {
        match self {
            Role::Init | Role::Sidecar => "initContainers",
            Role::Regular => "containers",
            Role::Ephemeral => "ephemeralContainers",
        }
    }
}

/// An init container with `restartPolicy: Always` is a sidecar.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

pub fn regular_containers(pod: &Pod) -> &[Container] {
    &spec(pod).containers
}

pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod).ephemeral_containers.as_deref().unwrap_or_default()
}

/// Init containers, then regular ones: those that ask for resources.
pub fn workload_containers(pod: &Pod) -> impl Iterator<Item = (Role, &Container)> {
    let init = init_containers(pod).iter().map(|container| match is_sidecar(container) {
        true => (Role::Sidecar, container),
        false => (Role::Init, container),
    });
    init.chain(regular_containers(pod).iter().map(|container| (Role::Regular, container)))
}

/// All containers in the order of the spec: init, regular, ephemeral.
pub fn all_containers(pod: &Pod) -> impl Iterator<Item = (Role, Cow<'_, Container>)> {
    let ephemeral =
        ephemeral_containers(pod).iter().map(|container| (Role::Ephemeral, Cow::Owned(from_ephemeral(container))));
    workload_containers(pod).map(|(role, container)| (role, Cow::Borrowed(container))).chain(ephemeral)
}

pub fn find<'a>(pod: &'a Pod, name: &str) -> Option<(Role, Cow<'a, Container>)> {
    all_containers(pod).find(|(_, container)| container.name == name)
}

/// What upstream's metrics call a container of this kind.
pub fn kind_label(pod: &Pod, name: &str) -> &'static str {
    match find(pod, name) {
        Some((Role::Init | Role::Sidecar, _)) => "init_container",
        Some((Role::Ephemeral, _)) => "ephemeral_container",
        Some((Role::Regular, _)) | None => "container",
    }
}

/// Where the container stands in its pod, as events about it say.
pub fn field_path(pod: &Pod, name: &str) -> Option<String> {
    find(pod, name).map(|(role, _)| format!("spec.{}{{{name}}}", role.list_name()))
}

/// An ephemeral container as an ordinary one. It has a type of its own in the API, with the
/// same fields and the name of the container whose processes it looks at.
pub fn from_ephemeral(container: &EphemeralContainer) -> Container {
    let container = container.clone();
    Container {
        args: container.args,
        command: container.command,
        env: container.env,
        env_from: container.env_from,
        image: container.image,
        image_pull_policy: container.image_pull_policy,
        lifecycle: container.lifecycle,
        liveness_probe: container.liveness_probe,
        name: container.name,
        ports: container.ports,
        readiness_probe: container.readiness_probe,
        resize_policy: container.resize_policy,
        resources: container.resources,
        restart_policy: container.restart_policy,
        restart_policy_rules: container.restart_policy_rules,
        security_context: container.security_context,
        startup_probe: container.startup_probe,
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        termination_message_path: container.termination_message_path,
        termination_message_policy: container.termination_message_policy,
        tty: container.tty,
        volume_devices: container.volume_devices,
        volume_mounts: container.volume_mounts,
        working_dir: container.working_dir,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod_yaml;

    #[test]
    fn every_container_has_a_role_and_a_field_path() {
        let pod = pod_yaml(
            "
            spec:
              initContainers:
              - {name: setup, image: a}
              - {name: proxy, image: a, restartPolicy: Always}
              containers:
              - {name: web, image: a}
              ephemeralContainers:
              - {name: debug, image: a}
            ",
        );
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(field_path(&pod, name).as_deref(), expected, "{name}");
        };
        check("setup", Some("spec.initContainers{setup}"));
        check("proxy", Some("spec.initContainers{proxy}"));
        check("web", Some("spec.containers{web}"));
        check("debug", Some("spec.ephemeralContainers{debug}"));
        check("other", None);
        let counted = ["setup", "proxy", "web", "debug"].map(|name| kind_label(&pod, name));
        assert_eq!(counted, ["init_container", "init_container", "container", "ephemeral_container"]);
        let roles: Vec<Role> = all_containers(&pod).map(|(role, _)| role).collect();
        assert_eq!(roles, [Role::Init, Role::Sidecar, Role::Regular, Role::Ephemeral]);
    }
}
