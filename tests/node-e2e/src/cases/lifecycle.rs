//! From creation to the end: phases, restarts, termination messages, deletion.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use crate::harness::{Case, Node, PodCgroup, PodHandle, pod};
use crate::provision::BUSYBOX;
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(a_pod_becomes_ready).in_subset(),
    shared!(a_deployment_of_three_becomes_ready).in_subset(),
    shared!(a_pod_that_is_done_succeeds),
    shared!(a_pod_that_exits_badly_fails).in_subset(),
    shared!(a_pod_of_two_ends_with_the_last_of_them),
    shared!(always_restarts_after_success),
    shared!(on_failure_restarts_until_success),
    shared!(a_crash_loop_backs_off).in_subset(),
    shared!(a_container_that_was_taken_away_starts_again_as_its_policy_says),
    shared!(a_container_that_was_taken_away_is_over_beside_others).beyond_upstream("it forgets that it ran"),
    shared!(a_command_that_does_not_exist_is_named),
    shared!(a_termination_message_is_read_from_its_file),
    shared!(a_termination_message_falls_back_to_the_log),
    shared!(of_a_long_log_the_last_lines_and_bytes_are_the_message),
    shared!(deletion_lets_a_container_end_by_itself).in_subset(),
    shared!(deletion_kills_after_the_grace_period),
    shared!(deletion_leaves_nothing_on_the_node).in_subset(),
    shared!(a_pod_that_is_active_for_too_long_fails).in_subset(),
    shared!(a_deadline_bounds_restarts_too),
    shared!(a_second_deletion_may_shorten_the_grace).beyond_upstream("it lets the first grace run out all the same"),
    shared!(a_forced_deletion_still_stops_the_containers),
    shared!(a_pod_deleted_before_its_start_fails),
];

async fn a_pod_becomes_ready(node: Node) -> Result<()> {
    let web = node.run(pod("web").script("echo hello; exec httpd -f -p 8080")).await?;
    let status = web.expect().ready().running().await?.status.context("a status")?;
    web.expect_log("hello\n").await?;

    let address = status.pod_ip.context("an address")?;
    ensure!(status.pod_ips.context("addresses")?[0].ip == address);
    ensure!(status.host_ip == Some(node.stack().node_address().to_string()));
    ensure!(status.qos_class.as_deref() == Some("BestEffort"));
    ensure!(status.start_time.is_some());
    ensure!(status.observed_generation == Some(1));
    let container = &status.container_statuses.context("container statuses")?[0];
    ensure!(container.image == BUSYBOX, "image {}", container.image);
    ensure!(container.image_id.contains("sha256:"), "image id {}", container.image_id);
    let id = container.container_id.as_deref().unwrap_or_default();
    let bare_id = id.strip_prefix("containerd://").with_context(|| format!("container id {id}"))?;
    ensure!(container.started == Some(true));
    // Collectors of logs look here.
    let link = format!("/var/log/containers/web_{}_main-{bare_id}.log", node.namespace());
    let log = std::fs::read_link(node.stack().on_node(&link)).context("a link to the log")?;
    ensure!(log.ends_with("main/0.log"), "the link leads to {}", log.display());

    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        web.expect_event(reason).await?;
    }
    Ok(())
}

async fn a_deployment_of_three_becomes_ready(node: Node) -> Result<()> {
    let template = pod("ignored").metadata(json!({ "labels": { "app": "web" } })).object()?;
    let deployment = json!({
        "metadata": { "name": "web" },
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": template.spec },
        },
    });
    node.create::<Deployment>(deployment).await?;
    node.expect_object::<Deployment>("web", "3 ready replicas", |deployment| {
        deployment.status.as_ref().and_then(|status| status.ready_replicas) == Some(3)
    })
    .await?;

    let pods = node.api::<Pod>().list(&ListParams::default()).await?.items;
    let mut addresses: Vec<_> =
        pods.into_iter().filter_map(|pod| pod.status.and_then(|status| status.pod_ip)).collect();
    addresses.sort();
    addresses.dedup();
    ensure!(addresses.len() == 3, "addresses {addresses:?}");
    Ok(())
}

