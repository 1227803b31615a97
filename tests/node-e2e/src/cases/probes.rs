//! Liveness, readiness and startup probes, by every handler.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::harness::{Case, Lab, Node, PodBuilder, PodHandle, pod};
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(a_pod_is_ready_only_once_its_probe_says_so).in_subset(),
    shared!(readiness_goes_and_comes_back),
    shared!(a_failed_liveness_probe_restarts_the_container).in_subset(),
    shared!(a_failed_liveness_probe_ends_a_pod_that_never_restarts),
    shared!(a_liveness_kill_uses_the_grace_of_the_probe),
    shared!(liveness_waits_for_the_startup_probe),
    shared!(a_failed_startup_probe_restarts_the_container),
    shared!(an_http_probe_asks_by_port_name_and_tells_the_code),
    shared!(an_http_probe_that_nobody_answers_tells_why),
    shared!(a_tcp_probe_needs_a_listener),
    shared!(a_grpc_probe_needs_the_protocol),
    shared!(an_exec_probe_shows_the_output_and_has_a_time_limit),
    shared!(a_probe_of_a_port_that_nobody_named_never_passes),
    shared!(a_readiness_probe_goes_on_while_the_pod_stops)
        .beyond_upstream("its exec probes are cancelled with the last sync of the pod"),
    own!(what_was_ready_begins_anew_where_a_gate_says_so),
];

/// A server whose root answers 200 while `/tmp/www/index.html` is there, and 404 else.
fn server(name: &str) -> PodBuilder {
    let script = "mkdir /tmp/www; cd /tmp/www; echo fine > index.html; exec httpd -f -p 8080 -h /tmp/www";
    pod(name).script(script).container(json!({ "ports": [{ "name": "web", "containerPort": 8080 }] }))
}

fn get(port: impl Into<Value>) -> Value {
    json!({ "httpGet": { "port": port.into() }, "periodSeconds": 1 })
}

fn exec(script: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", script] }, "periodSeconds": 1 })
}

/// Sets further fields of a probe.
fn with(mut probe: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().expect("given as an object") {
        probe[name] = value.clone();
    }
    probe
}

