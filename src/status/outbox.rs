//! Which pod's status is sent next, and when: the writer's state, without tasks or I/O.
//!
//! Every pod has one entry with the newest status that was set and the newest object the
//! API is known to have. An entry is in one [`Place`] at a time:
//!
//! - `Clean` → `Due`, when what is set and what the API has may differ; by way of `Settling`
//!   where nobody waits for it;
//! - `Due` → `InFlight`, when its turn comes and there truly is a difference;
//! - `InFlight` → `Clean`, once accepted; → `Due` at once if it was set anew meanwhile;
//!   → `Resting` after a failure; → `Clean` for good if the object is gone or refuses;
//! - `Resting` → `Due`, when its time is over or the API server is back.
//!
//! Two pods failing in a row with no success between them mean that the API server is away
//! ([`Link::Down`]): then one entry after another, whichever is next, serves as the probe,
//! and the first success lets all go. One pod failing alone rests alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::patch::status_patch;
use crate::clock::Clock;
use crate::kube::is_older;
use crate::pod::PodUid;
use crate::sources::mirror::is_mirror;

/// Patches under way at once. Enough to keep 100 starting pods moving, few enough for an
/// API server on the same small board.
pub(super) const IN_FLIGHT_MAX: usize = 8;
/// A change nobody waits for may be overtaken by the next one, and leaves the API server to what a
/// starting pod needs of it. Most pods that start fast need but one write.
const SETTLES_WITHIN: Duration = Duration::from_millis(500);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A status that somebody else keeps changing is corrected no more often than this, which is
/// how often upstream does.
const CORRECTION_INTERVAL: Duration = Duration::from_secs(10);

/// A patch to send.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Request {
    pub uid: PodUid,
    pub namespace: String,
    pub name: String,
    /// The UID of the API object, which for a static pod is its mirror's.
    pub api_uid: String,
    pub write: Write,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Write {
    Patch(Value),
    /// The mirror tells of a life that has ended, which no patch takes back: the static pod
    /// was put back while nobody looked. It needs another mirror.
    DeleteMirror,
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    Accepted(Arc<Pod>),
    /// The object changed under the patch; this is what it is now.
    Outdated(Arc<Pod>),
    /// The object is gone, or another one has its name.
    Gone,
    /// The API server finds the status wrong. Sending it again is of no use.
    Rejected,
    /// No answer, or none that says anything about this pod.
    Failed,
}

#[derive(PartialEq, Debug)]
pub(super) enum Step {
    Send(Request),
    /// Nothing to do until something happens, or until this moment.
    Wait(Option<Instant>),
}

/// How far the API has a pod's status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    Pending,
    /// The API has what was set last.
    Accepted,
    /// The API has no such pod any more.
    Gone,
    /// The API server refuses the status as invalid.
    Rejected,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Urgency {
    /// Becoming ready or not ready, and ending: others wait for it.
    First,
    Ordinary,
}

enum Place {
    Clean,
    Due {
        urgency: Urgency,
        turn: u64,
    },
    /// `sent` is the status the patch was made from, for the object with `api_uid`.
    InFlight {
        sent: Arc<PodStatus>,
        api_uid: String,
    },
    Settling {
        until: Instant,
    },
    Resting {
        until: Instant,
    },
}

struct Entry {
    desired: Option<Arc<PodStatus>>,
    api: ApiSide,
    place: Place,
    failures: u32,
    /// The difference that remained after the API accepted `desired`: fields that an older
    /// server drops or writes in another way. Sending it again would go on for ever.
    residue: Option<Value>,
    corrected_at: Option<Instant>,
    /// Since when `desired` is something else than the API has, as far as it was set here.
    changed_at: Option<Instant>,
}

enum ApiSide {
    /// Not seen yet, like the mirror of a static pod that was just created.
    Unseen,
    Present(Arc<Pod>),
    Gone,
    /// There, and refusing what is set now.
    Refusing(Arc<Pod>),
}

impl ApiSide {
    fn pod(&self) -> Option<&Arc<Pod>> {
        match self {
            ApiSide::Present(pod) | ApiSide::Refusing(pod) => Some(pod),
            ApiSide::Unseen | ApiSide::Gone => None,
        }
    }
}

enum Link {
    /// The pod that failed last, if nothing succeeded since.
    Up {
        failed: Option<PodUid>,
    },
    Down {
        retry_at: Instant,
        attempts: u32,
        probing: bool,
    },
}

pub(super) struct Outbox {
    clock: Clock,
    entries: BTreeMap<PodUid, Entry>,
    due: BTreeSet<(Urgency, u64, PodUid)>,
    resting: BTreeSet<(Instant, PodUid)>,
    turns: u64,
    in_flight: usize,
    link: Link,
}

