//! Mirror pods: how the API server sees the static pods of this node.
//!
//! One task makes the API match: each wanted static pod has one mirror that carries its
//! hash; every other mirror is deleted. It looks when something changed and, while the API
//! refuses, with growing pauses. No static pod ever waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::kube::{ApiError, Cluster};
use crate::node::NodeView;
use crate::pod::{PodRef, PodUid, Source};
use crate::sources::mirror::{self as content, is_mirror};

const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What is wanted and what was seen; clones share it.
#[derive(Clone, Default)]
pub struct Mirrors {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    api_spoke: Arc<Gate>,
}

/// Opens when the API has spoken. Unlike a watch it lets workers through in the order they came,
/// so that a seed tells the same story twice.
struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Gate(Semaphore::new(0))
    }
}

/// What the API has of a static pod.
#[derive(Debug, PartialEq)]
pub enum Mirror {
    /// It has not spoken yet, or there is none.
    Unknown,
    Absent,
    Present(Arc<Pod>),
}

#[derive(Default)]
struct State {
    wanted: BTreeMap<String, Arc<Pod>>,
    observed: BTreeMap<String, Arc<Pod>>,
    spoken: BTreeSet<Source>,
    /// UIDs of mirrors whose static pod has ended, until they are deleted.
    retired: BTreeSet<String>,
}

/// One write that brings the API closer.
#[derive(Debug, PartialEq)]
enum Write {
    Create(Arc<Pod>),
    Delete { namespace: String, name: String, uid: String },
}

impl Write {
    fn full_name(&self) -> String {
        match self {
            Write::Create(pod) => PodRef::of(pod).full_name(),
            Write::Delete { namespace, name, .. } => format!("{name}_{namespace}"),
        }
    }
}

impl Mirrors {
    /// The static pod of this name that should have a mirror, if any.
    pub fn wanted(&self, full_name: &str, pod: Option<Arc<Pod>>) {
        set(&mut self.state().wanted, full_name, pod);
        self.changed.notify_one();
    }

    /// What the API has under this name.
    pub fn observed(&self, full_name: &str, mirror: Option<Arc<Pod>>) {
        set(&mut self.state().observed, full_name, mirror);
        self.changed.notify_one();
    }

    /// How many mirrors the API has.
    pub fn count(&self) -> usize {
        self.state().observed.len()
    }

