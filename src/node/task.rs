//! The task that keeps the Node in the API true.
//!
//! It stands in one of three ways ([`Standing`]): `Standalone` for good, where there is no
//! API server; `Unregistered`, where each round tries to create the Node or to find it;
//! `Registered`, where each round sends what differs. Only a Node that is gone leads back to
//! `Unregistered`.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use super::NodeView;
use super::addresses::{addresses, host_ips};
use super::capacity::{allocatable, capacity};
use super::conditions::{Pressures, is_ready};
use super::config::NodeConfig;
use super::desired::{NodeInputs, node};
use super::handle::{NodeHandle, NodeParts};
use super::startup::Startup;
use super::stock::{Complaints, Stock};
use super::survey::Survey;
use crate::clock::Clock;
use crate::events::{EventType, Recorder};
use crate::kube::{ApiError, Change, Cluster, Result, is_older};
use crate::pleg::{NOT_ASKED_YET, Problems, RUNTIME_DOWN_AFTER, RuntimeHealth};

const UPDATE_JITTER: f64 = 0.04;
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);
/// No call of this task may keep it from reporting a runtime that hangs.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

pub(super) enum Standing {
    /// No API server to tell.
    Standalone,
    /// The API has no Node of this name, as far as is known. Each round tries to register.
    Unregistered { attempts: u32, retry_at: Instant },
    /// The API has this Node. Each round sends what differs from it.
    Registered(Registered),
}

pub(super) struct Registered {
    pub(super) node: Arc<Node>,
    /// A list came without it. It may be older than our registration, so one look decides.
    pub(super) is_doubted: bool,
    /// When the status is sent even if nothing changed.
    pub(super) report_at: Instant,
    /// Not before this: after a write, or after a failure.
    pub(super) write_at: Instant,
    pub(super) failures: u32,
    /// Differences that remained after the API accepted them: an older server drops fields.
    pub(super) status_residue: Option<Value>,
    pub(super) metadata_residue: Option<Value>,
}

pub(super) struct Task {
    pub(super) cluster: Option<Arc<dyn Cluster>>,
    pub(super) clock: Clock,
    pub(super) recorder: Recorder,
    pub(super) survey: Arc<dyn Survey>,
    pub(super) health: watch::Receiver<RuntimeHealth>,
    pub(super) pressures: watch::Receiver<Pressures>,
    pub(super) view: watch::Sender<Option<Arc<NodeView>>>,
    pub(super) config: NodeConfig,
    pub(super) standing: Standing,
    pub(super) stock: Stock,
    pub(super) runtime_was_up: bool,
    pub(super) was_unschedulable: bool,
    /// The boot id in the API was compared once.
    pub(super) boot_was_compared: bool,
    pub(super) complaints: Complaints,
    pub(super) startup: Startup,
    began: Instant,
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
        stock: Stock::default(),
        runtime_was_up: false,
        was_unschedulable: false,
        boot_was_compared: false,
        complaints: Complaints::default(),
        startup: Startup::new(now),
        began: now,
    };
    task.recorder.node(EventType::Normal, "Starting", "Starting kubelet.");
    let mut survey_at = now;
    let mut health = task.health.clone();
    let mut pressures = task.pressures.clone();
    loop {
        if task.runtime_came_up() || survey_at <= task.clock.now() {
            let pod_cidrs = task.pod_cidrs();
            let (stock, complaints) = (&mut task.stock, &mut task.complaints);
            stock.take(&*task.survey, &task.config.name, complaints, &task.clock).await;
            if task.runtime_was_up {
                stock.take_of_runtime(&*task.survey, &pod_cidrs, complaints, &task.clock).await;
            }
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

/// Whether an agent before this one has told, in this boot, that the node is Ready. A new agent
/// says otherwise once it knows better, or when it has not learnt anything for as long as a silent
/// runtime has: that it was started is no news of the node.
fn was_ready(node: &Node, boot_id: &str) -> bool {
    let status = node.status.as_ref();
    let is_this_boot = status.and_then(|status| status.node_info.as_ref()).is_some_and(|info| info.boot_id == boot_id);
    is_this_boot && status.and_then(|status| status.conditions.as_deref()).is_some_and(is_ready)
}

async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        pending().await
    }
}

