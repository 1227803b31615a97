//! What containers and the node have logged, as `kubectl logs` and the node's proxy show it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{sleep, timeout};

use crate::harness::{Caller, Case, Lab, Node, PodHandle, Process, Transport, WITHIN, pod};
use crate::poll::{self, Look};
use crate::{own, shared};

pub const CASES: &[Case] = &[
    shared!(a_log_is_shown_as_its_options_say).in_subset(),
    shared!(a_log_is_shown_from_a_time_on),
    shared!(who_follows_a_log_gets_what_its_options_say),
    shared!(one_stream_of_a_log_is_refused_while_its_gate_is_off),
    own!(one_stream_of_a_log_is_shown_alone),
    shared!(the_log_of_the_instance_before_is_shown),
    shared!(why_there_is_no_log_is_told),
    shared!(the_logs_of_the_node_are_listed_and_shown),
    own!(who_follows_sees_each_line_once_across_rotations)
        .beyond_upstream("it goes on with the new file at once, and may leave the rest of the old one unread"),
    own!(who_pauses_misses_nothing_and_costs_the_agent_no_memory),
    own!(who_pauses_misses_nothing_of_what_is_rotated_meanwhile)
        .beyond_upstream("it goes on with the new file at once, and leaves what was not read of those before"),
];

/// No stream is negotiated for a log.
const ANY: Transport = Transport::Spdy;

async fn shown(node: &Node, args: &[&str]) -> Result<String> {
    Ok(String::from_utf8(node.kubectl_well(ANY, args, b"").await?)?)
}

async fn a_log_is_shown_as_its_options_say(node: Node) -> Result<()> {
    let script = "echo one; echo two; echo three; sleep 1000000";
    let pod = node.run(pod("talker").script(script)).await?;
    pod.expect().ready().await?;
    pod.expect_log("three").await?;
    for (options, expected) in [
        (vec![], "one\ntwo\nthree\n"),
        (vec!["--tail=1"], "three\n"),
        (vec!["--tail=0"], ""),
        (vec!["--limit-bytes=5"], "one\nt"),
        (vec!["--since=1h", "--tail=2"], "two\nthree\n"),
        (vec!["--since-time=2100-01-01T00:00:00Z"], ""),
        (vec!["--container=main"], "one\ntwo\nthree\n"),
    ] {
        let args = [&["logs", "talker"][..], &options].concat();
        let said = shown(&node, &args).await?;
        ensure!(said == expected, "{options:?}: {said:?}");
    }
    let stamped = shown(&node, &["logs", "talker", "--timestamps", "--tail=2"]).await?;
    let lines: Vec<_> = stamped.lines().filter_map(|line| line.split_once(' ')).collect();
    let texts: Vec<_> = lines.iter().map(|(_, text)| *text).collect();
    let times = lines.iter().all(|(time, _)| time.parse::<jiff::Timestamp>().is_ok());
    ensure!(texts == ["two", "three"] && times, "{stamped:?}");
    Ok(())
}

async fn a_log_is_shown_from_a_time_on(node: Node) -> Result<()> {
    // The API knows whole seconds only.
    let pod = node.run(pod("talker").script("echo one; sleep 2.1; echo two; echo three; sleep 1000000")).await?;
    pod.expect().ready().await?;
    pod.expect_log("three").await?;
    let stamped = shown(&node, &["logs", "talker", "--timestamps", "--tail=2"]).await?;
    let second = stamped.split('.').next().context("times have fractions")?;
    let since = format!("--since-time={second}Z");
    let said = shown(&node, &["logs", "talker", &since]).await?;
    ensure!(said == "two\nthree\n", "{since}: {said:?}");
    let said = shown(&node, &["logs", "talker", &since, "--tail=1"]).await?;
    ensure!(said == "three\n", "{since} --tail=1: {said:?}");
    Ok(())
}

