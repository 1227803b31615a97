//! Sidecars, containers with restart rules of their own, and containers for debugging.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrolet::cri::{ContainerId, Runtime, Scope};
use ferrolet::pod::PodUid;
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Pod};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Case, Node, PodCgroup, WITHIN, pod};
use crate::poll::{self, Look};
use crate::provision::BUSYBOX;
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(sidecars_start_first_and_stop_last),
    shared!(a_sidecar_does_not_keep_a_job_from_its_end).in_subset(),
    shared!(a_sidecar_is_restarted_on_its_own),
    shared!(what_follows_a_sidecar_waits_for_its_startup_probe),
    shared!(a_sidecar_that_crashes_does_not_hold_up_what_has_begun_after_it),
    shared!(a_sidecar_gets_what_is_left_of_the_grace),
    shared!(sidecars_of_a_replaced_sandbox_get_what_is_left_of_the_grace),
    shared!(hooks_of_sidecars_do_not_wait_for_their_turn),
    shared!(a_container_is_restarted_by_its_own_rules),
    shared!(a_container_that_is_never_restarted_stays_down),
    shared!(a_container_for_debugging_joins_a_running_pod),
    shared!(a_container_for_debugging_may_bring_what_its_pod_had_no_need_of),
    shared!(a_container_for_debugging_needs_its_target),
];

/// Notes its start and, when told to end, its end.
fn noting(name: &str) -> String {
    format!(
        "trap 'echo {name} ends >> /notes/order; exit 0' TERM; echo {name} starts >> /notes/order; \
         while :; do sleep 0.1; done"
    )
}

fn sidecar(name: &str, script: &str) -> Value {
    json!({
        "name": name,
        "image": BUSYBOX,
        "restartPolicy": "Always",
        "command": ["sh", "-c", script],
        "volumeMounts": [{ "name": "notes", "mountPath": "/notes" }],
    })
}

/// Waits until so many have noted their start.
async fn expect_notes(node: &Node, file: &str, lines: usize) -> Result<()> {
    poll::until(format!("{lines} notes in {file}"), WITHIN, async || {
        let text = node.stack().read(file).unwrap_or_default();
        Ok(if text.lines().count() >= lines { Look::Done(()) } else { Look::NotYet(text) })
    })
    .await
}

pub(super) fn status_of<'a>(list: &'a Option<Vec<ContainerStatus>>, name: &str) -> Result<&'a ContainerStatus> {
    list.iter().flatten().find(|status| status.name == name).with_context(|| format!("no status of {name}"))
}

async fn sidecars_start_first_and_stop_last(node: Node) -> Result<()> {
    let notes = format!("/var/lib/notes/{}", node.namespace());
    let volume = json!({ "hostPath": { "path": notes, "type": "DirectoryOrCreate" } });
    let served = pod("served").script(&noting("main")).volume("notes", "/notes", volume);
    let sidecars = json!([sidecar("first", &noting("first")), sidecar("second", &noting("second"))]);
    let served = served.spec(json!({ "initContainers": sidecars, "terminationGracePeriodSeconds": 30 }));
    let served = node.run(served).await?;
    served.expect().ready().await?;
    let order = format!("{notes}/order");
    expect_notes(&node, &order, 3).await?;
    served.delete().await?;
    served.expect_gone().await?;
    let told = node.stack().read(&order)?;
    let ends: Vec<&str> = told.lines().filter(|line| line.ends_with("ends")).collect();
    ensure!(ends == ["main ends", "second ends", "first ends"], "{told:?}");
    Ok(())
}

async fn a_sidecar_does_not_keep_a_job_from_its_end(node: Node) -> Result<()> {
    let job = pod("job").script("sleep 1").restart("Never").volume("notes", "/notes", json!({ "emptyDir": {} }));
    let job = job.spec(json!({ "initContainers": [sidecar("helper", "while :; do sleep 0.1; done")] }));
    let pod = node.run(job).await?.expect().phase("Succeeded").exit_code(0).await?;
    let status = pod.status.context("a status")?;
    let helper = status_of(&status.init_container_statuses, "helper")?;
    let state = helper.state.clone().unwrap_or_default();
    ensure!(state.terminated.is_some() && helper.restart_count == 0, "helper {helper:?}");
    Ok(())
}

