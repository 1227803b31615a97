use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;
use tokio::time::sleep;

use super::*;
use crate::clock::Clock;
use crate::kube::ApiError;
use crate::kube::fake::FakeCluster;
use crate::node::{NodeView, run_lease};

/// A lease task over an empty cluster, and the view it looks at.
fn start() -> (FakeCluster, watch::Sender<Option<Arc<NodeView>>>) {
    let cluster = FakeCluster::default();
    let (sender, view) = watch::channel(None);
    tokio::spawn(run_lease(Arc::new(cluster.clone()), Clock::simulated(at(0), 1), config(), view));
    (cluster, sender)
}

fn view(uid: &str) -> Option<Arc<NodeView>> {
    let mut node = Node::default();
    node.metadata.uid = Some(uid.into());
    Some(Arc::new(NodeView {
        host_ips: Vec::new(),
        allocatable: BTreeMap::new(),
        node: Arc::new(node),
        is_registered: true,
        pod_cidrs: Vec::new(),
    }))
}

fn renewed_at(lease: &Lease) -> i64 {
    let time = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).expect("a renew time");
    time.0.as_second() - at(0).as_second()
}

fn away() -> ApiError {
    ApiError::Unavailable { what: "lease".into(), message: "connection refused".into() }
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_made_at_once_and_renewed_every_quarter_of_its_duration() {
    let (cluster, _view) = start();
    sleep(Duration::from_millis(1)).await;
    let lease = cluster.lease().expect("a lease");
    assert_eq!(lease.metadata.name.as_deref(), Some("board-1"));
    assert_eq!(lease.metadata.namespace.as_deref(), Some("kube-node-lease"));
    let spec = lease.spec.as_ref().expect("a spec");
    assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("board-1"), Some(40)));
    assert_eq!(renewed_at(&lease), 0);
    sleep(Duration::from_secs(60)).await;
    let renewals = cluster.call_names().iter().filter(|call| *call == "update lease").count();
    assert!((5..=6).contains(&renewals), "{renewals}");
    assert_eq!(cluster.call_names().len(), renewals + 1);
}

#[tokio::test(start_paused = true)]
async fn the_node_owns_the_lease_once_it_exists() {
    let (cluster, sender) = start();
    let owners = |cluster: &FakeCluster| {
        let owners = cluster.lease().and_then(|lease| lease.metadata.owner_references).unwrap_or_default();
        owners.into_iter().map(|owner| format!("{} {} {}", owner.kind, owner.name, owner.uid)).collect::<Vec<_>>()
    };
    sleep(Duration::from_secs(1)).await;
    assert_eq!(owners(&cluster), [""; 0]);
    sender.send_replace(view("u-1"));
    sleep(Duration::from_secs(11)).await;
    assert_eq!(owners(&cluster), ["Node board-1 u-1"]);
    sender.send_replace(view("u-2"));
    sleep(Duration::from_secs(11)).await;
    assert_eq!(owners(&cluster), ["Node board-1 u-2"]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_there_already_is_taken_over() {
    let cluster = FakeCluster::default();
    cluster.put_lease(Some(Lease::default()));
    let (_sender, receiver) = watch::channel(None);
    tokio::spawn(run_lease(Arc::new(cluster.clone()), Clock::simulated(at(0), 1), config(), receiver));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(cluster.call_names(), ["create lease", "get lease", "update lease"]);
    assert_eq!(renewed_at(&cluster.lease().expect("a lease")), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_or_changed_lease_is_put_right_within_one_renewal() {
    let (cluster, _view) = start();
    sleep(Duration::from_secs(1)).await;
    cluster.put_lease(None);
    sleep(Duration::from_secs(11)).await;
    assert!(cluster.lease().is_some());
    assert!(cluster.call_names().ends_with(&["update lease".to_owned(), "create lease".to_owned()]));
    cluster.put_lease(cluster.lease());
    cluster.clear_calls();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(cluster.call_names(), ["update lease", "get lease", "update lease"]);
}

#[tokio::test(start_paused = true)]
async fn an_absent_server_is_asked_again_and_again() {
    let (cluster, _view) = start();
    sleep(Duration::from_secs(1)).await;
    cluster.set_outage(Some(away()));
    sleep(Duration::from_secs(120)).await;
    let before = renewed_at(&cluster.lease().expect("a lease"));
    assert_eq!(before, 0);
    cluster.set_outage(None);
    sleep(Duration::from_secs(8)).await;
    assert!(renewed_at(&cluster.lease().expect("a lease")) >= 121);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_costs_one_interval() {
    let (cluster, _view) = start();
    sleep(Duration::from_secs(1)).await;
    cluster.set_latency(Duration::from_secs(3600));
    sleep(Duration::from_secs(15)).await;
    cluster.set_latency(Duration::ZERO);
    sleep(Duration::from_secs(10)).await;
    assert!(renewed_at(&cluster.lease().expect("a lease")) >= 16);
}
