//! Who calls, and whether they may.

use std::time::Duration;

use http::Method;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::house::{Authority, House, Identity, NEVER, read, request};
use crate::kube::ApiError;
use crate::server::AuthzConfig;
use crate::server::answers::ANSWER_WITHIN;
use crate::server::guests::STRANGERS_MAX;

const UNAUTHORIZED: (u16, &str) = (401, "Unauthorized");

fn said(answer: &(u16, String)) -> (u16, &str) {
    (answer.0, &answer.1)
}

fn away() -> ApiError {
    ApiError::Invalid { what: "review".into(), message: "it is broken".into() }
}

#[tokio::test]
async fn a_client_certificate_names_user_and_groups() {
    let house = House::open(|_| {}).await;
    house.cluster.grant("admin", "get", "pods");
    let admin = house.authority.client("admin", &["system:masters"], NEVER);
    assert_eq!(house.get(Some(&admin), None, "/pods").await.0, 200);
    let [asked] = house.cluster.sent("review access").try_into().expect("one question");
    let credential = format!("X509SHA256={}", admin.digest());
    let expected = serde_json::json!({
        "user": "admin", "groups": ["system:masters", "system:authenticated"],
        "extra": { "authentication.kubernetes.io/credential-id": [credential] },
        "resourceAttributes":
            { "verb": "get", "version": "v1", "resource": "nodes", "subresource": "pods", "name": "node-1" },
    });
    assert_eq!(asked["spec"], expected);
}

#[tokio::test]
async fn a_token_is_the_api_servers_to_know_and_asked_about_once() {
    let house = House::open(|_| {}).await;
    house.issue("good", "robot");
    house.cluster.grant("robot", "get", "proxy");
    for _ in 0..2 {
        assert_eq!(house.get(None, Some("good"), "/pods").await.0, 200);
        assert_eq!(said(&house.get(None, Some("bad"), "/pods").await), UNAUTHORIZED);
    }
    let names = house.cluster.call_names();
    let count = |name: &str| names.iter().filter(|it| *it == name).count();
    // Two tokens; and for the one, first the narrower right and then the wider one.
    assert_eq!((count("review token"), count("review access")), (2, 2));
}

#[tokio::test]
async fn without_a_credential_nobody_calls_unless_anybody_may() {
    let house = House::open(|_| {}).await;
    assert_eq!(said(&house.get(None, None, "/pods").await), UNAUTHORIZED);
    // Whatever is not there, only those who are known are told.
    assert_eq!(said(&house.get(None, None, "/nothing").await), UNAUTHORIZED);
    let open = House::open(|config| config.authn.anonymous = true).await;
    let forbidden = "Forbidden (user=system:anonymous, verb=get, resource=nodes, subresource(s)=[pods proxy])\n";
    assert_eq!(said(&open.get(None, None, "/pods").await), (403, forbidden));
    open.cluster.grant("system:anonymous", "get", "healthz");
    assert_eq!(said(&open.get(None, None, "/healthz").await), (200, "ok"));
}

#[tokio::test]
async fn a_bad_credential_is_never_taken_for_none() {
    let house = House::open(|config| config.authn.anonymous = true).await;
    house.cluster.grant("system:anonymous", "get", "pods");
    assert_eq!(house.get(None, None, "/pods").await.0, 200);
    let stranger = Authority::new("ours").client("admin", &["system:masters"], NEVER);
    let expired = house.authority.client("admin", &["system:masters"], 2001);
    for identity in [&stranger, &expired] {
        assert_eq!(said(&house.get(Some(identity), None, "/pods").await), UNAUTHORIZED);
    }
    assert_eq!(said(&house.get(None, Some("bad"), "/pods").await), UNAUTHORIZED);
    // A token may still make up for a certificate.
    house.issue("good", "robot");
    house.cluster.grant("robot", "get", "pods");
    assert_eq!(house.get(Some(&expired), Some("good"), "/pods").await.0, 200);
}

#[tokio::test]
async fn a_certificate_without_a_name_and_other_schemes_are_no_credential() {
    let house = House::open(|config| config.authn.anonymous = true).await;
    house.cluster.grant("system:anonymous", "get", "pods");
    let nameless = house.authority.client("", &["system:masters"], NEVER);
    assert_eq!(house.get(Some(&nameless), None, "/pods").await.0, 200);
}

