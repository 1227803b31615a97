//! Restarts of all containers of a pod, and containers that were added to one for debugging.
//!
//! Checked here, at the moment it would happen: where a container ended so that all begin anew,
//! it is the last to be removed and starts again only once the others were; whoever debugs a pod
//! is started once.

use std::collections::BTreeSet;

use ferrolet::cri::ContainerId;

use super::{DEBUGGER_PREFIX, SimRuntime, State};
use crate::invariants::Invariant;
use crate::programs::{Program, RESTART_ALL_CODE};

/// What a pod had when one of its containers ended so that all begin anew.
#[derive(Default)]
pub(super) struct Renewal {
    sources: BTreeSet<ContainerId>,
    /// The sources among them.
    all: BTreeSet<ContainerId>,
    is_endless: bool,
}

impl State {
    /// A container has ended by itself, or was killed.
    pub(super) fn note_end(&mut self, id: &ContainerId, exit_code: i32) {
        let Some(instance) = self.containers.get(id).filter(|_| exit_code == RESTART_ALL_CODE) else { return };
        let Program::RestartsAll { times, .. } = instance.program else { return };
        let uid = instance.pod_uid.clone();
        *self.falls.entry((uid.clone(), instance.container.name.clone())).or_default() += 1;
        let of_pod = self.containers.values().filter(|other| other.pod_uid == uid);
        let all = of_pod.filter(|other| !other.container.name.starts_with(DEBUGGER_PREFIX));
        let all: Vec<_> = all.map(|other| other.container.id.clone()).collect();
        let renewal = self.renewals.entry(uid).or_default();
        renewal.is_endless |= times == 0;
        renewal.sources.insert(id.clone());
        renewal.all.extend(all);
    }

    /// Whether an instance that begins now ends so that all begin anew.
    pub(super) fn will_fall(&self, uid: &str, name: &str, times: u32) -> bool {
        times == 0 || self.falls.get(&(uid.to_owned(), name.to_owned())).is_none_or(|falls| *falls < times)
    }

    /// Whether all containers of a pod have to go so that they begin anew.
    pub(super) fn is_renewing(&self, uid: &str) -> bool {
        self.renewals.get(uid).is_some_and(|renewal| renewal.sources.iter().any(|id| self.containers.contains_key(id)))
    }

    /// What a restart of all has left of what was there before, but for the sources.
    fn unrenewed(&self, uid: &str) -> Vec<&ContainerId> {
        let Some(renewal) = self.renewals.get(uid) else { return Vec::new() };
        let others = renewal.all.difference(&renewal.sources);
        others.filter(|id| self.containers.contains_key(id)).collect()
    }
}

impl SimRuntime {
    /// From now on the agent may replace single containers of this pod.
    pub fn may_replace(&self, pod_uid: &str) {
        self.state().replaced.insert(pod_uid.to_owned());
    }

    /// What a restart of all should have removed; whoever was replaced meanwhile demands none.
    pub fn left_by_restart(&self, pod_uid: &str) -> Vec<ContainerId> {
        let state = self.state();
        match state.replaced.contains(pod_uid) {
            true => Vec::new(),
            false => state.unrenewed(pod_uid).into_iter().cloned().collect(),
        }
    }

    /// Whether all containers of a pod begin anew for ever; `None` if they never did.
    pub fn restarts_all(&self, pod_uid: &str) -> Option<bool> {
        self.state().renewals.get(pod_uid).map(|renewal| renewal.is_endless)
    }

    /// Whether a container for debugging was ever started.
    pub fn has_debugged(&self, pod_uid: &str, name: &str) -> bool {
        self.state().debuggers.contains_key(&(pod_uid.to_owned(), name.to_owned()))
    }

    /// An instance is about to start.
    pub(super) fn check_renewal(&self, state: &State, uid: &str, starting: &ContainerId, name: &str) {
        let Some(renewal) = state.renewals.get(uid).filter(|_| !state.replaced.contains(uid)) else { return };
        let is_source = |id: &ContainerId| state.owners.get(id).is_some_and(|(_, owner)| owner == name);
        if renewal.all.contains(starting) || !renewal.sources.iter().any(is_source) {
            return;
        }
        let left = state.unrenewed(uid);
        if !left.is_empty() {
            let what = format!("{starting} of {uid}/{name} starts beside {left:?}");
            self.world.violation(Invariant::RestartsOfAllAreWhole, what);
        }
    }

    /// An instance is about to be removed.
    pub(super) fn check_source_goes(&self, state: &State, uid: &str, id: &ContainerId) {
        let is_source = state.renewals.get(uid).is_some_and(|renewal| renewal.sources.contains(id));
        // What ends for another reason goes in any order.
        if !is_source || state.touched.contains(uid) {
            return;
        }
        let left = state.unrenewed(uid);
        if !left.is_empty() {
            let what = format!("{id} of {uid}, which demands it, is removed before {left:?}");
            self.world.violation(Invariant::RestartsOfAllAreWhole, what);
        }
    }

    pub(super) fn note_debugger(&self, state: &mut State, uid: &str, name: &str, id: &ContainerId) {
        if !name.starts_with(DEBUGGER_PREFIX) {
            return;
        }
        let before = state.debuggers.insert((uid.to_owned(), name.to_owned()), id.clone());
        // Of what was lost nobody knows that it ran, unless that was told.
        let is_known = |before: &ContainerId| {
            !state.forgotten.contains_key(before) || state.told.get(uid).is_some_and(|told| told.ran.contains(before))
        };
        if let Some(before) = before.filter(is_known) {
            let what = format!("{id} of {uid}/{name} starts, as {before} did");
            self.world.violation(Invariant::DebuggersRunOnce, what);
        }
    }
}
