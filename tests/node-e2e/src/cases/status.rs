//! What a pod's status says of it.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::harness::{Case, Node, pod};
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(all_conditions_are_told).in_subset(),
    shared!(a_readiness_gate_holds_a_pod_back),
    shared!(who_runs_a_container_and_what_it_mounts_is_told),
    shared!(a_generation_that_was_seen_is_told),
];

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

async fn all_conditions_are_told(node: Node) -> Result<()> {
    let pod = node.run(pod("whole")).await?;
    let object = pod.expect().ready().await?;
    for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready", "PodScheduled"] {
        let condition = condition(&object, kind).with_context(|| format!("condition {kind}"))?;
        ensure!(condition.status == "True" && condition.last_transition_time.is_some(), "{condition:?}");
    }
    let waits = node.run(crate::harness::pod("waits").container(json!({ "image": "ferrolet.test/absent:1" }))).await?;
    let waits = waits.expect().waiting("ErrImagePull").await?;
    for (kind, status, reason) in [
        ("PodReadyToStartContainers", "True", None),
        ("Initialized", "True", None),
        ("ContainersReady", "False", Some("ContainersNotReady")),
        ("Ready", "False", Some("ContainersNotReady")),
    ] {
        let condition = condition(&waits, kind).with_context(|| format!("condition {kind}"))?;
        ensure!((condition.status.as_str(), condition.reason.as_deref()) == (status, reason), "{condition:?}");
    }
    Ok(())
}

async fn a_readiness_gate_holds_a_pod_back(node: Node) -> Result<()> {
    let gates = json!({ "readinessGates": [{ "conditionType": "example.com/let-in" }] });
    let pod = node.run(pod("gated").spec(gates)).await?;
    let object = pod.expect().condition("ContainersReady", "True").condition("Ready", "False").await?;
    let ready = condition(&object, "Ready").context("a condition")?;
    ensure!(ready.reason.as_deref() == Some("ReadinessGatesNotReady"), "{ready:?}");
    for (value, ready) in [("True", "True"), ("False", "False")] {
        let patch = json!({ "status": { "conditions": [{ "type": "example.com/let-in", "status": value }] } });
        node.api::<Pod>().patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        let object = pod.expect().condition("Ready", ready).await?;
        ensure!(condition(&object, "example.com/let-in").is_some_and(|gate| gate.status == value), "it is kept");
    }
    Ok(())
}

async fn who_runs_a_container_and_what_it_mounts_is_told(node: Node) -> Result<()> {
    let mounts = json!([{ "name": "e", "mountPath": "/e" }, { "name": "e", "mountPath": "/r", "readOnly": true }]);
    let context = json!({ "runAsUser": 1234, "runAsGroup": 2345, "supplementalGroups": [3456] });
    let pod = pod("told").container(json!({ "volumeMounts": mounts }));
    let pod = pod.spec(json!({ "volumes": [{ "name": "e", "emptyDir": {} }], "securityContext": context }));
    let object = node.run(pod).await?.expect().ready().await?;
    let status = object.status.and_then(|status| status.container_statuses).context("statuses")?.remove(0);
    let user = status.user.and_then(|user| user.linux).context("a user")?;
    let groups = user.supplemental_groups.unwrap_or_default();
    ensure!((user.uid, user.gid) == (1234, 2345) && groups.contains(&3456), "{} {} {groups:?}", user.uid, user.gid);
    let mounts = status.volume_mounts.context("mounts")?;
    let told = |path: &str| {
        let mount = mounts.iter().find(|mount| mount.mount_path == path);
        mount.map(|mount| (mount.name.as_str(), mount.read_only, mount.recursive_read_only.as_deref()))
    };
    ensure!(told("/e") == Some(("e", None, None)), "{mounts:?}");
    ensure!(told("/r") == Some(("e", Some(true), Some("Disabled"))), "{mounts:?}");
    Ok(())
}

async fn a_generation_that_was_seen_is_told(node: Node) -> Result<()> {
    let pod = node.run(pod("edited")).await?;
    let seen = |generation: i64| {
        move |pod: &Pod| {
            let told = pod.status.as_ref().and_then(|status| status.observed_generation);
            let of_ready = condition(pod, "Ready").and_then(|ready| ready.observed_generation);
            (told, of_ready) == (Some(generation), Some(generation))
        }
    };
    pod.expect().ready().that("generation 1 is seen", seen(1)).await?;
    let edit = json!({ "spec": { "activeDeadlineSeconds": 1000 } });
    node.api::<Pod>().patch(&pod.name, &PatchParams::default(), &Patch::Merge(edit)).await?;
    pod.expect().that("generation 2 is seen", seen(2)).await?;
    Ok(())
}
