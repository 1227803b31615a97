//! From a bootstrap kubeconfig to a certificate, whatever comes in between.

use std::error::Error;

use jiff::SignedDuration;

use super::world::{Answer, Authority, HOUR, NODE, USER, World, settle};
use crate::identity::certificate::Bundle;
use crate::identity::client::IdentityError;
use crate::identity::client::Pause;
use crate::identity::signing::SigningError;

const YEAR: SignedDuration = SignedDuration::from_hours(365 * 24);

/// Everything is as upstream and kubeadm expect it.
#[track_caller]
fn check_complete(world: &World) {
    let files = world.files();
    assert_eq!(files.len(), 2, "{files:?}");
    assert_eq!(files[1], "kubelet-client-current.pem");
    assert_eq!(world.in_use(), files[0]);
    assert_eq!(world.mode(&format!("pki/{}", files[0])), 0o600);
    let bundle = Bundle::parse(world.read("pki/kubelet-client-current.pem").as_bytes()).expect("it is a certificate");
    assert_eq!(bundle.leaf.common_name, USER);
    assert_eq!(world.mode("kubelet.conf"), 0o600);
    let kubeconfig: serde_json::Value = serde_saphyr::from_str(&world.read("kubelet.conf")).expect("it is YAML");
    let current = world.path("pki/kubelet-client-current.pem");
    let current = current.to_str();
    assert_eq!(kubeconfig["users"][0]["name"], "default-auth");
    assert_eq!(kubeconfig["users"][0]["user"]["client-certificate"].as_str(), current);
    assert_eq!(kubeconfig["users"][0]["user"]["client-key"].as_str(), current);
    assert!(kubeconfig["users"][0]["user"].get("token").is_none(), "the bootstrap token is nobody's business any more");
    assert_eq!(kubeconfig["clusters"][0]["name"], "default-cluster");
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["server"], "https://api:6443");
    assert_eq!(kubeconfig["contexts"][0]["context"]["namespace"], "default");
    assert_eq!(kubeconfig["current-context"], "default-context");
}

#[tokio::test(start_paused = true)]
async fn a_first_certificate_is_asked_for_and_a_kubeconfig_leads_to_it() {
    let world = World::fresh();
    world.answer([Answer::Sign(YEAR)]);
    let mut identity = world.identity(true);
    let pause = settle(&mut identity).await.expect("the request is signed");
    check_complete(&world);
    assert_eq!(world.told(), ["bootstrap asks", "take up kubeconfig"]);
    let leaf = Bundle::parse(world.read("pki/kubelet-client-current.pem").as_bytes()).expect("it is one").leaf;
    assert_eq!(pause, Pause::Until(Some(leaf.renew_at())));
}

#[tokio::test(start_paused = true)]
async fn a_bootstrap_kubeconfig_that_goes_before_somebody_signs_was_read_already() {
    let world = World::fresh();
    world.answer([Answer::SignAfter(world.path("bootstrap.conf"), YEAR)]);
    settle(&mut world.identity(true)).await.expect("the request is signed");
    check_complete(&world);
}

#[tokio::test(start_paused = true)]
async fn a_kubeconfig_that_works_is_left_alone() {
    let world = World::fresh();
    world.give_kubeconfig();
    world.give_certificate(HOUR, YEAR);
    let before = world.read("kubelet.conf");
    settle(&mut world.identity(false)).await.expect("nothing is to be done");
    assert_eq!(world.told(), ["take up kubeconfig"]);
    assert_eq!(world.read("kubelet.conf"), before);
}

/// A finished bootstrap of which the last steps are undone; the next start must complete it,
/// asking again or not.
async fn check_after_end(undo: impl FnOnce(&World), asks_again: bool) {
    let world = World::fresh();
    world.answer([Answer::Sign(YEAR)]);
    settle(&mut world.identity(true)).await.expect("the request is signed");
    world.told();
    undo(&world);
    settle(&mut world.identity(true)).await.expect("what is missing is made");
    check_complete(&world);
    let asked = world.told().contains(&"bootstrap asks".to_owned());
    assert_eq!(asked, asks_again);
    assert_eq!(world.requests().len(), 1, "the request is still the one from before");
}

