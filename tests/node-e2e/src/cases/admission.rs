//! Pods that this node does not take, and what they are told.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{self as core, Pod, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::harness::{Case, Lab, Node, PodBuilder, PodHandle, WITHIN, pod};
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(unsafe_sysctls_are_refused),
    shared!(a_pod_that_does_not_fit_is_refused).in_subset(),
    shared!(a_pod_for_other_nodes_is_refused),
    shared!(a_label_given_a_moment_ago_counts),
    shared!(a_port_of_the_node_has_one_owner),
    shared!(a_pod_for_another_system_is_refused),
    shared!(a_profile_needs_app_armor),
    shared!(an_unheard_of_resource_is_nobodys_business),
    shared!(a_critical_pod_takes_the_place_of_another),
    own!(a_victim_that_does_not_end_is_told_of),
    own!(what_the_node_does_not_declare_keeps_pods_away),
    own!(a_refusal_outlives_the_agent).beyond_upstream("it then makes up ends of containers that never began"),
];

/// A pod named for the node, so that no scheduler stands between.
fn sent_to(node: &Node, name: &str) -> PodBuilder {
    pod(name).spec(json!({ "nodeName": node.name() }))
}

async fn refused(node: &Node, pod: PodBuilder, reason: &str, message: &str) -> Result<PodHandle> {
    let handle = node.run(pod).await?;
    let pod = handle.expect().phase("Failed").await?;
    check_refusal(&pod, reason, message)?;
    let told = handle.expect_event(reason).await?;
    ensure!(told.contains(message) && !told.starts_with("Pod was rejected"), "event {told:?}");
    ensure!(node.containers_of(&handle).await?.is_empty());
    Ok(handle)
}

fn check_refusal(pod: &Pod, reason: &str, message: &str) -> Result<()> {
    let status = pod.status.clone().unwrap_or_default();
    ensure!(status.reason.as_deref() == Some(reason), "reason {:?}, message {:?}", status.reason, status.message);
    let told = status.message.clone().unwrap_or_default();
    ensure!(told.starts_with("Pod was rejected: ") && told.contains(message), "message {told:?}");
    ensure!(status.qos_class.is_some() && status.start_time.is_some(), "{status:?}");
    // Nothing is said of what never began. Others may have told a condition of theirs.
    let PodStatus { container_statuses, init_container_statuses, host_ip, pod_ip, conditions, .. } = status;
    ensure!(container_statuses.is_none() && init_container_statuses.is_none(), "{container_statuses:?}");
    ensure!(host_ip.is_none() && pod_ip.is_none(), "host IP {host_ip:?}, pod IP {pod_ip:?}");
    let own: Vec<_> = conditions.into_iter().flatten().filter(|it| it.type_ != "PodScheduled").collect();
    ensure!(own.is_empty(), "conditions {own:?}");
    Ok(())
}

async fn unsafe_sysctls_are_refused(node: Node) -> Result<()> {
    let sysctls = json!([{ "name": "net.core.somaxconn", "value": "80" }]);
    let pod = sent_to(&node, "tuned").spec(json!({ "securityContext": { "sysctls": sysctls } }));
    let message = "forbidden sysctl: \"net.core.somaxconn\" not allowlisted";
    refused(&node, pod, "SysctlForbidden", message).await?;
    Ok(())
}

async fn a_pod_that_does_not_fit_is_refused(node: Node) -> Result<()> {
    let request = |requests: Value| json!({ "resources": { "requests": requests } });
    let huge = sent_to(&node, "huge").container(request(json!({ "cpu": "1000" })));
    let message = "Node didn't have enough resource: cpu, requested: 1000000, used: ";
    let huge = refused(&node, huge, "OutOfcpu", message).await?;
    let fat = sent_to(&node, "fat").container(request(json!({ "memory": "100Ti" })));
    let message = "Node didn't have enough resource: memory, requested: 109951162777600, used: ";
    refused(&node, fat, "OutOfmemory", message).await?;
    // What never ran has nothing to wait for.
    huge.delete().await?;
    huge.expect_gone().await
}

