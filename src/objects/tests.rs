//! The cache against a fake cluster, on a paused clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::tokens::{TokenError, Tokens};
use super::{ObjectError, Objects};
use crate::clock::Clock;
use crate::kube::fake::FakeCluster;
use crate::kube::{ApiError, Change, Cluster, ObjectState};
use crate::pod::PodUid;

/// The cache under test, the cluster below it and the pods it woke.
struct Bed {
    cluster: FakeCluster,
    objects: Objects,
    woken: Arc<Mutex<Vec<String>>>,
}

impl Bed {
    fn new() -> Self {
        let (cluster, woken) = (FakeCluster::default(), Arc::<Mutex<Vec<String>>>::default());
        let list = Arc::clone(&woken);
        let wake = Arc::new(move |uid: &PodUid| list.lock().expect("no holder panics").push(uid.to_string()));
        let objects = Objects::new(Some(Arc::new(cluster.clone()) as Arc<dyn Cluster>), wake);
        Bed { cluster, objects, woken }
    }

    fn woken(&self) -> Vec<String> {
        std::mem::take(&mut *self.woken.lock().expect("no holder panics"))
    }

    /// The value of key `k` in config map `shop/settings`, as the cache has it.
    async fn setting(&self) -> Result<Option<String>, ObjectError> {
        let map = self.objects.config_map("shop", "settings").await?;
        Ok(map.map(|map| map.data.as_ref().and_then(|data| data.get("k")).cloned().unwrap_or_default()))
    }

    async fn show(&self, state: ObjectState<ConfigMap>) {
        self.cluster.send_config_map("shop", "settings", state);
        settle().await;
    }
}

/// Lets every task run until it waits.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

fn pod(uid: &str, config_maps: &[&str]) -> Pod {
    let volumes: Vec<Value> =
        config_maps.iter().map(|name| json!({ "name": name, "configMap": { "name": name } })).collect();
    serde_json::from_value(json!({
        "metadata": { "namespace": "shop", "name": uid, "uid": uid },
        "spec": { "containers": [], "volumes": volumes },
    }))
    .expect("the test's pod is valid")
}

fn settings(version: &str, value: &str) -> ObjectState<ConfigMap> {
    settings_with(version, value, false)
}

fn settings_with(version: &str, value: &str, immutable: bool) -> ObjectState<ConfigMap> {
    let object = json!({
        "metadata": { "namespace": "shop", "name": "settings", "uid": "u", "resourceVersion": version },
        "data": { "k": value },
        "immutable": immutable,
    });
    ObjectState::Present(Box::new(serde_json::from_value(object).expect("the test's config map is valid")))
}

