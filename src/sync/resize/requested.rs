//! What a change of a pod's spec asks for, for those who count.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::config::quantity;
use crate::metrics;
use crate::pod::containers::workload_containers;

/// Resource, requirement, operation.
type Change = (&'static str, &'static str, &'static str);

pub fn count_wishes(before: &Pod, now: &Pod) {
    for (resource, requirement, operation) in changes(before, now) {
        metrics::resizes::REQUESTED.add([resource, requirement, operation]);
    }
}

fn changes(before: &Pod, now: &Pod) -> Vec<Change> {
    let of_before: BTreeMap<&str, &Container> =
        workload_containers(before).map(|(_, container)| (container.name.as_str(), container)).collect();
    let pairs = workload_containers(now).filter_map(|(_, now)| Some((*of_before.get(now.name.as_str())?, now)));
    pairs.flat_map(|(before, now)| of_container(before, now)).collect()
}

fn of_container(before: &Container, now: &Container) -> Vec<Change> {
    let amount = |container: &Container, resource: &str, requirement: &str| {
        let resources = container.resources.as_ref()?;
        let list: &BTreeMap<String, ApiQuantity> = match requirement {
            "requests" => resources.requests.as_ref()?,
            _ => resources.limits.as_ref()?,
        };
        quantity::parse(&list.get(resource)?.0).ok().map(|quantity| quantity.milli_value())
    };
    let mut changes = Vec::new();
    for resource in ["cpu", "memory"] {
        for requirement in ["requests", "limits"] {
            let operation = match (amount(before, resource, requirement), amount(now, resource, requirement)) {
                (None, Some(_)) => "add",
                (Some(_), None) => "remove",
                (Some(before), Some(now)) if now > before => "increase",
                (Some(before), Some(now)) if now < before => "decrease",
                _ => continue,
            };
            changes.push((resource, requirement, operation));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::yaml;

    #[test]
    fn each_amount_that_changes_is_a_wish() {
        let pod = |resources: &str| -> Pod {
            yaml(&format!("{{spec: {{containers: [{{name: a, image: i, resources: {resources}}}]}}}}"))
        };
        let check = |before: &str, now: &str, expected: &[Change]| {
            assert_eq!(changes(&pod(before), &pod(now)), expected, "{before} {now}");
        };
        let small = "{requests: {cpu: 100m, memory: 1Gi}, limits: {cpu: '1'}}";
        check(small, "{requests: {cpu: '0.1', memory: 1024Mi}, limits: {cpu: 1000m}}", &[]);
        check(
            small,
            "{requests: {cpu: 200m, memory: 1Mi}, limits: {memory: 2Gi}}",
            &[
                ("cpu", "requests", "increase"),
                ("cpu", "limits", "remove"),
                ("memory", "requests", "decrease"),
                ("memory", "limits", "add"),
            ],
        );
    }
}
