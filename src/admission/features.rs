//! Features that a pod needs and that this node does not have.

use k8s_openapi::api::core::v1::Pod;

use super::Refusal;
use crate::config::{FeatureGates, Gate};
use crate::pod::features;

pub(super) fn check(gates: &FeatureGates, pod: &Pod) -> Option<Refusal> {
    if !gates.enabled(Gate::PodLevelResources) && features::has_pod_level_resources(pod) {
        return Some(Refusal::new("PodLevelResourcesNotSupported", "PodLevelResources feature gate is disabled"));
    }
    features::unavailable(gates, pod).map(|message| Refusal::new("PodFeatureUnsupported", message))
}
