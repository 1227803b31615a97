//! Probes: whether containers have started, are alive, and are ready.
//!
//! A pod's worker owns one [`PodProbes`]. At each pass it has it look at the pod: `wanted.rs`,
//! a pure function, says which probes should run now, and the difference is started and
//! ended. Each probe is one task (`task.rs`) that sleeps until its time comes, makes its call
//! (`attempt.rs`), counts the result (`counter.rs`, pure) and, when its thresholds decide
//! something, notes it on the pod's board and wakes the worker. Between two runs a probe
//! costs a timer and nothing else.
//!
//! Tasks: one per container instance and kind of probe, while it has something to find out.
//! In: the pod, what the runtime holds of it, its address. Out: a [`Standing`] per instance,
//! which plan and status read; events; wake-ups.
//!
//! Always true: a decision needs its threshold of results in a row, and what could not be
//! asked is no result; a standing belongs to one instance and ends with it; what was ready or
//! started under an earlier life of the agent stays so until a probe decides otherwise. Until it
//! can be known how an instance stood, that is taken from how long it has run.

mod attempt;
mod counter;
mod settings;
mod task;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::clock::Clock;
use crate::cri::ContainerId;
use crate::events::Recorder;
use crate::handlers::Caller;
use crate::metrics;
use crate::metrics::probes::{Probe, Tally};
use crate::pleg::PodRuntime;
use crate::pod::{PodRef, PodUid};
use task::Task;
use wanted::Key;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What probes say of one running instance. `None` is a kind of probe it does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub started: Option<bool>,
    pub ready: Option<bool>,
    /// The probe for which it has to be killed.
    pub failed: Option<ProbeKind>,
}

impl Standing {
    pub fn is_started(&self) -> bool {
        self.started.unwrap_or(true)
    }
}

/// Standings by instance. One that is not in it has no probes.
pub type Standings = BTreeMap<ContainerId, Standing>;

/// What all probes use. Clones share it.
#[derive(Clone)]
pub struct Probes {
    shared: Arc<Shared>,
}

struct Shared {
    caller: Caller,
    clock: Clock,
    recorder: Recorder,
    user_agent: String,
    wake: Box<dyn Fn(&PodUid) + Send + Sync>,
}

impl Probes {
    /// `version` is what this agent claims to be: `v1.36.0+…`.
    pub fn new(
        caller: Caller,
        clock: Clock,
        recorder: Recorder,
        version: &str,
        wake: impl Fn(&PodUid) + Send + Sync + 'static,
    ) -> Self {
        let user_agent = user_agent("kube-probe", version);
        Probes { shared: Arc::new(Shared { caller, clock, recorder, user_agent, wake: Box::new(wake) }) }
    }

    pub fn of_pod(&self, uid: &PodUid) -> PodProbes {
        PodProbes {
            shared: self.shared.clone(),
            uid: uid.clone(),
            board: Arc::default(),
            tasks: BTreeMap::new(),
            tallies: BTreeMap::new(),
            has_looked: false,
        }
    }
}

/// `kube-probe/1.36` for version `v1.36.2`.
pub fn user_agent(client: &str, version: &str) -> String {
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    format!("{client}/{major}.{minor}")
}

/// How a pod is, as far as its probes care.
pub struct Look<'a> {
    pub pod: &'a Arc<Pod>,
    pub runtime: &'a PodRuntime,
    /// Where its servers listen.
    pub ip: Option<IpAddr>,
    pub told: Told<'a>,
    pub stage: Stage,
}

/// What is known of how instances stood before they were looked at.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// What was told last, by us or by an earlier life.
    Known(Option<&'a PodStatus>),
    /// An earlier life may have told something, but who knows it cannot be asked yet. What had run
    /// for long by this time is taken to have started and to be ready.
    Unknown { by: Timestamp },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Containers run and are kept running.
    Syncing,
    /// They are being stopped: whether they are ready still matters to their clients, and
    /// nothing else does.
    Stopping,
    /// Nothing runs.
    Over,
}

