//! Objects of one kind, each watched by itself for as long as a pod here mentions it.
//!
//! ```text
//!          want                     first answer
//! (none) ───────► Unread / Refused ─────────────► Present / Absent ◄─┐ each change wakes
//!    ▲                 │                                │            │ the users
//!    │                 │ no user for LINGER             ├────────────┘
//!    └─────────────────┴────────────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::{ObjectError, Wake};
use crate::kube::{Cluster, ObjectState};
use crate::pod::PodUid;

/// How long a question may wait for an object's first answer, counted from its first
/// mention; whoever asks later is told at once, and woken when the answer comes.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The same while the API server refuses. The Node authorizer lags behind the binding of a
/// pod by tens of milliseconds; a refusal that lasts is one to report.
const REFUSED_FOR: Duration = Duration::from_secs(3);
/// How long an object stays watched without a user: a rolling update replaces its pods
/// within seconds.
const LINGER: Duration = Duration::from_secs(30);

/// A kind of object that can be watched singly.
pub(super) trait Single: Send + Sync + Sized + 'static {
    const KIND: &'static str;
    fn watch(cluster: &dyn Cluster, namespace: &str, name: &str) -> BoxStream<'static, ObjectState<Self>>;
    fn is_immutable(&self) -> bool;
    /// Equal for two reads of the same state.
    fn version(&self) -> (Option<&str>, Option<&str>);
}

impl Single for ConfigMap {
    const KIND: &'static str = "config map";
    fn watch(cluster: &dyn Cluster, namespace: &str, name: &str) -> BoxStream<'static, ObjectState<Self>> {
        cluster.watch_config_map(namespace, name)
    }
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
    fn version(&self) -> (Option<&str>, Option<&str>) {
        (self.metadata.uid.as_deref(), self.metadata.resource_version.as_deref())
    }
}

impl Single for Secret {
    const KIND: &'static str = "secret";
    fn watch(cluster: &dyn Cluster, namespace: &str, name: &str) -> BoxStream<'static, ObjectState<Self>> {
        cluster.watch_secret(namespace, name)
    }
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
    fn version(&self) -> (Option<&str>, Option<&str>) {
        (self.metadata.uid.as_deref(), self.metadata.resource_version.as_deref())
    }
}

pub(super) struct Store<K>(Arc<Shared<K>>);

struct Shared<K> {
    cluster: Arc<dyn Cluster>,
    wake: Wake,
    entries: Mutex<Entries<K>>,
}

struct Entries<K> {
    by_name: BTreeMap<Name, Entry<K>>,
    /// What each pod mentions, to tell what a new spec adds and drops.
    by_pod: BTreeMap<PodUid, BTreeSet<Name>>,
    /// A task is waiting to drop what lingers.
    sweeping: bool,
}

/// Namespace and name.
type Name = (String, String);

struct Entry<K> {
    users: BTreeSet<PodUid>,
    unused_since: Option<Instant>,
    latest: watch::Sender<Latest<K>>,
    /// Someone was told to come back later, so that the first answer has to wake the users.
    owed: bool,
    watching: AbortOnDropHandle<()>,
}

/// What is known of an object.
enum Latest<K> {
    Unread { since: Instant },
    Refused { since: Instant, message: String },
    Absent,
    Present(Arc<K>),
}

impl<K> Latest<K> {
    fn is_known(&self) -> bool {
        matches!(self, Latest::Absent | Latest::Present(_))
    }
}

impl<K: Single> Store<K> {
    pub(super) fn new(cluster: Arc<dyn Cluster>, wake: Wake) -> Self {
        let entries = Entries { by_name: BTreeMap::new(), by_pod: BTreeMap::new(), sweeping: false };
        Store(Arc::new(Shared { cluster, wake, entries: Mutex::new(entries) }))
    }

    /// Sets what a pod mentions.
    pub(super) fn want(&self, uid: &PodUid, namespace: &str, names: BTreeSet<String>) {
        let names: BTreeSet<Name> = names.into_iter().map(|name| (namespace.to_owned(), name)).collect();
        self.set_wanted(uid, names);
    }

    pub(super) fn want_nothing(&self, uid: &PodUid) {
        self.set_wanted(uid, BTreeSet::new());
    }

    fn set_wanted(&self, uid: &PodUid, names: BTreeSet<Name>) {
        let mut entries = self.0.entries();
        let before = entries.by_pod.remove(uid).unwrap_or_default();
        for name in names.difference(&before) {
            let entry = entries.by_name.entry(name.clone()).or_insert_with(|| self.open(name));
            entry.users.insert(uid.clone());
            entry.unused_since = None;
        }
        for name in before.difference(&names) {
            if let Some(entry) = entries.by_name.get_mut(name) {
                entry.users.remove(uid);
                if !entry.users.is_empty() {
                    continue;
                }
                if entry.watching.is_finished() {
                    // An immutable object: under its name there may be another one by now,
                    // which nobody would hear of.
                    entries.by_name.remove(name);
                } else {
                    entry.unused_since = Some(Instant::now());
                    self.sweep_later(&mut entries);
                }
            }
        }
        if !names.is_empty() {
            entries.by_pod.insert(uid.clone(), names);
        }
    }

