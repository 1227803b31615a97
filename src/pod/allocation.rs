//! What a node has allocated to a pod, where that is other than what its spec wishes.
//!
//! An allocation has no type of its own: it is the pod with the resources in it that its
//! containers were given. So whoever sums, launches or tells resources needs not know that
//! there are wishes beside them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::containers::workload_containers;
use super::resources::{Amounts, Resources, amounts};
use super::spec;
use crate::config::quantity::{Quantity, parse};

/// The resources that a running pod may be given more or less of.
pub const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Whether the pod as a whole and every container in it wish for what they have in `allocated`.
pub fn is_allocated(pod: &Pod, allocated: &Pod) -> bool {
    let same = |wish: &Option<_>, has: &Option<_>| resizable(wish.as_ref()) == resizable(has.as_ref());
    same(&spec(pod).resources, &spec(allocated).resources)
        && workload_containers(pod)
            .all(|(_, wish)| find(allocated, &wish.name).is_none_or(|has| same(&wish.resources, &has.resources)))
}

/// The pod with what it has in `allocated`; the very same pod where that is what it wishes.
pub fn with_allocation(pod: &Arc<Pod>, allocated: &Pod) -> Arc<Pod> {
    if is_allocated(pod, allocated) {
        return pod.clone();
    }
    let changed =
        changed(pod, |container| Some(find(allocated, &container.name)?.resources.clone().unwrap_or_default()));
    with_pod_level(changed, spec(allocated).resources.clone())
}

/// The pod with other resources as a whole.
pub fn with_pod_level(mut pod: Arc<Pod>, resources: Option<ResourceRequirements>) -> Arc<Pod> {
    if let Some(spec) = &mut Arc::make_mut(&mut pod).spec {
        spec.resources = resources;
    }
    pod
}

/// What an earlier life of the agent allocated, as the pod's status tells it. Requests are
/// told as they were allocated. Limits are told as the runtime has them, so of a resize that
/// was cut off these may be the old ones; it is then decided once more.
pub fn of_status(pod: &Arc<Pod>) -> Arc<Pod> {
    let Some(status) = &pod.status else { return pod.clone() };
    let allocation = |container: &Container| {
        let told = told(status, &container.name)?;
        let shown = told.resources.as_ref()?;
        let wish = container.resources.clone().unwrap_or_default();
        Some(as_told(wish, told.allocated_resources.as_ref(), shown.limits.as_ref()))
    };
    let mut allocated = changed(pod, allocation);
    if let Some(resources) = pod_level_of_status(pod, status) {
        allocated = with_pod_level(allocated, Some(resources));
    }
    with_allocation(pod, &allocated)
}

/// The status tells what the pod takes in all, its overhead included. What it was allocated as
/// a whole is that for the resources of which it says something as a whole.
fn pod_level_of_status(pod: &Pod, status: &PodStatus) -> Option<ResourceRequirements> {
    let wish = spec(pod).resources.clone()?;
    let overhead = amounts(spec(pod).overhead.as_ref());
    let own = |told: &List, said: &Option<List>| -> List {
        let said = said.iter().flatten().filter_map(|(name, _)| Some((name, parse(&told.get(name)?.0).ok()?)));
        let without = |(name, told): (&String, Quantity)| {
            let amount = told - overhead.get(name).copied().unwrap_or(Quantity::ZERO);
            (name.clone(), ApiQuantity(amount.to_string()))
        };
        said.map(without).collect()
    };
    let requests = own(status.allocated_resources.as_ref()?, &wish.requests);
    let limits = own(status.resources.as_ref()?.limits.as_ref().unwrap_or(&List::new()), &wish.limits);
    Some(as_told(wish, Some(&requests), Some(&limits)))
}

type List = BTreeMap<String, ApiQuantity>;

/// What was allocated of `wish`, by the requests and the limits that were told.
fn as_told(wish: ResourceRequirements, allocated: Option<&List>, shown: Option<&List>) -> ResourceRequirements {
    let is_wish = RESIZABLE.iter().all(|name| {
        let amount = |list: Option<&List>| parse(&list?.get(*name)?.0).ok();
        amount(allocated) == amount(wish.requests.as_ref())
    });
    if is_wish {
        return wish;
    }
    let mut requests = wish.requests.unwrap_or_default();
    let mut limits = wish.limits.unwrap_or_default();
    for name in RESIZABLE {
        put(&mut requests, name, allocated);
        put(&mut limits, name, shown);
        // A limit of old must not be below a request of now.
        if let (Some(request), Some(limit)) = (requests.get(name), limits.get_mut(name))
            && parse(&limit.0).ok() < parse(&request.0).ok()
        {
            *limit = request.clone();
        }
    }
    let list = |amounts: List| Some(amounts).filter(|amounts| !amounts.is_empty());
    ResourceRequirements { requests: list(requests), limits: list(limits), claims: wish.claims }
}

/// A copy in which containers have the resources that `resources` gives them, if any.
pub fn changed(pod: &Pod, resources: impl Fn(&Container) -> Option<ResourceRequirements>) -> Arc<Pod> {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            if let Some(resources) = resources(container) {
                container.resources = Some(resources);
            }
        }
    }
    Arc::new(pod)
}

