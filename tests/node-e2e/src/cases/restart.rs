//! The agent is killed or stopped, at any moment, and starts again.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferrolet::cri::{ContainerState, ContainerStateKind, Runtime, Scope};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, PodCondition};
use kube::api::DeleteParams;
use serde_json::json;

use crate::harness::{Case, Lab, Node, PodBuilder, PodHandle, WITHIN, pod};
use crate::own;
use crate::poll::{self, Look};
use crate::stack::State;

pub const CASES: &[Case] = &[
    own!(a_killed_agent_disturbs_no_container).in_subset(),
    own!(a_stopped_agent_leaves_its_pods_running),
    own!(half_started_pods_never_run_twice_at_once),
    own!(half_created_containers_do_not_stay).beyond_upstream("it leaves them until their pod is gone"),
    own!(a_second_agent_is_refused).beyond_upstream("two of it start every container twice"),
    own!(a_ready_pod_stays_ready_while_its_probes_fail_but_not_often_enough),
    own!(a_static_pod_goes_on_as_it_was_told).beyond_upstream("it tells that it is not ready"),
    own!(a_manifest_changed_meanwhile_waits_for_the_first_to_end).beyond_upstream("it runs both at once"),
    own!(what_ended_meanwhile_is_seen),
    own!(what_was_taken_away_meanwhile_has_ended),
    own!(what_was_deleted_meanwhile_is_torn_down),
    own!(a_half_done_deletion_is_finished),
    own!(a_crash_loop_is_counted_on),
    own!(a_crash_back_off_is_carried_over).beyond_upstream("it forgets its back-offs"),
];

/// Waits until the agent has taken up its work, as far as a new pod can tell.
async fn back_at_work(node: &Node) -> Result<()> {
    let witness = node.run(pod("witness")).await?;
    witness.expect().ready().await?;
    Ok(())
}

async fn unchanged(pod: &PodHandle, before: &(String, i32)) -> Result<()> {
    let after = pod.instance().await?;
    ensure!(after == *before, "pod {}: {before:?} became {after:?}", pod.name);
    Ok(())
}

async fn a_killed_agent_disturbs_no_container(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.static_pod("fixed.json", &pod("fixed").manifest())).await?;
    let memory = json!({ "emptyDir": { "medium": "Memory" } });
    let running = [
        node.run(pod("plain")).await?,
        node.run(pod("with-memory").volume("m", "/m", memory)).await?,
        node.run(pod("on-host").spec(json!({ "hostNetwork": true }))).await?,
        node.mirror_pod("fixed").await?,
    ];
    let done = node.run(pod("done").script("exit 0").restart("Never")).await?;
    let mut before = Vec::new();
    for pod in &running {
        pod.expect().ready().await?;
        before.push(pod.instance().await?);
    }
    done.expect().phase("Succeeded").await?;
    let done_before = done.instance().await?;

    ensure!(node.stack().agent().kill().await? == State::Killed { signal: 9 });
    node.stack().agent().start().await?;
    back_at_work(&node).await?;
    for (pod, before) in running.iter().zip(&before) {
        pod.expect().ready().await?;
        unchanged(pod, before).await?;
    }
    done.expect().phase("Succeeded").await?;
    unchanged(&done, &done_before).await?;
    for pod in running.iter().take(3).chain([&done]) {
        let containers = node.containers_of(pod).await?;
        ensure!(containers.len() == 1, "pod {} has {containers:?}", pod.name);
    }
    Ok(())
}

async fn a_stopped_agent_leaves_its_pods_running(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let running = node.run(pod("running")).await?;
    running.expect().ready().await?;
    let before = running.instance().await?;
    ensure!(node.stack().agent().stop().await? == State::Exited { code: 0 });
    let containers = node.containers_of(&running).await?;
    ensure!(containers[0].state == ContainerStateKind::Running, "{containers:?}");
    node.stack().agent().start().await?;
    back_at_work(&node).await?;
    unchanged(&running, &before).await
}

async fn half_started_pods_never_run_twice_at_once(lab: Lab) -> Result<()> {
    let (node, pods) = killed_while_starting(&lab).await?;
    for pod in &pods {
        never_two_at_once(&node, pod).await?;
    }
    Ok(())
}

