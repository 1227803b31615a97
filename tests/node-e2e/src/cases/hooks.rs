//! postStart and preStop, by every handler.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{Case, Node, PodBuilder, pod};
use crate::shared;

pub const CASES: &[Case] = &[
    shared!(a_post_start_hook_runs_before_the_next_container).in_subset(),
    shared!(the_words_of_a_hook_are_as_written),
    shared!(a_failed_post_start_hook_ends_its_container),
    shared!(a_pre_stop_hook_runs_before_the_signal).in_subset(),
    shared!(a_failed_pre_stop_hook_keeps_nobody_from_stopping),
    shared!(a_pre_stop_hook_that_never_ends_is_given_the_grace_and_no_more),
    shared!(a_pre_stop_hook_can_sleep),
    shared!(a_pre_stop_hook_can_ask_by_http),
    shared!(an_https_hook_falls_back_to_plain_http).beyond_upstream("it falls back, but sends no event of it"),
];

fn shell(script: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", script] } })
}

/// A pod that sees a directory of the node, to be read when it is gone.
fn witnessed(node: &Node, name: &str, script: &str) -> (PodBuilder, String) {
    let witness = format!("/var/lib/witness/{}", node.namespace());
    let volume = json!({ "hostPath": { "path": witness, "type": "DirectoryOrCreate" } });
    (pod(name).script(script).volume("out", "/out", volume), witness)
}

const TRAP: &str = "trap 'echo signal >> /out/log; exit 0' TERM; while :; do sleep 0.1; done";

async fn a_post_start_hook_runs_before_the_next_container(node: Node) -> Result<()> {
    let (first, _) = witnessed(&node, "two", "sleep 1000000");
    let lifecycle = json!({ "lifecycle": { "postStart": shell("sleep 2; echo hooked > /out/log") } });
    let mounts = json!({ "volumeMounts": [{ "name": "out", "mountPath": "/out" }] });
    let two = first.container(lifecycle).and_container("second", "cat /out/log; sleep 1000000", mounts);
    let two = node.run(two).await?;
    two.expect().ready().await?;
    two.expect_log_of("second", 0, "hooked\n").await
}

async fn the_words_of_a_hook_are_as_written(node: Node) -> Result<()> {
    let hook = json!({ "exec": { "command": ["sh", "-c", "echo \"$1\" > /tmp/log", "sh", "$$(NAME) $(NAME)"] } });
    let named = json!({ "env": [{ "name": "NAME", "value": "n" }], "lifecycle": { "postStart": hook } });
    let named = node.run(pod("named").container(named)).await?;
    named.expect().ready().await?;
    let log = named.exec("cat /tmp/log").await?;
    ensure!(log == "$$(NAME) $(NAME)\n", "{log:?}");
    Ok(())
}

async fn a_failed_post_start_hook_ends_its_container(node: Node) -> Result<()> {
    let lifecycle = json!({ "lifecycle": { "postStart": shell("echo no luck; exit 7") } });
    let unlucky = node.run(pod("unlucky").container(lifecycle)).await?;
    unlucky.expect_event("FailedPostStartHook").await?;
    let killing = unlucky.expect_event("Killing").await?;
    ensure!(killing == "FailedPostStartHook", "{killing}");
    unlucky.expect().restarts(1).await?;
    Ok(())
}

async fn a_pre_stop_hook_runs_before_the_signal(node: Node) -> Result<()> {
    let (polite, witness) = witnessed(&node, "polite", TRAP);
    let lifecycle = json!({ "lifecycle": { "preStop": shell("sleep 1; echo hook >> /out/log") } });
    let polite = polite.container(lifecycle).spec(json!({ "terminationGracePeriodSeconds": 30 }));
    let polite = node.run(polite).await?;
    polite.expect().ready().await?;
    polite.delete().await?;
    polite.expect_gone().await?;
    let log = node.stack().read(&format!("{witness}/log"))?;
    ensure!(log == "hook\nsignal\n", "{log:?}");
    Ok(())
}

