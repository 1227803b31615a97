//! The task that posts events, one after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::correlator::{Correlator, Verdict};
use super::{Occurrence, Queue};
use crate::kube::limit::{Rate, Throttle};
use crate::kube::{ApiError, Cluster};

/// How often one event is tried, and the pauses between, doubled up to the last.
const TRIES: u32 = 12;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Whoever reads events is in no hurry, but a pod that starts is: the API server and the runtime
/// are left to it first.
const LETS_PODS_BY: Duration = Duration::from_millis(500);

/// Posts what is recorded until every recorder is gone. Without a cluster, events only show
/// in the log. `rate` is `eventRecordQPS` and `eventBurst`; `None` posts without limit.
pub async fn run(mut queue: Queue, cluster: Option<Arc<dyn Cluster>>, rate: Option<Rate>) {
    let Some(cluster) = cluster else {
        while let Some(occurrence) = queue.receiver.recv().await {
            info!(
                object = %object(&occurrence),
                reason = occurrence.reason,
                message = occurrence.message,
                "event"
            );
        }
        return;
    };
    let mut correlator = Correlator::new(&queue.node_name);
    let throttle = Throttle::new(rate);
    while let Some(occurrence) = next(&mut queue).await {
        debug!(
            object = %object(&occurrence),
            reason = occurrence.reason,
            message = occurrence.message,
            "event"
        );
        let verdict = correlator.consider(&occurrence, Instant::now());
        if verdict == Verdict::Drop {
            debug!(object = %object(&occurrence), reason = occurrence.reason, "too many events of this object, not posted");
            continue;
        }
        throttle.turn().await;
        if let Err(error) = post_with_retries(cluster.as_ref(), verdict).await {
            warn!(object = %object(&occurrence), reason = occurrence.reason, %error, "event not posted");
        }
        report_dropped(&queue);
    }
}

/// Those that came meanwhile follow at once.
async fn next(queue: &mut Queue) -> Option<Occurrence> {
    if let Ok(waiting) = queue.receiver.try_recv() {
        return Some(waiting);
    }
    let first = queue.receiver.recv().await;
    sleep(LETS_PODS_BY).await;
    first
}

fn object(occurrence: &Occurrence) -> String {
    let about = &occurrence.about;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    match &about.namespace {
        Some(namespace) => format!("{}/{}/{}", text(&about.kind), namespace, text(&about.name)),
        None => format!("{}/{}", text(&about.kind), text(&about.name)),
    }
}

fn report_dropped(queue: &Queue) {
    let dropped = queue.dropped.swap(0, Ordering::Relaxed);
    if dropped > 0 {
        warn!(dropped, "events were dropped because too many waited to be posted");
    }
}

/// Tries again while the API server is away: later events wait behind this one, which keeps
/// their order, and the queue's bound keeps that from growing.
async fn post_with_retries(cluster: &dyn Cluster, verdict: Verdict) -> Result<(), ApiError> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match post(cluster, &verdict).await {
            Err(ApiError::Unavailable { .. }) => {}
            done => return done,
        }
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
    post(cluster, &verdict).await
}

async fn post(cluster: &dyn Cluster, verdict: &Verdict) -> Result<(), ApiError> {
    match verdict {
        Verdict::Drop => Ok(()),
        Verdict::Create(event) => create(cluster, event).await,
        Verdict::Patch { namespace, name, patch, instead } => match cluster.patch_event(namespace, name, patch).await {
            Err(ApiError::NotFound { .. }) => create(cluster, instead).await,
            done => done.map(drop),
        },
    }
}

async fn create(cluster: &dyn Cluster, event: &Event) -> Result<(), ApiError> {
    match cluster.create_event(event).await {
        // An earlier try got through and only its answer was lost.
        Err(ApiError::AlreadyExists { .. }) => Ok(()),
        done => done.map(drop),
    }
}
