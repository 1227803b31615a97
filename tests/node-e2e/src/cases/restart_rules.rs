//! Rules by which the exit of one container restarts it, or all containers of its pod.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::sidecars::status_of;
use crate::harness::{Case, Lab, Node, pod};
use crate::provision::BUSYBOX;
use crate::stack::State;
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(one_exit_restarts_all_containers),
    shared!(a_sidecars_exit_restarts_all_containers),
    shared!(what_never_restarts_begins_anew_with_all),
    shared!(a_source_shows_how_it_ended).beyond_upstream("it hides that behind a reason of its own"),
    shared!(restarts_of_all_are_held_back).beyond_upstream("it begins anew at once, every time"),
    own!(a_restart_of_all_outlives_the_agent),
];

/// Ends with a code for which all start again, the first time; stays the second time.
const FIRST_FAILS: &str = "[ -e /notes/been-here ] || { sleep 2; touch /notes/been-here; exit 88; }; sleep 1000000";

fn restart_all() -> Value {
    json!([{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [88] } }])
}

fn init(name: &str, script: &str) -> Value {
    json!({
        "name": name,
        "image": BUSYBOX,
        "command": ["sh", "-c", script],
        "volumeMounts": [{ "name": "notes", "mountPath": "/notes" }],
    })
}

fn restarted(pod: &Pod, name: &str) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    [&status.init_container_statuses, &status.container_statuses]
        .into_iter()
        .flat_map(|list| status_of(list, name))
        .any(|status| status.restart_count == 1)
}

fn condition(pod: &Pod, kind: &str) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    Some(conditions.iter().find(|condition| condition.type_ == kind)?.status.clone())
}

async fn one_exit_restarts_all_containers(node: Node) -> Result<()> {
    let stays = "echo began >> /notes/main; exec sleep 1000000";
    let ruled = json!({ "restartPolicy": "Never", "restartPolicyRules": restart_all() });
    let ruled = pod("ruled").script(stays).restart("Never").and_container("source", FIRST_FAILS, ruled);
    let ruled = ruled.spec(json!({ "initContainers": [init("setup", "echo began >> /notes/setup")] }));
    let ruled = node.run(ruled.volume("notes", "/notes", json!({ "emptyDir": {} }))).await?;
    let before = ruled.expect().ready().await?;
    ensure!(condition(&before, "AllContainersRestarting").as_deref() == Some("False"));
    ruled.expect().condition("AllContainersRestarting", "True").await?;
    let all_again = |pod: &Pod| ["setup", "main", "source"].iter().all(|name| restarted(pod, name));
    let after = ruled.expect().that("a second round of all", all_again).ready().phase("Running").await?;
    ensure!(condition(&after, "AllContainersRestarting").as_deref() == Some("False"));
    // The sandbox with its address and the volumes have stayed, and so have the logs.
    let ip = |pod: &Pod| pod.status.as_ref().and_then(|status| status.pod_ip.clone());
    ensure!(ip(&before) == ip(&after), "{:?} and then {:?}", ip(&before), ip(&after));
    ensure!(ruled.exec("cat /notes/setup /notes/main").await? == "began\n".repeat(4));
    ruled.log_of("main", 0)?;
    // It was in the way, and did not fail by itself.
    let status = after.status.context("a status")?;
    let last = status_of(&status.container_statuses, "main")?.last_state.clone().unwrap_or_default();
    let last = last.terminated.context("a last state")?;
    ensure!(last.exit_code == 137 && last.reason.as_deref() == Some("RestartingAllContainers"), "{last:?}");
    Ok(())
}

async fn a_sidecars_exit_restarts_all_containers(node: Node) -> Result<()> {
    let mut sidecar = init("watcher", FIRST_FAILS);
    sidecar["restartPolicy"] = json!("Always");
    sidecar["restartPolicyRules"] = restart_all();
    let watched = pod("watched").script("exec sleep 1000000").spec(json!({ "initContainers": [sidecar] }));
    let watched = node.run(watched.volume("notes", "/notes", json!({ "emptyDir": {} }))).await?;
    let all_again = |pod: &Pod| ["watcher", "main"].iter().all(|name| restarted(pod, name));
    watched.expect().that("a second round of both", all_again).ready().await?;
    Ok(())
}