    /// The static pod of this name has ended: its mirror is not taken for another one's.
    pub fn retire(&self, full_name: &str) {
        let mut state = self.state();
        if let Some(uid) = state.observed.get(full_name).and_then(|mirror| mirror.metadata.uid.clone()) {
            state.retired.insert(uid);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// The API has no object with this UID any more.
    pub fn gone(&self, uid: &PodUid) {
        let mut state = self.state();
        state.retired.remove(uid.as_str());
        let before = state.observed.len();
        state.observed.retain(|_, mirror| mirror.metadata.uid.as_deref() != Some(uid.as_str()));
        if state.observed.len() != before {
            drop(state);
            self.changed.notify_one();
        }
    }

    pub fn is_retired(&self, mirror: &Pod) -> bool {
        mirror.metadata.uid.as_ref().is_some_and(|uid| self.state().retired.contains(uid))
    }

    pub fn source_synced(&self, source: Source) {
        let is_first = self.state().spoken.insert(source);
        if is_first && source == Source::Api {
            self.api_spoke.0.add_permits(Semaphore::MAX_PERMITS);
        }
        self.changed.notify_one();
    }

    /// The mirror that stands for this static pod as it is, and for no life of it that has ended.
    pub fn of(&self, pod: &Pod) -> Mirror {
        let state = self.state();
        if !state.spoken.contains(&Source::Api) {
            return Mirror::Unknown;
        }
        let is_retired = |mirror: &Pod| mirror.metadata.uid.as_ref().is_some_and(|uid| state.retired.contains(uid));
        let mirror = state.observed.get(&PodRef::of(pod).full_name());
        match mirror.filter(|mirror| content::mirror_matches(mirror, pod) && !is_retired(mirror)) {
            Some(mirror) => Mirror::Present(mirror.clone()),
            None => Mirror::Absent,
        }
    }

    /// Returns once the API has spoken, from when on all mirrors are known.
    pub async fn api_has_spoken(&self) {
        let _permit = self.api_spoke.0.acquire().await.expect("the gate is never closed");
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing that holds the mirrors can panic")
    }

    /// The writes that are due. Nothing is deleted for being unknown before the sources of
    /// static pods have spoken, nothing created before the API has.
    fn due(&self, static_sources: &BTreeSet<Source>) -> Vec<Write> {
        let state = self.state();
        if !state.spoken.contains(&Source::Api) {
            return Vec::new();
        }
        let mut writes = Vec::new();
        for (name, mirror) in &state.observed {
            let retired = mirror.metadata.uid.as_ref().is_some_and(|uid| state.retired.contains(uid));
            let keep = !retired && state.wanted.get(name).is_some_and(|pod| content::mirror_matches(mirror, pod));
            // It was asked to go at once, and somebody's finalizer holds it: the watch will tell.
            let leaves = mirror.metadata.deletion_timestamp.is_some()
                && mirror.metadata.deletion_grace_period_seconds == Some(0);
            let judged = retired || state.wanted.contains_key(name) || static_sources.is_subset(&state.spoken);
            if !keep && judged && !leaves {
                let metadata = &mirror.metadata;
                writes.push(Write::Delete {
                    namespace: metadata.namespace.clone().unwrap_or_default(),
                    name: metadata.name.clone().unwrap_or_default(),
                    uid: metadata.uid.clone().unwrap_or_default(),
                });
            }
        }
        let missing = state.wanted.iter().filter(|(name, _)| !state.observed.contains_key(*name));
        writes.extend(missing.map(|(_, pod)| Write::Create(pod.clone())));
        writes
    }
}

fn set(map: &mut BTreeMap<String, Arc<Pod>>, name: &str, pod: Option<Arc<Pod>>) {
    match pod {
        Some(pod) => map.insert(name.to_owned(), pod),
        None => map.remove(name),
    };
}

/// A write that failed, until it succeeds or is not due any more.
struct Failed {
    not_before: Instant,
    delay: Duration,
    error: String,
}

/// Runs until dropped.
pub async fn run(
    mirrors: Mirrors,
    cluster: Arc<dyn Cluster>,
    mut node: watch::Receiver<Option<Arc<NodeView>>>,
    static_sources: BTreeSet<Source>,
    clock: Clock,
) {
    // A mirror that cannot be written waits for itself alone.
    let mut failed: BTreeMap<String, Failed> = BTreeMap::new();
    loop {
        // A mirror belongs to its Node object; without one there is nothing to own it.
        let registered = |view: &Option<Arc<NodeView>>| view.as_ref().is_some_and(|view| view.is_registered);
        let owner = match node.wait_for(registered).await {
            Ok(view) => view.as_ref().map(|view| view.node.clone()),
            Err(_) => return,
        };
        let Some(owner) = owner else { continue };
        let mut still_failed = BTreeMap::new();
        for write in mirrors.due(&static_sources) {
            let name = write.full_name();
            let before = match failed.remove(&name) {
                Some(waiting) if waiting.not_before > clock.now() => {
                    still_failed.insert(name, waiting);
                    continue;
                }
                before => before,
            };
            if let Err(error) = carry_out(&mirrors, &*cluster, &owner, write).await {
                let text = error.to_string();
                // Said once, and again only when it changes: the API may be away for days.
                if before.as_ref().is_none_or(|before| before.error != text) {
                    warn!(%error, "mirror pod not written, will retry");
                }
                let delay = before.map_or(RETRY_FIRST, |before| (before.delay * 2).min(RETRY_MAX));
                let not_before = clock.now() + clock.jitter(delay, 0.3);
                still_failed.insert(name, Failed { not_before, delay, error: text });
            }
        }
        failed = still_failed;
        let retry = failed.values().map(|failed| failed.not_before).min();
        tokio::select! {
            biased;
            // Cancel-safe: an unused permit stays with the Notify.
            () = mirrors.changed.notified() => {}
            // Cancel-safe: a timer.
            () = sleep_until(retry) => {}
        }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

async fn carry_out(mirrors: &Mirrors, cluster: &dyn Cluster, owner: &Node, write: Write) -> Result<(), ApiError> {
    match write {
        Write::Create(pod) => {
            let full_name = PodRef::of(&pod).full_name();
            match cluster.create_pod(&content::mirror_of(&pod, owner)).await {
                Ok(mirror) => {
                    debug!(mirror = full_name, "mirror pod created");
                    mirrors.observed(&full_name, Some(Arc::new(mirror)));
                    Ok(())
                }
                // The watch will show it, and then it is judged by its hash.
                Err(ApiError::AlreadyExists { .. }) => match cluster
                    .get_pod(
                        pod.metadata.namespace.as_deref().unwrap_or_default(),
                        pod.metadata.name.as_deref().unwrap_or_default(),
                    )
                    .await
                {
                    Ok(mirror) if is_mirror(&mirror) => {
                        mirrors.observed(&full_name, Some(Arc::new(mirror)));
                        Ok(())
                    }
                    Ok(_) => Err(ApiError::AlreadyExists {
                        what: format!("create mirror pod {full_name}: a pod that is no mirror has this name"),
                    }),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            }
        }
        Write::Delete { namespace, name, uid } => {
            info!(mirror = %format!("{namespace}/{name}"), "deleting a mirror pod whose static pod is gone or changed");
            match cluster.delete_pod(&namespace, &name, &uid, 0).await {
                Ok(()) | Err(ApiError::NotFound { .. } | ApiError::Conflict { .. }) => {
                    mirrors.state().retired.remove(&uid);
                    mirrors.observed(&format!("{name}_{namespace}"), None);
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::kube::fake::FakeCluster;
    use crate::pod::resources::Amounts;
    use crate::pod::testing::{pod_yaml, yaml};

    fn static_pod(name: &str) -> Arc<Pod> {
        Arc::new(pod_yaml(&format!(
            "{{metadata: {{name: {name}, annotations: {{kubernetes.io/config.hash: new}}}},
              spec: {{containers: [{{name: c, image: i}}]}}}}"
        )))
    }

    fn mirror(name: &str, hash: &str, more: &str) -> Arc<Pod> {
        Arc::new(pod_yaml(&format!(
            "{{metadata: {{name: {name}, uid: uid-{name}, {more}
               annotations: {{kubernetes.io/config.hash: {hash}, kubernetes.io/config.mirror: {hash}}}}}}}"
        )))
    }

    /// What is due where the static pod `web` is wanted and this mirror is there.
    fn due(mirror: Option<Arc<Pod>>) -> Vec<Write> {
        let mirrors = Mirrors::default();
        mirrors.source_synced(Source::Api);
        mirrors.source_synced(Source::File);
        mirrors.wanted("web_shop", Some(static_pod("web")));
        mirrors.observed("web_shop", mirror);
        mirrors.due(&BTreeSet::from([Source::File]))
    }

    #[test]
    fn a_mirror_is_made_kept_or_taken_away() {
        assert_eq!(due(None), [Write::Create(static_pod("web"))]);
        assert_eq!(due(Some(mirror("web", "new", ""))), []);
        let delete = Write::Delete { namespace: "shop".into(), name: "web".into(), uid: "uid-web".into() };
        assert_eq!(due(Some(mirror("web", "old", ""))), [delete]);
    }

    #[test]
    fn a_mirror_speaks_for_the_pod_whose_hash_it_has_once_the_api_has_spoken() {
        let mirrors = Mirrors::default();
        let (same, other) = (mirror("web", "new", ""), mirror("web", "old", ""));
        mirrors.observed("web_shop", Some(same.clone()));
        assert_eq!(mirrors.of(&static_pod("web")), Mirror::Unknown);
        assert!(mirrors.api_has_spoken().now_or_never().is_none());
        mirrors.source_synced(Source::Api);
        mirrors.source_synced(Source::Api);
        assert!(mirrors.api_has_spoken().now_or_never().is_some());
        assert_eq!(mirrors.of(&static_pod("web")), Mirror::Present(same));
        assert_eq!(mirrors.of(&static_pod("db")), Mirror::Absent);
        mirrors.observed("web_shop", Some(other));
        assert_eq!(mirrors.of(&static_pod("web")), Mirror::Absent);
        mirrors.observed("web_shop", Some(mirror("web", "new", "")));
        mirrors.retire("web_shop");
        assert_eq!(mirrors.of(&static_pod("web")), Mirror::Absent, "it is of a life that has ended");
    }

    #[test]
    fn a_mirror_that_leaves_is_left_alone() {
        let leaving = |grace: u32| {
            let more = format!("deletionTimestamp: 2026-01-01T12:00:00Z, deletionGracePeriodSeconds: {grace},");
            due(Some(mirror("web", "new", &more)))
        };
        assert_eq!(leaving(0), [], "a finalizer holds it, which no second deletion changes");
        assert!(matches!(leaving(30)[..], [Write::Delete { .. }]), "nothing is left to wait for");
    }

    #[tokio::test(start_paused = true)]
    async fn one_mirror_that_is_refused_delays_no_other() {
        let (mirrors, cluster) = (Mirrors::default(), FakeCluster::default());
        let node: Node = yaml("{metadata: {name: n1, uid: u1}}");
        let view = NodeView {
            host_ips: vec![],
            allocatable: Amounts::default(),
            node: Arc::new(node),
            is_registered: true,
            pod_cidrs: vec![],
        };
        let (_view, node) = watch::channel(Some(Arc::new(view)));
        let refused = || ApiError::Conflict { what: "create mirror".into(), message: "a webhook says no".into() };
        (0..3).for_each(|_| cluster.fail_next("create shop/bad", refused()));
        mirrors.source_synced(Source::Api);
        mirrors.wanted("bad_shop", Some(static_pod("bad")));
        let files = BTreeSet::from([Source::File]);
        let task = run(mirrors.clone(), Arc::new(cluster.clone()), node, files, Clock::system());
        let _task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(task));
        tokio::time::sleep(Duration::from_millis(10)).await;

        mirrors.wanted("good_shop", Some(static_pod("good")));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(cluster.call_names(), ["create shop/bad", "create shop/good"], "each at its own time");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(cluster.pod("shop", "bad").is_some(), "asked again until it was taken");
    }
}