async fn a_pod_that_is_done_succeeds(node: Node) -> Result<()> {
    let done = node.run(pod("done").script("echo done").restart("Never")).await?;
    let pod = done.expect().phase("Succeeded").exit_code(0).terminated("Completed").await?;
    done.expect().condition("Ready", "False").condition("ContainersReady", "False").await?;
    let conditions = pod.status.and_then(|status| status.conditions).context("conditions")?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    let reason = ready.and_then(|ready| ready.reason.as_deref());
    ensure!(reason == Some("PodCompleted"), "reason {reason:?}");
    Ok(())
}

async fn a_pod_that_exits_badly_fails(node: Node) -> Result<()> {
    let failing = node.run(pod("failing").script("exit 3").restart("Never")).await?;
    failing.expect().phase("Failed").exit_code(3).terminated("Error").await?;
    Ok(())
}

async fn a_pod_of_two_ends_with_the_last_of_them(node: Node) -> Result<()> {
    let two = pod("two").script("exit 1").restart("Never").and_container(
        "other",
        "until [ -e /tmp/go ]; do sleep 0.1; done",
        json!({}),
    );
    let two = node.run(two).await?;
    two.expect().exit_code(1).container("other").running().phase("Running").await?;
    two.exec_in("other", "touch /tmp/go").await?;
    two.expect().phase("Failed").container("other").exit_code(0).await?;
    Ok(())
}

async fn always_restarts_after_success(node: Node) -> Result<()> {
    let again = node.run(pod("again").script("exit 0")).await?;
    let pod = again.expect().restarts(1).await?;
    let status = pod.status.and_then(|status| status.container_statuses).context("statuses")?;
    let last = status[0].last_state.as_ref().and_then(|state| state.terminated.as_ref());
    ensure!(last.is_some_and(|last| last.exit_code == 0), "last state {last:?}");
    Ok(())
}

async fn on_failure_restarts_until_success(node: Node) -> Result<()> {
    // The volume outlives the container, so that its second life is a success.
    let script = "[ -e /memory/been-here ] && exit 0; touch /memory/been-here; exit 1";
    let second = pod("second-try").script(script).restart("OnFailure");
    let second = node.run(second.volume("memory", "/memory", json!({ "emptyDir": {} }))).await?;
    second.expect().phase("Succeeded").restarts(1).exit_code(0).await?;
    Ok(())
}

async fn a_crash_loop_backs_off(node: Node) -> Result<()> {
    let crashing = node.run(pod("crashing").script("echo crash; exit 1")).await?;
    let pod = crashing.expect().waiting("CrashLoopBackOff").restarts(1).await?;
    let uid = &crashing.uid;
    let expected = format!("back-off 10s restarting failed container=main pod=crashing_{}({uid})", node.namespace());
    let statuses = pod.status.and_then(|status| status.container_statuses).context("statuses")?;
    let waiting = statuses[0].state.as_ref().and_then(|state| state.waiting.as_ref());
    let message = waiting.and_then(|waiting| waiting.message.as_deref());
    ensure!(message == Some(&expected), "message {message:?}");
    crashing.expect_event("BackOff").await?;

    // The log of the latest instance that ended is what is kept; older ones go.
    let pod = crashing.expect().waiting("CrashLoopBackOff").restarts(2).await?;
    ensure!(crashing.log_of("main", 2)? == "crash\n");
    let status = pod.status.context("a status")?;
    ensure!(status.phase.as_deref() == Some("Running"), "phase {:?}", status.phase);
    Ok(())
}

async fn a_container_that_was_taken_away_starts_again_as_its_policy_says(node: Node) -> Result<()> {
    let once = node.run(pod("once").restart("Never")).await?;
    let again = node.run(pod("again").restart("OnFailure")).await?;
    for pod in [&once, &again] {
        pod.expect().ready().await?;
        node.take_away(pod).await?;
    }
    // Whoever hears this has something else run in its place.
    once.expect().phase("Failed").exit_code(137).await?;
    again.expect().restarts(1).ready().await?;
    let instances = node.instances_of(&once).await?;
    ensure!(!instances.iter().any(|instance| instance.attempt > 0), "{instances:?}");
    Ok(())
}

async fn a_container_that_was_taken_away_is_over_beside_others(node: Node) -> Result<()> {
    let two = pod("two").restart("Never").and_container("other", "until [ -e /tmp/go ]; do sleep 0.1; done", json!({}));
    let two = node.run(two).await?;
    two.expect().ready().await?;
    node.take_away(&two).await?;
    two.expect().exit_code(137).container("other").running().phase("Running").await?;
    two.exec_in("other", "touch /tmp/go").await?;
    two.expect().phase("Failed").container("other").exit_code(0).await?;
    let instances = node.instances_of(&two).await?;
    ensure!(!instances.iter().any(|instance| instance.attempt > 0), "{instances:?}");
    Ok(())
}