impl Task {
    pub(super) fn pod_cidrs(&self) -> Vec<String> {
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
            self.stock.forget_runtime();
        }
        self.runtime_was_up = is_up;
        came_up
    }

    pub(super) fn registered(&self) -> Option<&Registered> {
        match &self.standing {
            Standing::Registered(registered) => Some(registered),
            Standing::Standalone | Standing::Unregistered { .. } => None,
        }
    }

    /// The Node as it shall be now; `None` until the machine was read.
    pub(super) fn desired(&mut self) -> Option<Node> {
        let machine = self.stock.machine.clone()?;
        let existing = self.registered().map(|registered| Arc::clone(&registered.node));
        let has = existing.as_ref().and_then(|node| node.status.as_ref()?.addresses.as_deref()).unwrap_or_default();
        let resolved = self.stock.resolved();
        let (addresses, error) = addresses(&self.config, &machine.addresses, resolved, has);
        if let Some(error) = error {
            self.complaints.add(&self.clock, "address", format!("node has no address: {error}"));
        }
        let health = self.health.borrow().clone();
        let Problems { found: mut problems, mut unknown } = health.problems(self.clock.now());
        if problems.is_empty() && unknown.is_empty() && self.stock.runtime_version.is_none() {
            // Ready says that everything about the node is told; its runtime's version is not yet.
            unknown.push(NOT_ASKED_YET.to_owned());
        }
        let is_new = self.clock.now() < self.began + RUNTIME_DOWN_AFTER;
        if !(is_new && existing.as_deref().is_some_and(|node| was_ready(node, &machine.boot_id))) {
            problems.append(&mut unknown);
        }
        Some(node(&NodeInputs {
            config: &self.config,
            facts: &machine,
            addresses,
            runtime_version: self.stock.runtime_version.as_ref(),
            runtime_status: health.status.as_ref().map(|(_, status)| status),
            problems,
            pressures: *self.pressures.borrow(),
            images: self.stock.images.as_deref().map(Vec::as_slice),
            existing: existing.as_deref(),
            now: self.clock.wall(),
        }))
    }

    /// Lets the other rooms know, if there is anything new.
    fn publish(&mut self) {
        let (Some(desired), Some(machine)) = (self.desired(), &self.stock.machine) else {
            return;
        };
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
            Change::Listed(nodes) => match nodes.into_iter().next() {
                Some(node) => node,
                None => {
                    registered.is_doubted = true;
                    return;
                }
            },
            Change::Applied(node) => *node,
            // The end of an earlier one of this name is old news.
            Change::Deleted(node) if node.metadata.uid != known.uid => return,
            Change::Deleted(_) => {
                return self.lose("node was deleted from the API, will register again");
            }
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

    pub(super) fn lose(&mut self, why: &str) {
        warn!(node = self.config.name, "{why}");
        self.standing = Standing::Unregistered { attempts: 0, retry_at: self.clock.now() };
    }

    pub(super) fn tell_schedulable(&mut self) {
        let spec = self.registered().and_then(|registered| registered.node.spec.as_ref());
        let is_unschedulable = spec.and_then(|spec| spec.unschedulable) == Some(true);
        if std::mem::replace(&mut self.was_unschedulable, is_unschedulable) != is_unschedulable {
            self.tell(if is_unschedulable { "NodeNotSchedulable" } else { "NodeSchedulable" });
        }
    }

    pub(super) fn tell(&self, reason: &str) {
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
            self.startup.registering(self.clock.now());
            if let Err(error) = self.register(&*cluster, &desired).await {
                let retry_at = self.clock.now() + self.retry_delay(attempts);
                self.standing = Standing::Unregistered { attempts: attempts + 1, retry_at };
                self.complaints.add(&self.clock, "registration", self.why_not_registered(&error));
                return Some(retry_at);
            }
        }
        if let Some(write_at) =
            self.registered().filter(|registered| registered.is_doubted).map(|doubted| doubted.write_at)
        {
            if write_at > self.clock.now() {
                return Some(write_at);
            }
            if let Err(error) = self.look(&*cluster).await {
                return self.settle(&*cluster, Err(error)).await;
            }
        }
        self.update(&*cluster).await
    }

    pub(super) fn retry_delay(&self, attempts: u32) -> Duration {
        let delay = RETRY_MIN.saturating_mul(1 << attempts.min(16)).min(RETRY_MAX);
        self.clock.jitter(delay, UPDATE_JITTER)
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

pub(super) async fn bounded<T>(what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(CALL_DEADLINE, call).await.unwrap_or_else(|_| {
        Err(ApiError::Unavailable { what: what.to_owned(), message: format!("no answer within {CALL_DEADLINE:?}") })
    })
}