async fn who_follows_a_log_gets_what_its_options_say(node: Node) -> Result<()> {
    let script = "echo one; echo two; until [ -e /tmp/go ]; do sleep 0.1; done; echo three; sleep 1000000";
    let pod = node.run(pod("talker").script(script)).await?;
    pod.expect().ready().await?;
    pod.expect_log("two").await?;
    let follow = ["logs", "talker", "--follow", "--since=1h", "--tail=1"];
    let mut client = node.kubectl(ANY, &follow)?.spawn().context("start kubectl")?;
    let mut said = BufReader::new(client.stdout.take().expect("it is piped")).lines();
    let mut next =
        async || anyhow::Ok(timeout(WITHIN, said.next_line()).await.context("nothing is said")??.unwrap_or_default());
    ensure!(next().await? == "two");
    // Not even half a line beyond what was asked for, and then there is no more to wait for.
    for (limit, expected) in [("--limit-bytes=5", "one\nt"), ("--limit-bytes=4", "one\n")] {
        let limited = shown(&node, &["logs", "talker", "--follow", limit]).await?;
        ensure!(limited == expected, "{limit}: {limited:?}");
    }
    pod.exec("touch /tmp/go").await?;
    ensure!(next().await? == "three");
    let limited = shown(&node, &["logs", "talker", "--follow", "--tail=1", "--limit-bytes=3"]).await?;
    ensure!(limited == "thr", "{limited:?}");
    Ok(())
}

/// What the node says to a request for a log.
async fn asked(node: &Node, pod: &str, query: &str) -> Result<(u16, String)> {
    let path = format!("/containerLogs/{}/{pod}/main?{query}", node.namespace());
    node.call(Caller::ApiServer, &path).await
}

async fn one_stream_of_a_log_is_refused_while_its_gate_is_off(node: Node) -> Result<()> {
    let pod = node.run(pod("talker").script("echo out; sleep 1000000")).await?;
    pod.expect().ready().await?;
    pod.expect_log("out").await?;
    let (status, words) = asked(&node, "talker", "stream=Stderr").await?;
    ensure!(status == 400 && words.contains("PodLogsQuerySplitStreams"), "{status}: {words}");
    let (status, words) = asked(&node, "talker", "stream=All").await?;
    ensure!(status == 200 && words == "out\n", "{status}: {words}");
    Ok(())
}

async fn one_stream_of_a_log_is_shown_alone(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.config("featureGates", json!({ "PodLogsQuerySplitStreams": true }))).await?;
    // Each by its own pipe, so only time puts them in order.
    let script =
        "echo out 1; echo err 1 >&2; sleep 0.5; echo out 2; echo err 2 >&2; sleep 0.5; echo end; sleep 1000000";
    let pod = node.run(pod("talker").script(script)).await?;
    pod.expect().ready().await?;
    pod.expect_log("end").await?;
    for (query, expected) in [
        ("stream=Stdout", "out 1\nout 2\nend\n"),
        ("stream=Stderr", "err 1\nerr 2\n"),
        ("stream=Stderr&limitBytes=7", "err 1\ne"),
        ("stream=Stdout&sinceSeconds=3600", "out 1\nout 2\nend\n"),
        ("stream=All&tailLines=1", "end\n"),
    ] {
        let (status, words) = asked(&node, "talker", query).await?;
        ensure!(status == 200 && words == expected, "{query}: {status} {words:?}");
    }
    // Its lines cannot be counted from the end.
    for query in ["stream=Stdout&tailLines=1", "stream=stdout"] {
        let (status, words) = asked(&node, "talker", query).await?;
        ensure!(status == 422 && words.contains("Invalid request."), "{query}: {status} {words}");
    }
    Ok(())
}

async fn the_log_of_the_instance_before_is_shown(node: Node) -> Result<()> {
    // The first leaves a mark for the second.
    let script = "if [ -e /v/was ]; then echo second; sleep 1000000; fi; touch /v/was; echo one; echo first; exit 3";
    let volumes = json!({ "volumes": [{ "name": "v", "emptyDir": {} }] });
    let mounts = json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] });
    let pod = node.run(pod("again").script(script).spec(volumes).container(mounts)).await?;
    pod.expect().ready().await?;
    pod.expect_log_of("main", 1, "second").await?;
    let (now, before) =
        (shown(&node, &["logs", "again"]).await?, shown(&node, &["logs", "again", "--previous"]).await?);
    ensure!((now.as_str(), before.as_str()) == ("second\n", "one\nfirst\n"), "{now:?}, {before:?}");
    let end = shown(&node, &["logs", "again", "--previous", "--tail=1"]).await?;
    ensure!(end == "first\n", "{end:?}");
    Ok(())
}

