//! The real client against a server that behaves as each test says.

mod certificates;
mod identity;
mod server;
mod watches;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use self::server::{Answer, Server};
use super::{ApiError, Cluster, KubeCluster, Result};
use crate::clock::Clock;

/// A client of the server, and the directory that holds its kubeconfig.
struct Client {
    cluster: KubeCluster,
    kubeconfig: PathBuf,
    _directory: TempDir,
}

impl Client {
    async fn of(server: &Server) -> Self {
        Client::with(json!({ "server": format!("http://{}", server.address) })).await
    }

    /// A client whose kubeconfig describes the cluster like this.
    async fn with(cluster: Value) -> Self {
        let directory = tempfile::tempdir().expect("the temporary directory is writable");
        let kubeconfig = directory.path().join("kubeconfig");
        write_kubeconfig(&kubeconfig, cluster);
        let clock = Clock::system();
        let cluster = KubeCluster::from_kubeconfig(&kubeconfig, "node-1", None, clock).await;
        Client { cluster: cluster.expect("the kubeconfig is valid"), kubeconfig, _directory: directory }
    }
}

fn write_kubeconfig(path: &Path, cluster: Value) {
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "k", "cluster": cluster }],
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        "users": [{ "name": "u", "user": {} }],
    });
    std::fs::write(path, kubeconfig.to_string()).expect("the temporary directory is writable");
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

/// Patches a pod's status on a server that answers like this, and checks the error's
/// variant and text.
async fn check(answer: fn() -> Answer, expected: fn(&ApiError) -> bool, text: &str) {
    let server = Server::start(move |_| answer()).await;
    let client = Client::of(&server).await;
    let result = client.cluster.patch_pod_status("shop", "web", &json!({})).await;
    let error = result.expect_err("the answer is an error");
    assert!(expected(&error), "{error:?}");
    assert_eq!(error.to_string(), text);
}

#[tokio::test]
async fn errors_are_told_apart_by_what_to_do_about_them() {
    use ApiError::*;
    check(
        || Answer::Json(404, status(404, "NotFound", "pods \"web\" not found")),
        |error| matches!(error, NotFound { .. }),
        "patch status of pod shop/web: not found",
    )
    .await;
    check(
        || Answer::Json(409, status(409, "AlreadyExists", "there")),
        |error| matches!(error, AlreadyExists { .. }),
        "patch status of pod shop/web: already exists",
    )
    .await;
    check(
        || Answer::Json(409, status(409, "Conflict", "the UID differs")),
        |error| matches!(error, Conflict { .. }),
        "patch status of pod shop/web: conflict: the UID differs",
    )
    .await;
    check(
        || Answer::Json(401, status(401, "Unauthorized", "Unauthorized")),
        |error| matches!(error, Refused { .. }),
        "patch status of pod shop/web: refused: Unauthorized",
    )
    .await;
    check(
        || Answer::Json(403, status(403, "Forbidden", "node \"x\" is not allowed")),
        |error| matches!(error, Refused { .. }),
        "patch status of pod shop/web: refused: node \"x\" is not allowed",
    )
    .await;
    check(
        || Answer::Json(422, status(422, "Invalid", "spec: immutable")),
        |error| matches!(error, Invalid { .. }),
        "patch status of pod shop/web: invalid: spec: immutable",
    )
    .await;
    check(
        || Answer::Json(429, status(429, "TooManyRequests", "slow down")),
        |error| matches!(error, Unavailable { .. }),
        "patch status of pod shop/web: slow down",
    )
    .await;
    check(
        || Answer::Json(410, status(410, "Expired", "too old")),
        |error| matches!(error, Unavailable { .. }),
        "patch status of pod shop/web: too old",
    )
    .await;
    check(
        || Answer::Text(503, "no healthy upstream"),
        |error| matches!(error, Unavailable { .. }),
        "patch status of pod shop/web: no healthy upstream",
    )
    .await;
    check(
        || Answer::Text(500, ""),
        |error| matches!(error, Unavailable { .. }),
        "patch status of pod shop/web: answered 500 Failed to parse error data",
    )
    .await;
    check(
        || Answer::Text(200, "<html>"),
        |error| matches!(error, Unavailable { .. }),
        "patch status of pod shop/web: answer makes no sense: expected value at line 1 column 1",
    )
    .await;
}

#[tokio::test]
async fn a_server_that_hangs_up_is_unavailable_and_the_next_call_works() {
    let mut first = true;
    let server = Server::start(move |_| match std::mem::take(&mut first) {
        true => Answer::HangUp,
        false => Answer::Json(200, json!({ "metadata": { "name": "web" } })),
    })
    .await;
    let client = Client::of(&server).await;
    let error = client.cluster.get_pod("shop", "web").await.expect_err("the server hung up");
    assert!(matches!(error, ApiError::Unavailable { .. }), "{error}");
    let pod = client.cluster.get_pod("shop", "web").await.expect("the server answers now");
    assert_eq!(pod.metadata.name.as_deref(), Some("web"));
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let server = Server::start(|_| {
        // From here on nothing moves but time, which a paused clock skips.
        tokio::time::pause();
        Answer::Silence
    })
    .await;
    let client = Client::of(&server).await;
    let start = tokio::time::Instant::now();
    let error = client.cluster.get_lease().await.expect_err("there is no answer");
    let text = format!("get lease node-1: {} did not answer within 10s", server.address);
    assert_eq!(error.to_string(), text);
    assert!(start.elapsed() < std::time::Duration::from_secs(11));
}