#[tokio::test]
async fn what_the_api_server_says_of_rights_is_kept_for_its_time() {
    let house = House::open(|config| {
        let (keep_allowed, keep_refused) = (Duration::from_secs(300), Duration::ZERO);
        config.authz = AuthzConfig::Webhook { node_name: "node-1".into(), keep_allowed, keep_refused };
    })
    .await;
    let user = house.authority.client("user", &[], NEVER);
    assert_eq!(house.get(Some(&user), None, "/configz").await.0, 403);
    house.cluster.grant("user", "get", "configz");
    // A refusal that is not kept is asked about again; a permission that is kept is not.
    assert_eq!(house.get(Some(&user), None, "/configz").await.0, 200);
    house.cluster.revoke_all();
    assert_eq!(house.get(Some(&user), None, "/configz").await.0, 200);
    // Another verb is another question.
    assert_eq!(house.ask(Method::DELETE, Some(&user), None, "/configz").await.0, 403);
}

#[tokio::test]
async fn who_gets_no_answer_about_somebody_refuses_him() {
    let house = House::open(|config| config.authn.anonymous = true).await;
    let admin = house.admin();
    house.issue("good", "admin");
    house.cluster.set_outage(Some(away()));
    let unknown = "Authorization error (user=admin, verb=get, resource=nodes, subresource=pods)";
    assert_eq!(said(&house.get(Some(&admin), None, "/pods").await), (500, unknown));
    assert_eq!(said(&house.get(None, Some("good"), "/pods").await), UNAUTHORIZED);
    // Nothing of that is kept.
    house.cluster.set_outage(None);
    assert_eq!(house.get(Some(&admin), None, "/pods").await.0, 200);
    assert_eq!(house.get(None, Some("good"), "/pods").await.0, 200);
}