    pub(super) async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, ObjectError> {
        let key = (namespace.to_owned(), name.to_owned());
        let not_registered =
            || ObjectError::NotRegistered { kind: K::KIND, namespace: namespace.to_owned(), name: name.to_owned() };
        let mut latest =
            self.0.entries().by_name.get(&key).map(|entry| entry.latest.subscribe()).ok_or_else(not_registered)?;
        loop {
            let deadline = match &*latest.borrow_and_update() {
                Latest::Present(object) => return Ok(Some(Arc::clone(object))),
                Latest::Absent => return Ok(None),
                Latest::Unread { since } => *since + ANSWER_WITHIN,
                Latest::Refused { since, .. } => *since + REFUSED_FOR,
            };
            match timeout_at(deadline, latest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(not_registered()),
                Err(_) => return self.come_back(key).ok_or_else(not_registered)?,
            }
        }
    }

    /// Promises a wake-up, unless the answer has come this very moment. `None` when the
    /// object is not wanted any more.
    fn come_back(&self, (namespace, name): Name) -> Option<Result<Option<Arc<K>>, ObjectError>> {
        let mut entries = self.0.entries();
        let entry = entries.by_name.get_mut(&(namespace.clone(), name.clone()))?;
        let why = match &*entry.latest.borrow() {
            Latest::Present(object) => return Some(Ok(Some(Arc::clone(object)))),
            Latest::Absent => return Some(Ok(None)),
            Latest::Unread { .. } => "the API server has not answered".to_owned(),
            Latest::Refused { message, .. } => message.clone(),
        };
        entry.owed = true;
        Some(Err(ObjectError::NotYet { kind: K::KIND, namespace, name, why }))
    }

    fn open(&self, name: &Name) -> Entry<K> {
        let states = K::watch(self.0.cluster.as_ref(), &name.0, &name.1);
        let watching = AbortOnDropHandle::new(tokio::spawn(follow(Arc::downgrade(&self.0), name.clone(), states)));
        let latest = watch::Sender::new(Latest::Unread { since: Instant::now() });
        Entry { users: BTreeSet::new(), unused_since: None, latest, owed: false, watching }
    }

    /// One task at a time waits for what lingers.
    fn sweep_later(&self, entries: &mut Entries<K>) {
        if entries.sweeping {
            return;
        }
        entries.sweeping = true;
        let shared = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                sleep(LINGER).await;
                match shared.upgrade().map(|shared| shared.sweep()) {
                    Some(true) => {}
                    Some(false) | None => return,
                }
            }
        });
    }
}

impl<K: Single> Shared<K> {
    fn entries(&self) -> MutexGuard<'_, Entries<K>> {
        self.entries.lock().expect("no holder of the entries lock panics")
    }

    /// Drops what has lingered long enough; whether there is more to wait for.
    fn sweep(&self) -> bool {
        let mut entries = self.entries();
        let now = Instant::now();
        entries.by_name.retain(|_, entry| entry.unused_since.is_none_or(|since| now.duration_since(since) < LINGER));
        entries.sweeping = entries.by_name.values().any(|entry| entry.unused_since.is_some());
        entries.sweeping
    }

    /// Takes up a state and wakes whom it concerns; whether to go on watching.
    fn take_up(&self, name: &Name, state: ObjectState<K>) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.by_name.get_mut(name) else {
            return false;
        };
        let was_known = entry.latest.borrow().is_known();
        let (news, go_on) = match state {
            ObjectState::Present(object) => {
                let go_on = !object.is_immutable();
                (entry.latest.send_if_modified(|latest| see(latest, *object)), go_on)
            }
            ObjectState::Absent => (entry.latest.send_if_modified(miss), true),
            // What was read before stays good: a watch that cannot be renewed for a moment
            // must not take a running pod's configuration away.
            ObjectState::Refused(message) => {
                entry.latest.send_if_modified(|latest| refuse(latest, message));
                (false, true)
            }
        };
        let woken =
            if news && (was_known || std::mem::take(&mut entry.owed)) { entry.users.clone() } else { BTreeSet::new() };
        drop(entries);
        woken.iter().for_each(|uid| (self.wake)(uid));
        go_on
    }
}

fn see<K: Single>(latest: &mut Latest<K>, object: K) -> bool {
    // A watch that started over shows everything again.
    if let Latest::Present(known) = latest
        && known.version() == object.version()
        && object.version().1.is_some()
    {
        return false;
    }
    *latest = Latest::Present(Arc::new(object));
    true
}

fn miss<K>(latest: &mut Latest<K>) -> bool {
    let news = !matches!(latest, Latest::Absent);
    *latest = Latest::Absent;
    news
}

fn refuse<K>(latest: &mut Latest<K>, message: String) -> bool {
    let since = match latest {
        Latest::Unread { .. } => Instant::now(),
        Latest::Refused { since, .. } => *since,
        Latest::Absent | Latest::Present(_) => return false,
    };
    *latest = Latest::Refused { since, message };
    true
}

/// Ends with the entry, with the store, or once an immutable object has been read.
async fn follow<K: Single>(shared: Weak<Shared<K>>, name: Name, mut states: BoxStream<'static, ObjectState<K>>) {
    while let Some(state) = states.next().await {
        let go_on = shared.upgrade().is_some_and(|shared| shared.take_up(&name, state));
        if !go_on {
            return;
        }
    }
}
