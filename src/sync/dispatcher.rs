//! The dispatcher: which pods there are, and one worker for each.
//!
//! It turns source events into the newest wish of each pod and never waits for a worker: a
//! wish goes into a watch channel, where the next one replaces it. It also finds what nobody
//! wants any more: once every source has spoken, a pod that only the runtime, the disk or a
//! cgroup still knows gets a worker whose one task is to end it.
//!
//! Always true: of one full name one static pod lives, also where the runtime has one that an
//! earlier life of the agent, or the kubelet before us, knew by another UID.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tracing::{Instrument, error, info, info_span, warn};

use super::victims::Victims;
use super::wish::{Desired, Doom, GRACE_SECONDS_DEFAULT, Stop, StopCause};
use super::worker::{self, is_terminal};
use super::{Context, orphans, resize};
use crate::events::EventType;
use crate::metrics;
use crate::pod::containers::regular_containers;
use crate::pod::{PodRef, PodUid, Source, features};
use crate::sources::{SourceEvent, mirror as content};
use crate::status::{Cause, Verdict, readiness_gates};

/// Orphans are found by events; this looks for those whose event was lost.
const SWEEP_PERIOD: Duration = Duration::from_secs(300);
/// A worker that panicked starts again, but not in a circle.
const PANIC_RESTART_DELAY: Duration = Duration::from_secs(10);
/// Grace of a pod nobody can describe any more.
const ORPHAN_GRACE_SECONDS: i64 = 1;

pub struct Dispatcher {
    context: Arc<Context>,
    /// Sources that must have spoken before absence means anything.
    awaited: BTreeSet<Source>,
    pods: BTreeMap<PodUid, Entry>,
    /// Static pods of one full name, oldest first: only the first may live.
    static_queues: BTreeMap<String, VecDeque<PodUid>>,
    mirrors: BTreeMap<String, Arc<Pod>>,
    workers: JoinSet<PodUid>,
    worker_ids: BTreeMap<Id, PodUid>,
    /// At most one search for orphans at a time; it reads disk and runtime, so not in here.
    searches: JoinSet<Vec<(Pod, Source)>>,
    search_again: bool,
    victims: Victims,
}

/// A pod the dispatcher knows.
struct Entry {
    pod: Arc<Pod>,
    source: Source,
    /// Its source still has it.
    present: bool,
    worker: Option<watch::Sender<Desired>>,
    /// Decided over its head: it ends here, and stays in its source.
    doom: Option<Doom>,
    /// The worker panicked and will be started again, whatever the source says by then.
    crashed: bool,
}

impl Dispatcher {
    pub fn new(context: Arc<Context>, sources: BTreeSet<Source>) -> Self {
        Dispatcher {
            context,
            awaited: sources,
            pods: BTreeMap::new(),
            static_queues: BTreeMap::new(),
            mirrors: BTreeMap::new(),
            workers: JoinSet::new(),
            worker_ids: BTreeMap::new(),
            searches: JoinSet::new(),
            search_again: false,
            victims: Victims::default(),
        }
    }

