//! The pods that the API server has bound to this node.

use std::sync::Arc;

use futures::StreamExt;
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

fn translate(change: Change<k8s_openapi::api::core::v1::Pod>) -> SourceEvent {
    let source = Source::Api;
    match change {
        Change::Listed(pods) => SourceEvent::Listed { source, pods: pods.into_iter().map(Arc::new).collect() },
        Change::Applied(pod) => SourceEvent::Applied { source, pod: Arc::from(pod) },
        Change::Deleted(pod) => SourceEvent::Removed { source, uid: PodRef::of(&pod).uid },
    }
}
