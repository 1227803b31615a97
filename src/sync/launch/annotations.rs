//! Labels and annotations that tie sandboxes and containers to their pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::cri::{annotations, labels};
use crate::pod::{self, PodRef};

pub(super) fn sandbox_labels(pod: &Pod) -> BTreeMap<String, String> {
    let mut all = pod.metadata.labels.clone().unwrap_or_default();
    all.extend(pod_labels(pod));
    all
}

pub(super) fn container_labels(pod: &Pod, container: &Container) -> BTreeMap<String, String> {
    let mut all = pod_labels(pod);
    all.insert(labels::CONTAINER_NAME.into(), container.name.clone());
    all
}

fn pod_labels(pod: &Pod) -> BTreeMap<String, String> {
    let pod = PodRef::of(pod);
    BTreeMap::from([
        (labels::POD_NAME.into(), pod.name),
        (labels::POD_NAMESPACE.into(), pod.namespace),
        (labels::POD_UID.into(), pod.uid.to_string()),
    ])
}

/// What a later life of the agent needs of a container whose pod it no longer has.
pub(super) fn container_annotations(pod: &Pod, container: &Container, attempt: u32) -> BTreeMap<String, String> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let mut all: BTreeMap<String, String> = BTreeMap::from([
        (annotations::CONTAINER_HASH.into(), pod::container_hash(container)),
        (annotations::CONTAINER_RESTART_COUNT.into(), attempt.to_string()),
        (annotations::TERMINATION_MESSAGE_PATH.into(), text(&container.termination_message_path)),
        (annotations::TERMINATION_MESSAGE_POLICY.into(), text(&container.termination_message_policy)),
    ]);
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        all.insert(annotations::POD_DELETION_GRACE_PERIOD.into(), seconds.to_string());
    }
    if let Some(seconds) = pod::spec(pod).termination_grace_period_seconds {
        all.insert(annotations::POD_TERMINATION_GRACE_PERIOD.into(), seconds.to_string());
    }
    let as_json = "API types serialize: their keys are strings";
    if let Some(handler) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
        all.insert(annotations::PRE_STOP_HANDLER.into(), serde_json::to_string(handler).expect(as_json));
    }
    if let Some(ports) = container.ports.as_ref().filter(|ports| !ports.is_empty()) {
        all.insert(annotations::PORTS.into(), serde_json::to_string(ports).expect(as_json));
    }
    all
}
