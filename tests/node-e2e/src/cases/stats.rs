//! What the node tells of what it, its pods and their containers use.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::time::{Duration, sleep};

use crate::harness::exposition;
use crate::harness::{Caller, Case, Lab, Node, PodHandle, WITHIN, pod, without_scheme};
use crate::poll::{self, Look};
use crate::{own, shared};

pub const CASES: &[Case] = &[
    own!(what_a_container_uses_is_seen),
    shared!(metrics_server_finds_what_it_reads).in_subset(),
    shared!(the_short_summary_has_cpu_and_memory_only),
    shared!(a_container_is_seen_for_as_long_as_it_runs),
    shared!(cgroups_are_told_with_their_pods),
    shared!(a_static_pod_goes_by_the_uid_of_its_node),
    shared!(statistics_and_metrics_are_rights_of_their_own),
    own!(coming_and_going_pods_disturb_no_scrape),
    own!(statistics_are_in_plain_text_where_configured),
];

const SUMMARY: &str = "/stats/summary";
const SHORT: &str = "/stats/summary?only_cpu_and_memory=true";
const RESOURCE: &str = "/metrics/resource";
const CADVISOR: &str = "/metrics/cadvisor";

const MIB: u64 = 1 << 20;

fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod["containers"].as_array()?.iter().find(|it| it["name"] == name)
}

/// Waits until the summary at `path` has of the pod what is asked for. Upstream's figures are up to
/// a minute old.
async fn expect_summary(
    pod: &PodHandle,
    path: &str,
    goal: &str,
    holds: impl Fn(Option<&Value>) -> bool,
) -> Result<Value> {
    poll::until(format!("pod {} in {path}: {goal}", pod.name), WITHIN * 2, async || {
        let summary = pod.node.call_json(path).await?;
        let found = pod.in_summary(&summary);
        Ok(match holds(found) {
            true => Look::Done(found.cloned().unwrap_or_default()),
            false => Look::NotYet(format!("{found:?}")),
        })
    })
    .await
}

fn is_between(value: &Value, least: u64, most: u64) -> bool {
    value.as_u64().is_some_and(|value| (least..=most).contains(&value))
}

/// Grows to 32 MiB, writes 8 MiB to its own files, 6 MiB to a volume and 3 MB to its log, and burns CPU.
const GREEDY: &str = "\
    dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; dd if=/dev/zero of=/data/big bs=1M count=6 2>/dev/null; \
    head -c 3000000 /dev/zero | tr '\\0' x | fold -w 1000; mkdir /www; mv /big /www/; httpd -h /www; \
    exec awk 'BEGIN { s = \"x\"; while (length(s) < 33554432) s = s s; print \"written\"; while (1) i++ }'";

async fn what_a_container_uses_is_seen(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.config("volumeStatsAggPeriod", "5s")).await?;
    let limits = json!({ "resources": { "limits": { "cpu": "300m", "memory": "256Mi" } } });
    let greedy = pod("greedy").script(GREEDY).container(limits).volume("data", "/data", json!({ "emptyDir": {} }));
    let greedy = node.run(greedy).await?;
    let client = node.run(pod("client")).await?;
    greedy.expect_log("written").await?;
    client.expect().ready().await?;
    let address = greedy.get().await?.status.and_then(|status| status.pod_ip).context("an address")?;
    client.exec(&format!("wget -q -O /dev/null http://{address}/big")).await?;

    expect_summary(&greedy, SUMMARY, "what it uses", |found| {
        let Some(main) = found.and_then(|found| container(found, "main")) else { return false };
        // 300 of 1000 at most, and as much as a busy machine leaves it.
        is_between(&main["cpu"]["usageNanoCores"], 10_000_000, 400_000_000)
            && is_between(&main["memory"]["workingSetBytes"], 32 * MIB, 200 * MIB)
            && is_between(&main["memory"]["availableBytes"], 56 * MIB, 224 * MIB)
            && is_between(&main["memory"]["rssBytes"], 32 * MIB, 200 * MIB)
            && is_between(&main["rootfs"]["usedBytes"], 8 * MIB, 9 * MIB)
            && is_between(&main["logs"]["usedBytes"], 3_000_000, 4_000_000)
    })
    .await?;
    let found = expect_summary(&greedy, SUMMARY, "what its pod uses", |found| {
        let Some(found) = found else { return false };
        found["volume"].as_array().is_some_and(|volumes| {
            volumes.iter().any(|it| it["name"] == "data" && is_between(&it["usedBytes"], 6 * MIB, 7 * MIB))
        }) && is_between(&found["ephemeral-storage"]["usedBytes"], 17 * MIB, 20 * MIB)
            && is_between(&found["network"]["txBytes"], 8 * MIB, 12 * MIB)
            && is_between(&found["memory"]["workingSetBytes"], 32 * MIB, 210 * MIB)
    })
    .await?;
    ensure!(found["network"]["name"] == "eth0", "{found}");
    expect_summary(&client, SUMMARY, "what it received", |found| {
        found.is_some_and(|found| is_between(&found["network"]["rxBytes"], 8 * MIB, 12 * MIB))
    })
    .await?;

    let summary = node.call_json(SUMMARY).await?;
    let told = &summary["node"];
    ensure!(told["nodeName"] == node.name(), "{told}");
    for path in ["/fs", "/runtime/imageFs"] {
        let fs = told.pointer(path).with_context(|| format!("no {path} in {told}"))?;
        let most = fs["capacityBytes"].as_u64().with_context(|| format!("no capacity in {fs}"))?;
        ensure!(is_between(&fs["usedBytes"], 1, most) && is_between(&fs["inodesUsed"], 1, u64::MAX), "{fs}");
    }
    let pods = told["systemContainers"].as_array().and_then(|all| all.iter().find(|it| it["name"] == "pods"));
    let pods = pods.with_context(|| format!("no pods in {told}"))?;
    ensure!(is_between(&pods["memory"]["workingSetBytes"], 32 * MIB, 1 << 30), "{pods}");
    ensure!(told["memory"]["workingSetBytes"].as_u64() > pods["memory"]["workingSetBytes"].as_u64(), "{told}");
    Ok(())
}

