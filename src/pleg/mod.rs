//! PLEG, the pod lifecycle event generator: what the runtime really holds, pod by pod.
//!
//! One task (`task.rs`) listens to the runtime's event stream, relists as a safety net, and
//! polls the runtime's own health. It makes no call on behalf of a pod: an event or a
//! difference in the list only marks the pod's cache entry stale and wakes its worker,
//! which re-reads exactly that pod when it looks. A runtime that hangs on one pod
//! therefore holds up one worker.
//!
//! In: CRI events, list calls, `changing` from workers around calls that change something.
//! Out: `PodRuntime` snapshots, wake-ups, `RuntimeHealth` (watch).
//!
//! Always true: events are hints; the truth is a read that began after the last hint.

mod health;
mod last_words;
mod state;
mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

pub use health::{NOT_ASKED_YET, Problems, RUNTIME_DOWN_AFTER, RuntimeHealth};
pub use state::PodRuntime;
pub use task::{PlegConfig, run};

use crate::cri::{self, Container, ContainerId, ContainerStateKind, CriError, Runtime, SandboxState, Scope};
use crate::host::Host;
use crate::metrics;
use crate::pod::{PodUid, Source};

/// Called with a pod that may have changed. Must not block.
pub type Wake = Arc<dyn Fn(&PodUid) + Send + Sync>;

/// Termination messages are cut at this size, as upstream does.
const TERMINATION_MESSAGE_BYTES_MAX: usize = 4096;

/// The cache and the way to refresh it; clones share both.
#[derive(Clone)]
pub struct Pleg {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Arc<dyn Runtime>,
    host: Arc<dyn Host>,
    wake: Wake,
    entries: Mutex<BTreeMap<PodUid, Entry>>,
    listed: watch::Sender<bool>,
    /// Opens with the first list. Unlike a watch it lets workers through in the order they
    /// came, so that a seed tells the same story twice.
    gate: Semaphore,
    health: watch::Sender<RuntimeHealth>,
}

/// How much the runtime holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Pods whose sandbox is ready.
    pub running_pods: usize,
    pub containers: BTreeMap<ContainerStateKind, usize>,
}

/// See [`Pleg::changing`].
#[must_use]
pub struct Changing {
    pleg: Pleg,
    uid: PodUid,
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.pleg.mark_stale(&self.uid);
    }
}

/// One pod in the cache.
#[derive(Default)]
struct Entry {
    runtime: Arc<PodRuntime>,
    /// Counts the hints; a read is current only if none came in since it began.
    hints: u64,
    read_at_hint: Option<u64>,
    /// What the last relist saw, to tell the next one whether anything moved.
    listed: Vec<(String, Listed)>,
    /// Containers that may have changed though their state did not.
    distrusted: BTreeSet<ContainerId>,
    /// What its sandbox says, which is the same for as long as the pod has one.
    named: Option<Named>,
    /// Somebody asked for this pod, and says when it can be forgotten.
    is_wanted: bool,
}

/// Who a pod is, by its sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub namespace: String,
    pub source: Source,
}

impl Named {
    fn of(sandbox: &cri::Sandbox) -> Self {
        Named {
            name: sandbox.pod_name.clone(),
            namespace: sandbox.pod_namespace.clone(),
            source: Source::of_annotations(&sandbox.annotations),
        }
    }
}

impl Entry {
    /// As far as events and lists have told.
    fn holds_any(&self) -> bool {
        !self.runtime.is_empty() || !self.listed.is_empty()
    }

