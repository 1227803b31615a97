//! The Node as it shall be, from what is known of the machine and the runtime.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSwapStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::capacity::{Amounts, allocatable, capacity};
use super::conditions::{ConditionInputs, Pressures, conditions};
use super::config::NodeConfig;
use crate::cri::{RuntimeStatus, RuntimeVersion};
use crate::host::MachineFacts;
use crate::pod::features;

pub(super) const ATTACH_DETACH_ANNOTATION: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const PROVIDED_IP_ANNOTATION: &str = "alpha.kubernetes.io/provided-node-ip";
const CLOUD_TAINT: &str = "node.cloudprovider.kubernetes.io/uninitialized";

/// Everything the Node follows from.
pub(super) struct NodeInputs<'a> {
    pub config: &'a NodeConfig,
    pub facts: &'a MachineFacts,
    pub addresses: Vec<NodeAddress>,
    /// Unknown until the runtime was reached for the first time.
    pub runtime_version: Option<&'a RuntimeVersion>,
    pub runtime_status: Option<&'a RuntimeStatus>,
    /// What keeps the node from being Ready.
    pub problems: Vec<String>,
    pub pressures: Pressures,
    /// Unknown until the runtime listed them.
    pub images: Option<&'a [ContainerImage]>,
    /// What the API has.
    pub existing: Option<&'a Node>,
    pub now: Timestamp,
}

pub(super) fn node(inputs: &NodeInputs<'_>) -> Node {
    let mut node = Node { spec: Some(spec(inputs.config)), status: Some(status(inputs)), ..Node::default() };
    node.metadata.name = Some(inputs.config.name.clone());
    node.metadata.labels = Some(labels(inputs));
    node.metadata.annotations = Some(annotations(inputs.config)).filter(|all| !all.is_empty());
    node
}

/// The labels of a new Node: what every node has, and over it what the operator wants.
fn labels(inputs: &NodeInputs<'_>) -> BTreeMap<String, String> {
    let arch = inputs.facts.architecture.as_str();
    let own = [
        ("kubernetes.io/hostname", inputs.config.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ];
    let mut labels: BTreeMap<String, String> = own.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    labels.extend(inputs.config.labels.clone());
    labels
}

fn annotations(config: &NodeConfig) -> BTreeMap<String, String> {
    use crate::config::NodeIp;
    let mut annotations = BTreeMap::new();
    if config.controller_attach_detach {
        annotations.insert(ATTACH_DETACH_ANNOTATION.to_owned(), "true".to_owned());
    }
    let given = match config.node_ip {
        NodeIp::Single(ip) => Some(ip.to_string()),
        NodeIp::Dual(first, second) => Some(format!("{first},{second}")),
        NodeIp::Unset | NodeIp::PreferV4 | NodeIp::PreferV6 => None,
    };
    if let Some(ips) = given.filter(|_| config.external_cloud_provider) {
        annotations.insert(PROVIDED_IP_ANNOTATION.to_owned(), ips);
    }
    annotations
}

fn spec(config: &NodeConfig) -> NodeSpec {
    let mut taints = config.taints.clone();
    if config.external_cloud_provider {
        taints.push(Taint {
            key: CLOUD_TAINT.to_owned(),
            value: Some("true".to_owned()),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        });
    }
    NodeSpec {
        taints: Some(taints).filter(|taints| !taints.is_empty()),
        provider_id: Some(config.provider_id.clone()).filter(|id| !id.is_empty()),
        ..NodeSpec::default()
    }
}

fn status(inputs: &NodeInputs<'_>) -> NodeStatus {
    let capacity = capacity(inputs.facts, inputs.config);
    let allocatable = allocatable(&capacity, inputs.config);
    let existing = inputs.existing.and_then(|node| node.status.as_ref());
    let runtime = inputs.runtime_status;
    NodeStatus {
        addresses: Some(inputs.addresses.clone()),
        conditions: Some(conditions(&ConditionInputs {
            pressures: inputs.pressures,
            problems: &inputs.problems,
            earlier: existing.and_then(|status| status.conditions.as_deref()).unwrap_or_default(),
            now: inputs.now,
        })),
        capacity: Some(api_amounts(&capacity)),
        allocatable: Some(api_amounts(&allocatable)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(inputs.config.port) }),
        }),
        images: inputs.images.map(<[ContainerImage]>::to_vec),
        node_info: Some(node_info(inputs)),
        runtime_handlers: runtime.map(runtime_handlers).filter(|handlers| !handlers.is_empty()),
        features: runtime
            .map(|runtime| NodeFeatures { supplemental_groups_policy: Some(runtime.supplemental_groups_policy) }),
        declared_features: Some(features::declared(&inputs.config.gates).map(str::to_owned).collect()),
        ..NodeStatus::default()
    }
}

fn api_amounts(amounts: &Amounts) -> BTreeMap<String, ApiQuantity> {
    amounts.iter().map(|(name, amount)| (name.clone(), ApiQuantity(amount.to_string()))).collect()
}

fn node_info(inputs: &NodeInputs<'_>) -> NodeSystemInfo {
    let facts = inputs.facts;
    let existing = inputs.existing.and_then(|node| node.status.as_ref()).and_then(|status| status.node_info.as_ref());
    // A runtime that is not there yet is still the one it was.
    let runtime = match inputs.runtime_version {
        Some(version) => format!("{}://{}", version.runtime_name, version.runtime_version),
        None => existing.map(|info| info.container_runtime_version.clone()).unwrap_or_default(),
    };
    NodeSystemInfo {
        architecture: facts.architecture.clone(),
        boot_id: facts.boot_id.clone(),
        container_runtime_version: runtime,
        kernel_version: facts.kernel_version.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: inputs.config.version.clone(),
        machine_id: facts.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: facts.os_image.clone(),
        swap: i64::try_from(facts.swap_bytes)
            .ok()
            .filter(|&bytes| bytes > 0)
            .map(|bytes| NodeSwapStatus { capacity: Some(bytes) }),
        system_uuid: facts.system_uuid.clone(),
    }
}

fn runtime_handlers(runtime: &RuntimeStatus) -> Vec<NodeRuntimeHandler> {
    let mut handlers: Vec<NodeRuntimeHandler> = runtime
        .handlers
        .iter()
        .map(|handler| NodeRuntimeHandler {
            name: Some(handler.name.clone()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(handler.recursive_read_only_mounts),
                user_namespaces: Some(handler.user_namespaces),
            }),
        })
        .collect();
    handlers.sort_by(|a, b| a.name.cmp(&b.name));
    handlers
}
