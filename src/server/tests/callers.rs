//! Who calls, and whether they may.

use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::house::{Authority, House, NEVER};
use crate::kube::ApiError;
use crate::server::AuthzConfig;

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
    let expected = serde_json::json!({
        "user": "admin", "groups": ["system:masters", "system:authenticated"], "extra": {},
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
    assert!(start.elapsed() < Duration::from_secs(60));
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