    fn is_rumour(&self) -> bool {
        !self.is_wanted && !self.holds_any()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Listed {
    Sandbox { ready: bool },
    Container(ContainerStateKind),
}

impl Listed {
    fn is_ready_sandbox(self) -> bool {
        matches!(self, Listed::Sandbox { ready: true })
    }
}

impl Pleg {
    pub fn new(runtime: Arc<dyn Runtime>, host: Arc<dyn Host>, wake: Wake) -> Self {
        Pleg {
            shared: Arc::new(Shared {
                runtime,
                host,
                wake,
                entries: Mutex::default(),
                listed: watch::Sender::new(false),
                gate: Semaphore::new(0),
                health: watch::Sender::new(RuntimeHealth::default()),
            }),
        }
    }

    /// Health of the runtime as last seen.
    pub fn health(&self) -> watch::Receiver<RuntimeHealth> {
        self.shared.health.subscribe()
    }

    /// Turns true once everything the runtime holds has been listed.
    pub fn listed(&self) -> watch::Receiver<bool> {
        self.shared.listed.subscribe()
    }

    /// Returns once everything has been listed; for the many who wait for nothing else.
    pub async fn everything_listed(&self) {
        let _permit = self.shared.gate.acquire().await.expect("the gate is never closed");
    }

    /// Pods the runtime holds anything of, as far as events and lists have told.
    pub fn known(&self) -> Vec<PodUid> {
        self.entries().iter().filter(|(_, entry)| entry.holds_any()).map(|(uid, _)| uid.clone()).collect()
    }

    /// Static pods of this full name of which the last list had anything, and where they came from.
    pub fn static_pods(&self, full_name: &str) -> Vec<(PodUid, Source)> {
        let entries = self.entries();
        let of_name = |(uid, entry): (&PodUid, &Entry)| {
            let Named { name, namespace, source } = entry.named.as_ref().filter(|_| entry.holds_any())?;
            let is_it = source.is_static() && full_name == format!("{name}_{namespace}");
            is_it.then(|| (uid.clone(), *source))
        };
        entries.iter().filter_map(of_name).collect()
    }

    /// How much the runtime holds, as far as events and lists have told.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        for entry in self.entries().values() {
            census.running_pods += usize::from(entry.listed.iter().any(|(_, line)| line.is_ready_sandbox()));
            for (_, line) in &entry.listed {
                if let Listed::Container(state) = line {
                    *census.containers.entry(*state).or_default() += 1;
                }
            }
        }
        census
    }

    /// Who a pod is, also while it cannot be read.
    pub fn named(&self, uid: &PodUid) -> Option<Named> {
        self.entries().get(uid)?.named.clone()
    }

    /// What the runtime holds of a pod: from the cache when nothing hinted at a change since
    /// the last read, else read afresh.
    pub async fn current(&self, uid: &PodUid) -> cri::Result<Arc<PodRuntime>> {
        let (hints, cached, distrusted) = {
            let mut entries = self.entries();
            // Everything was listed and nothing was ever seen or done of this pod: a new one.
            let is_new = *self.shared.listed.borrow() && !entries.contains_key(uid);
            let entry = entries.entry(uid.clone()).or_default();
            entry.is_wanted = true;
            if is_new {
                entry.read_at_hint = Some(entry.hints);
            }
            if entry.read_at_hint == Some(entry.hints) {
                return Ok(entry.runtime.clone());
            }
            (entry.hints, entry.runtime.clone(), entry.distrusted.clone())
        };
        let began = Instant::now();
        let fresh = Arc::new(self.read(uid, &cached, &distrusted).await?);
        metrics::pleg::READ_DURATION.took([], began.elapsed());
        let mut entries = self.entries();
        let entry = entries.entry(uid.clone()).or_default();
        if entry.hints == hints {
            entry.distrusted.clear();
        }
        if let Some(sandbox) = fresh.sandbox() {
            entry.named.get_or_insert_with(|| Named::of(sandbox));
        }
        entry.runtime = fresh.clone();
        entry.read_at_hint = Some(hints);
        entry.listed = listed_lines(&fresh);
        Ok(fresh)
    }

    /// The last read, however old. For displays, never for decisions.
    pub fn cached(&self, uid: &PodUid) -> Option<Arc<PodRuntime>> {
        self.entries().get(uid).map(|entry| entry.runtime.clone())
    }

    /// Held while calls change a pod: what is read before it is dropped, by whomever, is not
    /// believed afterwards. Dropping it where a call was given up leads to a re-read too.
    pub fn changing(&self, uid: &PodUid) -> Changing {
        Changing { pleg: self.clone(), uid: uid.clone() }
    }

    /// The next `current` reads afresh.
    pub fn mark_stale(&self, uid: &PodUid) {
        self.entries().entry(uid.clone()).or_default().hints += 1;
    }

    /// To be called, under a [`changing`](Pleg::changing), before a call that changes a
    /// container and leaves its state: its status is read again too.
    pub fn distrust(&self, uid: &PodUid, id: &ContainerId) {
        self.entries().entry(uid.clone()).or_default().distrusted.insert(id.clone());
    }

    /// Drops a pod that is gone from the runtime and from every source.
    pub fn forget(&self, uid: &PodUid) {
        self.entries().remove(uid);
    }

    /// Pods of which only hints are known, and how many: of one that was just forgotten the
    /// last event may come late.
    fn rumours(&self) -> Vec<(PodUid, u64)> {
        let entries = self.entries();
        let rumours = entries.iter().filter(|(_, entry)| entry.is_rumour());
        rumours.map(|(uid, entry)| (uid.clone(), entry.hints)).collect()
    }