async fn a_pod_for_other_nodes_is_refused(node: Node) -> Result<()> {
    let elsewhere = sent_to(&node, "elsewhere").spec(json!({ "nodeSelector": { "disk": "tape" } }));
    let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    refused(&node, elsewhere, "NodeAffinity", message).await?;
    Ok(())
}

async fn a_label_given_a_moment_ago_counts(node: Node) -> Result<()> {
    let label = format!("test/{}", node.namespace());
    let labels = json!({ "metadata": { "labels": { &label: "yes" } } });
    let nodes: Api<core::Node> = Api::all(node.client());
    nodes.patch(node.name(), &PatchParams::default(), &Patch::Merge(labels)).await?;
    let pod = sent_to(&node, "wanted").spec(json!({ "nodeSelector": { label: "yes" } }));
    node.run(pod).await?.expect().ready().await?;
    Ok(())
}

async fn a_port_of_the_node_has_one_owner(node: Node) -> Result<()> {
    let ports = json!({ "ports": [{ "containerPort": 80, "hostPort": 7355 }] });
    let first = node.run(sent_to(&node, "first").container(ports.clone())).await?;
    first.expect().ready().await?;
    let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    refused(&node, sent_to(&node, "second").container(ports.clone()), "NodePorts", message).await?;
    first.delete().await?;
    first.expect_gone().await?;
    node.run(sent_to(&node, "third").container(ports)).await?.expect().ready().await?;
    Ok(())
}

async fn a_pod_for_another_system_is_refused(node: Node) -> Result<()> {
    let foreign = sent_to(&node, "foreign").spec(json!({ "os": { "name": "windows" } }));
    let message = "Failed to admit pod as the OS field doesn't match node OS";
    refused(&node, foreign, "PodOSNotSupported", message).await?;
    let labels = json!({ "labels": { "kubernetes.io/os": "windows" } });
    let label = sent_to(&node, "labelled").metadata(labels);
    let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
    refused(&node, label, "PodOSSelectorNodeLabelDoesNotMatch", message).await?;
    Ok(())
}

async fn a_profile_needs_app_armor(node: Node) -> Result<()> {
    let context = json!({ "securityContext": { "appArmorProfile": { "type": "RuntimeDefault" } } });
    let confined = sent_to(&node, "confined").spec(context);
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.starts_with('Y') {
        node.run(confined).await?.expect().ready().await?;
    } else {
        refused(&node, confined, "AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host").await?;
    }
    Ok(())
}

async fn what_the_node_does_not_declare_keeps_pods_away(lab: Lab) -> Result<()> {
    let off = json!({
        "InPlacePodLevelResourcesVerticalScaling": false,
        "PodLevelResources": false,
        "RestartAllContainersOnContainerExits": false,
    });
    let node = lab.node(|stack| stack.config("featureGates", off)).await?;
    let declares = |node: &core::Node, feature: &str| {
        let declared = node.status.as_ref().and_then(|status| status.declared_features.as_deref());
        declared.unwrap_or_default().iter().any(|declared| declared == feature)
    };
    node.expect_node("features that are on, and no others", |node| {
        declares(node, "InPlacePodVerticalScalingInitContainers")
            && !declares(node, "InPlacePodLevelResourcesVerticalScaling")
            && !declares(node, "RestartAllContainersOnContainerExits")
    })
    .await?;
    let rules = json!([{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [88] } }]);
    let ruled = json!({ "restartPolicy": "Never", "restartPolicyRules": rules });
    let message = "Pod requires node features that are not available: RestartAllContainersOnContainerExits";
    refused(&node, sent_to(&node, "ruled").container(ruled), "PodFeatureUnsupported", message).await?;
    let whole = sent_to(&node, "whole").spec(json!({ "resources": { "limits": { "memory": "64Mi" } } }));
    let message = "PodLevelResources feature gate is disabled";
    refused(&node, whole, "PodLevelResourcesNotSupported", message).await?;
    let usual = node.run(sent_to(&node, "usual")).await?.expect().ready().await?;
    let status = usual.status.context("a status")?;
    ensure!(status.resources.is_none() && status.allocated_resources.is_none(), "{:?}", status.resources);
    Ok(())
}

