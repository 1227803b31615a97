//! Features that a pod needs and that this node does not have.

use k8s_openapi::api::core::v1::Pod;

use super::Refusal;
use crate::config::{FeatureGates, Gate};
use crate::pod::features;

pub(super) fn check(gates: &FeatureGates, pod: &Pod) -> Option<Refusal> {
    if !gates.enabled(Gate::PodLevelResources) && features::has_pod_level_resources(pod) {
        return Some(Refusal::new("PodLevelResourcesNotSupported", "PodLevelResources feature gate is disabled"));
    }
    if !gates.enabled(Gate::NodeDeclaredFeatures) {
        return None;
    }
    let declared: Vec<_> = features::declared(gates).collect();
    let missing: Vec<_> = features::required(pod).filter(|feature| !declared.contains(feature)).collect();
    let message = || format!("Pod requires node features that are not available: {}", missing.join(", "));
    (!missing.is_empty()).then(|| Refusal::new("PodFeatureUnsupported", message()))
}
