//! A simulated container runtime.
//!
//! It carries calls out in tasks of its own: a caller that gives up, or is killed, does not
//! stop what it asked for, just as a real runtime goes on. It errs before and after the
//! effect, hangs, is away for a while, and loses, doubles and delays events.
//!
//! `sandboxes.rs` and `containers.rs` say what becomes of them, `asks.rs` how containers answer
//! probes and hooks, `stops.rs` what a stop must heed, `resources.rs` what containers may use,
//! `renewals.rs` how a pod begins anew and is debugged, `trouble.rs` what breaks by itself,
//! `memory.rs` what is over and is forgotten, `questions.rs` what others want to know; `cri.rs` puts it
//! behind the agent's trait. Most invariants are checked in these, at the moment one would be
//! broken.

mod asks;
mod containers;
mod cri;
mod memory;
mod questions;
mod renewals;
mod resources;
mod sandboxes;
mod stops;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ferrolet::cri::{
    Container, ContainerId, CriError, IdRange, Result, RuntimeEvent, RuntimeEventKind, Sandbox, SandboxId, Scope,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use self::asks::Decisions;
pub use self::asks::{Asked, BROKEN_AFTER, SIDECAR_SLOT};
pub use self::containers::REMOVE_SURPLUS;
use self::memory::Told;
use self::renewals::Renewal;
use self::stops::HookRun;
use crate::faults::Fate;
use crate::host::Ground;
use crate::programs::{Ask, Manners, Program};
use crate::world::World;

/// The deadline a real client sets on each call.
const CALL_DEADLINE: Duration = Duration::from_secs(120);
/// How late a call that got no answer may take effect.
const LATE_MAX: Duration = Duration::from_secs(300);

#[derive(Clone)]
pub struct SimRuntime {
    world: World,
    ground: Ground,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    log_directories: BTreeMap<SandboxId, PathBuf>,
    /// The cgroups of their pods.
    cgroups: BTreeMap<SandboxId, String>,
    /// The user ids of sandboxes that have their own.
    users: BTreeMap<SandboxId, IdRange>,
    containers: BTreeMap<ContainerId, Instance>,
    listeners: Vec<mpsc::UnboundedSender<Result<RuntimeEvent>>>,
    /// Pods whose containers may be stopped: somebody deleted, changed or broke them.
    touched: BTreeSet<String>,
    /// Pods whose spec no source has any more: nobody can tell their sidecars.
    nameless: BTreeSet<String>,
    /// Containers without a shim: until then a stop says yes and does nothing. With when a
    /// second began, and how often they were stopped in it.
    deaf: BTreeMap<ContainerId, Deaf>,
    has_events: bool,
    down_until: Option<Instant>,
    made: u64,
    /// How often the agent has lived before.
    life: u64,
    /// What may be asked of each instance there ever was.
    manners: BTreeMap<ContainerId, Manners>,
    /// Whose they are: the pod's UID, and the container's name.
    owners: BTreeMap<ContainerId, (String, String)>,
    /// The last answer to each probe in this life of the agent, and how often it came in a row.
    in_a_row: BTreeMap<(ContainerId, Ask), (bool, u32)>,
    readiness: BTreeMap<ContainerId, Decisions>,
    /// Instances whose startup probe passed once.
    started: BTreeSet<ContainerId>,
    /// Why instances may be stopped: a probe that failed often enough, a hook that failed.
    given_up: BTreeMap<ContainerId, BTreeSet<Ask>>,
    hooks: BTreeMap<(ContainerId, Ask), HookRun>,
    /// When an instance was started for a caller that heard of it, and in which life of the agent.
    launches: BTreeMap<ContainerId, (u64, Instant)>,
    /// Instances that the agent wished to stop, whatever came of it.
    unwanted: BTreeSet<ContainerId>,
    /// The graces that somebody gave a pod, in seconds.
    graces: BTreeMap<String, BTreeSet<u64>>,
    /// When there were last more dead containers than may stay.
    crowded: Option<Instant>,
    hit_pods: BTreeSet<String>,
    /// By pod UID, the last of each: what has to go so that all begin anew.
    renewals: BTreeMap<String, Renewal>,
    /// How often a container, by pod UID and name, ended so that all begin anew.
    falls: BTreeMap<(String, String), u32>,
    /// Pods of which the agent may replace single containers, as their users wish.
    replaced: BTreeSet<String>,
    /// The instance of each container for debugging that was started, by pod UID and name.
    debuggers: BTreeMap<(String, String), ContainerId>,
    /// What was taken away, or lost, as it was then.
    forgotten: BTreeMap<ContainerId, Instance>,
    /// What the API was told of pods, by UID.
    told: BTreeMap<String, Told>,
    /// Containers that are never to be started again, by pod UID and name.
    once: BTreeSet<(String, String)>,
    /// Pods that live a second time.
    put_back: BTreeSet<String>,
    /// Changes that were asked for since the record was last taken: pod UID and call.
    changes: Vec<(String, &'static str)>,
}

struct Deaf {
    until: Instant,
    second: Instant,
    stops: u32,
}

struct Instance {
    container: Container,
    pod_uid: String,
    pod_name: String,
    pod_namespace: String,
    program: Program,
    started: Option<Instant>,
    /// The life of the agent in which it was started, if that was not over by then.
    started_in: Option<u64>,
}

/// Pods carry the names of their init containers in this annotation, which their sandboxes
/// inherit: so the runtime can tell whether their order is kept.
pub const INIT_ANNOTATION: &str = "simulation/init";
/// So begin the names of sidecars, and of no other container.
pub const SIDECAR_PREFIX: &str = "side";
/// So begin the names of containers for debugging, and of no other.
pub const DEBUGGER_PREFIX: &str = "debug";

/// Whether a container of this name is what its pod is for, or prepares that.
fn is_work(name: &str) -> bool {
    !name.starts_with(SIDECAR_PREFIX) && !name.starts_with(DEBUGGER_PREFIX)
}

impl SimRuntime {
    pub fn new(world: World, ground: Ground, has_events: bool) -> Self {
        let state = State { has_events, ..State::default() };
        SimRuntime { world, ground, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing that holds the runtime can panic")
    }

    /// The pod's spec is taken away.
    pub fn lose_spec(&self, pod_uid: &str) {
        self.state().nameless.insert(pod_uid.to_owned());
    }

    /// From now on the agent may stop containers of this pod.
    pub fn touch(&self, pod_uid: &str) {
        self.state().touched.insert(pod_uid.to_owned());
    }

    /// Runs `effect` in a task of the runtime's own, with the fate of this call.
    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        effect: impl FnOnce(&SimRuntime) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.call_with_fate(name, |runtime, _, _| effect(runtime)).await
    }

