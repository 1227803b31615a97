//! What makes a pod impossible to run, or to show in the API, found before it is tried.
//!
//! The API server checks more. What is not checked here fails later, in the runtime or when
//! the mirror pod is made, and says so then.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvVar, Pod, PodSpec, Probe, ResourceRequirements, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde_json::Value;

use super::Problem;
use crate::config::quantity;
use crate::pod::containers::is_sidecar;
use crate::pod::names;
use crate::pod::references::References;
use crate::pod::resources::{Resources, container_resources};
use crate::pod::spec;

/// All that is wrong, in the order of the manifest.
pub(super) fn problems(pod: &Pod, node_name: &str, may_need_api: bool) -> Vec<Problem> {
    let mut found = Findings::default();
    metadata(&mut found, pod, node_name);
    pod_spec(&mut found, spec(pod));
    pod_level_resources(&mut found, pod);
    api_references(&mut found, pod, may_need_api);
    found.problems
}

#[derive(Default)]
struct Findings {
    problems: Vec<Problem>,
}

impl Findings {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { field: field.into(), message: message.into() });
    }

    fn check(&mut self, field: impl Into<String>, checked: Result<(), &'static str>) {
        if let Err(message) = checked {
            self.add(field, message);
        }
    }

    fn one_of(&mut self, field: String, value: Option<&str>, allowed: &[&str]) {
        if let Some(value) = value.filter(|value| !value.is_empty() && !allowed.contains(value)) {
            self.add(field, format!("{value:?} is not one of {}", allowed.join(", ")));
        }
    }
}

/// Room for a UUID, and for whatever a person might write instead.
const UID_BYTES_MAX: usize = 63;

fn metadata(found: &mut Findings, pod: &Pod, node_name: &str) {
    let metadata = &pod.metadata;
    match metadata.name.as_deref() {
        None | Some("") => found.add("metadata.name", "is required"),
        Some(name) => {
            if let Err(message) = names::dns_subdomain(name) {
                let behind = format!("with the node's name {node_name:?} behind it, it {message}");
                found.add("metadata.name", behind);
            }
        }
    }
    // It names directories and cgroups.
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    if uid.len() > UID_BYTES_MAX || !uid.chars().all(plain) {
        found.add("metadata.uid", format!("{uid:?} is not up to {UID_BYTES_MAX} letters, digits, '-' and '_'"));
    }
    found.check("metadata.namespace", names::dns_label(metadata.namespace.as_deref().unwrap_or_default()));
    for (key, value) in metadata.labels.iter().flatten() {
        found.check(format!("metadata.labels[{key}]"), names::qualified_name(key));
        found.check(format!("metadata.labels[{key}]"), names::label_value(value));
    }
    for key in metadata.annotations.iter().flatten().map(|(key, _)| key) {
        found.check(format!("metadata.annotations[{key}]"), names::qualified_name(&key.to_ascii_lowercase()));
    }
}

fn pod_spec(found: &mut Findings, spec: &PodSpec) {
    found.one_of("spec.restartPolicy".into(), spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"]);
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    found.one_of("spec.dnsPolicy".into(), spec.dns_policy.as_deref(), &policies);
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        found.add("spec.terminationGracePeriodSeconds", "must not be negative");
    }
    if spec.active_deadline_seconds.is_some_and(|seconds| seconds < 1) {
        found.add("spec.activeDeadlineSeconds", "must be at least 1");
    }
    if spec.host_pid == Some(true) && spec.share_process_namespace == Some(true) {
        found.add("spec.shareProcessNamespace", "must not be set together with hostPID");
    }
    let volumes = volumes(found, spec.volumes.as_deref().unwrap_or_default());

    if spec.containers.is_empty() {
        found.add("spec.containers", "at least one container is required");
    }
    if spec.ephemeral_containers.iter().flatten().next().is_some() {
        found.add("spec.ephemeralContainers", "a pod cannot be created with ephemeral containers");
    }
    let mut names = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    let host_network = spec.host_network == Some(true);
    for (index, one) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{index}]");
        container(found, &path, one, &mut names, &volumes);
        // They run one after another, so they may share ports.
        ports(found, &path, one, host_network, &mut BTreeSet::new());
        if !is_sidecar(one) {
            let hooks = [
                ("livenessProbe", one.liveness_probe.is_some()),
                ("readinessProbe", one.readiness_probe.is_some()),
                ("startupProbe", one.startup_probe.is_some()),
                ("lifecycle", one.lifecycle.is_some()),
            ];
            for (field, _) in hooks.iter().filter(|(_, set)| *set) {
                found.add(
                    format!("{path}.{field}"),
                    "must not be set on an init container without restartPolicy Always",
                );
            }
        }
    }
    for (index, one) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{index}]");
        container(found, &path, one, &mut names, &volumes);
        ports(found, &path, one, host_network, &mut host_ports);
    }
}