async fn a_command_that_does_not_exist_is_named(node: Node) -> Result<()> {
    let wrong = pod("wrong").container(json!({ "command": ["/no/such/command"] }));
    let wrong = node.run(wrong).await?;
    let bystander = node.run(pod("bystander")).await?;
    wrong
        .expect()
        .status("told of the command", |status| {
            format!("{:?}{:?}", status.state, status.last_state).contains("/no/such/command")
        })
        .await?;
    let message = wrong.expect_event("Failed").await?;
    // The runtime's own words, from the first one on.
    ensure!(message.starts_with("Error: failed to ") && !message.contains("StartContainer"), "{message}");
    bystander.expect().ready().await?;
    Ok(())
}

async fn a_termination_message_is_read_from_its_file(node: Node) -> Result<()> {
    let script = "printf 'disk on fire' > /dev/termination-log; exit 1";
    let pod = node.run(pod("last-words").script(script).restart("Never")).await?;
    expect_message(&pod, "disk on fire").await
}

async fn a_termination_message_falls_back_to_the_log(node: Node) -> Result<()> {
    let pod = pod("last-words").script("echo smoke; echo disk on fire; exit 1").restart("Never");
    let policy = json!({ "terminationMessagePolicy": "FallbackToLogsOnError" });
    let pod = node.run(pod.container(policy)).await?;
    expect_message(&pod, "smoke\ndisk on fire\n").await
}

async fn of_a_long_log_the_last_lines_and_bytes_are_the_message(node: Node) -> Result<()> {
    let policy = json!({ "terminationMessagePolicy": "FallbackToLogsOnError" });
    let lines = "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done; exit 1";
    let lines = node.run(pod("lines").script(lines).restart("Never").container(policy.clone())).await?;
    // Longer than what a runtime writes as one line.
    let line = "head -c 17000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1";
    let line = node.run(pod("line").script(line).restart("Never").container(policy)).await?;
    let expected: String = (20..100).map(|nth| format!("line {nth}\n")).collect();
    expect_message(&lines, &expected).await?;
    expect_message(&line, &format!("{}\nthe end\n", "x".repeat(2048 - 9))).await
}

async fn expect_message(pod: &PodHandle, message: &str) -> Result<()> {
    let message = message.to_owned();
    pod.expect()
        .state(format!("message {message:?}"), move |state| {
            state.terminated.as_ref().is_some_and(|it| it.message.as_deref() == Some(&*message))
        })
        .await?;
    Ok(())
}

async fn deletion_lets_a_container_end_by_itself(node: Node) -> Result<()> {
    // The volume is on the node's own disk, to see afterwards that the trap ran to its end.
    let script = "trap 'sleep 1; echo bye > /out/bye; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let witness = format!("/var/lib/witness/{}", node.namespace());
    let polite = pod("polite").script(script).spec(json!({ "terminationGracePeriodSeconds": 30 }));
    let volume = json!({ "hostPath": { "path": witness, "type": "DirectoryOrCreate" } });
    let polite = node.run(polite.volume("out", "/out", volume)).await?;
    polite.expect().ready().await?;
    polite.expect_log("up\n").await?;

    let begin = Instant::now();
    polite.delete().await?;
    polite.expect_gone().await?;
    ensure!(begin.elapsed() < Duration::from_secs(25), "the grace period was sat out");
    ensure!(node.stack().read(&format!("{witness}/bye"))? == "bye\n");
    Ok(())
}

async fn deletion_kills_after_the_grace_period(node: Node) -> Result<()> {
    let stubborn = pod("stubborn").script("trap '' TERM; echo up; while :; do sleep 0.1; done");
    let stubborn = stubborn.spec(json!({ "terminationGracePeriodSeconds": 3 }));
    let stubborn = node.run(stubborn).await?;
    stubborn.expect().ready().await?;
    stubborn.expect_log("up\n").await?;

    let begin = Instant::now();
    stubborn.delete().await?;
    stubborn.expect_gone().await?;
    ensure!(begin.elapsed() >= Duration::from_secs(3), "killed after {:?}", begin.elapsed());
    Ok(())
}