async fn a_sidecar_is_restarted_on_its_own(node: Node) -> Result<()> {
    let script = "[ -e /notes/been-here ] || { touch /notes/been-here; sleep 2; exit 0; }; sleep 1000000";
    let served = pod("served").restart("Never").volume("notes", "/notes", json!({ "emptyDir": {} }));
    let served = served.spec(json!({ "initContainers": [sidecar("helper", script)] }));
    let served = node.run(served).await?;
    let again = |pod: &Pod| {
        let list = pod.status.as_ref().and_then(|status| status.init_container_statuses.clone());
        let helper = status_of(&list, "helper").map(|it| (it.restart_count, it.state.clone().unwrap_or_default()));
        helper.is_ok_and(|(count, state)| count == 1 && state.running.is_some())
    };
    let pod = served.expect().ready().that("a second helper", again).await?;
    let status = pod.status.context("a status")?;
    ensure!(status_of(&status.container_statuses, "main")?.restart_count == 0);
    Ok(())
}

async fn what_follows_a_sidecar_waits_for_its_startup_probe(node: Node) -> Result<()> {
    let served = pod("served").volume("notes", "/notes", json!({ "emptyDir": {} }));
    let mut helper = sidecar("helper", "while :; do sleep 0.1; done");
    helper["startupProbe"] =
        json!({ "exec": { "command": ["sh", "-c", "[ -e /tmp/up ]"] }, "periodSeconds": 1, "failureThreshold": 100 });
    let served = node.run(served.spec(json!({ "initContainers": [helper] }))).await?;
    let waits = |pod: &Pod| {
        let list = |which: fn(&k8s_openapi::api::core::v1::PodStatus) -> &Option<Vec<ContainerStatus>>, name: &str| {
            pod.status.as_ref().and_then(|status| status_of(which(status), name).ok().cloned())
        };
        let helper = list(|status| &status.init_container_statuses, "helper");
        let main = list(|status| &status.container_statuses, "main");
        let runs = |it: &ContainerStatus| it.state.as_ref().is_some_and(|state| state.running.is_some());
        helper.is_some_and(|it| runs(&it) && it.started == Some(false))
            && main.is_some_and(|it| !runs(&it) && it.container_id.is_none())
    };
    served.expect().that("a helper alone", waits).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    served.expect().that("still a helper alone", waits).await?;
    served.exec_in("helper", "touch /tmp/up").await?;
    served.expect().ready().await?;
    Ok(())
}

async fn a_sidecar_that_crashes_does_not_hold_up_what_has_begun_after_it(node: Node) -> Result<()> {
    let script = "[ -e /notes/been-here ] && exit 1; touch /notes/been-here; sleep 4; exit 1";
    let crashing = sidecar("crashing", script);
    let mut steady = sidecar("steady", "while :; do sleep 0.1; done");
    steady["startupProbe"] = json!({ "exec": { "command": ["sh", "-c", "[ -e /tmp/up ]"] }, "periodSeconds": 1 });
    let served = pod("served").volume("notes", "/notes", json!({ "emptyDir": {} }));
    let served = node.run(served.spec(json!({ "initContainers": [crashing, steady] }))).await?;
    let is_down = |pod: &Pod| {
        let list = pod.status.as_ref().and_then(|status| status.init_container_statuses.clone());
        let runs = |name: &str| {
            status_of(&list, name).is_ok_and(|it| it.state.as_ref().is_some_and(|it| it.running.is_some()))
        };
        let restarts = status_of(&list, "crashing").map_or(0, |it| it.restart_count);
        restarts > 0 && !runs("crashing") && runs("steady")
    };
    served.expect().that("a crashed sidecar beside a steady one", is_down).await?;
    served.exec_in("steady", "touch /tmp/up").await?;
    served.expect().running().await?;
    Ok(())
}

async fn a_sidecar_gets_what_is_left_of_the_grace(node: Node) -> Result<()> {
    let deaf = "trap '' TERM; while :; do sleep 0.1; done";
    let stubborn = pod("stubborn").script(deaf).volume("notes", "/notes", json!({ "emptyDir": {} }));
    let sidecars = json!({ "initContainers": [sidecar("helper", deaf)], "terminationGracePeriodSeconds": 16 });
    let stubborn = node.run(stubborn.spec(sidecars)).await?;
    stubborn.expect().ready().await?;
    let begin = Instant::now();
    stubborn.delete().await?;
    stubborn.expect_gone().await?;
    let took = begin.elapsed();
    // The whole grace for the one, the least there is for the other; not the whole for both.
    ensure!(took >= Duration::from_secs(17) && took < Duration::from_secs(32), "took {took:?}");
    Ok(())
}

