use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::plan::{Step, next, wanted};
use super::{ServingIdentity, ServingKey};
use crate::identity::certificate::{Bundle, Certificate, Issuer};
use crate::identity::request::Alternatives;
use crate::identity::tests::world::{Answer, HOUR, NODE, USER, World};
use crate::kube::Change;

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn node(addresses: &[(&str, &str)]) -> Node {
    let addresses: Vec<_> =
        addresses.iter().map(|(kind, address)| json!({ "type": kind, "address": address })).collect();
    serde_json::from_value(json!({ "metadata": { "name": NODE }, "status": { "addresses": addresses } }))
        .expect("it is a node")
}

fn alternatives(names: &[&str], addresses: &[&str]) -> Alternatives {
    Alternatives {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
    }
}

#[test]
fn names_and_addresses_come_from_the_node() {
    let node = node(&[
        ("InternalIP", "10.0.0.7"),
        ("InternalIP", "fd00::7"),
        ("ExternalIP", "192.0.2.1"),
        ("Hostname", "edge-7"),
        ("InternalDNS", "edge-7.internal"),
        ("ExternalDNS", "edge-7.example.com"),
        ("InternalIP", "no address"),
        ("Other", "other"),
    ]);
    let expected =
        alternatives(&["edge-7", "edge-7.internal", "edge-7.example.com"], &["10.0.0.7", "fd00::7", "192.0.2.1"]);
    assert_eq!(wanted(Some(&node)), expected);
    assert_eq!(wanted(Some(&self::node(&[("Hostname", "10.0.0.7")]))), alternatives(&[], &["10.0.0.7"]));
    assert_eq!(wanted(None), Alternatives::default());
}

fn noon() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("it is a time")
}

fn certificate(names: &[&str], addresses: &[&str]) -> Certificate {
    let Alternatives { names, addresses } = alternatives(names, addresses);
    let (not_before, not_after) = (noon(), noon() + DAY);
    Certificate {
        not_before,
        not_after,
        common_name: USER.to_owned(),
        names,
        addresses,
        issuer: Issuer::default(),
        digest: [0; 32],
    }
}

#[test]
fn a_certificate_that_names_all_and_is_not_due_is_kept() {
    let leaf = certificate(&["edge-7"], &["10.0.0.7"]);
    let wanted = alternatives(&["edge-7"], &["10.0.0.7"]);
    let at = |now, leaf: Option<&Certificate>, wanted: &Alternatives, names_suffice| {
        next(now, noon() - DAY, NODE, leaf, wanted, names_suffice)
    };
    let rest = Step::Rest { until: leaf.renew_at() };
    assert_eq!(at(noon() + HOUR, Some(&leaf), &wanted, false), rest);
    assert_eq!(at(noon() + HOUR, Some(&leaf), &alternatives(&[], &["10.0.0.7"]), false), rest, "one too many is fine");
    assert_eq!(at(leaf.renew_at(), Some(&leaf), &wanted, false), Step::Obtain);
    assert_eq!(at(noon() + HOUR, None, &wanted, false), Step::Obtain);
    let moved = alternatives(&["edge-7"], &["10.0.0.8"]);
    assert_eq!(at(noon() + HOUR, Some(&leaf), &moved, false), Step::Obtain);
    assert_eq!(at(noon() + HOUR, None, &alternatives(&["edge-7"], &[]), false), Step::AwaitAddresses);
    assert_eq!(at(noon() + HOUR, None, &alternatives(&["edge-7"], &[]), true), Step::Obtain);
    assert_eq!(at(noon() + HOUR, None, &alternatives(&[], &[]), true), Step::AwaitAddresses);
    assert_eq!(at(noon() - HOUR, Some(&leaf), &wanted, false), Step::AwaitClock);
    assert_eq!(at(noon() - DAY * 30, None, &wanted, false), Step::AwaitClock);
    let others = Certificate { common_name: "system:node:other".to_owned(), ..leaf.clone() };
    assert_eq!(at(noon() + HOUR, Some(&others), &wanted, false), Step::Obtain);
}

/// The task, the watch it follows and what it serves.
struct Serving {
    world: World,
    nodes: mpsc::UnboundedSender<Change<Node>>,
    key: ServingKey,
    task: AbortHandle,
}