async fn half_created_containers_do_not_stay(lab: Lab) -> Result<()> {
    let (node, pods) = killed_while_starting(&lab).await?;
    poll::until("no half-created container", WITHIN, async || {
        for pod in &pods {
            let containers = node.containers_of(pod).await?;
            if containers.iter().any(|it| it.state == ContainerStateKind::Created) {
                return Ok(Look::NotYet(format!("pod {} has {containers:?}", pod.name)));
            }
        }
        Ok(Look::Done(()))
    })
    .await
}

/// Kills the agent four times while it starts pods; in the end all of them are Ready.
async fn killed_while_starting(lab: &Lab) -> Result<(Node, Vec<PodHandle>)> {
    let node = lab.node(|stack| stack).await?;
    let mut pods = Vec::new();
    for round in 0..4 {
        for number in 0..3 {
            pods.push(node.run(pod(&format!("pod-{round}-{number}"))).await?);
        }
        // Killed at another stage each time: with the pods just seen, with the first sandbox,
        // with the first container, with the first that runs.
        poll::until(format!("stage {round}"), WITHIN, async || {
            let latest = &pods[pods.len() - 3..];
            Ok(match stage(&node, latest).await? >= round {
                true => Look::Done(()),
                false => Look::NotYet("earlier".to_owned()),
            })
        })
        .await?;
        node.stack().agent().kill().await?;
        node.stack().agent().start().await?;
    }
    for pod in &pods {
        pod.expect().ready().await?;
    }
    Ok((node, pods))
}

/// Of all instances that have run and that the runtime still knows, each began after the end of the one before.
/// More than one in a row is fine: a start that the agent did not live to see is undone by
/// the runtime.
async fn never_two_at_once(node: &Node, pod: &PodHandle) -> Result<()> {
    let mut instances = node.instances_of(pod).await?;
    instances.retain(|instance| instance.state != ContainerState::Created);
    instances.sort_by_key(|instance| instance.created_at);
    let (last, earlier) = instances.split_last().context("a container")?;
    ensure!(last.is_running(), "pod {}: {last:?}", pod.name);
    for (instance, next) in earlier.iter().zip(&instances[1..]) {
        let end = instance.exit().map(|exit| exit.finished_at);
        let end = end.with_context(|| format!("pod {} still has {instance:?}", pod.name))?;
        ensure!(end <= Some(next.created_at), "pod {}: {instance:?} beside {next:?}", pod.name);
    }
    Ok(())
}

/// How far the first of these pods is: 0 nothing, 1 a sandbox, 2 a container, 3 it runs.
async fn stage(node: &Node, pods: &[PodHandle]) -> Result<i32> {
    let runtime = node.runtime()?;
    let of_pods = |uid: &str| pods.iter().any(|pod| pod.uid == uid);
    let containers = runtime.list_containers(&Scope::All).await?;
    let mut containers = containers.iter().filter(|it| of_pods(&it.pod_uid)).peekable();
    if containers.peek().is_some() {
        let runs = containers.any(|it| it.state == ContainerStateKind::Running);
        return Ok(if runs { 3 } else { 2 });
    }
    let sandboxes = runtime.list_sandboxes(&Scope::All).await?;
    Ok(sandboxes.iter().any(|it| of_pods(&it.pod_uid)) as i32)
}

async fn a_second_agent_is_refused(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let pod = node.run(pod("only")).await?;
    pod.expect().ready().await?;
    let before = pod.instance().await?;
    let second = lab.agent().binary()?;
    let ended = node.stack().run(&[&second.to_string_lossy(), "--config=/var/lib/kubelet/config.yaml"]).await;
    let error = format!("{:#}", ended.err().context("a second agent ended as if all were well")?);
    ensure!(error.contains("Exited { code: 1 }") && error.contains("another agent uses /var/lib/kubelet"), "{error}");
    unchanged(&pod, &before).await
}