async fn metrics_server_finds_what_it_reads(node: Node) -> Result<()> {
    let limits = json!({ "resources": { "limits": { "cpu": "100m" } } });
    let busy = node.run(pod("busy").script("while true; do true; done").container(limits)).await?;
    busy.expect().ready().await?;
    let namespace = node.namespace().to_owned();
    let labels = [("container", "main"), ("pod", "busy"), ("namespace", namespace.as_str())];
    let look = async || -> Result<Option<f64>> {
        let families = node.families(RESOURCE).await?;
        Ok(exposition::value(&families, "container_cpu_usage_seconds_total", &labels))
    };
    let first = poll::until("CPU time of the container", WITHIN, async || {
        Ok(look().await?.filter(|seconds| *seconds > 0.0).map_or(Look::NotYet("none".into()), Look::Done))
    })
    .await?;
    // What a rate is made of: the counter rises, and each sample says when it was read.
    poll::until("more CPU time", WITHIN, async || {
        Ok(match look().await? {
            Some(later) if later > first + 0.2 => Look::Done(()),
            other => Look::NotYet(format!("{other:?} after {first}")),
        })
    })
    .await?;
    let expected = [
        ("node_cpu_usage_seconds_total", &labels[..0]),
        ("node_memory_working_set_bytes", &labels[..0]),
        ("pod_cpu_usage_seconds_total", &labels[1..]),
        ("pod_memory_working_set_bytes", &labels[1..]),
        ("container_cpu_usage_seconds_total", &labels[..]),
        ("container_memory_working_set_bytes", &labels[..]),
        ("container_start_time_seconds", &labels[..]),
    ];
    // Upstream's first figures of a pod are from before it did anything.
    let families = poll::until("all families", WITHIN, async || {
        let families = node.families(RESOURCE).await?;
        let is_missing = |(name, labels): &&(&str, &[(&str, &str)])| {
            exposition::value(&families, name, labels).is_none_or(|value| value <= 0.0)
        };
        let missing = expected.iter().find(is_missing).map(|(name, _)| *name);
        Ok(missing.map_or(Look::Done(families), |name| Look::NotYet(name.to_owned())))
    })
    .await?;
    for (name, _) in expected {
        let family = families.iter().find(|family| family.name == name).context("it is there")?;
        let is_stamped = family.samples.iter().all(|sample| sample.at.is_some());
        ensure!(is_stamped == (name != "container_start_time_seconds"), "{family:?}");
    }
    ensure!(exposition::value(&families, "resource_scrape_error", &[]) == Some(0.0));
    Ok(())
}

async fn the_short_summary_has_cpu_and_memory_only(node: Node) -> Result<()> {
    let pod = node.run(pod("seen")).await?;
    pod.expect().ready().await?;
    let has_memory = |it: &Value| it["memory"]["workingSetBytes"].as_u64() > Some(0) && it["cpu"].is_object();
    let holds = |found: Option<&Value>| {
        found.is_some_and(|found| has_memory(found) && container(found, "main").is_some_and(has_memory))
    };
    let short = expect_summary(&pod, SHORT, "CPU and memory", holds).await?;
    for part in ["network", "ephemeral-storage", "process_stats", "volume", "io"] {
        ensure!(short[part].is_null(), "{part} in {short}");
    }
    let main = container(&short, "main").context("its container")?;
    ensure!(main["rootfs"].is_null() && main["logs"].is_null(), "{main}");
    let told = node.call_json(SHORT).await?["node"].clone();
    ensure!(has_memory(&told) && told["fs"].is_null() && told["network"].is_null(), "{told}");
    // Anything else is the whole.
    let whole = node.call_json("/stats/summary?only_cpu_and_memory=false").await?["node"].clone();
    ensure!(whole["fs"].is_object() && whole["rlimit"]["maxpid"].as_u64() > Some(0), "{whole}");
    Ok(())
}