async fn an_unheard_of_resource_is_nobodys_business(node: Node) -> Result<()> {
    let amount = json!({ "example.com/unheard-of": "3" });
    let asking = json!({ "resources": { "requests": amount, "limits": amount } });
    node.run(sent_to(&node, "asking").container(asking)).await?.expect().ready().await?;
    Ok(())
}

/// A resource of the story's own, so that no other story's pod has to go: its name, and the
/// fields of a container that takes all of it.
async fn own_resource(node: &Node) -> Result<(String, Value)> {
    let resource = format!("example.com/{}", node.namespace());
    let amount = json!({ &resource: "1" });
    let advertised = json!({ "status": { "capacity": amount, "allocatable": amount } });
    let nodes: Api<core::Node> = Api::all(node.client());
    nodes.patch_status(node.name(), &PatchParams::default(), &Patch::Merge(advertised)).await?;
    let asking = json!({ "resources": { "requests": amount, "limits": amount } });
    let known = resource.clone();
    node.expect_node("the resource", move |node| {
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        allocatable.is_some_and(|all| all.contains_key(&known))
    })
    .await?;
    Ok((resource, asking))
}

fn critical(node: &Node, asking: Value) -> PodBuilder {
    sent_to(node, "critical").spec(json!({ "priorityClassName": "system-node-critical" })).container(asking)
}

async fn a_critical_pod_takes_the_place_of_another(node: Node) -> Result<()> {
    let (resource, asking) = own_resource(&node).await?;
    let victim = node.run(sent_to(&node, "victim").container(asking.clone())).await?;
    victim.expect().ready().await?;
    let message = format!("Node didn't have enough resource: {resource}, requested: 1, used: 1, capacity: 1");
    let second = sent_to(&node, "second").container(asking.clone());
    refused(&node, second, &format!("OutOf{resource}"), &message).await?;

    let critical = node.run(critical(&node, asking)).await?;
    critical.expect().ready().await?;
    let pod = victim.expect().phase("Failed").condition("DisruptionTarget", "True").await?;
    let status = pod.status.context("a status")?;
    ensure!(status.reason.as_deref() == Some("Preempting"), "reason {:?}", status.reason);
    let message = "Preempted in order to admit critical pod";
    ensure!(status.message.as_deref() == Some(message), "message {:?}", status.message);
    let conditions = status.conditions.unwrap_or_default();
    let target = conditions.iter().find(|it| it.type_ == "DisruptionTarget").context("a condition")?;
    ensure!(target.reason.as_deref() == Some("TerminationByKubelet"), "{target:?}");
    ensure!(victim.expect_event("Preempting").await? == message);
    Ok(())
}

async fn a_victim_that_does_not_end_is_told_of(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let (_, asking) = own_resource(&node).await?;
    // While its hook runs there is time to make the runtime hang.
    let hook = json!({ "lifecycle": { "preStop": { "sleep": { "seconds": 4 } } } });
    let victim = sent_to(&node, "victim").container(asking.clone()).container(hook);
    let victim = node.run(victim.spec(json!({ "terminationGracePeriodSeconds": 5 }))).await?;
    victim.expect().ready().await?;

    let critical = node.run(critical(&node, asking)).await?;
    victim.expect_event("Preempting").await?;
    node.stack().containerd().freeze().await?;
    let told = victim.expect_event("ExceededGracePeriod").await;
    node.stack().containerd().thaw().await?;
    ensure!(told? == "Container runtime did not kill the pod within specified grace period.");
    critical.expect().ready().within(WITHIN * 3).await?;
    Ok(())
}

async fn a_refusal_outlives_the_agent(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let request = json!({ "resources": { "requests": { "cpu": "1000" } } });
    let message = "Node didn't have enough resource: cpu, requested: 1000000, used: ";
    let huge = refused(&node, sent_to(&node, "huge").container(request), "OutOfcpu", message).await?;
    let before = huge.get().await?.status;

    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    node.run(pod("witness")).await?.expect().ready().await?;
    let after = huge.get().await?;
    check_refusal(&after, "OutOfcpu", message)?;
    ensure!(after.status == before, "{before:?} became {:?}", after.status);
    huge.delete().await?;
    huge.expect_gone().await
}