async fn why_there_is_no_log_is_told(node: Node) -> Result<()> {
    node.run(pod("talker").script("sleep 1000000")).await?.expect().ready().await?;
    for (args, expected) in [
        (["logs", "talker", "--previous"], r#"previous terminated container "main" in pod "talker" not found"#),
        (["logs", "talker", "--container=other"], "container other is not valid for pod talker"),
    ] {
        let told = node.kubectl_told(ANY, &args, b"").await?;
        let errors = String::from_utf8_lossy(&told.stderr);
        ensure!(!told.status.success() && errors.contains(expected), "{args:?}: {errors}");
    }
    let (status, words) = node.call(Caller::ApiServer, "/containerLogs/no/such/pod").await?;
    ensure!(status == 404 && words.contains(r#"pod "such" does not exist"#), "{status}: {words}");
    Ok(())
}

async fn the_logs_of_the_node_are_listed_and_shown(node: Node) -> Result<()> {
    let pod = node.run(pod("talker").script("echo here; sleep 1000000")).await?;
    pod.expect().ready().await?;
    pod.expect_log("here").await?;
    let path = format!("/api/v1/nodes/{}/proxy/logs/", node.name());
    let listing = shown(&node, &["get", "--raw", &path]).await?;
    ensure!(listing.contains(r#"<a href="pods/">pods/</a>"#), "{listing}");
    let directory = pod.log_directory();
    let directory = directory.file_name().expect("it has a name").to_string_lossy();
    let log = shown(&node, &["get", "--raw", &format!("{path}pods/{directory}/main/0.log")]).await?;
    ensure!(log.ends_with(" stdout F here\n"), "{log}");
    // Links and dots lead nowhere.
    let up = node.kubectl_told(ANY, &["get", "--raw", &format!("{path}%2e%2e/passwd")], b"").await?;
    ensure!(!up.status.success(), "{}", String::from_utf8_lossy(&up.stdout));
    Ok(())
}

async fn who_follows_sees_each_line_once_across_rotations(lab: Lab) -> Result<()> {
    let node = lab
        .node(|stack| {
            stack
                .config("containerLogMaxSize", "20Ki")
                .config("containerLogMaxFiles", 3)
                .config("containerLogMonitorInterval", "3s")
        })
        .await?;
    // Some fifteen files, of which three stay.
    let script = "echo 0; until [ -e /tmp/go ]; do sleep 0.1; done; \
                  i=1; while [ $i -lt 6000 ]; do echo $i; i=$((i+1)); [ $((i % 200)) != 0 ] || sleep 0.2; done";
    let pod = node.run(pod("counter").script(script).restart("Never")).await?;
    pod.expect().container("main").running().await?;
    let mut client = node.kubectl(ANY, &["logs", "--follow", "counter"])?.spawn().context("start kubectl")?;
    let mut said = BufReader::new(client.stdout.take().expect("it is piped")).lines();
    for expected in 0..6000 {
        let line = timeout(WITHIN, said.next_line()).await.with_context(|| format!("no line {expected}"))??;
        ensure!(line == Some(expected.to_string()), "{line:?} in place of {expected}");
        if expected == 0 {
            pod.exec("touch /tmp/go").await?;
        }
    }
    let ended = timeout(WITHIN, said.next_line()).await.context("it does not end with its container")??;
    ensure!(ended.is_none(), "{ended:?}");
    Ok(())
}

/// Together more than all that pipes, sockets and windows hold between the agent and who reads.
const MANY_LINES: usize = 100_000;
const LONG_LINE: usize = 400;

async fn who_pauses_misses_nothing_and_costs_the_agent_no_memory(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.config("containerLogMaxSize", "200Mi")).await?;
    let pid = node.stack().agent().pid().await?;
    let agent = Process::inside(node.stack(), pid)?;
    let mut before = 0.0;
    let begins = async |_: &PodHandle| {
        agent.forget_peak()?;
        before = agent.memory_mb("VmHWM")?;
        Ok(())
    };
    pause_while_following(&node, begins, async |_, _| Ok(())).await?;
    let grown = agent.memory_mb("VmHWM")? - before;
    let unread = (MANY_LINES * LONG_LINE) as f64 / 1e6;
    ensure!(grown < unread / 2.0, "{grown} MB more, with {unread} MB that nobody read");
    Ok(())
}

async fn who_pauses_misses_nothing_of_what_is_rotated_meanwhile(lab: Lab) -> Result<()> {
    let node = lab
        .node(|stack| {
            stack
                .config("containerLogMaxSize", "5Mi")
                // All that is written has room in so many.
                .config("containerLogMaxFiles", 50)
                .config("containerLogMonitorInterval", "3s")
        })
        .await?;
    let is_rotated = async |pod: &PodHandle, burst: usize| {
        poll::until(format!("{burst} rotations"), WITHIN, async || {
            let parts = parts_of_log(pod)?;
            Ok(if parts.len() > burst { Look::Done(()) } else { Look::NotYet(format!("{parts:?}")) })
        })
        .await
    };
    pause_while_following(&node, async |_| Ok(()), is_rotated).await
}

/// The files of the log, each once: for a moment one is there both as it was and compressed.
fn parts_of_log(pod: &PodHandle) -> Result<BTreeSet<String>> {
    let mut parts = BTreeSet::new();
    for entry in std::fs::read_dir(pod.log_directory().join("main"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        parts.insert(name.trim_end_matches(".tmp").trim_end_matches(".gz").to_owned());
    }
    Ok(parts)
}

/// Follows a log, reads nothing while much is written, and then all of it. It is written in two
/// bursts, each of which ends when `written` is done with its number: within one the agent may find
/// a full log only once.
async fn pause_while_following(
    node: &Node,
    begins: impl AsyncFnOnce(&PodHandle) -> Result<()>,
    written: impl AsyncFn(&PodHandle, usize) -> Result<()>,
) -> Result<()> {
    let half = MANY_LINES / 2;
    let script = format!(
        "echo begin; x=$(printf '%0{LONG_LINE}d' 0); \
         until [ -e /tmp/go-1 ]; do sleep 0.1; done; seq 1 {half} | sed \"s/$/ $x/\"; touch /tmp/written-1; \
         until [ -e /tmp/go-2 ]; do sleep 0.1; done; seq {} {MANY_LINES} | sed \"s/$/ $x/\"; touch /tmp/written-2; \
         until [ -e /tmp/end ]; do sleep 0.1; done",
        half + 1
    );
    let pod = node.run(pod("novelist").script(&script).restart("Never")).await?;
    pod.expect().container("main").running().await?;
    let mut client = node.kubectl(ANY, &["logs", "--follow", "novelist"])?.spawn().context("start kubectl")?;
    let mut said = BufReader::new(client.stdout.take().expect("it is piped")).lines();
    let first = timeout(WITHIN, said.next_line()).await.context("it does not begin")??;
    ensure!(first.as_deref() == Some("begin"), "{first:?}");
    begins(&pod).await?;
    for burst in 1..=2 {
        pod.exec(&format!("touch /tmp/go-{burst}")).await?;
        poll::until(format!("burst {burst} is written"), WITHIN, async || {
            let found = pod.exec("ls /tmp").await?;
            Ok(if found.contains(&format!("written-{burst}")) { Look::Done(()) } else { Look::NotYet(found) })
        })
        .await?;
        written(&pod, burst).await?;
    }
    // Who would read it without being asked has read it by then.
    sleep(Duration::from_secs(3)).await;
    pod.exec("touch /tmp/end").await?;
    let rest = "0".repeat(LONG_LINE);
    for expected in 1..=MANY_LINES {
        let line = timeout(WITHIN, said.next_line()).await.with_context(|| format!("no line {expected}"))??;
        let line = line.with_context(|| format!("it ends before line {expected}"))?;
        let (number, text) = line.split_once(' ').unwrap_or((&line, ""));
        ensure!(number == expected.to_string() && text == rest, "{line:?} in place of {expected}");
    }
    let ended = timeout(WITHIN, said.next_line()).await.context("it does not end with its container")??;
    ensure!(ended.is_none(), "{ended:?}");
    Ok(())
}
