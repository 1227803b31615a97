//! Pods at the limits of what the API server takes: each is served, or told why not, and no
//! other pod waits for it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::harness::{Case, Node, pod};
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(a_pod_of_a_hundred_containers_comes_and_goes),
    shared!(a_megabyte_of_environment_reaches_its_container),
    shared!(a_variable_that_the_kernel_refuses_is_told),
    shared!(names_may_be_as_long_as_the_log_directory_allows),
    shared!(a_name_too_long_for_the_disk_is_told),
    shared!(a_probe_that_forks_and_hangs_ends_with_its_time)
        .beyond_upstream("it waits for the runtime, which waits for what the command left behind"),
    shared!(a_post_start_hook_that_never_ends_holds_up_its_own_pod_alone)
        .beyond_upstream("it waits for the hook although the pod is deleted"),
    shared!(a_pod_with_a_post_start_hook_that_never_ends_is_cared_for)
        .beyond_upstream("it does nothing for the pod before the hook has ended"),
];

const A_HUNDRED_STARTS: Duration = Duration::from_secs(120);

/// Another pod, which is to come up meanwhile.
async fn expect_another_pod_to_start(node: &Node) -> Result<()> {
    node.run(pod("neighbour")).await?.expect().ready().await?;
    Ok(())
}

async fn a_pod_of_a_hundred_containers_comes_and_goes(node: Node) -> Result<()> {
    let more = (1..100)
        .fold(pod("crowd"), |pod, number| pod.and_container(&format!("c{number}"), "exec sleep 1000000", json!({})));
    let crowd = node.run(more.spec(json!({ "terminationGracePeriodSeconds": 1 }))).await?;
    expect_another_pod_to_start(&node).await?;
    crowd.expect().within(A_HUNDRED_STARTS).ready().await?;
    ensure!(node.containers_of(&crowd).await?.len() == 100);
    crowd.delete().await?;
    crowd.expect_gone().await?;
    node.expect_no_containers_of(&crowd).await
}

fn variables(count: usize, bytes: usize) -> Value {
    let variable = |number| json!({ "name": format!("V{number}"), "value": "x".repeat(bytes) });
    json!({ "env": (0..count).map(variable).collect::<Vec<_>>() })
}

async fn a_megabyte_of_environment_reaches_its_container(node: Node) -> Result<()> {
    let full = pod("full").script("env | wc -c").container(variables(16, 65_536)).restart("Never");
    let full = node.run(full).await?;
    let bytes: usize = full.output().await?.trim().parse()?;
    ensure!(bytes > 1 << 20, "{bytes} bytes");
    Ok(())
}

/// The kernel takes no string of more than 128 KiB.
async fn a_variable_that_the_kernel_refuses_is_told(node: Node) -> Result<()> {
    let fat = node.run(pod("fat").container(variables(1, 200_000)).restart("Never")).await?;
    expect_another_pod_to_start(&node).await?;
    fat.expect().phase("Failed").await?;
    // Of runc 1.1 the container has begun by then, and its log tells.
    let log = fat.log()?.to_lowercase();
    ensure!(log.contains("argument list too long"), "{log}");
    Ok(())
}

/// Logs lie in `<namespace>_<name>_<uid>`, and no name on a disk is longer than 255 bytes.
fn longest_name(node: &Node) -> usize {
    255 - node.namespace().len() - 36 - 2
}

async fn names_may_be_as_long_as_the_log_directory_allows(node: Node) -> Result<()> {
    let label = "n".repeat(63);
    let name = format!("{label}.{label}.{label}.{label}");
    let longest = pod(&name[..longest_name(&node)]).script("hostname; exec sleep 1000000");
    let longest = node.run(longest.and_container(&"c".repeat(63), "exec sleep 1000000", json!({}))).await?;
    longest.expect().ready().await?;
    longest.expect_log(&format!("{label}\n")).await
}

async fn a_name_too_long_for_the_disk_is_told(node: Node) -> Result<()> {
    let label = "n".repeat(60);
    let name = format!("{label}.{label}.{label}.{label}");
    ensure!(name.len() > longest_name(&node));
    let long = node.run(pod(&name)).await?;
    expect_another_pod_to_start(&node).await?;
    let message = long.expect_event("FailedCreatePodSandBox").await?;
    ensure!(message.to_lowercase().contains("file name too long"), "{message}");
    long.delete().await?;
    long.expect_gone().await
}

async fn a_probe_that_forks_and_hangs_ends_with_its_time(node: Node) -> Result<()> {
    let probe = json!({ "livenessProbe": {
        "exec": { "command": ["sh", "-c", "for i in 1 2 3 4 5; do sleep 1000000 & done; wait"] },
        "timeoutSeconds": 1, "periodSeconds": 1, "failureThreshold": 2,
    } });
    let stuck = pod("stuck").container(probe).spec(json!({ "terminationGracePeriodSeconds": 1 }));
    let stuck = node.run(stuck).await?;
    expect_another_pod_to_start(&node).await?;
    let unhealthy = stuck.expect_event("Unhealthy").await?;
    ensure!(unhealthy.contains("timed out"), "{unhealthy}");
    stuck.expect().restarts(1).await?;
    stuck.delete().await?;
    stuck.expect_gone().await
}

async fn a_post_start_hook_that_never_ends_holds_up_its_own_pod_alone(node: Node) -> Result<()> {
    let hook = json!({ "lifecycle": { "postStart": { "exec": { "command": ["sleep", "1000000"] } } } });
    let stuck = pod("stuck").container(hook).spec(json!({ "terminationGracePeriodSeconds": 1 }));
    let stuck = node.run(stuck).await?;
    stuck.expect_event("Started").await?;
    expect_another_pod_to_start(&node).await?;
    stuck.delete().await?;
    stuck.expect_gone().await
}

async fn a_pod_with_a_post_start_hook_that_never_ends_is_cared_for(node: Node) -> Result<()> {
    let dying =
        json!({ "livenessProbe": { "exec": { "command": ["false"] }, "periodSeconds": 1, "failureThreshold": 1 } });
    let hook = json!({ "lifecycle": { "postStart": { "exec": { "command": ["sleep", "1000000"] } } } });
    let idle = "exec sleep 1000000";
    let caring = pod("caring").container(dying).and_container("stuck", idle, hook);
    let caring = caring.and_container("last", idle, json!({}));
    let caring = caring.spec(json!({ "activeDeadlineSeconds": 15, "terminationGracePeriodSeconds": 1 }));
    let caring = node.run(caring).await?;
    // A container before it, given up by its probe; itself, as clients see it; and the next one.
    caring.expect_event("Killing").await?;
    caring.expect().container("stuck").waiting("ContainerCreating").await?;
    caring.expect().container("last").waiting("ContainerCreating").await?;
    ensure!(node.containers_of(&caring).await?.iter().all(|container| container.name != "last"));
    caring.expect().phase("Failed").await.map(drop)
}
