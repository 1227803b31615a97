//! The node selector and the node affinity that a pod requires.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};

use crate::pod::spec;

/// Whether a node with this name and these labels is one that the pod asks for.
pub(super) fn matches(pod: &Pod, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let spec = spec(pod);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected
        && required.is_none_or(|required| required.node_selector_terms.iter().any(|term| holds(term, name, labels)))
}

/// All that a term says; one that says nothing fits no node.
fn holds(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field = |key: &str| (key == "metadata.name").then_some(name);
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|wanted| meets(wanted, labels.get(&wanted.key).map(String::as_str)))
        && fields.iter().all(|wanted| meets(wanted, field(&wanted.key)))
}

fn meets(wanted: &NodeSelectorRequirement, has: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let listed = |has: &str| values.iter().any(|value| value == has);
    let compare = |holds: fn(&i64, &i64) -> bool| {
        let (Some(Ok(has)), [value]) = (has.map(str::parse), values) else { return false };
        value.parse().is_ok_and(|value| holds(&has, &value))
    };
    match wanted.operator.as_str() {
        "In" => has.is_some_and(listed),
        "NotIn" => !has.is_some_and(listed),
        "Exists" => has.is_some(),
        "DoesNotExist" => has.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}