/// Once `/tmp/well` is there it has started and is ready. Without it, it would be neither if it
/// began anew, and goes on being both for ten minutes.
fn probed(name: &str) -> PodBuilder {
    let probe =
        json!({ "exec": { "command": ["test", "-e", "/tmp/well"] }, "periodSeconds": 1, "failureThreshold": 600 });
    let probes = json!({ "startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe });
    pod(name).script("touch /tmp/well; exec sleep 1000000").container(probes)
}

/// The pod is Ready, its probes fail from now on, and the agent is killed over it: nobody sees anything.
async fn stays_ready(node: &Node, pod: &PodHandle) -> Result<()> {
    pod.expect().ready().await?;
    // Upstream takes a younger container for one that has never been ready.
    tokio::time::sleep(Duration::from_secs(12)).await;
    pod.exec("rm /tmp/well").await?;
    let before = pod.expect().ready().await?;
    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    back_at_work(node).await?;
    // So that each probe has failed, and whatever it did has been told.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let after = pod.get().await?;
    let told = |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        let since = |it: PodCondition| (it.type_, it.status, it.last_transition_time);
        let conditions: Vec<_> = status.conditions.into_iter().flatten().map(since).collect();
        let containers = status.container_statuses.into_iter().flatten();
        let containers: Vec<_> =
            containers.map(|it| (it.container_id, it.ready, it.started, it.restart_count)).collect();
        (status.start_time, conditions, containers)
    };
    ensure!(told(&before) == told(&after), "{:?} became {:?}", told(&before), told(&after));
    Ok(())
}

async fn a_ready_pod_stays_ready_while_its_probes_fail_but_not_often_enough(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let pod = node.run(probed("probed")).await?;
    stays_ready(&node, &pod).await
}

async fn a_static_pod_goes_on_as_it_was_told(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.static_pod("probed.json", &probed("probed").manifest())).await?;
    let mirror = node.mirror_pod("probed").await?;
    stays_ready(&node, &mirror).await
}

async fn a_manifest_changed_meanwhile_waits_for_the_first_to_end(lab: Lab) -> Result<()> {
    // It takes its time to end, and all of it is in a file that both write.
    let numbered = |number: u32| {
        let script = format!(
            "trap 'sleep 0.5; echo end {number} >> /lives/lines; exit' TERM; \
             echo begin {number} >> /lives/lines; while :; do sleep 0.05; done"
        );
        let lives = json!({ "hostPath": { "path": "/var/lib/lives", "type": "DirectoryOrCreate" } });
        pod("web").script(&script).volume("lives", "/lives", lives)
    };
    let node = lab.node(|stack| stack.static_pod("web.json", &numbered(1).manifest())).await?;
    let lives = async |expected: &str| {
        poll::until(format!("{expected:?}"), WITHIN, async || {
            let lines = node.stack().read("/var/lib/lives/lines").unwrap_or_default();
            Ok(if lines == expected { Look::Done(()) } else { Look::NotYet(lines) })
        })
        .await
    };
    lives("begin 1\n").await?;
    node.stack().agent().kill().await?;
    // Whether the first is an orphan is not the API's to say: it may be the one that does not come up.
    node.stack().control_plane().freeze().await?;
    node.static_pod("web.json", &numbered(2).manifest())?;
    node.stack().agent().start().await?;
    lives("begin 1\nend 1\nbegin 2\n").await?;
    node.stack().control_plane().thaw().await?;
    let second = node.expect_static_pod_runs("web").await?.pod_uid;
    poll::until("the mirror of the second", WITHIN, async || {
        let mirror = node.api::<Pod>().get_opt(&format!("web-{}", node.name())).await?;
        let hash = mirror.and_then(|mirror| mirror.metadata.annotations?.remove("kubernetes.io/config.mirror"));
        Ok(if hash.as_ref() == Some(&second) { Look::Done(()) } else { Look::NotYet(format!("{hash:?}")) })
    })
    .await
}

async fn what_ended_meanwhile_is_seen(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let script = "until [ -e /tmp/end ]; do sleep 0.1; done; exit 0";
    let once = node.run(pod("once").script(script).restart("Never")).await?;
    let always = node.run(pod("always").script(script)).await?;
    for pod in [&once, &always] {
        pod.expect().ready().await?;
    }
    node.stack().agent().kill().await?;
    for pod in [&once, &always] {
        pod.exec("touch /tmp/end").await?;
        poll::until(format!("end of {}", pod.name), WITHIN, async || {
            let containers = node.containers_of(pod).await?;
            Ok(match containers[0].state {
                ContainerStateKind::Exited => Look::Done(()),
                other => Look::NotYet(format!("{other:?}")),
            })
        })
        .await?;
    }
    node.stack().agent().start().await?;
    once.expect().phase("Succeeded").exit_code(0).await?;
    always.expect().restarts(1).await?;
    Ok(())
}

