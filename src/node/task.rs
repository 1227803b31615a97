//! The task that keeps the Node in the API true.
//!
//! It stands in one of three ways ([`Standing`]): `Standalone` for good, where there is no
//! API server; `Unregistered`, where each round tries to create the Node or to find it;
//! `Registered`, where each round sends what differs. Only a Node that is gone leads back to
//! `Unregistered`.

use std::collections::BTreeMap;
use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeStatus};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::NodeView;
use super::addresses::{addresses, host_ips};
use super::capacity::{allocatable, capacity};
use super::conditions::{Pressures, transitions};
use super::config::NodeConfig;
use super::desired::{NodeInputs, node};
use super::patch::{metadata_patch, status_patch, with_heartbeat};
use super::survey::Survey;
use crate::clock::Clock;
use crate::cri::RuntimeVersion;
use crate::events::{EventType, Recorder};
use crate::host::MachineFacts;
use crate::kube::{ApiError, Change, Cluster, Result, is_older};
use crate::pleg::RuntimeHealth;

const UPDATE_JITTER: f64 = 0.04;
/// Changes that follow each other this fast share one write.
const WRITE_GAP: Duration = Duration::from_millis(500);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);
/// No call of this task may keep it from reporting a runtime that hangs.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
const SURVEY_DEADLINE: Duration = Duration::from_secs(3);
/// A complaint that stays the same is logged again after this long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What the task is made of.
pub struct NodeParts {
    /// `None` where there is no API server.
    pub cluster: Option<Arc<dyn Cluster>>,
    pub clock: Clock,
    pub recorder: Recorder,
    pub survey: Arc<dyn Survey>,
    pub health: watch::Receiver<RuntimeHealth>,
    pub config: NodeConfig,
}

/// The way to a running task.
#[derive(Clone)]
pub struct NodeHandle {
    view: watch::Sender<Option<Arc<NodeView>>>,
    pressures: watch::Sender<Pressures>,
    look: Arc<Notify>,
}

impl NodeHandle {
    pub fn new() -> Self {
        NodeHandle { view: watch::Sender::new(None), pressures: watch::Sender::default(), look: Arc::default() }
    }

    /// What is known of the node; nothing until the machine was read.
    pub fn view(&self) -> watch::Receiver<Option<Arc<NodeView>>> {
        self.view.subscribe()
    }

    /// Something on the node changed, such as its images: look now, not at the next round.
    pub fn look_again(&self) {
        self.look.notify_one();
    }

    pub fn set_pressures(&self, pressures: Pressures) {
        self.pressures.send_if_modified(|old| std::mem::replace(old, pressures) != pressures);
    }
}

impl Default for NodeHandle {
    fn default() -> Self {
        NodeHandle::new()
    }
}

enum Standing {
    /// No API server to tell.
    Standalone,
    /// The API has no Node of this name, as far as is known. Each round tries to register.
    Unregistered { attempts: u32, retry_at: Instant },
    /// The API has this Node. Each round sends what differs from it.
    Registered(Registered),
}

struct Registered {
    node: Arc<Node>,
    /// When the status is sent even if nothing changed.
    report_at: Instant,
    /// Not before this: after a write, or after a failure.
    write_at: Instant,
    failures: u32,
    /// Differences that remained after the API accepted them: an older server drops fields.
    status_residue: Option<Value>,
    metadata_residue: Option<Value>,
}

/// What was found out about the machine and its runtime.
#[derive(Default)]
struct Findings {
    machine: Option<MachineFacts>,
    /// What the node's name resolved to, for these addresses of the machine.
    resolved: Option<(Vec<IpAddr>, Vec<IpAddr>)>,
    runtime_version: Option<RuntimeVersion>,
    images: Option<Arc<Vec<ContainerImage>>>,
    pod_cidr_set: Option<String>,
}