    /// Drops those of the `rumours` that nothing was added to, by a list that began after the
    /// last hint, or by anybody else.
    fn forget_rumours(&self, rumours: Vec<(PodUid, u64)>) {
        let mut entries = self.entries();
        for (uid, hints) in rumours {
            if entries.get(&uid).is_some_and(|entry| entry.is_rumour() && entry.hints == hints) {
                entries.remove(&uid);
            }
        }
    }

    fn wake_all(&self) {
        let uids: Vec<_> = self.entries().keys().cloned().collect();
        uids.iter().for_each(|uid| (self.shared.wake)(uid));
    }

    fn hint(&self, uid: &PodUid) {
        self.mark_stale(uid);
        (self.shared.wake)(uid);
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<PodUid, Entry>> {
        self.shared.entries.lock().expect("nothing that holds the PLEG cache can panic")
    }

    /// Reads one pod. Statuses that cannot have changed since `cached` are taken from it:
    /// a container's status is fixed once its state is the same as before, unless somebody
    /// distrusts it.
    async fn read(
        &self,
        uid: &PodUid,
        cached: &PodRuntime,
        distrusted: &BTreeSet<ContainerId>,
    ) -> cri::Result<PodRuntime> {
        let scope = Scope::Pod(uid.clone());
        let runtime = &self.shared.runtime;
        let (sandboxes, containers) =
            futures::try_join!(runtime.list_sandboxes(&scope), runtime.list_containers(&scope))?;

        let mut read = PodRuntime::default();
        for listed in sandboxes {
            let known = cached.sandboxes.iter().find(|known| known.id == listed.id && known.state == listed.state);
            match known {
                Some(known) => read.sandboxes.push(known.clone()),
                None => match runtime.sandbox_status(&listed.id).await {
                    Ok(status) => read.sandboxes.push(status),
                    Err(CriError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        for listed in containers {
            let known = cached.containers.iter().find(|known| known.id == listed.id && known.kind() == listed.state);
            match known.filter(|known| !distrusted.contains(&known.id)) {
                Some(known) => read.containers.push(known.clone()),
                None => match runtime.container_status(&listed.id).await {
                    Ok(mut status) => {
                        // The status message has no field for it; the list has.
                        status.sandbox_id = listed.sandbox_id;
                        self.read_termination_message(&mut status).await;
                        read.containers.push(status);
                    }
                    Err(CriError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        Ok(read.sorted())
    }

    /// Joins the runtime's own message with what the container left in its termination
    /// file, or failing that (where the pod asks for it) with the end of its log.
    async fn read_termination_message(&self, container: &mut Container) {
        let log_path = container.log_path.clone();
        let path = container.annotations.get(cri::annotations::TERMINATION_MESSAGE_PATH).cloned().unwrap_or_default();
        let fall_back = container
            .annotations
            .get(cri::annotations::TERMINATION_MESSAGE_POLICY)
            .is_some_and(|policy| policy == "FallbackToLogsOnError");
        let file =
            container.mounts.iter().find(|mount| mount.container_path == path).map(|mount| mount.host_path.clone());
        let cri::ContainerState::Exited(exit) = &mut container.state else { return };
        let mut text = String::new();
        if let Some(file) = file.filter(|_| !path.is_empty()) {
            let read = self.shared.host.read_tail(Path::new(&file), TERMINATION_MESSAGE_BYTES_MAX, None).await;
            text = last_words::of_file(&file, read);
        }
        if text.is_empty()
            && fall_back
            && exit.exit_code != 0
            && exit.reason != "ContainerCannotRun"
            && let Ok(Some(tail)) = self
                .shared
                .host
                .read_tail(Path::new(&log_path), last_words::LOG_TAIL_BYTES, Some(last_words::LOG_LINES_MAX))
                .await
        {
            text = last_words::of_log(&tail);
        }
        exit.message = match (exit.message.is_empty(), text.is_empty()) {
            (_, true) => std::mem::take(&mut exit.message),
            (true, false) => text,
            (false, false) => format!("{}: {text}", exit.message),
        };
    }
}

fn listed_lines(runtime: &PodRuntime) -> Vec<(String, Listed)> {
    let sandboxes = runtime
        .sandboxes
        .iter()
        .map(|sandbox| (sandbox.id.to_string(), Listed::Sandbox { ready: sandbox.state == SandboxState::Ready }));
    let containers =
        runtime.containers.iter().map(|container| (container.id.to_string(), Listed::Container(container.kind())));
    let mut lines: Vec<_> = sandboxes.chain(containers).collect();
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    lines
}