impl Serving {
    fn on(world: World) -> Serving {
        let (nodes, watch) = mpsc::unbounded_channel();
        let watch = UnboundedReceiverStream::new(watch).boxed();
        let clock = world.clock.clone();
        let (identity, key) =
            ServingIdentity::new(NODE, &world.path("pki"), false, world.host(), world.access(), clock);
        let task = tokio::spawn(identity.run(watch)).abort_handle();
        Serving { world, nodes, key, task }
    }

    fn tell(&self, addresses: &[(&str, &str)]) {
        self.nodes.send(Change::Applied(Box::new(node(addresses)))).expect("the task listens");
    }

    /// The certificate that is served next.
    async fn next(&mut self) -> Certificate {
        let served = tokio::time::timeout(Duration::from_secs(7 * 86_400), async {
            self.key.changed().await.expect("the task goes on");
            self.key.borrow_and_update().clone()
        });
        let served = served.await.expect("one comes").expect("there is one");
        let pem = self.world.read("pki/kubelet-server-current.pem");
        let on_disk = Bundle::parse(pem.as_bytes()).expect("it is whole");
        assert_eq!(served.cert, on_disk.key.cert);
        on_disk.leaf
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_served_before_the_cluster_has_signed() {
    let mut serving = Serving::on(World::new());
    serving.world.answer([Answer::Deny, Answer::Sign(DAY)]);
    serving.nodes.send(Change::Listed(vec![node(&[("Hostname", "edge-7")])])).expect("the task listens");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(serving.key.borrow().is_none() && serving.world.requests().is_empty(), "no address is known");
    serving.tell(&[("Hostname", "edge-7"), ("InternalIP", "10.0.0.7")]);
    let served = serving.next().await;
    assert_eq!((served.names, served.addresses), {
        let Alternatives { names, addresses } = alternatives(&["edge-7"], &["10.0.0.7"]);
        (names, addresses)
    });
    assert_eq!(serving.world.told(), ["node asks", "node asks"], "the first was denied");
}

#[tokio::test(start_paused = true)]
async fn another_address_is_another_certificate_at_once() {
    let mut serving = Serving::on(World::new());
    serving.world.answer([Answer::Sign(DAY), Answer::Never, Answer::Sign(DAY)]);
    serving.tell(&[("InternalIP", "10.0.0.7")]);
    assert_eq!(serving.next().await.addresses, alternatives(&[], &["10.0.0.7"]).addresses);
    let (before, start) = (serving.key.borrow().clone(), serving.world.clock.now());
    serving.tell(&[("InternalIP", "10.0.0.8")]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let now = serving.key.borrow().clone();
    assert!(Arc::ptr_eq(&before.expect("it is served"), &now.expect("it is served")), "the old one serves meanwhile");
    // Nobody has signed yet when it moves again.
    serving.tell(&[("InternalIP", "10.0.0.9")]);
    assert_eq!(serving.next().await.addresses, alternatives(&[], &["10.0.0.9"]).addresses);
    assert!(start.elapsed() < Duration::from_secs(120));
}

#[tokio::test(start_paused = true)]
async fn a_restart_serves_what_is_there_and_renews_it_in_time() {
    let mut serving = Serving::on(World::new());
    serving.world.answer([Answer::Sign(DAY), Answer::Sign(DAY)]);
    serving.tell(&[("InternalIP", "10.0.0.7")]);
    let first = serving.next().await;
    serving.task.abort();
    let mut again = Serving::on(serving.world);
    assert_eq!(again.next().await, first, "before the Node is known");
    again.tell(&[("InternalIP", "10.0.0.7")]);
    let second = again.next().await;
    // Certificates know whole seconds.
    let (asked_at, renew_at) = (second.not_before.as_second(), first.renew_at().as_second());
    assert!((renew_at..renew_at + 60).contains(&asked_at), "{asked_at}, due at {renew_at}");
    assert_eq!(again.world.requests().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_that_has_expired_is_served_no_more() {
    let mut serving = Serving::on(World::new());
    serving.world.answer([Answer::Sign(DAY)]);
    serving.tell(&[("InternalIP", "10.0.0.7")]);
    let served = serving.next().await;
    tokio::time::timeout(Duration::from_secs(3 * 86_400), serving.key.changed())
        .await
        .expect("it ends")
        .expect("the task goes on");
    assert!(serving.key.borrow().is_none());
    assert!(serving.world.clock.wall() >= served.not_after);
}
