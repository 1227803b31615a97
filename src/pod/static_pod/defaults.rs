//! What the API server would fill in.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, HTTPGetAction, Lifecycle, Pod, PodSpec, Probe, ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::pod::resources::{container_resources, is_pod_level};

const FILE_MODE: i32 = 0o644;
const TOKEN_SECONDS: i64 = 3600;

pub(super) fn fill_in(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    let host_network = spec.host_network == Some(true);
    let containers = spec
        .init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers);
    containers.for_each(|container| fill_in_container(container, host_network));
    spec.volumes.iter_mut().flatten().for_each(fill_in_volume);
    fill_in_spec(spec);
    fill_in_pod_requests(pod);
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
    set(
        &mut container.image_pull_policy,
        if means_latest(image) {
            "Always"
        } else {
            "IfNotPresent"
        },
    );
    set(
        &mut container.termination_message_path,
        "/dev/termination-log",
    );
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
    let probes = [
        &mut container.liveness_probe,
        &mut container.readiness_probe,
        &mut container.startup_probe,
    ];
    probes.into_iter().flatten().for_each(fill_in_probe);
    if let Some(lifecycle) = &mut container.lifecycle {
        fill_in_lifecycle(lifecycle);
    }
    for variable in container.env.iter_mut().flatten() {
        if let Some(field) = variable
            .value_from
            .as_mut()
            .and_then(|source| source.field_ref.as_mut())
        {
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
        requests
            .entry(name.clone())
            .or_insert_with(|| limit.clone());
    }
}

/// A pod-level limit without a request asks for what the containers do, or else for itself.
fn fill_in_pod_requests(pod: &mut Pod) {
    let of_containers = container_resources(pod).requests;
    let resources = pod.spec.as_mut().and_then(|spec| spec.resources.as_mut());
    let Some(ResourceRequirements {
        limits: Some(limits),
        requests,
        ..
    }) = resources
    else {
        return;
    };
    let requests: &mut BTreeMap<String, ApiQuantity> = requests.get_or_insert_default();
    for (name, limit) in limits.iter().filter(|(name, _)| is_pod_level(name)) {
        let sum = of_containers
            .get(name)
            .map(|sum| ApiQuantity(sum.to_string()));
        requests
            .entry(name.clone())
            .or_insert_with(|| sum.unwrap_or_else(|| limit.clone()));
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
    for request in handlers
        .into_iter()
        .flatten()
        .filter_map(|handler| handler.http_get.as_mut())
    {
        fill_in_http_get(request);
    }
}

fn fill_in_http_get(request: &mut HTTPGetAction) {
    set(&mut request.path, "/");
    set(&mut request.scheme, "HTTP");
}

fn fill_in_volume(volume: &mut Volume) {
    if *volume
        == (Volume {
            name: volume.name.clone(),
            ..Volume::default()
        })
    {
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
        for field in source
            .items
            .iter_mut()
            .flatten()
            .filter_map(|item| item.field_ref.as_mut())
        {
            set(&mut field.api_version, "v1");
        }
    }
    if let Some(source) = &mut volume.image {
        let reference = source.reference.as_deref().unwrap_or_default();
        set(
            &mut source.pull_policy,
            if means_latest(reference) {
                "Always"
            } else {
                "IfNotPresent"
            },
        );
    }
    if let Some(source) = &mut volume.projected {
        source.default_mode.get_or_insert(FILE_MODE);
        for part in source.sources.iter_mut().flatten() {
            if let Some(token) = &mut part.service_account_token {
                token.expiration_seconds.get_or_insert(TOKEN_SECONDS);
            }
            let items = part
                .downward_api
                .as_mut()
                .and_then(|source| source.items.as_mut());
            for field in items
                .into_iter()
                .flatten()
                .filter_map(|item| item.field_ref.as_mut())
            {
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
