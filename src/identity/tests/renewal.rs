//! What becomes of a certificate in use: renewed in time, or found expired.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::SignedDuration;
use serde_json::json;

use super::world::{Answer, Authority, HOUR, USER, World, settle};
use crate::identity::LOOK_AGAIN;
use crate::identity::certificate::Bundle;
use crate::identity::client::{IdentityError, Pause};

const DAY: SignedDuration = SignedDuration::from_hours(24);
const FIRST: &str = "kubelet-client-2020-01-01-00-00-00.pem";

fn in_use(world: &World) -> Bundle {
    Bundle::parse(world.read("pki/kubelet-client-current.pem").as_bytes()).expect("what is in use is whole")
}

/// A node whose certificate is due, and no bootstrap kubeconfig any more.
fn due() -> World {
    let world = World::new();
    world.give_kubeconfig();
    world.give_certificate(HOUR * 22, DAY);
    world
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_with_itself_and_connections_follow() {
    let world = due();
    world.answer([Answer::Sign(DAY)]);
    let mut identity = world.identity(true);
    let pause = settle(&mut identity).await.expect("the request is signed");
    assert_eq!(world.told(), ["take up kubeconfig", "node asks", "take up kubeconfig"]);
    assert_ne!(world.in_use(), FIRST);
    assert!(world.path(&format!("pki/{FIRST}")).exists(), "the one before is kept for a while");
    assert_eq!(pause, Pause::Until(Some(in_use(&world).leaf.renew_at())));
    assert!(world.requests()[0].metadata.generate_name.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_due_as_soon_as_it_is_signed_is_not_asked_for_again_and_again() {
    let world = due();
    // By the signer's clock it is new.
    world.answer([Answer::SignLate, Answer::SignLate, Answer::Sign(DAY)]);
    let mut identity = world.identity(true);
    for asked in 1..=2 {
        let error = settle(&mut identity).await.expect_err("what came is of no use");
        assert!(matches!(error, IdentityError::NoHelp), "{error}");
        assert_eq!(world.requests().len(), asked);
    }
    settle(&mut identity).await.expect("this one is good");
}

#[tokio::test(start_paused = true)]
async fn each_renewal_has_a_key_of_its_own() {
    let world = due();
    world.answer([Answer::Sign(DAY)]);
    let before = world.read("pki/kubelet-client-current.pem");
    settle(&mut world.identity(true)).await.expect("the request is signed");
    let key = |pem: &str| pem[pem.find("-----BEGIN PRIVATE KEY").expect("there is a key")..].to_owned();
    assert_ne!(key(&before), key(&world.read("pki/kubelet-client-current.pem")));
}

#[tokio::test(start_paused = true)]
async fn what_is_valid_stays_in_use_until_the_new_one_is_there() {
    for answer in [Answer::Deny, Answer::Never, Answer::Refuse, Answer::SignAnother, Answer::Delete] {
        let world = due();
        world.answer([answer, Answer::Sign(DAY)]);
        let mut identity = world.identity(true);
        settle(&mut identity).await.expect_err("the answer is a bad one");
        assert_eq!(world.in_use(), FIRST);
        assert_eq!(world.files(), [FIRST, "kubelet-client-current.pem"]);
        settle(&mut identity).await.expect("the next answer is a good one");
        assert_ne!(world.in_use(), FIRST);
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_between_file_and_link_needs_no_second_renewal() {
    let world = due();
    let next = world.authority.bundle(USER, world.clock.wall() - HOUR, DAY);
    world.write("pki/kubelet-client-2020-01-01-22-00-00.pem", &next);
    settle(&mut world.identity(true)).await.expect("nothing is asked");
    assert_eq!(world.in_use(), "kubelet-client-2020-01-01-22-00-00.pem");
    assert_eq!(world.told(), ["take up kubeconfig", "take up kubeconfig"]);
}

#[tokio::test(start_paused = true)]
async fn what_another_cluster_signed_is_no_successor() {
    let world = due();
    let next = Authority::new("another").bundle(USER, world.clock.wall() - HOUR, DAY);
    world.write("pki/kubelet-client-2020-01-01-22-00-00.pem", &next);
    world.answer([Answer::Sign(DAY)]);
    settle(&mut world.identity(true)).await.expect("the request is signed");
    assert_ne!(world.in_use(), "kubelet-client-2020-01-01-22-00-00.pem");
}

#[tokio::test(start_paused = true)]
async fn without_rotation_nothing_is_asked_before_the_end() {
    let world = due();
    let pause = settle(&mut world.identity(false)).await.expect("nothing is to be done");
    assert_eq!(pause, Pause::Until(Some(in_use(&world).leaf.not_after)));
    assert_eq!(world.told(), ["take up kubeconfig"]);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_expired_meanwhile_is_followed_by_a_new_bootstrap() {
    for rotates in [true, false] {
        let world = World::fresh();
        world.give_kubeconfig();
        world.give_certificate(DAY * 3, DAY);
        world.answer([Answer::Sign(DAY)]);
        settle(&mut world.identity(rotates)).await.expect("the request is signed");
        assert_eq!(world.told(), ["take up kubeconfig", "bootstrap asks", "take up kubeconfig"]);
        assert_ne!(world.in_use(), FIRST);
    }
}

#[tokio::test(start_paused = true)]
async fn expired_without_a_way_out_is_looked_at_until_there_is_one() {
    let world = World::new();
    world.give_kubeconfig();
    world.give_certificate(DAY * 3, DAY);
    let mut identity = world.identity(true);
    assert_eq!(settle(&mut identity).await.expect("somebody has to do something"), Pause::For(LOOK_AGAIN));
    assert_eq!(world.in_use(), FIRST, "nothing is thrown away");
    assert_eq!(world.told(), ["take up kubeconfig"], "the API server may see it otherwise");
    world.give_bootstrap_kubeconfig();
    world.answer([Answer::Sign(DAY)]);
    settle(&mut identity).await.expect("the request is signed");
    assert_ne!(world.in_use(), FIRST);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_inside_the_kubeconfig_is_followed_by_one_of_ours() {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let world = World::new();
    let pem = world.authority.bundle(USER, world.clock.wall() - HOUR * 22, DAY);
    let data = STANDARD.encode(&pem);
    world.give_kubeconfig_of(json!({ "client-certificate-data": data, "client-key-data": data }));
    world.answer([Answer::Sign(DAY)]);
    settle(&mut world.identity(true)).await.expect("the request is signed");
    assert_eq!(world.told(), ["take up kubeconfig", "node asks", "take up current"]);
    // The next start goes on with it.
    settle(&mut world.identity(true)).await.expect("nothing is to be done");
    assert_eq!(world.told(), ["take up current"]);
}

#[tokio::test(start_paused = true)]
async fn a_token_or_a_program_is_nothing_to_renew() {
    let world = World::new();
    world.give_kubeconfig_of(json!({ "token": "t" }));
    assert_eq!(settle(&mut world.identity(true)).await.expect("nothing is to be done"), Pause::Until(None));
    assert_eq!(world.told(), ["take up kubeconfig"]);
}

#[tokio::test(start_paused = true)]
async fn old_certificates_do_not_pile_up() {
    let world = due();
    for hour in 10..20 {
        let old = world.authority.bundle(USER, world.clock.wall() - DAY * 9, HOUR);
        world.write(&format!("pki/kubelet-client-2019-01-01-{hour}-00-00.pem"), &old);
    }
    world.write("pki/kubelet-client-of-somebody.pem", "not ours to judge");
    world.write("pki/kubelet-server-2019-01-01-00-00-00.pem", "nor this");
    world.answer([Answer::Sign(DAY)]);
    settle(&mut world.identity(true)).await.expect("the request is signed");
    let mut expected = vec!["kubelet-client-2019-01-01-19-00-00.pem".to_owned(), FIRST.to_owned(), world.in_use()];
    expected.extend(
        ["kubelet-client-current.pem", "kubelet-client-of-somebody.pem", "kubelet-server-2019-01-01-00-00-00.pem"]
            .map(str::to_owned),
    );
    assert_eq!(world.files(), expected);
}

#[tokio::test(start_paused = true)]
async fn the_task_renews_when_it_is_time_again_and_again() {
    let world = World::new();
    world.give_kubeconfig();
    world.give_certificate(HOUR, DAY);
    world.answer([Answer::Sign(DAY), Answer::Sign(DAY), Answer::Sign(DAY)]);
    let task = world.identity(true).run();
    tokio::time::timeout(std::time::Duration::from_secs(65 * 3600), task).await.expect_err("it never ends");
    let asked = world.told().iter().filter(|what| *what == "node asks").count();
    assert_eq!(asked, 3, "70 to 90 % of a day each");
}

/// The user of a kubeconfig that holds certificate and key itself.
fn embedded(bundle: &str) -> serde_json::Value {
    let key = bundle.find("-----BEGIN PRIVATE KEY").expect("there is a key");
    let [certificate, key] = [&bundle[..key], &bundle[key..]].map(|part| STANDARD.encode(part));
    json!({ "client-certificate-data": certificate, "client-key-data": key })
}

#[tokio::test(start_paused = true)]
async fn a_certificate_in_the_kubeconfig_itself_is_kept_with_ours_for_kubeadm() {
    let world = World::new();
    let bundle = world.authority.bundle(USER, world.clock.wall() - HOUR, DAY);
    world.give_kubeconfig_of(embedded(&bundle));
    let mut identity = world.identity(true);
    identity.begin().await.expect("the kubeconfig is good");
    settle(&mut identity).await.expect("there is nothing more to do");
    let kept = in_use(&world);
    assert_eq!(kept.leaf, Bundle::parse(bundle.as_bytes()).expect("it is whole").leaf);
    assert_eq!(world.told(), ["take up kubeconfig"]);
    assert_eq!(world.mode(&format!("pki/{}", world.in_use())), 0o600);
    // Its last step: the same by another way.
    world.give_kubeconfig();
    settle(&mut world.identity(true)).await.expect("it is the same certificate");
    assert_eq!((in_use(&world).leaf, world.requests().len()), (kept.leaf, 0));
}

#[tokio::test(start_paused = true)]
async fn a_kubeconfig_that_is_corrected_counts_instead_of_what_was_got_before() {
    let world = World::new();
    let own = |life| embedded(&world.authority.bundle(USER, world.clock.wall() - HOUR, life));
    world.give_kubeconfig_of(own(DAY));
    world.give_certificate(SignedDuration::ZERO, DAY);
    let mut identity = world.identity(true);
    identity.begin().await.expect("the kubeconfig is good");
    let running = tokio::spawn(identity.run());
    tokio::time::sleep(LOOK_AGAIN).await;
    assert_eq!(world.told(), ["take up current"]);
    // With another cluster's certificate, say; whoever fails with the old one finds it.
    let other = Authority::new("cluster");
    world.give_kubeconfig_of(embedded(&other.bundle(USER, world.clock.wall() - HOUR, HOUR * 12)));
    world.reloads.send_modify(|count| *count += 1);
    for _ in 0..1000 {
        tokio::time::sleep(LOOK_AGAIN).await;
        let told = world.told();
        if !told.is_empty() {
            assert_eq!(told, ["take up kubeconfig"]);
            running.abort();
            return;
        }
    }
    panic!("the new kubeconfig is not taken up");
}
