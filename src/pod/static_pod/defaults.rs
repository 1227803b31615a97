//! What the API server would fill in.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, HTTPGetAction, Lifecycle, Pod, PodSpec, Probe, ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::pod::resources::{Amounts, Resources, container_resources, is_hugepages, is_pod_level};

const FILE_MODE: i32 = 0o644;
const TOKEN_SECONDS: i64 = 3600;

pub(super) fn fill_in(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    let host_network = spec.host_network == Some(true);
    let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    containers.for_each(|container| fill_in_container(container, host_network));
    spec.volumes.iter_mut().flatten().for_each(fill_in_volume);
    fill_in_spec(spec);
    fill_in_pod_level(pod);
}

fn fill_in_spec(spec: &mut PodSpec) {
    set(&mut spec.dns_policy, "ClusterFirst");
    set(&mut spec.restart_policy, "Always");
    set(&mut spec.scheduler_name, "default-scheduler");
    spec.security_context.get_or_insert_default();
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    // The old name of the field still counts.
    if spec.service_account_name.is_none() {
        spec.service_account_name = spec.service_account.clone();
    }
}

fn fill_in_container(container: &mut Container, host_network: bool) {
    let image = container.image.as_deref().unwrap_or_default();
    set(&mut container.image_pull_policy, if means_latest(image) { "Always" } else { "IfNotPresent" });
    set(&mut container.termination_message_path, "/dev/termination-log");
    set(&mut container.termination_message_policy, "File");
    for port in container.ports.iter_mut().flatten() {
        set(&mut port.protocol, "TCP");
        if host_network && port.host_port.unwrap_or_default() == 0 {
            port.host_port = Some(port.container_port);
        }
    }
    if let Some(resources) = &mut container.resources {
        fill_in_requests(resources);
    }
    let probes = [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    probes.into_iter().flatten().for_each(fill_in_probe);
    if let Some(lifecycle) = &mut container.lifecycle {
        fill_in_lifecycle(lifecycle);
    }
    for variable in container.env.iter_mut().flatten() {
        if let Some(field) = variable.value_from.as_mut().and_then(|source| source.field_ref.as_mut()) {
            set(&mut field.api_version, "v1");
        }
    }
}

fn fill_in_requests(resources: &mut ResourceRequirements) {
    let Some(limits) = &resources.limits else {
        return;
    };
    let requests = resources.requests.get_or_insert_default();
    for (name, limit) in limits {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
}

/// Where the pod as a whole says something about resources, the rest follows from what its
/// containers say.
fn fill_in_pod_level(pod: &mut Pod) {
    let Resources { requests: mut of_containers, limits: container_limits } = container_resources(pod);
    let resources = pod.spec.as_mut().and_then(|spec| spec.resources.as_mut());
    let Some(ResourceRequirements { limits, requests, .. }) = resources else {
        return;
    };
    if limits.iter().flatten().next().is_none() && requests.iter().flatten().next().is_none() {
        return;
    }
    // Huge pages cannot be overcommitted, so their limits add up to the pod's.
    let asked = |name: &String| requests.as_ref().is_some_and(|requests| requests.contains_key(name));
    let mut hugepages = container_limits;
    hugepages.retain(|name, _| is_hugepages(name) && !asked(name));
    fill_in_amounts(limits, &hugepages);
    let Some(limits) = limits.as_ref().filter(|limits| !limits.is_empty()) else {
        return;
    };
    of_containers.retain(|name, _| is_pod_level(name) && !is_hugepages(name));
    fill_in_amounts(requests, &of_containers);
    let requests = requests.get_or_insert_default();
    for (name, limit) in limits.iter().filter(|(name, _)| is_pod_level(name)) {
        requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
}

fn fill_in_amounts(list: &mut Option<BTreeMap<String, ApiQuantity>>, amounts: &Amounts) {
    if amounts.is_empty() {
        return;
    }
    let list = list.get_or_insert_default();
    for (name, amount) in amounts {
        list.entry(name.clone()).or_insert_with(|| ApiQuantity(amount.to_string()));
    }
}

fn fill_in_probe(probe: &mut Probe) {
    let at_least_one = |number: &mut Option<i32>, default| {
        if number.unwrap_or_default() == 0 {
            *number = Some(default);
        }
    };
    at_least_one(&mut probe.timeout_seconds, 1);
    at_least_one(&mut probe.period_seconds, 10);
    at_least_one(&mut probe.success_threshold, 1);
    at_least_one(&mut probe.failure_threshold, 3);
    if let Some(request) = &mut probe.http_get {
        fill_in_http_get(request);
    }
    if let Some(request) = &mut probe.grpc {
        request.service.get_or_insert_default();
    }
}

fn fill_in_lifecycle(lifecycle: &mut Lifecycle) {
    let handlers = [&mut lifecycle.post_start, &mut lifecycle.pre_stop];
    for request in handlers.into_iter().flatten().filter_map(|handler| handler.http_get.as_mut()) {
        fill_in_http_get(request);
    }
}

fn fill_in_http_get(request: &mut HTTPGetAction) {
    set(&mut request.path, "/");
    set(&mut request.scheme, "HTTP");
}

fn fill_in_volume(volume: &mut Volume) {
    if *volume == (Volume { name: volume.name.clone(), ..Volume::default() }) {
        volume.empty_dir = Some(Default::default());
    }
    if let Some(source) = &mut volume.host_path {
        source.type_.get_or_insert_default();
    }
    if let Some(source) = &mut volume.config_map {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.secret {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.downward_api {
        source.default_mode.get_or_insert(FILE_MODE);
        for field in source.items.iter_mut().flatten().filter_map(|item| item.field_ref.as_mut()) {
            set(&mut field.api_version, "v1");
        }
    }
    if let Some(source) = &mut volume.image {
        let reference = source.reference.as_deref().unwrap_or_default();
        set(&mut source.pull_policy, if means_latest(reference) { "Always" } else { "IfNotPresent" });
    }
    if let Some(source) = &mut volume.projected {
        source.default_mode.get_or_insert(FILE_MODE);
        for part in source.sources.iter_mut().flatten() {
            if let Some(token) = &mut part.service_account_token {
                token.expiration_seconds.get_or_insert(TOKEN_SECONDS);
            }
            let items = part.downward_api.as_mut().and_then(|source| source.items.as_mut());
            for field in items.into_iter().flatten().filter_map(|item| item.field_ref.as_mut()) {
                set(&mut field.api_version, "v1");
            }
        }
    }
}

/// Whether an image reference may mean another image tomorrow: its tag is `latest`, or it
/// has neither tag nor digest.
fn means_latest(image: &str) -> bool {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none() && !image.is_empty(),
    }
}

/// An empty text counts as none.
fn set(field: &mut Option<String>, default: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(default.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_without_a_fixed_tag_are_pulled_always() {
        let check = |image: &str, latest: bool| assert_eq!(means_latest(image), latest, "{image}");
        check("busybox", true);
        check("busybox:latest", true);
        check("busybox:1.36", false);
        check("registry:5000/busybox", true);
        check("registry:5000/a/busybox:1", false);
        check("busybox@sha256:0123", false);
        check("busybox:latest@sha256:0123", true);
        check("busybox:1@sha256:0123", false);
    }
}