struct Task {
    cluster: Option<Arc<dyn Cluster>>,
    clock: Clock,
    recorder: Recorder,
    survey: Arc<dyn Survey>,
    health: watch::Receiver<RuntimeHealth>,
    pressures: watch::Receiver<Pressures>,
    view: watch::Sender<Option<Arc<NodeView>>>,
    config: NodeConfig,
    standing: Standing,
    findings: Findings,
    runtime_was_up: bool,
    was_unschedulable: bool,
    /// The boot id in the API was compared once.
    boot_was_compared: bool,
    /// What was logged last about each subject, and when.
    complaints: BTreeMap<&'static str, (String, Instant)>,
}

/// Keeps the Node true, for ever.
pub async fn run(handle: NodeHandle, parts: NodeParts) {
    let now = parts.clock.now();
    let mut watch = match &parts.cluster {
        Some(cluster) => cluster.watch_node(),
        None => futures::stream::pending().boxed(),
    };
    let mut task = Task {
        standing: match parts.cluster {
            Some(_) => Standing::Unregistered { attempts: 0, retry_at: now },
            None => Standing::Standalone,
        },
        cluster: parts.cluster,
        clock: parts.clock,
        recorder: parts.recorder,
        survey: parts.survey,
        health: parts.health,
        pressures: handle.pressures.subscribe(),
        view: handle.view.clone(),
        config: parts.config,
        findings: Findings::default(),
        runtime_was_up: false,
        was_unschedulable: false,
        boot_was_compared: false,
        complaints: BTreeMap::new(),
    };
    task.recorder.node(EventType::Normal, "Starting", "Starting kubelet.");
    let mut survey_at = now;
    let mut health = task.health.clone();
    let mut pressures = task.pressures.clone();
    loop {
        if task.runtime_came_up() || survey_at <= task.clock.now() {
            task.take_stock().await;
            survey_at = task.clock.now() + task.clock.jitter(task.config.status_update_frequency, UPDATE_JITTER);
        }
        task.publish();
        let again_at = task.report().await;
        task.publish();
        let wake_at = again_at.map_or(survey_at, |again_at| again_at.min(survey_at));
        tokio::select! {
            biased;
            // Cancel-safe: a stream keeps what was not taken from it.
            Some(change) = watch.next() => task.learn(change),
            // Cancel-safe: a change that is not seen stays unseen. A sender that is gone never
            // speaks again, and must not spin this loop.
            () = changed(&mut health) => {}
            () = changed(&mut pressures) => {}
            // Cancel-safe: a notification that is not waited for is kept.
            () = handle.look.notified() => survey_at = task.clock.now(),
            // Cancel-safe: made anew in each turn.
            () = sleep_until(wake_at) => {}
        }
    }
}

async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        pending().await
    }
}

impl Task {
    /// Reads machine and runtime. What cannot be read now stays as it was known.
    async fn take_stock(&mut self) {
        match timeout(SURVEY_DEADLINE, self.survey.machine()).await {
            Ok(Ok(machine)) => self.findings.machine = Some(machine),
            Ok(Err(error)) => self.complain("machine", format!("machine not read: {error}")),
            Err(_) => self.complain("machine", format!("machine not read within {SURVEY_DEADLINE:?}")),
        }
        self.resolve_name().await;
        if !self.runtime_was_up {
            return;
        }
        if self.findings.runtime_version.is_none()
            && let Ok(Ok(version)) = timeout(SURVEY_DEADLINE, self.survey.runtime_version()).await
        {
            self.findings.runtime_version = Some(version);
        }
        match timeout(SURVEY_DEADLINE, self.survey.images()).await {
            Ok(Ok(images)) => self.findings.images = Some(images),
            Ok(Err(error)) => debug!(%error, "images not listed, will retry"),
            Err(_) => debug!("images not listed in time, will retry"),
        }
        self.hand_on_pod_cidr().await;
    }