impl Outbox {
    pub fn new(clock: Clock) -> Self {
        Outbox {
            clock,
            entries: BTreeMap::new(),
            due: BTreeSet::new(),
            resting: BTreeSet::new(),
            turns: 0,
            in_flight: 0,
            link: Link::Up { failed: None },
        }
    }

    /// The status a pod shall have. Replaces one that was not sent yet.
    pub fn set(&mut self, uid: &PodUid, status: PodStatus) {
        let now = self.clock.now();
        let entry = self.entry(uid);
        if entry.desired.as_deref() == Some(&status) {
            return;
        }
        entry.changed_at.get_or_insert(now);
        entry.desired = Some(Arc::new(status));
        entry.residue = None;
        if let ApiSide::Refusing(pod) = &entry.api {
            entry.api = ApiSide::Present(Arc::clone(pod));
        }
        match &entry.place {
            Place::Clean if entry.may_settle() => {
                let until = self.clock.now() + SETTLES_WITHIN;
                self.set_aside(uid, until, Place::Settling { until });
            }
            Place::Settling { .. } if entry.may_settle() => {}
            Place::Clean | Place::Due { .. } | Place::Settling { .. } => self.queue(uid),
            // One that rests after a failure keeps resting: a pod whose status changes often
            // must not hammer an API server that is in trouble.
            Place::InFlight { .. } | Place::Resting { .. } => {}
        }
    }

    /// What the API has, as a watch or an answer tells it.
    pub fn observed(&mut self, uid: &PodUid, pod: Arc<Pod>, now: Instant) {
        if let Link::Down { retry_at, .. } = &mut self.link {
            *retry_at = now;
        }
        let entry = self.entry(uid);
        if matches!(entry.place, Place::Resting { .. }) && entry.failures > 0 {
            // Word from the API server: it is there again.
            self.queue(uid);
        }
        let entry = self.entry(uid);
        let known = entry.api.pod();
        let is_same_object = known.is_some_and(|known| known.metadata.uid == pod.metadata.uid);
        if is_same_object && known.is_some_and(|known| is_older(&pod.metadata, &known.metadata)) {
            return;
        }
        if is_same_object && matches!(entry.api, ApiSide::Refusing(_)) {
            entry.api = ApiSide::Refusing(pod);
            return;
        }
        entry.api = ApiSide::Present(pod);
        if !matches!(entry.place, Place::Clean) {
            return;
        }
        let Some(patch) = entry.patch() else { return };
        if is_same_object && entry.residue.as_ref() == Some(&patch) {
            return;
        }
        match entry.corrected_at.filter(|_| is_same_object).map(|at| at + CORRECTION_INTERVAL) {
            Some(until) if until > now => self.rest(uid, until),
            _ => {
                entry.corrected_at = is_same_object.then_some(now);
                self.queue(uid);
            }
        }
    }

