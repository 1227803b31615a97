//! What a runtime would tell, for tests: each takes what it is about and changes it with `..`.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Container, ContainerId, ContainerState, ContainerSummary, Exit, Sandbox, SandboxId, SandboxState, labels};

pub fn noon() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().expect("a literal time")
}

/// Instance `name-attempt` in sandbox `s`, created at noon.
pub fn container(name: &str, attempt: u32, state: ContainerState) -> Container {
    Container {
        id: ContainerId::new(format!("{name}-{attempt}")),
        sandbox_id: SandboxId::new("s"),
        name: name.to_owned(),
        attempt,
        state,
        created_at: noon(),
        image: String::new(),
        image_ref: String::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: String::new(),
        user: None,
        resources: None,
        mounts: Vec::new(),
        stop_signal: None,
    }
}

/// The line of the list that is about a container.
pub fn summary(container: &Container) -> ContainerSummary {
    let label = |key| container.labels.get(key).cloned().unwrap_or_default();
    ContainerSummary {
        id: container.id.clone(),
        sandbox_id: container.sandbox_id.clone(),
        name: container.name.clone(),
        pod_uid: label(labels::POD_UID),
        pod_name: label(labels::POD_NAME),
        pod_namespace: label(labels::POD_NAMESPACE),
        attempt: container.attempt,
        state: container.kind(),
        created_at: container.created_at,
        image_id: String::new(),
    }
}

pub fn running() -> ContainerState {
    ContainerState::Running { started_at: noon() }
}

/// An end nobody knows the time of.
pub fn exited(exit_code: i32) -> ContainerState {
    let (reason, message) = (String::new(), String::new());
    ContainerState::Exited(Exit { started_at: None, finished_at: None, exit_code, reason, message })
}

/// Sandbox `id` of pod `shop/web-0`, created at noon.
pub fn sandbox(id: &str, attempt: u32, state: SandboxState) -> Sandbox {
    Sandbox {
        id: SandboxId::new(id),
        pod_name: "web-0".into(),
        pod_namespace: "shop".into(),
        pod_uid: String::new(),
        attempt,
        state,
        created_at: noon(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        ips: Vec::new(),
        network_mode: None,
        users: None,
        runtime_handler: String::new(),
    }
}
