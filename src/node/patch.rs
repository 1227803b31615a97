//! The difference between the Node the API has and the one it shall have, as strategic
//! merge patches.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::desired::ATTACH_DETACH_ANNOTATION;
use crate::config::quantity;

/// Labels that say what the node is; a Node found in the API is made to tell the truth.
const OWN_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

/// What has to change in labels and annotations. Other labels that the operator gave count at
/// registration only: they may have been changed on purpose since.
pub(super) fn metadata_patch(api: &Node, desired: &Node) -> Option<Value> {
    let none = BTreeMap::new();
    let (had, wanted) =
        (api.metadata.labels.as_ref().unwrap_or(&none), desired.metadata.labels.as_ref().unwrap_or(&none));
    let mut labels = Map::new();
    for key in OWN_LABELS {
        match (had.get(key).map(String::as_str), wanted.get(key).map(String::as_str)) {
            (had, Some(wanted)) if had != Some(wanted) => drop(labels.insert(key.into(), wanted.into())),
            (Some(""), None) => drop(labels.insert(key.into(), Value::Null)),
            _ => {}
        }
    }
    let annotation = |node: &Node| node.metadata.annotations.as_ref()?.get(ATTACH_DETACH_ANNOTATION).cloned();
    let mut metadata = Map::new();
    if !labels.is_empty() {
        metadata.insert("labels".into(), Value::Object(labels));
    }
    if annotation(api) != annotation(desired) {
        metadata.insert("annotations".into(), json!({ATTACH_DETACH_ANNOTATION: annotation(desired)}));
    }
    (!metadata.is_empty()).then(|| json!({"metadata": metadata}))
}

/// What has to change in the status, but for heartbeat times.
pub(super) fn status_patch(api: &NodeStatus, desired: &NodeStatus) -> Option<Value> {
    let mut patch = Map::new();
    put_amounts(&mut patch, "capacity", &api.capacity, &desired.capacity);
    put_amounts(&mut patch, "allocatable", &api.allocatable, &desired.allocatable);
    if let Some(addresses) = desired.addresses.as_ref().filter(|_| api.addresses != desired.addresses) {
        // Their order says which one is the primary one, so they are replaced as a whole.
        let mut list = vec![json!({"$patch": "replace"})];
        list.extend(addresses.iter().map(|address| json!(address)));
        patch.insert("addresses".into(), Value::Array(list));
    }
    put(&mut patch, "daemonEndpoints", &api.daemon_endpoints, &desired.daemon_endpoints);
    put_node_info(&mut patch, api, desired);
    put(&mut patch, "images", &api.images, &desired.images);
    put(&mut patch, "runtimeHandlers", &api.runtime_handlers, &desired.runtime_handlers);
    put(&mut patch, "declaredFeatures", &api.declared_features, &desired.declared_features);
    put(&mut patch, "features", &api.features, &desired.features);
    let earlier = api.conditions.as_deref().unwrap_or_default();
    let conditions = desired.conditions.as_deref().unwrap_or_default();
    if conditions.iter().any(|condition| differs(find(earlier, &condition.type_), condition)) {
        patch.insert("conditions".into(), json!(conditions));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Adds fresh heartbeat times to a patch, or makes one of nothing else.
pub(super) fn with_heartbeat(patch: Option<Value>, desired: &NodeStatus) -> Value {
    let mut patch = patch.unwrap_or_else(|| json!({}));
    patch["conditions"] = json!(desired.conditions);
    json!({"status": patch})
}

fn find<'a>(conditions: &'a [NodeCondition], kind: &str) -> Option<&'a NodeCondition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn differs(earlier: Option<&NodeCondition>, desired: &NodeCondition) -> bool {
    let told =
        |condition: &NodeCondition| (condition.status.clone(), condition.reason.clone(), condition.message.clone());
    earlier.map(told) != Some(told(desired))
}

fn put<T: PartialEq + Serialize>(patch: &mut Map<String, Value>, key: &str, api: &Option<T>, desired: &Option<T>) {
    if desired.is_some() && api != desired {
        patch.insert(key.into(), json!(desired));
    }
}

fn put_node_info(patch: &mut Map<String, Value>, api: &NodeStatus, desired: &NodeStatus) {
    let Some(info) = desired.node_info.as_ref().filter(|_| api.node_info != desired.node_info) else {
        return;
    };
    let mut info = json!(info);
    let swap_is_gone = api.node_info.as_ref().is_some_and(|info| info.swap.is_some()) && info.get("swap").is_none();
    if swap_is_gone {
        info["swap"] = Value::Null;
    }
    patch.insert("nodeInfo".into(), info);
}

/// Amounts of ours that differ, and huge pages of sizes that are no more. Resources that
/// others advertise stay.
fn put_amounts(
    patch: &mut Map<String, Value>,
    key: &str,
    api: &Option<BTreeMap<String, ApiQuantity>>,
    desired: &Option<BTreeMap<String, ApiQuantity>>,
) {
    let none = BTreeMap::new();
    let (had, wanted) = (api.as_ref().unwrap_or(&none), desired.as_ref().unwrap_or(&none));
    let mut changes = Map::new();
    for (name, amount) in wanted {
        if !had.get(name).is_some_and(|had| is_same(had, amount)) {
            changes.insert(name.clone(), json!(amount));
        }
    }
    let is_ours = |name: &&String| name.starts_with("hugepages-") || *name == "ephemeral-storage";
    for name in had.keys().filter(is_ours).filter(|name| !wanted.contains_key(*name)) {
        changes.insert(name.clone(), Value::Null);
    }
    if !changes.is_empty() {
        patch.insert(key.into(), Value::Object(changes));
    }
}

/// Equal amounts, however they are written.
fn is_same(a: &ApiQuantity, b: &ApiQuantity) -> bool {
    a == b || matches!((quantity::parse(&a.0), quantity::parse(&b.0)), (Ok(a), Ok(b)) if a == b)
}