fn container<'a>(
    found: &mut Findings,
    path: &str,
    container: &'a Container,
    names: &mut BTreeSet<&'a str>,
    volumes: &BTreeSet<&str>,
) {
    found.check(format!("{path}.name"), names::dns_label(&container.name));
    if !names.insert(&container.name) {
        found.add(format!("{path}.name"), format!("another container is called {:?} too", container.name));
    }
    match container.image.as_deref() {
        None | Some("") => found.add(format!("{path}.image"), "is required"),
        Some(image) if image.trim() != image => {
            found.add(format!("{path}.image"), "must not begin or end with a blank")
        }
        Some(_) => {}
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    found.one_of(format!("{path}.imagePullPolicy"), container.image_pull_policy.as_deref(), &policies);
    let policies = ["File", "FallbackToLogsOnError"];
    found.one_of(
        format!("{path}.terminationMessagePolicy"),
        container.termination_message_policy.as_deref(),
        &policies,
    );
    for (index, variable) in container.env.iter().flatten().enumerate() {
        env_var(found, &format!("{path}.env[{index}]"), variable);
    }
    if let Some(resources) = &container.resources {
        requirements(found, &format!("{path}.resources"), resources);
    }
    let mut mount_paths = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        if !volumes.contains(mount.name.as_str()) {
            found.add(format!("{path}.name"), format!("the pod has no volume {:?}", mount.name));
        }
        if mount.mount_path.is_empty() {
            found.add(format!("{path}.mountPath"), "is required");
        } else if !mount_paths.insert(&mount.mount_path) {
            found.add(format!("{path}.mountPath"), format!("{:?} is mounted twice", mount.mount_path));
        }
        for (field, sub_path) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
            let sub_path = sub_path.as_deref().unwrap_or_default();
            if sub_path.starts_with('/') || sub_path.split('/').any(|part| part == "..") {
                found.add(format!("{path}.{field}"), "must be a relative path without \"..\"");
            }
        }
    }
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        if probe.as_ref().is_some_and(|probe| handlers(probe) != 1) {
            found.add(format!("{path}.{name}"), "must have exactly one of exec, grpc, httpGet, tcpSocket");
        }
    }
}

fn handlers(probe: &Probe) -> usize {
    [probe.exec.is_some(), probe.grpc.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some()]
        .iter()
        .filter(|set| **set)
        .count()
}

fn env_var(found: &mut Findings, path: &str, variable: &EnvVar) {
    found.check(format!("{path}.name"), names::env_var(&variable.name));
    let literal = variable.value.as_deref().is_some_and(|value| !value.is_empty());
    if literal && variable.value_from.is_some() {
        found.add(format!("{path}.valueFrom"), "must not be set together with value");
    }
}

fn ports<'a>(
    found: &mut Findings,
    path: &str,
    container: &'a Container,
    host_network: bool,
    taken: &mut BTreeSet<(i32, &'a str, &'a str)>,
) {
    let allowed = 1..=65535;
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let path = format!("{path}.ports[{index}]");
        if !allowed.contains(&port.container_port) {
            found.add(format!("{path}.containerPort"), "must be between 1 and 65535");
        }
        found.one_of(format!("{path}.protocol"), port.protocol.as_deref(), &["TCP", "UDP", "SCTP"]);
        let ContainerPort { host_port: Some(host_port @ 1..), .. } = port else {
            continue;
        };
        if !allowed.contains(host_port) {
            found.add(format!("{path}.hostPort"), "must be between 1 and 65535");
        }
        if host_network && *host_port != port.container_port {
            found.add(format!("{path}.hostPort"), "must be the containerPort on the host's network");
        }
        let text = |field: &'a Option<String>| field.as_deref().unwrap_or_default();
        if !taken.insert((*host_port, text(&port.protocol), text(&port.host_ip))) {
            found.add(format!("{path}.hostPort"), format!("port {host_port} is taken twice"));
        }
    }
}

fn requirements(found: &mut Findings, path: &str, resources: &ResourceRequirements) {
    let limits = quantities(found, &format!("{path}.limits"), resources.limits.as_ref());
    let requests = quantities(found, &format!("{path}.requests"), resources.requests.as_ref());
    for (name, request) in requests {
        if limits.get(name).is_some_and(|limit| request > *limit) {
            found.add(format!("{path}.requests[{name}]"), "must not be more than the limit");
        }
    }
}

/// The figures of the pod as a whole leave room for its containers.
fn pod_level_resources(found: &mut Findings, pod: &Pod) {
    let Some(resources) = &spec(pod).resources else {
        return;
    };
    requirements(found, "spec.resources", resources);
    let own = Resources::of(Some(resources));
    for (name, needed) in container_resources(pod).requests {
        if own.requests.get(&name).is_some_and(|own| *own < needed) {
            let field = format!("spec.resources.requests[{name}]");
            found.add(field, format!("must not be less than the {needed} that the containers ask for"));
        }
    }
}

