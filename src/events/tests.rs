//! The correlator as tables, the poster with a fake cluster and a paused clock.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::correlator::{Correlator, Verdict};
use super::{EventType, Occurrence, Recorder, run};
use crate::clock::Clock;
use crate::kube::fake::FakeCluster;
use crate::kube::limit::Rate;
use crate::kube::{ApiError, Cluster};

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({ "metadata": { "namespace": "shop", "name": name, "uid": format!("uid-{name}") } }))
        .expect("the test's pod is valid")
}

fn occurrence(object: &str, reason: &str, message: &str, second: i64) -> Occurrence {
    Occurrence {
        about: ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some("shop".into()),
            name: Some(object.into()),
            uid: Some(format!("uid-{object}")),
            ..ObjectReference::default()
        },
        kind: EventType::Warning,
        reason: reason.into(),
        message: message.into(),
        at: jiff::Timestamp::from_second(second).expect("a small number of seconds"),
    }
}

/// What became of an occurrence, in few words.
fn outline(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Drop => "drop".into(),
        Verdict::Create(event) => {
            format!("create: {}", event.message.as_deref().unwrap_or_default())
        }
        Verdict::Patch { patch, .. } => {
            format!("count {}: {}", patch["count"], patch["message"].as_str().unwrap_or_default())
        }
    }
}

/// Tells the occurrences `(second, object, reason, message)` and checks what becomes of each.
fn check(told: &[(u64, &str, &str, &str, &str)]) {
    let mut correlator = Correlator::new("node-1");
    let start = Instant::now();
    for &(second, object, reason, message, expected) in told {
        let occurrence = occurrence(object, reason, message, second.cast_signed());
        let verdict = correlator.consider(&occurrence, start + Duration::from_secs(second));
        assert_eq!(outline(&verdict), expected, "{object} {reason} {message} after {second} s");
    }
}

#[tokio::test]
async fn the_same_event_again_raises_its_count() {
    check(&[
        (0, "web", "BackOff", "again", "create: again"),
        (10, "web", "BackOff", "again", "count 2: again"),
        (20, "web", "BackOff", "other", "create: other"),
        (30, "db", "BackOff", "again", "create: again"),
        (40, "web", "Failed", "again", "create: again"),
        (50, "web", "BackOff", "again", "count 3: again"),
    ]);
}

#[tokio::test]
async fn the_tenth_different_message_is_combined() {
    check(&[
        (0, "web", "Unhealthy", "0", "create: 0"),
        (1, "web", "Unhealthy", "1", "create: 1"),
        (2, "web", "Unhealthy", "2", "create: 2"),
        (3, "web", "Unhealthy", "3", "create: 3"),
        (4, "web", "Unhealthy", "4", "create: 4"),
        (5, "web", "Unhealthy", "5", "create: 5"),
        (6, "web", "Unhealthy", "6", "create: 6"),
        (7, "web", "Unhealthy", "7", "create: 7"),
        (8, "web", "Unhealthy", "8", "create: 8"),
        (9, "web", "Unhealthy", "9", "create: (combined from similar events): 9"),
        (10, "web", "Unhealthy", "10", "count 2: (combined from similar events): 10"),
        // Another reason is not similar, and ten quiet minutes end the combining.
        (11, "web", "Killing", "11", "create: 11"),
        (700, "web", "Unhealthy", "12", "create: 12"),
    ]);
}

#[tokio::test]
async fn an_object_has_25_writes_and_then_one_in_five_minutes() {
    let mut told = vec![(0, "web", "Failed", "same", "create: same")];
    let counts: Vec<String> = (2..=20).map(|count| format!("count {count}: same")).collect();
    told.extend(counts.iter().map(|expected| (0, "web", "Failed", "same", expected.as_str())));
    told.extend([
        (1, "web", "Failed", "same", "drop"),
        (3, "db", "Failed", "other object", "create: other object"),
        // What was dropped was counted.
        (301, "web", "Failed", "same", "count 22: same"),
        (302, "web", "Failed", "same", "drop"),
    ]);
    check(&told);
}

#[tokio::test]
async fn repetitions_leave_room_for_news() {
    let mut told = vec![(0, "web", "Failed", "same", "create: same")];
    let counts: Vec<String> = (2..=20).map(|count| format!("count {count}: same")).collect();
    told.extend(counts.iter().map(|expected| (0, "web", "Failed", "same", expected.as_str())));
    told.push((1, "web", "Failed", "same", "drop"));
    let news = ["Killing", "Evicted", "Pulled", "Created", "Started"];
    let expected: Vec<String> = news.iter().map(|reason| format!("create: {reason}")).collect();
    told.extend(news.iter().zip(&expected).map(|(reason, expected)| (2, "web", *reason, *reason, expected.as_str())));
    told.push((3, "web", "Unhealthy", "one too many", "drop"));
    check(&told);
}

#[tokio::test]
async fn events_of_one_instant_have_different_names() {
    let mut correlator = Correlator::new("node-1");
    let name = |verdict| match verdict {
        Verdict::Create(event) => event.metadata.name,
        other => panic!("expected an event, got {other:?}"),
    };
    let now = Instant::now();
    let first = name(correlator.consider(&occurrence("web", "A", "a", 1), now));
    let second = name(correlator.consider(&occurrence("web", "B", "b", 1), now));
    assert_eq!(first.as_deref(), Some("web.3b9aca00"));
    assert_eq!(second.as_deref(), Some("web.3b9aca01"));
}