fn put(into: &mut List, name: &str, from: Option<&List>) {
    match from.and_then(|amounts| amounts.get(name)) {
        Some(amount) => into.insert(name.to_owned(), amount.clone()),
        None => into.remove(name),
    };
}

fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    workload_containers(pod).map(|(_, container)| container).find(|container| container.name == name)
}

/// What of this can be changed while the pod runs: requests and limits.
pub fn resizable(resources: Option<&ResourceRequirements>) -> (Amounts, Amounts) {
    let Resources { mut requests, mut limits } = Resources::of(resources);
    requests.retain(|name, _| RESIZABLE.contains(&name.as_str()));
    limits.retain(|name, _| RESIZABLE.contains(&name.as_str()));
    (requests, limits)
}

fn told<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    let lists = [&status.init_container_statuses, &status.container_statuses];
    lists.into_iter().flatten().flatten().find(|told| told.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod_yaml;

    fn pod(resources: &str, status: &str) -> Arc<Pod> {
        let statuses = match status {
            "" => String::new(),
            told => format!(
                ", status: {{containerStatuses: [{{name: c, {told}, image: a, imageID: b, ready: true, restartCount: 0}}]}}"
            ),
        };
        let spec = format!("containers: [{{name: c, image: a, resources: {{{resources}}}}}]");
        Arc::new(pod_yaml(&format!("{{spec: {{{spec}}}{statuses}}}")))
    }

    const TWO: &str = "requests: {cpu: '2'}, limits: {cpu: '2'}";
    const ONE: &str = "requests: {cpu: '1'}, limits: {cpu: '1'}";

    #[test]
    fn the_same_amount_in_other_words_is_no_other_wish() {
        assert!(is_allocated(&pod("requests: {cpu: 1000m}", ""), &pod("requests: {cpu: '1'}", "")));
        assert!(!is_allocated(&pod(TWO, ""), &pod(ONE, "")));
        assert!(!is_allocated(&pod("requests: {cpu: '1'}", ""), &pod(ONE, "")), "a limit more");
        assert!(is_allocated(&pod("requests: {ephemeral-storage: 1Gi}", ""), &pod("", "")), "never resized");
    }

    #[test]
    fn a_pod_that_has_what_it_wishes_is_not_copied() {
        let wish = pod(TWO, "");
        assert!(Arc::ptr_eq(&with_allocation(&wish, &pod(TWO, "")), &wish));
        assert!(is_allocated(&with_allocation(&wish, &pod(ONE, "")), &pod(ONE, "")));
        let nothing = Arc::new(pod_yaml("spec: {containers: [{name: c, image: a}]}"));
        assert!(is_allocated(&with_allocation(&wish, &nothing), &nothing));
    }

    #[test]
    fn a_status_tells_what_was_allocated() {
        let check = |wish: &str, told: &str, expected: &str| {
            let allocated = of_status(&pod(wish, told));
            assert!(is_allocated(&allocated, &pod(expected, "")), "{wish}, {told}: {:?}", allocated.spec);
        };
        check(TWO, "", TWO);
        // Nothing was told of resources: the container never existed.
        check(TWO, "started: false", TWO);
        // Deferred before the agent went away.
        check(TWO, &format!("allocatedResources: {{cpu: '1'}}, resources: {{{ONE}}}"), ONE);
        // Allocated, and not yet what the runtime has.
        check(TWO, &format!("allocatedResources: {{cpu: '2'}}, resources: {{{ONE}}}"), TWO);
        // Allocated before, and the wish is another one by now.
        check(
            "requests: {cpu: '3'}, limits: {cpu: '3'}",
            &format!("allocatedResources: {{cpu: '2'}}, resources: {{{ONE}}}"),
            TWO,
        );
        // It had nothing, and was told to have nothing.
        check("requests: {cpu: '1'}", "resources: {}", "");
    }

    #[test]
    fn a_status_tells_what_was_allocated_to_the_pod_as_a_whole() {
        let pod = |cpu: &str, status: &str| {
            let resources = format!("requests: {{cpu: {cpu}, memory: 1Gi}}, limits: {{cpu: {cpu}}}");
            let containers = "containers: [{name: c, image: a, resources: {requests: {cpu: '1', memory: 8Mi}}}]";
            let spec = format!("overhead: {{cpu: 250m}}, resources: {{{resources}}}, {containers}");
            Arc::new(pod_yaml(&format!("{{spec: {{{spec}}}, status: {{{status}}}}}")))
        };
        let check = |wish: &str, told: &str, expected: &str| {
            let allocated = of_status(&pod(wish, told));
            assert!(is_allocated(&allocated, &pod(expected, "")), "{wish}, {told}: {:?}", allocated.spec);
        };
        let of_old = "allocatedResources: {cpu: 2250m, memory: 1Gi}, resources: {limits: {cpu: 2250m}}";
        check("'3'", of_old, "'2'");
        check("'2'", of_old, "'2'");
        check("'3'", "", "'3'");
        assert!(!is_allocated(&pod("'3'", ""), &pod("'2'", "")));
        assert!(is_allocated(&with_allocation(&pod("'3'", ""), &pod("'2'", "")), &pod("'2'", "")));
    }
}
