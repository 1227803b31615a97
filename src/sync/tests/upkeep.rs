//! API content of volumes and links to logs, while their pod runs.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::super::retries::{Retries, Step};
use super::super::testing::Bed;
use super::super::upkeep::{self, LogLinks};
use crate::clock::Clock;
use crate::cri::testing::{container, exited, noon, running};
use crate::kube::fake::FakeCluster;
use crate::kube::{Cluster, ObjectState};
use crate::objects::Objects;
use crate::objects::tokens::Tokens;
use crate::pod::PodUid;
use crate::pod::testing::yaml;
use crate::volumes::Volumes;

fn retries() -> Retries {
    Retries::new(Clock::simulated(noon(), 1))
}

/// A bed whose volumes come from this cluster.
fn with_cluster(spec: &str) -> (Bed, FakeCluster) {
    let (mut bed, cluster) = (Bed::new(spec), FakeCluster::default());
    let edge: Arc<dyn Cluster> = Arc::new(cluster.clone());
    let context = &mut bed.context;
    context.objects = Objects::new(Some(edge.clone()), Arc::new(|_| {}));
    let tokens = Tokens::new(Some(edge), context.clock.clone());
    let root_dir = context.config.root_dir.clone();
    context.volumes =
        Volumes::new(context.host.clone(), context.objects.clone(), tokens, Arc::new(BTreeMap::new), root_dir);
    context.objects.register(&bed.wish.pod);
    (bed, cluster)
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_cannot_be_refreshed_is_told() {
    let spec = "{containers: [{name: c, image: own, volumeMounts: [{name: v, mountPath: /v}]}], \
                volumes: [{name: v, configMap: {name: settings}}]}";
    let (bed, cluster) = with_cluster(spec);
    let mut retries = retries();
    cluster.send_config_map("shop", "settings", ObjectState::Present(Box::new(yaml("{data: {v: '1'}}"))));
    upkeep::refresh_volumes(&bed.context, &bed.wish, &mut retries).await;
    assert!(bed.told().is_empty() && !retries.has_failed(&Step::Volumes), "{:?}", bed.told());
    cluster.send_config_map("shop", "settings", ObjectState::Absent);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let told = ["FailedMount: MountVolume.SetUp failed for volume \"v\" : configmap \"settings\" not found"];
    upkeep::refresh_volumes(&bed.context, &bed.wish, &mut retries).await;
    assert_eq!(bed.told(), told);
    upkeep::refresh_volumes(&bed.context, &bed.wish, &mut retries).await;
    assert_eq!(bed.told(), told, "it waits for its next try");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_due_waits_with_the_volumes() {
    let spec = "{containers: [{name: c, image: own, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, \
                projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 600}}, \
                {configMap: {name: gone}}]}}]}";
    let (bed, cluster) = with_cluster(spec);
    let (uid, mut retries) = (PodUid::new("u"), retries());
    cluster.send_config_map("shop", "gone", ObjectState::Absent);
    cluster.grant_token(yaml(
        "{spec: {audiences: [], expirationSeconds: 600}, \
         status: {token: t, expirationTimestamp: '2026-01-01T12:10:00Z'}}",
    ));
    assert_eq!(upkeep::next_refresh(&bed.context, &uid, &retries), None);
    upkeep::refresh_volumes(&bed.context, &bed.wish, &mut retries).await;
    let due = upkeep::next_refresh(&bed.context, &uid, &retries).expect("a token is held");
    // The rest of the volume goes on failing, for longer than the token is fresh.
    let next_try = retries.failed(Step::Volumes, Some(due + Duration::from_secs(10)));
    tokio::time::sleep_until(due + Duration::from_secs(1)).await;
    assert_eq!(upkeep::next_refresh(&bed.context, &uid, &retries), Some(next_try), "nothing is done before");
    tokio::time::sleep_until(next_try).await;
    assert_eq!(upkeep::next_refresh(&bed.context, &uid, &retries), Some(due));
    assert!(due < Instant::now());
}

#[tokio::test(start_paused = true)]
async fn what_runs_has_its_log_linked_whoever_started_it() {
    let mut bed = Bed::new("{containers: []}");
    bed.seen.containers = vec![container("c", 3, running()), container("d", 0, exited(0))];
    let (mut links, mut retries) = (LogLinks::default(), retries());
    let dir = bed.context.config.container_logs_dir.clone();
    links.make(&bed.context, &bed.wish, &bed.seen, &mut retries).await;
    assert!(retries.waits_for(&Step::Links).is_some(), "there is no directory for it");
    fs::create_dir(&dir).expect("a scratch directory");
    links.make(&bed.context, &bed.wish, &bed.seen, &mut retries).await;
    assert_eq!(fs::read_dir(&dir).expect("it is there").count(), 0, "it waits for its next try");
    retries.clear();
    links.make(&bed.context, &bed.wish, &bed.seen, &mut retries).await;
    let link = dir.join("web-0_shop_c-c-3.log");
    let log = bed.dir.path().join("pods/shop_web-0_u/c/3.log");
    assert_eq!(fs::read_link(&link).expect("it was made"), log);
    assert_eq!(fs::read_dir(&dir).expect("it is there").count(), 1);
    // It is not looked at again.
    fs::remove_file(&link).expect("it was made");
    links.make(&bed.context, &bed.wish, &bed.seen, &mut retries).await;
    assert!(fs::read_link(&link).is_err());
}