async fn sidecars_of_a_replaced_sandbox_get_what_is_left_of_the_grace(node: Node) -> Result<()> {
    let deaf = "trap '' TERM; while :; do sleep 0.1; done";
    let stubborn = pod("stubborn").script(deaf).volume("notes", "/notes", json!({ "emptyDir": {} }));
    let sidecars = json!({ "initContainers": [sidecar("helper", deaf)], "terminationGracePeriodSeconds": 16 });
    let stubborn = node.run(stubborn.spec(sidecars)).await?;
    stubborn.expect().ready().await?;
    let sandboxes = node.runtime()?.list_sandboxes(&Scope::Pod(PodUid::new(&stubborn.uid))).await?;
    let sandbox = ContainerId::new(sandboxes[0].id.as_str());
    for pid in PodCgroup::of(&stubborn, "BestEffort").of_container(&sandbox).processes()? {
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(killed.success(), "kill {pid}");
    }
    let begin = Instant::now();
    stubborn.expect().restarts(1).ready().await?;
    let took = begin.elapsed();
    // The whole grace for the one, the least there is for the other, and a start; not the whole for both.
    ensure!(took >= Duration::from_secs(17) && took < Duration::from_secs(32), "took {took:?}");
    Ok(())
}

async fn hooks_of_sidecars_do_not_wait_for_their_turn(node: Node) -> Result<()> {
    let notes = format!("/var/lib/notes/{}", node.namespace());
    let volume = json!({ "hostPath": { "path": notes, "type": "DirectoryOrCreate" } });
    let slow = "trap 'sleep 3; echo main ends >> /notes/order; exit 0' TERM; echo main starts >> /notes/order; \
                while :; do sleep 0.1; done";
    let mut helper = sidecar("helper", &noting("helper"));
    let hook = json!({ "exec": { "command": ["sh", "-c", "echo helper ends soon >> /notes/order"] } });
    helper["lifecycle"] = json!({ "preStop": hook });
    let served = pod("served").script(slow).volume("notes", "/notes", volume);
    let served = served.spec(json!({ "initContainers": [helper], "terminationGracePeriodSeconds": 30 }));
    let served = node.run(served).await?;
    served.expect().ready().await?;
    let order = format!("{notes}/order");
    expect_notes(&node, &order, 2).await?;
    served.delete().await?;
    served.expect_gone().await?;
    let told = node.stack().read(&order)?;
    let ends: Vec<&str> = told.lines().skip(2).collect();
    ensure!(ends == ["helper ends soon", "main ends", "helper ends"], "{told:?}");
    Ok(())
}

async fn a_container_is_restarted_by_its_own_rules(node: Node) -> Result<()> {
    let script = "[ -e /notes/been-here ] && exit 0; touch /notes/been-here; exit 42";
    let rule = json!({ "action": "Restart", "exitCodes": { "operator": "In", "values": [42] } });
    let ruled = pod("ruled").script(script).restart("Never");
    let ruled = ruled.container(json!({ "restartPolicy": "Never", "restartPolicyRules": [rule] }));
    let ruled = node.run(ruled.volume("notes", "/notes", json!({ "emptyDir": {} }))).await?;
    ruled.expect().phase("Succeeded").restarts(1).exit_code(0).await?;
    Ok(())
}

async fn a_container_that_is_never_restarted_stays_down(node: Node) -> Result<()> {
    let mixed = pod("mixed").script("sleep 1000000");
    let mixed = node.run(mixed.and_container("once", "exit 0", json!({ "restartPolicy": "Never" }))).await?;
    mixed.expect().running().container("once").terminated("Completed").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let pod = mixed.expect().running().phase("Running").container("once").terminated("Completed").await?;
    let status = pod.status.context("a status")?;
    ensure!(status_of(&status.container_statuses, "once")?.restart_count == 0);
    Ok(())
}

