//! Pods with users of their own.
//!
//! They run on a RuntimeClass whose runc can map users: the machine's own may be too old.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use ferrolet::cri::{ContainerId, Runtime};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::harness::{Case, Lab, Node, PodBuilder, PodHandle, pod};
use crate::stack::MAPPING_HANDLER;
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(a_pod_has_users_of_its_own).maps_users(),
    shared!(two_pods_have_different_users).maps_users(),
    own!(users_of_a_pod_stay_over_a_restart_of_the_agent)
        .maps_users()
        .beyond_upstream("it does not start while the file of one pod is broken"),
    shared!(proc_can_be_unmasked_where_users_are_its_own).maps_users(),
    shared!(a_handler_that_cannot_map_users_refuses),
];

/// A pod that writes as the root of its own users.
fn own_users(name: &str) -> PodBuilder {
    let script = "stat -c 'owner %u' /data /etc/hosts; touch /data/file; while :; do sleep 0.1; done";
    pod(name).script(script).volume("data", "/data", json!({ "emptyDir": {} })).spec(json!({ "hostUsers": false }))
}

/// Runs it where users can be mapped.
async fn run(node: &Node, pod: PodBuilder) -> Result<PodHandle> {
    let classes: Api<RuntimeClass> = Api::all(node.client());
    let class = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": { "name": "mapping" },
        "handler": MAPPING_HANDLER,
    });
    classes.patch("mapping", &PatchParams::apply("node-e2e"), &Patch::Apply(class)).await?;
    node.run(pod.spec(json!({ "runtimeClassName": "mapping" }))).await
}

/// The first id on the node of the pod's users, as its process sees it.
async fn first_id(pod: &PodHandle) -> Result<u32> {
    let map = pod.exec("cat /proc/self/uid_map").await?;
    let fields: Vec<_> = map.split_whitespace().collect();
    ensure!(matches!(fields.as_slice(), ["0", _, "65536"]), "map {map:?}");
    Ok(fields[1].parse()?)
}

async fn a_pod_has_users_of_its_own(node: Node) -> Result<()> {
    let pod = run(&node, own_users("apart")).await?;
    pod.expect().ready().await?;
    let first = first_id(&pod).await?;
    ensure!(first >= 65536, "first id {first}");
    pod.expect_log("owner 0\nowner 0\n").await?;
    let dir = node.stack().on_node(&format!("/var/lib/kubelet/pods/{}", pod.uid));
    let text = fs::read_to_string(dir.join("userns"))?;
    let file: serde_json::Value = serde_json::from_str(&text)?;
    let expected = json!([{ "hostId": first, "containerId": 0, "length": 65536 }]);
    ensure!(file == json!({ "uidMappings": expected, "gidMappings": expected }), "{text}");
    // What it writes as root belongs to root outside too: the ids are mapped at the mount.
    let written = fs::metadata(dir.join("volumes/kubernetes.io~empty-dir/data/file"))?;
    ensure!(written.uid() == 0, "owner {}", written.uid());
    Ok(())
}

async fn two_pods_have_different_users(node: Node) -> Result<()> {
    let one = run(&node, own_users("one")).await?;
    let other = run(&node, own_users("other")).await?;
    one.expect().ready().await?;
    other.expect().ready().await?;
    ensure!(first_id(&one).await? != first_id(&other).await?);
    Ok(())
}

async fn users_of_a_pod_stay_over_a_restart_of_the_agent(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let before = run(&node, own_users("before")).await?;
    before.expect().ready().await?;
    let first = first_id(&before).await?;
    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    let after = run(&node, own_users("after")).await?;
    after.expect().ready().await?;
    let second = first_id(&after).await?;
    ensure!(first_id(&before).await? == first && second != first);

    // The runtime still knows what the file no longer tells.
    node.stack().agent().kill().await?;
    fs::write(node.stack().on_node(&format!("/var/lib/kubelet/pods/{}/userns", before.uid)), "{")?;
    node.stack().agent().start().await?;
    let third = run(&node, own_users("third")).await?;
    third.expect().ready().await?;
    ensure!(![first, second].contains(&first_id(&third).await?));
    // A new container of the old pod lives among the old users.
    let (id, _) = before.instance().await?;
    node.runtime()?.stop_container(&ContainerId::new(id.trim_start_matches("containerd://")), Duration::ZERO).await?;
    before.expect().restarts(1).ready().await?;
    ensure!(first_id(&before).await? == first);
    Ok(())
}

async fn proc_can_be_unmasked_where_users_are_its_own(node: Node) -> Result<()> {
    let masks = |name: &str| pod(name).script("grep -c ' /proc/' /proc/mounts").restart("Never");
    let masked = node.run(masks("masked")).await?;
    ensure!(masked.output().await?.trim() != "0");
    let context = json!({ "securityContext": { "procMount": "Unmasked" } });
    let bare = run(&node, masks("bare").container(context).spec(json!({ "hostUsers": false }))).await?;
    let output = bare.output().await?;
    ensure!(output.trim() == "0", "{output:?}");
    Ok(())
}

/// Less isolation than was asked for is not an answer.
async fn a_handler_that_cannot_map_users_refuses(node: Node) -> Result<()> {
    let pod = node.run(own_users("refused")).await?;
    let status = node.runtime()?.status().await?;
    if status.handlers.iter().any(|handler| handler.name.is_empty() && handler.user_namespaces) {
        // The machine's own runc is a new one: nothing here refuses.
        pod.expect().ready().await?;
        return Ok(());
    }
    let message = pod.expect_event("FailedCreatePodSandBox").await?;
    let because = "can't set `spec.hostUsers: false`, runtime does not support user namespaces";
    ensure!(message.contains(because), "{message}");
    pod.expect().phase("Pending").await?;
    Ok(())
}
