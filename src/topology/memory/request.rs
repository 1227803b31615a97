//! How much memory of which kind a pod asks for.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod::qos::{QosClass, class};
use crate::pod::resources::{Amounts, Resources, container_resources, is_hugepages, is_pod_level};
use crate::pod::spec;

/// Bytes by `memory` or `hugepages-<size>`, none of them zero.
pub type Sizes = BTreeMap<String, u64>;

/// An amount that is no number of bytes, such as `100m`. With upstream's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("[memorymanager] failed to represent quantity as int64")]
pub struct NotBytes;

/// Guaranteed pods have memory of their own. Not so those with pod-level resources, for which
/// upstream asks for the gate PodLevelResourceManagers that we do not have.
pub fn is_eligible(pod: &Pod) -> bool {
    class(pod) == QosClass::Guaranteed && !has_pod_level(pod)
}

fn has_pod_level(pod: &Pod) -> bool {
    let own = Resources::of(spec(pod).resources.as_ref());
    own.requests.keys().chain(own.limits.keys()).any(|name| is_pod_level(name))
}

pub fn of_container(container: &Container) -> Result<Sizes, NotBytes> {
    sizes(Resources::of_container(container).requests)
}

/// The most that the pod's containers have at any moment of its life. Upstream leaves out
/// kinds of memory that only init containers ask for, and fails when it gets to those.
pub fn of_pod(pod: &Pod) -> Result<Sizes, NotBytes> {
    sizes(container_resources(pod).requests)
}

fn sizes(requests: Amounts) -> Result<Sizes, NotBytes> {
    let memory = requests.into_iter().filter(|(name, _)| is_memory(name));
    let memory = memory.filter(|(_, amount)| !amount.is_zero() && !amount.is_negative());
    memory
        .map(|(name, amount)| match u64::try_from(amount.value()) {
            Ok(bytes) if amount.is_whole() => Ok((name, bytes)),
            _ => Err(NotBytes),
        })
        .collect()
}

pub(super) fn is_memory(resource: &str) -> bool {
    resource == MEMORY || is_hugepages(resource)
}

pub(super) const MEMORY: &str = "memory";
