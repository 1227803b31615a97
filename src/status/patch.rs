//! The difference between the status the API has and the one it shall have, as a strategic
//! merge patch.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Conditions that only this agent writes and that end by going away. Others that are
/// missing from a computed status belong to somebody else, or to an earlier life of the pod.
const PASSING_CONDITIONS: [&str; 3] = ["PodResizePending", "PodResizeInProgress", "AllContainersRestarting"];

/// The `status` part of the patch; `None` when the API has it all. What `desired` leaves out
/// is left alone, except for reason and message, which belong to the phase.
pub(super) fn status_patch(api: &PodStatus, desired: &PodStatus) -> Option<Value> {
    let mut patch = Map::new();
    // A terminal phase is final, whoever set it, and so is what was said about it.
    let final_phase = matches!(api.phase.as_deref(), Some("Succeeded" | "Failed"));
    if !final_phase {
        put(&mut patch, "phase", &api.phase, &desired.phase);
        put_or_clear(&mut patch, "reason", &api.reason, &desired.reason);
        put_or_clear(&mut patch, "message", &api.message, &desired.message);
    }
    put(&mut patch, "hostIP", &api.host_ip, &desired.host_ip);
    put_replacing(&mut patch, "hostIPs", &api.host_ips, &desired.host_ips);
    put(&mut patch, "podIP", &api.pod_ip, &desired.pod_ip);
    put_replacing(&mut patch, "podIPs", &api.pod_ips, &desired.pod_ips);
    put(&mut patch, "qosClass", &api.qos_class, &desired.qos_class);
    put_whole(&mut patch, "allocatedResources", &api.allocated_resources, &desired.allocated_resources);
    put_whole(&mut patch, "resources", &api.resources, &desired.resources);
    put(&mut patch, "startTime", &api.start_time, &desired.start_time);
    put(&mut patch, "observedGeneration", &api.observed_generation, &desired.observed_generation);
    put(&mut patch, "initContainerStatuses", &api.init_container_statuses, &desired.init_container_statuses);
    put(&mut patch, "containerStatuses", &api.container_statuses, &desired.container_statuses);
    put(
        &mut patch,
        "ephemeralContainerStatuses",
        &api.ephemeral_container_statuses,
        &desired.ephemeral_container_statuses,
    );
    let conditions = conditions_patch(
        api.conditions.as_deref().unwrap_or_default(),
        desired.conditions.as_deref().unwrap_or_default(),
    );
    if !conditions.is_empty() {
        patch.insert("conditions".into(), Value::Array(conditions));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn put<T: PartialEq + Serialize>(patch: &mut Map<String, Value>, key: &str, api: &Option<T>, desired: &Option<T>) {
    if desired.is_some() && api != desired {
        patch.insert(key.into(), json!(desired));
    }
}

/// For what the API would merge by key: what is no longer said has to go.
fn put_whole<T: PartialEq + Serialize>(
    patch: &mut Map<String, Value>,
    key: &str,
    api: &Option<T>,
    desired: &Option<T>,
) {
    if desired.is_some() && api != desired {
        let mut value = json!(desired);
        clear_missing(&mut value, &json!(api));
        patch.insert(key.into(), value);
    }
}

fn clear_missing(desired: &mut Value, api: &Value) {
    let (Value::Object(desired), Value::Object(api)) = (desired, api) else { return };
    for (key, had) in api {
        clear_missing(desired.entry(key.as_str()).or_insert(Value::Null), had);
    }
}

fn put_or_clear(patch: &mut Map<String, Value>, key: &str, api: &Option<String>, desired: &Option<String>) {
    // The API does not tell an empty text from none.
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if text(api) != text(desired) {
        patch.insert(key.into(), json!(text(desired)));
    }
}

/// For lists that the API would merge by key: an address that went away has to go, and the
/// first one has a meaning.
fn put_replacing<T: PartialEq + Serialize>(
    patch: &mut Map<String, Value>,
    key: &str,
    api: &Option<Vec<T>>,
    desired: &Option<Vec<T>>,
) {
    let Some(list) = desired.as_ref().filter(|_| api != desired) else {
        return;
    };
    let mut elements = vec![json!({"$patch": "replace"})];
    elements.extend(list.iter().map(|element| json!(element)));
    patch.insert(key.into(), Value::Array(elements));
}

fn conditions_patch(api: &[PodCondition], desired: &[PodCondition]) -> Vec<Value> {
    let find = |kind: &str| api.iter().find(|condition| condition.type_ == kind);
    let changed = desired.iter().filter_map(|condition| condition_patch(find(&condition.type_), condition));
    let is_over = |kind: &&str| find(kind).is_some() && desired.iter().all(|condition| condition.type_ != *kind);
    let removed = PASSING_CONDITIONS.into_iter().filter(is_over).map(|kind| json!({"$patch": "delete", "type": kind}));
    changed.chain(removed).collect()
}

fn condition_patch(api: Option<&PodCondition>, desired: &PodCondition) -> Option<Value> {
    let mut patch = json!(desired);
    let Some(api) = api else { return Some(patch) };
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let same = api.status == desired.status
        && text(&api.reason) == text(&desired.reason)
        && text(&api.message) == text(&desired.message)
        && (desired.observed_generation.is_none() || api.observed_generation == desired.observed_generation);
    if same {
        return None;
    }
    if api.status == desired.status {
        // Since when it holds is known to the API already.
        patch["lastTransitionTime"] = json!(api.last_transition_time);
    }
    for (key, had, has) in [
        ("reason", api.reason.is_some(), desired.reason.is_some()),
        ("message", api.message.is_some(), desired.message.is_some()),
    ] {
        if had && !has {
            patch[key] = Value::Null;
        }
    }
    Some(patch)
}
