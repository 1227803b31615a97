//! A simulated API server, with the little of it that a node agent touches.
//!
//! It refuses calls, loses answers, breaks watches, and repeats old versions. `calls.rs` is what
//! the agent may ask of it, `users.rs` what others do, `merge.rs` how patches are merged. Checked
//! at the write (`checks.rs`): every status is a legal successor of the one before, and a pod is
//! told to have ended, or taken out of the API, only when the node is done with it.

mod calls;
mod checks;
mod merge;
mod users;

pub use self::checks::{OUT_OF_CPU, OUT_OF_PODS};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ferrolet::kube::{ApiError, Change, ObjectState, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, PodStatus, Secret};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::faults::Fate;
use crate::host::SimHost;
use crate::runtime::SimRuntime;
use crate::world::World;

/// The one key of every ConfigMap.
pub const MAP_KEY: &str = "text";
/// How late a call that gets no answer may take effect.
const LATE_MAX: Duration = Duration::from_secs(9);
/// When a real client gives up.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct SimCluster {
    world: World,
    /// The node, to hold against what is written about it.
    node: (SimRuntime, SimHost),
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    version: u64,
    pods: BTreeMap<(String, String), Pod>,
    node: Option<Node>,
    lease: Option<Lease>,
    config_maps: BTreeMap<String, ConfigMap>,
    watchers: Vec<mpsc::UnboundedSender<Change<Pod>>>,
    node_watchers: Vec<mpsc::UnboundedSender<Change<Node>>>,
    map_watchers: Vec<(String, mpsc::UnboundedSender<ObjectState<ConfigMap>>)>,
    secret_watchers: Vec<(String, mpsc::UnboundedSender<ObjectState<Secret>>)>,
    down_until: Option<Instant>,
    /// Names of static pods that were put back while the API was away, until their mirrors
    /// are replaced: the agent may have had no way to tell that these are of another life.
    put_back: BTreeSet<String>,
    /// Pods this life of the agent may have heard of.
    known: BTreeSet<String>,
    /// The most CPU that each pod ever asked for, by UID, in thousandths.
    asked: BTreeMap<String, u64>,
    /// When the agent began its life.
    life_began: Option<Instant>,
    /// Pods that were told to have ended while no clock of this life of the agent knew that they
    /// had been active for too long.
    ended_in_time: BTreeSet<String>,
    /// Statuses and events that were written since the record was last taken: the object's
    /// name and the call.
    writes: Vec<(String, &'static str)>,
}

type Effect<T> = Box<dyn FnOnce(&SimCluster) -> Result<T> + Send>;

impl SimCluster {
    pub fn new(world: World, runtime: SimRuntime, host: SimHost) -> Self {
        SimCluster { world, node: (runtime, host), state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing that holds the cluster can panic")
    }

    pub fn pods(&self) -> Vec<Pod> {
        self.state().pods.values().cloned().collect()
    }

    pub fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        self.state().pods.get(&key(namespace, name)).cloned()
    }

    pub fn node(&self) -> Option<Node> {
        self.state().node.clone()
    }

    pub fn lease(&self) -> Option<Lease> {
        self.state().lease.clone()
    }

    pub fn config_map(&self, name: &str) -> Option<ConfigMap> {
        self.state().config_maps.get(name).cloned()
    }

    /// Takes the record of writes: object name and call.
    pub fn take_writes(&self) -> Vec<(String, &'static str)> {
        std::mem::take(&mut self.state().writes)
    }

    fn show_maps(&self, state: &mut State, which: impl Fn(&str) -> bool) {
        let State { map_watchers, secret_watchers, config_maps, .. } = state;
        map_watchers.retain(|(name, watcher)| !which(name) || watcher.send(map_state(config_maps, name)).is_ok());
        secret_watchers.retain(|(name, watcher)| !which(name) || watcher.send(secret_state(config_maps, name)).is_ok());
    }

    pub async fn outage(&self, length: Duration) {
        self.world.log(|| format!("API server goes away for {length:?}"));
        {
            let mut state = self.state();
            state.down_until = state.down_until.max(Some(Instant::now() + length));
        }
        tokio::time::sleep(length).await;
        {
            let mut state = self.state();
            if state.down_until.is_none_or(|until| until > Instant::now()) {
                return;
            }
            state.down_until = None;
        }
        self.world.log(|| "API server is back".into());
        self.relist();
    }

    /// If it was to go on being away, it is back.
    pub fn calm(&self) {
        if self.state().down_until.take().is_some() {
            self.relist();
        }
    }