    /// Asks for the addresses of the node's name, again only when the machine's changed.
    async fn resolve_name(&mut self) {
        let Some(machine) = &self.findings.machine else { return };
        if self.findings.resolved.as_ref().is_some_and(|(local, _)| *local == machine.addresses) {
            return;
        }
        let local = machine.addresses.clone();
        let found = timeout(SURVEY_DEADLINE, self.survey.resolve(&self.config.name)).await.unwrap_or_default();
        self.findings.resolved = Some((local, found));
    }

    async fn hand_on_pod_cidr(&mut self) {
        let cidrs = self.pod_cidrs().join(",");
        if cidrs.is_empty() || self.findings.pod_cidr_set.as_deref() == Some(cidrs.as_str()) {
            return;
        }
        match timeout(SURVEY_DEADLINE, self.survey.set_pod_cidr(&cidrs)).await {
            Ok(Ok(())) => {
                info!(cidrs, "runtime told its pod CIDR");
                self.findings.pod_cidr_set = Some(cidrs);
            }
            Ok(Err(error)) => self.complain("pod cidr", format!("runtime not told its pod CIDR {cidrs}: {error}")),
            Err(_) => self.complain("pod cidr", format!("runtime not told its pod CIDR {cidrs} within {SURVEY_DEADLINE:?}")),
        }
    }

    fn pod_cidrs(&self) -> Vec<String> {
        let spec = self.registered().and_then(|registered| registered.node.spec.as_ref());
        let listed = spec.and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default();
        let single = spec.and_then(|spec| spec.pod_cidr.clone()).or(Some(self.config.pod_cidr.clone()));
        match listed.is_empty() {
            false => listed,
            true => single.into_iter().filter(|cidr| !cidr.is_empty()).collect(),
        }
    }

    /// Whether the runtime answers now and did not when this was asked last.
    fn runtime_came_up(&mut self) -> bool {
        let is_up = {
            let health = self.health.borrow();
            health.status.is_some() && health.error.is_none()
        };
        let came_up = is_up && !self.runtime_was_up;
        if came_up {
            // It may be another one by now.
            self.findings.runtime_version = None;
            self.findings.pod_cidr_set = None;
        }
        self.runtime_was_up = is_up;
        came_up
    }

    fn registered(&self) -> Option<&Registered> {
        match &self.standing {
            Standing::Registered(registered) => Some(registered),
            Standing::Standalone | Standing::Unregistered { .. } => None,
        }
    }

    /// The Node as it shall be now; `None` until the machine was read.
    fn desired(&mut self) -> Option<Node> {
        let machine = self.findings.machine.clone()?;
        let existing = self.registered().map(|registered| Arc::clone(&registered.node));
        let has = existing.as_ref().and_then(|node| node.status.as_ref()?.addresses.as_deref()).unwrap_or_default();
        let resolved = self.findings.resolved.as_ref().map_or(&[][..], |(_, found)| found);
        let (addresses, error) = addresses(&self.config, &machine.addresses, resolved, has);
        if let Some(error) = error {
            self.complain("address", format!("node has no address: {error}"));
        }
        let health = self.health.borrow().clone();
        Some(node(&NodeInputs {
            config: &self.config,
            facts: &machine,
            addresses,
            runtime_version: self.findings.runtime_version.as_ref(),
            runtime_status: health.status.as_ref().map(|(_, status)| status),
            problems: health.problems(self.clock.now()),
            pressures: *self.pressures.borrow(),
            images: self.findings.images.as_deref().map(Vec::as_slice),
            existing: existing.as_deref(),
            now: self.clock.wall(),
        }))
    }

    /// Lets the other rooms know, if there is anything new.
    fn publish(&mut self) {
        let (Some(desired), Some(machine)) = (self.desired(), &self.findings.machine) else { return };
        let capacity = capacity(machine, &self.config);
        let view = NodeView {
            host_ips: host_ips(&desired),
            allocatable: allocatable(&capacity, &self.config),
            pod_cidrs: self.pod_cidrs(),
            is_registered: self.registered().is_some(),
            node: match self.registered() {
                Some(registered) => Arc::clone(&registered.node),
                None => Arc::new(desired),
            },
        };
        self.view.send_if_modified(|known| {
            let is_news = known.as_deref().is_none_or(|known| is_news(known, &view));
            if is_news {
                *known = Some(Arc::new(view));
            }
            is_news
        });
    }