    /// The API has no such object any more.
    pub fn gone(&mut self, uid: &PodUid) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.api = ApiSide::Gone;
        }
    }

    pub fn forget(&mut self, uid: &PodUid) {
        self.unqueue(uid);
        self.entries.remove(uid);
    }

    pub fn flush(&self, uid: &PodUid) -> Flush {
        let Some(entry) = self.entries.get(uid) else {
            return Flush::Gone;
        };
        match (&entry.api, &entry.place) {
            (ApiSide::Gone, _) => Flush::Gone,
            (ApiSide::Refusing(_), Place::Clean) => Flush::Rejected,
            (ApiSide::Present(_), Place::Clean) => Flush::Accepted,
            _ => Flush::Pending,
        }
    }

    /// Whether every status that can be sent was.
    pub fn is_drained(&self) -> bool {
        self.in_flight == 0 && self.due.is_empty() && self.resting.is_empty()
    }

    /// How often in a row the pod's status did not get through.
    pub fn failures(&self, uid: &PodUid) -> u32 {
        self.entries.get(uid).map_or(0, |entry| entry.failures)
    }

    pub fn is_down(&self) -> bool {
        matches!(self.link, Link::Down { .. })
    }

    /// The next thing to do. A request counts as in flight until [`Outbox::done`].
    pub fn next(&mut self, now: Instant) -> Step {
        while let Some((until, uid)) = self.resting.first().cloned().filter(|(until, _)| *until <= now) {
            self.resting.remove(&(until, uid.clone()));
            self.queue(&uid);
        }
        match self.link {
            Link::Down { probing: true, .. } => return Step::Wait(None),
            Link::Down { retry_at, .. } if retry_at > now && !self.due.is_empty() => {
                return Step::Wait(Some(retry_at));
            }
            _ => {}
        }
        while self.in_flight < IN_FLIGHT_MAX {
            let Some((_, _, uid)) = self.due.pop_first() else {
                break;
            };
            if let Some(request) = self.start(&uid) {
                if let Link::Down { probing, .. } = &mut self.link {
                    *probing = true;
                }
                return Step::Send(request);
            }
        }
        Step::Wait(self.resting.first().map(|(until, _)| *until))
    }

    /// Makes the request of an entry whose turn has come, if it needs one.
    fn start(&mut self, uid: &PodUid) -> Option<Request> {
        let entry = self.entries.get_mut(uid)?;
        entry.place = Place::Clean;
        let (Some(desired), Some(pod)) = (&entry.desired, entry.api.pod()) else {
            return None;
        };
        let api_uid = pod.metadata.uid.clone().unwrap_or_default();
        let is_of_another_life =
            |told: &PodStatus| has_ended(told) && (!has_ended(desired) || told.start_time != desired.start_time);
        let write = if is_mirror(pod) && pod.status.as_ref().is_some_and(is_of_another_life) {
            Write::DeleteMirror
        } else {
            let patch = entry.patch().filter(|patch| entry.residue.as_ref() != Some(patch))?;
            // The UID makes the API server refuse the patch for another pod of that name.
            Write::Patch(json!({"metadata": {"uid": api_uid}, "status": patch}))
        };
        let request = Request {
            uid: uid.clone(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            write,
            api_uid: api_uid.clone(),
        };
        entry.place = Place::InFlight { sent: Arc::clone(desired), api_uid };
        self.in_flight += 1;
        Some(request)
    }

    /// How long the status that is under way has been due, or a part of it; each is told once.
    pub fn delay(&mut self, uid: &PodUid, now: Instant) -> Option<Duration> {
        let entry = self.entries.get_mut(uid)?;
        let Place::InFlight { sent, .. } = &entry.place else { return None };
        let is_newest = entry.desired.as_ref().is_some_and(|desired| Arc::ptr_eq(desired, sent));
        let since = entry.changed_at.take()?;
        // What was set meanwhile waits from now on.
        entry.changed_at = (!is_newest).then_some(now);
        Some(now.saturating_duration_since(since))
    }

    /// Takes in what became of a request.
    pub fn done(&mut self, uid: &PodUid, outcome: Outcome, now: Instant) {
        self.in_flight -= 1;
        match outcome {
            Outcome::Failed => self.link_failed(uid, now),
            _ => self.link_works(),
        }
        // An entry that was forgotten meanwhile, or forgotten and made anew.
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        let Place::InFlight { sent, api_uid } = &entry.place else {
            return;
        };
        let sent = Arc::clone(sent);
        let is_other = entry.api.pod().is_some_and(|pod| pod.metadata.uid.as_ref() != Some(api_uid));
        entry.place = Place::Clean;
        if is_other {
            // The mirror was replaced meanwhile: the answer is about the old one.
            return self.queue(uid);
        }
        let set_anew = !entry.desired.as_ref().is_some_and(|desired| Arc::ptr_eq(desired, &sent));
        match outcome {
            Outcome::Accepted(pod) => {
                entry.failures = 0;
                entry.residue = match set_anew {
                    true => None,
                    false => difference(&pod, &sent),
                };
                entry.learn(pod);
                if entry.patch().is_some_and(|patch| entry.residue.as_ref() != Some(&patch)) {
                    self.queue(uid);
                }
            }
            Outcome::Outdated(pod) => {
                entry.learn(pod);
                self.retry_later(uid, now);
            }
            Outcome::Rejected if set_anew => self.queue(uid),
            Outcome::Rejected => {
                if let Some(pod) = entry.api.pod() {
                    entry.api = ApiSide::Refusing(Arc::clone(pod));
                }
            }
            Outcome::Gone => entry.api = ApiSide::Gone,
            Outcome::Failed => self.retry_later(uid, now),
        }
    }

    fn retry_later(&mut self, uid: &PodUid, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        entry.failures += 1;
        let delay = retry_delay(&self.clock, entry.failures);
        if self.is_down() {
            // Whatever it was, it queues behind the others, so that each serves as the probe
            // in turn and none that fails for a reason of its own hides the recovery.
            self.queue_as(uid, Urgency::Ordinary);
        } else {
            self.rest(uid, now + delay);
        }
    }

    fn link_failed(&mut self, uid: &PodUid, now: Instant) {
        match &mut self.link {
            Link::Up { failed } if failed.as_ref().is_none_or(|failed| failed == uid) => *failed = Some(uid.clone()),
            Link::Up { .. } => {
                self.link = Link::Down { retry_at: now + retry_delay(&self.clock, 1), attempts: 1, probing: false };
                for (_, uid) in std::mem::take(&mut self.resting) {
                    self.queue_as(&uid, Urgency::Ordinary);
                }
            }
            // The rest of a volley that was under way when the link went down says nothing new.
            Link::Down { probing: false, .. } => {}
            Link::Down { retry_at, attempts, probing } => {
                *attempts += 1;
                *retry_at = now + retry_delay(&self.clock, *attempts);
                *probing = false;
            }
        }
    }

    fn link_works(&mut self) {
        if self.is_down() {
            let waiting: Vec<PodUid> = self.due.iter().map(|(_, _, uid)| uid.clone()).collect();
            for uid in waiting {
                self.queue(&uid);
            }
        }
        self.link = Link::Up { failed: None };
    }

    fn entry(&mut self, uid: &PodUid) -> &mut Entry {
        self.entries.entry(uid.clone()).or_insert_with(|| Entry {
            desired: None,
            api: ApiSide::Unseen,
            place: Place::Clean,
            failures: 0,
            residue: None,
            corrected_at: None,
            changed_at: None,
        })
    }

    fn queue(&mut self, uid: &PodUid) {
        let urgency = self.entry(uid).urgency();
        self.queue_as(uid, urgency);
    }

    /// Puts an entry into the queue; one that is in it keeps its turn among its equals.
    fn queue_as(&mut self, uid: &PodUid, urgency: Urgency) {
        let turn = match self.unqueue(uid) {
            Some(turn) => turn,
            None => {
                self.turns += 1;
                self.turns
            }
        };
        self.entry(uid).place = Place::Due { urgency, turn };
        self.due.insert((urgency, turn, uid.clone()));
    }

    fn rest(&mut self, uid: &PodUid, until: Instant) {
        self.set_aside(uid, until, Place::Resting { until });
    }

    fn set_aside(&mut self, uid: &PodUid, until: Instant, place: Place) {
        self.unqueue(uid);
        self.entry(uid).place = place;
        self.resting.insert((until, uid.clone()));
    }

    /// Takes an entry out of its queue and returns its turn, if it had one.
    fn unqueue(&mut self, uid: &PodUid) -> Option<u64> {
        match self.entries.get(uid)?.place {
            Place::Due { urgency, turn } => {
                self.due.remove(&(urgency, turn, uid.clone()));
                Some(turn)
            }
            Place::Settling { until } | Place::Resting { until } => {
                self.resting.remove(&(until, uid.clone()));
                None
            }
            Place::Clean | Place::InFlight { .. } => None,
        }
    }
}

