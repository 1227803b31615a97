//! What the runtime is told of a sandbox.

use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use super::annotations::sandbox_labels;
use super::cgroups::cgroup_parent;
use super::resources::{overhead_resources, sandbox_resources};
use super::security::sandbox_security;
use super::{LaunchConfig, LaunchError};
use crate::cri::{DnsConfig, IdRange, PortMapping, Protocol, SandboxConfig};
use crate::pod::containers::regular_containers;
use crate::pod::dns::{DnsWarning, Resolver, pod_resolver};
use crate::pod::hosts::PodHostname;
use crate::pod::sysctls::dotted;
use crate::pod::{PodRef, log_directory_name, spec};

/// What a sandbox depends on besides its pod.
#[derive(Clone, Copy, Debug)]
pub struct SandboxInputs<'a> {
    /// Counts the sandboxes of this pod.
    pub attempt: u32,
    /// What the node itself asks for names: its `resolvConf`, or
    /// [`loopback_resolver`](crate::pod::dns::loopback_resolver).
    pub resolver: &'a Resolver,
    /// Of the pod's RuntimeClass; empty is the default one.
    pub runtime_handler: &'a str,
    /// The pod's own user ids, if it is to have any.
    pub users: Option<IdRange>,
    pub config: &'a LaunchConfig,
}

/// The configuration of a pod's sandbox, and what its owner should be told of it.
pub fn sandbox_config(pod: &Pod, inputs: SandboxInputs<'_>) -> Result<(SandboxConfig, Vec<DnsWarning>), LaunchError> {
    let SandboxInputs { attempt, resolver, runtime_handler, users, config } = inputs;
    let spec = spec(pod);
    let reference = PodRef::of(pod);
    // On the host's network the node's own name applies.
    let hostname = match spec.host_network {
        Some(true) => String::new(),
        _ => PodHostname::of(pod, &config.cluster_dns.domain)?.for_kernel(pod)?,
    };
    let (resolver, warnings) = pod_resolver(pod, &config.cluster_dns, resolver);
    let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.as_ref());
    let sandbox = SandboxConfig {
        log_directory: config.pod_logs_dir.join(log_directory_name(&reference)).to_string_lossy().into_owned(),
        pod_name: reference.name,
        pod_namespace: reference.namespace,
        pod_uid: reference.uid.to_string(),
        attempt,
        hostname,
        dns: Some(DnsConfig { servers: resolver.servers, searches: resolver.searches, options: resolver.options }),
        port_mappings: regular_containers(pod)
            .iter()
            .flat_map(|container| container.ports.iter().flatten())
            .map(port_mapping)
            .collect(),
        labels: sandbox_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: cgroup_parent(pod, &config.cgroups),
        sysctls: sysctls.into_iter().flatten().map(|sysctl| (dotted(&sysctl.name), sysctl.value.clone())).collect(),
        security: sandbox_security(pod, users)?,
        resources: Some(sandbox_resources(pod, config)),
        overhead: Some(overhead_resources(pod, config)),
        runtime_handler: runtime_handler.to_owned(),
    };
    Ok((sandbox, warnings))
}

fn port_mapping(port: &ContainerPort) -> PortMapping {
    PortMapping {
        protocol: match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        },
        container_port: port.container_port,
        host_port: port.host_port.unwrap_or_default(),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    }
}
