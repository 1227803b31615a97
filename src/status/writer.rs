//! The task that brings statuses to the API, and the handle others use.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::outbox::{Flush, IN_FLIGHT_MAX, Outbox, Outcome, Request, Step, Write, retry_delay};
use crate::clock::Clock;
use crate::kube::{ApiError, Cluster};
use crate::metrics;
use crate::pod::{PodRef, PodUid};

/// No answer for so long is none: the next attempt may find a connection that works.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// Brings statuses to the API. Clones share one queue, which [`StatusWriter::run`] serves.
#[derive(Clone)]
pub struct StatusWriter {
    shared: Arc<Shared>,
}

struct Shared {
    cluster: Arc<dyn Cluster>,
    clock: Clock,
    outbox: Mutex<Outbox>,
    /// Something was put into the outbox.
    wake: Notify,
    /// Something came to an end in the outbox; for those who wait on a flush.
    progress: watch::Sender<()>,
    deletions: Semaphore,
}

impl StatusWriter {
    pub fn new(cluster: Arc<dyn Cluster>, clock: Clock) -> Self {
        StatusWriter {
            shared: Arc::new(Shared {
                cluster,
                outbox: Mutex::new(Outbox::new(clock.clone())),
                clock,
                wake: Notify::new(),
                progress: watch::Sender::new(()),
                deletions: Semaphore::new(IN_FLIGHT_MAX),
            }),
        }
    }

    /// The status the pod shall have; never waits. `uid` is the one the pod has on this node:
    /// a static pod's own. It is sent as soon as the API object was seen by `observed`.
    pub fn set(&self, uid: &PodUid, status: PodStatus) {
        self.outbox().set(uid, status);
        self.shared.wake.notify_one();
    }

    /// What the API has of the pod now: the pod itself, or the mirror of a static pod. A
    /// status that somebody else changed is put right.
    pub fn observed(&self, uid: &PodUid, api: &Arc<Pod>) {
        self.outbox().observed(uid, Arc::clone(api), self.shared.clock.now());
        self.shared.wake.notify_one();
    }

    /// The API object is gone; for a static pod another mirror may follow.
    pub fn api_object_gone(&self, uid: &PodUid) {
        self.outbox().gone(uid);
        self.shared.progress.send_replace(());
    }

    /// Drops everything about a pod that has left this node.
    pub fn forget(&self, uid: &PodUid) {
        self.outbox().forget(uid);
        self.shared.progress.send_replace(());
    }

    /// Waits until the API has the status set last, or never will. Waits for ever for a pod
    /// whose API object was never seen.
    pub async fn flushed(&self, uid: &PodUid) -> Flush {
        let mut progress = self.shared.progress.subscribe();
        loop {
            match self.outbox().flush(uid) {
                Flush::Pending => {}
                end => return end,
            }
            if progress.changed().await.is_err() {
                return Flush::Gone;
            }
        }
    }

    /// Waits until every status that can be sent was; for a clean end of the agent.
    pub async fn drained(&self) {
        let mut progress = self.shared.progress.subscribe();
        while !self.outbox().is_drained() && progress.changed().await.is_ok() {}
    }

    /// Removes the API object of a pod that is no more, while it is still this pod. Returns
    /// once it is gone; goes on trying until then.
    pub async fn delete_pod(&self, pod: &PodRef) {
        let mut attempts = 0;
        loop {
            let result = {
                // The semaphore is never closed, so that a permit always comes.
                let _permit = self.shared.deletions.acquire().await;
                let call = self.shared.cluster.delete_pod(&pod.namespace, &pod.name, pod.uid.as_str(), 0);
                timeout(CALL_DEADLINE, call).await.unwrap_or_else(|_| Err(no_answer("delete pod")))
            };
            match result {
                // A conflict says that the name belongs to another pod by now.
                Ok(()) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => {
                    debug!(%pod, uid = %pod.uid, "pod object deleted");
                    return;
                }
                Err(error) => {
                    attempts += 1;
                    let delay = retry_delay(&self.shared.clock, attempts);
                    warn!(%pod, uid = %pod.uid, ?delay, %error, "pod object not deleted, will retry");
                    sleep(delay).await;
                }
            }
        }
    }

