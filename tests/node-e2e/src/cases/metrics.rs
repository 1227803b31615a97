//! Metrics: what the agent counts of itself, on the pages that upstream has.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::{try_join, try_join_all};
use serde_json::json;

use crate::harness::exposition::{self, Family, Wanted, parse, shape, unexplained, value};
use crate::harness::{Caller, Case, Lab, Node, PodBuilder, PodHandle, WITHIN, pod};
use crate::poll::{self, Look};
use crate::provision::BUSYBOX;
use crate::stack::{Agent, Builder};
use crate::{own, shared};

pub const CASES: &[Case] = &[
    own!(what_becomes_of_pods_is_counted),
    own!(its_metrics_are_those_of_upstream).beyond_upstream("it is what is compared with"),
    shared!(who_scrapes_needs_the_right),
    shared!(a_page_is_whole_while_pods_come_and_go),
    shared!(checks_of_health_are_counted),
];

/// Name, labels and value of a sample.
type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

/// Waits until a page shows all of these.
async fn expect(node: &Node, path: &str, expected: &[Expected<'_>]) -> Result<()> {
    poll::until(format!("figures at {path}"), WITHIN, async || {
        let families = node.families(path).await?;
        let other = expected.iter().filter_map(|(name, labels, wanted)| {
            let found = value(&families, name, labels);
            (found != Some(*wanted)).then(|| format!("{name}{labels:?} is {found:?} and not {wanted}"))
        });
        let other: Vec<String> = other.collect();
        Ok(if other.is_empty() { Look::Done(()) } else { Look::NotYet(other.join("; ")) })
    })
    .await
}

fn of(families: &[Family], name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    value(families, name, labels).with_context(|| format!("there is no {name}{labels:?}"))
}

const STEADY: &str = "steady.json";

/// With a static pod, and a port for everybody.
fn with_static_pod(stack: Builder) -> Builder {
    let steady = pod("steady").metadata(json!({ "namespace": "default" }));
    stack.static_pod(STEADY, &steady.manifest()).config("readOnlyPort", 10_255)
}

/// Enough for any command on a busy machine: one that is late has a result of its own.
const PATIENCE: u32 = 30;

/// An init container, a sidecar, and a container that is well.
fn whole() -> PodBuilder {
    let container =
        |name: &str, script: &str| json!({ "name": name, "image": BUSYBOX, "command": ["sh", "-c", script] });
    let mut sidecar = container("sidecar", "sleep 1000000");
    sidecar["restartPolicy"] = json!("Always");
    let probe = json!({ "exec": { "command": ["true"] }, "periodSeconds": 1, "timeoutSeconds": PATIENCE });
    pod("whole")
        .spec(json!({ "initContainers": [container("setup", "sleep 2"), sidecar] }))
        .container(json!({ "livenessProbe": probe }))
}

/// One that is never ready.
fn picky() -> PodBuilder {
    let probe = json!({ "exec": { "command": ["false"] }, "periodSeconds": 1, "timeoutSeconds": PATIENCE });
    pod("picky").container(json!({ "readinessProbe": probe }))
}

fn failing() -> PodBuilder {
    pod("failing").script("exit 3").restart("Never")
}

/// One whose image is nowhere.
fn hopeless() -> PodBuilder {
    pod("hopeless").container(json!({ "image": "registry.invalid/nothing:1", "imagePullPolicy": "Never" }))
}

/// Creates them and waits until each is as it will be.
async fn populate(node: &Node) -> Result<PodHandle> {
    let whole = node.run(whole()).await?;
    let picky = node.run(picky()).await?;
    let failing = node.run(failing()).await?;
    whole.expect().ready().await?;
    picky.expect().running().await?;
    failing.expect().phase("Failed").await?;
    node.mirror_pod("steady").await?.expect().ready().await?;
    Ok(picky)
}

async fn what_becomes_of_pods_is_counted(lab: Lab) -> Result<()> {
    let node = lab.node(with_static_pod).await?;
    let picky = populate(&node).await?;
    expect(
        &node,
        "/metrics",
        &[
            ("kubelet_started_containers_total", &[("container_type", "init_container")], 2.0),
            ("kubelet_started_containers_total", &[("container_type", "container")], 4.0),
            ("kubelet_started_pods_total", &[], 4.0),
            ("kubelet_started_pods_errors_total", &[], 0.0),
            ("kubelet_containers_per_pod_count_count", &[], 4.0),
            ("kubelet_desired_pods", &[("static", "")], 3.0),
            ("kubelet_desired_pods", &[("static", "true")], 1.0),
            ("kubelet_active_pods", &[("static", "")], 2.0),
            ("kubelet_mirror_pods", &[], 1.0),
            ("kubelet_running_pods", &[], 3.0),
            ("kubelet_running_containers", &[("container_state", "running")], 4.0),
            ("kubelet_working_pods", &[("config", "desired"), ("lifecycle", "sync"), ("static", "")], 2.0),
            ("kubelet_working_pods", &[("config", "desired"), ("lifecycle", "sync"), ("static", "true")], 1.0),
            ("kubelet_working_pods", &[("config", "desired"), ("lifecycle", "terminated")], 1.0),
            ("kubelet_working_pods", &[("config", "runtime_only")], 0.0),
            ("kubelet_terminated_containers_total", &[("container_type", "container"), ("exit_code", "3")], 1.0),
            ("kubelet_terminated_containers_total", &[("container_type", "init_container"), ("exit_code", "0")], 1.0),
            ("kubelet_runtime_operations_total", &[("operation_type", "create_container")], 6.0),
            ("kubelet_runtime_operations_duration_seconds_count", &[("operation_type", "start_container")], 6.0),
            ("kubelet_run_podsandbox_duration_seconds_count", &[("runtime_handler", "")], 4.0),
            ("kubelet_image_manager_ensure_image_requests_total", &[("pull_required", "false")], 6.0),
            ("kubelet_node_name", &[("node", node.name())], 1.0),
        ],
    )
    .await?;
    // Upstream observes starts with a later sync, and has been seen to leave init containers in.
    let without_inits = lab.agent() == Agent::Ferrolet;
    poll::until("durations of starts", WITHIN, async || {
        Ok(match expect_durations(&node.families("/metrics").await?, without_inits) {
            Ok(()) => Look::Done(()),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })
    .await?;
    expect_errors(&node).await?;
    expect_probes(&node, picky).await?;
    let plain = parse(&node.http_get("http://127.0.0.1:10255/metrics").await?)?;
    of(&plain, "kubelet_http_inflight_requests", &[("path", "metrics"), ("server_type", "readonly")])?;
    Ok(())
}

/// What people set alarms on.
fn expect_durations(families: &[Family], without_inits: bool) -> Result<()> {
    let begun = of(families, "kubelet_pod_start_sli_duration_seconds_count", &[])?;
    ensure!((2.0..=4.0).contains(&begun), "{begun} pods have begun");
    let sli = of(families, "kubelet_pod_start_sli_duration_seconds_sum", &[])?;
    let total = of(families, "kubelet_pod_start_total_duration_seconds_sum", &[])?;
    // Two seconds of it are an init container's, and the API tells of creations in whole seconds.
    let least = if without_inits { 1.0 } else { 0.0 };
    ensure!(sli > 0.0 && total - sli >= least && total < 4.0 * WITHIN.as_secs_f64(), "{sli} s of {total} s");
    let first = of(families, "kubelet_first_network_pod_start_sli_duration_seconds", &[])?;
    ensure!(first > 0.0, "the first pod began at once");
    let phases = ["pre_kubelet", "pre_registration", "registration", "post_registration"];
    let phases = phases.map(|phase| of(families, &format!("kubelet_node_startup_{phase}_duration_seconds"), &[]));
    let sum: f64 = phases.into_iter().collect::<Result<Vec<f64>>>()?.iter().sum();
    let whole = of(families, "kubelet_node_startup_duration_seconds", &[])?;
    ensure!(whole > 1.0 && (whole - sum).abs() < 1.0, "{whole} s are not {sum} s");
    for (name, labels) in [
        ("kubelet_pod_start_duration_seconds_count", &[][..]),
        ("kubelet_pod_worker_start_duration_seconds_count", &[]),
        ("kubelet_pod_status_sync_duration_seconds_count", &[]),
        ("kubelet_pod_worker_duration_seconds_count", &[("operation_type", "create")]),
        ("kubelet_cgroup_manager_duration_seconds_count", &[("operation_type", "create")]),
        ("storage_operation_duration_seconds_count", &[("volume_plugin", "kubernetes.io/projected")]),
        ("volume_manager_total_volumes", &[("plugin_name", "kubernetes.io/projected")]),
        ("rest_client_requests_total", &[("method", "POST"), ("code", "201")]),
        ("rest_client_request_duration_seconds_count", &[("verb", "PATCH")]),
        ("kubelet_http_requests_total", &[("path", "metrics"), ("method", "GET")]),
        ("kubelet_pleg_last_seen_seconds", &[]),
        ("process_resident_memory_bytes", &[]),
        ("process_cpu_seconds_total", &[]),
    ] {
        ensure!(of(families, name, labels)? > 0.0, "{name}{labels:?} is 0");
    }
    Ok(())
}

async fn expect_errors(node: &Node) -> Result<()> {
    node.run(hopeless()).await?.expect().waiting("ErrImageNeverPull").await?;
    let families = node.families("/metrics").await?;
    let labels = [("container_type", "container"), ("code", "ErrImageNeverPull")];
    ensure!(of(&families, "kubelet_started_containers_errors_total", &labels)? >= 1.0);
    Ok(())
}

/// They are told of each probe, and go with the pod.
async fn expect_probes(node: &Node, picky: PodHandle) -> Result<()> {
    const PAGE: &str = "/metrics/probes";
    let families = node.families(PAGE).await?;
    let well = [("pod", "whole"), ("probe_type", "Liveness"), ("result", "successful")];
    let ill = [("pod", "picky"), ("probe_type", "Readiness"), ("result", "failed"), ("pod_uid", picky.uid.as_str())];
    for labels in [&well[..], &ill[..]] {
        ensure!(of(&families, "prober_probe_total", labels)? >= 1.0, "{labels:?}");
    }
    ensure!(of(&families, "prober_probe_duration_seconds_count", &well[..2])? >= 1.0);
    picky.delete().await?;
    picky.expect_gone().await?;
    poll::until("the end of the probes of a pod that is gone", WITHIN, async || {
        let families = node.families(PAGE).await?;
        ensure!(value(&families, "prober_probe_total", &well).is_some(), "the other pod's probes are gone");
        Ok(match value(&families, "prober_probe_total", &[("pod", "picky")]) {
            None => Look::Done(()),
            Some(count) => Look::NotYet(format!("{count} results")),
        })
    })
    .await
}

async fn who_scrapes_needs_the_right(node: Node) -> Result<()> {
    let stranger = node.robot("stranger", &["get"], &["stats"]).await?;
    for path in ["/metrics", "/metrics/probes", "/metrics/slis"] {
        let (status, text) = node.call(Caller::Token(&stranger), path).await?;
        ensure!(status == 403 && text.contains("subresource(s)=[metrics]"), "{path}: {status} {text:?}");
    }
    let scraper = node.robot("scraper", &["get"], &["metrics"]).await?;
    poll::until("the right to scrape", WITHIN * 2, async || {
        Ok(match node.call(Caller::Token(&scraper), "/metrics").await? {
            (200, text) => Look::Done(parse(&text).map(drop)?),
            (status, text) => Look::NotYet(format!("{status} {text:?}")),
        })
    })
    .await
}

async fn a_page_is_whole_while_pods_come_and_go(node: Node) -> Result<()> {
    let churn = async {
        for round in 0..3 {
            let pods =
                (0..4).map(|number| node.run(picky().metadata(json!({ "name": format!("brief-{round}-{number}") }))));
            let pods = try_join_all(pods).await?;
            try_join_all(pods.iter().map(|pod| async { pod.expect().running().await })).await?;
            try_join_all(pods.iter().map(PodHandle::delete)).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let mut churn = std::pin::pin!(churn);
    let (mut operations, mut scrapes) = (0.0, 0);
    loop {
        let families = node.families("/metrics").await?;
        node.families("/metrics/probes").await?;
        let now = of(&families, "kubelet_runtime_operations_total", &[])?;
        ensure!(now >= operations, "{operations} calls of the runtime have become {now}");
        (operations, scrapes) = (now, scrapes + 1);
        if let Ok(ended) = tokio::time::timeout(Duration::from_millis(50), &mut churn).await {
            ended?;
            ensure!(scrapes > 5, "only {scrapes} pages were read meanwhile");
            return Ok(());
        }
    }
}

async fn checks_of_health_are_counted(node: Node) -> Result<()> {
    ensure!(node.call(Caller::ApiServer, "/healthz").await?.0 == 200);
    let families = node.families("/metrics/slis").await?;
    for check in ["ping", "log", "syncloop"] {
        let labels = [("name", check), ("type", "healthz")];
        ensure!(of(&families, "kubernetes_healthcheck", &labels)? == 1.0, "{check}");
        let labels = [("name", check), ("type", "healthz"), ("status", "success")];
        ensure!(of(&families, "kubernetes_healthchecks_total", &labels)? >= 1.0, "{check}");
    }
    Ok(())
}

/// Labels whose values are words of the API, and the same on each node with the same pods.
const WORDS: &[&str] = &[
    "config",
    "container_type",
    "lifecycle",
    "probe_type",
    "pull_policy",
    "pull_required",
    "result",
    "static",
    "type",
];

async fn its_metrics_are_those_of_upstream(lab: Lab) -> Result<()> {
    let (ours, theirs) = try_join(populated(&lab, Agent::Ferrolet), populated(&lab, Agent::Kubelet)).await?;
    // Upstream tells of what its relist has seen, and of volumes, some seconds later.
    poll::until("metrics like upstream's", WITHIN, async || {
        let (ours, theirs) = try_join(shapes(&ours), shapes(&theirs)).await?;
        let left = unexplained(&ours, &theirs, WANTED);
        let mut idle = exposition::idle(&ours, &theirs, WANTED);
        idle.retain(|line| !BY_CHANCE.contains(line));
        Ok(match left.is_empty() && idle.is_empty() {
            true => Look::Done(()),
            false => Look::NotYet(format!("{}\nreasons that nothing needs: {idle:?}", left.join("\n"))),
        })
    })
    .await
}

/// A node on which everything has happened that is counted.
async fn populated(lab: &Lab, agent: Agent) -> Result<Node> {
    let node = lab.node_of(agent, with_static_pod).await?;
    populate(&node).await?;
    node.run(hopeless()).await?.expect().waiting("ErrImageNeverPull").await?;
    node.call(Caller::ApiServer, "/healthz").await?;
    Ok(node)
}

/// What all pages of a node have.
async fn shapes(node: &Node) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for path in ["/metrics", "/metrics/probes", "/metrics/slis"] {
        let shape = shape(&node.families(path).await?, WORDS);
        lines.extend(shape.into_iter().map(|line| format!("{path} {line}")));
    }
    Ok(lines)
}

const OF_LIBRARIES: &str = "a leftover of a Go library that its binary is linked with";
const NO_FEATURE: &str = "of a feature that is not there yet";
const NO_SUCH_STEP: &str = "nothing here does that: volumes are found again by looking at them";

/// Differences that are there in one run and not in the next.
const BY_CHANCE: [&str; 4] = [FAILED_CALLS, FAILED_SANDBOXES, RETRIES, PROVIDER];
const FAILED_CALLS: &str = "/metrics kubelet_runtime_operations_errors_total";
const FAILED_SANDBOXES: &str = "/metrics kubelet_run_podsandbox_errors_total";
const RETRIES: &str = "/metrics rest_client_request_retries_total";
const PROVIDER: &str = "/metrics kubelet_metrics_provider";

const WANTED: &[Wanted] = &[
    (FAILED_CALLS, "whether a call fails depends on when it is made"),
    (FAILED_SANDBOXES, "on a busy machine a sandbox may fail on one side and be made by the next attempt"),
    (RETRIES, "a busy API server may send a request away, which is then tried again"),
    (PROVIDER, "upstream's server sets it once, which is lost where its metrics are registered only after that"),
    ("/metrics aggregator_*", OF_LIBRARIES),
    ("/metrics apiserver_*", OF_LIBRARIES),
    ("/metrics cardinality_enforcement_unexpected_categorizations_total", OF_LIBRARIES),
    ("/metrics disabled_metrics_total", OF_LIBRARIES),
    ("/metrics go_*", "there is no Go in it"),
    ("/metrics hidden_metrics_total", OF_LIBRARIES),
    ("/metrics registered_metrics_total", OF_LIBRARIES),
    ("/metrics rest_client_exec_plugin_*", "plugins that give credentials are run by the client's library, unseen"),
    ("/metrics rest_client_transport_*", OF_LIBRARIES),
    ("/metrics workqueue_*", "there are no such queues"),
    ("/metrics dra_*", NO_FEATURE),
    ("/metrics kubelet_graceful_shutdown_*", NO_FEATURE),
    ("/metrics kubelet_pod_watch_events_dropped_total", NO_FEATURE),
    ("/metrics kubelet_volume_metric_collection_duration_seconds", "it tells of the page /stats/summary"),
    ("/metrics kubelet_imagemanager_inmemory_*", "its cache has a bound; here all records are in memory"),
    ("/metrics kubelet_orphan_pod_cleaned_volumes", NO_SUCH_STEP),
    ("/metrics kubelet_orphan_pod_cleaned_volumes_errors", NO_SUCH_STEP),
    ("/metrics force_cleaned_failed_volume_*", NO_SUCH_STEP),
    ("/metrics reconstruct_volume_operations_*", NO_SUCH_STEP),
    ("/metrics volume_operation_total_seconds", "storage_operation_duration_seconds tells the same"),
];
