//! Taints that would drive the pod off the node as soon as it ran.

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};

use crate::config::{FeatureGates, Gate};
use crate::pod::spec;

/// Whether the pod may stay on a node with these taints. Those that only keep the scheduler
/// away are none of ours.
pub(super) fn are_tolerated(pod: &Pod, node: &Node, gates: &FeatureGates) -> bool {
    let compares = gates.enabled(Gate::TaintTolerationComparisonOperators);
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let tolerations = spec(pod).tolerations.as_deref().unwrap_or_default();
    taints
        .filter(|taint| taint.effect == "NoExecute")
        .all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint, compares)))
}

fn tolerates(toleration: &Toleration, taint: &Taint, compares: bool) -> bool {
    let is_any = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
    let effect = is_any(&toleration.effect) || toleration.effect.as_deref() == Some(taint.effect.as_str());
    let key = is_any(&toleration.key) || toleration.key.as_deref() == Some(taint.key.as_str());
    let value = match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        Some("Gt") if compares => numbers(toleration, taint).is_some_and(|(bound, found)| found > bound),
        Some("Lt") if compares => numbers(toleration, taint).is_some_and(|(bound, found)| found < bound),
        Some(_) => false,
    };
    effect && key && value
}

/// The values of both where they are whole numbers, written as such: no sign but a minus, no
/// zeros before them.
fn numbers(toleration: &Toleration, taint: &Taint) -> Option<(i64, i64)> {
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| number.to_string() == text);
    Some((number(toleration.value.as_deref()?)?, number(taint.value.as_deref()?)?))
}