    /// Serves the queue for ever.
    pub async fn run(self) {
        let mut calls = FuturesUnordered::new();
        let mut was_down = false;
        loop {
            let until = loop {
                match self.outbox().next(self.shared.clock.now()) {
                    Step::Send(request) => calls.push(send(Arc::clone(&self.shared.cluster), request)),
                    Step::Wait(until) => break until,
                }
            };
            // Also covers entries that were found to need no patch at all.
            self.shared.progress.send_replace(());
            let pause = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // Cancel-safe: unfinished calls stay in the set.
                Some((request, outcome, error)) = calls.next() => {
                    self.report(&request, &outcome, error.as_ref());
                    self.count(&request, &outcome);
                    self.outbox().done(&request.uid, outcome, self.shared.clock.now());
                    was_down = self.report_link(was_down);
                }
                // Cancel-safe: a notification that is not waited for is kept.
                () = self.shared.wake.notified() => {}
                // Cancel-safe: made anew in each turn.
                () = pause => {}
            }
        }
    }

    fn report(&self, request: &Request, outcome: &Outcome, error: Option<&ApiError>) {
        let Request { uid, namespace, name, .. } = request;
        let error = error.map(tracing::field::display);
        // One line when trouble begins, and none for each pod while the server is away.
        let first = {
            let outbox = self.outbox();
            outbox.failures(uid) == 0 && !outbox.is_down()
        };
        match outcome {
            Outcome::Accepted(_) => debug!(namespace, name, %uid, "pod status written"),
            Outcome::Outdated(_) => {
                debug!(namespace, name, %uid, error, "pod changed meanwhile, will patch it again")
            }
            Outcome::Gone => {
                debug!(namespace, name, %uid, error, "pod status not written, pod is gone")
            }
            Outcome::Rejected => {
                warn!(namespace, name, %uid, error, "pod status refused, will send it when it changes")
            }
            Outcome::Failed if first => {
                warn!(namespace, name, %uid, error, "pod status not written, will retry")
            }
            Outcome::Failed => {
                debug!(namespace, name, %uid, error, "pod status not written, will retry")
            }
        }
    }

    fn count(&self, request: &Request, outcome: &Outcome) {
        if !matches!(outcome, Outcome::Accepted(_)) {
            return;
        }
        if let Some(delay) = self.outbox().delay(&request.uid, self.shared.clock.now()) {
            metrics::pods::STATUS_SYNC_DURATION.took([], delay);
        }
    }

    fn report_link(&self, was_down: bool) -> bool {
        let is_down = self.outbox().is_down();
        match (was_down, is_down) {
            (false, true) => warn!("API server takes no pod statuses, will keep the newest of each pod and retry"),
            (true, false) => info!("API server takes pod statuses again"),
            _ => {}
        }
        is_down
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.shared.outbox.lock().expect("nothing that holds the outbox can panic")
    }
}

fn no_answer(what: &str) -> ApiError {
    ApiError::Unavailable { what: what.to_owned(), message: format!("no answer within {CALL_DEADLINE:?}") }
}

/// A request's end: whose, what it means, and what the API server said if it was an error.
type Answer = (Request, Outcome, Option<ApiError>);

/// Sends one patch and finds out what its failure means.
async fn send(cluster: Arc<dyn Cluster>, request: Request) -> Answer {
    let patch = match &request.write {
        Write::Patch(patch) => patch,
        Write::DeleteMirror => return delete_mirror(&*cluster, request).await,
    };
    let call = cluster.patch_pod_status(&request.namespace, &request.name, patch);
    let result = timeout(CALL_DEADLINE, call).await.unwrap_or_else(|_| Err(no_answer("patch pod status")));
    let (outcome, error) = match result {
        Ok(answer) => (Outcome::Accepted(Arc::new(answer)), None),
        Err(error @ ApiError::NotFound { .. }) => (Outcome::Gone, Some(error)),
        Err(error @ (ApiError::Conflict { .. } | ApiError::Invalid { .. })) => {
            (look_again(&*cluster, &request, &error).await, Some(error))
        }
        Err(error) => (Outcome::Failed, Some(error)),
    };
    (request, outcome, error)
}

/// The watch shows that it is gone, and then another one is made.
async fn delete_mirror(cluster: &dyn Cluster, request: Request) -> Answer {
    let call = cluster.delete_pod(&request.namespace, &request.name, &request.api_uid, 0);
    let (outcome, error) = match timeout(CALL_DEADLINE, call).await.unwrap_or_else(|_| Err(no_answer("delete mirror")))
    {
        Ok(()) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => (Outcome::Gone, None),
        Err(error) => (Outcome::Failed, Some(error)),
    };
    (request, outcome, error)
}

/// A patch for another UID is answered as a conflict or as an invalid change of it, which
/// depends on the server's version; so is one that is wrong by itself.
async fn look_again(cluster: &dyn Cluster, request: &Request, error: &ApiError) -> Outcome {
    let call = cluster.get_pod(&request.namespace, &request.name);
    match timeout(CALL_DEADLINE, call).await.unwrap_or_else(|_| Err(no_answer("get pod"))) {
        Ok(pod) if pod.metadata.uid.as_deref() != Some(request.api_uid.as_str()) => Outcome::Gone,
        Ok(pod) if matches!(error, ApiError::Conflict { .. }) => Outcome::Outdated(Arc::new(pod)),
        Ok(_) => Outcome::Rejected,
        Err(ApiError::NotFound { .. }) => Outcome::Gone,
        Err(_) => Outcome::Failed,
    }
}