async fn a_container_is_seen_for_as_long_as_it_runs(node: Node) -> Result<()> {
    let image = crate::provision::BUSYBOX;
    let init = json!({ "name": "first", "image": image, "command": ["sh", "-c", "until [ -e /go/on ]; do sleep 0.2; done"],
        "volumeMounts": [{ "name": "go", "mountPath": "/go" }] });
    let waiting = pod("waiting").script("until [ -e /go/end ]; do sleep 0.2; done").restart("Never");
    let waiting = waiting.volume("go", "/go", json!({ "emptyDir": {} })).spec(json!({ "initContainers": [init] }));
    let pod = node.run(waiting).await?;
    let has = |name: &'static str, other: &'static str| {
        move |found: Option<&Value>| {
            found.is_some_and(|found| container(found, name).is_some() && container(found, other).is_none())
        }
    };
    expect_summary(&pod, SHORT, "its init container", has("first", "main")).await?;
    pod.exec_in("first", "touch /go/on").await?;
    pod.expect().ready().await?;
    expect_summary(&pod, SHORT, "its container", has("main", "first")).await?;
    pod.exec("touch /go/end").await?;
    pod.expect().phase("Succeeded").await?;
    expect_summary(&pod, SHORT, "nothing, for it has ended", |found| found.is_none()).await?;
    Ok(())
}