fn quantities<'a>(
    found: &mut Findings,
    path: &str,
    list: Option<&'a BTreeMap<String, ApiQuantity>>,
) -> BTreeMap<&'a str, quantity::Quantity> {
    let mut parsed = BTreeMap::new();
    for (name, text) in list.into_iter().flatten() {
        match quantity::parse(&text.0) {
            Ok(amount) if amount.is_negative() => found.add(format!("{path}[{name}]"), "must not be negative"),
            Ok(amount) => {
                parsed.insert(name.as_str(), amount);
            }
            Err(error) => found.add(format!("{path}[{name}]"), error.to_string()),
        }
    }
    parsed
}

/// Checks the volumes and returns their names.
fn volumes<'a>(found: &mut Findings, volumes: &'a [Volume]) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("spec.volumes[{index}]");
        found.check(format!("{path}.name"), names::dns_label(&volume.name));
        if !names.insert(volume.name.as_str()) {
            found.add(format!("{path}.name"), format!("another volume is called {:?} too", volume.name));
        }
        let sources = source_names(volume);
        if sources.len() > 1 {
            found.add(path.clone(), format!("has more than one source: {}", sources.join(", ")));
        }
        if let Some(host_path) = &volume.host_path {
            let path = format!("{path}.hostPath.path");
            if host_path.path.is_empty() {
                found.add(path, "is required");
            } else if host_path.path.split('/').any(|part| part == "..") {
                found.add(path, "must not contain \"..\"");
            }
        }
    }
    names
}

/// A volume is its name and, by another key each, its sources.
fn source_names(volume: &Volume) -> Vec<String> {
    let Ok(Value::Object(fields)) = serde_json::to_value(volume) else {
        return Vec::new();
    };
    fields.into_iter().map(|(key, _)| key).filter(|key| key != "name").collect()
}

/// What nothing but the API server has is refused even where the rest of it is not, as upstream does.
const NEVER_SERVED: &[&str] = &["resourceclaims", "clustertrustbundles"];

/// A static pod must run without an API server, so it may not need one.
fn api_references(found: &mut Findings, pod: &Pod, may_need_api: bool) {
    let spec = spec(pod);
    let mut refuse = |field: String, what: &str| {
        if !may_need_api || NEVER_SERVED.contains(&what) {
            found.add(field, format!("static pods may not reference {what}"));
        }
    };
    if spec.service_account_name.as_deref().is_some_and(|name| !name.is_empty()) {
        refuse("spec.serviceAccountName".into(), "serviceaccounts");
    }
    if spec.resource_claims.iter().flatten().next().is_some() {
        refuse("spec.resourceClaims".into(), "resourceclaims");
    }
    if spec.image_pull_secrets.iter().flatten().next().is_some() {
        refuse("spec.imagePullSecrets".into(), "secrets");
    }
    let init = spec.init_containers.iter().flatten().enumerate().map(|(n, c)| (format!("spec.initContainers[{n}]"), c));
    let regular = spec.containers.iter().enumerate().map(|(n, c)| (format!("spec.containers[{n}]"), c));
    for (path, container) in init.chain(regular) {
        let References { config_maps, secrets } = References::of_env(container);
        if !config_maps.is_empty() {
            refuse(path.clone(), "configmaps");
        }
        if !secrets.is_empty() {
            refuse(path, "secrets");
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        for (source, what) in api_sources(volume) {
            refuse(format!("spec.volumes[{index}].{source}"), what);
        }
    }
}

/// Sources of a volume that the API server must be asked for.
fn api_sources(volume: &Volume) -> Vec<(&'static str, &'static str)> {
    let mut needed = vec![
        ("configMap", "configmaps (via configmap volumes)", volume.config_map.is_some()),
        ("secret", "secrets (via secret volumes)", volume.secret.is_some()),
        ("csi", "csidrivers (via CSI volumes)", volume.csi.is_some()),
        ("glusterfs", "endpoints (via glusterFS volumes)", volume.glusterfs.is_some()),
        ("persistentVolumeClaim", "persistentvolumeclaims", volume.persistent_volume_claim.is_some()),
        ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)", volume.ephemeral.is_some()),
        ("azureFile", "secrets (via azureFile volumes)", volume.azure_file.is_some()),
    ];
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    for source in projected {
        needed.extend([
            ("projected", "configmaps (via projected volumes)", source.config_map.is_some()),
            ("projected", "secrets (via projected volumes)", source.secret.is_some()),
            ("projected", "serviceaccounts (via projected volumes)", source.service_account_token.is_some()),
            ("projected", "clustertrustbundles", source.cluster_trust_bundle.is_some()),
            ("projected", "podcertificates", source.pod_certificate.is_some()),
        ]);
    }
    needed.into_iter().filter(|(_, _, set)| *set).map(|(source, what, _)| (source, what)).collect()
}