#[tokio::test(start_paused = true)]
async fn an_end_before_the_kubeconfig_needs_no_second_certificate() {
    check_after_end(|world| world.remove("kubelet.conf"), false).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_before_the_link_needs_no_second_certificate() {
    let undo = |world: &World| {
        world.remove("kubelet.conf");
        world.remove("pki/kubelet-client-current.pem");
    };
    check_after_end(undo, false).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_before_the_key_is_removed_leaves_no_key() {
    check_after_end(|world| world.write("pki/kubelet-client.key.tmp", "a key"), false).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_in_the_middle_of_a_write_leaves_what_the_next_write_takes_away() {
    let undo = |world: &World| {
        world.remove("kubelet.conf");
        world.write(".kubelet.conf.new", "half a kub");
    };
    check_after_end(undo, false).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_while_waiting_finds_the_same_request_again() {
    let world = World::fresh();
    // Nobody signs while the first one lives.
    let mut first = world.identity(true);
    let turn = tokio::time::timeout(std::time::Duration::from_secs(600), first.turn()).await;
    turn.expect_err("it waits");
    assert_eq!(world.files(), ["kubelet-client.key.tmp"]);
    assert_eq!(world.mode("pki/kubelet-client.key.tmp"), 0o600);
    drop(first);
    world.sign_all(YEAR);
    settle(&mut world.identity(true)).await.expect("it is signed by now");
    check_complete(&world);
    assert_eq!(world.requests().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_key_is_replaced() {
    for content in ["", "-----BEGIN PRIVATE KEY-----\nhalf"] {
        let world = World::fresh();
        world.write("pki/kubelet-client.key.tmp", content);
        world.answer([Answer::Sign(YEAR)]);
        settle(&mut world.identity(true)).await.expect("a new key does");
        check_complete(&world);
    }
}

/// One attempt that fails like this, in words that name it; whether the key lives on; then one
/// that succeeds.
async fn check_failure(answer: Answer, expected: &str, keeps_key: bool) {
    let world = World::fresh();
    world.answer([answer, Answer::Sign(YEAR)]);
    let mut identity = world.identity(true);
    let error = settle(&mut identity).await.expect_err("the answer is a bad one");
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    let name = world.requests().first().and_then(|request| request.metadata.name.clone()).unwrap_or_default();
    assert_eq!(text.replace(&name, "NAME"), expected);
    assert_eq!(world.files() == ["kubelet-client.key.tmp"], keeps_key, "{:?}", world.files());
    assert!(!world.path("kubelet.conf").exists());
    settle(&mut identity).await.expect("the next answer is a good one");
    check_complete(&world);
}

#[tokio::test(start_paused = true)]
async fn a_denied_request_is_told_and_followed_by_another() {
    check_failure(Answer::Deny, "request NAME was denied: Test not today", false).await;
    check_failure(Answer::Fail, "the signer failed on request NAME: Test not today", false).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_nobody_signs_is_given_up() {
    let text = "request NAME was not signed within 3600s; is it approved (kubectl certificate approve NAME)?";
    check_failure(Answer::Never, text, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_another_key_is_not_used() {
    let text = "what the signer made of request NAME cannot be used: its key is not that of its certificate";
    check_failure(Answer::SignAnother, text, false).await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_is_told_and_the_key_kept() {
    let world = World::fresh();
    world.answer([Answer::Refuse, Answer::Refuse, Answer::Sign(YEAR)]);
    let mut identity = world.identity(true);
    let mut keys = Vec::new();
    for _ in 0..2 {
        let error = settle(&mut identity).await.expect_err("the token is no good");
        let IdentityError::Signing(SigningError::Api(cause)) = &error else { panic!("{error:?}") };
        assert_eq!(cause.to_string(), "create certificate signing request: refused: Unauthorized");
        keys.push(world.read("pki/kubelet-client.key.tmp"));
    }
    assert_eq!(keys[0], keys[1]);
    settle(&mut identity).await.expect("there is a new token");
    check_complete(&world);
}

#[tokio::test(start_paused = true)]
async fn attempts_that_fail_come_ever_more_rarely() {
    let world = World::fresh();
    let mut identity = world.identity(true);
    let denied = || IdentityError::Signing(SigningError::Denied { name: "x".into(), why: "y".into() });
    let away = || IdentityError::Signing(SigningError::Gone { name: "x".into() });
    let pauses: Vec<u64> = (0..6).map(|_| identity.note_failure(&away()).as_secs()).collect();
    for (pause, base) in pauses.iter().zip([2, 4, 8, 16, 32, 32]) {
        assert!((base..=base + base / 10 + 1).contains(pause), "{pauses:?}");
    }
    let longest = (0..20).map(|_| identity.note_failure(&denied()).as_secs()).max();
    assert!(longest >= Some(900), "each attempt leaves a request at the API server: {longest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_another_cluster_or_node_is_not_taken_along() {
    let check = async |pem: &dyn Fn(&World) -> String| {
        let world = World::fresh();
        world.give_current("kubelet-client-2020-01-01-00-00-00.pem", &pem(&world));
        world.answer([Answer::Sign(YEAR)]);
        settle(&mut world.identity(true)).await.expect("the request is signed");
        assert_ne!(world.in_use(), "kubelet-client-2020-01-01-00-00-00.pem");
        assert_eq!(world.requests().len(), 1);
    };
    check(&|world| Authority::new("another").bundle(USER, world.clock.wall(), YEAR)).await;
    // Of the same name, as every kubeadm cluster's is.
    check(&|world| Authority::new("cluster").bundle(USER, world.clock.wall(), YEAR)).await;
    check(&|world| world.authority.bundle("system:node:edge-8", world.clock.wall(), YEAR)).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_empty_or_torn_is_as_good_as_none() {
    for content in ["", "\n", "-----BEGIN CERTIFICATE-----\nMIIB", "no PEM at all"] {
        let world = World::fresh();
        world.give_kubeconfig();
        world.give_current("kubelet-client-2020-01-01-00-00-00.pem", content);
        world.answer([Answer::Sign(YEAR)]);
        settle(&mut world.identity(true)).await.expect("the request is signed");
        assert_ne!(world.in_use(), "kubelet-client-2020-01-01-00-00-00.pem");
    }
}

#[tokio::test(start_paused = true)]
async fn without_any_credentials_the_agent_does_not_begin() {
    let world = World::new();
    // The cluster of this test takes up whatever there is; the real one fails on the missing file.
    world.identity(true).begin().await.expect("the fake takes up anything");
    assert_eq!(world.told(), ["take up kubeconfig"]);
    world.give_bootstrap_kubeconfig();
    world.identity(true).begin().await.expect("an identity will come");
    assert_eq!(world.told(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn who_asks_is_the_node_and_what_for_is_its_client_certificate() {
    let world = World::fresh();
    world.answer([Answer::Sign(YEAR)]);
    settle(&mut world.identity(true)).await.expect("the request is signed");
    let request = world.requests().remove(0);
    assert_eq!(request.spec.signer_name, "kubernetes.io/kube-apiserver-client-kubelet");
    assert_eq!(
        request.spec.usages.as_deref(),
        Some(["digital signature".to_owned(), "client auth".to_owned()].as_slice())
    );
    assert!(request.metadata.name.is_some_and(|name| name.starts_with("node-csr-")), "{NODE}");
}

#[tokio::test(start_paused = true)]
async fn what_can_never_be_read_is_as_good_as_broken() {
    let check = async |world: &World, unreadable: &str| {
        std::fs::create_dir_all(world.path(unreadable)).expect("directories can be made");
        world.answer([Answer::Sign(YEAR)]);
        let _ = settle(&mut world.identity(true)).await;
        assert!(world.told().contains(&"bootstrap asks".to_owned()), "{unreadable}");
    };
    let current = World::fresh();
    current.give_kubeconfig();
    check(&current, "pki/kubelet-client-current.pem").await;

    let own = World::fresh();
    own.give_kubeconfig_of(serde_json::json!({ "client-certificate": "own.pem", "client-key": "own.pem" }));
    check(&own, "own.pem").await;
}

#[tokio::test(start_paused = true)]
async fn without_the_authority_it_is_not_said_whose_a_certificate_is() {
    let world = World::fresh();
    // As kubeadm's, but with the authority in a file of its own.
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "k", "cluster": { "server": "https://api:6443", "certificate-authority": "ca.crt" } }],
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        "users": [{ "name": "u", "user": { "token": "abcdef.0123456789abcdef" } }],
    });
    world.write("bootstrap.conf", &kubeconfig.to_string());
    world.give_certificate(HOUR, YEAR);
    std::fs::create_dir(world.path("ca.crt")).expect("directories can be made");
    world.answer([Answer::Sign(YEAR)]);
    let error = settle(&mut world.identity(true)).await.expect_err("a directory cannot be read");
    assert!(matches!(error, IdentityError::Host(_)), "{error}");
    assert_eq!(world.told(), [""; 0]);
}
