//! What a container and a pod ask for, as sums.
//!
//! Amounts that do not parse are left out: the API server and the decoding of static pods
//! both refuse them long before.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::containers::{init_containers, is_sidecar, regular_containers};
use super::spec;
use crate::config::quantity::{self, Quantity};

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Quantity>;

/// A resource list of the API, parsed.
pub fn amounts(list: Option<&BTreeMap<String, ApiQuantity>>) -> Amounts {
    let parsed = |(name, amount): (&String, &ApiQuantity)| Some((name.clone(), quantity::parse(&amount.0).ok()?));
    list.into_iter().flatten().filter_map(parsed).collect()
}

/// Requests and limits of one container or of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub requests: Amounts,
    pub limits: Amounts,
}

impl Resources {
    /// What is written, with each missing request taken from its limit, as the API server
    /// does for the pods that pass through it.
    pub fn of(requirements: Option<&ResourceRequirements>) -> Self {
        let Some(requirements) = requirements else {
            return Resources::default();
        };
        let limits = amounts(requirements.limits.as_ref());
        let mut requests = limits.clone();
        requests.extend(amounts(requirements.requests.as_ref()));
        Resources { requests, limits }
    }

    pub fn of_container(container: &Container) -> Self {
        Resources::of(container.resources.as_ref())
    }

    fn add(&mut self, other: &Resources) {
        add(&mut self.requests, &other.requests);
        add(&mut self.limits, &other.limits);
    }

    fn raise_to(&mut self, other: &Resources) {
        raise_to(&mut self.requests, &other.requests);
        raise_to(&mut self.limits, &other.limits);
    }
}

/// What the pod as a whole asks for, its overhead included.
pub fn pod_resources(pod: &Pod) -> Resources {
    let mut sum = pod_resources_without_overhead(pod);
    let overhead = amounts(spec(pod).overhead.as_ref());
    // The overhead raises a limit, it does not make one.
    for (name, limit) in &mut sum.limits {
        if let Some(amount) = overhead.get(name).filter(|_| !limit.is_zero()) {
            *limit = *limit + *amount;
        }
    }
    add(&mut sum.requests, &overhead);
    sum
}

/// The pod's containers, and what `spec.resources` says over their heads.
pub fn pod_resources_without_overhead(pod: &Pod) -> Resources {
    let mut sum = container_resources(pod);
    let pod_level = Resources::of(spec(pod).resources.as_ref());
    let counts = |name: &String| is_pod_level(name);
    sum.requests.extend(pod_level.requests.into_iter().filter(|(name, _)| counts(name)));
    sum.limits.extend(pod_level.limits.into_iter().filter(|(name, _)| counts(name)));
    sum
}

/// The most that the containers ask for at any moment of the pod's life: an ordinary init
/// container runs with the sidecars before it, regular containers run with all sidecars.
pub fn container_resources(pod: &Pod) -> Resources {
    let mut running = Resources::default();
    for container in regular_containers(pod) {
        running.add(&Resources::of_container(container));
    }
    let mut sidecars = Resources::default();
    let mut most_at_init = Resources::default();
    for container in init_containers(pod) {
        let own = Resources::of_container(container);
        let mut moment = sidecars.clone();
        moment.add(&own);
        most_at_init.raise_to(&moment);
        if is_sidecar(container) {
            running.add(&own);
            sidecars = moment;
        }
    }
    running.raise_to(&most_at_init);
    running
}

/// Whether `spec.resources` may speak for this resource.
pub fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_hugepages(name)
}

pub fn is_hugepages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Adds `more` to `sum`, name by name.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        sum.entry(name.clone()).and_modify(|sum| *sum = *sum + *amount).or_insert(*amount);
    }
}

fn raise_to(most: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        most.entry(name.clone()).and_modify(|most| *most = (*most).max(*amount)).or_insert(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod_yaml;

    fn text(amounts: &Amounts) -> String {
        amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    fn check(spec: &str, requests: &str, limits: &str) {
        let sum = pod_resources(&pod_yaml(&format!("spec: {{{spec}}}")));
        assert_eq!((text(&sum.requests).as_str(), text(&sum.limits).as_str()), (requests, limits), "{spec}");
    }

    fn asking(cpu: &str) -> String {
        format!("name: c, image: a, resources: {{requests: {{cpu: {cpu}}}}}")
    }

    #[test]
    fn regular_containers_add_up() {
        let (one, two) = (asking("1"), asking("500m"));
        check(&format!("containers: [{{{one}}}, {{{two}}}]"), "cpu=1500m", "");
        check("containers: [{name: c, image: a, resources: {limits: {memory: 1Gi}}}]", "memory=1Gi", "memory=1Gi");
        check(
            "containers: [{name: c, image: a, resources: {requests: {memory: 1Mi}, limits: {memory: 1Gi}}}]",
            "memory=1Mi",
            "memory=1Gi",
        );
        check("containers: [{name: c, image: a}]", "", "");
    }

    #[test]
    fn init_containers_count_by_their_worst_moment() {
        let sidecar = |cpu| format!("{}, restartPolicy: Always", asking(cpu));
        let check_init = |init: &[String], expected: &str| {
            let init: Vec<String> = init.iter().map(|container| format!("{{{container}}}")).collect();
            let regular = asking("1");
            check(&format!("initContainers: [{}], containers: [{{{regular}}}]", init.join(", ")), expected, "");
        };
        check_init(&[asking("500m")], "cpu=1");
        check_init(&[asking("3"), asking("2")], "cpu=3");
        check_init(&[sidecar("250m")], "cpu=1250m");
        check_init(&[sidecar("250m"), asking("2")], "cpu=2250m");
        check_init(&[asking("2"), sidecar("250m")], "cpu=2");
        check_init(&[sidecar("1"), asking("1"), sidecar("2")], "cpu=4");
    }

    #[test]
    fn pod_level_figures_replace_the_sum() {
        let one = asking("1");
        check(
            &format!("resources: {{requests: {{cpu: 3}}, limits: {{memory: 1Gi}}}}, containers: [{{{one}}}]"),
            "cpu=3 memory=1Gi",
            "memory=1Gi",
        );
        check(&format!("resources: {{requests: {{example.com/gpu: 3}}}}, containers: [{{{one}}}]"), "cpu=1", "");
    }

    #[test]
    fn overhead_is_added_to_requests_and_to_limits_that_exist() {
        check(
            "overhead: {cpu: 250m, memory: 10Mi},
             containers: [{name: c, image: a, resources: {requests: {cpu: 1}, limits: {cpu: 2}}}]",
            "cpu=1250m memory=10Mi",
            "cpu=2250m",
        );
    }
}
