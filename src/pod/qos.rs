//! The quality-of-service class: who is squeezed first when memory runs out.

use std::fmt;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use super::containers::workload_containers;
use super::resources::{self, Amounts, Resources};
use super::spec;
use crate::config::quantity::Quantity;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QosClass {
    BestEffort,
    Burstable,
    Guaranteed,
}

impl QosClass {
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::BestEffort => "BestEffort",
            QosClass::Burstable => "Burstable",
            QosClass::Guaranteed => "Guaranteed",
        }
    }
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The class of a pod. What its status says stands: the class of a pod never changes, and
/// its cgroup was chosen by it.
pub fn class(pod: &Pod) -> QosClass {
    match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => QosClass::Guaranteed,
        Some("Burstable") => QosClass::Burstable,
        Some("BestEffort") => QosClass::BestEffort,
        _ => class_of_spec(pod),
    }
}

fn class_of_spec(pod: &Pod) -> QosClass {
    let mut sum = Resources::default();
    let mut all_limited = true;
    let mut count = |resources: Option<&ResourceRequirements>| {
        let own = Resources::of(resources);
        let own = Resources { requests: counted(own.requests), limits: counted(own.limits) };
        all_limited &= own.limits.len() == COUNTED.len();
        resources::add(&mut sum.requests, &own.requests);
        resources::add(&mut sum.limits, &own.limits);
    };
    match &spec(pod).resources {
        // Pod-level figures speak for the whole pod, even where they are left empty.
        Some(pod_level) => count(Some(pod_level)),
        None => workload_containers(pod).for_each(|(_, container)| count(container.resources.as_ref())),
    }
    if sum.requests.is_empty() && sum.limits.is_empty() {
        QosClass::BestEffort
    } else if all_limited && sum.requests == sum.limits {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

const COUNTED: [&str; 2] = ["cpu", "memory"];

/// Only positive amounts of CPU and memory decide the class.
fn counted(mut amounts: Amounts) -> Amounts {
    amounts.retain(|name, amount| COUNTED.contains(&name.as_str()) && *amount > Quantity::ZERO);
    amounts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod_yaml;

    fn check(resources: &[&str], expected: QosClass) {
        let containers: String = resources
            .iter()
            .enumerate()
            .map(|(n, resources)| format!("  - {{name: c{n}, image: a, resources: {{{resources}}}}}\n"))
            .collect();
        let pod = pod_yaml(&format!("spec:\n  containers:\n{containers}"));
        assert_eq!(class(&pod), expected, "{resources:?}");
    }

    const FULL: &str = "requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1, memory: 1Gi}";

    #[test]
    fn containers_decide_the_class() {
        check(&[""], QosClass::BestEffort);
        check(&["requests: {cpu: 0, memory: 0}"], QosClass::BestEffort);
        check(&["requests: {nvidia.com/gpu: 1}, limits: {nvidia.com/gpu: 1}"], QosClass::BestEffort);
        check(&["requests: {cpu: 100m}"], QosClass::Burstable);
        check(&["limits: {cpu: 100m}"], QosClass::Burstable);
        check(&[FULL], QosClass::Guaranteed);
        check(&["requests: {cpu: 1000m, memory: 1024Mi}, limits: {cpu: 1, memory: 1Gi}"], QosClass::Guaranteed);
        check(&[FULL, FULL], QosClass::Guaranteed);
        check(&[FULL, ""], QosClass::Burstable);
        check(&[FULL, "requests: {cpu: 1}"], QosClass::Burstable);
        check(&["limits: {cpu: 1, memory: 1Gi}"], QosClass::Guaranteed);
        check(&["requests: {cpu: 1, memory: 1Mi}, limits: {cpu: 1, memory: 1Gi}"], QosClass::Burstable);
        check(&["requests: {cpu: 1}, limits: {cpu: 1}"], QosClass::Burstable);
    }

    #[test]
    fn init_containers_count_and_ephemeral_ones_do_not() {
        let with = |list: &str| {
            pod_yaml(&format!(
                "spec: {{containers: [{{name: c, image: a, resources: {{{FULL}}}}}], {list}: [{{name: d, image: a}}]}}"
            ))
        };
        assert_eq!(class(&with("initContainers")), QosClass::Burstable);
        assert_eq!(class(&with("ephemeralContainers")), QosClass::Guaranteed);
    }

    #[test]
    fn pod_level_resources_override_the_containers() {
        let check = |pod_level: &str, container: &str, expected| {
            let pod = pod_yaml(&format!(
                "spec: {{resources: {{{pod_level}}}, containers: [{{name: c, image: a, resources: {{{container}}}}}]}}"
            ));
            assert_eq!(class(&pod), expected, "{pod_level} over {container}");
        };
        check(FULL, "", QosClass::Guaranteed);
        check(FULL, "requests: {cpu: 100m}", QosClass::Guaranteed);
        check("requests: {cpu: 1}", FULL, QosClass::Burstable);
        check("", FULL, QosClass::BestEffort);
    }

    #[test]
    fn a_class_in_the_status_stands() {
        let pod = pod_yaml("{spec: {containers: [{name: c, image: a}]}, status: {qosClass: Burstable}}");
        assert_eq!(class(&pod), QosClass::Burstable);
    }
}