/// The probes of one pod. Dropping it ends them.
pub struct PodProbes {
    shared: Arc<Shared>,
    uid: PodUid,
    board: Arc<Board>,
    tasks: BTreeMap<Key, AbortOnDropHandle<()>>,
    /// By container and kind, over all its instances.
    tallies: BTreeMap<(String, ProbeKind), Arc<Tally>>,
    has_looked: bool,
}

/// What the tasks of one pod share with its worker.
#[derive(Default)]
struct Board {
    state: Mutex<BoardState>,
    changed: Notify,
}

#[derive(Default)]
struct BoardState {
    /// The newest version of the pod, for events.
    pod: Arc<Pod>,
    ip: Option<IpAddr>,
    standings: Standings,
    /// Instances of which nothing was known, and what no probe has decided since.
    assumed: BTreeMap<ContainerId, Assumed>,
}

/// What of a standing is only assumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Assumed {
    All,
    /// That it has started; a probe has found out whether it is ready.
    Start,
}

impl Board {
    fn state(&self) -> MutexGuard<'_, BoardState> {
        self.state.lock().expect("nothing that holds the board can panic")
    }
}

impl PodProbes {
    /// Starts and ends probes as the pod is now, and says how its instances stand.
    pub fn look(&mut self, look: &Look<'_>) -> Standings {
        let mut state = self.board.state();
        state.pod = look.pod.clone();
        state.ip = look.ip;
        let BoardState { standings: before, assumed, .. } = &mut *state;
        let mut found = BTreeMap::new();
        if matches!(look.told, Told::Known(_)) {
            for (id, assumed) in std::mem::take(assumed) {
                let standing = before.remove(&id).filter(|_| assumed == Assumed::Start);
                found.extend(standing.map(|standing| (id, standing.ready)));
            }
        }
        let mut standings = wanted::standings(look, before);
        for (id, ready) in found {
            // Of one that has not even started yet, nothing that was found counts.
            if let Some(standing) = standings.get_mut(&id).filter(|standing| standing.is_started()) {
                standing.ready = ready;
            }
        }
        if matches!(look.told, Told::Unknown { .. }) {
            let new = standings.keys().filter(|id| !before.contains_key(*id));
            assumed.extend(new.map(|id| (id.clone(), Assumed::All)));
            assumed.retain(|id, _| standings.contains_key(id));
        }
        *before = standings;
        let wanted = wanted::wanted(look, &state.standings);
        let standings = state.standings.clone();
        drop(state);

        // A probe that panicked starts afresh; one that has decided is not wanted any more.
        self.tasks.retain(|key, task| wanted.contains_key(key) && !task.is_finished());
        // Found running at the first look: they are older than this life of the agent, and
        // all of them are found at once.
        let adopted = !self.has_looked;
        for (key, target) in wanted {
            if !self.tasks.contains_key(&key) {
                let tally = self.tally(look.pod, &target);
                let task = Task::new(self.shared.clone(), self.board.clone(), self.uid.clone(), target, adopted, tally);
                let task = tokio::spawn(task.run().instrument(tracing::Span::current()));
                self.tasks.insert(key, AbortOnDropHandle::new(task));
            }
        }
        if look.stage == Stage::Over {
            self.tallies.clear();
        }
        self.has_looked = true;
        standings
    }

    fn tally(&mut self, pod: &Pod, target: &wanted::Target) -> Arc<Tally> {
        let container = target.container.name.clone();
        let tally = self.tallies.entry((container.clone(), target.kind)).or_insert_with(|| {
            let PodRef { name, namespace, .. } = PodRef::of(pod);
            let (kind, pod_uid) = (target.kind.as_str(), self.uid.to_string());
            metrics::probes::tally(Probe { kind, container, pod: name, namespace, pod_uid })
        });
        tally.clone()
    }

    /// How the instances stand now, by the last look.
    pub fn standings(&self) -> Standings {
        self.board.state().standings.clone()
    }

    /// Waits until a standing has changed since the last wait.
    pub async fn changed(&self) {
        self.board.changed.notified().await;
    }
}