#[tokio::test]
async fn an_api_server_that_says_nothing_keeps_callers_for_seconds_only() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    house.cluster.set_latency(Duration::from_secs(3600));
    let start = Instant::now();
    assert_eq!(house.get(Some(&admin), None, "/pods").await.0, 500);
    // A second for the rest of it, on a machine that does other things too.
    assert!(start.elapsed() < ANSWER_WITHIN + Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_token_that_nobody_says_anything_of_is_refused_and_holds_up_none_that_is_known() {
    let house = House::open(|_| {}).await;
    house.issue("good", "robot");
    house.cluster.grant("robot", "get", "pods");
    assert_eq!(house.get(None, Some("good"), "/pods").await.0, 200);
    house.cluster.set_latency(Duration::from_secs(3600));
    let start = Instant::now();
    let unknown = house.get(None, Some("new"), "/pods");
    let known = async {
        while house.cluster.sent("review token").len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        house.get(None, Some("good"), "/pods").await
    };
    let (mut unknown, known) = (Box::pin(unknown), Box::pin(known));
    match futures::future::select(&mut unknown, known).await {
        futures::future::Either::Right((known, _)) => assert_eq!(known.0, 200),
        futures::future::Either::Left((unknown, _)) => panic!("it was answered first: {unknown:?}"),
    }
    assert_eq!(said(&unknown.await), UNAUTHORIZED);
    // A second for the rest of it, on a machine that does other things too.
    assert!(start.elapsed() < ANSWER_WITHIN + Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn who_somebody_is_and_what_he_may_is_asked_within_one_deadline() {
    let house = House::open(|_| {}).await;
    house.issue("good", "robot");
    house.cluster.grant("robot", "get", "proxy");
    // Three questions: whose token, whether it may one thing, whether another.
    house.cluster.set_latency(ANSWER_WITHIN * 5 / 8);
    let start = Instant::now();
    let unknown = "Authorization error (user=robot, verb=get, resource=nodes, subresource=pods)";
    assert_eq!(said(&house.get(None, Some("good"), "/pods").await), (500, unknown));
    assert!(start.elapsed() < ANSWER_WITHIN + Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn always_allow_asks_nobody() {
    let house = House::open(|config| config.authz = AuthzConfig::AlwaysAllow).await;
    let user = house.authority.client("user", &[], NEVER);
    assert_eq!(house.get(Some(&user), None, "/pods").await.0, 200);
    assert!(house.cluster.call_names().is_empty());
    // It still has to be somebody.
    assert_eq!(said(&house.get(None, None, "/pods").await), UNAUTHORIZED);
}

#[tokio::test]
async fn without_token_reviews_a_token_is_not_looked_at() {
    let house = House::open(|config| {
        config.authn.tokens = None;
        config.authn.anonymous = true;
        config.authz = AuthzConfig::AlwaysAllow;
    })
    .await;
    assert_eq!(house.get(None, Some("bad"), "/pods").await.0, 200);
    assert!(house.cluster.call_names().is_empty());
}

#[tokio::test]
async fn a_certificate_of_the_first_version_of_x509_is_a_good_one() {
    // What openssl makes of a request if it is not told of extensions; from src/authorities/tests.rs.
    let [authority, own, key] = [
        &include_bytes!("../../authorities/testdata/ca.pem")[..],
        include_bytes!("../../authorities/testdata/v1.pem"),
        include_bytes!("../../authorities/testdata/user.key.pem"),
    ];
    let house = House::open(|config| {
        let path = config.tls.client_ca.as_ref().expect("there is one");
        std::fs::write(path, authority).expect("the file is ours");
    })
    .await;
    house.cluster.grant("jane", "get", "pods");
    let chain = CertificateDer::pem_slice_iter(own).collect::<Result<_, _>>().expect("a certificate");
    let jane = Identity::new(chain, PrivateKeyDer::from_pem_slice(key).expect("a key"));
    assert_eq!(house.get(Some(&jane), None, "/pods").await.0, 200);
    let [asked] = house.cluster.sent("review access").try_into().expect("one question");
    assert_eq!(asked["spec"]["groups"], serde_json::json!(["auditors", "system:authenticated"]));
}

#[tokio::test]
async fn a_websocket_may_bring_its_token_among_its_protocols() {
    let house = House::open(|_| {}).await;
    house.issue("good", "robot");
    house.cluster.grant("robot", "get", "pods");
    let status = async |protocols: &str| {
        let mut stream = house.connect(None, b"http/1.1").await;
        let head = format!(
            "GET /pods HTTP/1.1\r\nhost: node\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-protocol: {protocols}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("it is taken");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.expect("an answer");
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    // "good" and "bad", in base64.
    let [good, bad] = ["Z29vZA", "YmFk"].map(|token| format!("base64url.bearer.authorization.k8s.io.{token}"));
    assert_eq!(status(&format!("{good}, v4.channel.k8s.io")).await, "200");
    assert_eq!(status(&format!("{bad}, v4.channel.k8s.io")).await, "401");
    assert_eq!(status(&good).await, "401");
    assert_eq!(status("v4.channel.k8s.io").await, "401");
}

#[tokio::test]
async fn who_has_a_good_certificate_is_not_sent_away_while_the_api_server_thinks() {
    let house = House::open(|_| {}).await;
    let admin = house.admin();
    house.issue("good", "admin");
    house.cluster.set_latency(Duration::from_secs(2));
    let known = house.connect(Some(&admin), b"http/1.1").await;
    let stranger = house.connect(None, b"http/1.1").await;
    let ask = async |stream, token: Option<&'static str>| {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP begins");
        tokio::spawn(connection);
        Ok::<_, hyper::Error>(read(sender.send_request(request(Method::GET, token, "/pods")).await?).await.0)
    };
    let (known, stranger) = (ask(known, None), ask(stranger, Some("good")));
    let crowd = async {
        // Both requests are being thought about.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut crowd = Vec::new();
        for _ in 0..2 * STRANGERS_MAX {
            crowd.push(TcpStream::connect(house.address).await.expect("a connection"));
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
    };
    let (known, stranger, ()) = futures::future::join3(known, stranger, crowd).await;
    assert_eq!(known.expect("it was not sent away"), 200);
    // A token says nothing before the API server does: every pod has one.
    assert!(stranger.is_err(), "{stranger:?}");
}

#[tokio::test]
async fn a_certificate_that_expires_is_good_no_more_on_the_connection_it_opened() {
    let house = House::open(|_| {}).await;
    house.admin();
    let life = Duration::from_secs(3);
    let brief = house.authority.client_for("admin", life);
    let stream = house.connect(Some(&brief), b"http/1.1").await;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP begins");
    tokio::spawn(connection);
    let first = sender.send_request(request(Method::GET, None, "/pods")).await.expect("an answer");
    assert_eq!(read(first).await.0, 200);
    tokio::time::sleep(life + Duration::from_secs(1)).await;
    let second = sender.send_request(request(Method::GET, None, "/pods")).await.expect("it is still open");
    assert_eq!(read(second).await, (401, "Unauthorized".to_owned()));
}
