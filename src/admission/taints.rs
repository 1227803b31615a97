//! Taints that would drive the pod off the node as soon as it ran.

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};

use crate::pod::spec;

/// Whether the pod may stay on a node with these taints. Those that only keep the scheduler
/// away are none of ours.
pub(super) fn are_tolerated(pod: &Pod, node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let tolerations = spec(pod).tolerations.as_deref().unwrap_or_default();
    taints
        .filter(|taint| taint.effect == "NoExecute")
        .all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let is_any = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
    let effect = is_any(&toleration.effect) || toleration.effect.as_deref() == Some(taint.effect.as_str());
    let key = is_any(&toleration.key) || toleration.key.as_deref() == Some(taint.key.as_str());
    let value = match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    };
    effect && key && value
}
