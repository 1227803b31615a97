//! Credentials that come late, change, or are a program's to give.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::certificates::{Authority, authority, cluster_of};
use super::server::{Answer, Server};
use crate::clock::Clock;
use crate::kube::{CertificateRequests, Change, Cluster, KubeCluster, ObjectState};

fn write_kubeconfig(path: &Path, cluster: Value, user: Value) {
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "k", "cluster": cluster }],
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        "users": [{ "name": "u", "user": user }],
    });
    fs::write(path, kubeconfig.to_string()).expect("the temporary directory is writable");
}

fn plain(server: &Server) -> Value {
    json!({ "server": format!("http://{}", server.address) })
}

#[tokio::test]
async fn calls_wait_for_credentials_and_say_so_when_none_come() {
    let server = Server::start(|_| Answer::Json(200, json!({}))).await;
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let path = directory.path().join("kubeconfig");
    let cluster = KubeCluster::awaiting_credentials(&path, "node-1", None, Clock::system());
    tokio::time::pause();
    let error = cluster.get_node().await.expect_err("there are no credentials");
    assert!(error.is_retryable());
    let text = format!("get node node-1: there are no credentials yet for the API server in {}", path.display());
    assert_eq!(error.to_string(), text);
    tokio::time::resume();

    cluster.take_up(None).await.expect_err("there is no kubeconfig yet");
    write_kubeconfig(&path, plain(&server), json!({}));
    let (answer, taken_up) = tokio::join!(cluster.get_node(), cluster.take_up(None));
    taken_up.expect("the kubeconfig is there");
    answer.expect("it was waited for");
}

#[tokio::test]
async fn a_watch_goes_on_over_new_connections_when_credentials_change() {
    let (opened, mut openings) = mpsc::unbounded_channel();
    let server = Server::start(move |seen| {
        if seen.line.contains("watch=true") {
            opened.send(seen.clone()).expect("the test listens");
            return Answer::OpenWatch(vec![]);
        }
        Answer::Json(200, json!({ "metadata": { "resourceVersion": "7" }, "items": [] }))
    })
    .await;
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let path = directory.path().join("kubeconfig");
    write_kubeconfig(&path, plain(&server), json!({ "token": "one" }));
    let cluster = KubeCluster::from_kubeconfig(&path, "node-1", None, Clock::system()).await;
    let cluster = cluster.expect("the kubeconfig is valid");
    let mut pods = cluster.watch_pods();
    assert_eq!(pods.next().await, Some(Change::Listed(vec![])));
    // Nothing more comes of it, but it is only read while somebody waits.
    let reading = tokio::spawn(async move { pods.next().await });
    let first = openings.recv().await.expect("the watch is opened");
    assert!(first.head.contains("authorization: bearer one"), "{}", first.head);

    write_kubeconfig(&path, plain(&server), json!({ "token": "two" }));
    cluster.take_up(None).await.expect("the kubeconfig is valid");
    let second = openings.recv().await.expect("the watch is opened again");
    assert!(second.head.contains("authorization: bearer two"), "{}", second.head);
    assert!(second.line.contains("resourceVersion=7"), "it goes on where it was: {}", second.line);
    assert_ne!(first.connection, second.connection);
    reading.abort();
}

/// A server that lets in only whom the authority knows.
fn strict(authority: &Authority) -> TlsAcceptor {
    let key = KeyPair::generate().expect("ring makes keys");
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("the name is valid");
    let certificate = params.signed_by(&key, authority).expect("the authority may sign");
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).expect("it is a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("rcgen writes PKCS#8");
    let config = ServerConfig::builder()
        .with_client_cert_verifier(clients.expect("there is a root"))
        .with_single_cert(vec![CertificateDer::from(certificate)], key);
    TlsAcceptor::from(Arc::new(config.expect("key and certificate fit")))
}

#[tokio::test]
async fn a_certificate_of_ours_counts_instead_of_that_in_the_kubeconfig() {
    let (authority, other) = (authority(), authority());
    let bundle = |authority: &Authority| {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("ring makes keys");
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, authority).expect("the authority may sign");
        format!("{}{}", certificate.pem(), key.serialize_pem())
    };
    let server = Server::start_tls(strict(&authority), |_| Answer::Json(200, json!({}))).await;
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let [path, own, current] = ["kubeconfig", "own.pem", "current.pem"].map(|name| directory.path().join(name));
    fs::write(&own, bundle(&other)).expect("the temporary directory is writable");
    fs::write(&current, bundle(&authority)).expect("the temporary directory is writable");
    let user = json!({ "client-certificate": own, "client-key": own });
    write_kubeconfig(&path, cluster_of(&server, &authority), user);

    let cluster = KubeCluster::from_kubeconfig(&path, "node-1", None, Clock::system()).await;
    let cluster = cluster.expect("the kubeconfig is valid");
    let error = cluster.get_node().await.expect_err("another authority's certificates are not known there");
    assert!(error.is_retryable(), "{error}");
    cluster.take_up(Some(&current)).await.expect("certificate and key are in it");
    cluster.get_node().await.expect("this certificate is known");

    fs::write(&current, "").expect("the temporary directory is writable");
    cluster.take_up(Some(&current)).await.expect_err("an empty file is no certificate");
    cluster.get_node().await.expect("what was in use stays so");
}

