//! The decision over one pod.

use k8s_openapi::api::core::v1::Pod;

use super::fit::{self, Figures};
use super::{NodeFacts, Refusal, affinity, app_armor, features, is_critical, ports, preemption, sysctls, taints};
use crate::pod::resources::amounts;
use crate::pod::{PodUid, Source, spec};

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    Admitted,
    Refused(Refusal),
    /// It may start once these have ended for it.
    Preempts(Vec<PodUid>),
}

/// A pod the node has taken.
#[derive(Clone, Copy)]
pub struct Taken<'a> {
    pub uid: &'a PodUid,
    pub pod: &'a Pod,
    pub source: Source,
}

/// Whether the node takes `pod` beside those it has taken. The order of the questions is
/// upstream's: the first one answered with no is the one that is told.
pub fn judge(facts: &NodeFacts<'_>, taken: &[Taken<'_>], pod: &Pod, source: Source) -> Judgement {
    let refusal = sysctls::check(facts.config, pod).or_else(|| kind_of_node(facts, pod));
    if let Some(refusal) = refusal {
        return Judgement::Refused(refusal);
    }
    let allocatable = allocatable(facts);
    let used = fit::sum(taken.iter().map(|taken| taken.pod));
    let shortages = fit::shortages(pod, &used, &allocatable);
    let mut other = predicates(facts, taken, pod, source);
    let victims = if shortages.is_empty() {
        Vec::new()
    } else if !is_critical(pod, source) {
        return Judgement::Refused(shortages[0].refusal());
    } else if other.is_empty() {
        match preemption::victims(pod, source, taken, &shortages) {
            Ok(victims) => victims,
            Err(unmet) => {
                let message = format!("Unexpected error while attempting to recover from admission failure: {unmet}");
                return Judgement::Refused(Refusal::new("UnexpectedAdmissionError", message));
            }
        }
    } else {
        Vec::new()
    };
    if !other.is_empty() {
        return Judgement::Refused(other.swap_remove(0));
    }
    let is_pending = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending") == "Pending";
    if is_pending && !facts.config.app_armor && app_armor::is_required(pod) {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        return Judgement::Refused(Refusal::new("AppArmor", message));
    }
    if let Some(refusal) = features::check(&facts.config.gates, pod) {
        return Judgement::Refused(refusal);
    }
    match victims.is_empty() {
        true => Judgement::Admitted,
        false => Judgement::Preempts(victims),
    }
}

/// What the API says of the node, in which others advertise their resources, and over it
/// what we have just read.
pub(super) fn allocatable(facts: &NodeFacts<'_>) -> Figures {
    let mut all = amounts(facts.node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
    all.extend(facts.allocatable.clone());
    fit::figures(&all)
}

/// Pods made for nodes of another kind.
fn kind_of_node(facts: &NodeFacts<'_>, pod: &Pod) -> Option<Refusal> {
    const OS: &str = "linux";
    let spec = spec(pod);
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != OS) {
        return Some(Refusal::new(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        ));
    }
    if spec.os.as_ref().is_some_and(|os| os.name != OS) {
        return Some(Refusal::new("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"));
    }
    let policy = spec.security_context.as_ref().and_then(|context| context.supplemental_groups_policy.as_deref());
    if policy == Some("Strict") && facts.supplemental_groups_policy == Some(false) {
        return Some(Refusal::new(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        ));
    }
    None
}

/// What keeps the pod from this node, however much room there is.
fn predicates(facts: &NodeFacts<'_>, taken: &[Taken<'_>], pod: &Pod, source: Source) -> Vec<Refusal> {
    let name = &facts.config.node_name;
    let none = Default::default();
    let labels = facts.node.metadata.labels.as_ref().unwrap_or(&none);
    let mut found = Vec::new();
    if !affinity::matches(pod, name, labels) {
        found.push(Refusal::predicate(NODE_AFFINITY, "node(s) didn't match Pod's node affinity/selector"));
    }
    if spec(pod).node_name.as_deref().is_some_and(|wanted| !wanted.is_empty() && wanted != name) {
        found.push(Refusal::predicate("NodeName", "node(s) didn't match the requested node name"));
    }
    if ports::are_taken(pod, taken.iter().map(|taken| taken.pod)) {
        found.push(Refusal::predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    if !source.is_static() && !taints::are_tolerated(pod, facts.node, &facts.config.gates) {
        found.push(Refusal::predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
    }
    found
}

const NODE_AFFINITY: &str = "NodeAffinity";

impl Judgement {
    /// The labels may have changed since the node was read last.
    pub(super) fn may_be_of_an_old_node(&self) -> bool {
        matches!(self, Judgement::Refused(refusal) if refusal.reason == NODE_AFFINITY)
    }
}