    /// Takes in what the watch tells about the Node.
    fn learn(&mut self, change: Change<Node>) {
        let now = self.clock.now();
        let registered = match &mut self.standing {
            Standing::Registered(registered) => registered,
            Standing::Unregistered { retry_at, .. } => {
                // Word from the API server: it is there again.
                *retry_at = now;
                return;
            }
            Standing::Standalone => return,
        };
        let known = &registered.node.metadata;
        let node = match change {
            Change::Listed(nodes) => nodes.into_iter().next(),
            Change::Applied(node) => Some(*node),
            // The end of an earlier one of this name is old news.
            Change::Deleted(node) if node.metadata.uid != known.uid => return,
            Change::Deleted(_) => {
                warn!(node = self.config.name, "node was deleted from the API, will register again");
                None
            }
        };
        let Some(node) = node else {
            self.standing = Standing::Unregistered { attempts: 0, retry_at: now };
            return;
        };
        if is_older(&node.metadata, known) {
            return;
        }
        if node.metadata.uid != known.uid {
            registered.write_at = now;
        }
        registered.node = Arc::new(node);
        self.tell_schedulable();
    }

    fn tell_schedulable(&mut self) {
        let spec = self.registered().and_then(|registered| registered.node.spec.as_ref());
        let is_unschedulable = spec.and_then(|spec| spec.unschedulable) == Some(true);
        if std::mem::replace(&mut self.was_unschedulable, is_unschedulable) != is_unschedulable {
            self.tell(if is_unschedulable { "NodeNotSchedulable" } else { "NodeSchedulable" });
        }
    }

    fn tell(&self, reason: &str) {
        let message = format!("Node {} status is now: {reason}", self.config.name);
        self.recorder.node(EventType::Normal, reason, message);
    }

    /// One round towards the API. Returns when the next one is due if nothing happens.
    async fn report(&mut self) -> Option<Instant> {
        let desired = self.desired()?;
        let cluster = self.cluster.clone()?;
        if let Standing::Unregistered { attempts, retry_at } = self.standing {
            if retry_at > self.clock.now() {
                return Some(retry_at);
            }
            if let Err(error) = self.register(&*cluster, &desired).await {
                let retry_at = self.clock.now() + self.retry_delay(attempts);
                self.standing = Standing::Unregistered { attempts: attempts + 1, retry_at };
                self.complain("registration", self.why_not_registered(&error));
                return Some(retry_at);
            }
        }
        self.update(&*cluster).await
    }

    fn retry_delay(&self, attempts: u32) -> Duration {
        let delay = RETRY_MIN.saturating_mul(1 << attempts.min(16)).min(RETRY_MAX);
        self.clock.jitter(delay, UPDATE_JITTER)
    }

    fn why_not_registered(&self, error: &ApiError) -> String {
        let name = &self.config.name;
        match error {
            ApiError::Refused { message, .. } => format!(
                "API server refuses node name {name}: {message} (the credentials in use must belong to system:node:{name})"
            ),
            ApiError::NotFound { .. } if !self.config.register => {
                format!("node {name} does not exist, and registerNode is false")
            }
            error => format!("node {name} not registered: {error}"),
        }
    }