async fn what_never_restarts_begins_anew_with_all(node: Node) -> Result<()> {
    let ruled = json!({ "restartPolicy": "Never", "restartPolicyRules": restart_all() });
    let mixed = pod("mixed").script("echo began >> /notes/main").restart("Never");
    let mixed = mixed.and_container("source", FIRST_FAILS, ruled);
    let mixed = node.run(mixed.volume("notes", "/notes", json!({ "emptyDir": {} }))).await?;
    let all_again = |pod: &Pod| ["main", "source"].iter().all(|name| restarted(pod, name));
    mixed.expect().that("a second round of both", all_again).terminated("Completed").phase("Running").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    mixed.expect().terminated("Completed").phase("Running").await?;
    Ok(())
}

async fn a_source_shows_how_it_ended(node: Node) -> Result<()> {
    let ruled = json!({ "restartPolicy": "Never", "restartPolicyRules": restart_all() });
    let ruled = pod("ruled").script("exec sleep 1000000").and_container("source", FIRST_FAILS, ruled);
    let ruled = node.run(ruled.volume("notes", "/notes", json!({ "emptyDir": {} }))).await?;
    let pod = ruled.expect().that("a second round", |pod| restarted(pod, "source")).ready().await?;
    let status = pod.status.context("a status")?;
    let last = status_of(&status.container_statuses, "source")?.last_state.clone().unwrap_or_default();
    ensure!(last.terminated.as_ref().is_some_and(|exit| exit.exit_code == 88), "{last:?}");
    Ok(())
}

async fn restarts_of_all_are_held_back(node: Node) -> Result<()> {
    let ruled = json!({ "restartPolicy": "Never", "restartPolicyRules": restart_all() });
    let hasty = pod("hasty").script("exec sleep 1000000").and_container("source", "exit 88", ruled);
    let hasty = node.run(hasty).await?;
    // The first time at once, then as after any crash; and the others wait with it.
    hasty.expect().container("source").restarts(1).waiting("CrashLoopBackOff").await?;
    let main = |pod: &Pod| {
        let list = pod.status.clone().and_then(|status| status.container_statuses);
        let state = status_of(&list, "main").ok().and_then(|main| main.state.clone()?.waiting);
        state.and_then(|waiting| waiting.reason).as_deref() == Some("RestartingAllContainers")
    };
    let pod = hasty.expect().that("a removed main", main).container("source").waiting("CrashLoopBackOff").await?;
    ensure!(condition(&pod, "AllContainersRestarting").as_deref() == Some("True"));
    hasty.expect().container("source").restarts(2).await?;
    Ok(())
}

async fn a_restart_of_all_outlives_the_agent(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    // Its end takes a while, and so there is a while to kill the agent in.
    let deaf = "echo began >> /notes/main; trap '' TERM; while :; do sleep 0.1; done";
    let ruled = json!({ "restartPolicy": "Never", "restartPolicyRules": restart_all() });
    let ruled = pod("ruled").script(deaf).restart("Never").and_container("source", FIRST_FAILS, ruled);
    let ruled = ruled.spec(json!({ "initContainers": [init("setup", "echo began >> /notes/setup")] }));
    let ruled = node.run(ruled.volume("notes", "/notes", json!({ "emptyDir": {} }))).await?;
    ruled.expect().ready().await?;
    ruled.expect().condition("AllContainersRestarting", "True").await?;
    ensure!(node.stack().agent().kill().await? == State::Killed { signal: 9 });
    node.stack().agent().start().await?;
    let all_again = |pod: &Pod| ["setup", "main", "source"].iter().all(|name| restarted(pod, name));
    ruled.expect().that("a second round of all", all_again).ready().phase("Running").await?;
    ensure!(ruled.exec("cat /notes/setup /notes/main").await? == "began\n".repeat(4));
    Ok(())
}
