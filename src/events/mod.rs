//! Events: what happened to a pod or to this node, told to whoever runs `kubectl describe`.
//!
//! A [`Recorder`] is handed to every room that has something to tell. It never waits and
//! never fails: an event goes into a bounded queue or, when that is full, is dropped and
//! counted. One task (`task.rs`) takes them out, asks the pure [`correlator`] what becomes
//! of each (a new event, a higher count on an earlier one, nothing) and posts the answer.
//!
//! In: calls on `Recorder`, from any thread.
//! Out: `create_event` and `patch_event` on the cluster; a log line for each.
//!
//! Always true: at most `QUEUE_LENGTH` events wait, however long the API server is away; a
//! pod in a crash loop costs the API one write in five minutes once its burst is used up.

pub mod correlator;
mod task;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::sync::mpsc;

use crate::clock::Clock;
pub use task::run;

/// Events that may wait for the poster. client-go's broadcaster holds as many.
const QUEUE_LENGTH: usize = 1000;

/// The two types an event can have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Something that happened once, as the recorder was told.
#[derive(Clone, PartialEq, Debug)]
pub struct Occurrence {
    pub about: ObjectReference,
    pub kind: EventType,
    pub reason: String,
    pub message: String,
    pub at: Timestamp,
}

/// Tells events. Clones share one queue.
#[derive(Clone)]
pub struct Recorder {
    clock: Clock,
    node_name: Arc<str>,
    sink: Sink,
}

#[derive(Clone)]
enum Sink {
    Queue { sender: mpsc::Sender<Occurrence>, dropped: Arc<AtomicU64> },
    List(Recorded),
}

/// The other end of a recorder's queue, for [`run`].
pub struct Queue {
    receiver: mpsc::Receiver<Occurrence>,
    dropped: Arc<AtomicU64>,
    node_name: Arc<str>,
}

/// What a recorder made by [`Recorder::for_tests`] was told, in order.
#[derive(Clone, Default)]
pub struct Recorded(Arc<Mutex<Vec<Occurrence>>>);

impl Recorder {
    /// A recorder for this node, and the queue whose events [`run`] posts.
    pub fn new(clock: Clock, node_name: &str) -> (Recorder, Queue) {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let (dropped, node_name) = (Arc::<AtomicU64>::default(), Arc::<str>::from(node_name));
        let queue = Queue { receiver, dropped: Arc::clone(&dropped), node_name: Arc::clone(&node_name) };
        (Recorder { clock, node_name, sink: Sink::Queue { sender, dropped } }, queue)
    }

    /// A recorder that only keeps what it was told, and the handle to read it back.
    pub fn for_tests() -> (Recorder, Recorded) {
        let recorded = Recorded::default();
        let sink = Sink::List(recorded.clone());
        (Recorder { clock: Clock::system(), node_name: "node".into(), sink }, recorded)
    }

    /// An event of a pod; `field_path` names the container, as `spec.containers{name}`.
    ///
    /// A static pod's events carry the UID made from its manifest and not its mirror's, as
    /// upstream's do.
    pub fn pod(&self, pod: &Pod, field_path: Option<&str>, kind: EventType, reason: &str, message: impl Into<String>) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field_path.map(str::to_owned),
        };
        self.record(about, kind, reason, message.into());
    }

    /// An event of this node.
    ///
    /// The reference has neither UID nor namespace, so the event is stored in `default`.
    pub fn node(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.node_name.to_string()),
            ..ObjectReference::default()
        };
        self.record(about, kind, reason, message.into());
    }

    fn record(&self, about: ObjectReference, kind: EventType, reason: &str, message: String) {
        let occurrence = Occurrence { about, kind, reason: reason.to_owned(), message, at: self.clock.wall() };
        match &self.sink {
            Sink::Queue { sender, dropped } => {
                if sender.try_send(occurrence).is_err() {
                    // The poster reports the sum once it gets through again: a line for each
                    // would flood the log exactly when the API server is away.
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Sink::List(recorded) => recorded.push(occurrence),
        }
    }
}

impl Recorded {
    /// Everything recorded so far.
    pub fn list(&self) -> Vec<Occurrence> {
        self.0.lock().expect("no holder of the list lock panics").clone()
    }

    /// The reasons recorded so far, which is what most tests ask for.
    pub fn reasons(&self) -> Vec<String> {
        self.list().into_iter().map(|occurrence| occurrence.reason).collect()
    }

    fn push(&self, occurrence: Occurrence) {
        self.0.lock().expect("no holder of the list lock panics").push(occurrence);
    }
}

#[cfg(test)]
mod tests;