    /// Creates the Node, or finds the one that is there.
    async fn register(&mut self, cluster: &dyn Cluster, desired: &Node) -> Result<()> {
        if self.config.register {
            match bounded("create node", cluster.create_node(desired)).await {
                Ok(node) => {
                    info!(node = self.config.name, "node registered");
                    self.tell_transitions(&NodeStatus::default(), node.status.as_ref());
                    self.enter(node, false);
                    return Ok(());
                }
                // Credentials may allow to use a Node and not to create it.
                Err(ApiError::AlreadyExists { .. }) => {}
                Err(refused @ ApiError::Refused { .. }) => match bounded("get node", cluster.get_node()).await {
                    Ok(node) => {
                        self.adopt(node);
                        return Ok(());
                    }
                    Err(_) => return Err(refused),
                },
                Err(error) => return Err(error),
            }
        }
        let node = bounded("get node", cluster.get_node()).await?;
        self.adopt(node);
        Ok(())
    }

    fn adopt(&mut self, node: Node) {
        info!(node = self.config.name, uid = node.metadata.uid, "node found in the API");
        if !std::mem::replace(&mut self.boot_was_compared, true) {
            self.tell_of_reboot(&node);
        }
        self.enter(node, true);
    }

    fn tell_of_reboot(&self, node: &Node) {
        let had = node.status.as_ref().and_then(|status| Some(&status.node_info.as_ref()?.boot_id));
        let Some((had, machine)) = had.zip(self.findings.machine.as_ref()) else { return };
        if !had.is_empty() && *had != machine.boot_id {
            let text = format!("Node {} has been rebooted, boot id: {}", self.config.name, machine.boot_id);
            self.recorder.node(EventType::Warning, "Rebooted", text);
        }
    }

    fn enter(&mut self, node: Node, report_now: bool) {
        let now = self.clock.now();
        self.boot_was_compared = true;
        self.complaints.remove("registration");
        self.standing = Standing::Registered(Registered {
            node: Arc::new(node),
            report_at: if report_now { now } else { now + self.spread_report() },
            write_at: now,
            failures: 0,
            status_residue: None,
            metadata_residue: None,
        });
        self.tell_schedulable();
    }

    /// Between half of the report period and one and a half, so that nodes that changed
    /// together, as after an outage, do not report together for ever.
    fn spread_report(&self) -> Duration {
        self.clock.jitter(self.config.status_report_frequency.mul_f64(0.5), 2.0)
    }

    /// Sends what differs from the Node in the API.
    async fn update(&mut self, cluster: &dyn Cluster) -> Option<Instant> {
        let desired = self.desired()?;
        let now = self.clock.now();
        let Standing::Registered(registered) = &mut self.standing else { return None };
        let metadata = metadata_patch(&registered.node, &desired).filter(|patch| registered.metadata_residue.as_ref() != Some(patch));
        let wanted = desired.status.unwrap_or_default();
        let none = NodeStatus::default();
        let has = registered.node.status.as_ref().unwrap_or(&none);
        let status = status_patch(has, &wanted).filter(|patch| registered.status_residue.as_ref() != Some(patch));
        let is_due = registered.report_at <= now;
        if metadata.is_none() && status.is_none() && !is_due {
            return Some(registered.report_at);
        }
        if registered.write_at > now {
            return Some(registered.write_at);
        }
        let changes = status.is_some();
        let result = match metadata {
            Some(patch) => self.send_metadata(cluster, patch).await,
            None => Ok(()),
        };
        let result = match result {
            Ok(()) if changes || is_due => self.send_status(cluster, status, &wanted).await,
            other => other,
        };
        self.settle(cluster, result).await
    }

    async fn send_metadata(&mut self, cluster: &dyn Cluster, patch: Value) -> Result<()> {
        let answer = bounded("patch node", cluster.patch_node(&patch)).await;
        // Labels that the API server does not let a node change are not worth its status.
        let answer = match answer {
            Err(error @ (ApiError::Refused { .. } | ApiError::Invalid { .. })) => {
                self.complain("labels", format!("labels of node {} not changed: {error}", self.config.name));
                None
            }
            answer => Some(answer?),
        };
        if let Standing::Registered(registered) = &mut self.standing {
            registered.metadata_residue = Some(patch);
            if let Some(node) = answer {
                registered.node = Arc::new(node);
            }
        }
        Ok(())
    }