    /// Every watch starts over, as after a reconnect that came too late.
    pub fn relist(&self) {
        let mut state = self.state();
        if state.down_until.is_some() {
            return;
        }
        self.world.log(|| "every watch starts over".into());
        let listed: Vec<Pod> = state.pods.values().cloned().collect();
        self.tell(&mut state, Change::Listed(listed));
        let nodes = state.node.iter().cloned().collect();
        self.tell_node(&mut state, Change::Listed(nodes));
        self.show_maps(&mut state, |_| true);
    }

    fn tell_node(&self, state: &mut State, change: Change<Node>) {
        if state.down_until.is_none() {
            state.node_watchers.retain(|watcher| watcher.send(change.clone()).is_ok());
        }
    }

    fn put(&self, state: &mut State, mut pod: Pod) -> Pod {
        state.version += 1;
        pod.metadata.resource_version = Some(state.version.to_string());
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        state.note_asked(&pod);
        let before = state.pods.insert(key(&namespace, &name), pod.clone());
        if self.world.stream_trouble() {
            match (before, self.world.random(|random| random.u32(0..3))) {
                // An old version once more, then the new one.
                (Some(before), 0) => self.tell(state, Change::Applied(Box::new(before))),
                (_, 1) => {
                    let listed: Vec<Pod> = state.pods.values().cloned().collect();
                    self.tell(state, Change::Listed(listed));
                }
                _ => self.tell(state, Change::Applied(Box::new(pod.clone()))),
            }
        }
        self.tell(state, Change::Applied(Box::new(pod.clone())));
        pod
    }

    fn remove(&self, state: &mut State, namespace: &str, name: &str) {
        if let Some(pod) = state.pods.remove(&key(namespace, name)) {
            self.world.log(|| format!("pod {name} leaves the API"));
            state.put_back.remove(name);
            self.tell(state, Change::Deleted(Box::new(pod)));
        }
    }

    fn tell(&self, state: &mut State, change: Change<Pod>) {
        if state.down_until.is_none() {
            state.watchers.retain(|watcher| watcher.send(change.clone()).is_ok());
        }
    }

    async fn call<T: Send + 'static>(&self, what: String, effect: Effect<T>) -> Result<T> {
        let fate = self.world.fate().await;
        if self.state().down_until.is_some() {
            return Err(ApiError::Unavailable { what, message: "connection refused".into() });
        }
        match fate {
            Fate::Good => effect(self),
            Fate::Refused => Err(ApiError::Unavailable { what, message: "simulated 500".into() }),
            Fate::Lost => {
                let _ = effect(self);
                Err(ApiError::Unavailable { what, message: "simulated loss of the answer".into() })
            }
            Fate::Hangs { takes_effect } => {
                let deadline = Instant::now() + ANSWER_DEADLINE;
                // While the caller still waits: a connection that is given up takes what
                // was not done yet with it.
                if takes_effect {
                    self.world.be_late(LATE_MAX).await;
                    let _ = effect(self);
                }
                tokio::time::sleep_until(deadline).await;
                Err(ApiError::Unavailable { what, message: "no answer in time".into() })
            }
        }
    }
}

pub fn phase(status: &PodStatus) -> &str {
    status.phase.as_deref().unwrap_or_default()
}

pub fn is_terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.uid.as_deref().is_some_and(|uid| uid.starts_with("mirror-"))
}

/// A status on one line, for the log.
fn told(status: &PodStatus) -> String {
    let mut text = phase(status).to_owned();
    for container in status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten()) {
        let state = container.state.clone().unwrap_or_default();
        let state = match (state.running, state.terminated, state.waiting) {
            (Some(_), ..) => "running".to_owned(),
            (_, Some(exit), _) => format!("exited {}", exit.exit_code),
            (.., Some(waiting)) => waiting.reason.unwrap_or_default(),
            _ => "nothing".to_owned(),
        };
        text.push_str(&format!(", {} {state} ({})", container.name, container.restart_count));
    }
    text
}

fn map_state(maps: &BTreeMap<String, ConfigMap>, name: &str) -> ObjectState<ConfigMap> {
    maps.get(name).map_or(ObjectState::Absent, |map| ObjectState::Present(Box::new(map.clone())))
}

/// Beside each ConfigMap there is a Secret of the same name with the same content.
fn secret_state(maps: &BTreeMap<String, ConfigMap>, name: &str) -> ObjectState<Secret> {
    maps.get(name).map_or(ObjectState::Absent, |map| {
        let data = map.data.iter().flatten();
        let data = data.map(|(key, text)| (key.clone(), ByteString(text.clone().into_bytes()))).collect();
        let secret = Secret { metadata: map.metadata.clone(), data: Some(data), ..Secret::default() };
        ObjectState::Present(Box::new(secret))
    })
}

fn key(namespace: &str, name: &str) -> (String, String) {
    (namespace.to_owned(), name.to_owned())
}