#[tokio::test]
async fn an_absent_server_is_named() {
    let client = Client::with(json!({ "server": "http://127.0.0.1:1" })).await;
    let error = client.cluster.get_node().await.expect_err("nobody listens on port 1");
    assert_eq!(
        error.to_string(),
        "get node node-1: failed to connect to 127.0.0.1:1: Connection refused (os error 111)"
    );
}

/// Makes one call and checks the request's line and a part of its head and body.
async fn check_request<T>(call: impl AsyncFnOnce(&KubeCluster) -> Result<T>, line: &str, head: &str, body: Value) {
    let server = Server::start(|seen| Answer::Json(200, serde_json::from_str(&seen.body).unwrap_or_default())).await;
    let client = Client::of(&server).await;
    // Not every echo is a fitting answer; what was sent is what counts.
    let _ = call(&client.cluster).await;
    let seen = server.seen().pop().expect("one request was sent");
    assert_eq!(seen.line, line);
    assert!(seen.head.contains(head), "{head:?} is not in {}", seen.head);
    assert_eq!(serde_json::from_str::<Value>(&seen.body).unwrap_or_default(), body);
}

#[tokio::test]
async fn requests_are_what_the_api_server_expects() {
    let patch = json!({ "status": { "phase": "Running" } });
    let merge = "content-type: application/strategic-merge-patch+json";
    check_request(
        async |cluster| cluster.patch_pod_status("shop", "web", &json!({ "status": { "phase": "Running" } })).await,
        "PATCH /api/v1/namespaces/shop/pods/web/status?",
        merge,
        patch.clone(),
    )
    .await;
    check_request(
        async |cluster| cluster.patch_node_status(&json!({ "status": { "phase": "Running" } })).await,
        "PATCH /api/v1/nodes/node-1/status?",
        merge,
        patch,
    )
    .await;
    check_request(
        async |cluster| cluster.delete_pod("shop", "web", "uid-1", 0).await,
        "DELETE /api/v1/namespaces/shop/pods/web?",
        "content-type: application/json",
        json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": "uid-1" } }),
    )
    .await;
    check_request(
        async |cluster| cluster.get_lease().await,
        "GET /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1",
        "user-agent: kubelet/v1.36.",
        Value::Null,
    )
    .await;
    check_request(
        async |cluster| cluster.request_token("shop", "robot", &Default::default()).await,
        "POST /api/v1/namespaces/shop/serviceaccounts/robot/token?",
        "content-type: application/json",
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {} }),
    )
    .await;
}

#[tokio::test]
async fn heartbeats_have_a_connection_of_their_own() {
    let server = Server::start(|_| Answer::Json(200, json!({}))).await;
    let client = Client::of(&server).await;
    for _ in 0..2 {
        client.cluster.get_lease().await.expect("the server answers");
        client.cluster.get_pod("shop", "web").await.expect("the server answers");
    }
    let connections: Vec<usize> = server.seen().into_iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 1, 0, 1]);
}

/// The whole chain of an unusable kubeconfig's error, `DIR` standing for its directory.
async fn check_kubeconfig(content: Option<&str>, expected: &str) {
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let path = directory.path().join("kubeconfig");
    if let Some(content) = content {
        std::fs::write(&path, content).expect("the temporary directory is writable");
    }
    let loaded = KubeCluster::from_kubeconfig(&path, "node-1", None, Clock::system()).await;
    let error = anyhow::Error::from(loaded.err().expect("the kubeconfig is unusable"));
    let text = format!("{error:#}").replace(&directory.path().display().to_string(), "DIR");
    assert!(text.starts_with(expected), "{text}");
}

#[tokio::test]
async fn an_unusable_kubeconfig_is_told_with_its_path() {
    check_kubeconfig(None, "failed to read DIR/kubeconfig: No such file or directory").await;
    check_kubeconfig(Some("{"), "failed to understand kubeconfig DIR/kubeconfig: ").await;
    check_kubeconfig(Some("apiVersion: v1"), "failed to understand kubeconfig DIR/kubeconfig: ").await;
    let missing_authority = "
        current-context: c
        contexts: [{ name: c, context: { cluster: k, user: u } }]
        clusters: [{ name: k, cluster: { server: 'https://api:6443', certificate-authority: ca.crt } }]";
    check_kubeconfig(Some(missing_authority), "failed to read DIR/ca.crt: No such file or directory").await;
    let broken_certificate = "
        current-context: c
        contexts: [{ name: c, context: { cluster: k, user: u } }]
        clusters: [{ name: k, cluster: { server: 'https://api:6443' } }]
        users: [{ name: u, user: { client-certificate-data: Zm9v, client-key-data: YmFy } }]";
    check_kubeconfig(Some(broken_certificate), "failed to use the certificates in kubeconfig DIR/kubeconfig: ").await;
}