impl Entry {
    /// What the API still lacks.
    fn patch(&self) -> Option<Value> {
        difference(self.api.pod()?, self.desired.as_deref()?)
    }

    fn urgency(&self) -> Urgency {
        let has = self.api.pod().and_then(|pod| pod.status.as_ref());
        let (Some(has), Some(wants)) = (has, self.desired.as_deref()) else {
            return Urgency::Ordinary;
        };
        if has_ended(has) != has_ended(wants) || is_ready(has) != is_ready(wants) {
            Urgency::First
        } else {
            Urgency::Ordinary
        }
    }

    /// There is something to tell, and nobody waits for it.
    fn may_settle(&self) -> bool {
        let phase = |status: Option<&PodStatus>| status.and_then(|status| status.phase.clone());
        let has = self.api.pod().and_then(|pod| pod.status.as_ref());
        self.urgency() == Urgency::Ordinary && phase(has) == phase(self.desired.as_deref()) && self.patch().is_some()
    }

    fn learn(&mut self, pod: Arc<Pod>) {
        if !self.api.pod().is_some_and(|known| is_older(&pod.metadata, &known.metadata)) {
            self.api = ApiSide::Present(pod);
        }
    }
}

fn difference(pod: &Pod, desired: &PodStatus) -> Option<Value> {
    let none = PodStatus::default();
    status_patch(pod.status.as_ref().unwrap_or(&none), desired)
}

fn has_ended(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

fn is_ready(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// 200 ms, doubling up to 5 s, plus up to half of it.
pub(super) fn retry_delay(clock: &Clock, attempts: u32) -> Duration {
    let doubled = RETRY_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    clock.jitter(doubled.min(RETRY_MAX), 0.5)
}