    /// Runs until the sources are gone, which is when the agent stops. Workers end with it;
    /// their pods go on.
    pub async fn run(mut self, mut events: mpsc::Receiver<SourceEvent>) {
        let strangers = self.context.wakes.strangers.clone();
        let mut listed = self.context.pleg.listed();
        let mut victims = self.context.admission.victims();
        let mut sweep = tokio::time::interval(SWEEP_PERIOD);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            (self.context.turned)();
            let mut look_for_orphans = false;
            tokio::select! {
                biased;
                // Cancel-safe: a finished worker stays in the set until taken out.
                Some(ended) = self.workers.join_next_with_id() => self.worker_ended(ended),
                // Cancel-safe: a finished search stays in the set until taken out.
                Some(found) = self.searches.join_next() => {
                    for (pod, source) in found.unwrap_or_default() {
                        self.adopt_orphan(pod, source);
                    }
                    self.settle_places();
                    look_for_orphans = std::mem::take(&mut self.search_again);
                }
                // Cancel-safe: an event stays in the channel until received.
                event = events.recv() => match event {
                    Some(event) => look_for_orphans = self.source_event(event),
                    None => return,
                },
                // Cancel-safe: an unused permit stays with the Notify.
                () = strangers.notified() => look_for_orphans = true,
                // Cancel-safe: the change stays marked unseen.
                Ok(()) = listed.changed() => {
                    self.start_static_pods();
                    look_for_orphans = true;
                }
                // Cancel-safe: the change stays marked unseen.
                Ok(()) = victims.changed() => {
                    let victims = victims.borrow_and_update().clone();
                    self.preempt(&victims);
                }
                // Cancel-safe: a timer.
                () = self.victims.one_is_late() => self.tell_of_late_victims(),
                // Cancel-safe: a timer.
                _ = sweep.tick() => look_for_orphans = true,
            }
            if look_for_orphans && self.awaited.is_empty() && *self.context.pleg.listed().borrow() {
                self.search_orphans();
            }
        }
    }

    /// Takes in one event; true if the picture of all sources has just become complete.
    fn source_event(&mut self, event: SourceEvent) -> bool {
        match event {
            SourceEvent::Listed { source, mut pods } => {
                // The node takes older pods before younger ones.
                pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
                for pod in &mut pods {
                    self.leave_out_unheeded(pod);
                }
                if source == Source::Api {
                    // All of them, before one asks for the room of another.
                    for pod in pods.iter().filter(|pod| !content::is_mirror(pod)) {
                        self.context.admission.enlist(pod, source);
                    }
                }
                let mut names = BTreeSet::new();
                let mut uids = BTreeSet::new();
                for pod in &pods {
                    let reference = PodRef::of(pod);
                    if source.is_static() && !names.insert(reference.full_name()) {
                        let message = format!(
                            "Error validating pod {} from {} due to duplicate pod name \"{}\", ignoring",
                            reference.in_full(),
                            source.as_str(),
                            reference.name
                        );
                        self.context.recorder.pod(pod, None, EventType::Warning, "FailedValidation", message);
                        continue;
                    }
                    uids.insert(reference.uid);
                    self.applied(source, pod.clone());
                }
                let gone: Vec<_> = self
                    .pods
                    .iter()
                    .filter(|(uid, entry)| entry.source == source && entry.present && !uids.contains(*uid))
                    .map(|(uid, _)| uid.clone())
                    .collect();
                for uid in gone {
                    self.removed(&uid);
                }
                if source == Source::Api {
                    let listed: BTreeSet<_> = pods
                        .iter()
                        .filter(|pod| content::is_mirror(pod))
                        .map(|pod| PodRef::of(pod).full_name())
                        .collect();
                    let gone: Vec<_> = self.mirrors.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                    for name in gone {
                        self.mirror_gone(&name);
                    }
                }
                let first = self.awaited.remove(&source);
                if first {
                    info!(source = source.as_str(), pods = pods.len(), "source has reported");
                    self.context.mirrors.source_synced(source);
                    if source == Source::Api {
                        self.wake_static_pods();
                    }
                    self.start_static_pods();
                }
                first && self.awaited.is_empty()
            }
            SourceEvent::Applied { source, mut pod } => {
                self.leave_out_unheeded(&mut pod);
                self.applied(source, pod);
                false
            }
            SourceEvent::Removed { uid, .. } => {
                self.context.mirrors.gone(&uid);
                let mirror = self.mirrors.iter().find(|(_, pod)| pod.metadata.uid.as_deref() == Some(uid.as_str()));
                match mirror.map(|(name, _)| name.clone()) {
                    Some(name) => self.mirror_gone(&name),
                    None => self.removed(&uid),
                }
                false
            }
        }
    }

    /// What their mirrors tell of earlier lives can be known now.
    fn wake_static_pods(&self) {
        let at_work = |entry: &Entry| entry.source.is_static() && entry.worker.is_some();
        let uids = self.pods.iter().filter(|(_, entry)| at_work(entry)).map(|(uid, _)| uid);
        uids.for_each(|uid| self.context.wakes.wake(uid));
    }

    /// Of fields whose gate is off nobody in here knows.
    fn leave_out_unheeded(&self, pod: &mut Arc<Pod>) {
        features::leave_out_unheeded(pod, &self.context.config.launch.gates);
    }

    fn applied(&mut self, source: Source, pod: Arc<Pod>) {
        let reference = PodRef::of(&pod);
        if source == Source::Api && content::is_mirror(&pod) {
            if self.context.mirrors.is_retired(&pod) {
                return;
            }
            self.context.mirrors.observed(&reference.full_name(), Some(pod.clone()));
            self.mirrors.insert(reference.full_name(), pod);
            self.tie_mirror(&reference.full_name());
            return;
        }
        if source == Source::Api
            && let Some(status) = &self.context.status
        {
            status.observed(&reference.uid, &pod);
        }
        let uid = reference.uid.clone();
        if source.is_static() {
            // An orphan that is being ended may come back with its file, and was in no queue.
            let queue = self.static_queues.entry(reference.full_name()).or_default();
            if !queue.contains(&uid) {
                queue.push_back(uid.clone());
            }
        }
        self.context.roster.put(&uid, &pod, source);
        self.count(&uid, &pod, source);
        if let Some(entry) = self.pods.get_mut(&uid) {
            let changed = is_news(&entry.pod, &pod);
            if changed {
                resize::count_wishes(&entry.pod, &pod);
            }
            let gates = &self.context.config.launch.gates;
            if changed && let Some(message) = features::unavailable_for_change(gates, &entry.pod, &pod) {
                self.context.recorder.pod(&pod, None, EventType::Warning, "FailedNodeDeclaredFeaturesCheck", message);
            }
            entry.pod = pod;
            entry.source = source;
            entry.present = true;
            if changed {
                self.tell(&uid);
            }
        } else {
            self.pods.insert(uid.clone(), Entry::new(pod, source, true));
        }
        self.start(&uid);
    }

    fn count(&self, uid: &PodUid, pod: &Pod, source: Source) {
        let is_new = metrics::starts::seen(uid.as_str(), self.context.clock.now());
        if is_new {
            metrics::pods::CONTAINERS_PER_POD.observe([], regular_containers(pod).len() as f64);
        }
        if source == Source::Api {
            metrics::starts::shown(uid.as_str(), pod, is_new, self.context.clock.wall());
        }
    }

    fn removed(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.present = false;
        self.context.roster.remove(uid);
        if entry.worker.is_some() {
            self.tell(uid);
        } else if !entry.crashed {
            self.drop_entry(uid);
        }
    }

    /// Ends pods so that a critical one can start.
    fn preempt(&mut self, victims: &BTreeSet<PodUid>) {
        const MESSAGE: &str = "Preempted in order to admit critical pod";
        for uid in victims {
            let Some(entry) = self.pods.get_mut(uid).filter(|entry| entry.doom.is_none()) else { continue };
            let verdict =
                Verdict { cause: Cause::Disruption, reason: "Preempting".to_owned(), message: MESSAGE.to_owned() };
            entry.doom = Some(Doom { verdict, grace_seconds: None });
            warn!(pod = %PodRef::of(&entry.pod), "pod has to end for a critical one");
            self.context.recorder.pod(&entry.pod, None, EventType::Warning, "Preempting", MESSAGE);
            self.victims.watch(uid, &entry.pod, self.context.clock.now());
            self.tell(uid);
        }
    }

    fn tell_of_late_victims(&mut self) {
        const MESSAGE: &str = "Container runtime did not kill the pod within specified grace period.";
        let still = self.context.admission.victims();
        for uid in self.victims.take_late(self.context.clock.now()) {
            if let Some(entry) = self.pods.get(&uid).filter(|_| still.borrow().contains(&uid)) {
                self.context.recorder.pod(&entry.pod, None, EventType::Warning, "ExceededGracePeriod", MESSAGE);
            }
        }
    }

    fn mirror_gone(&mut self, full_name: &str) {
        if self.mirrors.remove(full_name).is_none() {
            return;
        }
        self.context.mirrors.observed(full_name, None);
        if let (Some(status), Some(uid)) = (&self.context.status, self.living_static_pod(full_name)) {
            status.api_object_gone(&uid);
        }
    }

    /// The status of a static pod goes to the mirror that carries its hash.
    fn tie_mirror(&self, full_name: &str) {
        let (Some(status), Some(mirror)) = (&self.context.status, self.mirrors.get(full_name)) else { return };
        let Some(uid) = self.living_static_pod(full_name) else { return };
        let Some(entry) = self.pods.get(&uid) else { return };
        if content::mirror_matches(mirror, &entry.pod) {
            status.observed(&uid, mirror);
        }
    }

    fn living_static_pod(&self, full_name: &str) -> Option<PodUid> {
        self.static_queues.get(full_name)?.front().cloned()
    }

    /// Gives a pod its worker, unless an older static pod of its name still has to end.
    fn start(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get(uid).filter(|entry| entry.worker.is_none() && !entry.crashed) else { return };
        let (pod, source, is_present) = (entry.pod.clone(), entry.source, entry.present);
        let reference = PodRef::of(&pod);
        // An orphan waits for nobody: it only ends. Who else has the name of one that is to run is not
        // known before everything is listed; it counts until then, and keeps its mirror.
        let is_to_run = source.is_static() && pod.spec.is_some();
        let is_listed = *self.context.pleg.listed().borrow();
        let has_turn = if is_listed { Self::has_room } else { Self::is_first };
        if is_to_run && !has_turn(self, &reference, uid) {
            info!(pod = %reference, "waiting for the static pod of the same name to end");
            return;
        }
        if is_present {
            if is_to_run {
                self.context.mirrors.wanted(&reference.full_name(), Some(pod.clone()));
            }
            self.context.admission.enlist(&pod, source);
        }
        if is_to_run && !is_listed {
            return;
        }
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let (sender, receiver) = watch::channel(desired(entry));
        entry.worker = Some(sender);
        let span = info_span!("pod", pod = %reference, uid = %uid);
        let task = worker::run(self.context.clone(), uid.clone(), receiver).instrument(span);
        let handle = self.workers.spawn(task);
        self.worker_ids.insert(handle.id(), uid.clone());
        self.tie_mirror(&reference.full_name());
    }

    /// Whether it is this static pod's turn to live under its name. Whoever else does according to
    /// the runtime, and is of a source that has spoken and does not know it, ends for it at once: the
    /// API, which would have to speak for an orphan to be one, may be what the pod is to become.
    fn has_room(&mut self, reference: &PodRef, uid: &PodUid) -> bool {
        let full_name = reference.full_name();
        let mut is_alone = true;
        for (rival, source) in self.context.pleg.static_pods(&full_name) {
            if self.pods.contains_key(&rival) {
                continue;
            }
            is_alone = false;
            if !self.awaited.contains(&source) {
                self.adopt_orphan(orphans::orphan(&reference.name, &reference.namespace, &rival), source);
            }
        }
        is_alone && self.is_first(reference, uid)
    }

    fn is_first(&mut self, reference: &PodRef, uid: &PodUid) -> bool {
        self.static_queues.get(&reference.full_name()).and_then(VecDeque::front) == Some(uid)
    }

    /// Something that static pods may have waited for has come.
    fn start_static_pods(&mut self) {
        let first: Vec<_> = self.static_queues.values().filter_map(|queue| queue.front().cloned()).collect();
        first.iter().for_each(|uid| self.start(uid));
    }

    /// Hands a worker the newest wish. A stop is never taken back and its grace only shrinks.
    fn tell(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get(uid) else { return };
        let Some(worker) = &entry.worker else { return };
        let mut wish = desired(entry);
        worker.send_modify(|told| {
            if let (Some(now), Some(before)) = (&mut wish.stop, told.stop) {
                now.grace_seconds = now.grace_seconds.min(before.grace_seconds);
            }
            wish.stop = wish.stop.or(told.stop);
            *told = wish;
        });
    }

    fn worker_ended(&mut self, ended: Result<(Id, PodUid), JoinError>) {
        let (id, panicked) = match &ended {
            Ok((id, _)) => (*id, false),
            Err(error) => (error.id(), true),
        };
        let Some(uid) = self.worker_ids.remove(&id) else { return };
        let Some(entry) = self.pods.get_mut(&uid) else { return };
        entry.worker = None;
        if panicked {
            error!(pod = %PodRef::of(&entry.pod), "pod worker panicked, will start it again");
            entry.crashed = true;
            let (context, woken) = (self.context.clone(), uid.clone());
            let handle = self.workers.spawn(async move {
                tokio::time::sleep(PANIC_RESTART_DELAY).await;
                context.pleg.mark_stale(&woken);
                woken
            });
            self.worker_ids.insert(handle.id(), uid);
            return;
        }
        if std::mem::take(&mut entry.crashed) {
            self.start(&uid);
        } else if !entry.present {
            self.drop_entry(&uid);
        } else if !entry.is_ending() {
            // Put back while it was ending: the same name and UID, and yet another life.
            metrics::pods::RESTARTED_PODS.add([metrics::pods::static_label(entry.source.is_static())]);
            self.life_is_over(&uid);
            self.start(&uid);
        }
    }

    /// Nothing told of a pod's life so far is to be taken for its next one's.
    fn life_is_over(&mut self, uid: &PodUid) {
        self.context.pleg.forget(uid);
        self.context.admission.forget(uid);
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.doom = None;
        }
        if let Some(status) = &self.context.status {
            status.forget(uid);
        }
        // The mirror of this name is not an orphan's.
        let lived = |entry: &&Entry| entry.source.is_static() && entry.pod.spec.is_some();
        let Some(entry) = self.pods.get(uid).filter(lived) else { return };
        let full_name = PodRef::of(&entry.pod).full_name();
        self.context.mirrors.retire(&full_name);
        self.mirrors.remove(&full_name);
    }

    /// Forgets a pod whose worker is done and whose source no longer has it.
    fn drop_entry(&mut self, uid: &PodUid) {
        self.life_is_over(uid);
        let Some(entry) = self.pods.remove(uid) else { return };
        metrics::starts::forget(uid.as_str());
        if !entry.source.is_static() {
            return;
        }
        let full_name = PodRef::of(&entry.pod).full_name();
        let Some(queue) = self.static_queues.get_mut(&full_name) else { return };
        queue.retain(|queued| queued != uid);
        match queue.front().cloned() {
            Some(next) => self.start(&next),
            None => {
                self.static_queues.remove(&full_name);
                self.context.mirrors.wanted(&full_name, None);
            }
        }
    }

    /// Looks for pods that only this machine still knows.
    fn search_orphans(&mut self) {
        if !self.searches.is_empty() {
            self.search_again = true;
            return;
        }
        let known: BTreeSet<PodUid> = self.pods.keys().cloned().collect();
        let context = self.context.clone();
        self.searches.spawn(async move { orphans::find(&context, &known).await });
    }

    /// Every pod is known that was here before.
    fn settle_places(&self) {
        let in_runtime: BTreeSet<PodUid> = self.context.pleg.known().into_iter().collect();
        self.context.admission.settle(|uid| in_runtime.contains(uid));
    }

    fn adopt_orphan(&mut self, pod: Pod, source: Source) {
        let reference = PodRef::of(&pod);
        let uid = reference.uid.clone();
        // It may have come in through a source since the search began.
        if self.pods.contains_key(&uid) {
            return;
        }
        info!(pod = %reference, %uid, "no source knows this pod, ending it");
        if self.context.pleg.named(&uid).is_some() {
            metrics::pods::ORPHANED_RUNTIME_PODS.add([]);
        }
        let full_name = reference.full_name();
        let is_alive = |uid: &PodUid| self.pods.get(uid).is_some_and(Entry::may_run);
        let first = self.static_queues.get(&full_name).and_then(VecDeque::front);
        // A static pod of its name waits for its end, unless it came to light too late.
        let source = if first.is_some_and(is_alive) { Source::Api } else { source };
        if source.is_static() {
            self.static_queues.entry(full_name).or_default().push_front(uid.clone());
        }
        self.pods.insert(uid.clone(), Entry::new(Arc::new(pod), source, false));
        self.start(&uid);
    }
}