/// Waits for an event whose message has all these words.
async fn expect_message(pod: &PodHandle, reason: &str, words: &[&str]) -> Result<()> {
    let begin = Instant::now();
    loop {
        let events = pod.events().await?;
        let messages: Vec<_> = events
            .iter()
            .filter(|event| event.reason.as_deref() == Some(reason))
            .map(|event| event.message.clone().unwrap_or_default())
            .collect();
        if messages.iter().any(|message| words.iter().all(|word| message.contains(word))) {
            return Ok(());
        }
        ensure!(begin.elapsed() < crate::harness::WITHIN, "no {reason} with {words:?} in {messages:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn a_pod_is_ready_only_once_its_probe_says_so(node: Node) -> Result<()> {
    let probe = exec("[ -e /tmp/ready ]");
    let slow = node.run(pod("slow").container(json!({ "readinessProbe": probe }))).await?;
    slow.expect().running().status("started, not ready", |it| it.started == Some(true) && !it.ready).await?;
    slow.expect_event("Unhealthy").await?;
    let pod = slow.expect().condition("Ready", "False").condition("ContainersReady", "False").await?;
    let conditions = pod.status.and_then(|status| status.conditions).context("conditions")?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready").context("a Ready condition")?;
    ensure!(ready.reason.as_deref() == Some("ContainersNotReady"), "{ready:?}");
    ensure!(ready.message.as_deref() == Some("containers with unready status: [main]"), "{ready:?}");
    slow.exec("touch /tmp/ready").await?;
    slow.expect().ready().status("ready", |it| it.ready).restarts(0).await?;
    Ok(())
}

async fn readiness_goes_and_comes_back(node: Node) -> Result<()> {
    let probe = with(get("web"), json!({ "failureThreshold": 2 }));
    let web = node.run(server("web").container(json!({ "readinessProbe": probe }))).await?;
    web.expect().ready().await?;
    web.exec("mv /tmp/www/index.html /tmp/away").await?;
    web.expect().condition("Ready", "False").await?;
    web.exec("mv /tmp/away /tmp/www/index.html").await?;
    let pod = web.expect().ready().await?;
    let restarts = pod.status.and_then(|status| Some(status.container_statuses?[0].restart_count));
    ensure!(restarts == Some(0), "restarted {restarts:?} times");
    Ok(())
}

async fn a_failed_liveness_probe_restarts_the_container(node: Node) -> Result<()> {
    let probe = with(exec("[ ! -e /tmp/sick ]"), json!({ "failureThreshold": 2 }));
    let frail = node.run(pod("frail").container(json!({ "livenessProbe": probe }))).await?;
    frail.expect().ready().await?;
    let before = frail.instance().await?;
    sleep(Duration::from_secs(3)).await;
    ensure!(frail.instance().await? == before, "killed while it was well");
    frail.exec("touch /tmp/sick").await?;
    let pod = frail.expect().restarts(1).running().ready().await?;
    let status = pod.status.and_then(|status| status.container_statuses).context("statuses")?.remove(0);
    let last = status.last_state.and_then(|state| state.terminated).context("a last state")?;
    ensure!(last.exit_code == 137 || last.exit_code == 143, "{last:?}");
    expect_message(&frail, "Unhealthy", &["Liveness probe failed: "]).await?;
    expect_message(&frail, "Killing", &["Container main failed liveness probe, will be restarted"]).await
}

async fn a_failed_liveness_probe_ends_a_pod_that_never_restarts(node: Node) -> Result<()> {
    let probe = with(exec("false"), json!({ "failureThreshold": 1, "initialDelaySeconds": 2 }));
    let once = pod("once").restart("Never").container(json!({ "livenessProbe": probe }));
    let once = node.run(once).await?;
    once.expect().phase("Failed").await?;
    expect_message(&once, "Killing", &["Stopping container main"]).await?;
    expect_message(&once, "Unhealthy", &["Liveness probe failed: "]).await
}

async fn a_liveness_kill_uses_the_grace_of_the_probe(node: Node) -> Result<()> {
    let fields = json!({ "failureThreshold": 1, "terminationGracePeriodSeconds": 2 });
    let probe = with(exec("[ ! -e /tmp/sick ]"), fields);
    let stubborn = pod("stubborn").script("trap '' TERM; while :; do sleep 0.1; done");
    let stubborn = stubborn.spec(json!({ "terminationGracePeriodSeconds": 600 }));
    let stubborn = node.run(stubborn.container(json!({ "livenessProbe": probe }))).await?;
    stubborn.expect().ready().await?;
    stubborn.exec("touch /tmp/sick").await?;
    stubborn.expect().restarts(1).await?;
    // Its own grace would hold the namespace up.
    node.api::<k8s_openapi::api::core::v1::Pod>()
        .delete("stubborn", &kube::api::DeleteParams::default().grace_period(1))
        .await?;
    Ok(())
}

async fn liveness_waits_for_the_startup_probe(node: Node) -> Result<()> {
    let startup = with(exec("[ -e /tmp/up ]"), json!({ "failureThreshold": 100 }));
    let liveness = with(exec("[ -e /tmp/up ]"), json!({ "failureThreshold": 1 }));
    let readiness = exec("true");
    let probes = json!({ "startupProbe": startup, "livenessProbe": liveness, "readinessProbe": readiness });
    let slow = node.run(pod("slow").container(probes)).await?;
    slow.expect().running().await?;
    sleep(Duration::from_secs(4)).await;
    slow.expect().running().status("neither started nor ready", |it| it.started == Some(false) && !it.ready).await?;
    slow.exec("touch /tmp/up").await?;
    let pod = slow.expect().ready().status("started", |it| it.started == Some(true)).await?;
    let restarts = pod.status.and_then(|status| Some(status.container_statuses?[0].restart_count));
    ensure!(restarts == Some(0), "restarted {restarts:?} times");
    Ok(())
}

async fn a_failed_startup_probe_restarts_the_container(node: Node) -> Result<()> {
    let probe = with(exec("false"), json!({ "failureThreshold": 2 }));
    let never = node.run(pod("never").container(json!({ "startupProbe": probe }))).await?;
    never.expect().restarts(1).await?;
    expect_message(&never, "Killing", &["Container main failed startup probe, will be restarted"]).await
}

async fn an_http_probe_asks_by_port_name_and_tells_the_code(node: Node) -> Result<()> {
    let mut probe = get("web");
    probe["httpGet"]["path"] = "/missing?really".into();
    let web = node.run(server("web").container(json!({ "readinessProbe": probe }))).await?;
    web.expect().running().await?;
    let expected = "Readiness probe failed: HTTP probe failed with statuscode: 404";
    expect_message(&web, "Unhealthy", &[expected]).await
}

async fn an_http_probe_that_nobody_answers_tells_why(node: Node) -> Result<()> {
    let silent = node.run(pod("silent").container(json!({ "readinessProbe": get(8081) }))).await?;
    let pod = silent.expect().running().await?;
    let ip = pod.status.and_then(|status| status.pod_ip).context("an address")?;
    let expected =
        format!("Readiness probe failed: Get \"http://{ip}:8081/\": dial tcp {ip}:8081: connect: connection refused");
    expect_message(&silent, "Unhealthy", &[&expected]).await
}

async fn a_tcp_probe_needs_a_listener(node: Node) -> Result<()> {
    let probe = |port| json!({ "readinessProbe": { "tcpSocket": { "port": port }, "periodSeconds": 1 } });
    let heard = node.run(server("heard").container(probe(8080))).await?;
    let unheard = node.run(server("unheard").container(probe(8081))).await?;
    heard.expect().ready().await?;
    expect_message(&unheard, "Unhealthy", &["Readiness probe failed: dial tcp", ":8081: connect: connection refused"])
        .await
}

async fn a_grpc_probe_needs_the_protocol(node: Node) -> Result<()> {
    let probe =
        |port| json!({ "readinessProbe": { "grpc": { "port": port }, "periodSeconds": 1, "timeoutSeconds": 2 } });
    let http = node.run(server("http").container(probe(8080))).await?;
    let nobody = node.run(server("nobody").container(probe(8081))).await?;
    expect_message(&http, "Unhealthy", &["Readiness probe failed: "]).await?;
    let refused = ["Readiness probe failed: ", "failed to connect service", ":8081"];
    expect_message(&nobody, "Unhealthy", &refused).await?;
    let pod = http.get().await?;
    let is_ready = pod.status.and_then(|status| Some(status.container_statuses?[0].ready));
    ensure!(is_ready == Some(false), "ready by a server that speaks no gRPC");
    Ok(())
}

async fn an_exec_probe_shows_the_output_and_has_a_time_limit(node: Node) -> Result<()> {
    let told = node.run(pod("told").container(json!({ "readinessProbe": exec("echo out of ink; exit 3") }))).await?;
    let late = node.run(pod("late").container(json!({ "readinessProbe": exec("sleep 1000") }))).await?;
    expect_message(&told, "Unhealthy", &["Readiness probe failed: out of ink\n"]).await?;
    expect_message(&late, "Unhealthy", &["Readiness probe failed: command timed out: "]).await
}

async fn a_probe_of_a_port_that_nobody_named_never_passes(node: Node) -> Result<()> {
    let lost = node.run(server("lost").container(json!({ "readinessProbe": get("nobody") }))).await?;
    let bystander = node.run(pod("bystander")).await?;
    expect_message(&lost, "Unhealthy", &["Readiness probe errored and resulted in unknown state: ", "nobody"]).await?;
    lost.expect().running().condition("Ready", "False").await?;
    bystander.expect().ready().await?;
    Ok(())
}

async fn a_readiness_probe_goes_on_while_the_pod_stops(node: Node) -> Result<()> {
    let script = "trap 'rm /tmp/ready; sleep 8; exit 0' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
    let probe = with(exec("[ -e /tmp/ready ]"), json!({ "failureThreshold": 1 }));
    let leaving = pod("leaving").script(script).spec(json!({ "terminationGracePeriodSeconds": 30 }));
    let leaving = node.run(leaving.container(json!({ "readinessProbe": probe }))).await?;
    leaving.expect().ready().await?;
    leaving.delete().await?;
    leaving.expect().running().condition("Ready", "False").await?;
    leaving.expect_gone().await
}

async fn what_was_ready_begins_anew_where_a_gate_says_so(lab: Lab) -> Result<()> {
    let gates = json!({ "ChangeContainerStatusOnKubeletRestart": true });
    let node = lab.node(|stack| stack.config("featureGates", gates)).await?;
    // Once it has been ready it stays so, however often the probe fails.
    let probe = with(exec("test -f /tmp/ready"), json!({ "failureThreshold": 1000 }));
    let pod = pod("patient").script("touch /tmp/ready; sleep 1000000").container(json!({ "readinessProbe": probe }));
    let pod = node.run(pod).await?;
    pod.expect().ready().await?;
    pod.exec("rm /tmp/ready").await?;
    let before = pod.instance().await?;

    node.stack().agent().kill().await?;
    node.stack().agent().start().await?;
    pod.expect().condition("Ready", "False").await?;
    ensure!(pod.instance().await? == before, "another instance");
    pod.exec("touch /tmp/ready").await?;
    pod.expect().ready().await?;
    Ok(())
}
