//! Admission: whether this node takes a pod that was sent to it.
//!
//! The scheduler and the author of a `nodeName` decide from what they know; the node decides
//! from what is. [`judge`] is the decision, a pure function from the node, the pods that are
//! taken already and the new one. [`Admission`] is the ledger of those decisions: pods are
//! judged in the order of their creation, each once, and what was decided stays.
//!
//! The ledger also says what a pod has been given of CPU and memory. A pod that wishes for
//! other amounts (`resize.rs`) gets them when there is room; those that wait are looked at
//! again whenever some is freed.
//!
//! No task runs here. In: pods as the dispatcher learns of them, the node as the worker sees
//! it. Out: an [`Answer`] to the worker, and victims of preemption for the dispatcher.
//!
//! Always true: a pod that was taken in an earlier life of the agent is taken over, never
//! judged again; a refusal is for good; a pod that starts because others have to end waits
//! until they have ended.

mod affinity;
mod app_armor;
mod features;
mod fit;
mod judge;
mod ledger;
mod ports;
mod preemption;
mod resize;
mod sysctls;
mod taints;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1::{Node, Pod};

pub use judge::{Judgement, judge};
pub use ledger::{Admission, Answer};
pub use resize::{Allocation, INFEASIBLE};

use crate::config::FeatureGates;
use crate::pod::Source;
use crate::pod::resources::Amounts;
use crate::sources::mirror;

/// From this priority on nothing keeps a pod from the node but what cannot be changed.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What the operator and the machine say, for good.
#[derive(Clone, Debug, Default)]
pub struct AdmissionConfig {
    pub node_name: String,
    /// Names, or prefixes followed by `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// As `uname -r` has it; young sysctls need a kernel that keeps them in a namespace.
    pub kernel_version: String,
    pub app_armor: bool,
    /// Whether the CPU manager and the memory manager give pods places of their own.
    pub statics: [bool; 2],
    pub gates: FeatureGates,
}

/// The node as it is now.
#[derive(Clone, Copy)]
pub struct NodeFacts<'a> {
    pub config: &'a AdmissionConfig,
    pub node: &'a Node,
    pub allocatable: &'a Amounts,
    /// `None` until the runtime has said it.
    pub supplemental_groups_policy: Option<bool>,
}

/// Why the node does not take a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

impl Refusal {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Refusal { reason: reason.into(), message: message.into() }
    }

    fn predicate(name: &str, text: &str) -> Self {
        Refusal::new(name, format!("Predicate {name} failed: {text}"))
    }
}

/// Static pods, their mirrors and pods of a system priority.
pub fn is_critical(pod: &Pod, source: Source) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
    source.is_static() || mirror::is_mirror(pod) || priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY)
}
