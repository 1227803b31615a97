//! A simulated API server, with the little of it that a node agent touches.
//!
//! It refuses calls, loses answers, breaks watches, and repeats old versions. Checked here,
//! at the write (`cluster/checks.rs`): every status is a legal successor of the one before, and
//! a pod is told to have ended, or taken out of the API, only when the node is done with it.

mod checks;

pub use self::checks::OUT_OF_PODS;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use ferrolet::kube::{ApiError, Change, Cluster, ObjectState, Result};
use futures::StreamExt;
use futures::stream::BoxStream;
use jiff::SignedDuration;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestStatus};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, PodStatus, Secret, Service, ServiceAccount};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;

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
    down_until: Option<Instant>,
    /// Names of static pods that were put back while the API was away, until their mirrors
    /// are replaced: the agent may have had no way to tell that these are of another life.
    put_back: BTreeSet<String>,
    /// Pods this life of the agent may have heard of.
    known: BTreeSet<String>,
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

    /// A user writes a ConfigMap of one key, or deletes it.
    pub fn user_sets_config_map(&self, name: &str, text: Option<String>) {
        let mut state = self.state();
        self.world.log(|| format!("user sets config map {name} to {text:?}"));
        state.version += 1;
        match text {
            Some(text) => {
                let mut map =
                    ConfigMap { data: Some(BTreeMap::from([(MAP_KEY.to_owned(), text)])), ..ConfigMap::default() };
                map.metadata.name = Some(name.to_owned());
                map.metadata.uid = Some(format!("map-{name}"));
                map.metadata.resource_version = Some(state.version.to_string());
                state.config_maps.insert(name.to_owned(), map);
            }
            None => {
                state.config_maps.remove(name);
            }
        }
        if state.down_until.is_none() {
            self.show_maps(&mut state, |watched| watched == name);
        }
    }

    fn show_maps(&self, state: &mut State, which: impl Fn(&str) -> bool) {
        let State { map_watchers, config_maps, .. } = state;
        map_watchers.retain(|(name, watcher)| !which(name) || watcher.send(map_state(config_maps, name)).is_ok());
    }

    /// A user creates a pod that the scheduler has bound here.
    pub fn user_creates(&self, mut pod: Pod) {
        let mut state = self.state();
        self.world.log(|| format!("user creates pod {}", pod.metadata.name.clone().unwrap_or_default()));
        pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
        pod.metadata.creation_timestamp = Some(Time(self.world.clock.wall()));
        state.known.extend(pod.metadata.uid.clone());
        self.put(&mut state, pod);
    }

    /// A user puts back a static pod that was removed.
    pub fn user_puts_back(&self, name: &str) {
        let mut state = self.state();
        if state.down_until.is_some() {
            state.put_back.insert(name.to_owned());
        }
    }

    /// A user deletes a pod gracefully: it gets its deletion timestamp and stays.
    pub fn user_deletes(&self, namespace: &str, name: &str, grace_seconds: i64) {
        let mut state = self.state();
        let Some(mut pod) = state.pods.get(&key(namespace, name)).cloned() else { return };
        self.world.log(|| format!("user deletes pod {name} with grace {grace_seconds}"));
        if grace_seconds == 0 {
            self.remove(&mut state, namespace, name);
            return;
        }
        let shorter = pod.metadata.deletion_grace_period_seconds.is_none_or(|before| grace_seconds < before);
        if shorter {
            let end = self.world.clock.wall() + SignedDuration::from_secs(grace_seconds);
            pod.metadata.deletion_timestamp = Some(Time(end));
            pod.metadata.deletion_grace_period_seconds = Some(grace_seconds);
            self.put(&mut state, pod);
        }
    }

    pub fn user_edits(&self, namespace: &str, name: &str, edit: impl FnOnce(&mut Pod)) {
        let mut state = self.state();
        let Some(mut pod) = state.pods.get(&key(namespace, name)).cloned() else { return };
        edit(&mut pod);
        self.put(&mut state, pod);
    }

    pub fn user_deletes_node(&self) {
        let mut state = self.state();
        self.world.log(|| "user deletes the node".into());
        if let Some(node) = state.node.take() {
            self.tell_node(&mut state, Change::Deleted(Box::new(node)));
        }
        state.lease = None;
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

fn key(namespace: &str, name: &str) -> (String, String) {
    (namespace.to_owned(), name.to_owned())
}

/// Merges as the API server does for the lists a node agent patches: by their merge key.
fn strategic_merge(into: &mut Value, patch: &Value) {
    let (Value::Object(into), Value::Object(patch)) = (&mut *into, patch) else {
        *into = patch.clone();
        return;
    };
    for (field, value) in patch {
        if field.starts_with('$') {
            continue;
        }
        match value {
            Value::Null => {
                into.remove(field);
            }
            Value::Object(_) => {
                strategic_merge(into.entry(field).or_insert_with(|| Value::Object(Default::default())), value)
            }
            Value::Array(items) if field == "conditions" => {
                let list = into.entry(field).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { continue };
                for item in items {
                    let same = |other: &Value| other["type"] == item["type"];
                    if item["$patch"] == "delete" {
                        list.retain(|other| !same(other));
                    } else if let Some(existing) = list.iter_mut().find(|other| same(other)) {
                        strategic_merge(existing, item);
                    } else {
                        list.push(item.clone());
                    }
                }
            }
            other => {
                into.insert(field.clone(), other.clone());
            }
        }
    }
}

fn merged<T: serde::Serialize + serde::de::DeserializeOwned>(what: &str, object: &T, patch: &Value) -> Result<T> {
    let mut value = serde_json::to_value(object).expect("API objects are JSON");
    strategic_merge(&mut value, patch);
    serde_json::from_value(value)
        .map_err(|error| ApiError::Invalid { what: what.to_owned(), message: error.to_string() })
}

#[async_trait]
impl Cluster for SimCluster {
    fn watch_pods(&self) -> BoxStream<'static, Change<Pod>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        if state.down_until.is_none() {
            let _ = sender.send(Change::Listed(state.pods.values().cloned().collect()));
        }
        state.watchers.push(sender);
        UnboundedReceiverStream::new(receiver).boxed()
    }

    fn watch_services(&self) -> BoxStream<'static, Change<Service>> {
        futures::stream::iter([Change::Listed(Vec::new())]).chain(futures::stream::pending()).boxed()
    }

    fn watch_node(&self) -> BoxStream<'static, Change<Node>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        if state.down_until.is_none() {
            let _ = sender.send(Change::Listed(state.node.iter().cloned().collect()));
        }
        state.node_watchers.push(sender);
        UnboundedReceiverStream::new(receiver).boxed()
    }

    fn watch_config_map(&self, _namespace: &str, name: &str) -> BoxStream<'static, ObjectState<ConfigMap>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.state();
        if state.down_until.is_none() {
            let _ = sender.send(map_state(&state.config_maps, name));
        }
        state.map_watchers.push((name.to_owned(), sender));
        UnboundedReceiverStream::new(receiver).boxed()
    }

    fn watch_secret(&self, _namespace: &str, _name: &str) -> BoxStream<'static, ObjectState<Secret>> {
        futures::stream::iter([ObjectState::Absent]).chain(futures::stream::pending()).boxed()
    }

    async fn get_pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let (what, wanted) = (format!("get pod {namespace}/{name}"), key(namespace, name));
        let missing = what.clone();
        self.call(
            what,
            Box::new(move |cluster| {
                cluster.state().pods.get(&wanted).cloned().ok_or(ApiError::NotFound { what: missing })
            }),
        )
        .await
    }

    async fn patch_pod_status(&self, namespace: &str, name: &str, patch: &Value) -> Result<Pod> {
        let what = format!("patch status of pod {namespace}/{name}");
        let (wanted, patch, missing) = (key(namespace, name), patch.clone(), what.clone());
        self.call(
            what,
            Box::new(move |cluster| {
                let mut state = cluster.state();
                let Some(pod) = state.pods.get(&wanted).cloned() else {
                    return Err(ApiError::NotFound { what: missing });
                };
                let uid = patch["metadata"]["uid"].as_str();
                if uid.is_some_and(|uid| Some(uid) != pod.metadata.uid.as_deref()) {
                    return Err(ApiError::Conflict { what: missing, message: "another uid".into() });
                }
                state.writes.push((wanted.1.clone(), "patch status"));
                let mut status = serde_json::Map::new();
                status.insert("status".into(), patch["status"].clone());
                let next: Pod = merged(&missing, &pod, &Value::Object(status))?;
                let after = next.status.clone().unwrap_or_default();
                if !state.put_back.contains(&wanted.1) {
                    cluster.check_successor(&state, &pod, &after);
                }
                cluster.note_end(&mut state, &pod, &after);
                cluster.world.log(|| format!("status of {}: {}", wanted.1, told(&after)));
                Ok(cluster.put(&mut state, next))
            }),
        )
        .await
    }

    async fn create_pod(&self, pod: &Pod) -> Result<Pod> {
        let mut pod = pod.clone();
        let wanted = key(
            pod.metadata.namespace.as_deref().unwrap_or_default(),
            pod.metadata.name.as_deref().unwrap_or_default(),
        );
        let what = format!("create pod {}/{}", wanted.0, wanted.1);
        let taken = what.clone();
        self.call(
            what,
            Box::new(move |cluster| {
                let mut state = cluster.state();
                if state.pods.contains_key(&wanted) {
                    return Err(ApiError::AlreadyExists { what: taken });
                }
                pod.metadata.uid = Some(format!("mirror-{}", state.version));
                pod.metadata.creation_timestamp = Some(Time(cluster.world.clock.wall()));
                pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
                cluster.world.log(|| format!("mirror pod {} created", wanted.1));
                Ok(cluster.put(&mut state, pod))
            }),
        )
        .await
    }

    async fn delete_pod(&self, namespace: &str, name: &str, uid: &str, grace_seconds: i64) -> Result<()> {
        let what = format!("delete pod {namespace}/{name}");
        let (namespace, name, uid, missing) = (namespace.to_owned(), name.to_owned(), uid.to_owned(), what.clone());
        self.call(
            what,
            Box::new(move |cluster| {
                let mut state = cluster.state();
                let Some(pod) = state.pods.get(&key(&namespace, &name)) else {
                    return Err(ApiError::NotFound { what: missing });
                };
                if pod.metadata.uid.as_deref() != Some(&uid) {
                    return Err(ApiError::Conflict { what: missing, message: "another uid".into() });
                }
                cluster.check_leaving(pod);
                assert_eq!(grace_seconds, 0, "a node agent deletes finally or not at all");
                cluster.remove(&mut state, &namespace, &name);
                Ok(())
            }),
        )
        .await
    }

    /// No simulated pod asks for one.
    async fn get_service_account(&self, namespace: &str, name: &str) -> Result<ServiceAccount> {
        Err(ApiError::NotFound { what: format!("get service account {namespace}/{name}") })
    }

    /// No simulated pod asks for one.
    async fn get_runtime_class(&self, name: &str) -> Result<RuntimeClass> {
        Err(ApiError::NotFound { what: format!("get runtime class {name}") })
    }

    async fn get_node(&self) -> Result<Node> {
        self.call(
            "get node".into(),
            Box::new(|cluster| cluster.state().node.clone().ok_or(ApiError::NotFound { what: "get node".into() })),
        )
        .await
    }

    async fn create_node(&self, node: &Node) -> Result<Node> {
        let mut node = node.clone();
        self.call(
            "create node".into(),
            Box::new(move |cluster| {
                let mut state = cluster.state();
                if state.node.is_some() {
                    return Err(ApiError::AlreadyExists { what: "create node".into() });
                }
                state.version += 1;
                node.metadata.uid = Some(format!("node-{}", state.version));
                node.metadata.resource_version = Some(state.version.to_string());
                state.node = Some(node.clone());
                cluster.tell_node(&mut state, Change::Applied(Box::new(node.clone())));
                Ok(node)
            }),
        )
        .await
    }

    async fn patch_node(&self, patch: &Value) -> Result<Node> {
        self.patch("patch node", patch.clone()).await
    }

    async fn patch_node_status(&self, patch: &Value) -> Result<Node> {
        self.patch("patch node status", patch.clone()).await
    }

    async fn get_lease(&self) -> Result<Lease> {
        self.call(
            "get lease".into(),
            Box::new(|cluster| cluster.state().lease.clone().ok_or(ApiError::NotFound { what: "get lease".into() })),
        )
        .await
    }

    async fn create_lease(&self, lease: &Lease) -> Result<Lease> {
        self.update_lease(lease).await
    }

    async fn update_lease(&self, lease: &Lease) -> Result<Lease> {
        let lease = lease.clone();
        self.call(
            "write lease".into(),
            Box::new(move |cluster| {
                cluster.state().lease = Some(lease.clone());
                Ok(lease)
            }),
        )
        .await
    }

    async fn create_event(&self, event: &Event) -> Result<Event> {
        let record = event.clone();
        self.call(
            "create event".into(),
            Box::new(move |cluster| {
                cluster.tell_event(&record);
                Ok(record)
            }),
        )
        .await
    }

    async fn patch_event(&self, _namespace: &str, name: &str, _patch: &Value) -> Result<Event> {
        // Events are named after their object.
        let object = name.split('.').next().unwrap_or_default().to_owned();
        self.call(
            "patch event".into(),
            Box::new(move |cluster| {
                cluster.state().writes.push((object, "patch event"));
                Ok(Event::default())
            }),
        )
        .await
    }

    async fn request_token(
        &self,
        _namespace: &str,
        _service_account: &str,
        request: &TokenRequest,
    ) -> Result<TokenRequest> {
        let mut request = request.clone();
        self.call(
            "request token".into(),
            Box::new(move |cluster| {
                let lifetime = request.spec.as_ref().and_then(|spec| spec.expiration_seconds).unwrap_or(3600);
                let expires = cluster.world.clock.wall() + SignedDuration::from_secs(lifetime);
                request.status =
                    Some(TokenRequestStatus { expiration_timestamp: Some(Time(expires)), token: Some("token".into()) });
                Ok(request)
            }),
        )
        .await
    }
}

impl SimCluster {
    fn tell_event(&self, event: &Event) {
        let name = event.involved_object.name.clone().unwrap_or_default();
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        self.world.log(|| format!("event of {name}: {} {}", text(&event.reason), text(&event.message)));
        self.check_event(event);
        self.state().writes.push((name, "create event"));
    }

    async fn patch(&self, what: &'static str, patch: Value) -> Result<Node> {
        self.call(
            what.into(),
            Box::new(move |cluster| {
                let mut state = cluster.state();
                let Some(node) = state.node.clone() else { return Err(ApiError::NotFound { what: what.into() }) };
                let mut next: Node = merged(what, &node, &patch)?;
                state.version += 1;
                next.metadata.resource_version = Some(state.version.to_string());
                state.node = Some(next.clone());
                cluster.tell_node(&mut state, Change::Applied(Box::new(next.clone())));
                Ok(next)
            }),
        )
        .await
    }
}
