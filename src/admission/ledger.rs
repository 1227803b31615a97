//! Who was taken, who was refused, and who still waits to be judged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use super::judge::{Judgement, Taken, judge};
use super::resize::Wish;
use super::{NodeFacts, Refusal, is_critical};
use crate::changes::{Changes, Listener};
use crate::pod::{PodRef, PodUid, Source, allocation};
use crate::topology::{Failure, Topology};

/// What a worker is told about its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Admitted,
    Refused(Refusal),
    /// Others have to end first, or to be known to have ended.
    AwaitsOthers,
    /// The node as it is known does not match; ask again with the Node read anew.
    NeedsFreshNode,
}

/// The ledger; clones share it.
#[derive(Clone)]
pub struct Admission {
    pods: Arc<Mutex<Pods>>,
    /// Pods that shall end for others, for whoever carries that out.
    victims: watch::Sender<BTreeSet<PodUid>>,
    /// Something that was held is free.
    freed: Changes,
    /// Gives those that are taken their places on the machine.
    topology: Topology,
}

#[derive(Default)]
pub(super) struct Pods {
    pub by_uid: BTreeMap<PodUid, Entry>,
    /// How many pods and wishes were ever heard of.
    pub count: u64,
    /// Every pod is known that was here before.
    is_settled: bool,
}

pub(super) struct Entry {
    /// With the resources that are allocated to it.
    pub pod: Arc<Pod>,
    pub source: Source,
    turn: Turn,
    standing: Standing,
    /// What it wishes to have in place of that.
    pub wish: Option<Wish>,
}

/// Older pods come first; static ones, which have no such time, before all others. What is
/// as old comes in the order in which it was heard of.
type Turn = (Option<Timestamp>, u64);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// Not judged yet. Taken all the same if an earlier life of the agent took it.
    Waiting {
        was_taken: bool,
    },
    Admitted,
    /// Taken once these have ended, and if none are named, once those are known that have.
    Preempting(BTreeSet<PodUid>),
    /// Has to end for another one; holds what it has until then.
    Victim,
    Refused(Refusal),
    /// Nothing of it runs any more.
    Released,
}

impl Admission {
    pub fn new(topology: Topology) -> Self {
        Admission { pods: Arc::default(), victims: watch::Sender::default(), freed: Changes::default(), topology }
    }

