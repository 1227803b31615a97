use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::time::{Instant, timeout};

use super::at;
use crate::clock::Clock;
use crate::kube::ApiError;
use crate::kube::fake::FakeCluster;
use crate::pod::{PodRef, PodUid};
use crate::status::{Flush, StatusWriter};

fn uid(name: &str) -> PodUid {
    PodUid::new(format!("uid-{name}"))
}

fn phase(phase: &str) -> PodStatus {
    PodStatus { phase: Some(phase.into()), ..PodStatus::default() }
}

fn pod(name: &str) -> Pod {
    let mut pod = Pod { status: Some(phase("Pending")), ..Pod::default() };
    pod.metadata.namespace = Some("shop".into());
    pod.metadata.name = Some(name.into());
    pod.metadata.uid = Some(uid(name).as_str().into());
    pod
}

fn away() -> ApiError {
    ApiError::Unavailable { what: "patch".into(), message: "connection refused".into() }
}

/// A writer that runs, over a cluster that has these pods.
fn start(names: &[&str]) -> (FakeCluster, StatusWriter) {
    let cluster = FakeCluster::default();
    let writer = StatusWriter::new(Arc::new(cluster.clone()), Clock::simulated(at(0), 1));
    tokio::spawn(writer.clone().run());
    for name in names {
        let stored = cluster.put_pod(pod(name));
        writer.observed(&uid(name), &stored);
    }
    (cluster, writer)
}

fn phase_at(cluster: &FakeCluster, name: &str) -> Option<String> {
    cluster.pod("shop", name)?.status.as_ref()?.phase.clone()
}

#[tokio::test(start_paused = true)]
async fn a_change_reaches_the_api_without_a_read_before() {
    let (cluster, writer) = start(&["a"]);
    let began = Instant::now();
    writer.set(&uid("a"), phase("Running"));
    assert_eq!(writer.flushed(&uid("a")).await, Flush::Accepted);
    assert_eq!(phase_at(&cluster, "a").as_deref(), Some("Running"));
    assert_eq!(cluster.call_names(), ["patch shop/a"]);
    assert_eq!(began.elapsed(), Duration::ZERO, "no timer stands between a change and the API");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_changes_share_eight_connections() {
    let names: Vec<String> = (0..100).map(|n| format!("p{n}")).collect();
    let (cluster, writer) = start(&names.iter().map(String::as_str).collect::<Vec<_>>());
    cluster.set_latency(Duration::from_millis(20));
    for name in &names {
        writer.set(&uid(name), phase("Running"));
    }
    let began = Instant::now();
    writer.drained().await;
    assert_eq!(cluster.in_flight_max(), 8);
    assert_eq!(began.elapsed(), Duration::from_millis(20 * 13));
}

#[tokio::test(start_paused = true)]
async fn only_the_newest_status_is_sent_after_an_outage() {
    let (cluster, writer) = start(&["a", "b"]);
    cluster.set_outage(Some(away()));
    for phase_name in ["Pending", "Running"] {
        writer.set(&uid("a"), phase(phase_name));
        writer.set(&uid("b"), phase(phase_name));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let tried = cluster.call_names().len();
    assert!((10..40).contains(&tried), "a probe each few seconds, not {tried} calls in a minute");
    for name in ["a", "b"] {
        writer.set(&uid(name), phase("Succeeded"));
    }
    cluster.clear_calls();
    cluster.set_outage(None);
    let began = Instant::now();
    for name in ["a", "b"] {
        assert_eq!(writer.flushed(&uid(name)).await, Flush::Accepted);
        assert_eq!(phase_at(&cluster, name).as_deref(), Some("Succeeded"));
    }
    assert_eq!(cluster.call_names().len(), 2);
    assert!(began.elapsed() <= Duration::from_millis(7500));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_never_answers_counts_as_away() {
    let (cluster, writer) = start(&["a"]);
    cluster.set_latency(Duration::from_secs(3600));
    writer.set(&uid("a"), phase("Running"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.set_latency(Duration::ZERO);
    let flushed = timeout(Duration::from_secs(15), writer.flushed(&uid("a"))).await;
    assert_eq!(flushed.expect("the call is given up after ten seconds"), Flush::Accepted);
}

#[tokio::test(start_paused = true)]
async fn another_pod_of_the_same_name_is_left_alone() {
    let (cluster, writer) = start(&["a"]);
    let mut other = pod("a");
    other.metadata.uid = Some("other".into());
    cluster.put_pod(other);
    writer.set(&uid("a"), phase("Running"));
    assert_eq!(writer.flushed(&uid("a")).await, Flush::Gone);
    assert_eq!(phase_at(&cluster, "a").as_deref(), Some("Pending"));
}

#[tokio::test(start_paused = true)]
async fn a_uid_mismatch_told_as_an_invalid_change_is_understood() {
    let (cluster, writer) = start(&["a"]);
    let mut other = pod("a");
    other.metadata.uid = Some("other".into());
    cluster.put_pod(other);
    cluster.fail_next(
        "patch shop/a",
        ApiError::Invalid { what: "patch".into(), message: "uid: field is immutable".into() },
    );
    writer.set(&uid("a"), phase("Running"));
    assert_eq!(writer.flushed(&uid("a")).await, Flush::Gone);
}

#[tokio::test(start_paused = true)]
async fn a_conflict_leads_to_another_patch() {
    let (cluster, writer) = start(&["a"]);
    cluster.fail_next("patch shop/a", ApiError::Conflict { what: "patch".into(), message: "modified".into() });
    writer.set(&uid("a"), phase("Running"));
    assert_eq!(writer.flushed(&uid("a")).await, Flush::Accepted);
    assert_eq!(cluster.call_names(), ["patch shop/a", "get shop/a", "patch shop/a"]);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_status_is_given_up_until_it_changes() {
    let (cluster, writer) = start(&["a"]);
    cluster.fail_next("patch shop/a", ApiError::Invalid { what: "patch".into(), message: "no".into() });
    writer.set(&uid("a"), phase("Running"));
    assert_eq!(writer.flushed(&uid("a")).await, Flush::Rejected);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(cluster.call_names(), ["patch shop/a", "get shop/a"]);
    writer.set(&uid("a"), phase("Failed"));
    assert_eq!(writer.flushed(&uid("a")).await, Flush::Accepted);
}

#[tokio::test(start_paused = true)]
async fn deleting_a_pod_goes_on_until_it_is_gone() {
    let (cluster, writer) = start(&["a"]);
    cluster.fail_next("delete shop/a", away());
    cluster.fail_next("delete shop/a", away());
    writer.delete_pod(&PodRef::of(&pod("a"))).await;
    assert_eq!(cluster.pod("shop", "a"), None);
    assert_eq!(cluster.calls().last().expect("a call").1, serde_json::json!({"uid": "uid-a", "grace": 0}));
    writer.delete_pod(&PodRef::of(&pod("a"))).await;
}

#[tokio::test(start_paused = true)]
async fn deleting_spares_another_pod_of_that_name() {
    let (cluster, writer) = start(&["a"]);
    let mut other = pod("a");
    other.metadata.uid = Some("other".into());
    cluster.put_pod(other);
    writer.delete_pod(&PodRef::of(&pod("a"))).await;
    assert!(cluster.pod("shop", "a").is_some());
}
