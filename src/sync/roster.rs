//! The roster: which pods are wanted here, and how each is, for those who show them.
//!
//! The dispatcher writes who is on it, each pod's reporter how it is and its worker how far it is
//! with it. Nobody decides by it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::pod::{PodRef, PodUid, Source};

/// A pod that a source has, with its status as computed here.
#[derive(Clone, Debug)]
pub struct Known {
    pub uid: PodUid,
    /// As its source gave it last: an API pod carries the status the API server has.
    pub pod: Arc<Pod>,
    pub source: Source,
    /// As computed here; before that, what the pod itself carries.
    pub status: Arc<PodStatus>,
}

impl Known {
    /// The pod as `/pods` shows it: nobody but this node knows how a static pod is.
    pub fn shown(&self) -> Arc<Pod> {
        match self.source.is_static() {
            true => Arc::new(Pod { status: Some((*self.status).clone()), ..(*self.pod).clone() }),
            false => self.pod.clone(),
        }
    }
}

/// Clones share the roster.
#[derive(Clone, Default)]
pub struct Roster(Arc<Books>);

#[derive(Default)]
struct Books {
    lines: Mutex<BTreeMap<PodUid, Line>>,
    work: Mutex<BTreeMap<PodUid, Work>>,
}

/// How far a worker is with its pod, for those who count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Work {
    pub lifecycle: Lifecycle,
    pub known_by: KnownBy,
    pub is_static: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lifecycle {
    Sync,
    Terminating,
    Terminated,
}

/// Who knows a pod that is worked on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum KnownBy {
    /// A source has it.
    Desired,
    /// Its source has it no more.
    Orphan,
    /// No source ever spoke of it.
    RuntimeOnly,
}

struct Line {
    pod: Arc<Pod>,
    source: Source,
    status: Option<Arc<PodStatus>>,
}

impl Roster {
    /// The newest of a pod that a source has.
    pub(super) fn put(&self, uid: &PodUid, pod: &Arc<Pod>, source: Source) {
        let mut lines = self.lines();
        let status = lines.remove(uid).and_then(|line| line.status);
        lines.insert(uid.clone(), Line { pod: pod.clone(), source, status });
    }

    /// How a pod is. Of one that no source has any more nothing is kept.
    pub(super) fn tell(&self, uid: &PodUid, status: &Arc<PodStatus>) {
        if let Some(line) = self.lines().get_mut(uid) {
            line.status = Some(status.clone());
        }
    }

    pub(super) fn remove(&self, uid: &PodUid) {
        self.lines().remove(uid);
    }

    /// All of them, in the order of their UIDs.
    pub fn all(&self) -> Vec<Known> {
        self.lines().iter().map(|(uid, line)| line.known(uid)).collect()
    }

    /// The pod of this name. Of two, one of which ends for the other, the one that stays.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Known> {
        let lines = self.lines();
        let named = lines.iter().filter(|(_, line)| {
            let reference = PodRef::of(&line.pod);
            reference.namespace == namespace && reference.name == name
        });
        let stays = |line: &Line| {
            let metadata = &line.pod.metadata;
            (metadata.deletion_timestamp.is_none(), metadata.creation_timestamp.as_ref().map(|time| time.0))
        };
        named.max_by_key(|(_, line)| stays(line)).map(|(uid, line)| line.known(uid))
    }

    /// How far its worker is with a pod.
    pub(super) fn works_on(&self, uid: &PodUid, work: Work) {
        self.work_under_way().insert(uid.clone(), work);
    }

    /// The worker of this pod is done.
    pub(super) fn has_left(&self, uid: &PodUid) {
        self.work_under_way().remove(uid);
    }

    /// What all workers are at.
    pub fn work(&self) -> Vec<Work> {
        self.work_under_way().values().copied().collect()
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<PodUid, Line>> {
        self.0.lines.lock().expect("nothing that holds the roster can panic")
    }

    fn work_under_way(&self) -> MutexGuard<'_, BTreeMap<PodUid, Work>> {
        self.0.work.lock().expect("nothing that holds the roster can panic")
    }
}

impl Line {
    fn known(&self, uid: &PodUid) -> Known {
        let status = self.status.clone().unwrap_or_else(|| Arc::new(self.pod.status.clone().unwrap_or_default()));
        Known { uid: uid.clone(), pod: self.pod.clone(), source: self.source, status }
    }
}

#[cfg(test)]
impl Roster {
    /// For tests of those who read it.
    pub fn with(pods: Vec<(Pod, Source)>) -> Self {
        let roster = Roster::default();
        for (pod, source) in pods {
            roster.put(&PodRef::of(&pod).uid, &Arc::new(pod), source);
        }
        roster
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, created: i64, is_ending: bool) -> Pod {
        use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
        let time = |seconds| Time(jiff::Timestamp::from_second(seconds).expect("a time"));
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".into());
        pod.metadata.namespace = Some("shop".into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.creation_timestamp = Some(time(created));
        pod.metadata.deletion_timestamp = is_ending.then(|| time(created));
        pod
    }

    fn status(phase: &str) -> Arc<PodStatus> {
        Arc::new(PodStatus { phase: Some(phase.into()), ..PodStatus::default() })
    }

    #[test]
    fn of_two_pods_of_a_name_the_one_that_stays_is_found() {
        let roster = Roster::with(vec![
            (pod("b", 1, false), Source::Api),
            (pod("a", 2, false), Source::Api),
            (pod("c", 3, true), Source::Api),
        ]);
        let found = |roster: &Roster| roster.find("shop", "web").map(|known| known.uid.to_string());
        assert_eq!(found(&roster).as_deref(), Some("a"));
        roster.remove(&PodUid::new("a"));
        roster.remove(&PodUid::new("b"));
        assert_eq!(found(&roster).as_deref(), Some("c"));
        assert!(roster.find("shop", "other").is_none());
    }

    #[test]
    fn a_static_pod_is_shown_as_it_is_and_an_api_pod_as_the_api_has_it() {
        for (source, shown) in [(Source::File, Some("Running")), (Source::Api, None)] {
            let roster = Roster::with(vec![(pod("a", 1, false), source)]);
            roster.tell(&PodUid::new("a"), &status("Running"));
            // A new version of the pod does not take its status away.
            roster.put(&PodUid::new("a"), &Arc::new(pod("a", 1, false)), source);
            let [known] = roster.all().try_into().expect("one pod");
            assert_eq!(known.status.phase.as_deref(), Some("Running"));
            let phase = known.shown().status.as_ref().and_then(|status| status.phase.clone());
            assert_eq!(phase.as_deref(), shown);
        }
    }

    #[test]
    fn what_is_told_of_a_pod_that_is_gone_is_not_kept() {
        let roster = Roster::default();
        roster.tell(&PodUid::new("a"), &status("Running"));
        assert!(roster.all().is_empty());
    }
}