    /// Takes note of a pod that wants to run here.
    pub fn enlist(&self, pod: &Arc<Pod>, source: Source) {
        let mut pods = self.pods();
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0).filter(|_| !source.is_static());
        let status = pod.status.as_ref().filter(|_| !source.is_static());
        let has_ended = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
        let was_taken = status.is_some_and(|status| status.start_time.is_some());
        let standing = if has_ended { Standing::Released } else { Standing::Waiting { was_taken } };
        pods.count += 1;
        let turn = (created, pods.count);
        let uid = PodRef::of(pod).uid;
        pods.by_uid.entry(uid).or_insert_with(|| {
            let pod = if source.is_static() { pod.clone() } else { allocation::of_status(pod) };
            Entry { pod, source, turn, standing, wish: None }
        });
    }

    /// The pod was taken in an earlier life of the agent.
    pub fn take_over(&self, uid: &PodUid) {
        if let Some(entry) = self.pods().by_uid.get_mut(uid).filter(|entry| entry.is_waiting()) {
            entry.standing = Standing::Admitted;
            self.topology.take_over(uid, &entry.pod);
        }
    }

    /// Nothing of the pod runs any more; what it held is free, and its judgement stays.
    pub fn release(&self, uid: &PodUid) {
        if let Some(entry) = self.pods().by_uid.get_mut(uid)
            && !matches!(entry.standing, Standing::Refused(_))
        {
            entry.standing = Standing::Released;
            entry.wish = None;
        }
        self.free(uid);
    }

    /// The pod is gone, or begins another life under the same UID.
    pub fn forget(&self, uid: &PodUid) {
        self.pods().by_uid.remove(uid);
        self.free(uid);
    }

    fn free(&self, uid: &PodUid) {
        self.topology.release(uid);
        for entry in self.pods().by_uid.values_mut() {
            if let Standing::Preempting(victims) = &mut entry.standing {
                victims.remove(uid);
            }
        }
        self.victims.send_if_modified(|victims| victims.remove(uid));
        self.told_free();
    }

    pub(super) fn told_free(&self) {
        self.freed.tell();
    }

    /// Pods that have to end for others, as long as they have not.
    pub fn victims(&self) -> watch::Receiver<BTreeSet<PodUid>> {
        self.victims.subscribe()
    }

    /// Changes whenever a pod that awaits others, or more resources, may ask again.
    pub fn freed(&self) -> Listener {
        self.freed.listen()
    }

    /// What becomes of this pod. Those whose turn is earlier are judged before it.
    /// `holds_something` says of a UID whether the runtime has anything of it; `is_fresh`
    /// that the Node was read for this very question.
    pub fn ask(
        &self,
        uid: &PodUid,
        facts: &NodeFacts<'_>,
        holds_something: impl Fn(&PodUid) -> bool,
        is_fresh: bool,
    ) -> Answer {
        let mut pods = self.pods();
        let is_settled = pods.is_settled;
        let pods = &mut pods.by_uid;
        self.take_over_all(pods, &holds_something);
        // A pod nobody enlisted is an orphan, which starts nothing.
        let Some(asking) = pods.get(uid) else { return Answer::Admitted };
        let turn = asking.turn;
        let mut queue: Vec<(Turn, PodUid)> = pods
            .iter()
            .filter(|(_, entry)| entry.is_waiting() && entry.turn <= turn)
            .map(|(uid, entry)| (entry.turn, uid.clone()))
            .collect();
        queue.sort();
        for (_, next) in queue {
            let judgement = judge_next(pods, facts, &next);
            let may_be_outdated = judgement.may_be_of_an_old_node() && !(is_fresh && next == *uid);
            let Some(entry) = pods.get_mut(&next).filter(|_| !may_be_outdated) else { continue };
            entry.standing = match judgement {
                Judgement::Admitted => self.place(&next, &entry.pod, is_settled),
                Judgement::Refused(refusal) => Standing::Refused(refusal),
                Judgement::Preempts(victims) => Standing::Preempting(victims.into_iter().collect()),
            };
            if let Standing::Preempting(victims) = entry.standing.clone() {
                for victim in victims.iter() {
                    if let Some(entry) = pods.get_mut(victim) {
                        entry.standing = Standing::Victim;
                    }
                }
                self.victims.send_modify(|all| all.extend(victims));
            }
        }
        if let Some(entry) = pods.get_mut(uid)
            && matches!(&entry.standing, Standing::Preempting(victims) if victims.is_empty())
        {
            entry.standing = self.place(uid, &entry.pod, is_settled);
        }
        match &pods[uid].standing {
            Standing::Waiting { .. } => Answer::NeedsFreshNode,
            Standing::Preempting(_) => Answer::AwaitsOthers,
            Standing::Refused(refusal) => Answer::Refused(refusal.clone()),
            Standing::Admitted | Standing::Victim | Standing::Released => Answer::Admitted,
        }
    }

    /// There is room for the pod; whether there is a place, the machine's topology tells.
    fn place(&self, uid: &PodUid, pod: &Pod, is_settled: bool) -> Standing {
        match self.topology.take(uid, pod) {
            Ok(()) => Standing::Admitted,
            // Somebody may still have it who is gone.
            Err(_) if !is_settled => Standing::Preempting(BTreeSet::new()),
            Err(Failure { reason, message }) => Standing::Refused(Refusal::new(reason, message)),
        }
    }

    /// Those whom an earlier life took hold what they have, before their workers say so.
    pub(super) fn take_over_all(&self, pods: &mut BTreeMap<PodUid, Entry>, holds_something: impl Fn(&PodUid) -> bool) {
        for (uid, entry) in pods {
            if let Standing::Waiting { was_taken } = entry.standing
                && (was_taken || holds_something(uid))
            {
                entry.standing = Standing::Admitted;
                self.topology.take_over(uid, &entry.pod);
            }
        }
    }

    /// All pods are known: what those have that are gone is free.
    pub fn settle(&self, holds_something: impl Fn(&PodUid) -> bool) {
        let mut pods = self.pods();
        let was_settled = std::mem::replace(&mut pods.is_settled, true);
        let holds = |uid: &PodUid| pods.by_uid.get(uid).is_some_and(|entry| entry.may_hold()) || holds_something(uid);
        self.topology.retain(holds);
        if !was_settled {
            self.told_free();
        }
    }

    pub(super) fn pods(&self) -> MutexGuard<'_, Pods> {
        self.pods.lock().expect("nothing that holds the ledger can panic")
    }
}

impl Entry {
    fn is_waiting(&self) -> bool {
        matches!(self.standing, Standing::Waiting { .. })
    }

    /// It has, or may have had in an earlier life, what it asked for.
    fn may_hold(&self) -> bool {
        self.holds() || matches!(self.standing, Standing::Waiting { was_taken: true })
    }

    /// It has what it asked for, until it has ended.
    pub fn holds(&self) -> bool {
        matches!(self.standing, Standing::Admitted | Standing::Preempting(_) | Standing::Victim)
    }
}

/// Judges a pod beside those that are taken. For a critical one the room of victims of others
/// counts as free, but it waits for them.
fn judge_next(pods: &BTreeMap<PodUid, Entry>, facts: &NodeFacts<'_>, uid: &PodUid) -> Judgement {
    let Entry { pod, source, .. } = &pods[uid];
    let taken = |with_victims: bool| -> Vec<Taken<'_>> {
        let holders = pods.iter().filter(|(_, entry)| match entry.standing {
            Standing::Admitted | Standing::Preempting(_) => true,
            Standing::Victim => with_victims,
            Standing::Waiting { .. } | Standing::Refused(_) | Standing::Released => false,
        });
        holders.map(|(uid, entry)| Taken { uid, pod: &entry.pod, source: entry.source }).collect()
    };
    if !is_critical(pod, *source) {
        return judge(facts, &taken(true), pod, *source);
    }
    let victims = || pods.iter().filter(|(_, entry)| entry.standing == Standing::Victim).map(|(uid, _)| uid.clone());
    let leaving: Vec<PodUid> = victims().collect();
    match judge(facts, &taken(false), pod, *source) {
        // There is room because of pods that are ending and have not ended yet.
        Judgement::Admitted
            if !leaving.is_empty() && judge(facts, &taken(true), pod, *source) != Judgement::Admitted =>
        {
            Judgement::Preempts(leaving)
        }
        Judgement::Preempts(mut more) => {
            more.extend(leaving);
            Judgement::Preempts(more)
        }
        other => other,
    }
}