async fn what_was_taken_away_meanwhile_has_ended(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let once = node.run(pod("once").restart("Never")).await?;
    let always = node.run(pod("always")).await?;
    for pod in [&once, &always] {
        pod.expect().ready().await?;
    }
    node.stack().agent().kill().await?;
    for pod in [&once, &always] {
        node.take_away(pod).await?;
    }
    node.stack().agent().start().await?;
    once.expect().phase("Failed").exit_code(137).terminated("ContainerStatusUnknown").await?;
    always.expect().restarts(1).ready().await?;
    node.expect_no_containers_of(&once).await
}

async fn what_was_deleted_meanwhile_is_torn_down(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    node.static_pod("fixed.json", &pod("fixed").manifest())?;
    let [deleted, forced, kept] = ["deleted", "forced", "kept"].map(pod);
    let deleted = node.run(deleted).await?;
    let forced = node.run(forced).await?;
    let kept = node.run(kept).await?;
    let fixed = node.mirror_pod("fixed").await?;
    for pod in [&deleted, &forced, &kept, &fixed] {
        pod.expect().ready().await?;
    }
    let before = kept.instance().await?;

    node.stack().agent().kill().await?;
    deleted.delete().await?;
    // Its object is gone before the agent is back.
    let now = DeleteParams::default().grace_period(0);
    node.api::<Pod>().delete(&forced.name, &now).await?;
    forced.expect_gone().await?;
    node.remove_static_pod("fixed.json")?;

    node.stack().agent().start().await?;
    for pod in [&deleted, &fixed] {
        pod.expect_gone().await?;
    }
    for pod in [&deleted, &forced] {
        let directory = format!("/var/lib/kubelet/pods/{}", pod.uid);
        node.expect_absent(&node.stack().on_node(&directory)).await?;
        node.expect_no_containers_of(pod).await?;
    }
    node.expect_no_containers("fixed").await?;
    unchanged(&kept, &before).await
}

async fn a_half_done_deletion_is_finished(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let script = "trap 'echo told' TERM; echo up; while :; do sleep 0.1; done";
    let slow = pod("slow").script(script).spec(json!({ "terminationGracePeriodSeconds": 5 }));
    let slow = node.run(slow).await?;
    slow.expect().ready().await?;
    slow.expect_log("up\n").await?;
    slow.delete().await?;
    slow.expect_log("told\n").await?;
    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    slow.expect_gone().await?;
    node.expect_no_containers_of(&slow).await
}

/// A pod that has crashed thrice, and so waits 20 s for its next start.
async fn crashing(node: &Node) -> Result<(PodHandle, i32)> {
    let script = "echo start >> /starts/lines; exit 1";
    let starts = json!({ "path": "/var/lib/starts", "type": "DirectoryOrCreate" });
    let crashing = pod("crashing").script(script);
    let crashing = crashing.volume("starts", "/starts", json!({ "hostPath": starts }));
    let crashing = node.run(crashing).await?;
    crashing.expect().waiting("CrashLoopBackOff").restarts(2).await?;
    let (_, restarts) = crashing.instance().await?;
    Ok((crashing, restarts))
}

async fn a_crash_loop_is_counted_on(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let (crashing, restarts) = crashing(&node).await?;
    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    // The count is read off the containers; nothing is forgotten, nothing counted twice.
    let next = crashing.expect().waiting("CrashLoopBackOff").restarts(restarts + 1);
    next.within(WITHIN * 2).await?;
    let (_, restarts) = crashing.instance().await?;
    let starts = node.stack().read("/var/lib/starts/lines")?.lines().count();
    ensure!(starts as i32 == restarts + 1, "{starts} starts, but {restarts} restarts");
    Ok(())
}

async fn a_crash_back_off_is_carried_over(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack).await?;
    let (crashing, restarts) = crashing(&node).await?;
    let before = last_instance(&crashing.get().await?)?;
    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    let next = crashing.expect().waiting("CrashLoopBackOff").restarts(restarts + 1).await?;
    let (Some(end), Some(start)) = (before.finished_at, last_instance(&next)?.started_at) else {
        bail!("the instances have no times");
    };
    // 20 s after the third crash; but times at the API are whole seconds.
    let waited = start.0.duration_since(end.0);
    ensure!(waited.as_secs() >= 19, "started again after {waited}");
    Ok(())
}

fn last_instance(pod: &Pod) -> Result<ContainerStateTerminated> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let last = &statuses.context("statuses")?[0].last_state;
    let terminated = last.as_ref().and_then(|state| state.terminated.clone());
    terminated.context("a last instance")
}