    /// As that, for an effect that heeds its fate, and whether anyone waits for it.
    async fn call_with_fate<T: Send + 'static>(
        &self,
        name: &'static str,
        effect: impl FnOnce(&SimRuntime, Fate, bool) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let runtime = self.clone();
        tokio::spawn(async move {
            let fate = runtime.world.fate().await;
            if runtime.state().down_until.is_some() {
                let _ = answer.send(Err(CriError::Unavailable { call: name, message: "connection refused".into() }));
                return;
            }
            let is_awaited = !answer.is_closed();
            let result = match fate {
                Fate::Good => effect(&runtime, fate, is_awaited),
                Fate::Refused => Err(CriError::Failed { call: name, message: "simulated refusal".into() }),
                Fate::Lost => {
                    let _ = effect(&runtime, fate, is_awaited);
                    Err(CriError::Unavailable { call: name, message: "simulated loss of the answer".into() })
                }
                Fate::Hangs { takes_effect } => {
                    if takes_effect {
                        runtime.world.be_late(LATE_MAX).await;
                        let _ = effect(&runtime, fate, false);
                    }
                    // The answer never comes: the sender is kept until the deadline has passed.
                    tokio::time::sleep(CALL_DEADLINE * 3).await;
                    drop(answer);
                    return;
                }
            };
            let _ = answer.send(result);
        });
        match tokio::time::timeout(CALL_DEADLINE, answered).await {
            Ok(Ok(result)) => result,
            _ => Err(CriError::Timeout { call: name, after: CALL_DEADLINE }),
        }
    }

    /// Tells the listeners; what they hear may be less, more, or later than what happened.
    fn emit(&self, state: &mut State, pod_uid: &str, container_id: &str, kind: RuntimeEventKind) {
        let event = RuntimeEvent { pod_uid: pod_uid.to_owned(), container_id: container_id.to_owned(), kind };
        if !self.world.stream_trouble() {
            state.listeners.retain(|listener| listener.send(Ok(event.clone())).is_ok());
            return;
        }
        match self.world.random(|random| random.u32(0..4)) {
            0 => self.world.log(|| format!("event lost: {pod_uid} {kind:?}")),
            1 => {
                state.listeners.retain(|listener| {
                    listener.send(Ok(event.clone())).and_then(|()| listener.send(Ok(event.clone()))).is_ok()
                });
            }
            2 => {
                let listeners = state.listeners.clone();
                let delay = self.world.random(|random| Duration::from_millis(random.u64(1..5000)));
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    for listener in listeners {
                        let _ = listener.send(Ok(event.clone()));
                    }
                });
            }
            _ => {
                for listener in state.listeners.drain(..) {
                    let _ = listener.send(Err(CriError::Unavailable {
                        call: "GetContainerEvents",
                        message: "simulated break".into(),
                    }));
                }
            }
        }
    }

    /// A life of the agent is over, and all it had counted.
    pub fn agent_is_gone(&self) {
        let mut state = self.state();
        state.life += 1;
        state.in_a_row.clear();
        state.told.retain(|_, told| !told.is_by_mirror);
    }

    fn matches(scope: &Scope, uid: &str) -> bool {
        match scope {
            Scope::All => true,
            Scope::Pod(wanted) => wanted.as_str() == uid,
        }
    }
}
