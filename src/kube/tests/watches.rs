//! Watches: what they pass on, and how they recover.

use futures::StreamExt;
use serde_json::{Value, json};

use super::server::{Answer, Server};
use super::{Client, status};
use crate::kube::{Change, Cluster, ObjectState};

fn pod(name: &str, version: &str) -> Value {
    json!({ "metadata": { "name": name, "resourceVersion": version, "managedFields": [{ "manager": "m" }] } })
}

fn list(version: &str, next: Option<&str>, pods: &[Value]) -> Answer {
    Answer::Json(200, json!({ "metadata": { "resourceVersion": version, "continue": next }, "items": pods }))
}

fn event(kind: &str, object: Value) -> String {
    json!({ "type": kind, "object": object }).to_string()
}

fn bookmark(version: &str) -> String {
    event("BOOKMARK", json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "resourceVersion": version } }))
}

/// Serves these answers in order and then keeps silent; checks the changes that come out,
/// in few words, and the requests that go in: `list`, or `watch` with its version.
async fn check(answers: Vec<Answer>, changes: &[&str], requests: &[&str]) {
    let mut answers = answers.into_iter();
    let server = Server::start(move |_| answers.next().unwrap_or(Answer::Silence)).await;
    let client = Client::of(&server).await;
    let outline = client.cluster.watch_pods().map(|change| match change {
        Change::Listed(pods) => {
            let names: Vec<_> = pods.into_iter().filter_map(|pod| pod.metadata.name).collect();
            format!("listed {}", names.join(" "))
        }
        Change::Applied(pod) => {
            assert_eq!(pod.metadata.managed_fields, None);
            format!("applied {}", pod.metadata.name.unwrap_or_default())
        }
        Change::Deleted(pod) => format!("deleted {}", pod.metadata.name.unwrap_or_default()),
    });
    assert_eq!(outline.take(changes.len()).collect::<Vec<_>>().await, changes);

    let outline = server.lines().into_iter().map(|line| {
        assert!(line.contains("fieldSelector=spec.nodeName%3Dnode-1"), "{line}");
        let parameter = |name: &str| Some(line.split(&format!("&{name}=")).nth(1)?.split('&').next()?.to_owned());
        match (line.contains("watch=true"), parameter("resourceVersion"), parameter("continue")) {
            (true, version, _) => format!("watch {}", version.unwrap_or_default()),
            (false, _, Some(page)) => format!("list {page}"),
            (false, _, None) => "list".to_owned(),
        }
    });
    assert_eq!(outline.take(requests.len()).collect::<Vec<_>>(), requests);
}

#[tokio::test]
async fn pages_come_as_one_list_and_changes_follow() {
    check(
        vec![
            list("7", Some("page-2"), &[pod("a", "1")]),
            list("7", None, &[pod("b", "2")]),
            Answer::OpenWatch(vec![
                event("ADDED", pod("c", "8")),
                event("MODIFIED", pod("a", "9")),
                event("DELETED", pod("b", "10")),
            ]),
        ],
        &["listed a b", "applied c", "applied a", "deleted b"],
        &["list", "list page-2", "watch 7"],
    )
    .await;
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_from_the_last_version() {
    check(
        vec![
            list("7", None, &[]),
            Answer::Watch(vec![event("ADDED", pod("a", "8")), bookmark("9")]),
            Answer::CutWatch("{\"type\": \"ADD"),
            Answer::Json(500, status(500, "InternalError", "etcd is away")),
            Answer::HangUp,
            Answer::Text(200, "<html>\n"),
            Answer::OpenWatch(vec![event("ADDED", pod("b", "10"))]),
        ],
        &["listed ", "applied a", "applied b"],
        &["list", "watch 7", "watch 9", "watch 9", "watch 9", "watch 9", "watch 9"],
    )
    .await;
}

#[tokio::test]
async fn a_version_that_is_too_old_is_listed_anew() {
    let gone = || status(410, "Expired", "too old resource version");
    check(
        vec![
            list("7", None, &[pod("a", "1")]),
            // As an event of the stream, and as the answer itself.
            Answer::Watch(vec![event("ERROR", gone())]),
            list("9", None, &[pod("b", "8")]),
            Answer::Json(410, gone()),
            list("11", None, &[pod("c", "10")]),
        ],
        &["listed a", "listed b", "listed c"],
        &["list", "watch 7", "list", "watch 9", "list"],
    )
    .await;
}

#[tokio::test]
async fn a_version_that_keeps_failing_is_doubted() {
    let mut answers = vec![list("7", None, &[])];
    answers.extend((0..6).map(|_| Answer::Json(500, status(500, "", "odd"))));
    answers.push(list("3", None, &[pod("a", "3")]));
    check(answers, &["listed ", "listed a"], &["list", "watch 7"]).await;
}

#[tokio::test]
async fn a_list_is_retried_until_it_works() {
    check(
        vec![
            Answer::Json(429, status(429, "TooManyRequests", "slow down")),
            Answer::Text(200, "garbage"),
            Answer::HangUp,
            Answer::Json(403, status(403, "Forbidden", "not yet")),
            list("7", None, &[pod("a", "1")]),
        ],
        &["listed a"],
        &["list", "list", "list", "list", "list"],
    )
    .await;
}

#[tokio::test]
async fn a_page_that_fails_starts_the_list_over() {
    check(
        vec![
            list("7", Some("page-2"), &[pod("a", "1")]),
            Answer::Json(410, status(410, "Expired", "continue token expired")),
            list("9", None, &[pod("b", "8")]),
        ],
        &["listed b"],
        &["list", "list page-2", "list"],
    )
    .await;
}

#[tokio::test]
async fn a_single_object_is_refused_absent_present_and_gone() {
    let object = |version: &str| json!({ "metadata": { "name": "settings", "resourceVersion": version } });
    let mut answers = vec![
        Answer::Json(403, status(403, "Forbidden", "no relationship found")),
        list("7", None, &[]),
        Answer::Watch(vec![event("ADDED", object("8"))]),
        Answer::OpenWatch(vec![event("DELETED", object("9"))]),
    ]
    .into_iter();
    let server = Server::start(move |_| answers.next().unwrap_or(Answer::Silence)).await;
    let client = Client::of(&server).await;
    let start = tokio::time::Instant::now();
    let states = client.cluster.watch_config_map("shop", "settings").map(|state| match state {
        ObjectState::Present(map) => {
            format!("present {}", map.metadata.name.unwrap_or_default())
        }
        ObjectState::Absent => "absent".to_owned(),
        ObjectState::Refused(message) => format!("refused {message}"),
    });
    assert_eq!(
        states.take(4).collect::<Vec<_>>().await,
        ["refused no relationship found", "absent", "present settings", "absent"]
    );
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "a refusal is retried soon");
    assert!(
        server.lines()[0].starts_with("GET /api/v1/namespaces/shop/configmaps?&fieldSelector=metadata.name%3Dsettings"),
        "{}",
        server.lines()[0]
    );
}