#[tokio::test(start_paused = true)]
async fn a_question_waits_for_the_first_answer() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    let (answer, ()) = tokio::join!(bed.setting(), async {
        sleep(Duration::from_millis(40)).await;
        bed.show(settings("1", "blue")).await;
    });
    assert_eq!(answer, Ok(Some("blue".into())));
    // Whoever waited has the answer: a wake-up would only cost another pass.
    assert_eq!(bed.woken(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_absent_object_is_an_answer() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    bed.show(ObjectState::Absent).await;
    assert_eq!(bed.setting().await, Ok(None));
    bed.show(settings("1", "blue")).await;
    assert_eq!(bed.woken(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_change_wakes_exactly_the_pods_that_mention_it() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    bed.objects.register(&pod("b", &["settings", "other"]));
    bed.objects.register(&pod("c", &["other"]));
    bed.show(settings("1", "blue")).await;
    bed.show(settings("2", "green")).await;
    assert_eq!(bed.woken(), ["a", "b"]);
    assert_eq!(bed.setting().await, Ok(Some("green".into())));
}

#[tokio::test(start_paused = true)]
async fn the_same_version_again_wakes_nobody() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    bed.show(settings("1", "blue")).await;
    bed.show(settings("1", "blue")).await;
    assert_eq!(bed.woken(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_hundred_pods_share_one_watch() {
    let bed = Bed::new();
    for number in 0..100 {
        bed.objects.register(&pod(&format!("pod-{number}"), &["settings"]));
    }
    bed.objects.register(&pod("pod-0", &["settings"]));
    settle().await;
    assert_eq!(bed.cluster.call_names(), ["watch services", "watch config map shop/settings"]);
}

#[tokio::test(start_paused = true)]
async fn silence_is_reported_in_time_and_the_answer_wakes() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    let start = Instant::now();
    let error = bed.setting().await.expect_err("nothing has answered");
    assert_eq!(start.elapsed(), Duration::from_secs(10));
    assert_eq!(error.to_string(), "config map shop/settings is not known yet: the API server has not answered");
    // The next pass is not held up again.
    assert!(timeout(Duration::from_millis(1), bed.setting()).await.is_ok());
    bed.show(settings("1", "blue")).await;
    assert_eq!(bed.woken(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_short_refusal_is_waited_out_and_a_long_one_reported() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    bed.show(ObjectState::Refused("no relationship found".into())).await;
    let (answer, ()) = tokio::join!(bed.setting(), async {
        sleep(Duration::from_millis(100)).await;
        bed.show(settings("1", "blue")).await;
    });
    assert_eq!(answer, Ok(Some("blue".into())));

    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    bed.show(ObjectState::Refused("no relationship found".into())).await;
    let start = Instant::now();
    let error = bed.setting().await.expect_err("the refusal lasts");
    assert_eq!(error.to_string(), "config map shop/settings is not known yet: no relationship found");
    assert!(start.elapsed() < Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_takes_nothing_away() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    bed.show(settings("1", "blue")).await;
    bed.show(ObjectState::Refused("later".into())).await;
    assert_eq!(bed.setting().await, Ok(Some("blue".into())));
}

#[tokio::test(start_paused = true)]
async fn an_immutable_object_is_read_once() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    bed.show(settings_with("1", "blue", true)).await;
    assert!(!bed.cluster.is_config_map_watched("shop", "settings"));
    assert_eq!(bed.setting().await, Ok(Some("blue".into())));
}

#[tokio::test(start_paused = true)]
async fn an_immutable_object_is_read_anew_for_the_next_pod() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    bed.show(settings_with("1", "blue", true)).await;
    bed.objects.unregister(&PodUid::new("a"));
    bed.objects.register(&pod("b", &["settings"]));
    bed.show(settings_with("2", "green", true)).await;
    assert_eq!(bed.setting().await, Ok(Some("green".into())), "it was deleted and made again meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_watch_lingers_for_the_next_pod_and_then_ends() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    bed.show(settings("1", "blue")).await;
    bed.objects.unregister(&PodUid::new("a"));
    sleep(Duration::from_secs(20)).await;
    bed.objects.register(&pod("b", &["settings"]));
    sleep(Duration::from_secs(100)).await;
    assert_eq!(bed.setting().await, Ok(Some("blue".into())));

    bed.objects.unregister(&PodUid::new("b"));
    sleep(Duration::from_secs(100)).await;
    assert!(!bed.cluster.is_config_map_watched("shop", "settings"));
    assert!(matches!(bed.setting().await, Err(ObjectError::NotRegistered { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_new_spec_of_a_pod_changes_what_is_watched() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &["settings"]));
    bed.objects.register(&pod("a", &["other"]));
    sleep(Duration::from_secs(100)).await;
    assert!(!bed.cluster.is_config_map_watched("shop", "settings"));
    assert!(bed.cluster.is_config_map_watched("shop", "other"));
}

#[tokio::test(start_paused = true)]
async fn without_a_cluster_the_error_says_so() {
    let objects = Objects::new(None, Arc::new(|_: &PodUid| {}));
    objects.register(&pod("a", &["settings"]));
    let error = objects.config_map("shop", "settings").await.expect_err("there is no cluster");
    assert_eq!(error.to_string(), "config map shop/settings cannot be read: this node runs without an API server");
    assert_eq!(objects.services().map(|services| services.in_namespace("shop").count()), Some(0));
}

#[tokio::test(start_paused = true)]
async fn services_are_unknown_until_listed_and_then_wake_the_waiting() {
    let bed = Bed::new();
    bed.objects.register(&pod("a", &[]));
    bed.objects.register(&pod("gone", &[]));
    bed.objects.unregister(&PodUid::new("gone"));
    assert_eq!(bed.objects.services(), None);
    let service = |name: &str, cluster_ip: &str| {
        serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": name },
            "spec": { "clusterIP": cluster_ip, "ports": [{ "port": 80 }] },
        }))
        .expect("the test's service is valid")
    };
    bed.cluster.send_services(Change::Listed(vec![service("web", "10.0.0.1"), service("headless", "None")]));
    settle().await;
    assert_eq!(bed.woken(), ["a"]);
    let names = || -> Vec<String> {
        let services = bed.objects.services().expect("they were listed");
        services.in_namespace("shop").map(|service| service.name.clone()).collect()
    };
    assert_eq!(names(), ["web"]);

    bed.cluster.send_services(Change::Applied(Box::new(service("db", "10.0.0.2"))));
    bed.cluster.send_services(Change::Applied(Box::new(service("web", "None"))));
    settle().await;
    assert_eq!(names(), ["db"]);
    bed.cluster.send_services(Change::Deleted(Box::new(service("db", "10.0.0.2"))));
    settle().await;
    assert_eq!(names(), Vec::<String>::new());
}

fn granted(token: &str, seconds: i64) -> TokenRequest {
    serde_json::from_value(json!({
        "spec": { "expirationSeconds": seconds },
        "status": { "token": token, "expirationTimestamp": "2030-01-01T00:00:00Z" },
    }))
    .expect("the test's answer is valid")
}

/// Asks for a token of pod `a` at each of the times, and checks what is given.
async fn check_tokens(answers: Vec<Result<TokenRequest, ApiError>>, asked: &[(u64, Result<&str, ()>)]) {
    let cluster = FakeCluster::default();
    let tokens = Tokens::new(
        Some(Arc::new(cluster.clone()) as Arc<dyn Cluster>),
        Clock::simulated(jiff::Timestamp::UNIX_EPOCH, 7),
    );
    let (start, pod) = (Instant::now(), pod("a", &[]));
    let mut answers = answers.into_iter();
    for &(second, expected) in asked {
        tokio::time::sleep_until(start + Duration::from_secs(second)).await;
        match answers.next() {
            Some(Ok(answer)) => cluster.grant_token(answer),
            Some(Err(error)) => cluster.fail_next("request token shop/default", error),
            None => {}
        }
        let given = tokens.get(&pod, "default", None, 3600).await;
        assert_eq!(given.as_ref().map(|token| &*token.token).map_err(|_| ()), expected, "after {second} s");
    }
}

fn away() -> ApiError {
    ApiError::Unavailable { what: "request token".into(), message: "connection refused".into() }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_after_four_fifths_of_its_life() {
    let answers = vec![Ok(granted("first", 3600)), Ok(granted("second", 3600))];
    check_tokens(answers, &[(0, Ok("first")), (2860, Ok("first")), (2881, Ok("second"))]).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_after_a_day_at_the_latest() {
    let week = 7 * 24 * 3600;
    let answers = vec![Ok(granted("first", week)), Ok(granted("second", week))];
    check_tokens(answers, &[(0, Ok("first")), (86_380, Ok("first")), (86_401, Ok("second"))]).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_gives_the_old_token_while_it_is_good() {
    let answers = vec![Ok(granted("first", 3600)), Err(away()), Err(away()), Err(away())];
    check_tokens(answers, &[(0, Ok("first")), (3000, Ok("first")), (3500, Ok("first")), (3601, Err(()))]).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_bound_to_its_pod_and_forgotten_with_it() {
    let cluster = FakeCluster::default();
    let tokens = Tokens::new(
        Some(Arc::new(cluster.clone()) as Arc<dyn Cluster>),
        Clock::simulated(jiff::Timestamp::UNIX_EPOCH, 7),
    );
    cluster.grant_token(granted("first", 3600));
    tokens.get(&pod("a", &[]), "robot", Some("vault"), 600).await.expect("the fake grants it");
    assert_eq!(
        cluster.sent("request token shop/robot").pop().map(|request| request["spec"].clone()),
        Some(json!({
            "audiences": ["vault"],
            "expirationSeconds": 600,
            "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "a" },
        }))
    );
    let uid = PodUid::new("a");
    assert!(tokens.next_refresh(&uid).is_some());
    tokens.forget(&uid);
    assert_eq!(tokens.next_refresh(&uid), None);
}

#[tokio::test(start_paused = true)]
async fn a_token_error_names_pod_and_account() {
    let cluster = FakeCluster::default();
    cluster.fail_next("request token shop/robot", ApiError::NotFound { what: "request token".into() });
    let tokens =
        Tokens::new(Some(Arc::new(cluster) as Arc<dyn Cluster>), Clock::simulated(jiff::Timestamp::UNIX_EPOCH, 7));
    let error = tokens.get(&pod("a", &[]), "robot", None, 600).await.expect_err("the fake refuses");
    assert!(matches!(error, TokenError::Request { source: ApiError::NotFound { .. }, .. }));
    assert_eq!(error.to_string(), "failed to get a token of service account robot for pod shop/a");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_class_read_once_serves_while_the_api_server_is_away() {
    let bed = Bed::new();
    assert_eq!(bed.objects.runtime_handler("class-of-sealed").await, Ok("sealed".to_owned()));
    let missing = bed.objects.runtime_handler("other").await;
    assert_eq!(missing, Err(ObjectError::NoRuntimeClass("other".into())));

    let away = ApiError::Unavailable { what: "anything".into(), message: "connection refused".into() };
    bed.cluster.set_outage(Some(away));
    assert_eq!(bed.objects.runtime_handler("class-of-sealed").await, Ok("sealed".to_owned()));
    assert!(bed.objects.runtime_handler("class-of-new").await.is_err());
}