async fn cgroups_are_told_with_their_pods(node: Node) -> Result<()> {
    let limits = json!({ "resources": { "limits": { "cpu": "200m", "memory": "64Mi" } } });
    let pod = node.run(pod("limited").container(limits)).await?;
    pod.expect().ready().await?;
    let (id, _) = pod.instance().await?;
    let id = without_scheme(&id);
    let namespace = node.namespace().to_owned();
    let own = [("pod", "limited"), ("namespace", namespace.as_str())];
    let main = [&own[..], &[("container", "main"), ("name", id), ("image", crate::provision::BUSYBOX)]].concat();
    let families = poll::until("the container in /metrics/cadvisor", WITHIN * 2, async || {
        let families = node.families(CADVISOR).await?;
        let used = exposition::value(&families, "container_cpu_usage_seconds_total", &main);
        let received = exposition::value(&families, "container_network_receive_bytes_total", &own);
        Ok(match (used, received) {
            (Some(used), Some(received)) if used > 0.0 && received > 0.0 => Look::Done(families),
            other => Look::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    for (name, expected) in [
        ("container_spec_memory_limit_bytes", (64 * MIB) as f64),
        ("container_spec_cpu_quota", 20_000.0),
        ("container_spec_cpu_period", 100_000.0),
        ("container_spec_cpu_shares", 204.0),
        ("container_processes", 1.0),
        ("container_threads", 1.0),
    ] {
        let value = exposition::value(&families, name, &main);
        ensure!(value == Some(expected), "{name}: {value:?}");
    }
    // Of the pod's network the sandbox tells, which is no container of the pod's author.
    let network = families.iter().find(|family| family.name == "container_network_receive_bytes_total");
    let is_own =
        |labels: &&exposition::Sample| labels.labels["pod"] == "limited" && labels.labels["namespace"] == namespace;
    let samples: Vec<_> = network.context("a family")?.samples.iter().filter(is_own).collect();
    let [sample] = samples[..] else { anyhow::bail!("{samples:?}") };
    let labels = &sample.labels;
    ensure!(labels["container"].is_empty() && labels["interface"] == "eth0", "{labels:?}");
    ensure!(labels["image"].contains("pause") && !labels["name"].is_empty(), "{labels:?}");
    for level in ["/", "/kubepods", "/kubepods/burstable", "/kubepods/besteffort"] {
        let labels = [("id", level), ("pod", "")];
        let value = exposition::value(&families, "container_memory_working_set_bytes", &labels);
        ensure!(value.is_some(), "nothing of {level}");
    }
    for name in ["container_scrape_error", "machine_scrape_error"] {
        ensure!(exposition::value(&families, name, &[]) == Some(0.0), "{name}");
    }
    ensure!(exposition::value(&families, "machine_memory_bytes", &[]) > Some(MIB as f64));
    Ok(())
}

async fn a_static_pod_goes_by_the_uid_of_its_node(node: Node) -> Result<()> {
    let manifest = pod("fixed").metadata(json!({ "namespace": node.namespace() })).manifest();
    node.static_pod(&format!("{}-fixed.json", node.namespace()), &manifest)?;
    let mirror = node.mirror_pod("fixed").await?;
    mirror.expect().ready().await?;
    let annotations = mirror.get().await?.metadata.annotations.context("annotations")?;
    let uid = annotations.get("kubernetes.io/config.hash").context("its UID on the node")?.clone();
    let local = PodHandle { uid, ..mirror };
    let found = expect_summary(&local, SHORT, "its container", |found| {
        found.is_some_and(|found| container(found, "main").is_some_and(|main| main["cpu"].is_object()))
    })
    .await?;
    ensure!(found["podRef"]["name"] == local.name && found["podRef"]["namespace"] == node.namespace(), "{found}");
    Ok(())
}

async fn statistics_and_metrics_are_rights_of_their_own(node: Node) -> Result<()> {
    let look = async |token: &str, path: &str| -> Result<u16> { Ok(node.call(Caller::Token(token), path).await?.0) };
    for (name, granted, paths, refused) in [
        ("statistician", "stats", &[SUMMARY][..], &[RESOURCE, CADVISOR][..]),
        ("scraper", "metrics", &[RESOURCE, CADVISOR][..], &[SUMMARY][..]),
    ] {
        let token = node.robot(name, &["get"], &[granted]).await?;
        for path in paths {
            // The API server's authorizer may hear of the right later, and a refusal is kept for 30 s.
            poll::until(format!("{name} at {path}"), WITHIN * 2, async || {
                Ok(match look(&token, path).await? {
                    200 => Look::Done(()),
                    other => Look::NotYet(other.to_string()),
                })
            })
            .await?;
        }
        for path in refused {
            let status = look(&token, path).await?;
            ensure!(status == 403, "{name} at {path}: {status}");
        }
    }
    Ok(())
}

async fn coming_and_going_pods_disturb_no_scrape(lab: Lab) -> Result<()> {
    const PODS: usize = 12;
    let node = lab.node(|stack| stack).await?;
    let scrape = async || -> Result<()> {
        for (path, name) in [(RESOURCE, "resource_scrape_error"), (CADVISOR, "container_scrape_error")] {
            let errors = exposition::value(&node.families(path).await?, name, &[]);
            ensure!(errors.is_some_and(|errors| errors == 0.0), "{name} at {path} is {errors:?}");
        }
        let summary = node.call_json(SUMMARY).await?;
        ensure!(summary["pods"].is_array() && summary["node"]["cpu"].is_object(), "{summary}");
        Ok(())
    };
    let churn = async {
        for round in 0..3 {
            let mut pods = Vec::new();
            for number in 0..PODS {
                let short = pod(&format!("short-{round}-{number}")).script("sleep 1").restart("Never");
                pods.push(node.run(short.spec(json!({ "terminationGracePeriodSeconds": 0 }))).await?);
            }
            pods[0].expect().that("begun", |pod| pod.status.as_ref().is_some_and(|it| it.start_time.is_some())).await?;
            sleep(Duration::from_secs(2)).await;
            for pod in &pods {
                pod.delete().await?;
            }
        }
        anyhow::Ok(())
    };
    tokio::pin!(churn);
    let mut scrapes = 0;
    loop {
        tokio::select! {
            ended = &mut churn => break ended?,
            // Cancel-safe: the last scrape is left off when there is nothing to disturb it any more.
            scraped = async { scrape().await?; sleep(Duration::from_millis(300)).await; anyhow::Ok(()) } => {
                scraped?;
                scrapes += 1;
            }
        }
    }
    // Of three pages each, on a machine that is busy with the pods.
    ensure!(scrapes >= 2, "{scrapes} scrapes only");
    Ok(())
}

async fn statistics_are_in_plain_text_where_configured(lab: Lab) -> Result<()> {
    let node = lab.node(|stack| stack.config("readOnlyPort", 10_255)).await?;
    let get = async |path: &str| node.http_get(&format!("http://127.0.0.1:10255{path}")).await;
    let summary: Value = serde_json::from_str(&get(SUMMARY).await?)?;
    ensure!(summary["node"]["nodeName"] == node.name(), "{summary}");
    for (path, name) in [(RESOURCE, "node_cpu_usage_seconds_total"), (CADVISOR, "machine_cpu_cores")] {
        let families = exposition::parse(&get(path).await?).with_context(|| path.to_owned())?;
        ensure!(exposition::value(&families, name, &[]) > Some(0.0), "{name} at {path}");
    }
    Ok(())
}
