//! TLS: what an operator reads when certificates do not fit, and that putting them right is
//! enough.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;

use super::server::{Answer, Server};
use super::{Client, write_kubeconfig};
use crate::kube::Cluster;

pub(super) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(super) fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("ring makes keys");
    CertifiedIssuer::self_signed(params, key).expect("the parameters are valid")
}

/// A server certificate for `name`, valid from 2000 until `last_year`.
fn acceptor(authority: &Authority, name: &str, last_year: i32) -> TlsAcceptor {
    let mut params = CertificateParams::new([name.to_owned()]).expect("the name is valid");
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(last_year, 1, 1);
    let key = KeyPair::generate().expect("ring makes keys");
    let certificate = params.signed_by(&key, authority).expect("the authority may sign");
    let chain = vec![CertificateDer::from(certificate)];
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("rcgen writes PKCS#8");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    TlsAcceptor::from(Arc::new(config.expect("key and certificate fit")))
}

pub(super) fn cluster_of(server: &Server, authority: &Authority) -> Value {
    use base64::Engine;
    let pem = base64::engine::general_purpose::STANDARD.encode(authority.pem());
    json!({ "server": format!("https://{}", server.address), "certificate-authority-data": pem })
}

/// Connects with trust in `trusted` and checks the error, in which `SERVER` and `FILE`
/// stand for the server's address and the kubeconfig.
async fn check(tls: TlsAcceptor, trusted: &Authority, expected: &str) {
    let server = Server::start_tls(tls, |_| Answer::Json(200, json!({}))).await;
    let client = Client::with(cluster_of(&server, trusted)).await;
    let text = match client.cluster.get_node().await {
        Ok(_) => "connected".to_owned(),
        Err(error) => error.to_string(),
    };
    let text = text.replace(&server.address.to_string(), "SERVER");
    let text = text.replace(&client.kubeconfig.display().to_string(), "FILE");
    assert!(text.starts_with(expected), "{text}");
}

#[tokio::test]
async fn a_certificate_that_does_not_fit_is_explained() {
    let (ours, other) = (authority(), authority());
    check(acceptor(&ours, "127.0.0.1", 4000), &ours, "connected").await;
    check(
        acceptor(&other, "127.0.0.1", 4000),
        &ours,
        "get node node-1: certificate of SERVER is not signed by the CA in FILE",
    )
    .await;
    check(
        acceptor(&ours, "127.0.0.1", 2001),
        &ours,
        "get node node-1: certificate of SERVER has expired, unless this machine's clock is wrong, which shows 2",
    )
    .await;
    check(
        acceptor(&ours, "10.0.0.1", 4000),
        &ours,
        "get node node-1: certificate of SERVER is issued for another name",
    )
    .await;
}

#[tokio::test]
async fn a_corrected_authority_is_taken_up_without_a_restart() {
    let (ours, other) = (authority(), authority());
    let server = Server::start_tls(acceptor(&ours, "127.0.0.1", 4000), |_| Answer::Json(200, json!({}))).await;
    let client = Client::with(cluster_of(&server, &other)).await;
    client.cluster.get_node().await.expect_err("the authority is the wrong one");
    write_kubeconfig(&client.kubeconfig, cluster_of(&server, &ours));
    let start = Instant::now();
    while let Err(error) = client.cluster.get_node().await {
        assert!(start.elapsed() < Duration::from_secs(20), "{error}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_server_without_http2_is_met_on_its_terms() {
    let authority = authority();
    let server = Server::start_tls(acceptor(&authority, "127.0.0.1", 4000), |_| Answer::Json(200, json!({}))).await;
    let client = Client::with(cluster_of(&server, &authority)).await;
    let error = client.cluster.get_pod("shop", "web").await;
    let error = error.expect_err("the connection was to speak HTTP/2");
    assert!(error.is_retryable(), "{error}");
    let pod = client.cluster.get_pod("shop", "web").await;
    pod.expect("the second request speaks HTTP/1.1");
}