/// Writes a kubeconfig that names a program for credentials.
fn write_plugin(directory: &Path, server: &Server, script: &str) -> PathBuf {
    let path = directory.join("kubeconfig");
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "/bin/sh",
        "args": ["-c", script, "plugin", "edge"],
        "env": [{ "name": "PLUGIN_SECRET", "value": "hush" }],
        "interactiveMode": "Never",
    });
    write_kubeconfig(&path, plain(server), json!({ "exec": exec }));
    path
}

#[tokio::test]
async fn a_program_in_the_kubeconfig_gives_the_credentials() {
    let server = Server::start(|_| Answer::Json(200, json!({}))).await;
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let answer = r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}"#;
    let script = format!(r#"printf '{answer}' "$PLUGIN_SECRET-$1""#);
    let path = write_plugin(directory.path(), &server, &script);
    let cluster = KubeCluster::from_kubeconfig(&path, "node-1", None, Clock::system()).await;
    cluster.expect("the kubeconfig is valid").get_node().await.expect("the program answers");
    let head = server.seen().pop().expect("one request was sent").head;
    assert!(head.contains("authorization: bearer hush-edge"), "{head}");
}

#[tokio::test]
async fn a_program_that_hangs_when_it_is_asked_again_is_asked_once_for_all() {
    let server = Server::start(|_| Answer::Json(200, json!({}))).await;
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let runs = directory.path().join("runs");
    // What it gives first is so near its end that it is asked again at once.
    let soon = Clock::system().wall() + Duration::from_secs(30);
    let status = format!(r#"{{"token":"brief","expirationTimestamp":"{}"}}"#, soon.strftime("%Y-%m-%dT%H:%M:%SZ"));
    let answer =
        format!(r#"{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{status}}}"#);
    let runs_path = runs.display();
    let script = format!("echo run >> {runs_path}; [ $(wc -l < {runs_path}) -eq 1 ] || sleep 6; echo '{answer}'");
    let path = write_plugin(directory.path(), &server, &script);
    let cluster = KubeCluster::from_kubeconfig(&path, "node-1", None, Clock::system()).await;
    let cluster = cluster.expect("the kubeconfig is valid");
    for _ in 0..4 {
        let within = Duration::from_millis(500);
        let _ = timeout(within, futures::future::join(cluster.get_node(), cluster.get_node())).await;
    }
    let runs = fs::read_to_string(runs).expect("it was asked");
    assert_eq!(runs.lines().count(), 2, "once at first, and once again");
}

#[tokio::test]
async fn a_program_that_fails_keeps_nobody_from_starting_and_tells_no_secret() {
    let server = Server::start(|_| Answer::Json(200, json!({}))).await;
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let path = write_plugin(directory.path(), &server, "echo not logged in >&2; exit 3");
    let cluster = KubeCluster::from_kubeconfig(&path, "node-1", None, Clock::system()).await;
    let error = cluster.expect("it is not asked yet").get_node().await.expect_err("the program fails");
    assert!(error.is_retryable());
    let cause = "credential plugin /bin/sh: ended with exit status: 3: not logged in";
    assert_eq!(error.to_string(), format!("get node node-1: failed to connect to {}: {cause}", server.address));
}

#[tokio::test]
async fn a_request_for_a_certificate_is_made_and_followed_by_its_name() {
    let signed = json!({ "metadata": { "name": "csr-1" }, "status": { "certificate": "Zm9v" } });
    let server = Server::start(move |seen| match seen.line.split('?').next() {
        Some(line) if line.starts_with("POST") => Answer::Json(201, json!({ "metadata": { "name": "csr-1" } })),
        _ => Answer::Json(200, json!({ "metadata": { "resourceVersion": "7" }, "items": [signed] })),
    })
    .await;
    let directory = tempfile::tempdir().expect("the temporary directory is writable");
    let path = directory.path().join("kubeconfig");
    write_kubeconfig(&path, plain(&server), json!({}));
    let cluster = KubeCluster::from_kubeconfig(&path, "node-1", None, Clock::system()).await;
    let cluster = cluster.expect("the kubeconfig is valid");
    let created = cluster.create_certificate_request(&Default::default()).await.expect("the server takes it");
    let name = created.metadata.name.expect("the server named it");
    let state = cluster.watch_certificate_request(&name).next().await;
    let Some(ObjectState::Present(request)) = state else { panic!("{state:?}") };
    assert_eq!(request.status.and_then(|status| status.certificate).expect("it is signed").0, b"foo");
    let lines = server.lines();
    assert_eq!(lines[0], "POST /apis/certificates.k8s.io/v1/certificatesigningrequests?");
    let list = "GET /apis/certificates.k8s.io/v1/certificatesigningrequests?&fieldSelector=metadata.name%3Dcsr-1";
    assert!(lines[1].starts_with(list), "{}", lines[1]);
}