async fn a_failed_pre_stop_hook_keeps_nobody_from_stopping(node: Node) -> Result<()> {
    let (polite, witness) = witnessed(&node, "polite", TRAP);
    let polite = polite.container(json!({ "lifecycle": { "preStop": shell("exit 3") } }));
    let polite = node.run(polite.spec(json!({ "terminationGracePeriodSeconds": 30 }))).await?;
    polite.expect().ready().await?;
    polite.delete().await?;
    polite.expect_event("FailedPreStopHook").await?;
    polite.expect_gone().await?;
    ensure!(node.stack().read(&format!("{witness}/log"))? == "signal\n");
    Ok(())
}

async fn a_pre_stop_hook_that_never_ends_is_given_the_grace_and_no_more(node: Node) -> Result<()> {
    let (polite, witness) = witnessed(&node, "polite", TRAP);
    let polite = polite.container(json!({ "lifecycle": { "preStop": shell("sleep 1000000") } }));
    let polite = node.run(polite.spec(json!({ "terminationGracePeriodSeconds": 4 }))).await?;
    polite.expect().ready().await?;
    let begin = Instant::now();
    polite.delete().await?;
    polite.expect_gone().await?;
    let lasted = begin.elapsed();
    ensure!(lasted >= Duration::from_secs(4) && lasted < Duration::from_secs(25), "it took {lasted:?}");
    ensure!(node.stack().read(&format!("{witness}/log"))? == "signal\n");
    Ok(())
}

async fn a_pre_stop_hook_can_sleep(node: Node) -> Result<()> {
    let lifecycle = json!({ "lifecycle": { "preStop": { "sleep": { "seconds": 3 } } } });
    let sleepy = pod("sleepy").script("trap 'exit 0' TERM; while :; do sleep 0.1; done").container(lifecycle);
    let sleepy = node.run(sleepy.spec(json!({ "terminationGracePeriodSeconds": 30 }))).await?;
    sleepy.expect().ready().await?;
    let begin = Instant::now();
    sleepy.delete().await?;
    sleepy.expect_gone().await?;
    let lasted = begin.elapsed();
    ensure!(lasted >= Duration::from_secs(3) && lasted < Duration::from_secs(25), "it took {lasted:?}");
    Ok(())
}

/// A server that writes down what it is asked, and is never content.
const SERVER: &str = r#"
    mkdir -p /tmp/www/cgi-bin
    cat > /tmp/www/cgi-bin/bye <<'END'
#!/bin/sh
echo "$QUERY_STRING by $HTTP_USER_AGENT" >> /out/log
printf 'Status: 500 No\r\n\r\n'
END
    chmod +x /tmp/www/cgi-bin/bye
    httpd -f -p 8080 -h /tmp/www &
    trap 'exit 0' TERM
    while :; do sleep 0.1; done"#;

async fn ask_at_stop(node: Node, scheme: &str) -> Result<String> {
    let (web, witness) = witnessed(&node, "web", SERVER);
    let hook = json!({ "httpGet": { "port": "web", "path": "/cgi-bin/bye?now", "scheme": scheme } });
    let ports = json!([{ "name": "web", "containerPort": 8080 }]);
    let web = web.container(json!({ "ports": ports, "lifecycle": { "preStop": hook } }));
    let web = node.run(web.spec(json!({ "terminationGracePeriodSeconds": 10 }))).await?;
    web.expect().ready().await?;
    web.delete().await?;
    if scheme == "HTTPS" {
        web.expect_event("LifecycleHTTPFallback").await?;
    }
    web.expect_gone().await?;
    let events = web.events().await?;
    let failed = events.iter().any(|event| event.reason.as_deref() == Some("FailedPreStopHook"));
    ensure!(!failed, "an answer of any kind is good enough");
    node.stack().read(&format!("{witness}/log")).context("what the server was asked")
}

async fn a_pre_stop_hook_can_ask_by_http(node: Node) -> Result<()> {
    let asked = ask_at_stop(node, "HTTP").await?;
    ensure!(asked == "now by kube-lifecycle/1.36\n", "{asked:?}");
    Ok(())
}

async fn an_https_hook_falls_back_to_plain_http(node: Node) -> Result<()> {
    let asked = ask_at_stop(node, "HTTPS").await?;
    ensure!(asked == "now by kube-lifecycle/1.36\n", "{asked:?}");
    Ok(())
}
