//! Requests and limits: the class of a pod, its cgroup, and who dies first.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;
use serde_json::json;

use crate::harness::{Case, Node, PodBuilder, PodCgroup, PodHandle, pod};
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(a_pod_without_requests_is_best_effort),
    shared!(a_pod_with_requests_is_burstable).in_subset(),
    shared!(a_pod_with_equal_limits_is_guaranteed),
    shared!(a_container_beyond_its_memory_is_killed),
];

async fn running(node: &Node, pod: PodBuilder, qos: &'static str) -> Result<(PodHandle, PodCgroup)> {
    let pod = node.run(pod).await?;
    let class = move |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) == Some(qos)
    };
    pod.expect().ready().that(format!("class {qos}"), class).await?;
    let cgroup = PodCgroup::of(&pod, qos);
    Ok((pod, cgroup))
}

async fn oom_score(pod: &PodHandle) -> Result<String> {
    Ok(pod.exec("cat /proc/1/oom_score_adj").await?.trim().to_owned())
}

async fn a_pod_without_requests_is_best_effort(node: Node) -> Result<()> {
    let (pod, cgroup) = running(&node, pod("modest"), "BestEffort").await?;
    ensure!(cgroup.cpu_shares()? == 2, "shares {}", cgroup.cpu_shares()?);
    ensure!(cgroup.cpu_quota()?.is_none() && cgroup.memory_limit()?.is_none());
    ensure!(oom_score(&pod).await? == "1000");
    Ok(())
}

async fn a_pod_with_requests_is_burstable(node: Node) -> Result<()> {
    let resources = json!({
        "requests": { "cpu": "250m", "memory": "64Mi" },
        "limits": { "cpu": "500m", "memory": "128Mi" },
    });
    let bursting = pod("bursting").container(json!({ "resources": resources }));
    let (pod, cgroup) = running(&node, bursting, "Burstable").await?;
    ensure!(cgroup.cpu_shares()? == 256, "shares {}", cgroup.cpu_shares()?);
    ensure!(cgroup.cpu_quota()? == Some(50_000), "quota {:?}", cgroup.cpu_quota()?);
    ensure!(cgroup.memory_limit()? == Some(128 << 20), "limit {:?}", cgroup.memory_limit()?);

    let nodes: Api<NodeObject> = Api::all(node.client());
    let capacity = nodes.get(node.name()).await?.status.and_then(|status| status.capacity);
    let memory = capacity.context("a capacity")?["memory"].0.clone();
    let memory: u64 = memory.trim_end_matches("Ki").parse::<u64>()? << 10;
    let expected = 1000 - 1000 * (64 << 20) / memory;
    let score = oom_score(&pod).await?;
    ensure!(score == expected.to_string(), "score {score}, expected {expected}");
    Ok(())
}

async fn a_pod_with_equal_limits_is_guaranteed(node: Node) -> Result<()> {
    let resources = json!({ "limits": { "cpu": "100m", "memory": "64Mi" } });
    let fixed = pod("fixed").container(json!({ "resources": resources }));
    let (_, cgroup) = running(&node, fixed, "Guaranteed").await?;
    ensure!(cgroup.cpu_shares()? == 102, "shares {}", cgroup.cpu_shares()?);
    ensure!(cgroup.cpu_quota()? == Some(10_000), "quota {:?}", cgroup.cpu_quota()?);
    ensure!(cgroup.memory_limit()? == Some(64 << 20), "limit {:?}", cgroup.memory_limit()?);
    Ok(())
}

async fn a_container_beyond_its_memory_is_killed(node: Node) -> Result<()> {
    let limit = json!({ "resources": { "limits": { "memory": "16Mi" } } });
    let greedy = pod("greedy").container(json!({ "command": ["tail", "/dev/zero"] }));
    let greedy = node.run(greedy.restart("Never").container(limit)).await?;
    greedy.expect().phase("Failed").exit_code(137).terminated("OOMKilled").await?;
    Ok(())
}