impl Entry {
    fn new(pod: Arc<Pod>, source: Source, present: bool) -> Self {
        Entry { pod, source, present, worker: None, doom: None, crashed: false }
    }

    /// It has begun to, and is no orphan.
    fn may_run(&self) -> bool {
        (self.worker.is_some() || self.crashed) && self.pod.spec.is_some()
    }

    /// The API object is being deleted; once its worker is done there is nothing to start.
    fn is_ending(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }
}

fn desired(entry: &Entry) -> Desired {
    let spec = entry.pod.spec.as_ref();
    let own_grace = spec.and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(GRACE_SECONDS_DEFAULT);
    let stop = if !entry.present {
        match spec {
            None => Some(Stop { cause: StopCause::Orphaned, grace_seconds: ORPHAN_GRACE_SECONDS }),
            Some(_) => Some(Stop { cause: StopCause::Removed, grace_seconds: own_grace.max(1) }),
        }
    } else if entry.is_ending() {
        let grace = entry.pod.metadata.deletion_grace_period_seconds.unwrap_or(own_grace);
        Some(Stop { cause: StopCause::Deleted, grace_seconds: grace.max(1) })
    } else {
        None
    };
    Desired { pod: entry.pod.clone(), source: entry.source, stop, doom: entry.doom.clone(), places: Arc::default() }
}

/// Whether the pod's worker has to hear of it. Our own status writes come back through the
/// watch, and are no reason to look again; but that the API knows how the pod ended is one, and
/// so is what others say of its readiness there.
fn is_news(before: &Pod, now: &Pod) -> bool {
    !same_but_for_status(before, now)
        || is_terminal(before) != is_terminal(now)
        || !readiness_gates(before).eq(readiness_gates(now))
}

fn same_but_for_status(a: &Pod, b: &Pod) -> bool {
    a.spec == b.spec
        && a.metadata.labels == b.metadata.labels
        && a.metadata.annotations == b.metadata.annotations
        && a.metadata.deletion_timestamp == b.metadata.deletion_timestamp
        && a.metadata.deletion_grace_period_seconds == b.metadata.deletion_grace_period_seconds
        && a.metadata.generation == b.metadata.generation
}