/// Adds a container to a pod that is there.
async fn debug(node: &Node, pod: &str, debugger: Value) -> Result<()> {
    let patch = Patch::Strategic(json!({ "spec": { "ephemeralContainers": [debugger] } }));
    node.api::<Pod>().patch_ephemeral_containers(pod, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// The container `debugger` has ended as those of these stories do.
fn debugger_has_ended(pod: &Pod) -> bool {
    let list = pod.status.as_ref().and_then(|status| status.ephemeral_container_statuses.clone());
    let state = status_of(&list, "debugger").ok().and_then(|it| it.state.clone());
    state.and_then(|state| state.terminated).is_some_and(|exit| exit.exit_code == 3)
}

async fn a_container_for_debugging_joins_a_running_pod(node: Node) -> Result<()> {
    let sick = node.run(pod("sick").script("exec sleep 1000000")).await?;
    sick.expect().ready().await?;
    let before = sick.instance().await?;
    let debugger = json!({
        "name": "debugger",
        "image": BUSYBOX,
        "command": ["sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline; exit 3"],
        "targetContainerName": "main",
    });
    debug(&node, "sick", debugger).await?;
    sick.expect().ready().that("an end of the debugger", debugger_has_ended).await?;
    // It has seen the processes of its target, and is not started again.
    ensure!(sick.log_of("debugger", 0)?.starts_with("sleep 1000000"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let pod = sick.expect().ready().that("an end of the debugger", debugger_has_ended).await?;
    let list = pod.status.context("a status")?.ephemeral_container_statuses;
    ensure!(status_of(&list, "debugger")?.restart_count == 0);
    ensure!(sick.instance().await? == before);
    Ok(())
}

async fn a_container_for_debugging_may_bring_what_its_pod_had_no_need_of(node: Node) -> Result<()> {
    // Nobody mounts these yet, and one of them has nothing to show.
    let volumes = json!([
        { "name": "scratch", "emptyDir": {} },
        { "name": "tools", "configMap": { "name": "tools" } },
    ]);
    let sick = node.run(pod("sick").script("exec sleep 1000000").spec(json!({ "volumes": volumes }))).await?;
    sick.expect().ready().await?;
    let before = sick.instance().await?;
    let config_map =
        |name: &str, word: &str| json!({ "metadata": { "name": name }, "data": { "word": format!("{word}\n") } });
    node.create::<ConfigMap>(config_map("words", "knock")).await?;
    let word = json!({ "name": "WORD", "valueFrom": { "configMapKeyRef": { "name": "words", "key": "word" } } });
    let mounts = json!([{ "name": "scratch", "mountPath": "/scratch" }, { "name": "tools", "mountPath": "/tools" }]);
    let debugger = json!({
        "name": "debugger",
        "image": BUSYBOX,
        "command": ["sh", "-c", "stat -c %a /scratch; cat /tools/word; echo \"$WORD\"; exit 3"],
        "env": [word],
        "volumeMounts": mounts,
    });
    debug(&node, "sick", debugger).await?;
    sick.expect_failed_mount("configmap \"tools\" not found").await?;
    sick.expect().ready().await?;
    node.create::<ConfigMap>(config_map("tools", "hammer")).await?;
    sick.expect().ready().that("an end of the debugger", debugger_has_ended).await?;
    let said = sick.log_of("debugger", 0)?;
    ensure!(said.trim() == "777\nhammer\nknock", "{said:?}");
    ensure!(sick.instance().await? == before);
    Ok(())
}

async fn a_container_for_debugging_needs_its_target(node: Node) -> Result<()> {
    let stuck = pod("stuck").container(json!({ "image": "ferrolet.test/absent:1", "imagePullPolicy": "Never" }));
    let stuck = node.run(stuck).await?;
    stuck.expect().waiting("ErrImageNeverPull").await?;
    let debugger = json!({ "name": "debugger", "image": BUSYBOX, "targetContainerName": "main" });
    debug(&node, "stuck", debugger).await?;
    let is_told = |pod: &Pod| {
        let list = pod.status.as_ref().and_then(|status| status.ephemeral_container_statuses.clone());
        let waiting = status_of(&list, "debugger").ok().and_then(|it| it.state.as_ref()?.waiting.clone());
        waiting.is_some_and(|it| {
            it.reason.as_deref() == Some("CreateContainerConfigError")
                && it.message.as_deref() == Some("unable to find target container main")
        })
    };
    stuck.expect().that("what the debugger waits for", is_told).await?;
    Ok(())
}