    async fn send_status(&mut self, cluster: &dyn Cluster, patch: Option<Value>, wanted: &NodeStatus) -> Result<()> {
        let changes = patch.is_some();
        let before = self.registered().and_then(|registered| registered.node.status.clone()).unwrap_or_default();
        let answer = bounded("patch node status", cluster.patch_node_status(&with_heartbeat(patch, wanted))).await?;
        debug!(changes, "node status written");
        self.tell_transitions(&before, answer.status.as_ref());
        let report_in = if changes { self.spread_report() } else { self.config.status_report_frequency };
        let report_at = self.clock.now() + report_in;
        if let Standing::Registered(registered) = &mut self.standing {
            registered.status_residue = answer.status.as_ref().and_then(|status| status_patch(status, wanted));
            registered.report_at = report_at;
            registered.node = Arc::new(answer);
        }
        Ok(())
    }

    /// Takes in how a write went, and says when the next one may be.
    async fn settle(&mut self, cluster: &dyn Cluster, result: Result<()>) -> Option<Instant> {
        let now = self.clock.now();
        let gone = matches!(result, Err(ApiError::NotFound { .. }));
        let fresh = match &result {
            Err(ApiError::Conflict { .. }) => bounded("get node", cluster.get_node()).await.ok(),
            _ => None,
        };
        if gone {
            warn!(node = self.config.name, "node is gone from the API, will register again");
            self.standing = Standing::Unregistered { attempts: 0, retry_at: now };
            return Some(now);
        }
        let failures = self.registered().map_or(0, |registered| registered.failures);
        let delay = self.retry_delay(failures);
        match result {
            Ok(()) => drop(self.complaints.remove("status")),
            Err(ref error) => self.complain("status", format!("status of node {} not written: {error}", self.config.name)),
        }
        let Standing::Registered(registered) = &mut self.standing else { return Some(now) };
        if let Some(node) = fresh {
            registered.node = Arc::new(node);
        }
        (registered.failures, registered.write_at) = match result {
            Ok(()) => (0, now + WRITE_GAP),
            Err(_) => (failures + 1, now + delay),
        };
        Some(match result {
            Ok(()) => registered.report_at,
            Err(_) => registered.write_at,
        })
    }

    fn tell_transitions(&self, before: &NodeStatus, after: Option<&NodeStatus>) {
        let of = |status: Option<&NodeStatus>| status.and_then(|status| status.conditions.clone()).unwrap_or_default();
        for reason in transitions(&of(Some(before)), &of(after)) {
            info!(node = self.config.name, state = reason, "node condition changed");
            self.tell(reason);
        }
    }

    /// Logs what is wrong with a subject, once and then every minute while it stays.
    fn complain(&mut self, subject: &'static str, text: String) {
        let now = self.clock.now();
        let is_old = |(last, at): &(String, Instant)| *last == text && now < *at + COMPLAIN_EVERY;
        if !self.complaints.get(subject).is_some_and(is_old) {
            warn!("{text}, will retry");
            self.complaints.insert(subject, (text, now));
        }
    }
}

/// Whether a view says more than the one before. One that was made here has new heartbeat
/// times each time.
fn is_news(known: &NodeView, view: &NodeView) -> bool {
    let same_node = match (known.is_registered, view.is_registered) {
        (true, true) => Arc::ptr_eq(&known.node, &view.node),
        (false, false) => true,
        _ => false,
    };
    !same_node
        || known.host_ips != view.host_ips
        || known.allocatable != view.allocatable
        || known.pod_cidrs != view.pod_cidrs
}

async fn bounded<T>(what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(CALL_DEADLINE, call).await.unwrap_or_else(|_| {
        Err(ApiError::Unavailable { what: what.to_owned(), message: format!("no answer within {CALL_DEADLINE:?}") })
    })
}
