//! The pods that the API server has bound to this node.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;

use super::SourceEvent;
use crate::kube::{Change, Cluster};
use crate::pod::{PodRef, Source};

/// Passes the watch on until the dispatcher is gone.
///
/// A full channel holds up this task alone: the watch then waits in the kernel's buffers.
pub async fn run(cluster: Arc<dyn Cluster>, events: mpsc::Sender<SourceEvent>) {
    let mut changes = cluster.watch_pods();
    while let Some(change) = changes.next().await {
        if events.send(translate(change)).await.is_err() {
            return;
        }
    }
}

fn translate(change: Change<Pod>) -> SourceEvent {
    let source = Source::Api;
    match change {
        Change::Listed(pods) => SourceEvent::Listed { source, pods: pods.into_iter().map(Arc::new).collect() },
        Change::Applied(pod) => SourceEvent::Applied { source, pod: Arc::from(pod) },
        Change::Deleted(pod) => SourceEvent::Removed { source, uid: PodRef::of(&pod).uid },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::fake::FakeCluster;
    use crate::pod::PodUid;

    fn pod(uid: &str) -> Pod {
        let metadata = serde_json::json!({ "namespace": "shop", "name": "web", "uid": uid });
        serde_json::from_value(serde_json::json!({ "metadata": metadata })).expect("the test's pod is valid")
    }

    #[tokio::test]
    async fn changes_come_through_in_order() {
        let cluster = FakeCluster::default();
        let (sender, mut events) = mpsc::channel(8);
        tokio::spawn(run(Arc::new(cluster.clone()) as Arc<dyn Cluster>, sender));
        tokio::task::yield_now().await;

        cluster.send_pods(Change::Listed(vec![pod("a")]));
        cluster.send_pods(Change::Applied(Box::new(pod("b"))));
        cluster.send_pods(Change::Deleted(Box::new(pod("a"))));
        let source = Source::Api;
        for expected in [
            SourceEvent::Listed { source, pods: vec![Arc::new(pod("a"))] },
            SourceEvent::Applied { source, pod: Arc::new(pod("b")) },
            SourceEvent::Removed { source, uid: PodUid::new("a") },
        ] {
            assert_eq!(events.recv().await, Some(expected));
        }
    }
}