async fn deletion_leaves_nothing_on_the_node(node: Node) -> Result<()> {
    let tidy = pod("tidy").volume("memory", "/m", json!({ "emptyDir": { "medium": "Memory" } }));
    let tidy = node.run(tidy).await?;
    tidy.expect().ready().await?;
    let cgroup = PodCgroup::of(&tidy, "BestEffort");
    let directory = node.stack().on_node(&format!("/var/lib/kubelet/pods/{}", tidy.uid));
    ensure!(cgroup.exists() && directory.join("volumes").exists());

    tidy.delete().await?;
    tidy.expect_gone().await?;
    // The object goes last, but for the directories and the logs, which may follow.
    ensure!(!cgroup.exists(), "the cgroup is still there");
    node.expect_no_containers_of(&tidy).await?;
    node.expect_absent(&directory).await?;
    node.expect_absent(&tidy.log_directory()).await
}

async fn a_pod_that_is_active_for_too_long_fails(node: Node) -> Result<()> {
    let long = pod("long").spec(json!({ "activeDeadlineSeconds": 3 }));
    let begin = Instant::now();
    let long = node.run(long).await?;
    long.expect().running().await?;
    let pod = long.expect().phase("Failed").await?;
    ensure!(begin.elapsed() >= Duration::from_secs(2), "failed after {:?}", begin.elapsed());
    let status = pod.status.context("a status")?;
    ensure!(status.reason.as_deref() == Some("DeadlineExceeded"), "reason {:?}", status.reason);
    let message = "Pod was active on the node longer than the specified deadline";
    ensure!(status.message.as_deref() == Some(message), "message {:?}", status.message);
    let container = &status.container_statuses.context("container statuses")?[0];
    let state = container.state.clone().unwrap_or_default();
    ensure!(state.terminated.is_some(), "state {state:?}");
    ensure!(long.expect_event("DeadlineExceeded").await? == message);
    Ok(())
}

async fn a_deadline_bounds_restarts_too(node: Node) -> Result<()> {
    let crashing = pod("crashing").script("exit 1").spec(json!({ "activeDeadlineSeconds": 5 }));
    let crashing = node.run(crashing).await?;
    let status = crashing.expect().phase("Failed").await?.status.context("a status")?;
    ensure!(status.reason.as_deref() == Some("DeadlineExceeded"), "reason {:?}", status.reason);
    Ok(())
}

async fn a_second_deletion_may_shorten_the_grace(node: Node) -> Result<()> {
    let stubborn = pod("stubborn").script("trap '' TERM; echo up; while :; do sleep 0.1; done");
    let stubborn = stubborn.spec(json!({ "terminationGracePeriodSeconds": 300 }));
    let stubborn = node.run(stubborn).await?;
    stubborn.expect().ready().await?;
    stubborn.expect_log("up\n").await?;
    stubborn.delete().await?;
    stubborn.expect_event("Killing").await?;
    node.api::<Pod>().delete("stubborn", &DeleteParams::default().grace_period(2)).await?;
    stubborn.expect_gone().await
}

async fn a_forced_deletion_still_stops_the_containers(node: Node) -> Result<()> {
    let forced = node.run(pod("forced").spec(json!({ "terminationGracePeriodSeconds": 2 }))).await?;
    forced.expect().ready().await?;
    node.api::<Pod>().delete("forced", &DeleteParams::default().grace_period(0)).await?;
    forced.expect_gone().await?;
    node.expect_no_containers_of(&forced).await?;
    node.expect_absent(&forced.log_directory()).await
}

async fn a_pod_deleted_before_its_start_fails(node: Node) -> Result<()> {
    // The finalizer keeps the object, so that its last status can be seen.
    let late = pod("late").container(json!({ "image": "ferrolet.test/no-such:1", "imagePullPolicy": "Never" }));
    let late = node.run(late.metadata(json!({ "finalizers": ["ferrolet.test/keep"] }))).await?;
    late.expect().waiting("ErrImageNeverPull").await?;
    late.delete().await?;
    late.expect().phase("Failed").exit_code(137).terminated("ContainerStatusUnknown").await?;
    let release = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    node.api::<Pod>().patch("late", &PatchParams::default(), &release).await?;
    late.expect_gone().await
}
