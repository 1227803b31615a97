//! The part of the configuration that is about the node.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

use crate::config::{FeatureGates, NodeIp, Quantity, Settings, Thresholds};

#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The name of the Node, also its host-name label and address.
    pub name: String,
    /// Without this the Node is used if somebody else made it.
    pub register: bool,
    pub node_ip: NodeIp,
    /// Addresses and the removal of the first taint are a cloud controller's business.
    pub external_cloud_provider: bool,
    /// Given by the operator; they win over the default ones.
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub provider_id: String,
    pub controller_attach_detach: bool,
    pub local_storage_isolation: bool,
    pub max_pods: u32,
    /// Zero for no such limit.
    pub pods_per_core: u32,
    pub reserved: Reserved,
    pub status_update_frequency: Duration,
    pub status_report_frequency: Duration,
    pub lease_duration_seconds: i32,
    /// Where the agent's API listens, for the Node's daemon endpoint.
    pub port: u16,
    pub version: String,
    /// For the runtime, where no controller gives this node one.
    pub pod_cidr: String,
    pub gates: FeatureGates,
}

/// What pods may not have of the machine.
#[derive(Clone, Debug, Default)]
pub struct Reserved {
    pub system: BTreeMap<String, Quantity>,
    pub kube: BTreeMap<String, Quantity>,
    /// CPUs set aside by number, which replace both CPU amounts.
    pub cpus: Option<u32>,
    /// Hard eviction thresholds; they keep as much out of pods' reach.
    pub eviction: Thresholds,
}

impl NodeConfig {
    /// `host_name` is the machine's own.
    pub fn of(settings: &Settings, host_name: &str) -> Self {
        let (flags, kubelet) = (&settings.flags, &settings.kubelet);
        let cpus = kubelet.reserved_system_cpus.len();
        NodeConfig {
            name: flags.hostname_override.clone().unwrap_or_else(|| host_name.trim().to_lowercase()),
            register: kubelet.register_node,
            node_ip: flags.node_ip,
            external_cloud_provider: flags.cloud_provider_external,
            labels: flags.node_labels.clone(),
            taints: kubelet.register_with_taints.clone(),
            provider_id: kubelet.provider_id.clone(),
            controller_attach_detach: kubelet.enable_controller_attach_detach,
            local_storage_isolation: kubelet.local_storage_capacity_isolation,
            max_pods: kubelet.max_pods,
            pods_per_core: kubelet.pods_per_core,
            reserved: Reserved {
                system: kubelet.system_reserved.clone(),
                kube: kubelet.kube_reserved.clone(),
                cpus: u32::try_from(cpus).ok().filter(|&cpus| cpus > 0),
                eviction: match flags.allocatable_ignores_eviction {
                    true => Thresholds::default(),
                    false => kubelet.eviction_hard.clone(),
                },
            },
            status_update_frequency: kubelet.node_status_update_frequency,
            status_report_frequency: kubelet.node_status_report_frequency,
            lease_duration_seconds: kubelet.node_lease_duration_seconds,
            port: kubelet.port,
            version: flags.version.clone(),
            pod_cidr: kubelet.pod_cidr.clone(),
            gates: settings.gates.clone(),
        }
    }
}