#[tokio::test]
async fn the_memory_is_bounded() {
    let mut correlator = Correlator::new("node-1");
    let now = Instant::now();
    for number in 0..5000 {
        correlator.consider(&occurrence(&format!("pod-{number}"), "A", "a", 0), now);
    }
    // The last ones are remembered, the first ones forgotten.
    let last = correlator.consider(&occurrence("pod-4999", "A", "a", 0), now);
    let first = correlator.consider(&occurrence("pod-0", "A", "a", 0), now);
    assert_eq!((outline(&last).as_str(), outline(&first).as_str()), ("count 2: a", "create: a"));
}

/// A recorder whose events a task posts to the fake.
fn posting(rate: Option<Rate>) -> (Recorder, FakeCluster) {
    let clock = Clock::simulated(jiff::Timestamp::UNIX_EPOCH, 1);
    let (recorder, queue) = Recorder::new(clock, "node-1");
    let cluster = FakeCluster::default();
    tokio::spawn(run(queue, Some(Arc::new(cluster.clone()) as Arc<dyn Cluster>), rate));
    (recorder, cluster)
}

fn unavailable() -> ApiError {
    ApiError::Unavailable { what: "create event".into(), message: "connection refused".into() }
}

#[tokio::test(start_paused = true)]
async fn a_pod_event_says_who_where_and_when() {
    let (recorder, cluster) = posting(None);
    recorder.pod(&pod("web"), Some("spec.containers{app}"), EventType::Normal, "Started", "Container started");
    sleep(Duration::from_secs(1)).await;
    let sent = cluster.sent("create event").pop().expect("one event was posted");
    let expected = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "name": sent["metadata"]["name"], "namespace": "shop" },
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web", "uid": "uid-web",
            "fieldPath": "spec.containers{app}",
        },
        "type": "Normal", "reason": "Started", "message": "Container started", "count": 1,
        "source": { "component": "kubelet", "host": "node-1" },
        "reportingComponent": "kubelet", "reportingInstance": "node-1",
        "firstTimestamp": "1970-01-01T00:00:00Z", "lastTimestamp": "1970-01-01T00:00:00Z",
    });
    assert_eq!(sent, expected);
}

#[tokio::test(start_paused = true)]
async fn a_node_event_is_stored_in_the_default_namespace() {
    let (recorder, cluster) = posting(None);
    recorder.node(EventType::Normal, "Starting", "Starting kubelet.");
    sleep(Duration::from_secs(1)).await;
    let sent = cluster.sent("create event").pop().expect("one event was posted");
    assert_eq!(sent["metadata"]["namespace"], "default");
    assert_eq!(sent["involvedObject"], json!({ "apiVersion": "v1", "kind": "Node", "name": "node-1" }));
}

#[tokio::test(start_paused = true)]
async fn an_event_waits_for_the_api_server_to_come_back() {
    let (recorder, cluster) = posting(None);
    (0..3).for_each(|_| cluster.fail_next("create event", unavailable()));
    recorder.pod(&pod("web"), None, EventType::Normal, "Killing", "Stopping container app");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(cluster.calls().len(), 4, "{:?}", cluster.calls());
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_does_not_hold_up_the_next() {
    let (recorder, cluster) = posting(None);
    cluster.fail_next(
        "create event",
        ApiError::Refused { what: "create event".into(), message: "namespace is terminating".into() },
    );
    recorder.pod(&pod("web"), None, EventType::Normal, "A", "a");
    recorder.pod(&pod("web"), None, EventType::Normal, "B", "b");
    sleep(Duration::from_millis(10)).await;
    let reasons: Vec<_> = cluster.sent("create event").iter().map(|event| event["reason"].clone()).collect();
    assert_eq!(reasons, ["A", "B"]);
}

#[tokio::test(start_paused = true)]
async fn a_count_on_an_expired_event_makes_a_new_one() {
    let (recorder, cluster) = posting(None);
    recorder.pod(&pod("web"), None, EventType::Normal, "A", "a");
    sleep(Duration::from_secs(1)).await;
    cluster.fail_next("patch event", ApiError::NotFound { what: "patch event".into() });
    recorder.pod(&pod("web"), None, EventType::Normal, "A", "a");
    sleep(Duration::from_secs(1)).await;
    let counts: Vec<_> = cluster.sent("create event").iter().map(|event| event["count"].clone()).collect();
    assert_eq!(counts, [1, 2]);
    assert_eq!(cluster.sent("patch event").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn posting_keeps_to_the_rate() {
    let (recorder, cluster) = posting(Some(Rate { per_second: 1.0, burst: 2 }));
    for name in ["a", "b", "c", "d"] {
        recorder.pod(&pod(name), None, EventType::Normal, "A", "a");
    }
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(cluster.calls().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_drops_and_never_waits() {
    let (recorder, cluster) = posting(None);
    (0..super::QUEUE_LENGTH + 500).for_each(|number| {
        recorder.pod(&pod(&format!("pod-{number}")), None, EventType::Normal, "A", "a");
    });
    sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.calls().len(), super::QUEUE_LENGTH);
}

#[test]
fn a_test_recorder_lists_what_it_was_told() {
    let (recorder, recorded) = Recorder::for_tests();
    recorder.pod(&pod("web"), None, EventType::Normal, "Pulling", "Pulling image \"busybox\"");
    assert_eq!(recorded.reasons(), ["Pulling"]);
}
